"""Generators whose items are told one by one: at their node, and in the process that reads them.

Item ``i`` of a task has the object id of return value ``i + 2``; return value 1 ends the stream, with an
error if the generator raised. So a task that runs again makes the same items under the same ids, and those
that its reader was told of are not told twice. The node tells of an item before it seals it, on the
reader's own link.

The reader's side keeps, per stream, how many items it was told of and how many it took; what it says it took
(``Consumed``) is how a bounded generator knows that it may go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zray.core.machine import invariant
from zray.core.node_store import CREATING, SEALED, ObjectEntry
from zray.core.worker_pool import TaskEntry, Worker
from zray.ids import return_id, short
from zray.protocol.messages import EXTENT, Value
from zray.protocol.user_messages import (
    STREAM,
    Consumed,
    Interrupt,
    StreamCredit,
    StreamItem,
    Yielded,
)

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler

FIRST_ITEM_INDEX = 2
"""Return value 1 is the end of the stream."""


def item_id(task_id: bytes, index: int) -> bytes:
    """The object id of item ``index``, counted from 0."""
    return return_id(task_id, index + FIRST_ITEM_INDEX)


class Streams:
    """The streams that tasks of a node make. Pure; a room of the :class:`LocalScheduler` of its node.

    Args:
        scheduler: whose tasks they are.
        is_alive: whether an address is a process of this node.
        seal: seals an object with its value and what that contains.
        abandon: takes the room of an object back that is not going to be sealed.
    """

    def __init__(
        self,
        scheduler: LocalScheduler,
        *,
        is_alive: Callable[[bytes], bool],
        seal: Callable[[bytes, Value], None],
        abandon: Callable[[bytes], None],
    ) -> None:
        self.scheduler = scheduler
        self.is_alive = is_alive
        self.seal = seal
        self.abandon = abandon

    def yielded(self, worker: Worker, message: Yielded) -> None:
        """A worker made an item. One that an earlier attempt made already changes nothing."""
        object_id = item_id(message.task_id, message.index)
        task = worker.queue.get(message.task_id)
        current = task is not None and task.attempt == message.attempt != task.stale
        if task is None or not current or message.index != task.streamed or not self.is_alive(task.submitter):
            if task is not None and current and not self.is_alive(task.submitter):
                self._nobody_reads(task)
            self._not_told(worker, object_id, message.value, is_made_again=task is not None and current)
            return
        task.streamed += 1
        self.scheduler.out.append((task.submitter, StreamItem(message.task_id, message.index)))
        entry = self.scheduler.references.expect(task.submitter, object_id)
        if entry.state != SEALED:
            self.seal(object_id, message.value)

    def _not_told(self, worker: Worker, object_id: bytes, value: Value, *, is_made_again: bool) -> None:
        """No reader hears of an item. One that was lost, and is made again for others, has its value now."""
        entry = self.scheduler.store.objects.get(object_id)
        if entry is None or entry.state == SEALED:
            return
        if value.kind == EXTENT and (entry.state != CREATING or entry.creator != worker.worker_id):
            return
        if is_made_again and entry.known and object_id in self.scheduler.store.shared:
            self.seal(object_id, value)
            self.scheduler.references.free_if_unneeded(entry)
        elif value.kind == EXTENT:
            self.abandon(object_id)

    def consumed(self, message: Consumed) -> None:
        """A reader goes on: the worker hears of it now, or with the next attempt."""
        task = self.scheduler.tasks.get(message.task_id)
        if task is None:
            return
        task.consumed = message
        for worker in self.scheduler.pool.busy.values():
            if message.task_id in worker.queue:
                self.scheduler.out.append((worker.worker_id, credit_of(message)))

    def reader_gone(self, reader: bytes) -> None:
        """A process is dead: what runs for it makes its items for nobody, and waits for nobody."""
        for worker in self.scheduler.pool.busy.values():
            for task in worker.queue.values():
                if task.submitter == reader and task.task_class.descriptor.returns == STREAM:
                    self._nobody_reads(task)

    def submitted_again(self, task: TaskEntry, submitter: bytes) -> None:
        """Its parent runs again, and reads from the first item on: those of its last reader went with that.

        An attempt that is under way is interrupted; another one follows, which is charged to nobody.
        """
        if task.task_class.descriptor.returns != STREAM:
            return
        task.submitter, task.streamed, task.consumed = submitter, 0, None
        for worker in self.scheduler.pool.busy.values():
            if task.spec.task_id in worker.queue:
                task.stale = task.attempt
                self.scheduler.out.append((worker.worker_id, Interrupt(task.spec.task_id, False)))

    def _nobody_reads(self, task: TaskEntry) -> None:
        if task.consumed is None or not task.consumed.done:
            self.consumed(Consumed(task.spec.task_id, 0, True))

    def living_items(self, task: TaskEntry) -> list[ObjectEntry]:
        """The items of a stream that are still objects of this node."""
        objects, items = self.scheduler.store.objects, range(task.streamed)
        found = [objects.get(item_id(task.spec.task_id, index)) for index in items]
        return [entry for entry in found if entry is not None]


def credit_of(message: Consumed) -> StreamCredit:
    """The same word, for the worker."""
    return StreamCredit(message.task_id, message.items, message.done)


class ReadStream:
    """One stream as the process that reads it sees it; found in ``StreamReader.streams``."""

    __slots__ = ("readers", "taken", "told")

    def __init__(self) -> None:
        self.readers = 1  # one, but for generators of a former run of the submitter that are not closed yet
        self.told = 0  # items there are, as far as known; each is held once
        self.taken = 0


class StreamReader:
    """The streams that one process reads. Pure: says what to hold and what to let go, and holds nothing."""

    def __init__(self) -> None:
        self.streams: dict[bytes, ReadStream] = {}

    def open(self, task_id: bytes, *, anew: bool = False) -> tuple[bytes, ...]:
        """A stream begins. Opened twice (its submitter ran again) it goes on, or is made and read anew.

        Returns:
            the items that were never taken, and are to come again.
        """
        stream = self.streams.get(task_id)
        if stream is None:
            self.streams[task_id] = ReadStream()
            return ()
        stream.readers += 1
        if not anew:
            return ()
        left = range(stream.taken, stream.told)
        stream.taken = stream.told = 0
        return tuple(item_id(task_id, index) for index in left)

    def told(self, task_id: bytes, index: int) -> bool:
        """Item ``index`` is there; whether it is to be kept."""
        stream = self.streams.get(task_id)
        if stream is None or index != stream.told:
            return False
        stream.told += 1
        return True

    def take(self, task_id: bytes) -> int | None:
        """The index of the next item, or ``None`` if it was not told of yet."""
        stream = self.streams[task_id]
        if stream.taken == stream.told:
            return None
        stream.taken += 1
        return stream.taken - 1

    def has_next(self, task_id: bytes) -> bool:
        """Whether :meth:`take` has one."""
        stream = self.streams[task_id]
        return stream.taken < stream.told

    def close(self, task_id: bytes) -> tuple[bytes, ...]:
        """Nobody reads any more; returns the items that were never taken."""
        stream = self.streams.get(task_id)
        if stream is None:
            return ()
        stream.readers -= 1
        if stream.readers:
            return ()
        del self.streams[task_id]
        return tuple(item_id(task_id, index) for index in range(stream.taken, stream.told))

    def check(self) -> None:
        """Nothing was taken that was not told."""
        for task_id, stream in self.streams.items():
            invariant(0 <= stream.taken <= stream.told, "stream", short(task_id))
