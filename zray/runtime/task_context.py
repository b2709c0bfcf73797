"""What runs here: the task or call whose code submits, puts and asks who it is.

A driver and a plain worker run one thing at a time. An actor with threads or coroutines runs several, so each
thread and each coroutine carries its own.
"""

from __future__ import annotations

from contextvars import ContextVar

from zray import ids
from zray.protocol.messages import Demand, InGroup


class TaskContext:
    """One task, call or driver; the ids of what it makes follow from its own."""

    __slots__ = ("attempt", "counter", "demand", "in_group", "is_cancelled", "name", "prefix", "task_id")

    def __init__(
        self,
        task_id: bytes,
        name: str = "",
        attempt: int = 0,
        demand: Demand = (),
        in_group: InGroup | None = None,
    ) -> None:
        self.task_id = task_id
        self.name = name
        self.attempt = attempt
        self.demand = demand
        self.in_group = in_group  # the placement group that it is in
        self.prefix = b""
        self.counter = 0
        self.is_cancelled = False

    def next_id(self) -> tuple[bytes, int]:
        """The prefix of everything this task makes, and the number of the next thing. Link's lock held."""
        if not self.prefix:
            self.prefix = ids.child_prefix(self.task_id)
        self.counter += 1
        return self.prefix, self.counter


here: ContextVar[TaskContext | None] = ContextVar("zray_task", default=None)
"""Of a thread or coroutine among several; ``None`` where the process runs one thing at a time."""
