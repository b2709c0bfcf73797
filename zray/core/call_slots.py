"""Which calls of an actor run now: in order of arrival within each concurrency group, so many at once.

Every group has a limit of its own and a queue of its own; a group that is full delays nobody else. The
calls of one caller start in the order in which they were made, within a group (I3); with a limit of one
they also end in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from zray.core.machine import Address, invariant
from zray.ids import short
from zray.protocol.messages import Call

DEFAULT_GROUP = ""


class CallSlots:
    """The queued and running calls of one actor. Pure.

    Args:
        limit: calls at once of the methods that belong to no group.
        groups: the other groups and their limits.
        group_of: method -> group, for those that have one.
    """

    def __init__(
        self,
        limit: int = 1,
        groups: Mapping[str, int] | None = None,
        group_of: Mapping[str, str] | None = None,
    ) -> None:
        self.limits = {DEFAULT_GROUP: limit, **(groups or {})}
        self.group_of = dict(group_of or {})
        self.queues: dict[str, deque[tuple[Address, Call]]] = {group: deque() for group in self.limits}
        self.free = dict(self.limits)
        self.running: dict[bytes, str] = {}
        self.queued = 0

    @property
    def limit(self) -> int:
        """Calls at once, over all groups."""
        return sum(self.limits.values())

    def arrived(self, source: Address, call: Call) -> bool:
        """Queue a call; False if it asks for a group that the actor does not have."""
        group = call.group or self.group_of.get(call.method, DEFAULT_GROUP)
        queue = self.queues.get(group)
        if queue is None:
            return False
        queue.append((source, call))
        self.queued += 1
        return True

    def next(self) -> tuple[Address, Call] | None:
        """A call that may start now, and counts as running from now on."""
        if not self.queued:
            return None
        for group, queue in self.queues.items():
            if queue and self._may_start(group, queue):
                source, call = queue.popleft()
                self.queued -= 1
                self.free[group] -= 1
                self.running[call.task_id] = group
                return source, call
        return None

    def may_start(self) -> bool:
        """Whether :meth:`next` has one."""
        if not self.queued:
            return False
        if len(self.queues) == 1:  # as a rule
            return self._may_start(DEFAULT_GROUP, self.queues[DEFAULT_GROUP])
        return any(queue and self._may_start(group, queue) for group, queue in self.queues.items())

    def _may_start(self, group: str, queue: deque[tuple[Address, Call]]) -> bool:
        """Whether the first of a queue may. One that its caller makes again starts after its former run."""
        return self.free[group] > 0 and queue[0][1].task_id not in self.running

    def ended(self, task_id: bytes) -> None:
        """A call that :meth:`next` gave has ended."""
        self.free[self.running.pop(task_id)] += 1

    def withdraw(self, task_id: bytes) -> tuple[Address, Call] | None:
        """Take back a call that is queued; ``None`` if it runs, has ended, or never came."""
        for queue in self.queues.values():
            for item in queue:
                if item[1].task_id == task_id:
                    queue.remove(item)
                    self.queued -= 1
                    return item
        return None

    def withdraw_all(self) -> list[tuple[Address, Call]]:
        """Take back everything that is queued."""
        items = [item for queue in self.queues.values() for item in queue]
        for queue in self.queues.values():
            queue.clear()
        self.queued = 0
        return items

    def check(self) -> None:
        """Free and running add up to the limit, in every group."""
        for group, limit in self.limits.items():
            running = [task_id for task_id, its in self.running.items() if its == group]
            invariant(self.free[group] + len(running) == limit, "slots of", group, list(map(short, running)))
        invariant(self.queued == sum(map(len, self.queues.values())), "queued calls", self.queued)
