"""Placement groups in simulated programs: operations, and a program that makes, uses and removes groups.

A program waits only for what is in a group that the cluster can hold, and holds one such group at a time,
so that no two programs wait for each other. What it does not wait for it removes: then either result is
right, the value or the error that says so, and its own result does not depend on which.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from sim.kernel import US
from sim.programs import Compute, Fetch, Forget, Program, ProgramError, Ref, Spawn, descriptor_of, task
from zray import ids
from zray.core.group_resources import demand_in
from zray.core.resources import demand_from
from zray.protocol.base import InGroup
from zray.protocol.codec import encode_batch
from zray.protocol.group_messages import (
    PACK,
    SPREAD,
    STRICT_PACK,
    STRICT_SPREAD,
    CreateGroup,
    GroupAnswer,
    GroupSpec,
    RemoveGroup,
)
from zray.protocol.messages import TASK, Describe

if TYPE_CHECKING:
    from sim.process import Process
    from sim.scenario import WorkloadPart
    from sim.strands import Steps

REMOVED = "TaskGroupRemovedError"
"""The origin of the error of a task whose group was removed."""


class MakeGroup(NamedTuple):
    """Ask for a placement group; the result is its id, before it is placed."""

    cpus: tuple[float, ...]
    strategy: int

    def perform(self, process: Process) -> Steps:
        """As ``placement_group()`` does."""
        group_id = process.context.next_task_id()
        bundles = tuple(demand_from({"CPU": cpus}) for cpus in self.cpus)
        spec = GroupSpec(group_id, bundles, self.strategy)
        process.cluster.judge.groups.made(spec)
        answer = yield from _ask(process, CreateGroup(0, spec))
        if not answer.ok:
            process.cluster.judge.fail(f"no group for {process.address.hex()}: {answer.detail}")
        return group_id


class EndGroup(NamedTuple):
    """Remove a placement group."""

    group_id: bytes

    def perform(self, process: Process) -> Steps:
        """As ``remove_placement_group()`` does."""
        process.cluster.judge.groups.removed(self.group_id)
        yield from _ask(process, RemoveGroup(0, self.group_id))


def _ask(process: Process, request: Any) -> Steps:
    token = process.machine.ask(lambda token: replace(request, token=token))
    answer: GroupAnswer = yield from process.answer_to(token)
    return answer


class SpawnIn(NamedTuple):
    """Submit a task in a bundle of a group (-1: any); the result is its ref."""

    group_id: bytes
    bundle: int
    spawn: Spawn

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` does."""
        spawn = self.spawn
        plain = descriptor_of(
            spawn.function, TASK, spawn.returns, spawn.cpus, spawn.retries, spawn.retry_exceptions
        )
        object_ids = yield from process._submit(
            within(plain, InGroup(self.group_id, self.bundle)), spawn.args
        )
        return Ref(object_ids[0])


def within(kind: Describe, in_group: InGroup) -> Describe:
    """The descriptor of the same tasks in a group."""
    inside = replace(kind, demand=demand_in(kind.demand, in_group), in_group=in_group)
    return replace(inside, descriptor_id=ids.content_id(encode_batch([inside])))


# --- programs ------------------------------------------------------------------------------------


@task
def waits_inside(group_id: Any, duration_ns: int, number: int) -> Program:
    """A task of a group that waits for another one of it: it lends its bundle meanwhile."""
    yield Compute(duration_ns)
    child = yield SpawnIn(group_id, -1, Spawn("add_all", (duration_ns, number), 1, -1, 0.25))
    (value,) = yield Fetch([child])
    return value + 1


@task
def makes_its_own(cpus: float, duration_ns: int, number: int) -> Program:
    """A task that makes a group, uses it and removes it."""
    group_id = yield MakeGroup((cpus,), PACK)
    ref = yield SpawnIn(group_id, 0, Spawn("add_all", (duration_ns, number), 1, -1, cpus))
    (value,) = yield Fetch([ref])
    yield EndGroup(group_id)
    return value


def groups(work: WorkloadPart, random: Random) -> Program:
    """Groups of every strategy, used and waited for, or removed in the midst of things; the last is left."""
    seen: list[Any] = []
    rounds = max(2, work.tasks // 12)
    for number in range(rounds):
        game = random.randrange(5)
        if game == 0:
            yield from _abandoned(work, random, number)
        elif game == 1:
            duration_ns = _duration(work, random)
            ref = yield Spawn("makes_its_own", (0.5, duration_ns, number), 1, -1, 0.0)
            seen += yield Fetch([ref])
            yield Forget([ref])
        else:
            seen += yield from _used(work, random, number)
    yield MakeGroup((0.25,), random.choice((PACK, SPREAD)))  # it ends with the driver
    return seen


def _duration(work: WorkloadPart, random: Random) -> int:
    return int(random.expovariate(1.0) * work.task_us * US)


def _used(work: WorkloadPart, random: Random, number: int) -> Program:
    """A group that fits, tasks in it, their results, and its end."""
    strategy = random.choice((PACK, SPREAD, STRICT_PACK, STRICT_SPREAD))
    cpus: tuple[float, ...] = random.choice(((1.0,), (0.5, 0.5), (0.25, 0.5)))
    group_id = yield MakeGroup(cpus, strategy)
    refs = []
    for _ in range(random.randint(1, 5)):
        bundle = random.choice((-1, *range(len(cpus))))
        share = min(cpus) if bundle < 0 else cpus[bundle]
        if random.random() < 0.3:
            args: tuple[Any, ...] = (group_id, _duration(work, random), number)
            refs.append((yield SpawnIn(group_id, bundle, Spawn("waits_inside", args, 1, -1, share))))
        else:
            args = (_duration(work, random), number)
            refs.append((yield SpawnIn(group_id, bundle, Spawn("add_all", args, 1, -1, share))))
    values = yield Fetch(refs)
    yield Forget(refs)
    yield EndGroup(group_id)
    return values


def _abandoned(work: WorkloadPart, random: Random, number: int) -> Program:
    """A group that may never fit, given up with whatever is in it."""
    cpus: tuple[float, ...] = random.choice(((0.5,), (1.0, 1.0), (4.0, 4.0), (0.25,) * 6))
    group_id = yield MakeGroup(cpus, random.choice((PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)))
    refs: Sequence[Ref] = []
    for _ in range(random.randint(0, 4)):
        spawn = Spawn("add_all", (_duration(work, random), number), 1, random.choice((-1, 3)), 0.25)
        refs = [*refs, (yield SpawnIn(group_id, -1, spawn))]
    if random.random() < 0.7:
        yield Compute(_duration(work, random))
    yield EndGroup(group_id)
    for ref in refs:
        try:
            yield Fetch([ref])
        except ProgramError as error:
            if error.origin != REMOVED:
                raise
    yield Forget(refs)
