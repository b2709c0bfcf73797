"""Memory of every process of zray during a long loop of tasks whose refs are dropped at once.

``python -m benchmarks.bench_memory --tasks 1000000`` prints a row per tenth of the way: what each process
holds (proportional set size) must not grow with the number of tasks, once warm.
"""

from __future__ import annotations

import argparse
import os
import time

import psutil

import zray
from benchmarks.processes import pss_bytes

MIB = 1 << 20
STEPS = 10


@zray.remote
def nothing() -> None:
    """A task that costs only what zray costs."""


def processes(node_pid: int) -> dict[str, int]:
    """Name -> process id of the driver, the node and what the node started, workers aside."""
    found = {"driver": os.getpid(), "node": node_pid}
    for child in psutil.Process(node_pid).children():
        name = child.name() if child.name().startswith("zray") else "control store"
        found[name] = child.pid
    return found


def main() -> None:
    """Run the loop and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--num-cpus", type=int, default=2)
    options = parser.parse_args()
    with zray.init(num_cpus=options.num_cpus) as context:
        assert context.pid is not None
        zray.get(nothing.remote())
        pids = processes(context.pid)
        print("     tasks  seconds  " + "  ".join(f"{name:>13}" for name in pids) + "  (MiB)")
        started = time.perf_counter()
        for step in range(STEPS + 1):
            held = "  ".join(f"{pss_bytes([pid]) / MIB:13.1f}" for pid in pids.values())
            seconds = time.perf_counter() - started
            print(f"{step * options.tasks // STEPS:10,}  {seconds:7.1f}  {held}", flush=True)
            for _ in range(options.tasks // STEPS if step < STEPS else 0):
                nothing.remote()


if __name__ == "__main__":
    main()
