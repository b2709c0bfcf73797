"""``zray.cancel`` in virtual time: of what waits, is queued, runs, and of what a task submitted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zray
from zray.errors import TaskCancelledError

LONG_S = 500.0
SOON_S = 0.1


def note(path: str, what: str) -> None:
    with open(path, "a") as notes:
        notes.write(what + "\n")


@zray.remote(max_retries=0)
def sleep(seconds: float, notes: str = os.devnull) -> int:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        note(notes, "sleep")
        raise
    return 7


@zray.remote
def parent(notes: str) -> Any:
    try:
        return zray.get([sleep.remote(LONG_S, notes)])
    except KeyboardInterrupt:
        note(notes, "get")
        raise


@zray.remote
def stubborn() -> str:
    try:
        time.sleep(LONG_S)
    except KeyboardInterrupt:
        return "finished"
    return "slept"


@zray.remote
def quick() -> int:
    return 1


@zray.remote
class Caller:
    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def cluster(**options: Any) -> Any:
    return zray.simulate(seed=3, durations=lambda name, random: 0.01, **{"nodes": 1, "cpus": 2, **options})


def _ends_soon(run: Any, ref: Any, **options: Any) -> None:
    before_s = run.now_s
    zray.cancel(ref, **options)
    with pytest.raises(TaskCancelledError):
        zray.get(ref)
    assert run.now_s - before_s < SOON_S


@pytest.mark.parametrize("force", [False, True])
def test_a_running_task_ends_and_its_cpu_is_free(force: bool, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with cluster(cpus=1) as run:
        ref = sleep.remote(LONG_S, str(notes))
        assert not zray.wait([ref], timeout=1)[0]
        _ends_soon(run, ref, force=force)
        assert zray.get(quick.remote()) == 1
        assert run.now_s < 2
    assert notes.exists() is not force


def test_a_declared_duration_is_cut_short() -> None:
    with cluster() as run:
        ref = quick.options(_duration_s=LONG_S).remote()
        assert not zray.wait([ref], timeout=1)[0]
        _ends_soon(run, ref)


def test_what_a_task_submitted_ends_with_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with cluster() as run:
        ref = parent.remote(str(notes))
        assert not zray.wait([ref], timeout=1)[0]
        _ends_soon(run, ref)
        assert zray.get([quick.remote(), quick.remote()]) == [1, 1]
        assert run.now_s < 2
    assert sorted(notes.read_text().split()) == ["get", "sleep"]


def test_what_is_queued_or_waits_for_an_input_never_runs() -> None:
    with cluster(cpus=1) as run:
        running = sleep.remote(5)
        queued, waits = quick.remote(), sleep.remote(running)
        assert not zray.wait([queued], timeout=1)[0]
        _ends_soon(run, queued)
        _ends_soon(run, waits)
        assert zray.get(running) == 7
    assert [event["name"] for event in run.events] == ["sleep"]


def test_a_task_that_catches_its_interrupt_goes_on() -> None:
    with cluster() as run:
        ref = stubborn.remote()
        assert not zray.wait([ref], timeout=1)[0]
        zray.cancel(ref)
        assert zray.get(ref) == "finished"
        zray.cancel(ref)
        assert zray.get(ref) == "finished"
        assert run.now_s < 2


def test_a_call_that_has_not_started_is_taken_back() -> None:
    with cluster() as run:
        caller = Caller.remote()
        first, second = caller.sleep.remote(3), caller.sleep.remote(LONG_S)
        assert not zray.wait([first], timeout=1)[0]
        _ends_soon(run, second)
        zray.cancel(first)  # it runs, and goes on
        assert zray.get([first, caller.sleep.remote(1)]) == [3, 1]


def test_the_same_seed_cancels_at_the_same_times() -> None:
    def digest() -> str:
        with cluster(nodes=2, faults={"worker_crash": 0.5}) as run:
            refs = [sleep.options(max_retries=-1).remote(1 + number % 3) for number in range(16)]
            for ref in refs[::2]:
                time.sleep(0.2)
                zray.cancel(ref)
            assert zray.get(refs[1::2]) == [7] * 8
            for ref in refs[::2]:
                with suppress(TaskCancelledError):
                    assert zray.get(ref) == 7
        return run.digest

    assert digest() == digest()
