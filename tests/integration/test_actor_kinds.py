"""Actors beyond the plain one: async, threaded, with groups, with names, restarted, ended by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests import conformance
from tests.support import eventually
from zray.actor import exit_actor
from zray.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorHandleNotFoundError,
    ActorUnavailableError,
    GetTimeoutError,
    PendingCallsLimitExceeded,
    RayActorError,
    TaskCancelledError,
)
from zray.util import list_named_actors

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2, namespace="tests"):
        yield


@zray.remote
class Gate:
    """An async actor whose calls wait for each other."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0

    async def enter(self, path: str = "") -> int:
        self.inside += 1
        if path:
            Path(path).touch()
        await self.opened.wait()
        return self.inside

    async def count(self) -> int:
        return self.inside

    async def open(self) -> None:
        self.opened.set()

    async def add(self, refs: list[Any]) -> int:
        return sum(await asyncio.gather(*refs))

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self) -> None:
        raise KeyError("async")

    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def plain(self) -> str:
        return threading.current_thread().name


class Constructed:
    """Its constructor does in the loop what its calls find there."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.ticked = asyncio.get_running_loop().create_task(self.tick())

    async def tick(self) -> str:
        return "ticked"

    async def find(self) -> tuple[bool, str]:
        return self.thread == threading.get_ident(), await self.ticked


class ConstructedLater(Constructed):
    async def __init__(self) -> None:
        await asyncio.sleep(0)
        super().__init__()


@zray.remote
class Waiting:
    def __init__(self, value: int) -> None:
        self.value = zray.get(zray.remote(lambda: value).remote())

    async def read(self) -> int:
        return self.value


class TestConstructors:
    @pytest.mark.parametrize("kind", [Constructed, ConstructedLater])
    def test_run_in_the_loop(self, kind: type[Constructed]) -> None:
        assert zray.get(zray.remote(kind).remote().find.remote(), timeout=PATIENCE_S) == (True, "ticked")

    def test_lend_their_cpus_while_they_wait(self) -> None:
        actors = [Waiting.options(num_cpus=1).remote(7) for _ in range(2)]  # all CPUs that there are
        assert zray.get([actor.read.remote() for actor in actors], timeout=PATIENCE_S) == [7, 7]

    def test_raise(self) -> None:
        class Failing(Constructed):
            async def __init__(self) -> None:
                raise KeyError("made in the loop")

        with pytest.raises(ActorDiedError, match="made in the loop"):
            zray.get(zray.remote(Failing).remote().find.remote(), timeout=PATIENCE_S)


class TestAsyncActors:
    def test_calls_overlap(self) -> None:
        gate = Gate.remote()
        waiting = [gate.enter.remote() for _ in range(50)]
        eventually(lambda: zray.get(gate.count.remote()) == 50, PATIENCE_S)
        zray.get(gate.open.remote())
        assert zray.get(waiting, timeout=PATIENCE_S) == [50] * 50

    def test_max_concurrency_bounds_them(self) -> None:
        gate = Gate.options(max_concurrency=3).remote()
        waiting = [gate.enter.remote() for _ in range(5)]
        count = gate.count.remote()
        with pytest.raises(GetTimeoutError):
            zray.get(count, timeout=0.3)
        for ref in waiting[:3]:
            zray.cancel(ref)
        zray.get(gate.open.remote(), timeout=PATIENCE_S)
        assert zray.get(waiting[3:], timeout=PATIENCE_S) == [5, 5]

    def test_awaiting_refs_inside(self) -> None:
        gate = Gate.remote()
        refs = [gate.echo.remote(number) for number in range(10)]
        assert zray.get(gate.add.remote(refs), timeout=PATIENCE_S) == 45

    def test_values_of_every_size_and_errors(self) -> None:
        gate = Gate.remote()
        large = b"x" * 1_000_000
        assert zray.get(gate.echo.remote(large)) == large
        assert zray.get(gate.echo.remote(zray.put(large))) == large
        with pytest.raises(KeyError, match="async"):
            zray.get(gate.fail.remote())

    def test_plain_methods_run_in_the_loop(self) -> None:
        assert zray.get(Gate.remote().plain.remote()) == "zray-actor-loop"

    def test_async_generators_stream(self) -> None:
        assert [zray.get(ref) for ref in Gate.remote().numbers.remote(5)] == [0, 1, 2, 3, 4]

    def test_cancel_reaches_a_coroutine_and_what_waits_behind_it(self, tmp_path: Path) -> None:
        gate = Gate.options(max_concurrency=1).remote()
        entered = tmp_path / "entered"
        running = gate.enter.remote(str(entered))
        queued, behind = gate.enter.remote(), gate.count.remote()
        eventually(entered.exists, PATIENCE_S)
        zray.cancel(queued)
        with pytest.raises(TaskCancelledError):
            zray.get(queued, timeout=PATIENCE_S)
        zray.cancel(running)
        with pytest.raises(TaskCancelledError):
            zray.get(running, timeout=PATIENCE_S)
        assert zray.get(behind, timeout=PATIENCE_S) == 1

    def test_a_driver_awaits_refs(self) -> None:
        gate = Gate.remote()

        async def both() -> list[int]:
            ref = gate.echo.remote(3)
            wrapped = asyncio.wrap_future(gate.echo.remote(4).future())
            return [await ref, await wrapped, *await asyncio.gather(gate.echo.remote(5), gate.echo.remote(6))]

        assert asyncio.run(both()) == [3, 4, 5, 6]

    def test_await_raises_what_get_would(self) -> None:
        gate = Gate.remote()

        async def fails() -> None:
            await gate.fail.remote()

        with pytest.raises(KeyError, match="async"):
            asyncio.run(fails())


@zray.remote
class Threads:
    def __init__(self, parties: int = 2) -> None:
        self.barrier = threading.Barrier(parties)

    def meet(self) -> int:
        return self.barrier.wait(PATIENCE_S)

    def submit(self, value: int) -> int:
        return zray.get(double.remote(value))

    @zray.method(concurrency_group="io")
    def grouped(self) -> str:
        return threading.current_thread().name

    @zray.method(concurrency_group="io")
    def slow(self, path: str) -> str:
        return str(eventually(lambda: os.path.exists(path) and path, PATIENCE_S))

    def free(self) -> str:
        return "free"


@zray.remote(num_cpus=0)
def double(value: int) -> int:
    return 2 * value


class TestThreadedActors:
    @pytest.mark.not_simulated("its calls wait for each other at a barrier of threads")
    def test_calls_run_at_once(self) -> None:
        threads = Threads.options(max_concurrency=2).remote()
        assert sorted(zray.get([threads.meet.remote() for _ in range(2)], timeout=PATIENCE_S)) == [0, 1]

    def test_each_call_makes_its_own_ids(self) -> None:
        threads = Threads.options(max_concurrency=4).remote()
        refs = [threads.submit.remote(number) for number in range(20)]
        assert zray.get(refs, timeout=PATIENCE_S) == [2 * number for number in range(20)]

    def test_a_full_group_delays_nobody_else(self, tmp_path: Path) -> None:
        threads = Threads.options(concurrency_groups={"io": 1}).remote()
        path = str(tmp_path / "go")
        slow, grouped = threads.slow.remote(path), threads.grouped.remote()
        assert zray.get(threads.free.remote(), timeout=PATIENCE_S) == "free"
        assert zray.wait([grouped], timeout=0.2) == ([], [grouped])
        Path(path).touch()
        assert zray.get(slow, timeout=PATIENCE_S) == path
        assert zray.get(grouped, timeout=PATIENCE_S).startswith("zray-actor")

    def test_a_call_may_choose_its_group(self, tmp_path: Path) -> None:
        threads = Threads.options(concurrency_groups={"io": 1, "other": 1}).remote()
        path = str(tmp_path / "go")
        slow = threads.slow.remote(path)
        moved = threads.grouped.options(concurrency_group="other").remote()
        assert zray.get(moved, timeout=PATIENCE_S)
        Path(path).touch()
        zray.get(slow, timeout=PATIENCE_S)

    def test_an_unknown_group_is_an_error_of_the_call(self) -> None:
        threads = Threads.remote()
        with pytest.raises(ValueError, match="concurrency group 'io'"):
            zray.get(threads.grouped.remote(), timeout=PATIENCE_S)


@zray.remote
class Named:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read(self) -> int:
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def own(self) -> Any:
        return zray.get_runtime_context().current_actor


@zray.remote
def read_by_name(name: str) -> int:
    return zray.get(zray.get_actor(name).read.remote())


class TestNames:
    def test_found_from_anywhere(self) -> None:
        named = Named.options(name="one").remote(7)
        assert zray.get(zray.get_actor("one").read.remote()) == 7
        assert zray.get(read_by_name.remote("one"), timeout=PATIENCE_S) == 7
        assert "one" in list_named_actors()
        assert {"namespace": "tests", "name": "one"} in list_named_actors(all_namespaces=True)
        del named

    def test_a_name_is_taken_once(self) -> None:
        first = Named.options(name="two").remote(1)
        with pytest.raises(ActorAlreadyExistsError, match="two"):
            Named.options(name="two").remote(2)
        same = Named.options(name="two", get_if_exists=True).remote(3)
        assert same == first
        assert zray.get(same.read.remote()) == 1

    def test_a_name_is_free_after_the_end(self) -> None:
        first = Named.options(name="three").remote(1)
        zray.kill(first)
        again = eventually(lambda: _try_to_make("three", 2), PATIENCE_S)
        assert zray.get(again.read.remote()) == 2

    def test_arguments_that_do_not_pickle_take_no_name(self) -> None:
        with pytest.raises(TypeError, match="lock"):
            Named.options(name="five").remote(threading.Lock())
        assert zray.get(Named.options(name="five").remote(5).read.remote()) == 5

    def test_a_detached_actor_needs_none(self) -> None:
        gate = Gate.options(lifetime="detached").remote()
        assert zray.get(gate.echo.remote(1), timeout=PATIENCE_S) == 1
        zray.kill(gate)

    def test_namespaces_are_apart(self) -> None:
        here = Named.options(name="four").remote(1)
        there = Named.options(name="four", namespace="elsewhere").remote(2)
        assert zray.get(zray.get_actor("four").read.remote()) == 1
        assert zray.get(zray.get_actor("four", namespace="elsewhere").read.remote()) == 2
        assert here != there

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ActorHandleNotFoundError, match="nobody"):
            zray.get_actor("nobody")
        with pytest.raises(ValueError, match="not empty"):
            zray.get_actor("")

    def test_an_actor_knows_itself(self) -> None:
        named = Named.remote(5)
        assert zray.get(zray.get(named.own.remote()).read.remote(), timeout=PATIENCE_S) == 5


def _try_to_make(name: str, value: int) -> Any:
    try:
        return Named.options(name=name).remote(value)
    except ActorAlreadyExistsError:
        return None


@zray.remote
class Mortal:
    """Counts its calls; remembers nothing across restarts."""

    def __init__(self, seed: Any = 0) -> None:
        self.seed = seed
        self.calls = 0

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def read_seed(self) -> Any:
        return self.seed

    def pid(self) -> int:
        return os.getpid()

    def was_restarted(self) -> bool:
        return zray.get_runtime_context().was_current_actor_reconstructed

    def die_once(self, path: str) -> str:
        if not os.path.exists(path):
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def wait_for(self, path: str) -> str:
        return str(eventually(lambda: os.path.exists(path) and path, PATIENCE_S))


class TestRestarts:
    def test_it_is_made_again_as_often_as_it_may(self) -> None:
        mortal = Mortal.options(max_restarts=2, max_task_retries=-1).remote()
        pids = []
        for _ in range(2):
            pids.append(zray.get(mortal.pid.remote(), timeout=PATIENCE_S))
            os.kill(pids[-1], signal.SIGKILL)
        pids.append(zray.get(mortal.pid.remote(), timeout=PATIENCE_S))
        assert len(dict.fromkeys(pids)) == 3
        assert zray.get(mortal.was_restarted.remote())
        os.kill(pids[-1], signal.SIGKILL)
        with pytest.raises(ActorDiedError, match="signal 9"):
            zray.get(mortal.pid.remote(), timeout=PATIENCE_S)

    def test_its_constructor_gets_the_same_arguments(self) -> None:
        seed = zray.put(b"s" * 500_000)
        mortal = Mortal.options(max_restarts=1, max_task_retries=1).remote(seed)
        del seed
        os.kill(zray.get(mortal.pid.remote()), signal.SIGKILL)
        assert zray.get(mortal.read_seed.remote(), timeout=PATIENCE_S) == b"s" * 500_000

    def test_a_call_that_may_be_repeated_is(self, tmp_path: Path) -> None:
        mortal = Mortal.options(max_restarts=1, max_task_retries=1).remote()
        assert zray.get(mortal.die_once.remote(str(tmp_path / "died")), timeout=PATIENCE_S) == "survived"

    def test_one_that_may_not_ends_and_later_ones_go_on(self, tmp_path: Path) -> None:
        mortal = Mortal.options(max_restarts=1).remote()
        with pytest.raises(ActorUnavailableError, match="restarted"):
            zray.get(mortal.die_once.remote(str(tmp_path / "died")), timeout=PATIENCE_S)
        assert zray.get(mortal.call.remote(), timeout=PATIENCE_S) == 1

    def test_repeated_calls_keep_their_order(self, tmp_path: Path) -> None:
        mortal = Mortal.options(max_restarts=1, max_task_retries=1).remote()
        died = mortal.die_once.remote(str(tmp_path / "died"))
        refs = [mortal.call.remote() for _ in range(20)]
        assert zray.get(died, timeout=PATIENCE_S) == "survived"
        assert zray.get(refs, timeout=PATIENCE_S) == list(range(1, 21))

    def test_kill_with_and_without_restart(self) -> None:
        mortal = Mortal.options(max_restarts=-1, max_task_retries=-1).remote()
        first = zray.get(mortal.pid.remote())
        zray.kill(mortal, no_restart=False)
        assert eventually(lambda: zray.get(mortal.pid.remote(), timeout=PATIENCE_S) != first, PATIENCE_S)
        zray.kill(mortal)  # calls that are faster than the word still run
        error = eventually(lambda: _error_of(mortal.pid.remote()), PATIENCE_S)
        assert isinstance(error, ActorDiedError)
        assert "zray.kill" in str(error)

    def test_pending_calls_are_bounded_if_wanted(self, tmp_path: Path) -> None:
        mortal = Mortal.options(max_pending_calls=2).remote()
        path = str(tmp_path / "go")
        refs = [mortal.wait_for.remote(path) for _ in range(2)]
        with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls"):
            mortal.call.remote()
        Path(path).touch()
        zray.get(refs, timeout=PATIENCE_S)
        assert zray.get(mortal.call.remote()) == 1


def _error_of(ref: Any) -> Exception | None:
    try:
        zray.get(ref, timeout=PATIENCE_S)
    except RayActorError as error:
        return error
    return None


@zray.remote
class Leaver:
    def __init__(self, path: str = "") -> None:
        if path:
            import atexit

            atexit.register(Path(path).touch)

    def leave(self) -> None:
        exit_actor()

    def exit(self, code: int | str) -> None:
        sys.exit(code)

    def call(self, seconds: float = 0.0) -> str:
        time.sleep(seconds)
        return "done"

    def call_until_go(self, path: str, pid: int) -> str:
        """Writes down whose call has begun, and waits until the test lets it end."""
        Path(path + "~").write_text(str(pid))
        os.rename(path + "~", path)
        eventually(Path(path).with_name("go").exists, PATIENCE_S)
        return "done"


@zray.remote
class CallerOfLeaver:
    def hear(self, leaver: Any, path: str) -> str:
        return zray.get(leaver.call_until_go.remote(path, os.getpid()))


class TestExitActor:
    def test_earlier_calls_end_and_later_ones_fail(self, tmp_path: Path) -> None:
        farewell = tmp_path / "farewell"
        leaver = Leaver.options(max_restarts=-1, max_task_retries=-1).remote(str(farewell))
        before = [leaver.call.remote() for _ in range(5)]
        left, after = leaver.leave.remote(), leaver.call.remote()
        assert zray.get(before, timeout=PATIENCE_S) == ["done"] * 5
        for ref in (left, after):
            with pytest.raises(RayActorError, match="exit_actor"):
                zray.get(ref, timeout=PATIENCE_S)
        eventually(farewell.exists, PATIENCE_S)

    def test_calls_of_other_threads_end_first(self) -> None:
        leaver = Leaver.options(max_concurrency=2).remote()
        running = leaver.call.remote(0.3)
        left = leaver.leave.remote()
        assert zray.get(running, timeout=PATIENCE_S) == "done"
        with pytest.raises(RayActorError):
            zray.get(left, timeout=PATIENCE_S)

    @pytest.mark.not_simulated("it stops processes")
    @pytest.mark.one_node("a caller of another node has its replies once its node has them")
    def test_it_is_there_until_its_callers_have_its_replies(self, tmp_path: Path) -> None:
        """Of two callers that are stopped one dies, and the other goes on: nobody waits for the dead one."""
        leaver = Leaver.options(max_concurrency=4).remote()
        callers = [CallerOfLeaver.remote() for _ in range(2)]
        begun = [tmp_path / "0", tmp_path / "1"]
        answers = [caller.hear.remote(leaver, str(path)) for caller, path in zip(callers, begun, strict=True)]
        for path in begun:
            eventually(path.exists, PATIENCE_S)
        pids = [int(path.read_text()) for path in begun]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        left = leaver.leave.remote()
        try:
            with pytest.raises(RayActorError, match="exit_actor"):
                zray.get(left, timeout=PATIENCE_S)
            (tmp_path / "go").touch()
            with pytest.raises(GetTimeoutError):  # its death would end this
                zray.get(leaver.call.remote(), timeout=0.15)
        finally:
            os.kill(pids[0], signal.SIGKILL)
            os.kill(pids[1], signal.SIGCONT)
        with pytest.raises(RayActorError, match="signal 9"):
            zray.get(answers[0], timeout=PATIENCE_S)
        assert zray.get(answers[1], timeout=PATIENCE_S) == "done"
        with pytest.raises(RayActorError, match="exit_actor"):
            zray.get(leaver.call.remote(), timeout=PATIENCE_S)

    def test_outside_an_actor_it_is_refused(self) -> None:
        with pytest.raises(TypeError, match="methods of an actor"):
            exit_actor()

    def test_exit_of_the_interpreter_in_success_ends_it_for_good(self, tmp_path: Path) -> None:
        farewell = tmp_path / "farewell"
        leaver = Leaver.options(max_restarts=1).remote(str(farewell))
        with pytest.raises(RayActorError, match=r"sys\.exit"):
            zray.get(leaver.exit.remote(0), timeout=PATIENCE_S)
        eventually(farewell.exists, PATIENCE_S)
        with pytest.raises(RayActorError, match=r"sys\.exit"):
            zray.get(leaver.call.remote(), timeout=PATIENCE_S)

    @pytest.mark.parametrize("code", [3, "a sentence"])
    def test_exit_of_the_interpreter_in_failure_is_a_crash(self, tmp_path: Path, code: int | str) -> None:
        farewell = tmp_path / "farewell"
        leaver = Leaver.options(max_restarts=1, max_task_retries=1).remote(str(farewell))
        with pytest.raises(RayActorError, match=f"exited with code {code if code == 3 else 1}"):
            zray.get(leaver.exit.remote(code), timeout=PATIENCE_S)  # it is made again once, and exits again
        assert farewell.exists()

    def test_a_coroutine_that_is_no_call_and_exits_leaves_no_call_waiting(self) -> None:
        class Background:
            async def start(self) -> None:
                self.task = asyncio.create_task(self.end())

            async def end(self) -> None:
                raise SystemExit(5)

            async def wait(self) -> None:
                await asyncio.Event().wait()

        actor = zray.remote(Background).remote()
        zray.get(actor.start.remote(), timeout=PATIENCE_S)
        with pytest.raises(RayActorError, match="exited with code 5"):
            zray.get(actor.wait.remote(), timeout=PATIENCE_S)


class Tidy:
    """Writes down how it ends."""

    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)

    def __ray_shutdown__(self) -> None:
        with open(self.path, "a") as notes:
            notes.write("shut down, ")

    def __del__(self) -> None:
        with open(self.path, "a") as notes:
            notes.write("deleted")


class AsyncTidy(Tidy):
    async def enter(self) -> None:
        pass

    async def __ray_shutdown__(self) -> None:
        await asyncio.sleep(0)
        super().__ray_shutdown__()


class TestShutdown:
    @pytest.mark.parametrize("kind", [Tidy, AsyncTidy])
    @pytest.mark.parametrize("how", ["no handle", "terminated"])
    def test_an_actor_that_ends_in_peace_is_told(self, tmp_path: Path, kind: type[Tidy], how: str) -> None:
        notes = tmp_path / "notes"
        actor = zray.remote(kind).remote(str(notes))
        zray.get(actor.call.remote(), timeout=PATIENCE_S)
        if how == "terminated":
            actor.__ray_terminate__.remote()
        else:
            del actor
        eventually(lambda: notes.exists() and notes.read_text() == "shut down, deleted", PATIENCE_S)

    def test_one_that_is_killed_is_not(self, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        actor = zray.remote(Tidy).remote(str(notes))
        zray.get(actor.call.remote(), timeout=PATIENCE_S)
        running = actor.call.remote(PATIENCE_S)
        zray.kill(actor)
        with pytest.raises(RayActorError, match="kill"):
            zray.get(running, timeout=PATIENCE_S)
        assert not notes.exists()


class Again(Exception):
    pass


class FlakyBase:
    def __init__(self) -> None:
        self.tries = 0

    @zray.method(max_task_retries=3, retry_exceptions=[Again])
    def fails_until(self, enough: int, error: type[Exception] = Again) -> int:
        self.tries += 1
        if self.tries < enough:
            raise error(self.tries)
        return self.tries

    def fails_at_once(self) -> None:
        self.tries += 1
        raise Again

    def tried(self) -> int:
        return self.tries


Flaky = zray.remote(FlakyBase)


@zray.remote
class FlakyInALoop(FlakyBase):
    @zray.method(max_task_retries=-1, retry_exceptions=True)
    async def awaits(self, enough: int) -> int:
        await asyncio.sleep(0)
        self.tries += 1
        if self.tries < enough:
            raise KeyError(self.tries)
        return int(self.tries)


class TestRetriesOfMethods:
    def test_only_what_was_said_and_no_more_often(self) -> None:
        actor = Flaky.remote()
        assert zray.get(actor.fails_until.remote(3), timeout=PATIENCE_S) == 3
        with pytest.raises(Again):
            zray.get(actor.fails_until.remote(100), timeout=PATIENCE_S)
        assert zray.get(actor.tried.remote()) == 3 + 4
        with pytest.raises(KeyError):
            zray.get(actor.fails_until.remote(100, KeyError), timeout=PATIENCE_S)
        with pytest.raises(Again):
            zray.get(actor.fails_at_once.remote(), timeout=PATIENCE_S)
        assert zray.get(actor.tried.remote()) == 3 + 4 + 2

    def test_of_a_coroutine(self) -> None:
        assert zray.get(FlakyInALoop.remote().awaits.remote(20), timeout=PATIENCE_S) == 20

    def test_what_makes_no_sense_is_refused(self) -> None:
        with pytest.raises(ValueError, match="say both"):
            zray.method(retry_exceptions=True)

        def makes_items(self: Any) -> Iterator[int]:
            yield 1

        with pytest.raises(ValueError, match="generator"):
            zray.method(retry_exceptions=True, max_task_retries=1)(makes_items)
        with pytest.raises(ValueError, match=r"@zray\.method"):
            Flaky.remote().tried.options(retry_exceptions=True)


class TestWhatEveryActorHas:
    @pytest.mark.parametrize("kind", [Flaky, FlakyInALoop])
    def test_whether_it_is_made_a_function_on_it_and_its_end(self, kind: Any) -> None:
        actor = kind.remote()
        assert zray.get(actor.__ray_ready__.remote(), timeout=PATIENCE_S) is True
        add = actor.__ray_call__.remote(lambda self, number: self.tries + number, 7)
        assert zray.get(add, timeout=PATIENCE_S) == 7
        last, end = actor.tried.remote(), actor.__ray_terminate__.remote()
        assert zray.get(last, timeout=PATIENCE_S) == 0
        with pytest.raises(ActorDiedError):
            zray.get(end, timeout=PATIENCE_S)
        with pytest.raises(ActorDiedError):
            zray.get(actor.tried.remote(), timeout=PATIENCE_S)
