"""What users get wrong: each mistake is an error at once, which says what is wrong; none is a hang."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zray
from tests.integration.programs import run_script
from zray.exceptions import (
    ActorDiedError,
    ActorHandleNotFoundError,
    ClusterUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    SerializationError,
    TaskError,
    ZrayError,
)
from zray.util import placement_group

PATIENCE_S = 20


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with zray.init(num_cpus=2):
        yield


def function(x: Any = None) -> Any:
    return x


class Plain:
    def method(self, x: Any = None) -> Any:
        return x


@pytest.fixture(scope="module")
def echo(cluster: None) -> Any:
    return zray.remote(function)


@pytest.fixture(scope="module")
def actor(cluster: None) -> Any:
    return zray.remote(Plain).remote()


class TestPickling:
    def test_of_arguments(self, echo: Any, actor: Any) -> None:
        for call in (echo.remote, actor.method.remote):
            with pytest.raises(SerializationError, match=r"\['locks'\]\[1\]") as caught:
                call({"locks": [1, threading.Lock()]})
            assert isinstance(caught.value, TypeError)
            with pytest.raises(SerializationError, match="x"):
                call(x=threading.Lock())
            assert zray.get(call("still works")) == "still works"

    def test_of_a_put(self) -> None:
        with pytest.raises(SerializationError, match=r"zray\.put"):
            zray.put([threading.Lock()])

    def test_of_a_function(self) -> None:
        lock = threading.Lock()

        @zray.remote
        def locked() -> None:
            lock.acquire()

        for _ in range(2):
            with pytest.raises(SerializationError, match="lock"):
                locked.remote()

    def test_of_a_class(self) -> None:
        lock = threading.Lock()

        @zray.remote
        class Locked:
            def method(self) -> None:
                lock.acquire()

        with pytest.raises(SerializationError, match="lock"):
            Locked.remote()

    def test_of_a_constructor_argument(self) -> None:
        @zray.remote
        class Taker:
            def __init__(self, thing: Any) -> None: ...

        with pytest.raises(SerializationError, match="thing"):
            Taker.remote(threading.Lock())

    def test_that_raises_anything(self, echo: Any) -> None:
        class Rude:
            def __reduce__(self) -> Any:
                raise ZeroDivisionError("rude")

        with pytest.raises(SerializationError, match="rude"):
            echo.remote(Rude())
        with pytest.raises(SerializationError, match="rude"):
            zray.put(Rude())

    def test_that_is_too_deep(self, echo: Any) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        try:
            with pytest.raises(SerializationError, match="deep"):
                echo.remote(deep)
        finally:
            while deep:
                deep = deep[0]
        assert zray.get(echo.remote(1)) == 1

    @pytest.mark.slow
    def test_of_functions_that_refer_to_much(self) -> None:
        """Several together may be larger than a frame, one alone may not."""
        done = run_script(
            """
            import zray

            zray.init(num_cpus=2)

            def make(size):
                ballast = bytes(size)

                def heavy():
                    return len(ballast)

                return zray.remote(heavy)

            several = [make(3_000_000 + i) for i in range(5)]
            assert zray.get([f.remote() for f in several], timeout=10) == [3_000_000 + i for i in range(5)]
            too_heavy = make(5_000_000)
            for _ in range(2):
                try:
                    too_heavy.remote()
                except ValueError as error:
                    assert "heavy" in str(error) and "put()" in str(error), error
                else:
                    raise AssertionError("accepted")
            print(zray.get([f.remote() for f in several], timeout=10)[0])
            """,
            ZRAY_FRAME_BYTES_MAX=str(8 << 20),
        )
        assert (done.stdout, done.returncode) == ("3000000\n", 0), done.stderr


BAD_TASK_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"no_such_option": 1}, ValueError),
    ({"num_cpu": 1}, ValueError),
    ({"num_cpus": -1}, ValueError),
    ({"num_cpus": "1"}, TypeError),
    ({"num_cpus": True}, TypeError),
    ({"num_cpus": math.nan}, ValueError),
    ({"num_cpus": math.inf}, ValueError),
    ({"num_cpus": 1e-7}, ValueError),
    ({"num_cpus": 10**30}, ValueError),
    ({"num_gpus": -0.5}, ValueError),
    ({"memory": "1GB"}, TypeError),
    ({"resources": 5}, TypeError),
    ({"resources": ["disk"]}, TypeError),
    ({"resources": {"disk": "1"}}, TypeError),
    ({"resources": {"disk": -1}}, ValueError),
    ({"resources": {"": 1}}, ValueError),
    ({"resources": {5: 1}}, TypeError),
    ({"resources": {"CPU": 1}}, ValueError),
    ({"num_returns": -1}, ValueError),
    ({"num_returns": 1.5}, TypeError),
    ({"num_returns": "2"}, TypeError),
    ({"num_returns": 1.5}, TypeError),
    ({"num_returns": True}, TypeError),
    ({"num_returns": 10**12}, ValueError),
    ({"max_retries": -2}, ValueError),
    ({"max_retries": 1.0}, TypeError),
    ({"max_retries": 10**30}, ValueError),
    ({"retry_exceptions": 1}, TypeError),
    ({"name": 5}, TypeError),
]
ACTOR_OPTIONS = ("num_cpus", "num_gpus", "memory", "resources", "no_such_option")
BAD_ACTOR_OPTIONS = [(o, e) for o, e in BAD_TASK_OPTIONS if next(iter(o)) in ACTOR_OPTIONS]


class TestOptions:
    @pytest.mark.parametrize(("options", "error"), BAD_TASK_OPTIONS, ids=str)
    def test_of_tasks(self, options: dict[str, Any], error: type[Exception], echo: Any) -> None:
        name = next(iter(options)).split("_")[-1].rstrip("s")
        with pytest.raises(error, match=f"(?i){name}|disk|name"):
            zray.remote(**options)(function)
        with pytest.raises(error):
            zray.remote(function, **options)
        with pytest.raises(error):
            echo.options(**options)

    @pytest.mark.parametrize(("options", "error"), BAD_ACTOR_OPTIONS, ids=str)
    def test_of_actors(self, options: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            zray.remote(**options)(Plain)
        with pytest.raises(error):
            zray.remote(Plain).options(**options)

    @pytest.mark.parametrize("options", [{"num_cpus": 1}, {"num_returns": "a"}, {"num_returns": -1}])
    def test_of_methods(self, options: dict[str, Any], actor: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            zray.method(**options)
        with pytest.raises((TypeError, ValueError)):
            actor.method.options(**options)

    def test_of_the_other_kind(self) -> None:
        with pytest.raises(ValueError, match="max_retries"):
            zray.remote(max_retries=1)(Plain)
        with pytest.raises(ValueError, match="num_returns"):
            zray.remote(Plain).options(num_returns=2)

    def test_the_decorator_itself(self, echo: Any) -> None:
        for thing in (5, "f", None, [function]):
            with pytest.raises(TypeError, match=r"zray\.remote"):
                zray.remote(thing)
        with pytest.raises(TypeError, match="parentheses"):
            zray.remote()
        with pytest.raises(TypeError, match="already"):
            zray.remote(echo)
        with pytest.raises(TypeError, match="already"):
            zray.remote(zray.remote(Plain))
        with pytest.raises(TypeError):
            zray.remote(function, 1)
        with pytest.raises(TypeError, match="takes a function or a class"):
            zray.remote(num_cpus=1)(5)

    def test_async_functions(self) -> None:
        async def comes_back() -> int:
            return 1

        async def yields() -> Any:
            yield 1

        for function in (comes_back, yields):
            with pytest.raises(ValueError, match=r"method of an actor, or call asyncio\.run"):
                zray.remote(function)

    def test_none_means_the_default(self) -> None:
        assert zray.get(zray.remote(resources=None, name=None)(function).remote(1)) == 1


class TestCalls:
    def test_directly(self, echo: Any, actor: Any) -> None:
        with pytest.raises(TypeError, match=r"function\.remote\(\)"):
            echo(1)
        with pytest.raises(TypeError, match=r"Plain\.remote\(\)"):
            zray.remote(Plain)()
        with pytest.raises(TypeError, match=r"method\.remote\(\)"):
            actor.method(1)
        with pytest.raises(TypeError, match=r"\.remote\(\)"):
            actor()

    def test_subclass_of_an_actor_class(self) -> None:
        base = zray.remote(Plain)
        with pytest.raises(TypeError):

            class Derived(base):  # type: ignore[misc, valid-type]
                pass

    @pytest.mark.parametrize("thing", [5, None, "ref", b"ref", {}, object(), function, iter([])])
    def test_get_of_what_is_no_ref(self, thing: Any) -> None:
        with pytest.raises(TypeError, match=r"zray\.get"):
            zray.get(thing)
        with pytest.raises(TypeError, match=r"zray\.get"):
            zray.get([zray.put(1), thing])

    def test_get_of_a_nested_list(self) -> None:
        with pytest.raises(TypeError, match=r"zray\.get"):
            zray.get([[zray.put(1)]])

    def test_get_of_a_generator_of_refs(self) -> None:
        @zray.remote
        def yields() -> Any:
            yield 1

        with pytest.raises(TypeError, match="iterate over it"):
            zray.get(yields.remote())

    def test_get_that_takes_too_long(self, echo: Any) -> None:
        with pytest.raises(GetTimeoutError, match=r"`zray why TASK` and `zray stack` say") as caught:
            zray.get(echo.options(num_cpus=0, resources={"no such": 1}).remote(), timeout=0)
        assert (caught.value.missing, caught.value.asked, caught.value.timeout_s) == (1, 1, 0)

    def test_get_of_an_actor_or_function(self, actor: Any, echo: Any) -> None:
        for thing in (actor, echo, actor.method):
            with pytest.raises(TypeError, match=r"zray\.get"):
                zray.get(thing)

    @pytest.mark.parametrize(
        ("timeout", "error"), [(-1, ValueError), ("1", TypeError), (True, TypeError), (math.nan, ValueError)]
    )
    def test_timeouts(self, timeout: Any, error: type[Exception]) -> None:
        ref = zray.put(1)
        with pytest.raises(error, match="timeout"):
            zray.get(ref, timeout=timeout)
        with pytest.raises(error, match="timeout"):
            zray.wait([ref], timeout=timeout)

    def test_timeouts_that_are_fine(self) -> None:
        ref = zray.put(1)
        for timeout in (0, 0.5, math.inf, 1e300, np.float64(1)):
            assert zray.get(ref, timeout=timeout) == 1
            assert zray.wait([ref], timeout=timeout) == ([ref], [])

    def test_a_wait_of_endless_timeout(self, echo: Any) -> None:
        for timeout in (math.inf, 1e300, 1e10):
            assert zray.get(echo.remote(1), timeout=timeout) == 1
            ref = echo.remote(2)
            assert zray.wait([ref], timeout=timeout) == ([ref], [])

    def test_wait(self) -> None:
        ref = zray.put(1)
        for bad in (ref, 5, None, "ref", {ref}, iter([ref])):
            with pytest.raises(TypeError, match=r"zray\.wait"):
                zray.wait(bad)
        with pytest.raises(TypeError, match=r"zray\.wait"):
            zray.wait([ref, 5])
        with pytest.raises(ValueError, match="once"):
            zray.wait([ref, ref])
        assert zray.wait([]) == ([], [])
        for number in (0, -1, 2):
            with pytest.raises(ValueError, match="num_returns"):
                zray.wait([ref], num_returns=number)
        for number in (1.0, "1", None, True):
            with pytest.raises(TypeError, match="num_returns"):
                zray.wait([ref], num_returns=number)

    def test_put_of_a_ref(self) -> None:
        with pytest.raises(TypeError, match="ObjectRef"):
            zray.put(zray.put(1))

    @pytest.mark.parametrize("thing", [5, None, "actor", Plain()])
    def test_kill_of_what_is_no_handle(self, thing: Any) -> None:
        with pytest.raises(TypeError, match="actor handle"):
            zray.kill(thing)

    def test_kill_of_a_ref_or_class(self, echo: Any) -> None:
        for thing in (zray.put(1), echo, zray.remote(Plain)):
            with pytest.raises(TypeError, match="actor handle"):
                zray.kill(thing)

    @pytest.mark.parametrize("name", ["a\0b", "n" * 1001])
    def test_names_that_nothing_can_have(self, name: str) -> None:
        plain = zray.remote(Plain)
        with pytest.raises(ValueError, match="name of an actor"):
            plain.options(name=name).remote()
        with pytest.raises(ValueError, match="name of an actor"):
            plain.options(name="a", namespace=name).remote()
        with pytest.raises(ValueError, match="name of an actor"):
            zray.get_actor(name)

    def test_a_name_that_no_placement_group_can_have(self) -> None:
        with pytest.raises(ValueError, match="name of a placement group"):
            placement_group([{"CPU": 1}], name="n" * 1001)

    def test_handles_and_refs_cannot_be_made_by_hand(self) -> None:
        with pytest.raises(TypeError):
            zray.ObjectRef()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            zray.ActorHandle()  # type: ignore[call-arg]

    def test_no_actor_of_that_name(self) -> None:
        with pytest.raises(ActorHandleNotFoundError, match=r"list_named_actors\(all_namespaces=True\)"):
            zray.get_actor("nobody")

    def test_options_of_init(self) -> None:
        with pytest.raises(TypeError, match=r"no option 'num_cpu'; there are: address, .*num_cpus") as caught:
            zray.init(num_cpu=1)
        assert "refused" not in str(caught.value)

    def test_init_twice(self) -> None:
        with pytest.raises(RuntimeError, match="twice"):
            zray.init()
        context = zray.init(ignore_reinit_error=True)
        assert context.address

    def test_init_and_shutdown_inside_a_task(self) -> None:
        @zray.remote
        def inner() -> str:
            zray.shutdown()
            try:
                zray.init()
            except RuntimeError as error:
                return str(error)
            return "a second cluster"

        @zray.remote
        def tolerant() -> tuple[str, bool]:
            return zray.init("auto", ignore_reinit_error=True).node_id, zray.is_initialized()

        assert zray.get(inner.remote()) != "a second cluster"
        assert zray.get(tolerant.remote()) == (zray.get_runtime_context().get_node_id(), True)
        assert zray.get(zray.remote(function).remote(2)) == 2


class TestHostileCode:
    def test_an_argument_that_ends_the_worker(self, echo: Any) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return os._exit, (9,)

        with pytest.raises(ZrayError, match="code 9"):
            zray.get(echo.options(max_retries=0).remote(Bomb()), timeout=PATIENCE_S)
        assert zray.get(echo.remote(1), timeout=PATIENCE_S) == 1

    def test_a_task_that_closes_descriptors(self, echo: Any) -> None:
        @zray.remote(max_retries=0)
        def vandal() -> None:
            os.closerange(3, 200)

        with pytest.raises(ZrayError):
            zray.get(vandal.remote(), timeout=PATIENCE_S)
        assert zray.get([echo.remote(i) for i in range(20)], timeout=PATIENCE_S) == list(range(20))

    def test_a_task_that_forks(self) -> None:
        @zray.remote
        def forking() -> int:
            pid = os.fork()
            if pid == 0:
                os._exit(3)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        assert zray.get(forking.remote(), timeout=PATIENCE_S) == 3

    def test_a_task_that_uses_multiprocessing(self) -> None:
        @zray.remote
        def parallel() -> list[int]:
            import multiprocessing

            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(abs, [-1, -2, -3])

        assert zray.get(parallel.remote(), timeout=PATIENCE_S) == [1, 2, 3]

    def test_an_equality_that_raises(self, echo: Any) -> None:
        class Touchy:
            def __eq__(self, other: object) -> bool:
                raise RuntimeError("do not compare me")

            __hash__ = None  # type: ignore[assignment]

            def __bool__(self) -> bool:
                raise RuntimeError("do not ask me")

        assert type(zray.get(echo.remote(Touchy()))).__name__ == "Touchy"
        assert type(zray.get(zray.put([Touchy()]))[0]).__name__ == "Touchy"

    @pytest.mark.slow
    def test_destructors_that_use_the_api(self) -> None:
        """The collector may run them in the middle of the runtime: then they fail, and nothing hangs."""
        done = run_script(
            """
            import faulthandler, gc, random
            import zray

            faulthandler.dump_traceback_later(30, exit=True)
            zray.init(num_cpus=2)

            @zray.remote
            def echo(x):
                return x

            @zray.remote
            class Actor:
                def method(self):
                    return 1

            actor = Actor.remote()
            zray.get([actor.method.remote(), zray.put(1)])
            refused = finished = 0

            class Farewell:
                def __del__(self):
                    global refused, finished
                    try:
                        zray.get([actor.method.remote(), zray.put(1)])
                        finished += 1
                    except zray.exceptions.ZrayError as error:
                        assert "destructor" in str(error)
                        refused += 1

            chance = random.Random(3)
            for i in range(1_500):
                gc.set_threshold(chance.randrange(5, 400))
                cycle = [Farewell()]
                cycle.append(cycle)
                del cycle
                assert zray.get([echo.remote([j]) for j in range(10)]) == [[j] for j in range(10)]
            gc.collect()
            assert refused + finished == 1_500 and refused and finished, (refused, finished)
            print("fine")
            """
        )
        assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr

    def test_recursion_without_end(self) -> None:
        @zray.remote
        def down(n: int) -> int:
            return down.__wrapped__(n + 1) + 1

        with pytest.raises(RecursionError) as caught:
            zray.get(down.remote(0), timeout=PATIENCE_S)
        assert isinstance(caught.value, TaskError)


def test_names_that_the_errors_have() -> None:
    assert issubclass(ActorDiedError, zray.exceptions.RayActorError)
    assert issubclass(ClusterUnavailableError, ConnectionError)
    assert issubclass(ObjectLostError, zray.exceptions.RayError)
    assert time.monotonic() > 0
