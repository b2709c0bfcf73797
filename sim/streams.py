"""Generators whose items are read while they run: how programs make and read them, and a workload of them.

Readers take what they are told of, in order, and every item is an object: so a stream of an attempt that was
cut short and one that ran through have the same items under the same ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from sim.kernel import US
from sim.programs import (
    ActorRef,
    Blob,
    CallActor,
    Compute,
    Emit,
    Fetch,
    Forget,
    MakeActor,
    Program,
    ProgramError,
    Ref,
    Spawn,
    actor,
    descriptor_of,
    task,
)
from zray import ids
from zray.core.client import MethodCall
from zray.core.streams import item_id
from zray.protocol.messages import TASK, Describe
from zray.protocol.user_messages import STREAM

if TYPE_CHECKING:
    from random import Random

    from sim.process import Process
    from sim.scenario import WorkloadPart
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


# --- a workload ----------------------------------------------------------------------------------

OPEN_MAX = 3
"""Streams that a program reads from at once."""
AT_ONCE = 2 * OPEN_MAX
"""Calls at once of an actor whose bounded streams may wait for their readers: none keeps others away."""
ITEMS_MAX = 12


@task
def items_of(first: int, count: int, size: int, duration_ns: int, breaks: bool) -> Program:
    """Numbers, or large objects; then perhaps an error."""
    for number in range(first, first + count):
        yield Compute(duration_ns)
        yield Emit(Blob(size, number) if size else number)
    if breaks:
        raise ProgramError("user", f"broken {first}")


@actor
class StreamerActor:
    """Makes the same streams, and does small things meanwhile."""

    items = staticmethod(items_of)

    def add_one(self, number: int, duration_ns: int) -> Program:
        """What takes its time beside other calls."""
        yield Compute(duration_ns)
        return number + 1


def streams(work: WorkloadPart, random: Random) -> Program:
    """Streams of tasks and of an actor, bounded or not, read to their end, in part, or not at all."""
    at_once = random.choice((1, AT_ONCE))
    streamer = yield MakeActor("StreamerActor", (), 0.0, -1, at_once=at_once)
    opened: list[tuple[Stream, int]] = []
    answers: list[Ref] = []
    for number in range(max(1, work.tasks // 8)):
        duration_ns = work.task_us * random.choice((0, 1, 5)) * US // 4
        size = random.choice((0, 0, work.object_kib * 1024))
        args = (1000 * number, random.randint(0, ITEMS_MAX), size, duration_ns, random.random() < 0.15)
        ahead_max = random.choice((0, 0, 1, 2, 5))
        if random.random() < 0.5:
            made = yield SpawnStream("items_of", args, ahead_max, work.retries)
        else:
            made = yield CallStream(streamer, "items", args, ahead_max if at_once > 1 else 0, -1)
        opened.append((made, random.choice((-1, -1, -1, 0, 2, 5))))
        if random.random() < 0.5:
            answers.append((yield CallActor(streamer, "add_one", (number, duration_ns), 1, -1)))
        if len(opened) > OPEN_MAX:
            answers += yield from _read(*opened.pop(random.randrange(len(opened))), work.retries)
    for one in opened:
        answers += yield from _read(*one, work.retries)
    return (yield Fetch(answers))


def _read(stream: Stream, items_max: int, retries: int) -> Program:
    """Take so many items of a stream, or all, and let a task look at them; the refs of its answers."""
    answers: list[Ref] = []
    try:
        while len(answers) != items_max:
            ref = yield NextItem(stream)
            if ref is None:
                break
            answers.append((yield Spawn("merge", (ref,), 1, retries)))
            yield Forget([ref])
    except ProgramError as error:
        if error.origin != "user":
            raise
    yield CloseStream(stream)
    yield Forget([stream.end])
    return answers
