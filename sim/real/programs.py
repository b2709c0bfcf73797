"""The programs of ``driver.py`` as the simulator runs them: same tasks, same waits, same number."""

from __future__ import annotations

from collections.abc import Callable

from sim.kernel import MS
from sim.programs import Await, Compute, Fetch, Program, Spawn

WARM_UP_NS = 300 * MS
"""Workers are there by then, and shards know their nodes."""
PAUSES_NS = (1 * MS, 10 * MS, 100 * MS)


def nothing() -> None:
    """An empty task."""


def after(_: object) -> None:
    """An empty task that takes the result of another."""


def pause(duration_ns: int) -> Program:
    """A task that takes a while."""
    yield Compute(duration_ns)


def burst(count: int) -> Program:
    """Many empty tasks at once."""
    refs = []
    for _ in range(count):
        ref = yield Spawn("nothing")
        refs.append(ref)
    yield Fetch(refs)


def ping(count: int) -> Program:
    """One after the other."""
    for _ in range(count):
        yield Fetch([(yield Spawn("nothing"))])


def chain(count: int) -> Program:
    """Each takes the result of the one before."""
    ref = yield Spawn("nothing")
    for _ in range(count):
        ref = yield Spawn("after", (ref,))
    yield Fetch([ref])


def pauses(count: int) -> Program:
    """Tasks of 1, 10 and 100 ms."""
    refs = []
    for number in range(count):
        ref = yield Spawn("pause", (PAUSES_NS[number % 3],))
        refs.append(ref)
    yield Await(refs, len(refs))


PROGRAMS: dict[str, Callable[[int], Program]] = {
    "burst": burst, "ping": ping, "chain": chain, "pauses": pauses,
}  # fmt: skip
CODE: dict[str, Callable[..., object]] = {"nothing": nothing, "after": after, "pause": pause}


def warmed(name: str, count: int, started: Callable[[], None]) -> Program:
    """A program behind a warm-up like that of the real driver; ``started`` is called when it begins."""
    yield Compute(WARM_UP_NS)
    refs = []
    for _ in range(20):
        ref = yield Spawn("nothing")
        refs.append(ref)
    yield Fetch(refs)
    ref = yield Spawn("nothing")
    yield Fetch([(yield Spawn("after", (ref,))), (yield Spawn("pause", (0,)))])
    started()
    yield from PROGRAMS[name](count)
