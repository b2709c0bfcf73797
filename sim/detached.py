"""Detached, named actors in simulated programs: operations, a program, and what a judge knows of names.

Such an actor outlives its program, its program's node and the node where it was made. Tasks find it by its
name from any node; only its maker calls what its state depends on, so its results are those of a sequence
as long as nothing that was acknowledged is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from sim.kernel import US
from sim.programs import (
    ActorRef,
    Blob,
    CallActor,
    Compute,
    EndActor,
    Fetch,
    Forget,
    MakeActor,
    Program,
    Ref,
    Spawn,
    Store,
    descriptor_of_actor,
    task,
)
from zray import ids
from zray.protocol.codec import encode_batch
from zray.protocol.user_messages import ClaimName, FindName, NameAnswer

if TYPE_CHECKING:
    from sim.process import Process
    from sim.scenario import WorkloadPart
    from sim.strands import Steps

NAMESPACE = "sim"


class MakeDetached(NamedTuple):
    """Create a detached actor with a name; the result is its handle."""

    name: str
    made: MakeActor

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` of a class with ``lifetime="detached"`` does."""
        context = process.context
        task_id = ids.task_id(context.prefix or ids.child_prefix(context.task_id), context.counter + 1)
        handle = ids.first_return_id(task_id)
        answer = yield from _ask(process, ClaimName(0, NAMESPACE, self.name, task_id + handle))
        if not answer.ok:
            process.cluster.judge.fail(f"{self.name} is taken: {answer.value.hex()}")
        plain = replace(
            descriptor_of_actor(self.made), detached=True, actor_name=(NAMESPACE, self.name), handle=handle
        )
        kind = replace(plain, descriptor_id=ids.content_id(encode_batch([plain])))
        (object_id,) = yield from process._submit(kind, self.made.args)
        process.cluster.judge.names.made(self.name, task_id)
        return ActorRef(object_id)


class FindActor(NamedTuple):
    """The handle of the actor with a name."""

    name: str

    def perform(self, process: Process) -> Steps:
        """As ``get_actor()`` does."""
        answer = yield from _ask(process, FindName(0, NAMESPACE, self.name))
        process.cluster.judge.names.found(self.name, answer.value[: ids.ID_BYTES] if answer.ok else b"")
        object_id = process.cluster.judge.names.handle_of(self.name)
        process.take_up((object_id,))
        return ActorRef(object_id)


def _ask(process: Process, request: Any) -> Steps:
    token = process.machine.ask(lambda token: replace(request, token=token))
    answer: NameAnswer = yield from process.answer_to(token)
    return answer


class NameJudge:
    """Which actor has which name, decided without the code under test.

    Args:
        fail: says that a rule is broken.
        may_be_over: whether an actor may be over by now: ended by a program, or by what strikes.
    """

    def __init__(self, fail: Callable[[str], None], may_be_over: Callable[[bytes], bool]) -> None:
        self.fail = fail
        self.may_be_over = may_be_over
        self.actors: dict[str, bytes] = {}

    def made(self, name: str, actor_id: bytes) -> None:
        """A process has the name for its actor."""
        former = self.actors.setdefault(name, actor_id)
        if former != actor_id:
            self.fail(f"{name} is {former.hex()}, and was given to {actor_id.hex()}")

    def found(self, name: str, actor_id: bytes) -> None:
        """A process asked for a name; nothing was found if the id is empty."""
        expected = self.actors.get(name, b"")
        if actor_id != expected and not (not actor_id and self.may_be_over(expected)):
            self.fail(f"{name} is {expected.hex()}, and {actor_id.hex() or 'nobody'} was found")

    def handle_of(self, name: str) -> bytes:
        """The creation object of the actor with a name."""
        return ids.first_return_id(self.actors[name])


# --- programs ------------------------------------------------------------------------------------


@task
def ask_by_name(name: str, number: int) -> Program:
    """Find an actor and call it, with a result that does not depend on other callers."""
    handle = yield FindActor(name)
    ref = yield CallActor(handle, "echo", (number,), 1, -1)
    return (yield Fetch([ref]))[0]


@task
def make_ledger(name: str, start: Any, interval: int, spread: bool) -> Program:
    """Make a detached actor, whose home is the node of this task; it may be there from a former attempt."""
    handle = yield MakeDetached(name, MakeActor("LedgerActor", (start,), 0.0, -1, interval, spread))
    ref = yield CallActor(handle, "echo", (len(name),), 1, -1)
    return (yield Fetch([ref]))[0]


def detached(work: WorkloadPart, random: Random) -> Program:
    """Actors that survive every node, called while homes and hosts die, by their maker and by name."""
    label = f"{random.getrandbits(48):x}"
    handles, names = [], []
    for number in range(work.actors):
        names.append(f"{label}-{number}")
        interval, spread = random.choice((0, 1, 3, 10)), random.random() < 0.6
        start: Any = number
        if random.random() < 0.3:
            start = yield Spawn("add_all", (0, number), 1, -1, 0.0)
        if random.random() < 0.75:
            made = yield Spawn("make_ledger", (names[-1], start, interval, spread), 1, -1, 0.0)
            yield Fetch([made])
            handles.append((yield FindActor(names[-1])))
        else:
            actor = MakeActor("LedgerActor", (start,), 0.0, -1, interval, spread)
            handles.append((yield MakeDetached(names[-1], actor)))
    answers: list[Ref] = []
    for number in range(work.tasks):
        chosen = random.randrange(len(handles))
        answers += yield from _game(work, random, handles[chosen], names[chosen], label, number)
        if random.random() < 0.15:
            yield Fetch(answers[-3:])
    results = yield Fetch(answers)
    yield Forget(answers)
    if random.random() < 0.5:
        yield EndActor(handles[0])
    return results


def _game(
    work: WorkloadPart, random: Random, handle: ActorRef, name: str, label: str, number: int
) -> Program:
    game = random.randrange(12)
    if game == 0:
        return [(yield Spawn("ask_by_name", (name, number), 1, -1, 0.0))]
    if game == 1:
        return [(yield Spawn("ask_for", (handle, number), 1, -1, 0.0))]
    if game == 2:
        args = (f"{label}-more-{number}", number, random.choice((0, 1, 3)), random.random() < 0.5)
        return [(yield Spawn("make_ledger", args, 1, -1, 0.0))]
    if game == 3:  # a large argument, which is recorded
        blob = yield Store(Blob(work.object_kib * 1024, number))
        ref = yield CallActor(handle, "weigh", (blob,), 1, -1)
        yield Forget([blob])
        return [ref]
    if game == 4:  # it may come to rest, and its home die then
        yield Compute(int(random.expovariate(1.0) * 200_000 * US))
    duration_ns = int(random.expovariate(1.0) * work.task_us * US) // 10
    return [(yield CallActor(handle, "add", (number, duration_ns), 1, -1))]
