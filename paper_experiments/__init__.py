"""The evaluation of the paper, run again: one folder per figure or table, one command for all of them."""
