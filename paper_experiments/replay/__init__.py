"""A workload that is described in a file, run on zray, on Ray or in virtual time: ``paper_experiments replay``."""
