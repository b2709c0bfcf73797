"""A workload that is described in a file, on zray, Ray or in virtual time: ``paper_experiments replay``."""
