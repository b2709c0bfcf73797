"""Programs for drivers, and the tasks and actors that they are made of.

Every kind is a function of the scenario and a random stream that draws the whole shape in the driver;
tasks are deterministic in their arguments. No program catches a fault of the system, and none lets a
result depend on the order of calls from different processes: so every value has one right answer, the
oracle's.
"""
# ruff: noqa: PERF401 - a comprehension cannot yield

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from sim.actor_programs import actors
from sim.detached import detached
from sim.groups import groups
from sim.kernel import US, stream
from sim.leavers import leavers
from sim.programs import (
    ActorRef,
    Await,
    Blob,
    CallActor,
    Compute,
    EndActor,
    Fetch,
    Forget,
    MakeActor,
    Program,
    ProgramError,
    Ref,
    Spawn,
    Store,
    actor,
    task,
)
from sim.scenario import Scenario, WorkloadPart
from sim.streams import streams
from sim.training import allreduce, parameter_server
from zray.protocol.strategies import ABSENT, NONE_OF, ONE_OF, PRESENT, LabelRule, Strategy

BATCH = 64

# --- tasks ---------------------------------------------------------------------------------------


@task
def nothing() -> None:
    """The empty task."""


@task
def add_all(duration_ns: int, *numbers: int) -> Program:
    """The sum of its inputs and one."""
    yield Compute(duration_ns)
    return sum(numbers) + 1


@task
def count_below(depth: int, width: int, duration_ns: int) -> Program:
    """A tree: the number of tasks of a subtree. Parents wait for their children."""
    yield Compute(duration_ns)
    if depth == 0:
        return 1
    children = []
    for _ in range(width):
        children.append((yield Spawn("count_below", (depth - 1, width, duration_ns))))
    return 1 + sum((yield Fetch(children)))


@task
def split(number: int, parts: int, size: int) -> Program:
    """The map side of a shuffle: one part for every reducer."""
    yield Compute(size // 10)
    return [Blob(size, number * 1000 + part) if size else number * 1000 + part for part in range(parts)]


@task
def merge(*parts: Any) -> Program:
    """The reduce side: one number from all parts."""
    yield Compute(10 * US)
    return sum(part.tag if isinstance(part, Blob) else part for part in parts)


@task
def make_blob(size: int, tag: int, duration_ns: int) -> Program:
    """A large object."""
    yield Compute(duration_ns)
    return Blob(size, tag)


@task
def tag_of(blob: Blob) -> Program:
    """Look at a large object."""
    yield Compute(4 * blob.size)
    return blob.tag


@task
def break_down(tag: int) -> Program:
    """Raise, after a while."""
    yield Compute(20 * US)
    raise ProgramError("user", f"broken {tag}")


@task
def put_inside(value: Any, size: int) -> Program:
    """Return a ref to a value that this task put, inside a list."""
    ref = yield Store([value, Blob(size, 7)] if size else [value])
    return [ref]


@task
def put_safely(value: Any, size: int, copies: int) -> Program:
    """The same of a value that is kept on several nodes, and holds a ref to another one that is."""
    inner = yield Store([value, Blob(size, 7)] if size else [value], copies)
    outer = yield Store([inner], copies)
    return [outer]


@task
def open_safe(box: list[Any]) -> Program:
    """What ``put_safely`` has put."""
    (outer,) = yield Fetch([box[0]])
    (inner,) = yield Fetch([outer[0]])
    return inner[0]


@task
def open_box(box: list[Any]) -> Program:
    """Follow a ref that came inside an argument, and one inside its value."""
    (inner,) = yield Fetch([box[0]])
    return inner[0]


@task
def pass_on(box: list[Any], depth: int) -> Program:
    """Give a ref to a child, which gives it to its child; the result is a ref as well."""
    if depth == 0:
        return box
    child = yield Spawn("pass_on", (box, depth - 1))
    yield Forget([child]) if depth % 3 == 2 else Compute(5 * US)
    if depth % 3 == 2:
        return box
    (result,) = yield Fetch([child])
    return result


@task
def call_for(handle: ActorRef, number: int) -> Program:
    """Call an actor from a task, with a result that does not depend on other callers."""
    ref = yield CallActor(handle, "echo", (number,))
    return (yield Fetch([ref]))[0]


# --- actors --------------------------------------------------------------------------------------


@actor
class CounterActor:
    """Adds up."""

    def __init__(self, start: int) -> None:
        self.total = start
        self.kept: list[Ref] = []

    def add(self, number: int) -> int:
        """The new total."""
        self.total += number
        return self.total

    def echo(self, number: int) -> Program:
        """The number, after a while."""
        yield Compute(30 * US)
        return number

    def keep(self, box: list[Ref]) -> int:
        """Keep refs in the state of the actor."""
        self.kept = [*self.kept, *box][-4:]
        return len(self.kept)

    def give(self) -> list[Ref]:
        """Everything kept; the actor keeps it, too."""
        return list(self.kept)

    def big(self, size: int, tag: int) -> Blob:
        """A large result."""
        return Blob(size, tag)

    def fail(self, tag: int) -> None:
        """Raise."""
        raise ProgramError("user", f"actor broken {tag}")


@actor
class LogActor:
    """Keeps what it is told in order, and computes while it does."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.kept: list[Ref] = []

    def append(self, line: int, duration_ns: int) -> Program:
        """The number of lines."""
        yield Compute(duration_ns)
        self.lines.append(line)
        return len(self.lines)

    def read(self) -> list[int]:
        """All lines."""
        return list(self.lines)


# --- programs ------------------------------------------------------------------------------------


def _duration(work: WorkloadPart, random: Random) -> int:
    return int(random.expovariate(1.0) * work.task_us * US)


def _spawn_all(count: int, make: Callable[[int], Spawn]) -> Program:
    """Submit many tasks and get them in batches; the results, in order."""
    results: list[Any] = []
    refs: list[Ref] = []
    for number in range(count):
        refs.append((yield make(number)))
    for start in range(0, count, BATCH):
        part = refs[start : start + BATCH]
        results += yield Fetch(part)
        yield Forget(part)
    return results


def empty(work: WorkloadPart, random: Random) -> Program:
    """Empty tasks, in rounds of a few thousand as a throughput benchmark has them."""
    left = work.tasks
    while left:
        count = min(left, 10_000)
        refs = []
        for _ in range(count):
            refs.append((yield Spawn("nothing", (), 1, work.retries)))
        yield Fetch(refs)
        yield Forget(list(reversed(refs)))
        left -= count
    return work.tasks


def chain(work: WorkloadPart, random: Random) -> Program:
    """Each task takes what the one before it returns."""
    last = yield Store(0)
    for _ in range(work.tasks):
        ref = yield Spawn("add_all", (_duration(work, random), last), 1, work.retries)
        yield Forget([last])
        last = ref
    return (yield Fetch([last]))[0]


def tree(work: WorkloadPart, random: Random) -> Program:
    """Nested tasks that wait for each other: every level lends its CPUs."""
    root = yield Spawn("count_below", (min(work.depth, 12), min(work.fan_out, 4), work.task_us * US))
    return (yield Fetch([root]))[0]


def fan_out(work: WorkloadPart, random: Random) -> Program:
    """Many small trees at once."""
    depth, width = min(work.depth, 3), min(work.fan_out, 3)
    count = max(1, work.tasks // 8)
    return (
        yield from _spawn_all(count, lambda _: Spawn("count_below", (depth, width, _duration(work, random))))
    )


def random_dag(work: WorkloadPart, random: Random) -> Program:
    """Tasks with up to five inputs among all before them, some of them broken, some with two results."""
    refs: list[Ref] = [(yield Store(1))]
    for number in range(work.tasks):
        inputs = [random.choice(refs[-40:]) for _ in range(random.randint(0, min(5, len(refs))))]
        if random.random() < 0.01:
            refs.append((yield Spawn("break_down", (number,), 1, work.retries)))
        elif random.random() < 0.05:
            refs += yield Spawn("split", (number, 2, 0), 2, work.retries)
        else:
            cpus = random.choice((1.0, 1.0, 0.5, 0.0))
            args = (_duration(work, random), *(inputs[:5]))
            refs.append((yield Spawn("add_all", args, 1, work.retries, cpus)))
        if random.random() < 0.2 and len(refs) > 50:
            yield Forget([refs.pop(random.randrange(len(refs) - 45))])
    seen = 0
    for ref in refs:
        try:
            yield Fetch([ref])
        except ProgramError as error:
            if error.origin != "user":
                raise
        seen += 1
    return seen


def shuffle(work: WorkloadPart, random: Random) -> Program:
    """Every mapper gives a part to every reducer."""
    count = max(2, min(12, work.tasks // 8))
    size = work.object_kib * 1024 // count
    maps = []
    for number in range(count):
        maps.append((yield Spawn("split", (number, count, size), count, work.retries)))
    outs = []
    for part in range(count):
        outs.append((yield Spawn("merge", tuple(parts[part] for parts in maps), 1, work.retries)))
    for parts in maps:
        yield Forget(parts)
    return sum((yield Fetch(outs)))


def counter(work: WorkloadPart, random: Random) -> Program:
    """Actors that add up, called by the driver in order; one is killed at the end."""
    handles = []
    for number in range(work.actors):
        handles.append((yield MakeActor("CounterActor", (number,))))
    refs = []
    for number in range(work.tasks):
        refs.append((yield CallActor(random.choice(handles), "add", (number,))))
    totals = yield Fetch(refs)
    yield Forget(refs)
    yield EndActor(handles[0])
    return totals


def ordered_log(work: WorkloadPart, random: Random) -> Program:
    """One log, appended to with inputs that come late, read at the end. A lost input would lose a line."""
    log = yield MakeActor("LogActor")
    refs = []
    for number in range(work.tasks):
        line: Any = number
        if random.random() < 0.3:
            line = yield Spawn("add_all", (_duration(work, random), number))
        refs.append((yield CallActor(log, "append", (line, _duration(work, random) // 10))))
        if isinstance(line, Ref):
            yield Forget([line])
    last = yield CallActor(log, "read")
    return (yield Fetch([last]))[0]


def lone(work: WorkloadPart, random: Random) -> Program:
    """One task after the other, each waited for: what a lease is for, and everything that disturbs one."""
    seen: list[Any] = []
    for number in range(work.tasks):
        game = random.randrange(10)
        if game == 0:  # too large to come straight back, or with a ref inside
            size = work.object_kib * 1024
            function, args = random.choice((("make_blob", (size, number, 0)), ("put_inside", (number, size))))
            box = yield Spawn(function, args, 1, work.retries)
            seen.append((yield from _look_into(box)))
        elif game == 1:  # its ref leaves before it ends, and once more after
            ref = yield Spawn("add_all", (_duration(work, random), number), 1, work.retries)
            further = yield Spawn("merge", (ref,), 1, work.retries)
            seen += yield Fetch([further, ref])
            yield Forget([ref, further])
        elif game == 2:  # the same kind, while one is under way
            pair = []
            for _ in range(2):
                pair.append((yield Spawn("add_all", (_duration(work, random), number), 1, work.retries)))
            seen += yield Fetch(pair)
            yield Forget(pair)
        elif game == 3:  # nobody waits for it
            yield Forget([(yield Spawn("add_all", (0, number), 1, work.retries))])
        else:
            ref = yield Spawn("add_all", (_duration(work, random), number), 1, work.retries)
            seen += yield Fetch([ref])
            yield Forget([ref])
    return seen


def _look_into(box: Ref) -> Program:
    (value,) = yield Fetch([box])
    yield Forget([box])
    if isinstance(value, Blob):
        return value.tag
    (inner,) = value
    opened = yield Spawn("merge", (1,))
    (one,) = yield Fetch([opened])
    yield Forget([opened, inner])
    return one


def heavy_tail(work: WorkloadPart, random: Random) -> Program:
    """Mostly short tasks, some a thousand times longer: queued ones must not wait behind those."""

    def make(number: int) -> Spawn:
        duration_ns = min(int(random.paretovariate(1.1) * work.task_us * US), 2_000 * work.task_us * US)
        return Spawn("add_all", (duration_ns, number), 1, work.retries)

    return (yield from _spawn_all(work.tasks, make))


def memory_pressure(work: WorkloadPart, random: Random) -> Program:
    """More large objects than fit: made by tasks and by the driver, used later, in any order."""
    blobs: list[Ref] = []
    tags = []
    for number in range(work.tasks):
        size = random.randint(1, 2 * work.object_kib) * 1024
        if random.random() < 0.3:
            blobs.append((yield Store(Blob(size, number))))
        else:
            blobs.append((yield Spawn("make_blob", (size, number, _duration(work, random)), 1, work.retries)))
        if random.random() < 0.6:
            tags.append((yield Spawn("tag_of", (random.choice(blobs),), 1, work.retries)))
        if len(blobs) > 20:
            yield Forget([blobs.pop(random.randrange(len(blobs)))])
        if random.random() < 0.1:
            yield Fetch([random.choice(blobs)])
    return (yield Fetch(tags))


def references(work: WorkloadPart, random: Random) -> Program:
    """Refs inside arguments, results, puts and actors, dropped as early as possible."""
    handle = yield MakeActor("CounterActor", (0,))
    answers: list[Ref] = []
    for number in range(work.tasks):
        yield from _reference_game(work, random, handle, number, answers)
        if random.random() < 0.1:
            yield Await(answers[-5:], 1)
    results = yield Fetch(answers)
    yield Forget(answers)
    return results


def _reference_game(
    work: WorkloadPart, random: Random, handle: ActorRef, number: int, answers: list[Ref]
) -> Program:
    size = random.choice((0, 0, work.object_kib * 1024))
    game = random.randrange(6)
    if game == 0:  # a task puts, its result contains the ref, another opens it
        box = yield Spawn("put_inside", (number, size), 1, work.retries)
        answers.append((yield Spawn("open_box", (box,), 1, work.retries)))
        yield Forget([box])
    elif game == 1:  # the driver's own private value, passed down several levels
        inner = yield Store([number])
        box = yield Spawn("pass_on", ([inner], random.randint(0, 3)), 1, work.retries)
        answers.append((yield Spawn("open_box", (box,), 1, work.retries)))
        yield Forget([inner, box])
    elif game == 2:  # kept by an actor
        inner = yield Spawn("add_all", (_duration(work, random), number), 1, work.retries)
        answers.append((yield CallActor(handle, "keep", ([inner],))))
        yield Forget([inner])
    elif game == 3:  # given by an actor, and looked into
        given = yield CallActor(handle, "give")
        (refs,) = yield Fetch([given])
        answers.append((yield Spawn("merge", tuple(refs), 1, work.retries)))
        yield Forget([given, *refs])
    elif game == 4:  # the reply of an actor, in another call and in a task
        method, args = ("big", (size, number)) if size else ("echo", (number,))
        reply = yield CallActor(handle, method, args)
        answers.append((yield Spawn("merge", (reply,), 1, work.retries)))
        yield Forget([reply])
    else:  # the handle itself travels
        answers.append((yield Spawn("call_for", (handle, number), 1, work.retries)))


def mixed(work: WorkloadPart, random: Random) -> Program:
    """A bit of everything, one after the other."""
    part = WorkloadPart(
        "mixed", max(4, work.tasks // 6), min(work.depth, 2), min(work.fan_out, 2), work.task_us,
        work.object_kib, work.actors, work.retries,
    )  # fmt: skip
    kinds = [random_dag, references, memory_pressure, counter, shuffle, ordered_log, fan_out]
    random.shuffle(kinds)
    results = []
    for kind in kinds[:4]:
        results.append((yield from kind(part, random)))
    return results


SAFES_MAX = 24
"""Boxes that a program of kind ``copies`` keeps before it looks into one of them."""


def copies(work: WorkloadPart, random: Random) -> Program:
    """What is put on several nodes, by the driver and by tasks, and read long after by others."""
    safes: list[tuple[str, Ref]] = []
    answers: list[Ref] = []
    for number in range(work.tasks):
        size = random.choice((0, work.object_kib * 1024))
        if random.random() < 0.3:
            inner = yield Store([number, Blob(size, 7)], 2)
            safes.append(("open_box", (yield Spawn("pass_on", ([inner], 0), 1, work.retries))))
            yield Forget([inner])
        else:
            args = (number, size, random.choice((2, 2, 3)))
            there = Strategy(wanted=(LabelRule("number", ONE_OF, (str(random.randint(1, 4)),)),))
            safes.append(("open_safe", (yield Spawn("put_safely", args, 1, work.retries, strategy=there))))
        yield Compute(_duration(work, random))
        if len(safes) > SAFES_MAX:
            function, box = safes.pop(random.randrange(len(safes)))
            answers.append((yield Spawn(function, (box,), 1, work.retries)))
            yield Forget([box])
    for function, box in safes:
        answers.append((yield Spawn(function, (box,), 1, work.retries)))
    return (yield Fetch(answers))


FIRST_NODE = b"node%08d----" % 0
_ZONE = "zone"
STRATEGIES: tuple[Strategy | None, ...] = (
    None,
    Strategy(FIRST_NODE, soft=True),
    Strategy(bytes(16), soft=True),  # there is no such node
    Strategy(hard=(LabelRule(_ZONE, ONE_OF, ("even",)),)),
    Strategy(hard=(LabelRule(_ZONE, NONE_OF, ("odd",)), LabelRule("number", PRESENT))),
    Strategy(wanted=(LabelRule(_ZONE, ONE_OF, ("odd",)),)),
    Strategy(hard=(LabelRule("gone", ABSENT),), wanted=(LabelRule("number", ONE_OF, ("0", "3")),)),
)
"""That the first node alone, in whichever life, can satisfy; see ``hosts.labels_of``."""


def choosy(work: WorkloadPart, random: Random) -> Program:
    """Tasks that want certain nodes, large objects that others made there, and a few bound to one node."""
    blobs: list[Ref] = []
    answers: list[Ref] = []
    for number in range(work.tasks):
        chosen = random.choice(STRATEGIES)
        if random.random() < 0.02:  # an error if that node dies: so of few tasks
            chosen = Strategy(FIRST_NODE)
        if not blobs or random.random() < 0.4:
            args = (work.object_kib * 1024, number, _duration(work, random))
            blobs.append((yield Spawn("make_blob", args, 1, work.retries, strategy=chosen)))
        else:
            inputs = tuple(random.choices(blobs, k=random.randint(1, 2)))
            answers.append((yield Spawn("merge", inputs, 1, work.retries, strategy=chosen)))
        if len(blobs) > 8:
            yield Forget([blobs.pop(random.randrange(len(blobs)))])
        if random.random() < 0.05:
            yield Await(answers[-3:], min(1, len(answers)))
    return (yield Fetch(answers))


KINDS: dict[str, Callable[[WorkloadPart, Random], Program]] = {
    function.__name__: function
    for function in (
        empty, chain, tree, fan_out, random_dag, shuffle, counter, ordered_log, heavy_tail, memory_pressure,
        references, mixed, lone, choosy, actors, groups, copies, detached, allreduce, parameter_server,
        streams, leavers,
    )
}  # fmt: skip


def programs_of(scenario: Scenario, seed: int) -> list[Callable[[], Program]]:
    """One program per driver; each can be run several times and does the same each time."""

    def program_of(number: int) -> Callable[[], Program]:
        kind = KINDS[scenario.workload.kind]
        return lambda: kind(scenario.workload, stream(seed, f"workload/{number}"))

    return [program_of(number) for number in range(scenario.cluster.drivers)]
