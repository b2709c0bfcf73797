"""Random programs on real processes: tasks, actors, generators, cancels, kills and drops, with right answers.

A program is a list of steps, each a few small numbers, so that hypothesis can shrink it. :class:`Interpreter`
runs it and keeps a model beside: what each ref must be when it is read, or which errors are as right. At the
end it reads everything that is left, lets go of it, and looks for what was left behind.

``python -m tests.integration.random_programs --programs 2000`` runs as many as wanted and prints the seed of
each that failed; ``--programs 1 --seed N`` runs that one alone, ``--nodes 3 --shards 2`` in a larger cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zray
from tests import conformance
from zray.exceptions import RayActorError, TaskCancelledError, WorkerCrashedError
from zray.util import state

PATIENCE_S = 30.0
LARGE = 50_000
"""Bytes that make a value an object of the store."""
STEPS = (
    "task", "large", "chain", "nested", "fail", "stream", "actor", "call", "ledger_call", "put", "get",
    "wait", "drop", "cancel", "kill_worker", "kill_actor", "crash_actor", "sleep",
    "pair", "dynamic", "again", "actor_stream", "cancel_call", "cancel_coroutine", "restart_actor",
    "await_value",
)  # fmt: skip
"""What a step may be; the first number of a step chooses one."""
FIRST_STEPS = 18
"""What the programs of seeds below ``SEEDS_OF_ALL_STEPS`` are made of: more steps must not change them."""
SEEDS_OF_ALL_STEPS = 100_000
Step = tuple[int, int, int]


@zray.remote(max_retries=-1)
def plus(pad: int, *values: Any) -> Any:
    """The sum of the first items, as a list as long as wanted."""
    time.sleep((pad % 3) / 1000)
    total = sum(int(value[0]) for value in values) + 1
    return [total, bytes(LARGE)] if pad % 2 else [total]


@zray.remote(max_retries=-1)
def nested(values: list[Any], pad: int) -> Any:
    return zray.get(plus.remote(pad, *values))


@zray.remote
def fails(value: Any) -> Any:
    raise LookupError(value[0])


@zray.remote(max_retries=-1)
def stream(count: int) -> Any:
    for number in range(count):
        yield [number]


@zray.remote(max_retries=-1)
def nap(milliseconds: int) -> Any:
    time.sleep(milliseconds / 1000)
    return [milliseconds]


@zray.remote(max_retries=-1, num_returns=2)
def pair(number: int) -> Any:
    return [number], [number + 1, bytes(LARGE)]


@zray.remote(max_retries=-1, num_returns="dynamic")
def dynamic(count: int) -> Any:
    for number in range(count):
        yield [number]


@zray.remote(max_retries=-1)
def total(refs: Any) -> Any:
    return [sum(zray.get(ref)[0] for ref in refs)]


@zray.remote(max_retries=-1, retry_exceptions=[LookupError])
def again(failures: int) -> Any:
    if zray.get_runtime_context().get_attempt_number() < failures:
        raise LookupError
    return [failures]


class Ledger:
    """Counts, and can be saved."""

    def __init__(self) -> None:
        self.count = 0

    def __zray_save__(self) -> int:
        return self.count

    def __zray_load__(self, count: int) -> None:
        self.count = count

    def add(self, *values: Any) -> Any:
        self.count += 1
        return [self.count]

    def pid(self) -> int:
        return os.getpid()

    def nap(self, milliseconds: int) -> Any:
        time.sleep(milliseconds / 1000)
        return [milliseconds]

    def items(self, count: int) -> Any:
        for number in range(count):
            yield [number]


@zray.remote(max_restarts=-1, max_task_retries=-1)
class Sleeper:
    """Runs coroutines."""

    async def nap(self, milliseconds: int) -> Any:
        await asyncio.sleep(milliseconds / 1000)
        return [milliseconds]


Mortal = zray.remote(Ledger)
Immortal = zray.remote(Ledger).options(max_restarts=-1, max_task_retries=-1, checkpoint_interval=3)


class _Expected:
    """What a ref must be: the first item of its list, or one of some errors."""

    def __init__(self, value: int | None, *errors: type[BaseException], certain: bool = True) -> None:
        self.value = value
        self.errors = errors
        self.certain = certain and not errors  # nothing that a later step does makes it fail


class _Actor:
    """An actor and what the model knows of it."""

    def __init__(self, handle: Any, immortal: bool) -> None:
        self.handle = handle
        self.immortal = immortal
        self.calls = 0
        self.killed = False


class Interpreter:
    """Runs one program in a cluster that is there."""

    def __init__(self) -> None:
        self.refs: list[tuple[Any, _Expected]] = []
        self.actors: list[_Actor] = []
        self.sleeper: Any = None

    def run(self, steps: list[Step]) -> None:
        """Run the steps, read what is left, and drop it.

        Raises:
            AssertionError: for a wrong value, or something left behind.
        """
        for kind, first, second in steps:
            getattr(self, f"_{STEPS[kind % len(STEPS)]}")(first, second)
        while self.refs:
            self._check(*self.refs.pop())
        self.actors.clear()
        self.sleeper = None
        _await_nothing_left()

    # --- what makes refs -------------------------------------------------------------------------

    def _pick(self, number: int) -> tuple[Any, _Expected]:
        return self.refs[number % len(self.refs)] if self.refs else (zray.put([0]), _Expected(0))

    def _add(self, ref: Any, value: int | None, *errors: type[BaseException], certain: bool = True) -> None:
        self.refs.append((ref, _Expected(value, *errors, certain=certain)))

    def _sum(self, make: Callable[[list[Any]], Any], inputs: list[tuple[Any, _Expected]]) -> None:
        values = [expected.value for _, expected in inputs]
        errors = [error for _, expected in inputs for error in expected.errors]
        known = None if None in values else sum(value or 0 for value in values) + 1
        certain = all(expected.certain for _, expected in inputs)
        self._add(make([ref for ref, _ in inputs]), known, *errors, certain=certain)

    def _task(self, first: int, second: int) -> None:
        self._add(plus.remote(2 * first), 1)

    def _large(self, first: int, second: int) -> None:
        self._add(plus.remote(2 * first + 1), 1)

    def _chain(self, first: int, second: int) -> None:
        inputs = [self._pick(first), self._pick(second)]
        self._sum(lambda refs: plus.remote(first, *refs), inputs)

    def _nested(self, first: int, second: int) -> None:
        inputs = [self._pick(first), self._pick(second)]
        self._sum(lambda refs: nested.remote(refs, second), inputs)

    def _fail(self, first: int, second: int) -> None:
        ref, expected = self._pick(first)
        self._add(fails.remote(ref), None, LookupError, *expected.errors)

    def _stream(self, first: int, second: int) -> None:
        made = stream.remote(first % 5)
        for number, ref in enumerate(made):
            self._add(ref, number)
            if number == second % 5:
                break  # and let go of the rest

    def _put(self, first: int, second: int) -> None:
        self._add(zray.put([first, bytes(LARGE * (second % 2))]), first)

    def _pair(self, first: int, second: int) -> None:
        one, two = pair.remote(first)
        self._add(one, first)
        if second % 2:
            self._add(two, first + 1)

    def _dynamic(self, first: int, second: int) -> None:
        count = first % 5
        made = dynamic.remote(count)
        expected = count * (count - 1) // 2
        if second % 2:  # before it is read, or after
            self._add(total.remote(made), expected)
        else:
            self._add(total.remote(zray.get(made, timeout=PATIENCE_S)), expected)

    def _again(self, first: int, second: int) -> None:
        self._add(again.remote(first % 4), first % 4)

    # --- actors ----------------------------------------------------------------------------------

    def _actor(self, first: int, second: int) -> None:
        if len(self.actors) < 4:
            kind = Immortal if first % 2 else Mortal
            self.actors.append(_Actor(kind.remote(), bool(first % 2)))

    def _call(self, first: int, second: int) -> None:
        if not self.actors:
            self._actor(first, second)
        actor = self.actors[first % len(self.actors)]
        ref, expected = self._pick(second)
        if expected.certain:  # a call whose input fails does not count, and the next ones count less
            self._count(actor, ref)

    def _count(self, actor: _Actor, *inputs: Any) -> None:
        errors = () if actor.immortal and not actor.killed else (RayActorError,)
        actor.calls += 1
        self._add(actor.handle.add.remote(*inputs), actor.calls, *errors, certain=False)

    def _ledger_call(self, first: int, second: int) -> None:
        for actor in self.actors:
            self._count(actor)

    def _actor_stream(self, first: int, second: int) -> None:
        if not self.actors:
            return
        actor = self.actors[first % len(self.actors)]
        errors = () if actor.immortal and not actor.killed else (RayActorError,)
        for number, ref in enumerate(actor.handle.items.remote(second % 5)):
            self._add(ref, number, *errors, certain=False)
            if number == first % 5:
                break

    def _cancel_call(self, first: int, second: int) -> None:
        """A call that others queue behind."""
        if self.actors:
            actor = self.actors[first % len(self.actors)]
            ref = actor.handle.nap.remote(second % 7)
            zray.cancel(ref)
            self._add(ref, second % 7, TaskCancelledError, RayActorError)

    def _cancel_coroutine(self, first: int, second: int) -> None:
        if self.sleeper is None:
            self.sleeper = Sleeper.remote()
        kept, taken_back = [self.sleeper.nap.remote(first % 7) for _ in range(2)]
        zray.wait([kept], timeout=(second % 5) / 1000)
        zray.cancel(taken_back)
        self._add(kept, first % 7)
        self._add(taken_back, first % 7, TaskCancelledError)

    def _restart_actor(self, first: int, second: int) -> None:
        immortal = [actor for actor in self.actors if actor.immortal and not actor.killed]
        if immortal:
            zray.kill(immortal[first % len(immortal)].handle, no_restart=False)

    def _kill_actor(self, first: int, second: int) -> None:
        if self.actors:
            actor = self.actors[first % len(self.actors)]
            if not actor.killed:
                for _, expected in self.refs:
                    expected.errors = (*expected.errors, RayActorError)
            actor.killed = True
            zray.kill(actor.handle)

    def _crash_actor(self, first: int, second: int) -> None:
        """kill -9 of the process of an actor; one that may come back loses nothing that it said."""
        immortal = [actor for actor in self.actors if actor.immortal and not actor.killed]
        if immortal:
            pid = zray.get(immortal[first % len(immortal)].handle.pid.remote(), timeout=PATIENCE_S)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- what becomes of refs --------------------------------------------------------------------

    def _get(self, first: int, second: int) -> None:
        if self.refs:
            self._check(*self._pick(first))

    def _await_value(self, first: int, second: int) -> None:
        ref, expected = self._pick(first)
        future = ref.future()
        try:
            if second % 2:
                future.result(PATIENCE_S)
        except Exception as error:
            if not isinstance(error, expected.errors):
                raise
        finally:
            del ref, future  # its error knows this frame, which must not know the future

    def _wait(self, first: int, second: int) -> None:
        refs = list(dict.fromkeys(ref for ref, _ in self.refs))
        if refs:
            count = first % len(refs) + 1
            ready, others = zray.wait(refs, num_returns=count, timeout=(second % 5) / 1000)
            assert len(ready) <= count
            assert sorted([*ready, *others], key=refs.index) == refs

    def _drop(self, first: int, second: int) -> None:
        if self.refs:
            del self.refs[first % len(self.refs)]

    def _cancel(self, first: int, second: int) -> None:
        """Only what nobody else uses: a sleep of its own, read at the end."""
        ref = nap.remote(first % 7)
        zray.cancel(ref, force=bool(second % 2))
        self._add(ref, first % 7, TaskCancelledError)

    def _kill_worker(self, first: int, second: int) -> None:
        busy = [
            row["pid"]
            for row in state.list_workers()
            if row["pid"] and row["state"] not in ("actor", "starting")
        ]
        if busy:
            for _, expected in self.refs:
                if LookupError in expected.errors:  # these are not tried for ever
                    expected.errors = (*expected.errors, WorkerCrashedError)
            with suppress(ProcessLookupError):
                os.kill(busy[first % len(busy)], signal.SIGKILL)

    def _sleep(self, first: int, second: int) -> None:
        time.sleep((first % 10) / 1000)

    def _check(self, ref: Any, expected: _Expected) -> None:
        try:
            value = zray.get(ref, timeout=PATIENCE_S)[0]
        except Exception as error:
            if not isinstance(error, expected.errors):
                raise
            return
        assert expected.value is None or value == expected.value, f"{value} instead of {expected.value}"


def _await_nothing_left() -> None:
    """No task, no living actor and no object a moment after the last ref is gone."""
    deadline = time.monotonic() + PATIENCE_S
    left: list[Any] = []
    while time.monotonic() < deadline:
        living = [row for row in state.list_actors() if row["state"] != "DEAD"]
        left = [*state.list_tasks(), *living, *state.list_objects()]
        if not left:
            return
        time.sleep(0.005)
    raise AssertionError(f"left behind: {left}")


def program_of(seed: int) -> list[Step]:
    """The program of a seed."""
    dice = random.Random(seed)
    kinds = FIRST_STEPS if seed < SEEDS_OF_ALL_STEPS else len(STEPS)
    count = dice.randint(1, 40)
    return [(dice.randrange(1000) % kinds, dice.randrange(100), dice.randrange(100)) for _ in range(count)]


def main() -> int:
    """Run many programs in one cluster; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--shards", type=int, default=1)
    given = parser.parse_args()
    conformance.resize(given.nodes, given.shards)
    failed: list[int] = []
    seeds = deque(range(given.seed, given.seed + given.programs))
    started = time.monotonic()
    while seeds:
        with conformance.cluster(num_cpus=2):
            failed += _run_until_one_fails(seeds)
    print(f"{given.programs} programs, {len(failed)} failed {failed}, {time.monotonic() - started:.1f} s")
    return int(bool(failed))


def _run_until_one_fails(seeds: deque[int]) -> list[int]:
    """Run programs in a cluster that a failure may have spoilt; the seed of that failure, if there is one."""
    while seeds:
        seed = seeds.popleft()
        try:
            Interpreter().run(program_of(seed))
        except Exception as error:
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
            return [seed]
    return []


if __name__ == "__main__":
    sys.exit(main())
