"""Pi by throwing darts, until the error bar is small enough.

Shows:
- **work that is decided while it runs**: how many tasks there will be is not known before; each result
  may be the one that ends it (the reason for dynamic task graphs, section 2 of the paper);
- **wait**: the driver takes results as they come and keeps a fixed number of tasks in flight;
- **an actor as shared state**: tasks report every chunk of darts to it, so the driver can print how far
  things are even while no task has finished.

The exit code is 1 if the estimate is further from pi than five error bars.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from typing import Any, NamedTuple

import numpy as np

import zray

CHUNK = 250_000
"""Darts thrown between two reports to the progress actor."""
SIGMAS_MAX = 5
LOOK_INTERVAL_S = 0.5


class Darts(NamedTuple):
    """``inside`` of ``thrown`` uniform points of the unit square lay in the quarter circle."""

    inside: int = 0
    thrown: int = 0

    def plus(self, other: Darts) -> Darts:
        return Darts(self.inside + other.inside, self.thrown + other.thrown)

    def pi(self) -> float:
        return 4 * self.inside / self.thrown

    def error_bar(self) -> float:
        """Standard error of ``pi()``; infinite while all darts fell on the same side."""
        share = self.inside / self.thrown if self.thrown else 0
        return 4 * math.sqrt(share * (1 - share) / self.thrown) if 0 < share < 1 else math.inf


def throw(random: np.random.Generator, count: int) -> Darts:
    """Throw ``count`` darts."""
    points = random.random((2, count))
    return Darts(int(np.count_nonzero(points[0] ** 2 + points[1] ** 2 <= 1)), count)


@zray.remote
def sample(seed: int, index: int, count: int, progress: Any) -> Darts:
    """``count`` darts from the random stream ``(seed, index)``: the same ones wherever it runs."""
    random = np.random.default_rng([seed, index])
    total = Darts()
    while total.thrown < count:
        darts = throw(random, min(CHUNK, count - total.thrown))
        progress.add.remote(*darts)
        total = total.plus(darts)
    return total


@zray.remote(num_cpus=0)
class Progress:
    """Everything thrown so far, unfinished tasks included."""

    def __init__(self) -> None:
        self.inside = self.thrown = 0

    def add(self, inside: int, thrown: int) -> None:
        self.inside += inside
        self.thrown += thrown

    def snapshot(self) -> tuple[int, int]:
        return self.inside, self.thrown


def print_state(label: str, darts: Darts) -> None:
    """One line: how many darts, the estimate and its error bar."""
    if darts.thrown:
        print(f"  {label:<9} {darts.thrown:>14,} darts   pi = {darts.pi():.6f} +- {darts.error_bar():.6f}",
              flush=True)  # fmt: skip


def estimate(options: argparse.Namespace) -> tuple[Darts, int]:
    """Sample until the error bar is below ``options.error``. Returns all darts and the number of tasks."""
    progress = Progress.remote()
    width = options.in_flight
    pending = [sample.remote(options.seed, index, options.darts, progress) for index in range(width)]
    submitted, total = width, Darts()
    looked = time.perf_counter()
    while pending:
        finished, pending = zray.wait(pending, num_returns=1, timeout=LOOK_INTERVAL_S)
        for darts in zray.get(finished):
            total = total.plus(darts)
        # Those still in flight at the end are waited for, and used: they are short and already paid.
        if finished and total.error_bar() > options.error and submitted < options.tasks_max:
            pending.append(sample.remote(options.seed, submitted, options.darts, progress))
            submitted += 1
        if time.perf_counter() - looked > LOOK_INTERVAL_S:
            print_state("running", Darts(*zray.get(progress.snapshot.remote())))
            looked = time.perf_counter()
    return total, submitted


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` asks for less precision with smaller tasks."""
    parser = argparse.ArgumentParser(description="Estimate pi with as many tasks as its error bar needs.")
    parser.add_argument("--num-cpus", type=int, metavar="N", help="tasks at a time (default: every core)")
    parser.add_argument("--address", help="join a running cluster instead of starting one")
    parser.add_argument("--error", type=float, help="standard error at which to stop (default: 0.0001)")
    parser.add_argument("--darts", type=int, metavar="N", help="darts per task (default: 2000000)")
    parser.add_argument("--in-flight", type=int, metavar="N", help="tasks in flight (default: two per core)")
    parser.add_argument(
        "--tasks-max", type=int, default=10_000, metavar="N", help="stop after this many tasks"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random streams (default: 1)")
    parser.add_argument("--quick", action="store_true", help="error 0.001, 200000 darts per task")
    options = parser.parse_args(arguments)
    if options.address and options.num_cpus:
        parser.error("--num-cpus belongs to a cluster started here, not to --address")
    options.error = options.error or (0.001 if options.quick else 0.0001)
    options.darts = options.darts or (200_000 if options.quick else 2_000_000)
    options.in_flight = options.in_flight or 2 * (options.num_cpus or os.cpu_count() or 1)
    return options


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``zray.init`` that were given."""
    given = {"num_cpus": options.num_cpus, "address": options.address}
    return {name: value for name, value in given.items() if value is not None}


def main() -> int:
    """Estimate, print, compare with the truth. Returns the exit code."""
    options = parse_arguments()
    with zray.init(**connection(options)):
        started = time.perf_counter()
        darts, tasks = estimate(options)
        elapsed_s = time.perf_counter() - started
    print_state("finished", darts)
    distance = abs(darts.pi() - math.pi)
    plausible = distance <= SIGMAS_MAX * darts.error_bar()
    print(f"{tasks:,} tasks, {elapsed_s:.2f} s, {darts.thrown / elapsed_s:,.0f} darts/s; "
          f"{distance / darts.error_bar():.1f} error bars from pi: "
          f"{'plausible' if plausible else 'IMPLAUSIBLE'}")  # fmt: skip
    return 0 if plausible else 1


if __name__ == "__main__":
    sys.exit(main())
