"""Generators whose items are read while they run: how programs make and read them, and a workload of them.

Readers take what they are told of, in order, and every item is an object: so a stream of an attempt that was
cut short and one that ran through have the same items under the same ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from sim.programs import ActorRef, Fetch, Program, Ref, descriptor_of
from zray import ids
from zray.core.client import MethodCall
from zray.core.streams import item_id
from zray.protocol.messages import TASK, Describe
from zray.protocol.user_messages import STREAM

if TYPE_CHECKING:
    from sim.process import Process
    from sim.strands import Steps


class Stream(NamedTuple):
    """What the reader of a stream has in its hands."""

    task_id: bytes
    end: Ref
    """Ready once there are no more items; an error if the generator raised."""
    is_bounded: bool


class SpawnStream(NamedTuple):
    """Submit a task that makes a stream; the result is the :class:`Stream`."""

    function: str
    args: tuple[Any, ...] = ()
    ahead_max: int = 0
    """How many items it may be ahead of its reader; 0: any number."""
    retries: int = -1

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` does."""
        (end,) = yield from process._submit(self._kind(), self.args)
        return Stream(ids.producer_of(end), Ref(end), self.ahead_max > 0)

    def _kind(self) -> Describe:
        plain = descriptor_of(self.function, TASK, 1, 1.0, self.retries, False)
        content = plain.descriptor_id + b"stream %d" % self.ahead_max
        return replace(
            plain, descriptor_id=ids.content_id(content), returns=STREAM, unconsumed_max=self.ahead_max
        )


class CallStream(NamedTuple):
    """The same of a method."""

    actor: ActorRef
    method: str
    args: tuple[Any, ...] = ()
    ahead_max: int = 0
    repeats: int = 0

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` of a method does."""
        method = MethodCall(self.method, 1, STREAM, "", self.ahead_max, self.repeats)
        (end,) = yield from process.call_actor(self.actor, method, self.args)
        return Stream(ids.producer_of(end), Ref(end), self.ahead_max > 0)


class NextItem(NamedTuple):
    """Wait for the next item; the result is its ref, or ``None`` after the last one.

    Raises:
        ProgramError: if the stream ended with an error.
    """

    stream: Stream

    def perform(self, process: Process) -> Steps:
        """As iterating does."""
        stream, streams, objects = self.stream, process.machine.streams, process.objects
        end = stream.end.object_id
        want = objects.want((end,), None, True)
        try:
            yield from process.wait_until(lambda: streams.has_next(stream.task_id) or objects.is_ready(end))
        finally:
            objects.end_want(want)
        index = streams.take(stream.task_id)
        if index is None:
            yield from process.do_fetch(Fetch([stream.end]))
            return None
        if stream.is_bounded:
            streams.note_consumed(stream.task_id, index + 1)
        object_id = item_id(stream.task_id, index)
        process._add_handle(object_id)
        return Ref(object_id)


class CloseStream(NamedTuple):
    """Read no more of a stream."""

    stream: Stream

    def perform(self, process: Process) -> Steps:
        """Its items go."""
        process.machine.streams.let_go(self.stream.task_id)
        return None
        yield  # a generator like the others


def read(stream: Stream, items_max: int = -1) -> Program:
    """Take so many items, or all; their refs."""
    refs: list[Ref] = []
    while len(refs) != items_max:
        ref = yield NextItem(stream)
        if ref is None:
            break
        refs.append(ref)
    yield CloseStream(stream)
    return refs
