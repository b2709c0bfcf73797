"""How fast the simulator is and what it needs: events per second and memory for many empty tasks.

Run ``python -m benchmarks.bench_sim``; every size runs in a process of its own, with real machines, no judges
of single tasks, and one driver on each of ``--nodes`` nodes, which keeps its tasks there. Rates are per
second of processor time, so that a busy machine changes them less; seconds are told both ways.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import NamedTuple

import msgspec

from sim.run import PASSED, run_scenario
from sim.scenario import load

KEEP_ALL = 1_000_000
"""Tasks per worker that a node queues before it forwards any: more than there are."""


class Cost(NamedTuple):
    """What a run took: real seconds, those of the processor, events, and peak resident bytes."""

    real_s: float
    busy_s: float
    events: int
    peak_bytes: int


def measure(tasks: int, nodes: int) -> Cost:
    """Run ``tasks`` empty tasks in this process, spread evenly over ``nodes`` nodes."""
    scenario = load("empty")
    change = msgspec.structs.replace
    scenario = change(
        scenario,
        workload=change(scenario.workload, tasks=tasks // nodes),
        cluster=change(scenario.cluster, nodes=nodes, drivers=nodes, backlog_per_slot=KEEP_ALL),
    )
    started_s, busy_s = time.perf_counter(), time.process_time()
    verdict, _ = run_scenario(scenario, 0)
    real_s, busy_s = time.perf_counter() - started_s, time.process_time() - busy_s
    if verdict.kind != PASSED:
        raise SystemExit(verdict.detail)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(real_s, busy_s, verdict.summary.events, peak_bytes)


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description="Measure the simulator.")
    parser.add_argument("--tasks", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 100])
    given = parser.parse_args()
    for nodes in given.nodes:
        for tasks in given.tasks:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                cost = pool.apply(measure, (tasks, nodes))
            print(
                f"{nodes:>4} nodes {tasks:>9} tasks  {cost.real_s:7.2f} s real  {cost.busy_s:7.2f} s busy  "
                f"{cost.events / cost.busy_s:>9,.0f} events/s  {tasks / cost.busy_s:>8,.0f} tasks/s  "
                f"{cost.peak_bytes / 2**20:7.1f} MiB peak"
            )


if __name__ == "__main__":
    main()
