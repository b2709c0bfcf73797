"""What runs in a process: the task or call whose code submits, puts and asks who it is."""

from __future__ import annotations

from zray.ids import child_prefix, put_id, task_id
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

    def next_task_id(self) -> bytes:
        """The id of the next thing that this task makes, which is a task or call. Link's lock held."""
        if not self.prefix:
            self.prefix = child_prefix(self.task_id)
        self.counter += 1
        return task_id(self.prefix, self.counter)

    def next_put_id(self) -> bytes:
        """The same of a value that it puts."""
        if not self.prefix:
            self.prefix = child_prefix(self.task_id)
        self.counter += 1
        return put_id(self.prefix, self.counter)
