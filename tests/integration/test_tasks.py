"""Tasks from end to end: options, arguments, returns, resources, nesting, get and wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests import conformance
from tests.integration.remotes import PATIENCE_S, add, echo, meet, wait_for_file
from tests.support import eventually
from zray.exceptions import GetTimeoutError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2, num_gpus=1, resources={"disk": 2, "memory_bank": 0.5}):
        yield


# --- submitting ---------------------------------------------------------------------------------


class TestRemote:
    def test_decorator_without_options(self) -> None:
        assert zray.get(add.remote(1, 2)) == 3

    def test_call_form(self) -> None:
        def triple(x: int) -> int:
            return 3 * x

        assert zray.get(zray.remote(triple).remote(4)) == 12
        assert zray.get(zray.remote(num_cpus=0.5)(triple).remote(5)) == 15

    def test_lambda(self) -> None:
        assert zray.get(zray.remote(lambda x: x * 2).remote(21)) == 42

    def test_builtin_and_callable_object(self) -> None:
        class Scale:
            def __call__(self, x: int) -> int:
                return 10 * x

        assert zray.get(zray.remote(abs).remote(-3)) == 3
        assert zray.get(zray.remote(Scale()).remote(4)) == 40

    def test_closure(self) -> None:
        offset = np.arange(1000)

        @zray.remote
        def shifted(x: int) -> int:
            return int(offset[x]) + 1

        assert zray.get(shifted.remote(41)) == 42

    def test_keeps_name_and_doc(self) -> None:
        @zray.remote
        def documented() -> None:
            """Says what it does."""

        assert documented.__name__ == "documented"
        assert documented.__doc__ == "Says what it does."

    def test_attributes_of_the_function_do_not_shadow_the_api(self) -> None:
        def marked() -> int:
            return 1

        marked.remote = marked.options = marked._options = "mine"  # type: ignore[attr-defined]
        assert zray.get(zray.remote(marked).remote()) == 1

    def test_options_override_only_what_they_name(self) -> None:
        @zray.remote(num_returns=2, num_cpus=0.5)
        def pair() -> tuple[int, int]:
            return 1, 2

        assert zray.get(pair.options(num_cpus=1).remote()) == [1, 2]
        assert zray.get(pair.options(num_returns=1).remote()) == (1, 2)
        assert zray.get(pair.remote()) == [1, 2]

    def test_options_chain(self) -> None:
        one = echo.options(num_cpus=2).options(num_returns=2)
        assert zray.get(one.remote([1, 2])) == [1, 2]

    def test_name_option_shows_in_errors(self) -> None:
        @zray.remote(name="my task")
        def failing() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="my task"):
            zray.get(failing.remote())

    def test_remote_function_as_an_argument(self) -> None:
        @zray.remote
        def apply(function: Any, x: int) -> int:
            return zray.get(function.remote(x, x))

        assert zray.get(apply.remote(add, 4)) == 8

    def test_many_in_one_go(self) -> None:
        refs = [add.remote(i, i) for i in range(5_000)]
        assert zray.get(refs) == [2 * i for i in range(5_000)]


class TestReturns:
    def test_none(self) -> None:
        assert zray.get(echo.remote()) is None

    def test_zero_returns(self, tmp_path: Path) -> None:
        @zray.remote(num_returns=0)
        def touch(path: Path) -> None:
            path.touch()

        assert touch.remote(tmp_path / "there") is None
        eventually((tmp_path / "there").exists)

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_several(self, kind: Callable[[Any], Any]) -> None:
        refs = echo.options(num_returns=3).remote(kind([1, None, "three"]))
        assert isinstance(refs, list)
        assert zray.get(refs) == [1, None, "three"]
        assert zray.get(refs[2]) == "three"

    @pytest.mark.parametrize("result", [[1], [1, 2, 3], None, 5, ()])
    def test_wrong_count_fails_every_ref(self, result: Any) -> None:
        refs = echo.options(num_returns=2).remote(result)
        for ref in refs:
            with pytest.raises(ValueError, match="num_returns=2"):
                zray.get(ref)

    def test_error_reaches_every_ref(self) -> None:
        @zray.remote(num_returns=3)
        def failing() -> None:
            raise KeyError("k")

        for ref in failing.remote():
            with pytest.raises(KeyError):
                zray.get(ref)

    def test_a_thousand(self) -> None:
        refs = echo.options(num_returns=1_000).remote(list(range(1_000)))
        assert zray.get(refs) == list(range(1_000))

    def test_many_and_together_larger_than_a_frame(self) -> None:
        @zray.remote(num_returns=9_000)
        def pieces() -> list[bytes]:
            return [bytes([i % 256]) * 32_000 for i in range(9_000)]

        refs = pieces.remote()
        assert zray.get(refs[8_999], timeout=PATIENCE_S) == bytes([8_999 % 256]) * 32_000


class TestArguments:
    @staticmethod
    def collect(a: Any, b: Any = "b", *rest: Any, c: Any, d: Any = "d", **more: Any) -> Any:
        return a, b, rest, c, d, more

    def test_every_kind(self) -> None:
        collect = zray.remote(self.collect)
        assert zray.get(collect.remote(1, c=2)) == (1, "b", (), 2, "d", {})
        assert zray.get(collect.remote(1, 2, 3, 4, c=5, d=6, e=7)) == (1, 2, (3, 4), 5, 6, {"e": 7})
        assert zray.get(collect.remote(1, c=2, self=3)) == (1, "b", (), 2, "d", {"self": 3})

    def test_refs_by_position_and_keyword_become_values(self) -> None:
        one, two, three = zray.put(1), echo.remote(2), zray.put(np.arange(100_000))
        a, b, rest, c, d, more = zray.get(
            zray.remote(self.collect).remote(one, 0, two, three, c=two, d=0, e=one)
        )
        assert (a, b, rest[0], c, d, more) == (1, 0, 2, 2, 0, {"e": 1})
        assert np.array_equal(rest[1], np.arange(100_000))

    def test_nested_refs_stay_refs(self) -> None:
        @zray.remote
        def look(values: dict[str, Any]) -> tuple[str, int]:
            (ref,) = values["refs"]
            return type(ref).__name__, zray.get(ref)

        assert zray.get(look.remote({"refs": [echo.remote(7)]})) == ("ObjectRef", 7)

    def test_nested_ref_of_a_task_that_has_not_run(self, tmp_path: Path) -> None:
        @zray.remote
        def look(refs: list[Any]) -> Any:
            (tmp_path / "go").touch()
            return zray.get(refs[0])

        waiting = wait_for_file.remote(str(tmp_path / "go"))
        assert zray.get(look.remote([waiting]), timeout=PATIENCE_S) == str(tmp_path / "go")

    def test_same_ref_many_times(self) -> None:
        ref = zray.put(np.ones(50_000))

        @zray.remote
        def total(*arrays: Any) -> float:
            return sum(float(array.sum()) for array in arrays)

        assert zray.get(total.remote(ref, ref, ref)) == 150_000

    @pytest.mark.slow
    def test_ten_thousand_refs(self) -> None:
        @zray.remote
        def total(*values: int) -> int:
            return sum(values)

        refs = [zray.put(i) for i in range(5_000)] + [echo.remote(i) for i in range(5_000, 10_000)]
        assert zray.get(total.remote(*refs)) == sum(range(10_000))

    @pytest.mark.slow
    def test_refs_together_larger_than_a_frame(self) -> None:
        @zray.remote
        def total(*values: bytes) -> int:
            return sum(map(len, values))

        ref = zray.put(bytes(32_000))
        refs = [ref, *(zray.put(bytes(32_000)) for _ in range(10))] * 900
        assert zray.get(total.remote(*refs), timeout=PATIENCE_S) == 32_000 * len(refs)

    def test_wrong_arguments_raise_at_once(self) -> None:
        with pytest.raises(TypeError, match="add"):
            add.remote(1)
        with pytest.raises(TypeError, match="add"):
            add.remote(1, 2, 3)
        with pytest.raises(TypeError, match=r"missing|unexpected"):
            add.remote(1, wrong=2)

    def test_arguments_are_copied_when_they_are_given(self) -> None:
        data = [1, 2, 3]
        ref = echo.remote(data)
        data.clear()
        array = np.zeros(100_000)
        large = echo.remote(array)
        array[:] = 1
        assert zray.get(ref) == [1, 2, 3]
        assert not zray.get(large).any()


class TestGraphs:
    def test_chain_of_a_thousand(self) -> None:
        ref = echo.remote(0)
        for _ in range(1_000):
            ref = add.remote(ref, 1)
        assert zray.get(ref, timeout=PATIENCE_S) == 1_000

    def test_tree(self) -> None:
        level = [echo.remote(1) for _ in range(256)]
        while len(level) > 1:
            level = [add.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
        assert zray.get(level[0], timeout=PATIENCE_S) == 256

    def test_error_runs_down_a_chain(self) -> None:
        @zray.remote
        def failing() -> int:
            raise ValueError("at the start")

        ref = failing.remote()
        for _ in range(1_000):
            ref = add.remote(ref, 1)
        with pytest.raises(ValueError, match="at the start"):
            zray.get(ref, timeout=PATIENCE_S)

    @pytest.mark.slow
    def test_nested_to_depth_twenty(self) -> None:
        @zray.remote
        def down(depth: int) -> int:
            return 0 if depth == 0 else 1 + zray.get(down.remote(depth - 1))

        assert zray.get(down.remote(20), timeout=PATIENCE_S) == 20

    @pytest.mark.slow
    def test_fibonacci_by_recursion(self) -> None:
        @zray.remote
        def fib(n: int) -> int:
            return n if n < 2 else sum(zray.get([fib.remote(n - 1), fib.remote(n - 2)]))

        assert zray.get(fib.remote(7), timeout=PATIENCE_S) == 13

    def test_nested_wait_gives_the_cpu_back(self) -> None:
        @zray.remote(num_cpus=2)
        def outer() -> bool:
            ready, _ = zray.wait([echo.options(num_cpus=2).remote(1)], timeout=PATIENCE_S)
            return bool(ready)

        assert zray.get(outer.remote(), timeout=PATIENCE_S)

    def test_refs_of_a_task_are_returned_and_outlive_it(self) -> None:
        @zray.remote
        def spawn() -> list[Any]:
            return [echo.remote(i) for i in range(10)] + [zray.put("put"), zray.put(np.ones(50_000))]

        *tasks, small, large = zray.get(spawn.remote())
        assert zray.get(tasks) == list(range(10))
        assert zray.get(small) == "put"
        assert zray.get(large).sum() == 50_000

    def test_fire_and_forget(self, tmp_path: Path) -> None:
        @zray.remote
        def touch(path: Path) -> None:
            path.touch()

        for i in range(20):
            touch.remote(tmp_path / str(i))
        eventually(lambda: len(list(tmp_path.iterdir())) == 20)


class TestResources:
    def test_halves_of_a_cpu_run_together(self, tmp_path: Path) -> None:
        half = zray.remote(num_cpus=0.5)(meet)
        refs = [half.remote(str(tmp_path), str(i), 4) for i in range(4)]
        assert zray.get(refs, timeout=PATIENCE_S) == [4] * 4

    @pytest.mark.one_node("counts what runs at once on the CPUs of one")
    def test_whole_cpus_run_as_many_as_there_are(self, tmp_path: Path) -> None:
        @zray.remote
        def most_at_once(i: int) -> int:
            mine = tmp_path / str(i)
            mine.touch()
            seen = len(list(tmp_path.iterdir()))
            time.sleep(0.01)  # gives others the occasion to be here too, if they are let
            mine.unlink()
            return seen

        assert max(zray.get([most_at_once.remote(i) for i in range(12)], timeout=PATIENCE_S)) <= 2

    def test_custom_resources(self, tmp_path: Path) -> None:
        use_disk = zray.remote(num_cpus=0, resources={"disk": 1})(meet)
        refs = [use_disk.remote(str(tmp_path), str(i), 2) for i in range(2)]
        assert zray.get(refs, timeout=PATIENCE_S) == [2, 2]

    def test_gpu(self) -> None:
        assert zray.get(echo.options(num_gpus=1).remote(1)) == 1
        assert zray.get(echo.options(num_gpus=0.25, resources={"memory_bank": 0.5}).remote(2)) == 2

    def test_a_blocked_task_keeps_its_gpu(self) -> None:
        @zray.remote(num_gpus=1)
        def outer() -> list[Any]:
            ready, _ = zray.wait([echo.options(num_gpus=1).remote(1)], timeout=0.1)
            return ready

        assert zray.get(outer.remote(), timeout=PATIENCE_S) == []

    def test_what_does_not_fit_waits(self, tmp_path: Path) -> None:
        blocker = wait_for_file.options(resources={"disk": 2}).remote(str(tmp_path / "go"))
        wanting = echo.options(resources={"disk": 1}).remote("got it")
        assert zray.wait([wanting], timeout=0.05) == ([], [wanting])
        assert zray.get(echo.remote("others pass")) == "others pass"
        (tmp_path / "go").touch()
        assert zray.get([wanting, blocker], timeout=PATIENCE_S)[0] == "got it"

    def test_everything_is_free_again(self) -> None:
        def all_free() -> bool:
            free, total = zray.available_resources(), zray.cluster_resources()
            return free == total

        eventually(all_free)
        assert zray.cluster_resources()["CPU"] == 2 + conformance.others()
        assert zray.cluster_resources()["memory_bank"] == 0.5

    def test_what_no_node_has_stays_pending_and_can_be_dropped(self) -> None:
        ref = echo.options(resources={"moon": 1}).remote(1)
        with pytest.raises(GetTimeoutError):
            zray.get(ref, timeout=0.05)


# --- get and wait -------------------------------------------------------------------------------


class TestGet:
    def test_list_tuple_and_repetition(self) -> None:
        a, b = echo.remote(1), echo.remote(2)
        assert zray.get([a, b, a]) == [1, 2, 1]
        assert zray.get((b, a)) == [2, 1]
        assert zray.get([]) == []

    def test_timeout_then_success(self, tmp_path: Path) -> None:
        ref = wait_for_file.remote(str(tmp_path / "go"))
        with pytest.raises(GetTimeoutError, match="1 of 2") as caught:
            zray.get([zray.put(1), ref], timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(TimeoutError):
            zray.get(ref, timeout=0)
        (tmp_path / "go").touch()
        assert zray.get(ref, timeout=PATIENCE_S) == str(tmp_path / "go")

    def test_timeout_zero_of_what_is_there(self) -> None:
        ref = echo.remote(1)
        zray.wait([ref])
        assert zray.get(ref, timeout=0) == 1

    def test_twice_gives_two_values(self) -> None:
        ref = echo.remote([1])
        first = zray.get(ref)
        first.append(2)
        assert zray.get(ref) == [1]

    def test_first_error_of_a_list(self) -> None:
        @zray.remote
        def failing(text: str) -> None:
            raise RuntimeError(text)

        with pytest.raises(RuntimeError, match="first"):
            zray.get([echo.remote(1), failing.remote("first"), failing.remote("second")])


class TestWait:
    def test_order_and_count(self, tmp_path: Path) -> None:
        slow = wait_for_file.remote(str(tmp_path / "go"))
        refs = [slow, *(echo.remote(i) for i in range(4))]
        ready, not_ready = zray.wait(refs, num_returns=4, timeout=PATIENCE_S)
        assert (ready, not_ready) == (refs[1:], [slow])
        ready, not_ready = zray.wait(refs, num_returns=2)
        assert ready == refs[1:3]
        assert not_ready == [slow, *refs[3:]]
        (tmp_path / "go").touch()
        assert zray.wait(refs, num_returns=5, timeout=PATIENCE_S) == (refs, [])

    def test_timeout(self, tmp_path: Path) -> None:
        refs = [wait_for_file.remote(str(tmp_path / "go")), zray.put(1)]
        assert zray.wait(refs, num_returns=2, timeout=0.01) == (refs[1:], refs[:1])
        assert zray.wait(refs, num_returns=1, timeout=0) == (refs[1:], refs[:1])
        assert zray.wait(refs[:1], timeout=0) == ([], refs[:1])
        (tmp_path / "go").touch()

    def test_errors_are_ready(self) -> None:
        @zray.remote
        def failing() -> None:
            raise ValueError

        ref = failing.remote()
        assert zray.wait([ref], timeout=PATIENCE_S) == ([ref], [])

    def test_large_values_are_ready_and_not_fetched(self) -> None:
        ref = echo.remote(np.ones(100_000))
        assert zray.wait([ref], fetch_local=False, timeout=PATIENCE_S) == ([ref], [])
        assert zray.get(ref).sum() == 100_000

    def test_borrowed_refs_inside_a_task(self) -> None:
        @zray.remote
        def count(refs: list[Any]) -> tuple[int, int]:
            ready, rest = zray.wait(refs, num_returns=2, timeout=PATIENCE_S)
            return len(ready), len(rest)

        refs = [echo.remote(0), zray.put(1), zray.put(np.ones(100_000))]
        assert zray.get(count.remote(refs)) == (2, 1)

    def test_loop_until_all_are_done(self) -> None:
        pending = [echo.remote(i) for i in range(300)]
        done = []
        while pending:
            ready, pending = zray.wait(pending, num_returns=min(7, len(pending)), timeout=PATIENCE_S)
            done += zray.get(ready)
        assert sorted(done) == list(range(300))
