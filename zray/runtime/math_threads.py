"""How many threads numpy and other OpenMP code start in a worker: as many as its task has CPUs.

By themselves such libraries start one for each CPU of the machine, in every worker: two matrix products at
once on two CPUs took twice as long as one after the other. They look at the variable when they are loaded,
so what a worker runs first decides for all that it runs.
"""

from __future__ import annotations

import os

from zray.protocol.messages import RESOURCE_UNIT, Demand

VARIABLE = "OMP_NUM_THREADS"


def limit(demand: Demand) -> None:
    """Before a worker loads the code of its first task; what the user has set counts."""
    cpus = dict(demand).get("CPU", 0) // RESOURCE_UNIT
    os.environ.setdefault(VARIABLE, str(max(1, cpus)))
