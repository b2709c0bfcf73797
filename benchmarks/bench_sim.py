"""How fast the simulator is and what it needs: events per second and memory for many empty tasks.

Run ``python -m benchmarks.bench_sim``; every size runs in a process of its own, with real machines, one node,
one driver, no judges of single tasks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import msgspec

from sim.run import PASSED, run_scenario
from sim.scenario import load


def measure(tasks: int) -> tuple[float, int, int]:
    """Run ``tasks`` empty tasks: seconds, events, peak resident bytes of this process."""
    scenario = load("empty")
    workload = msgspec.structs.replace(scenario.workload, tasks=tasks)
    scenario = msgspec.structs.replace(scenario, workload=workload)
    started_s = time.perf_counter()
    verdict, _ = run_scenario(scenario, 0)
    took_s = time.perf_counter() - started_s
    if verdict.kind != PASSED:
        raise SystemExit(verdict.detail)
    return took_s, verdict.summary.events, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description="Measure the simulator.")
    parser.add_argument("--tasks", type=int, nargs="*", default=[100_000, 1_000_000])
    for tasks in parser.parse_args().tasks:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            took_s, events, peak_bytes = pool.apply(measure, (tasks,))
        print(
            f"{tasks:>9} tasks  {took_s:7.2f} s  {events / took_s:>9,.0f} events/s  "
            f"{tasks / took_s:>8,.0f} tasks/s  {peak_bytes / 2**20:7.1f} MiB peak"
        )


if __name__ == "__main__":
    main()
