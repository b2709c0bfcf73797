"""A workload that is described in a file, on zray, on Ray or in virtual time: ``paper_experiments replay``."""
