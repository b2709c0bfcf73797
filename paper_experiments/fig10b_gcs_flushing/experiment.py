"""Figure 10b: what the control store holds after many tasks, with and without forgetting their lineage.

Empty tasks, submitted one window after the other; the memory of the control store's own process is sampled.
Where the paper flushes lineage to disk, zray lets go of the records of tasks whose results nobody can ask for
any more and keeps ``released_records_max`` of them for people to look at. Without that limit it keeps all.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import zray
from paper_experiments.common.local import joined, own_memory_bytes
from paper_experiments.common.run import ExperimentRun
from sim.real.clusters import real_cluster

WINDOW = 1_000
RELEASED_KEPT = 1_000
ALL = 1_000_000_000
SAMPLES = 40
SETTLED_SHARE = 0.2
"""The first part of a run fills batches, buffers and the records that are kept: it is no growth."""
PAPER_TASKS = 50_000_000


class Growth(NamedTuple):
    """One run: what was sampled, and what the program computed."""

    tasks: list[int]
    memory_bytes: list[float]
    total: int
    took_s: float

    @property
    def bytes_per_task(self) -> float:
        """The slope of memory after the first part, by its ends."""
        first = next(n for n, tasks in enumerate(self.tasks) if tasks >= SETTLED_SHARE * self.tasks[-1])
        grown = self.memory_bytes[-1] - self.memory_bytes[first]
        return grown / max(1, self.tasks[-1] - self.tasks[first])


def identity(number: int) -> int:
    """As good as empty, and its results can be added up."""
    return number


def live(run: ExperimentRun) -> None:
    """Two runs of the same program, with and without the limit."""
    count = run.pick("tasks", tiny=20_000, small=200_000, paper=5_000_000)
    run.parameter("window", WINDOW)
    run.parameter("released_records_kept", RELEASED_KEPT)
    found = {}
    for name, kept in run.steps((("forgetting", RELEASED_KEPT), ("keeping all", ALL)), "variant"):
        settings = {"ZRAY_RELEASED_RECORDS_MAX": str(kept), "ZRAY_TABLE_ENTRIES_MAX": str(ALL)}
        with real_cluster(nodes=1, cpus=2, settings=settings) as cluster, joined(cluster):
            growth = found[name] = _submit_all(count, cluster.gcs_pid)
        for tasks, memory_bytes in zip(growth.tasks, growth.memory_bytes, strict=True):
            run.point("memory", name, tasks, memory_bytes / 1e6)
        run.quantity(f"tasks_per_s {name}", count / growth.took_s)
    _conclude(run, count, found["forgetting"], found["keeping all"])


def _submit_all(count: int, gcs_pid: int) -> Growth:
    function: Any = zray.remote(identity)
    zray.get([function.remote(0) for _ in range(WINDOW)])
    sampled_every = max(WINDOW, count // SAMPLES)
    growth_tasks, memory, total = [0], [float(own_memory_bytes(gcs_pid))], 0
    started = time.monotonic()
    for first in range(0, count, WINDOW):
        numbers = range(first, min(count, first + WINDOW))
        total += sum(zray.get([function.remote(number) for number in numbers]))
        if numbers.stop // sampled_every > first // sampled_every or numbers.stop == count:
            growth_tasks.append(numbers.stop)
            memory.append(float(own_memory_bytes(gcs_pid)))
    return Growth(growth_tasks, memory, total, time.monotonic() - started)


def _conclude(run: ExperimentRun, count: int, forgetting: Growth, keeping: Growth) -> None:
    run.quantity("bytes_per_task_kept", keeping.bytes_per_task)
    run.quantity("growth_share", forgetting.bytes_per_task / keeping.bytes_per_task)
    run.quantity("memory_mb_forgetting", forgetting.memory_bytes[-1] / 1e6)
    expected = count * (count - 1) // 2
    run.quantity("wrong_results", float((forgetting.total != expected) + (keeping.total != expected)))
    run.absent(
        "flushed_rebuilds",
        "zray does not write lineage that is still needed to disk to free memory: records go when no ref can "
        "need them, and those that refs do need stay",
    )
    run.note(f"The paper submits {PAPER_TASKS:,} tasks, here it is {count:,}: compared are slopes.")
