"""Which queued tasks a node gives away when a global scheduler asks it to.

The newest of what waits goes back to where it was submitted, and from there to the global scheduler once
more. What only this node, or few others, could run stays, and so does a task that was placed often enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core.machine import Address
from zray.core.worker_pool import TaskClass, TaskEntry
from zray.protocol.cluster import Offload
from zray.protocol.messages import ACTOR
from zray.protocol.user_messages import VALUES

if TYPE_CHECKING:
    from zray.core.guests import Guests
    from zray.core.local_scheduler import LocalScheduler


OFFLOAD_HOPS_MAX = 16
"""A task that was placed this often is not given away: where its inputs are, it comes back every time."""


class Offloading:
    """Gives queued tasks away. Pure; keeps nothing."""

    def __init__(self, scheduler: LocalScheduler, guests: Guests) -> None:
        self.scheduler = scheduler
        self.guests = guests

    def on_offload(self, now_ns: int, source: Address, message: Offload) -> None:
        """Others are idle: give up to so many tasks away, from the longest queues first."""
        left = message.tasks
        for task_class in sorted(self.scheduler.ready.values(), key=lambda each: -len(each.ready)):
            if left <= 0:
                return
            if _is_ordinary(task_class):
                for task in self._newest(task_class, left):
                    self._give(task)
                    left -= 1

    def _newest(self, task_class: TaskClass, count: int) -> list[TaskEntry]:
        """Take tasks out of the end of a queue, up to one that was placed too often."""
        ready = task_class.ready
        found: list[TaskEntry] = []
        while ready and len(found) < count and ready[-1].hops < OFFLOAD_HOPS_MAX:
            found.append(ready.pop())
        return found

    def _give(self, task: TaskEntry) -> None:
        if task.spec.task_id in self.guests.guests:
            self.guests.offload(task)
        else:
            task.stays = False
            self.scheduler.admission.forward(task)


def _is_ordinary(task_class: TaskClass) -> bool:
    """Whether any node with a free CPU might run such tasks, as far as this one knows."""
    descriptor = task_class.descriptor
    return (
        descriptor.kind != ACTOR
        and descriptor.returns == VALUES
        and descriptor.strategy is None
        and descriptor.in_group is None
        and all(name in ("CPU", "memory") for name, _ in task_class.demand)
    )
