"""The simulator: the machines of ``zray.core`` in virtual time, with faults drawn from a seed and judges."""
