"""A program about actors of several nodes: made and called everywhere, killed with their nodes, made again.

An actor that can be saved and may be restarted without end gives every result that it gives in sequence,
whatever dies, the home of the actor excepted. Programs call each of them from one process only if results
depend on the order.
"""
# ruff: noqa: PERF401 - a comprehension cannot yield

from __future__ import annotations

from random import Random
from typing import Any

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
    actor,
    task,
)
from sim.scenario import WorkloadPart


@actor
class LedgerActor:
    """Adds up, and can be saved."""

    def __init__(self, start: int) -> None:
        self.total = start
        self.calls = 0
        self.kept: list[Ref] = []

    def save(self) -> list[int]:
        """The state."""
        return [self.total, self.calls]

    def load(self, state: list[int]) -> None:
        """Take :meth:`save` back."""
        self.total, self.calls = state

    def add(self, number: int, duration_ns: int) -> Program:
        """The number of calls and the new total."""
        yield Compute(duration_ns)
        self.calls += 1
        self.total += number
        return [self.calls, self.total]

    def echo(self, number: int) -> Program:
        """The number, after a while."""
        yield Compute(30 * US)
        return number

    def weigh(self, blob: Blob) -> int:
        """Look at a large argument."""
        self.total += blob.tag
        return self.total

    def make(self, size: int, tag: int) -> Blob:
        """A large result."""
        return Blob(size, tag)


@task
def ask_for(handle: ActorRef, number: int) -> Program:
    """Call an actor from a task, with a result that does not depend on other callers."""
    ref = yield CallActor(handle, "echo", (number,), 1, -1)
    return (yield Fetch([ref]))[0]


@task
def ask_own(number: int, calls: int) -> Program:
    """Make an actor in a task, which may be on any node, and add up in it."""
    handle = yield MakeActor("LedgerActor", (number,), 0.0, -1, 2, True)
    refs = []
    for each in range(calls):
        refs.append((yield CallActor(handle, "add", (each, 0), 1, -1)))
    return (yield Fetch(refs))[-1]


@task
def pass_handle(box: list[Any], number: int) -> Program:
    """A handle inside a list inside an object, given to another task."""
    inner = yield Store(box)
    ref = yield Spawn("open_handle", (inner, number), 1, -1, 0.0)
    return (yield Fetch([ref]))[0]


@task
def open_handle(box: list[Any], number: int) -> Program:
    """Call the actor whose handle is in a list."""
    ref = yield CallActor(box[0], "echo", (number,), 1, -1)
    return (yield Fetch([ref]))[0]


def actors(work: WorkloadPart, random: Random) -> Program:
    """Actors that spread, called by the driver in order and by tasks in any; large arguments and results."""
    fragile = random.random() < 0.3  # some die with their node, and the program with them
    handles = []
    for number in range(work.actors):
        restarts = 0 if fragile and random.random() < 0.5 else -1
        interval, spread = random.choice((0, 1, 3, 10)), random.random() < 0.8
        saved = interval if restarts else -1
        handles.append((yield MakeActor("LedgerActor", (number,), 0.0, restarts, saved, spread)))
    answers: list[Ref] = []
    for number in range(work.tasks):
        answers.append((yield from _actor_game(work, random, random.choice(handles), number)))
        if random.random() < 0.1:
            yield Fetch(answers[-3:])
    results = yield Fetch(answers)
    yield Forget(answers)
    if random.random() < 0.5:
        yield EndActor(handles[0])
    return results


def _actor_game(work: WorkloadPart, random: Random, handle: ActorRef, number: int) -> Program:
    game = random.randrange(10)
    size = work.object_kib * 1024
    if game == 0:
        return (yield Spawn("ask_for", (handle, number), 1, -1, 0.0))
    if game == 1:
        return (yield Spawn("pass_handle", ([handle], number), 1, -1, 0.0))
    if game == 2:
        return (yield Spawn("ask_own", (number, random.randint(1, 5)), 1, -1, 0.0))
    if game == 3:  # a large argument that a task makes, perhaps elsewhere, and perhaps late
        blob = yield Spawn("make_blob", (size, number, work.task_us * US), 1, -1, 0.0)
        ref = yield CallActor(handle, "weigh", (blob,), 1, -1)
        yield Forget([blob])
        return ref
    if game == 4:  # a result that another call takes
        first = yield CallActor(handle, "echo", (number,), 1, -1)
        ref = yield CallActor(handle, "add", (first, 0), 1, -1)
        yield Forget([first])
        return ref
    return (yield CallActor(handle, "add", (number, _duration_ns(work, random)), 1, -1))


def _duration_ns(work: WorkloadPart, random: Random) -> int:
    return int(random.expovariate(1.0) * work.task_us * US) // 10
