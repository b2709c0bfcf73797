"""The same sum by OpenMPI, which chooses its own algorithm by size. Imported only under ``mpirun``."""

from __future__ import annotations

from typing import Any

import numpy as np


def measure(communicator: Any, size_bytes: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of some allreduces, after one; the slowest rank counts."""
    rank, count = communicator.Get_rank(), communicator.Get_size()
    contribution = np.full(max(1, size_bytes // 8), float(rank + 1))
    total = np.empty_like(contribution)
    taken = []
    for _ in range(1 + repetitions):
        communicator.Barrier()
        started = _clock_s()
        communicator.Allreduce(contribution, total)
        taken.append(max(communicator.allgather(_clock_s() - started)))
        assert total[-1] == count * (count + 1) / 2, f"OpenMPI gives {total[-1]}"
    return {"own choice": taken[1:]}


def _clock_s() -> float:
    from mpi4py import MPI

    now_s: float = MPI.Wtime()
    return now_s
