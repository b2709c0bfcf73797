"""Actors from end to end: state, order, handles, values, errors and ends."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import zray
from tests import conformance
from tests.support import eventually
from zray.api import session
from zray.api.cluster import report
from zray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, SerializationError, TaskError

PATIENCE_S = 30
LARGE = 100_000


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2, resources={"slot": 1}):
        yield


@pytest.fixture(autouse=True)
def every_actor_ends(cluster: None) -> Iterator[None]:
    """An actor of a test is gone once the test's handles are."""
    yield
    gc.collect()
    eventually(lambda: not actor_processes(), 5.0, "that actors without a handle end")


def actor_processes() -> list[int]:
    workers = report("workers")
    return [worker["pid"] for worker in workers if worker["actor_id"] is not None]


@zray.remote
class Counter:
    """Counts; keeps a log of what it was told."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.value, self.step = start, step
        self.log: list[Any] = []

    def next(self) -> int:
        self.value += self.step
        return self.value

    def append(self, *items: Any) -> None:
        self.log.extend(items)

    def read(self) -> list[Any]:
        return self.log

    def pid(self) -> int:
        return os.getpid()

    def fail(self, error: BaseException) -> None:
        raise error

    def wait_for(self, path: str) -> str:
        return eventually(lambda: os.path.exists(path) and path, PATIENCE_S)

    @zray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, self.step

    @zray.method(num_returns=0)
    def touch(self, path: str) -> None:
        Path(path).touch()

    @staticmethod
    def static(x: int) -> int:
        return x + 1

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    def __call__(self, x: int) -> int:
        return x * 2

    def __getitem__(self, key: str) -> str:
        return key * 2

    @zray.method
    def keywords(self, /, **kwargs: int) -> dict[str, int]:
        return kwargs


@zray.remote
def echo(value: Any = None) -> Any:
    return value


class TestCalls:
    def test_state(self) -> None:
        counter = Counter.remote()
        assert zray.get([counter.next.remote() for _ in range(5)]) == [1, 2, 3, 4, 5]

    def test_constructor_arguments(self) -> None:
        assert zray.get(Counter.remote(10, step=5).next.remote()) == 15
        assert zray.get(Counter.remote(zray.put(20), step=echo.remote(2)).next.remote()) == 22
        with pytest.raises(TypeError, match="Counter"):
            Counter.remote(1, 2, 3)
        with pytest.raises(TypeError, match="wrong"):
            Counter.remote(wrong=1)

    def test_two_instances_are_two(self) -> None:
        one, two = Counter.remote(), Counter.remote()
        assert zray.get(one.pid.remote()) != zray.get(two.pid.remote())
        zray.get(one.next.remote())
        assert zray.get(two.next.remote()) == 1

    def test_every_kind_of_method(self) -> None:
        counter = Counter.remote(7)
        assert zray.get(counter.static.remote(1)) == 2
        assert zray.get(counter.name.remote()) == "Counter"
        assert zray.get(counter.__call__.remote(4)) == 8
        assert zray.get(counter.__getitem__.remote("a")) == "aa"
        assert zray.get(counter.keywords.remote(self=1, args=2)) == {"self": 1, "args": 2}
        with pytest.raises(TypeError, match="by keyword"):
            zray.method(1)  # type: ignore[call-overload]

    def test_num_returns(self, tmp_path: Path) -> None:
        counter = Counter.remote(7)
        assert zray.get(counter.pair.remote()) == [7, 1]
        assert zray.get(counter.pair.options(num_returns=1).remote()) == (7, 1)
        assert zray.get(counter.read.options(num_returns=0).remote() or zray.put("none")) == "none"
        assert counter.touch.remote(str(tmp_path / "there")) is None
        eventually((tmp_path / "there").exists)
        for ref in counter.next.options(num_returns=3).remote():
            with pytest.raises(ValueError, match="num_returns=3"):
                zray.get(ref)

    def test_arguments_of_every_kind(self) -> None:
        counter = Counter.remote()
        small, large = zray.put("small"), zray.put(np.arange(LARGE))
        counter.append.remote(1, small, echo.remote("task"), large, np.ones(LARGE), [small])
        one, two, task, array, ones, nested = zray.get(counter.read.remote())
        assert (one, two, task) == (1, "small", "task")
        assert np.array_equal(array, np.arange(LARGE))
        assert ones.sum() == LARGE
        assert zray.get(nested[0]) == "small"

    def test_large_results(self) -> None:
        @zray.remote
        class Maker:
            def make(self, size: int) -> Any:
                return np.ones(size)

        maker = Maker.remote()
        refs = [maker.make.remote(size) for size in (10, LARGE, 10 * LARGE)]
        assert [len(array) for array in zray.get(refs)] == [10, LARGE, 10 * LARGE]

    def test_inheritance_and_closure(self) -> None:
        offset = 100

        class Base:
            def base(self) -> int:
                return offset

        class Derived(Base):
            def derived(self) -> int:
                return super().base() + 1

        actor = zray.remote(Derived).remote()
        assert zray.get([actor.base.remote(), actor.derived.remote()]) == [100, 101]

    def test_class_options(self) -> None:
        @zray.remote(num_cpus=1, resources={"slot": 1})
        class Holder:
            def have(self) -> dict[str, float]:
                return zray.available_resources()

        holder = Holder.remote()
        assert "slot" not in zray.get(holder.have.remote())
        second = Holder.options(num_cpus=0).remote()
        with pytest.raises(GetTimeoutError):
            zray.get(second.have.remote(), timeout=0.05)
        del holder
        assert "slot" not in zray.get(second.have.remote(), timeout=PATIENCE_S)

    def test_properties_and_unknown_methods(self) -> None:
        counter = Counter.remote()
        with pytest.raises(AttributeError, match="no method 'nothing'"):
            counter.nothing.remote()
        with pytest.raises(AttributeError):
            counter._private.remote()
        with pytest.raises(TypeError, match=r"\.remote\(\)"):
            counter.next()

    def test_wrong_arguments_of_a_method(self) -> None:
        counter = Counter.remote()
        with pytest.raises(TypeError, match="next"):
            zray.get(counter.next.remote(1, 2))
        with pytest.raises(SerializationError, match="lock"):
            counter.append.remote(threading.Lock())
        assert zray.get(counter.next.remote()) == 1

    def test_results_that_do_not_pickle(self) -> None:
        @zray.remote
        class Odd:
            def lock(self) -> Any:
                return [threading.Lock()]

        with pytest.raises(SerializationError, match=r"value\[0\]"):
            zray.get(Odd.remote().lock.remote())


class TestOrder:
    def test_of_a_thousand_calls(self) -> None:
        counter = Counter.remote()
        for i in range(1_000):
            counter.append.remote(i)
        assert zray.get(counter.read.remote()) == list(range(1_000))

    def test_of_calls_made_before_it_lives(self) -> None:
        counter = Counter.remote(echo.remote(0))
        for i in range(100):
            counter.append.remote(i)
        assert zray.get(counter.read.remote(), timeout=PATIENCE_S) == list(range(100))

    def test_of_arguments_that_are_late(self, tmp_path: Path) -> None:
        counter = Counter.remote()

        @zray.remote(num_cpus=0)
        def late() -> str:
            eventually((tmp_path / "go").exists, PATIENCE_S)
            return "late"

        counter.append.remote(late.remote())
        counter.append.remote("after")
        counter.append.remote(np.zeros(LARGE).sum())
        (tmp_path / "go").touch()
        assert zray.get(counter.read.remote(), timeout=PATIENCE_S) == ["late", "after", 0]

    def test_of_each_caller(self) -> None:
        counter = Counter.remote()

        @zray.remote
        def call(name: str, target: Any) -> None:
            for i in range(300):
                target.append.remote((name, i))
            zray.get(target.next.remote())

        done = [call.remote("a", counter), call.remote("b", counter)]
        for i in range(300):
            counter.append.remote(("driver", i))
        zray.get(done, timeout=PATIENCE_S)
        log = zray.get(counter.read.remote())
        for name in ("a", "b", "driver"):
            assert [i for who, i in log if who == name] == list(range(300))

    def test_of_each_thread(self) -> None:
        counter = Counter.remote()

        def work(number: int) -> None:
            for i in range(200):
                counter.append.remote((number, i))
                if i % 50 == 0:
                    assert zray.get(counter.next.remote(), timeout=PATIENCE_S)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        log = zray.get(counter.read.remote())
        for number in range(8):
            assert [i for who, i in log if who == number] == list(range(200))


class TestHandles:
    def test_to_tasks(self) -> None:
        counter = Counter.remote()

        @zray.remote
        def count(target: Any) -> int:
            return zray.get(target.next.remote())

        assert sorted(zray.get([count.remote(counter) for _ in range(10)])) == list(range(1, 11))

    def test_inside_values(self) -> None:
        counter = Counter.remote()

        @zray.remote
        def count(box: dict[str, list[Any]]) -> int:
            return zray.get(box["actors"][0].next.remote())

        assert zray.get(count.remote({"actors": [counter]})) == 1
        stored = zray.put([counter])
        assert zray.get(count.remote({"actors": zray.get(stored)})) == 2

    def test_returned_by_a_task(self) -> None:
        @zray.remote
        def make() -> Any:
            counter = Counter.remote(5)
            zray.get(counter.next.remote())
            return counter

        counter = zray.get(make.remote())
        assert zray.get(counter.next.remote(), timeout=PATIENCE_S) == 7

    def test_returned_before_it_lives(self) -> None:
        @zray.remote
        def make() -> list[Any]:
            return [Counter.remote(5)]

        (counter,) = zray.get(make.remote())
        gc.collect()
        assert zray.get(counter.next.remote(), timeout=PATIENCE_S) == 6

    def test_actor_calls_actor(self) -> None:
        @zray.remote
        class Caller:
            def __init__(self, target: Any) -> None:
                self.target = target

            def call(self) -> int:
                return zray.get(self.target.next.remote()) * 10

            def forward(self) -> Any:
                return self.target.next.remote()

        counter = Counter.remote()
        caller = Caller.remote(counter)
        assert zray.get(caller.call.remote()) == 10
        assert zray.get(zray.get(caller.forward.remote())) == 2
        del counter
        gc.collect()
        assert zray.get(caller.call.remote()) == 30

    def test_actors_that_call_each_other(self) -> None:
        @zray.remote
        class Node:
            def __init__(self) -> None:
                self.peer: Any = None

            def meet(self, peer: Any) -> None:
                self.peer = peer

            def ping(self, depth: int) -> int:
                return depth

            def ask(self, depth: int) -> int:
                return zray.get(self.peer.ping.remote(depth)) + 1

            def part(self) -> None:
                self.peer = None

        one, two = Node.remote(), Node.remote()
        zray.get([one.meet.remote(two), two.meet.remote(one)])
        assert zray.get([one.ask.remote(1), two.ping.remote(2)], timeout=PATIENCE_S) == [2, 2]
        zray.get([one.part.remote(), two.part.remote()])

    def test_its_own_handle(self) -> None:
        @zray.remote
        class Loner:
            def learn(self, me: Any) -> None:
                self.me = me

            def later(self) -> Any:
                return [self.me.answer.remote()]

            def answer(self) -> int:
                return 42

            def forget(self) -> None:
                self.me = None

        loner = Loner.remote()
        zray.get(loner.learn.remote(loner))
        (ref,) = zray.get(loner.later.remote())
        assert zray.get(ref, timeout=PATIENCE_S) == 42
        zray.get(loner.forget.remote())

    def test_equality_and_repr(self) -> None:
        one, two = Counter.remote(), Counter.remote()
        same = zray.get(echo.remote(one))
        assert same == one
        assert hash(same) == hash(one)
        assert one != two
        assert "Counter" in repr(one)


class TestPromises:
    """The ref of a call that has no reply yet goes to others."""

    def test_to_a_task(self, tmp_path: Path) -> None:
        counter = Counter.remote()
        ref = counter.wait_for.remote(str(tmp_path / "go"))
        result = echo.remote(ref)
        assert zray.wait([result], timeout=0.02) == ([], [result])
        (tmp_path / "go").touch()
        assert zray.get(result, timeout=PATIENCE_S) == str(tmp_path / "go")

    def test_to_another_actor(self, tmp_path: Path) -> None:
        one, two = Counter.remote(), Counter.remote()
        two.append.remote(one.wait_for.remote(str(tmp_path / "go")))
        read = two.read.remote()
        (tmp_path / "go").touch()
        assert zray.get(read, timeout=PATIENCE_S) == [str(tmp_path / "go")]

    def test_to_the_same_actor(self) -> None:
        counter = Counter.remote()
        counter.append.remote(counter.next.remote(), counter.next.remote())
        assert zray.get(counter.read.remote(), timeout=PATIENCE_S) == [1, 2]

    def test_nested_in_an_argument(self, tmp_path: Path) -> None:
        @zray.remote
        def look(refs: list[Any]) -> Any:
            (tmp_path / "go").touch()
            return zray.get(refs[0], timeout=PATIENCE_S)

        counter = Counter.remote()
        result = look.remote([counter.wait_for.remote(str(tmp_path / "go"))])
        assert zray.get(result, timeout=PATIENCE_S) == str(tmp_path / "go")

    def test_while_the_driver_does_nothing(self, tmp_path: Path) -> None:
        """The reply reaches the task although its caller makes no further call."""

        @zray.remote
        def report_back(value: str) -> None:
            (tmp_path / "got").write_text(value)

        counter = Counter.remote()
        report_back.remote(counter.wait_for.remote(str(tmp_path / "go")))
        threading.Event().wait(0.4)  # until the background thread of this process has gone to sleep
        (tmp_path / "go").touch()
        eventually((tmp_path / "got").exists, 2.0)

    def test_large_and_failed_ones(self) -> None:
        counter = Counter.remote()
        assert zray.get(echo.remote(counter.read.remote()), timeout=PATIENCE_S) == []
        with pytest.raises(ValueError, match="failed"):
            zray.get(echo.remote(counter.fail.remote(ValueError("failed"))), timeout=PATIENCE_S)
        counter.append.remote(np.ones(LARGE))
        assert zray.get(echo.remote(counter.read.remote()), timeout=PATIENCE_S)[0].sum() == LARGE

    def test_of_an_actor_that_dies(self, tmp_path: Path) -> None:
        counter = Counter.remote()
        result = echo.remote(counter.wait_for.remote(str(tmp_path / "never")))
        zray.kill(counter)
        with pytest.raises(ActorDiedError):
            zray.get(result, timeout=PATIENCE_S)

    def test_dropped_before_the_reply(self) -> None:
        counter = Counter.remote()
        for _ in range(200):
            echo.remote(counter.next.remote())
        assert zray.get(counter.next.remote(), timeout=PATIENCE_S) == 201


class TestNestedResults:
    def test_refs_in_results(self) -> None:
        @zray.remote
        class Source:
            def make(self) -> list[Any]:
                return [zray.put(1), zray.put(np.ones(LARGE)), echo.remote(3), [zray.put([zray.put(4)])]]

        source = Source.remote()
        for _ in range(20):
            one, ones, three, (outer,) = zray.get(source.make.remote())
            assert zray.get(one, timeout=PATIENCE_S) == 1
            assert zray.get(ones, timeout=PATIENCE_S).sum() == LARGE
            assert zray.get(three, timeout=PATIENCE_S) == 3
            assert zray.get(zray.get(outer, timeout=PATIENCE_S)[0], timeout=PATIENCE_S) == 4

    def test_refs_in_results_of_an_actor_that_is_gone(self) -> None:
        @zray.remote
        class Source:
            def make(self) -> list[Any]:
                return [zray.put(1), zray.put(np.ones(LARGE))]

        source = Source.remote()
        refs = zray.get(source.make.remote())
        pid = actor_processes()[0]
        del source
        eventually(lambda: not psutil.pid_exists(pid))
        one, ones = zray.get(refs, timeout=PATIENCE_S)
        assert (one, ones.sum()) == (1, LARGE)

    def test_ref_of_a_result_that_is_passed_on(self) -> None:
        counter = Counter.remote()
        refs = [counter.next.remote() for _ in range(10)]
        assert zray.get([echo.remote(ref) for ref in refs]) == list(range(1, 11))
        assert zray.get(zray.get(echo.remote([refs]))[0]) == list(range(1, 11))


class TestErrors:
    def test_do_not_kill_it(self) -> None:
        counter = Counter.remote()
        for error in (ValueError("v"), KeyError("k"), MemoryError("m"), KeyboardInterrupt()):
            with pytest.raises(TaskError, match=type(error).__name__) as caught:
                zray.get(counter.fail.remote(error))
            assert isinstance(caught.value.cause, type(error))
            assert "Counter.fail" in str(caught.value)
        assert zray.get(counter.next.remote()) == 1

    def test_of_an_argument(self) -> None:
        counter = Counter.remote()

        @zray.remote
        def failing() -> None:
            raise LookupError("argument")

        ref = counter.append.remote(failing.remote())
        with pytest.raises(LookupError, match="argument"):
            zray.get(ref, timeout=PATIENCE_S)
        assert zray.get(counter.read.remote()) == []

    def test_of_the_constructor(self) -> None:
        @zray.remote
        class Broken:
            def __init__(self) -> None:
                raise ValueError("cannot be made")

            def method(self) -> None: ...

        broken = Broken.remote()
        for _ in range(3):
            with pytest.raises(ActorDiedError, match="cannot be made") as caught:
                zray.get(broken.method.remote(), timeout=PATIENCE_S)
            assert isinstance(caught.value, RayActorError)
            assert isinstance(caught.value.cause, ValueError)
            assert "test_actors.py" in str(caught.value)

    def test_of_an_argument_of_the_constructor(self) -> None:
        @zray.remote
        def failing() -> int:
            raise LookupError("argument")

        counter = Counter.remote(failing.remote())
        for _ in range(2):
            with pytest.raises((ActorDiedError, LookupError), match="argument"):
                zray.get(counter.next.remote(), timeout=PATIENCE_S)

    def test_of_a_constructor_that_ends_the_process(self) -> None:
        @zray.remote
        class Gone:
            def __init__(self) -> None:
                os._exit(4)

            def method(self) -> None: ...

        with pytest.raises(ActorDiedError, match="code 4"):
            zray.get(Gone.remote().method.remote(), timeout=PATIENCE_S)


class TestEnds:
    def test_kill(self, tmp_path: Path) -> None:
        counter = Counter.remote()
        pid = zray.get(counter.pid.remote())
        pending = [counter.wait_for.remote(str(tmp_path / "never")), counter.next.remote()]
        zray.kill(counter)
        for ref in [*pending, counter.next.remote(), counter.append.remote(zray.put(1))]:
            with pytest.raises(ActorDiedError, match=r"zray\.kill"):
                zray.get(ref, timeout=PATIENCE_S)
        eventually(lambda: not psutil.pid_exists(pid))
        zray.kill(counter)

    def test_kill_before_it_lives(self, tmp_path: Path) -> None:
        @zray.remote(num_cpus=0)
        def never() -> int:
            eventually((tmp_path / "go").exists, PATIENCE_S)
            return 0

        counter = Counter.remote(never.remote())
        ref = counter.next.remote()
        zray.kill(counter)
        with pytest.raises(ActorDiedError):
            zray.get(ref, timeout=PATIENCE_S)
        (tmp_path / "go").touch()

    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_death_of_the_process(self, how: str, tmp_path: Path) -> None:
        @zray.remote
        class Mortal:
            def die(self) -> None:
                os._exit(3)

            def pid(self) -> int:
                return os.getpid()

        mortal = Mortal.remote()
        pid = zray.get(mortal.pid.remote())
        if how == "exit":
            with pytest.raises(ActorDiedError, match="code 3"):
                zray.get(mortal.die.remote(), timeout=PATIENCE_S)
        else:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDiedError, match=r"code 3|signal 9"):
            zray.get(mortal.pid.remote(), timeout=PATIENCE_S)
        with pytest.raises(ActorDiedError):
            zray.get(zray.get(echo.remote([mortal]))[0].pid.remote(), timeout=PATIENCE_S)

    def test_death_is_seen_by_every_caller(self) -> None:
        counter = Counter.remote()

        @zray.remote
        def caller(target: Any) -> str:
            try:
                while True:
                    zray.get(target.next.remote())
            except ActorDiedError:
                return "saw it"

        seen = [caller.remote(counter) for _ in range(2)]
        eventually(lambda: zray.get(counter.next.remote()) > 10)
        zray.kill(counter)
        assert zray.get(seen, timeout=PATIENCE_S) == ["saw it"] * 2

    def test_without_a_handle(self) -> None:
        counter = Counter.remote()
        pid = zray.get(counter.pid.remote())
        del counter
        eventually(lambda: not psutil.pid_exists(pid))

    def test_nothing_is_kept_of_it_then(self) -> None:
        calls = session.current().calls
        counter = Counter.remote()
        zray.get(counter.next.remote())
        actor_id = counter._actor_id
        assert actor_id in calls.callees
        del counter
        eventually(lambda: actor_id not in calls.callees)

    def test_without_a_handle_and_a_quiet_driver(self) -> None:
        counter = Counter.remote()
        pid = zray.get(counter.pid.remote())
        threading.Event().wait(0.4)  # until the background thread of this process has gone to sleep
        del counter
        eventually(lambda: not psutil.pid_exists(pid), 2.0)

    def test_without_a_handle_after_its_calls(self, tmp_path: Path) -> None:
        counter = Counter.remote()
        for i in range(50):
            counter.append.remote(i)
        counter.wait_for.remote(str(tmp_path / "go"))
        last = counter.read.remote()
        counter.touch.remote(str(tmp_path / "the last"))
        del counter
        gc.collect()
        (tmp_path / "go").touch()
        assert zray.get(last, timeout=PATIENCE_S) == list(range(50))
        eventually((tmp_path / "the last").exists)

    def test_chained_on_a_temporary_handle(self) -> None:
        assert zray.get(Counter.remote(41).next.remote(), timeout=PATIENCE_S) == 42

    def test_that_nobody_ever_calls(self, tmp_path: Path) -> None:
        @zray.remote
        class Maker:
            def __init__(self, path: Path) -> None:
                path.touch()

        Maker.remote(tmp_path / "made")
        eventually((tmp_path / "made").exists)

    def test_many(self) -> None:
        actors = [Counter.remote(i) for i in range(12)]
        assert zray.get([actor.next.remote() for actor in actors], timeout=PATIENCE_S) == list(range(1, 13))

    def test_a_handle_held_by_a_task_only(self, tmp_path: Path) -> None:
        @zray.remote
        def use_later(target: Any) -> int:
            eventually((tmp_path / "go").exists)
            return zray.get(target.next.remote())

        result = use_later.remote(Counter.remote(1))
        gc.collect()
        zray.get(echo.remote())
        (tmp_path / "go").touch()
        assert zray.get(result, timeout=PATIENCE_S) == 2
