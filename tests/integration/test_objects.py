"""Objects from end to end: every kind of value, views without a copy, lifetime, a full store."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy as copied
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests import conformance
from tests.support import eventually
from zray.api.cluster import report
from zray.exceptions import ObjectStoreFullError

PATIENCE_S = 30
LARGE = 100_000  # elements; 800 KB as float64
STORE_BYTES = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2, object_store_memory=STORE_BYTES):
        yield


@pytest.fixture(autouse=True)
def nothing_is_kept(cluster: None) -> Iterator[None]:
    """Whatever a test did, its objects are gone once nobody refers to them."""
    yield
    gc.collect()
    try:
        eventually(store_is_empty, 5.0, "the store")
    except AssertionError:
        kept = report("objects")
        zray.shutdown()  # so that the other tests are not blamed for it
        zray.init(num_cpus=2, object_store_memory=STORE_BYTES)
        pytest.fail(f"the store keeps {kept}")


def store() -> dict[str, int]:
    return zray.nodes()[0]["store"]


def store_is_empty() -> bool:
    now = store()
    return now["used_bytes"] == 0 and now["spilled_bytes"] == 0 and now["objects"] == 0


@zray.remote
def echo(value: Any = None) -> Any:
    return value


@zray.remote
def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


@dataclasses.dataclass
class Box:
    content: Any
    label: str = ""


@zray.remote
class Keeper:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: Any = None

    def keep(self, value: Any) -> None:
        self.kept = value

    def give(self) -> Any:
        return self.kept

    def read(self) -> Any:
        return zray.get(self.kept[0])

    def drop(self) -> None:
        self.kept = None


# --- values -------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -(10**30),
    3.5,
    "text \N{SNOWMAN}",
    "x" * 200_000,
    [],
    (1, (2, [3])),
    {"a": {1: None}},
    {1, 2},
    range(5),
    Box(1, "b"),
    ValueError("as a value"),
    b"",
    b"x",
    os.urandom(1_000),
    os.urandom(32 * 1024),
    os.urandom(1_000_000),
    bytearray(5_000_000),
    int,
    len,
]


class TestValues:
    @pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{str(value)[:9]!r}")
    def test_come_back_as_they_were(self, value: Any) -> None:
        ref = zray.put(value)
        for copy in zray.get([ref, echo.remote(value), echo.remote(ref)]):
            assert type(copy) is type(value)
            if isinstance(value, Exception):
                assert copy.args == value.args
            else:
                assert copy == value

    @pytest.mark.parametrize("size", [0, 1, 31_000, 32_000, 32_768, 33_000, 262_143, 262_145, 5_000_000])
    def test_bytes_of_every_size(self, size: int) -> None:
        data = os.urandom(size)
        assert zray.get(zray.put(data)) == data
        assert zray.get(echo.remote(data)) == data

    @pytest.mark.parametrize("length", [0, 1, 1_000, 4_080, 4_096, LARGE])
    @pytest.mark.parametrize("dtype", ["f8", "i2", "c16", "?", "U3", "M8[s]"])
    def test_arrays(self, length: int, dtype: str) -> None:
        array = np.arange(length).astype("i8").astype(dtype)
        for copy in (zray.get(zray.put(array)), zray.get(echo.remote(array))):
            assert copy.dtype == array.dtype
            assert np.array_equal(copy, array)

    def test_odd_arrays(self) -> None:
        structured = np.zeros(LARGE, dtype=[("x", "f4"), ("name", "S5")])
        structured["x"] = np.arange(LARGE)
        matrix = np.asfortranarray(np.arange(LARGE).reshape(100, -1))
        strided = np.arange(LARGE)[::3]
        objects = np.array([None, "a", {"b": 1}], dtype=object)
        zero_dim = np.array(5.0)
        for array in (structured, matrix, strided, objects, zero_dim, matrix[3:5, ::7]):
            copy = zray.get(echo.remote(zray.put(array)))
            assert copy.dtype == array.dtype
            assert copy.shape == array.shape
            assert np.array_equal(copy, array)

    def test_many_arrays_in_one_value(self) -> None:
        value = {"a": [np.full(10_000, i) for i in range(50)], "b": Box(np.ones(LARGE))}
        copy = zray.get(echo.remote(value))
        assert all((array == i).all() for i, array in enumerate(copy["a"]))
        assert copy["b"].content.sum() == LARGE

    def test_shared_and_recursive_structure(self) -> None:
        inner: list[Any] = [1]
        value = [inner, inner]
        value.append(value)  # type: ignore[arg-type]
        copy = zray.get(zray.put(value))
        assert copy[0] is copy[1]
        assert copy[2] is copy


# --- views --------------------------------------------------------------------------------------


def in_the_arena(array: Any) -> bool:
    """Whether the memory of an array belongs to the mapping of the store."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "zray-arena" in line:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address and address + array.nbytes <= end:
                return True
    return False


class TestViews:
    @pytest.mark.not_simulated("values are copied")
    def test_are_read_only_and_not_copied(self) -> None:
        ref = zray.put(np.arange(LARGE))
        first, second = zray.get(ref), zray.get(ref)
        assert not first.flags.writeable
        with pytest.raises(ValueError, match=r"read-only"):
            first[0] = 1
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            first.flags.writeable = True
        assert in_the_arena(first)
        assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
        assert first.__array_interface__["data"][0] % 64 == 0

    @pytest.mark.not_simulated("values are copied")
    def test_in_a_worker_too(self) -> None:
        @zray.remote
        def look(array: Any) -> tuple[bool, bool]:
            return array.flags.writeable, in_the_arena(array)

        assert zray.get(look.remote(zray.put(np.ones(LARGE)))) == (False, True)
        assert zray.get(look.remote(np.ones(LARGE))) == (False, True)

    def test_small_arrays_are_read_only_too(self) -> None:
        assert not zray.get(zray.put(np.arange(10))).flags.writeable

    def test_outlive_their_ref(self) -> None:
        view = zray.get(echo.remote(np.arange(LARGE)))  # nobody holds the object any more
        part = view[10:20]
        del view
        for i in range(100):
            zray.get(zray.put(np.full(LARGE, i)))
        assert np.array_equal(part, np.arange(10, 20))

    def test_many_outlive_their_refs(self) -> None:
        views = [zray.get(zray.put(np.full(LARGE, i))) for i in range(40)]
        others = [zray.get(echo.remote(np.full(LARGE, -1))) for i in range(30)]
        assert all((view == i).all() for i, view in enumerate(views))
        assert all((other == -1).all() for other in others)

    def test_kept_by_an_actor(self) -> None:
        keeper = Keeper.remote()
        zray.get(keeper.keep.remote(zray.put(np.arange(LARGE))))
        for i in range(100):
            zray.put(np.full(LARGE, i))
        assert np.array_equal(zray.get(keeper.give.remote()), np.arange(LARGE))


# --- refs inside values -------------------------------------------------------------------------


def wrap_list(ref: Any) -> Any:
    return [ref]


def wrap_dict(ref: Any) -> Any:
    return {"deep": [{"er": ref}]}


def wrap_box(ref: Any) -> Any:
    return Box(Box(ref))


def unwrap(value: Any) -> Any:
    while not isinstance(value, zray.ObjectRef):
        if isinstance(value, Box):
            value = value.content
        elif isinstance(value, dict):
            value = next(iter(value.values()))
        else:
            value = value[0]
    return value


WRAPPERS = [wrap_list, wrap_dict, wrap_box]
CONTENTS = {"small": 7, "large": np.arange(LARGE)}


def same(left: Any, right: Any) -> bool:
    return bool(np.array_equal(left, right))


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("size", list(CONTENTS))
class TestNestedRefs:
    def test_in_a_put(self, wrap: Any, size: str) -> None:
        outer = zray.put(wrap(zray.put(CONTENTS[size])))
        inner = unwrap(zray.get(outer))
        del outer
        assert same(zray.get(inner, timeout=PATIENCE_S), CONTENTS[size])

    def test_of_a_task_in_a_large_put(self, wrap: Any, size: str) -> None:
        outer = zray.put([wrap(echo.remote(CONTENTS[size])), np.ones(LARGE)])
        inner = unwrap(zray.get(outer)[0])
        del outer
        gc.collect()
        assert same(zray.get(inner, timeout=PATIENCE_S), CONTENTS[size])

    def test_in_a_put_in_a_put(self, wrap: Any, size: str) -> None:
        outer = zray.put(wrap(zray.put(wrap(zray.put(wrap(zray.put(CONTENTS[size])))))))
        value: Any = outer
        del outer
        for _ in range(3):
            value = unwrap(zray.get(value, timeout=PATIENCE_S))
        assert same(zray.get(value, timeout=PATIENCE_S), CONTENTS[size])

    def test_returned_by_a_task(self, wrap: Any, size: str) -> None:
        @zray.remote
        def make() -> Any:
            return wrap(zray.put(CONTENTS[size])), wrap(echo.remote(CONTENTS[size]))

        put, task = zray.get(make.remote())
        assert same(zray.get(unwrap(put), timeout=PATIENCE_S), CONTENTS[size])
        assert same(zray.get(unwrap(task), timeout=PATIENCE_S), CONTENTS[size])

    def test_returned_by_a_task_of_a_task(self, wrap: Any, size: str) -> None:
        @zray.remote
        def make(depth: int) -> Any:
            return wrap(make.remote(depth - 1)) if depth else wrap(zray.put(CONTENTS[size]))

        value = zray.get(make.remote(3), timeout=PATIENCE_S)
        for _ in range(4):
            value = zray.get(unwrap(value), timeout=PATIENCE_S)
        assert same(value, CONTENTS[size])

    def test_through_a_task_that_drops_its_own(self, wrap: Any, size: str) -> None:
        @zray.remote
        def take_and_drop(value: Any) -> int:
            inner = unwrap(value)
            assert same(zray.get(inner), CONTENTS[size])
            del inner, value
            gc.collect()
            return 1

        ref = zray.put(CONTENTS[size])
        assert zray.get([take_and_drop.remote(wrap(ref)) for _ in range(5)], timeout=PATIENCE_S) == [1] * 5
        assert same(zray.get(ref), CONTENTS[size])

    def test_argument_is_the_only_thing_that_keeps_it(self, wrap: Any, size: str, tmp_path: Path) -> None:
        @zray.remote
        def read_later(value: Any) -> Any:
            eventually((tmp_path / "go").exists)
            return zray.get(unwrap(value), timeout=PATIENCE_S)

        result = read_later.remote(wrap(zray.put(CONTENTS[size])))
        gc.collect()
        zray.get(zray.put(np.zeros(LARGE)))
        (tmp_path / "go").touch()
        assert same(zray.get(result, timeout=PATIENCE_S), CONTENTS[size])

    def test_in_the_state_of_an_actor(self, wrap: Any, size: str) -> None:
        keeper = Keeper.remote()
        ref = zray.put(CONTENTS[size])
        zray.get(keeper.keep.remote(wrap(ref)))
        del ref
        gc.collect()
        zray.get(zray.put(np.zeros(LARGE)))
        inner = unwrap(zray.get(keeper.give.remote()))
        zray.get(keeper.drop.remote())
        assert same(zray.get(inner, timeout=PATIENCE_S), CONTENTS[size])

    def test_from_actor_to_actor(self, wrap: Any, size: str) -> None:
        first, second = Keeper.remote(), Keeper.remote()
        first.keep.remote(wrap(zray.put(CONTENTS[size])))
        second.keep.remote(first.give.remote())
        zray.get([first.drop.remote(), second.give.remote()], timeout=PATIENCE_S)
        del first
        value = unwrap(zray.get(second.give.remote()))
        assert same(zray.get(value, timeout=PATIENCE_S), CONTENTS[size])


class TestLifetime:
    def test_a_ref_keeps_its_value(self) -> None:
        ref = zray.put(np.ones(LARGE))
        used = store()["used_bytes"]
        assert used >= 8 * LARGE
        other = ref
        del ref
        gc.collect()
        assert store()["used_bytes"] == used
        assert zray.get(other).sum() == LARGE

    def test_freed_when_the_last_ref_goes(self) -> None:
        refs = [zray.put(np.ones(LARGE)), echo.remote(np.ones(LARGE)), echo.remote(zray.put(np.ones(LARGE)))]
        zray.wait(refs, num_returns=3)
        assert store()["used_bytes"] >= 24 * LARGE
        del refs
        eventually(store_is_empty)

    def test_each_copy_of_a_ref_counts(self) -> None:
        ref = zray.put(np.ones(LARGE))
        for duplicate in (copied, deepcopy):
            other = duplicate(ref)
            assert other == ref
            del ref
            assert zray.get(other).sum() == LARGE
            ref = other
        del ref, other
        eventually(store_is_empty)

    def test_freed_with_the_cycle_that_has_the_ref(self) -> None:
        circle: list[Any] = [zray.put(np.ones(LARGE))]
        circle.append(circle)
        assert not gc.is_tracked(circle[0])
        assert store()["used_bytes"] >= 8 * LARGE
        del circle
        gc.collect()
        eventually(store_is_empty)

    @pytest.mark.not_simulated("it waits in real time")
    def test_freed_while_the_driver_does_nothing(self, tmp_path: Path) -> None:
        """What a quiet process lets go of is let go of, without another call of it."""

        @zray.remote
        def watch() -> bool:
            (tmp_path / "watching").touch()
            return eventually(lambda: store()["used_bytes"] == 0, 10.0)

        ref = zray.put(np.ones(LARGE))
        watching = watch.remote()
        eventually((tmp_path / "watching").exists)
        threading.Event().wait(0.4)  # until the background thread of this process has gone to sleep
        del ref
        threading.Event().wait(0.3)
        assert zray.wait([watching], timeout=0) == ([watching], [])
        assert zray.get(watching)

    def test_results_that_nobody_wants(self) -> None:
        for _ in range(50):
            echo.remote(np.ones(LARGE))
        eventually(store_is_empty, 10.0)

    def test_a_view_keeps_its_memory(self) -> None:
        view = zray.get(zray.put(np.ones(LARGE)))
        assert store()["used_bytes"] >= 8 * LARGE
        del view
        eventually(store_is_empty)

    def test_containers_let_go_of_their_content(self) -> None:
        outer = zray.put([zray.put([zray.put(np.ones(LARGE)), zray.put(np.ones(LARGE))])])
        assert store()["used_bytes"] >= 16 * LARGE
        del outer
        eventually(store_is_empty)

    def test_an_actor_lets_go(self) -> None:
        keeper = Keeper.remote()
        zray.get(keeper.keep.remote([zray.put(np.ones(LARGE))]))
        assert zray.get(keeper.read.remote()).sum() == LARGE
        assert store()["used_bytes"] >= 8 * LARGE
        zray.get(keeper.drop.remote())
        eventually(lambda: store()["used_bytes"] == 0)

    def test_an_actor_that_ends_lets_go(self) -> None:
        keeper = Keeper.remote()
        zray.get(keeper.keep.remote([zray.put(np.ones(LARGE))]))
        del keeper
        eventually(store_is_empty)

    def test_tasks_that_were_sent_ahead_and_given_back(self) -> None:
        """Inputs that a worker was shown for tasks it never started are not looked at for ever."""

        @zray.remote(num_cpus=2)
        def quick(array: Any, block: bool) -> float:
            return zray.get(echo.remote(1), timeout=PATIENCE_S) if block else array[0]

        ref = zray.put(np.ones(LARGE))
        zray.get([quick.remote(ref, False) for _ in range(50)])
        refs = [quick.remote(ref, i % 20 == 5) for i in range(200)]
        assert zray.get(refs, timeout=PATIENCE_S) == [1] * 200

    def test_tasks_whose_function_does_not_load(self) -> None:
        class Poison:
            def __reduce__(self) -> Any:
                return int, ("no number",)

        poison = Poison()
        bad = zray.remote(lambda array: poison)
        with pytest.raises(zray.exceptions.TaskError):
            zray.get(bad.remote(zray.put(np.ones(LARGE))))

    def test_failed_results_leave_no_room_behind(self) -> None:
        @zray.remote(num_returns=2)
        def half() -> tuple[Any, Any]:
            return np.ones(LARGE), threading.Lock()

        for ref in half.remote():
            with pytest.raises(zray.exceptions.SerializationError):
                zray.get(ref)

    def test_retried_results_of_another_size(self, tmp_path: Path) -> None:
        @zray.remote(num_returns=2, retry_exceptions=True, max_retries=1)
        def grow() -> tuple[Any, Any]:
            first = not (tmp_path / "ran").exists()
            (tmp_path / "ran").touch()
            return (np.ones(LARGE), threading.Lock()) if first else (np.ones(5 * LARGE), 1)

        neighbour = zray.put(np.zeros(LARGE))
        big, one = grow.remote()
        assert zray.get(one, timeout=PATIENCE_S) == 1
        assert zray.get(big).sum() == 5 * LARGE
        assert not zray.get(neighbour).any()

    @pytest.mark.parametrize("size", [10, LARGE])
    def test_put_of_a_task_that_is_retried(self, size: int, tmp_path: Path) -> None:
        @zray.remote(retry_exceptions=True, max_retries=5)
        def flaky() -> Any:
            ref = zray.put(np.ones(size))
            (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
            if len(list(tmp_path.iterdir())) < 6:
                raise OSError("once more")
            return [ref]

        (ref,) = zray.get(flaky.remote(), timeout=PATIENCE_S)
        assert zray.get(ref).sum() == size

    def test_put_of_an_attempt_that_somebody_kept(self, tmp_path: Path) -> None:
        keeper = Keeper.remote()

        @zray.remote(retry_exceptions=True, max_retries=1)
        def flaky(keeper: Any) -> Any:
            ref = zray.put(np.ones(LARGE))
            if (tmp_path / "ran").exists():
                return [ref]
            (tmp_path / "ran").touch()
            zray.get(keeper.keep.remote([ref]))
            raise OSError("once more")

        (ref,) = zray.get(flaky.remote(keeper), timeout=PATIENCE_S)
        (kept,) = zray.get(keeper.give.remote())
        assert zray.get(ref, timeout=PATIENCE_S).sum() == zray.get(kept, timeout=PATIENCE_S).sum() == LARGE

    def test_an_error_keeps_nothing(self) -> None:
        @zray.remote
        def fail(array: Any) -> None:
            raise ValueError(array[:5])

        for _ in range(10):
            with pytest.raises(ValueError):  # noqa: PT011
                zray.get(fail.remote(zray.put(np.ones(LARGE))))

    def test_refs_dropped_in_every_thread(self) -> None:
        def work(number: int) -> None:
            for i in range(50):
                ref = zray.put(np.full(5_000, i))
                outer = zray.put([ref])
                assert zray.get(zray.get(outer)[0])[0] == i

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    def test_random_graph_of_tasks_and_drops(self) -> None:
        chance = np.random.default_rng(7)

        @zray.remote
        def combine(parts: list[Any], *values: Any) -> list[Any]:
            amount = sum(int(v) if np.ndim(v) == 0 else int(v[0]) for v in values) + sum(
                int(np.ravel(zray.get(p))[0]) for p in parts
            )
            small = zray.put(amount) if amount % 2 else zray.put(np.full(6_000, amount))
            return [small, amount]

        for _ in range(30):
            numbers = chance.integers(0, 9, 6).tolist()
            refs = [zray.put(n) if n % 3 else zray.put(np.full(8_000, n)) for n in numbers]
            inner, amount = zray.get(combine.remote(refs[:3], *refs[3:]), timeout=PATIENCE_S)
            del refs
            assert amount == sum(numbers)
            assert np.ravel(zray.get(inner, timeout=PATIENCE_S))[0] == amount


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.slow
class TestFullStore:
    PIECE = 1 << 20  # float64 elements: 8 MiB
    COUNT = 25  # 200 MiB in 64

    def piece(self, i: int) -> Any:
        return np.full(self.PIECE, float(i))

    def test_puts_beyond_the_capacity(self) -> None:
        refs = [zray.put(self.piece(i)) for i in range(self.COUNT)]
        assert store()["spilled_bytes"] > 0
        for i, ref in enumerate(refs):
            array = zray.get(ref, timeout=PATIENCE_S)
            assert array[0] == array[-1] == i

    def test_all_looked_at_together(self) -> None:
        arrays = [zray.get(zray.put(self.piece(i)), timeout=PATIENCE_S) for i in range(self.COUNT)]
        assert all((array == i).all() for i, array in enumerate(arrays))

    def test_results_and_arguments_beyond_the_capacity(self) -> None:
        @zray.remote
        def make(i: int) -> Any:
            return np.full(1 << 20, float(i))

        refs = [make.remote(i) for i in range(self.COUNT)]
        sums = zray.get([total.remote(ref) for ref in refs], timeout=PATIENCE_S)
        assert sums == [float(i << 20) for i in range(self.COUNT)]
        assert zray.get(total.remote(*refs), timeout=PATIENCE_S) == sum(sums)

    def test_get_of_all_at_once(self) -> None:
        refs = [zray.put(self.piece(i)) for i in range(self.COUNT)]
        arrays = zray.get(refs, timeout=PATIENCE_S)
        assert [array[-1] for array in arrays] == list(range(self.COUNT))

    def test_one_object_larger_than_the_store(self) -> None:
        with pytest.raises(ObjectStoreFullError, match=re.escape(str(STORE_BYTES))) as caught:
            zray.put(bytes(STORE_BYTES + 1))
        assert caught.value.capacity_bytes == STORE_BYTES
        with pytest.raises(ObjectStoreFullError):
            echo.remote(np.zeros(STORE_BYTES // 8 + 1))

        @zray.remote
        def too_much() -> Any:
            return bytes(STORE_BYTES + 1)

        with pytest.raises(ObjectStoreFullError):
            zray.get(too_much.remote(), timeout=PATIENCE_S)

    def test_one_object_that_just_fits(self) -> None:
        others = [zray.put(self.piece(i)) for i in range(3)]
        data = np.ones(STORE_BYTES // 8 - 1_000)
        assert zray.get(zray.put(data), timeout=PATIENCE_S).sum() == len(data)
        assert [zray.get(ref)[0] for ref in others] == [0, 1, 2]

    def test_from_threads(self) -> None:
        def work(number: int) -> bool:
            refs = [zray.put(self.piece(10 * number + i)) for i in range(4)]
            return all(zray.get(ref, timeout=PATIENCE_S)[5] == 10 * number + i for i, ref in enumerate(refs))

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(work, range(6)))


class TestSizes:
    def test_same_array_for_many_tasks(self) -> None:
        array = np.ones(LARGE)
        assert zray.get([total.remote(array) for _ in range(20)]) == [LARGE] * 20
        ref = zray.put(array)
        assert zray.get([total.remote(ref, ref) for _ in range(20)]) == [2 * LARGE] * 20

    def test_many_small_ones(self) -> None:
        refs = [zray.put(i) for i in range(10_000)]
        assert zray.get(refs) == list(range(10_000))

    @pytest.mark.not_simulated("messages have no limit")
    def test_an_error_of_any_size(self) -> None:
        @zray.remote(num_returns=3)
        def fail(size: int) -> None:
            raise ValueError("x" * size)

        for size in (100, 100_000, 20_000_000, 300_000_000):
            for ref in fail.remote(size):
                with pytest.raises(zray.exceptions.TaskError, match="ValueError"):
                    zray.get(ref, timeout=PATIENCE_S)

    @pytest.mark.not_simulated("messages have no limit")
    def test_a_deep_traceback_for_many_refs(self) -> None:
        @zray.remote(num_returns=2_000)
        def fail() -> None:
            raise ValueError("y" * 200_000)

        for ref in fail.remote()[::500]:
            with pytest.raises(zray.exceptions.TaskError, match="ValueError"):
                zray.get(ref, timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.not_simulated("it makes a cluster of its own")
def test_hundred_megabytes_there_and_back() -> None:
    """In a cluster of its own: the store of the others is too small for it."""
    zray.shutdown()
    try:
        with zray.init(num_cpus=2, object_store_memory=512 << 20):
            array = np.arange(100 << 17, dtype="f8")
            assert zray.get(total.remote(array), timeout=PATIENCE_S) == array.sum()
            back = zray.get(echo.remote(array), timeout=PATIENCE_S)
            assert np.array_equal(back, array)
            keeper = Keeper.remote()
            keeper.keep.remote(array)
            assert np.array_equal(zray.get(keeper.give.remote(), timeout=PATIENCE_S), array)
            del back, keeper
    finally:
        zray.init(num_cpus=2, object_store_memory=STORE_BYTES)
