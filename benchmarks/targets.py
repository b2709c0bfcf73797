"""What zray aims at, row by row; ``report.py`` says of each run whether that was met."""

from __future__ import annotations

from typing import NamedTuple

MET, NOT_MET = "yes", "**no**"


class Target(NamedTuple):
    """One aim: at least or at most ``bound``.

    ``against`` is a system whose median of the same row makes the value a ratio, above 1 where zray is
    better; or ``CASE.METRIC``, another row of zray that the value is a share of; or empty: the median counts.
    """

    case: str
    metric: str
    bound: float
    against: str = ""
    unit: str = "x"
    at_most: bool = False
    of: str = ""
    scale: float = 1.0

    @property
    def text(self) -> str:
        """The aim, for people."""
        sign = "at most" if self.at_most else "at least"
        return f"{sign} {self.bound:,g}{self.unit} {self.of}".rstrip()

    def is_met(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value <= self.bound if self.at_most else value >= self.bound


def _times(case: str, metric: str, ray: float) -> Target:
    return Target(case, metric, ray, "ray", of="Ray")


def _flat(case: str, key: str, first: int, others: tuple[int, ...]) -> list[Target]:
    """The cost of every size is that of the first one, within a tenth."""
    names = [(f"{key}_{count}", f"{key}_{first}") for count in others]
    return [Target(case, name, 0.9, f"{case}.{base}", of=f"the rate at {first:,}") for name, base in names]


TARGETS = (
    Target("task_sync", "rate", 10, "ray", of="Ray"),
    Target("task_sync", "rate", 2.5, "loky", of="loky"),
    Target("task_sync", "p50", 150, unit=" us", at_most=True),
    *(Target(case, "rate", bound, peer, of=name) for case in ("task_async", "task_async_many")
      for bound, peer, name in ((25, "ray", "Ray"), (6, "loky", "loky"))),
    _times("multi_client", "rate", 15),
    _times("actor_sync", "rate", 8),
    Target("actor_sync", "rate", 4, "monarch", of="Monarch"),
    _times("actor_async", "rate", 25),
    Target("actor_async", "rate", 4, "monarch", of="Monarch"),
    _times("actor_asyncio", "rate", 15),
    Target("actor_asyncio", "rate", 4, "monarch", of="Monarch"),
    _times("small_objects", "put", 30),
    _times("small_objects", "get", 10),
    _times("large_objects", "first", 4),
    _times("large_objects", "recycled", 1),
    Target("large_objects", "recycled", 85, "copy.time", " %", of="of the copy's speed", scale=100),
    _times("large_objects", "get", 1),
    _times("large_argument", "time", 1),
    _times("many_arguments", "time", 5),
    _times("many_returns", "time", 5),
    _times("wait", "time", 5),
    _times("chain", "time", 5),
    _times("tree", "time", 5),
    _times("nested", "time", 5),
    Target("start", "cold", 300, unit=" ms", at_most=True),
    _times("start", "cold", 15),
    _times("actors_ready", "time", 30),
    Target("worker_killed", "again", 50, unit=" ms", at_most=True),
    _times("worker_killed", "again", 20),
    Target("actor_killed", "time", 50, unit=" ms", at_most=True),
    _times("actor_killed", "time", 20),
    Target("idle", "pss", 60, unit=" MiB", at_most=True),
    _times("idle", "pss", 10),
    Target("idle", "cpu", 0.5, unit=" %", at_most=True),
    Target("between_nodes", "share", 80, unit=" %"),
    Target("shard", "rate", 300_000, unit=" 1/s"),
    Target("write_behind", "cost", 5, unit=" us", at_most=True),
    Target("simulator", "rate", 200_000, unit=" 1/s"),
    *_flat("pending", "tasks", 1_000, (10_000, 100_000, 1_000_000)),
    *_flat("simulator", "nodes", 1, (4, 16, 64)),
    *_flat("node_processes", "nodes", 1, (4, 16)),
    *_flat("live", "objects", 1, (1_000, 10_000, 100_000)),
)  # fmt: skip
