"""Streams, several calls at once, coroutines and dying processes of users' programs, in virtual time."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import zray
from sim.user_code import STALL_S, DeadlockError
from zray.api import virtual_loop


@zray.remote
def numbers(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


@zray.remote
class Camera:
    def __init__(self) -> None:
        self.made = 0

    def frames(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.made = number + 1
            yield number

    def count(self) -> int:
        return self.made


def test_items_are_seen_before_their_task_ends() -> None:
    with zray.simulate() as cluster:
        seen = []
        for ref in numbers.remote(5, 10.0):
            assert zray.get(ref) == len(seen)
            seen.append(round(cluster.now_s))
    assert seen == [10, 20, 30, 40, 50]


def test_a_bounded_stream_is_never_further_ahead_than_it_may() -> None:
    with zray.simulate():
        camera = Camera.options(max_concurrency=2).remote()
        frames = camera.frames.options(_generator_backpressure_num_objects=2).remote(10)
        made = []
        for ref in frames:
            time.sleep(1.0)
            made.append(zray.get(camera.count.remote()) - zray.get(ref))
        assert made == [3] * 7 + [3, 2, 1]  # the one that is read, two ahead, as long as there are


def test_a_stream_that_nobody_reads_frees_its_actor_also_if_it_was_closed_before_it_began() -> None:
    with zray.simulate():
        camera = Camera.remote()
        camera.frames.options(_generator_backpressure_num_objects=1).remote(10).close()
        assert zray.get(camera.count.remote(), timeout=10) == 10


@zray.remote
class Pair:
    def __init__(self) -> None:
        self.order: list[int] = []

    def work(self, number: int) -> int:
        self.order.append(number)
        return number

    @zray.method(concurrency_group="io")
    def look(self) -> list[int]:
        return list(self.order)


def test_calls_at_once_take_their_declared_time_beside_each_other() -> None:
    durations = {"Pair.work": 60.0, "Pair.look": 1.0}
    with zray.simulate(durations=durations) as cluster:
        pair = Pair.options(max_concurrency=2, concurrency_groups={"io": 1}).remote()
        refs = [pair.work.remote(number) for number in range(4)]
        time.sleep(70.0)
        assert zray.get(pair.look.remote()) == [0, 1]  # the other group is free
        assert zray.get(refs) == [0, 1, 2, 3]
        assert 120 <= cluster.now_s < 121
        with pytest.raises(ValueError, match="no concurrency group 'gpu'"):
            zray.get(pair.work.options(concurrency_group="gpu").remote(1))
    starts = [(event["start_s"], event["end_s"]) for event in cluster.events if event["name"] == "work"]
    assert sum(start < 1 for start, _ in starts) == 2


@zray.remote
class Gate:
    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def enter(self, number: int) -> int:
        await self.opened.wait()
        await asyncio.sleep(5.0)
        return number

    async def open(self) -> float:
        self.opened.set()
        return await asyncio.to_thread(time.sleep, 1.0) or time.monotonic()

    async def ticks(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(1.0)
            yield number


def test_coroutines_wait_for_each_other() -> None:
    with zray.simulate() as cluster:
        gate = Gate.remote()
        entered = [gate.enter.remote(number) for number in range(50)]
        ready, _ = zray.wait(entered, timeout=100.0)
        assert ready == []
        cancelled = gate.enter.remote(99)
        zray.get(gate.open.remote())
        zray.cancel(cancelled)
        assert zray.get(entered) == list(range(50))
        with pytest.raises(zray.exceptions.TaskCancelledError):
            zray.get(cancelled)
        assert 105 <= cluster.now_s < 106

        async def read() -> list[int]:
            assert isinstance(asyncio.get_running_loop(), virtual_loop.VirtualLoop)
            return [await ref async for ref in gate.ticks.remote(10)]

        assert asyncio.run(read()) == list(range(10))
    assert 115 <= cluster.makespan_s < 116
    assert not isinstance(asyncio.get_event_loop_policy(), virtual_loop._Policy)


@zray.remote(max_restarts=1, max_task_retries=1)
class Mortal:
    def pid(self) -> int:
        return os.getpid()

    def items(self, count: int, dies_at: int) -> Iterator[int]:
        for number in range(count):
            if number == dies_at and not zray.get_runtime_context().was_current_actor_reconstructed:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number


def test_a_bounded_stream_goes_on_when_its_actor_is_made_again() -> None:
    """Its new process hears how far the reader is; otherwise it would wait after two items for ever."""
    with zray.simulate():
        mortal = Mortal.remote()
        stream = mortal.items.options(_generator_backpressure_num_objects=2).remote(9, 5)
        assert [zray.get(ref) for ref in stream] == list(range(9))


def test_a_process_that_is_killed_is_a_simulated_one() -> None:
    with zray.simulate():
        mortal = Mortal.remote()
        pid = zray.get(mortal.pid.remote())
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        assert zray.get(mortal.pid.remote(), timeout=60.0) not in (pid, os.getpid())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@zray.remote
class Locked:
    def wait(self) -> bool:
        return self.event.wait()

    def __init__(self) -> None:
        self.event = threading.Event()


def wait_for_a_thread() -> None:
    with zray.simulate():
        locked: Any = Locked.remote()
        zray.get(locked.__ray_call__.remote(lambda self: _keep(self.event)))
        zray.get(locked.wait.remote())


def test_who_waits_for_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.user_code.STALL_S", STALL_S / 50)
    with pytest.raises(DeadlockError, match=r"wait\(\) waits at .*test_simulate_actors.py"):
        wait_for_a_thread()
    _kept.pop().set()  # so that its thread ends


_kept: list[threading.Event] = []


def _keep(event: threading.Event) -> None:
    _kept.append(event)
