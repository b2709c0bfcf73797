"""How far the readers of a process's streams are: whether the next item may be made (backpressure)."""

from __future__ import annotations

from collections.abc import Callable

from zray.core.machine import Address
from zray.protocol.user_messages import ConsumedItems, StreamCredit

GONE_MAX = 1_000
"""Readers that are gone, of which a call may come late."""


class StreamCredits:
    """Of the streams that one process makes. Pure."""

    def __init__(self) -> None:
        self.consumed: dict[bytes, int] = {}  # of the streams that are being made
        self.freed: dict[bytes, None] = {}  # those that nobody reads: they have no bound any more
        self.watchers: dict[bytes, Callable[[], None]] = {}
        self.readers: dict[bytes, Address] = {}  # of the streams that go to them directly
        self.gone: dict[Address, None] = {}  # readers that died, the last ones

    def open(self, task_id: bytes, reader: Address = b"") -> None:
        """A stream is made from now on, for ``reader`` if that is another process than the node."""
        self.consumed.setdefault(task_id, 0)
        if reader in self.gone:  # its call was on the way when it died
            self.freed[task_id] = None
        elif reader:
            self.readers[task_id] = reader

    def close(self, task_id: bytes) -> None:
        """It has ended."""
        self.consumed.pop(task_id, None)
        self.freed.pop(task_id, None)
        self.watchers.pop(task_id, None)
        self.readers.pop(task_id, None)

    def reader_gone(self, reader: Address) -> None:
        """A process is dead: nobody reads what was for it."""
        self.gone[reader] = None
        if len(self.gone) > GONE_MAX:
            del self.gone[next(iter(self.gone))]
        for task_id in [task_id for task_id, its in self.readers.items() if its == reader]:
            self.on_credit(ConsumedItems(task_id, 0, True))

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
