"""Actors that end themselves while callers of all nodes wait for them, and a workload of them.

A caller may hear of the end in the place of a call that never ran, but not of one that had ended before. So
programs look at each result, and return only how many there were: the judge knows which calls had ended.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from sim.hosted import LeaveError
from sim.kernel import US
from sim.programs import (
    ActorRef,
    Await,
    Blob,
    CallActor,
    Compute,
    Fetch,
    Forget,
    MakeActor,
    Program,
    ProgramError,
    Ref,
    Spawn,
    actor,
    task,
)

if TYPE_CHECKING:
    from sim.scenario import WorkloadPart


@actor
class LeaverActor:
    """Answers until it is told to go."""

    def __init__(self, start: int) -> None:
        self.total = start
        self.kept: list[Ref] = []

    def add(self, number: int, duration_ns: int) -> Program:
        """The number, after a while."""
        yield Compute(duration_ns)
        return number

    def make(self, size: int, tag: int) -> Blob:
        """A large result."""
        return Blob(size, tag)

    def leave(self) -> None:
        """End for good."""
        raise LeaveError


@task
def call_leaver(handle: ActorRef, calls: int, size: int, leaves: bool) -> Program:
    """Call an actor from any node, and perhaps end it; how many results or faults there were."""
    refs = yield from _calls(handle, calls, size, 0)
    if leaves:
        refs.append((yield CallActor(handle, "leave")))
    return (yield from _look_at(refs))


def _calls(handle: ActorRef, calls: int, size: int, duration_ns: int) -> Program:
    refs = []
    for number in range(calls):
        large = number % 3 == 2
        args = (size, number) if large else (number, duration_ns)
        refs.append((yield CallActor(handle, "make" if large else "add", args)))
    return refs


def _look_at(refs: list[Ref]) -> Program:
    for ref in refs:
        with suppress(ProgramError):  # whether it may be, the judge knows
            yield Fetch([ref])
    return len(refs)


def leavers(work: WorkloadPart, random: Random) -> Program:
    """Actors that spread, called by the driver and by tasks, and ended by one of them."""
    seen = 0
    size = work.object_kib * 1024
    for number in range(work.tasks):
        at_once = random.choice((1, 1, 3))
        handle = yield MakeActor("LeaverActor", (number,), 0.0, random.choice((0, -1)), -1, True, at_once)
        counts = []
        for _ in range(random.randint(0, 3)):
            args = (handle, random.randint(1, 6), size, random.random() < 0.2)
            counts.append((yield Spawn("call_leaver", args, 1, 0, 0.0)))
        refs = yield from _calls(handle, random.randint(1, 6), size, _duration_ns(work, random))
        if counts and random.random() < 0.5:
            yield Await(counts[:1], 1)
        refs.append((yield CallActor(handle, "leave")))
        seen += yield from _look_at(refs)
        seen += yield from _look_at(counts)
        yield Forget([handle, *refs, *counts])
    return seen


def _duration_ns(work: WorkloadPart, random: Random) -> int:
    return int(random.expovariate(1.0) * work.task_us * US) // 10
