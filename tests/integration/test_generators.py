"""Tasks and methods that yield: static, dynamic, streaming; errors; crashes; readers that leave."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import textwrap
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests import conformance
from tests.clusters import finish, line_of, place
from tests.support import eventually
from zray import DynamicObjectRefGenerator, ObjectRefGenerator
from zray.api.cluster import report
from zray.exceptions import ActorDiedError, TaskCancelledError, WorkerCrashedError

PATIENCE_S = 30
LARGE = 200_000


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@zray.remote
def numbers(count: int, raises_at: int = -1) -> Iterator[int]:
    for number in range(count):
        if number == raises_at:
            raise KeyError(number)
        yield number


@zray.remote
def blobs(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * LARGE


@zray.remote
def total(values: Any) -> int:
    return sum(zray.get(list(values)))


@zray.remote
def identity(value: Any) -> Any:
    return value


@zray.remote(num_cpus=0)
def slow_numbers(count: int, path: Path) -> Iterator[int]:
    """The last ones only once there is a file."""
    for number in range(count):
        while number == count - 2 and not path.exists():
            time.sleep(0.01)
        yield number


def read_at_second_try(refs: Iterable[Any], begun: Path, ending: str) -> Iterator[int]:
    """The values; the first time it ends in the midst of them."""
    for count, ref in enumerate(refs, 1):
        yield zray.get(ref)
        if count == 4 and not begun.exists():
            begun.touch()
            if ending == "dies":
                os._exit(1)
            raise KeyError(ending)


@zray.remote(num_cpus=0, max_retries=1, retry_exceptions=True)
def read_twice(path: Path, begun: Path, ending: str, unconsumed_max: int | None) -> list[int]:
    """Ends in the midst of a stream that is still being made, the first time."""
    refs = slow_numbers.options(_generator_backpressure_num_objects=unconsumed_max).remote(9, path)
    found = []
    for value in read_at_second_try(refs, begun, ending):
        found.append(value)
        if len(found) == 5:  # it goes on
            path.touch()
    return found


@zray.remote
class AsyncSource:
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0.01)
            yield number


@zray.remote(num_cpus=0, max_retries=1, retry_exceptions=True)
def read_actor_twice(handle: Any, begun: Path, ending: str, unconsumed_max: int | None) -> list[int]:
    refs = handle.numbers.options(_generator_backpressure_num_objects=unconsumed_max).remote(9)
    return list(read_at_second_try(refs, begun, ending))


@zray.remote(num_cpus=0, max_retries=0)
def read_one(handle: Any) -> None:
    next(handle.numbers.options(_generator_backpressure_num_objects=1).remote(100))
    os._exit(1)


@zray.remote
class Source:
    def __init__(self) -> None:
        self.made = 0

    def numbers(self, count: int, raises_at: int = -1) -> Iterator[int]:
        for number in range(count):
            if number == raises_at:
                raise KeyError(number)
            self.made += 1
            yield number

    def blobs(self, count: int) -> Iterator[bytes]:
        for number in range(count):
            yield bytes([number]) * LARGE

    def die_after(self, count: int) -> Iterator[int]:
        yield from range(count)
        os.kill(os.getpid(), signal.SIGKILL)


class TestStatic:
    def test_as_many_as_promised(self) -> None:
        refs = numbers.options(num_returns=3).remote(3)
        assert zray.get(refs) == [0, 1, 2]

    @pytest.mark.parametrize("count", [2, 4])
    def test_too_few_or_too_many_is_an_error_of_all(self, count: int) -> None:
        for ref in numbers.options(num_returns=3).remote(count):
            with pytest.raises(ValueError, match="num_returns=3"):
                zray.get(ref, timeout=PATIENCE_S)

    def test_one_that_raises_keeps_what_it_had(self) -> None:
        refs = numbers.options(num_returns=4).remote(4, raises_at=2)
        assert zray.get(refs[:2]) == [0, 1]
        for ref in refs[2:]:
            with pytest.raises(KeyError):
                zray.get(ref)

    def test_of_an_actor(self) -> None:
        source = Source.remote()
        assert zray.get(source.numbers.options(num_returns=2).remote(2)) == [0, 1]


class TestDynamic:
    def test_one_ref_to_many(self) -> None:
        ref = numbers.options(num_returns="dynamic").remote(4)
        found = zray.get(ref)
        assert isinstance(found, DynamicObjectRefGenerator)
        assert len(found) == 4
        assert [zray.get(item) for item in found] == [0, 1, 2, 3]
        assert zray.get(found[3]) == 3

    def test_passed_on_before_and_after_get(self) -> None:
        ref = numbers.options(num_returns="dynamic").remote(5)
        assert zray.get(total.remote(ref)) == 10
        assert zray.get(total.remote(zray.get(ref))) == 10

    def test_large_items(self) -> None:
        found = zray.get(blobs.options(num_returns="dynamic").remote(3))
        gc.collect()
        assert [zray.get(item)[0] for item in found] == [0, 1, 2]

    def test_one_that_raises_ends_with_the_error(self) -> None:
        found = list(zray.get(numbers.options(num_returns="dynamic").remote(4, raises_at=2)))
        assert zray.get(found[:2]) == [0, 1]
        assert len(found) == 3
        with pytest.raises(KeyError):
            zray.get(found[2])

    def test_of_an_actor(self) -> None:
        source = Source.remote()
        found = zray.get(source.blobs.options(num_returns="dynamic").remote(3))
        assert [zray.get(item)[0] for item in found] == [0, 1, 2]

    def test_what_does_not_yield(self) -> None:
        with pytest.raises(TypeError, match="yield"):
            zray.get(identity.options(num_returns="streaming").remote(3).completed())


class TestStreaming:
    def test_is_the_default_of_what_yields(self) -> None:
        generator = numbers.remote(3)
        assert isinstance(generator, ObjectRefGenerator)
        assert [zray.get(ref) for ref in generator] == [0, 1, 2]
        assert list(generator) == []
        assert generator.is_finished()
        assert zray.get(generator.completed()) is None

    def test_whether_it_is_finished_is_known_with_its_last_ref(self) -> None:
        generator = numbers.remote(2)
        zray.wait([generator.completed()], timeout=PATIENCE_S)
        assert not generator.is_finished()
        assert generator.next_ready()
        next(generator), next(generator)
        assert generator.is_finished()
        failing = identity.options(num_returns="streaming").remote(3)
        zray.wait([failing.completed()], timeout=PATIENCE_S)
        assert not failing.is_finished()  # the ref with the error is to be read
        with pytest.raises(TypeError, match="yield"):
            zray.get(next(failing))
        assert failing.is_finished()

    def test_a_closed_one_has_no_more(self) -> None:
        generator = numbers.remote(3)
        next(generator)
        generator.close()
        assert list(generator) == []
        assert generator.is_finished()

    def test_items_come_before_the_end(self, tmp_path: Path) -> None:
        @zray.remote
        def two(path: str) -> Iterator[str]:
            yield "first"
            eventually(lambda: os.path.exists(path), PATIENCE_S)
            yield "second"

        path = tmp_path / "go"
        generator = two.remote(str(path))
        assert zray.get(next(generator)) == "first"
        assert zray.wait([generator.completed()], timeout=0)[0] == []
        path.touch()
        assert zray.get(next(generator)) == "second"

    @pytest.mark.parametrize("count", [0, 1, 500])
    def test_any_number(self, count: int) -> None:
        assert [zray.get(ref) for ref in numbers.remote(count)] == list(range(count))

    def test_large_items(self) -> None:
        assert [zray.get(ref)[0] for ref in blobs.remote(20)] == list(range(20))

    def test_refs_are_refs(self) -> None:
        refs = list(numbers.remote(4))
        assert zray.get(identity.remote(refs[2])) == 2
        assert zray.get(total.remote(refs)) == 6

    def test_one_that_raises_ends_with_one_ref_to_the_error(self) -> None:
        refs = list(numbers.remote(5, raises_at=2))
        assert zray.get(refs[:2]) == [0, 1]
        assert len(refs) == 3
        with pytest.raises(KeyError):
            zray.get(refs[2])

    def test_wait_takes_generators(self, tmp_path: Path) -> None:
        @zray.remote
        def late(path: str) -> Iterator[int]:
            eventually(lambda: os.path.exists(path), PATIENCE_S)
            yield 1

        path = tmp_path / "go"
        slow, fast, plain = late.remote(str(path)), numbers.remote(2), zray.put(1)
        ready, rest = zray.wait([slow, fast, plain], num_returns=2, timeout=PATIENCE_S)
        assert (ready, rest) == ([fast, plain], [slow])
        path.touch()
        assert zray.wait([slow], timeout=PATIENCE_S) == ([slow], [])

    def test_async_for(self) -> None:
        async def read() -> list[int]:
            return [await ref async for ref in numbers.remote(10)]

        assert asyncio.run(read()) == list(range(10))

    def test_async_for_meets_the_error(self) -> None:
        async def read() -> list[Any]:
            return [ref async for ref in numbers.remote(3, raises_at=1)]

        refs = asyncio.run(read())
        assert zray.get(refs[0]) == 0
        with pytest.raises(KeyError):
            zray.get(refs[1])

    def test_the_reader_holds_the_maker_back(self, tmp_path: Path) -> None:
        @zray.remote(_generator_backpressure_num_objects=2)
        def bounded(folder: str) -> Iterator[int]:
            for number in range(10):
                Path(folder, str(number)).touch()
                yield number

        generator = bounded.remote(str(tmp_path))
        first = next(generator)
        eventually((tmp_path / "2").exists, PATIENCE_S)
        assert zray.wait([generator.completed()], timeout=0.2)[0] == []
        assert not (tmp_path / "4").exists()
        assert [zray.get(ref) for ref in (first, *generator)] == list(range(10))

    def test_a_reader_that_leaves_does_not_stop_the_maker(self, tmp_path: Path) -> None:
        @zray.remote(_generator_backpressure_num_objects=1)
        def bounded(path: str) -> Iterator[int]:
            yield from range(5)
            Path(path).touch()

        generator = bounded.remote(str(tmp_path / "ended"))
        next(generator)
        del generator
        eventually((tmp_path / "ended").exists, PATIENCE_S)

    def test_nothing_is_left_of_items_that_nobody_read(self) -> None:
        gc.collect()
        before = eventually(lambda: report("node")["store"]["objects"] + 1)
        generator = blobs.remote(10)
        next(generator)
        del generator
        gc.collect()
        eventually(lambda: report("node")["store"]["objects"] < before, PATIENCE_S)

    @pytest.mark.not_simulated("there is one driver in a simulation")
    def test_nothing_is_left_of_items_that_come_late_to_who_does_nothing_any_more(self) -> None:
        program = f"""
            import time, zray
            zray.init(address={report("node")["endpoint"].split(",")[-1]!r})
            @zray.remote(num_cpus=0)
            def items():
                for number in range(3):
                    yield bytes(200_000)
                    time.sleep(0.3)  # its reader sleeps by then
            generator = items.remote()
            next(generator)
            del generator
            print("closed")
            input()
        """
        gc.collect()
        before = eventually(lambda: report("node")["store"]["objects"] + 1)
        with place() as here:
            other = here.start(textwrap.dedent(program))
            assert line_of(other) == "closed"
            eventually(lambda: len([row for row in report("tasks") if row["state"] == "running"]) == 0)
            eventually(lambda: report("node")["store"]["objects"] < before, PATIENCE_S)
            finish(other, "end\n")

    def test_a_crash_repeats_nothing(self, tmp_path: Path) -> None:
        @zray.remote(max_retries=1)
        def crashes_once(path: str) -> Iterator[int]:
            for number in range(10):
                if number == 6 and not os.path.exists(path):
                    Path(path).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield number

        generator = crashes_once.remote(str(tmp_path / "crashed"))
        assert [zray.get(ref) for ref in generator] == list(range(10))

    def test_a_crash_for_good_is_the_last_ref(self) -> None:
        @zray.remote(max_retries=0)
        def crashes() -> Iterator[int]:
            yield 1
            os.kill(os.getpid(), signal.SIGKILL)

        *items, last = crashes.remote()
        assert zray.get(items) in ([1], [])  # the item may have died with its maker
        with pytest.raises(WorkerCrashedError):
            zray.get(last)

    def test_bounded_and_crashed(self, tmp_path: Path) -> None:
        @zray.remote(max_retries=1, _generator_backpressure_num_objects=1)
        def crashes_once(path: str) -> Iterator[int]:
            for number in range(10):
                if number == 6 and not os.path.exists(path):
                    Path(path).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield number

        generator = crashes_once.remote(str(tmp_path / "crashed"))
        assert [zray.get(ref) for ref in generator] == list(range(10))

    def test_cancelled(self) -> None:
        @zray.remote
        def endless() -> Iterator[int]:
            number = 0
            while True:
                yield number
                number += 1

        generator = endless.options(_generator_backpressure_num_objects=10).remote()
        assert zray.get(next(generator)) == 0
        zray.cancel(generator)
        *_, last = generator
        with pytest.raises(TaskCancelledError):
            zray.get(last)

    @pytest.mark.parametrize("ending", ["dies", "raises"])
    @pytest.mark.parametrize("unconsumed_max", [None, 1])
    def test_a_reader_that_runs_again_reads_all_of_it(
        self, tmp_path: Path, ending: str, unconsumed_max: int | None
    ) -> None:
        again = read_twice.remote(tmp_path / "went on", tmp_path / "begun", ending, unconsumed_max)
        assert zray.get(again, timeout=PATIENCE_S) == list(range(9))

    def test_cannot_be_passed_on(self) -> None:
        with pytest.raises(TypeError, match="one reader"):
            identity.remote(numbers.remote(1))


class TestStreamsOfActors:
    def test_items_and_errors(self) -> None:
        source = Source.remote()
        assert [zray.get(ref) for ref in source.numbers.remote(300)] == list(range(300))
        refs = list(source.numbers.remote(5, raises_at=3))
        assert zray.get(refs[:3]) == [0, 1, 2]
        with pytest.raises(KeyError):
            zray.get(refs[3])

    def test_large_items(self) -> None:
        source = Source.remote()
        assert [zray.get(ref)[0] for ref in source.blobs.remote(10)] == list(range(10))

    def test_bounded(self) -> None:
        source = Source.remote()
        bounded = source.numbers.options(_generator_backpressure_num_objects=1)
        assert [zray.get(ref) for ref in bounded.remote(50)] == list(range(50))

    def test_its_death_is_the_last_ref(self) -> None:
        *items, last = Source.remote().die_after.remote(3)
        assert zray.get(items) == list(range(len(items)))
        with pytest.raises(ActorDiedError):
            zray.get(last)

    def test_a_reader_that_leaves(self) -> None:
        source = Source.remote()
        generator = source.numbers.options(_generator_backpressure_num_objects=1).remote(100)
        next(generator)
        del generator
        gc.collect()
        assert len(list(source.numbers.remote(2))) == 2

    @pytest.mark.parametrize("ending", ["dies", "raises"])
    @pytest.mark.parametrize("unconsumed_max", [None, 1])
    @pytest.mark.parametrize("kind", ["plain", "coroutines"])
    def test_a_reader_that_runs_again_reads_all_of_it(
        self, tmp_path: Path, kind: str, ending: str, unconsumed_max: int | None
    ) -> None:
        source = Source.remote() if kind == "plain" else AsyncSource.remote()
        again = read_actor_twice.remote(source, tmp_path / "begun", ending, unconsumed_max)
        assert zray.get(again, timeout=PATIENCE_S) == list(range(9))

    def test_a_reader_that_dies(self) -> None:
        source = Source.remote()
        with pytest.raises(WorkerCrashedError):
            zray.get(read_one.remote(source), timeout=PATIENCE_S)
        assert len(list(source.numbers.remote(2))) == 2
