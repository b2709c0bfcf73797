"""What it costs to put bytes into the arena, against a plain memcpy of the same bytes.

Run ``python benchmarks/bench_store.py``. One table: medians, the variants interleaved, so that a busy
machine slows all of them alike. *fresh*: pages that nobody used before; *first*: recycled pages that this
process did not touch before; *recycled*: pages that it did, which is the state a node settles in.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from zray.core.extents import Extents
from zray.store.arena import Arena, ArenaView

KIB, MIB = 1 << 10, 1 << 20
SIZES = {"1 KB": 1000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 10**6, "10 MB": 10**7, "100 MB": 10**8}
COLUMNS = ("memcpy", "fresh", "first", "recycled", "get")
BATCH_NS = 2_000_000


def nothing() -> None:
    """Releases are not measured."""


class Bench:
    """One size: a source, a warm destination, and arenas in the three states."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.source = memoryview(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8))
        self.destination = memoryview(bytearray(size))
        self.capacity = 4 * size + 8 * MIB
        self.arena = Arena(self.capacity)
        self.view = ArenaView(self.arena.path, self.capacity)
        self.extents = Extents(self.capacity)
        for _ in range(3):
            self.put()

    def put(self) -> None:
        """Allocate, copy, free: the same bytes every time."""
        offset = self.extents.allocate(self.size)
        assert offset is not None
        self.view.copy_in(offset, self.source)
        self.extents.free(offset)

    def memcpy(self) -> None:
        self.destination[:] = self.source

    def get(self) -> None:
        self.view.read(0, self.size, nothing)

    def fresh_us(self) -> float:
        """The first put of an arena that was just made; small ones are laid side by side."""
        count = max(1, min(200, MIB // self.size))
        capacity = 2 * count * self.size + 8 * MIB
        arena, extents = Arena(capacity), Extents(capacity)
        view = ArenaView(arena.path, capacity)
        start = time.perf_counter_ns()
        for _ in range(count):
            offset = extents.allocate(self.size)
            assert offset is not None
            view.copy_in(offset, self.source)
        taken = time.perf_counter_ns() - start
        view.close()
        arena.close()
        return taken / count / 1000

    def first_us(self) -> float:
        """The first put of a process through a mapping of its own, where pages are warm already."""
        view = ArenaView(self.arena.path, self.capacity)
        start = time.perf_counter_ns()
        view.copy_in(0, self.source)
        taken = time.perf_counter_ns() - start
        view.close()
        return taken / 1000

    def close(self) -> None:
        self.view.close()
        self.arena.close()


def repeated_us(action: Callable[[], None]) -> float:
    """Microseconds per call, over enough calls to be above the clock's noise."""
    start = time.perf_counter_ns()
    count = 0
    while (taken := time.perf_counter_ns() - start) < BATCH_NS or not count:
        action()
        count += 1
    return taken / count / 1000


def measure(size: int, repetitions: int) -> dict[str, float]:
    """Medians in microseconds, by column."""
    bench = Bench(size)
    samples: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for _ in range(repetitions):
        samples["memcpy"].append(repeated_us(bench.memcpy))
        samples["recycled"].append(repeated_us(bench.put))
        samples["fresh"].append(bench.fresh_us())
        samples["first"].append(bench.first_us())
        samples["get"].append(repeated_us(bench.get))
    bench.close()
    return {column: statistics.median(values) for column, values in samples.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    print(f"medians of {repetitions}, microseconds; the share is memcpy / recycled put")
    print(f"{'size':>8}" + "".join(f"{column:>12}" for column in COLUMNS) + f"{'share':>8}{'GB/s':>8}")
    for name, size in SIZES.items():
        row = measure(size, repetitions)
        share = row["memcpy"] / row["recycled"]
        cells = "".join(f"{row[column]:12.1f}" for column in COLUMNS)
        print(f"{name:>8}{cells}{share:8.0%}{size / row['recycled'] / 1000:8.1f}")


if __name__ == "__main__":
    main()
