"""How far the readers of a process's streams are: whether the next item may be made (backpressure)."""

from __future__ import annotations

from collections.abc import Callable

from zray.protocol.user_messages import ConsumedItems, StreamCredit


class StreamCredits:
    """Of the streams that one process makes. Pure."""

    def __init__(self) -> None:
        self.consumed: dict[bytes, int] = {}  # of the streams that are being made
        self.freed: dict[bytes, None] = {}  # those that nobody reads: they have no bound any more
        self.watchers: dict[bytes, Callable[[], None]] = {}

    def open(self, task_id: bytes) -> None:
        """A stream is made from now on."""
        self.consumed.setdefault(task_id, 0)

    def close(self, task_id: bytes) -> None:
        """It has ended."""
        self.consumed.pop(task_id, None)
        self.freed.pop(task_id, None)
        self.watchers.pop(task_id, None)

    def on_credit(self, message: StreamCredit | ConsumedItems) -> None:
        """A reader goes on."""
        if message.task_id not in self.consumed:
            return
        self.consumed[message.task_id] = max(self.consumed[message.task_id], message.items)
        if message.done:
            self.freed[message.task_id] = None
        notify = self.watchers.get(message.task_id)
        if notify is not None:
            notify()

    def may_make(self, task_id: bytes, index: int, unconsumed_max: int) -> bool:
        """Whether item ``index`` is within the bound; 0: there is none."""
        if not unconsumed_max or task_id in self.freed:
            return True
        return index - self.consumed.get(task_id, index) < unconsumed_max
