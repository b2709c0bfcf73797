"""The helpers of ``zray.util``, the module paths, and Ray's names."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import zray
from tests import conformance
from zray.exceptions import RayActorError
from zray.util import (
    ActorPool,
    as_completed,
    deregister_serializer,
    map_unordered,
    register_serializer,
    state,
)
from zray.util.multiprocessing import Pool, TimeoutError
from zray.util.queue import Empty, Full, Queue

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@zray.remote
def double(value: Any) -> Any:
    return value * 2


@zray.remote
class Doubler:
    def double(self, value: Any) -> Any:
        return value * 2

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def fail(self, value: Any) -> None:
        raise KeyError(value)


def call(actor: Any, value: Any) -> Any:
    return actor.double.remote(value)


class TestActorPool:
    def test_map_keeps_the_order(self) -> None:
        pool = ActorPool([Doubler.remote() for _ in range(2)])
        assert list(pool.map(call, range(10))) == [2 * i for i in range(10)]
        assert sorted(pool.map_unordered(call, range(10))) == [2 * i for i in range(10)]

    def test_submit_and_get_next(self) -> None:
        pool = ActorPool([Doubler.remote()])
        for value in range(3):
            pool.submit(call, value)
        assert pool.has_next()
        assert [pool.get_next() for _ in range(3)] == [0, 2, 4]
        assert not pool.has_next()
        with pytest.raises(StopIteration):
            pool.get_next()

    def test_both_ways_mixed(self) -> None:
        pool = ActorPool([Doubler.remote() for _ in range(2)])
        for value in range(6):
            pool.submit(call, value)
        found = [pool.get_next_unordered(), pool.get_next(), pool.get_next_unordered()]
        found += [pool.get_next() for _ in range(3)]
        assert sorted(found) == [0, 2, 4, 6, 8, 10]

    def test_a_timeout_loses_nothing(self) -> None:
        pool = ActorPool([Doubler.remote()])
        pool.submit(lambda actor, value: actor.sleep.remote(value), 0.3)
        with pytest.raises(builtins_timeout()):
            pool.get_next(timeout=0.01)
        assert pool.get_next(timeout=PATIENCE_S) == 0.3

    def test_an_error_frees_its_actor(self) -> None:
        pool = ActorPool([Doubler.remote()])
        pool.submit(lambda actor, value: actor.fail.remote(value), 1)
        pool.submit(call, 2)
        with pytest.raises(KeyError):
            pool.get_next()
        assert pool.get_next() == 4

    def test_push_and_pop(self) -> None:
        first, second = Doubler.remote(), Doubler.remote()
        pool = ActorPool([first])
        with pytest.raises(ValueError, match="already"):
            pool.push(first)
        pool.push(second)
        assert pool.has_free()
        assert pool.pop_idle() == first
        assert pool.pop_idle() == second
        assert pool.pop_idle() is None


def builtins_timeout() -> type[Exception]:
    import builtins

    return builtins.TimeoutError


class TestIteration:
    @pytest.mark.parametrize("chunk_size", [1, 3, 100])
    def test_as_completed(self, chunk_size: int) -> None:
        refs = [double.remote(i) for i in range(20)]
        assert sorted(as_completed(refs, chunk_size=chunk_size)) == [2 * i for i in range(20)]
        assert sorted(zray.get(list(as_completed(refs, yield_obj_refs=True)))) == [2 * i for i in range(20)]

    def test_map_unordered(self) -> None:
        found = map_unordered(double, iter(range(50)), backpressure_size=10)
        assert sorted(found) == [2 * i for i in range(50)]
        with pytest.raises(ValueError, match="chunk_size"):
            list(map_unordered(double, [1], chunk_size=0))


class TestQueue:
    def test_first_in_first_out(self) -> None:
        queue = Queue()
        for item in range(5):
            queue.put(item)
        assert (len(queue), queue.empty(), queue.full()) == (5, False, False)
        assert [queue.get() for _ in range(5)] == list(range(5))
        assert queue.empty()

    def test_bounds(self) -> None:
        queue = Queue(maxsize=2)
        queue.put_nowait_batch([1, 2])
        assert queue.full()
        with pytest.raises(Full):
            queue.put_nowait(3)
        with pytest.raises(Full):
            queue.put(3, timeout=0.01)
        assert queue.get_nowait_batch(2) == [1, 2]
        for failing in (queue.get_nowait, lambda: queue.get(timeout=0.01), lambda: queue.get_nowait_batch(1)):
            with pytest.raises(Empty):
                failing()
        with pytest.raises(ValueError, match="negative"):
            queue.get(timeout=-1)

    def test_a_getter_waits_for_a_putter(self) -> None:
        queue = Queue()

        @zray.remote
        def take(queue: Queue) -> Any:
            return queue.get(timeout=PATIENCE_S)

        ref = take.remote(queue)
        queue.put("item")
        assert zray.get(ref) == "item"

    def test_from_coroutines(self) -> None:
        async def both(queue: Queue) -> Any:
            _, item = await asyncio.gather(queue.put_async(7), queue.get_async(timeout=PATIENCE_S))
            return item

        assert asyncio.run(both(Queue())) == 7

    def test_shutdown(self) -> None:
        queue = Queue()
        queue.shutdown()
        with pytest.raises(RayActorError):
            queue.get()


def square(value: int) -> int:
    return value * value


def add(one: int, two: int = 10) -> int:
    return one + two


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def pool_variable(_: int) -> str | None:
    return os.environ.get("POOL_TEST")


def fail(value: int) -> None:
    raise KeyError(value)


class TestPool:
    def test_every_way_to_call(self) -> None:
        with Pool(2) as pool:
            assert pool.apply(add, (1,), {"two": 2}) == 3
            assert pool.map(square, range(20)) == [i * i for i in range(20)]
            assert pool.starmap(add, [(1, 2), (3,)]) == [3, 13]
            assert list(pool.imap(square, range(5))) == [0, 1, 4, 9, 16]
            assert sorted(pool.imap_unordered(square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]
            assert pool.map(square, []) == []

    def test_async_results(self) -> None:
        told: list[Any] = []
        called = threading.Event()
        with Pool(2) as pool:
            result = pool.map_async(square, [2, 3], callback=lambda value: (told.append(value), called.set()))
            assert result.get(timeout=PATIENCE_S) == [4, 9]
            assert result.successful()
            assert called.wait(PATIENCE_S)
            assert told == [[4, 9]]
            late = pool.apply_async(slow, (0.3,))
            with pytest.raises(TimeoutError):
                late.get(timeout=0.01)
            assert late.get(timeout=PATIENCE_S) == 0.3
            bad = pool.apply_async(fail, (1,))
            with pytest.raises(KeyError):
                bad.get(timeout=PATIENCE_S)
            assert not bad.successful()

    def test_initializer(self) -> None:
        def prepare(value: str) -> None:
            os.environ["POOL_TEST"] = value

        with Pool(2, initializer=prepare, initargs=("ready",)) as pool:
            assert pool.map(pool_variable, range(4)) == ["ready"] * 4

    def test_the_end(self) -> None:
        pool = Pool(1)
        with pytest.raises(ValueError, match="running"):
            pool.join()
        result = pool.apply_async(square, (3,))
        pool.close()
        pool.join()
        assert result.get(timeout=PATIENCE_S) == 9
        with pytest.raises(ValueError, match="not running"):
            pool.map(square, [1])
        with pytest.raises(ValueError, match="at least one"):
            Pool(0)


class Locked:
    """Does not pickle by itself."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()


@zray.remote
def read_locked(values: list[Any]) -> Any:
    return values[0].value


def test_serializers_of_ones_own() -> None:
    with pytest.raises(TypeError):
        zray.put(Locked(3))
    register_serializer(Locked, serializer=lambda one: one.value, deserializer=Locked)
    try:
        assert zray.get(zray.put(Locked(3))).value == 3
        assert zray.get(read_locked.remote([Locked(1)])) == 1
    finally:
        deregister_serializer(Locked)
    with pytest.raises(TypeError):
        zray.put(Locked(3))
    deregister_serializer(Locked)


def test_state() -> None:
    actor = Doubler.options(name="seen").remote()
    zray.get(actor.double.remote(1))
    (found,) = state.list_actors(filters=[("state", "=", "alive"), ("name", "=", "seen")], detail=True)
    assert (found.actor_id, found["state"], found.class_name) == (actor._actor_id.hex(), "ALIVE", "Doubler")
    assert not hasattr(found, "nonsense")
    assert state.get_actor(actor._actor_id.hex(), timeout=5) == found
    assert state.summarize_actors()["Doubler"]["ALIVE"] >= 1
    assert state.list_nodes()[0]["Alive"]
    assert state.list_nodes()[0].state == "ALIVE"
    assert state.list_workers(filters=[("is_alive", "=", True)])
    slow = actor.sleep.remote(0.1)
    waiting = double.remote(slow)
    row = state.get_task(waiting)
    assert row is not None
    assert (row.state, row.detail) == ("PENDING_ARGS_AVAIL", "waiting for inputs")
    zray.get(waiting)
    assert state.list_tasks() == []
    group = zray.util.placement_group([{"CPU": 1}])
    assert group.wait(PATIENCE_S)
    (row,) = state.list_placement_groups(filters=[("state", "=", "CREATED")])
    assert state.get_placement_group(group.id.hex()) == row
    zray.util.remove_placement_group(group)
    assert isinstance(state.summarize_objects(), dict)
    with pytest.raises(ValueError, match="no key"):
        state.list_workers(filters=[("nonsense", "=", 1)])
    with pytest.raises(ValueError, match="compares"):
        state.list_workers(filters=[("state", "<", 1)])
    with pytest.raises(ValueError, match="has joined"):
        state.list_workers(address="ipc://elsewhere")
    with pytest.raises(TypeError, match="no option 'nonsense'"):
        state.list_workers(nonsense=1)


class TestHelpers:
    def test_what_cannot_be_pickled(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert zray.util.inspect_serializability({"a": 1}) == (True, set())
        good, failures = zray.util.inspect_serializability([0, {"key": threading.Lock()}], name="mine")
        assert not good
        assert [failure.name for failure in failures] == ["value[1]['key']"]
        assert "culprit" in capsys.readouterr().out

    def test_the_address_of_this_machine(self) -> None:
        assert zray.util.get_node_ip_address().count(".") == 3

    def test_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from zray.util import debug

        for name in ("_logged", "_disabled", "_periodic"):
            monkeypatch.setattr(debug, name, {} if name == "_logged" else False)
        assert [debug.log_once("a"), debug.log_once("a"), debug.log_once("b")] == [True, False, True]
        debug.enable_periodic_logging()
        assert not debug.log_once("a")
        monkeypatch.setattr(debug, "PERIOD_S", -1.0)
        assert debug.log_once("a")
        debug.disable_log_once_globally()
        assert not debug.log_once("c")


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("zray.cloudpickle", "dumps loads dump load CloudPickler register_pickle_by_value"),
        ("zray.types", "ObjectRef"),
        ("zray.util.actor_pool", "ActorPool"),
        ("zray.util.joblib", "register_ray"),
    ],
)
def test_names_are_where_rays_users_import_them(module: str, names: str) -> None:
    """Those that ``tests/tidy/test_ray_api.py`` does not read off Ray itself."""
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_every_error_is_caught_as_ray_error() -> None:
    from zray import exceptions

    for name in exceptions.__all__:
        assert issubclass(getattr(exceptions, name), exceptions.RayError), name
