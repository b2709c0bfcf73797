"""How simulated actors begin and end: in their loop, by ``sys.exit()``, in peace, killed."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import signal
import sys
import time
from typing import Any

import pytest

import zray
from zray.exceptions import RayActorError


@zray.remote(num_cpus=0)
def pause(seconds: float) -> None:
    time.sleep(seconds)


@zray.remote(num_cpus=1)
class Slow:
    async def __init__(self, how: str, seconds: float) -> None:
        if how == "sleeps":
            time.sleep(seconds)
        elif how == "awaits":
            await asyncio.sleep(seconds)
        else:
            zray.get(pause.remote(seconds))

    async def ready(self) -> bool:
        return True


@pytest.mark.parametrize(("how", "lends"), [("sleeps", False), ("awaits", False), ("gets", True)])
def test_a_constructor_in_the_loop_lends_its_cpu_only_while_it_gets(how: str, lends: bool) -> None:
    with zray.simulate(cpus=1) as cluster:
        slow = Slow.remote(how, 10.0)
        other = pause.options(num_cpus=1).remote(1.0)
        assert bool(zray.wait([other], timeout=5.0)[0]) == lends
        assert zray.get(slow.ready.remote())
        assert 10 <= cluster.now_s < 11
        del slow
        zray.get(other)


@zray.remote(max_restarts=1, max_task_retries=1)
class Unborn:
    async def __init__(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(100.0))
        await asyncio.sleep(1.0)
        if not zray.get_runtime_context().was_current_actor_reconstructed:
            os.kill(os.getpid(), signal.SIGKILL)

    async def ready(self) -> bool:
        return not self.task.done()


def test_one_that_is_killed_in_its_constructor_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    with zray.simulate() as cluster:
        assert zray.get(Unborn.remote().ready.remote(), timeout=60.0)
        assert 2 <= cluster.now_s < 60
    gc.collect()
    assert caplog.messages == []  # its loop has ended, too: no coroutine was left in it


NOTES: list[str] = []


@pytest.fixture(autouse=True)
def notes() -> None:
    """Of this test: what others left is deleted at any time, and says so to them."""
    global NOTES
    NOTES = []


class Noted:
    """Says how it ends, and may take its time for it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.notes = NOTES
        self.notes.clear()
        atexit.register(self.notes.append, "exit handler")

    def call(self, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        return os.getpid()

    def end(self, code: int) -> None:
        sys.exit(code)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __ray_shutdown__(self) -> None:
        time.sleep(self.seconds)
        self.note("told")

    def __del__(self) -> None:
        self.note("deleted")


class NotedInALoop(Noted):
    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def __ray_shutdown__(self) -> None:
        await asyncio.sleep(self.seconds)
        self.note("told")


KINDS = pytest.mark.parametrize("kind", [Noted, NotedInALoop])


def shared(kind: type[Noted]) -> Any:
    """Pickled by reference, so that it shares the notes."""
    return zray.remote(kind).options(num_cpus=1)


@KINDS
@pytest.mark.parametrize(("seconds", "is_heard"), [(20.0, True), (1_000.0, False)])
def test_a_farewell_has_its_time_and_no_more(kind: type[Noted], seconds: float, is_heard: bool) -> None:
    with zray.simulate(cpus=1) as cluster:
        actor = shared(kind).remote(seconds)
        zray.get(actor.call.remote())
        del actor
        zray.get(pause.options(num_cpus=1).remote(0.0))  # until then it has the CPU
        assert min(seconds, 30.0) <= cluster.now_s < min(seconds, 30.0) + 1
        notes = ["told", "deleted", "exit handler"] if is_heard else []
        assert notes == NOTES


@KINDS
def test_one_that_is_killed_hears_nothing(kind: type[Noted]) -> None:
    with zray.simulate():
        actor = shared(kind).options(max_restarts=0).remote()
        os.kill(zray.get(actor.call.remote()), signal.SIGKILL)
        with pytest.raises(RayActorError):
            zray.get(actor.call.remote())
        zray.get(Lingering.remote().__ray_ready__.remote())  # another process: nothing looks for the first
        gc.collect()
        assert NOTES == []


@KINDS
def test_the_exit_of_the_interpreter_is_no_farewell_but_in_success(kind: type[Noted]) -> None:
    with zray.simulate() as cluster:
        actor = shared(kind).options(max_restarts=1).remote()
        first = zray.get(actor.call.remote())
        with pytest.raises(RayActorError, match="exited with code 3"):
            zray.get(actor.end.remote(3))
        assert NOTES[0] == "exit handler"  # its next life may have begun, which wipes the slate
        assert zray.get(actor.call.remote(), timeout=60.0) != first
        assert NOTES == []
        with pytest.raises(RayActorError, match=r"sys\.exit"):
            zray.get(actor.end.remote(0))
        with pytest.raises(RayActorError, match=r"sys\.exit"):
            zray.get(actor.call.remote(), timeout=60.0)
        time.sleep(1.0)
        assert NOTES == ["told", "deleted", "exit handler"]
        assert cluster.now_s < 60


@zray.remote
class Lingering:
    def end(self) -> None:
        atexit.register(time.sleep, 1_000.0)
        sys.exit(3)


def test_exit_handlers_have_no_more_time_than_a_farewell() -> None:
    with zray.simulate() as cluster:
        with pytest.raises(RayActorError, match="exited with code 1"):
            zray.get(Lingering.remote().end.remote())
        assert 30 <= cluster.now_s < 31


def test_what_fails_in_a_farewell_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    @zray.remote
    class Failing:
        def __ray_shutdown__(self) -> None:
            raise KeyError("nobody waits for this")

    with zray.simulate():
        failing = Failing.remote()
        zray.get(failing.__ray_ready__.remote())
        del failing
        time.sleep(1.0)
    assert "Failing.__ray_shutdown__() raised:" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_crash_meanwhile_leave_nothing_behind(seed: int) -> None:
    """In the midst of constructors, calls and farewells; and the same seed gives the same run."""

    def run() -> str:
        durations = {"Slow": 0.0, "ready": 0.01, "NotedInALoop": 0.0, "call": 0.05, "pause": 0.0}
        faults = {"worker_crash": 2.0}
        with zray.simulate(cpus=4, seed=seed, faults=faults, durations=durations) as cluster:
            for number in range(12):
                how = ("awaits", "gets")[number % 2]
                slow = Slow.options(max_restarts=-1, max_task_retries=-1).remote(how, 0.2)
                noted = shared(NotedInALoop).options(max_restarts=-1, max_task_retries=-1).remote(0.2)
                zray.get([slow.ready.remote(), noted.call.remote()], timeout=1_000.0)
                del slow, noted
            assert cluster.run.cluster.faults.strikes["worker_crash"] > 0
        return cluster.digest

    assert run() == run()
