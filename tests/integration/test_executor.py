"""The standard library's executor interface on tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures as futures
import os
import time
from collections.abc import Iterator

import pytest

from tests import conformance
from tests.support import eventually
from zray.util import Executor, state

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


def test_submit_and_errors() -> None:
    with Executor() as executor:
        assert executor.submit(pow, 2, 10).result(PATIENCE_S) == 1024
        assert executor.submit(int, "ff", base=16).result(PATIENCE_S) == 255
        assert executor.submit(os.getpid).result(PATIENCE_S) != os.getpid()
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(PATIENCE_S)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(pow, 2, 2)


def test_map_keeps_the_order() -> None:
    with Executor(num_cpus=0.5) as executor:
        assert list(executor.map(pow, range(10), [2] * 10)) == [number**2 for number in range(10)]
        assert list(executor.map(str, range(10), chunksize=4)) == [str(number) for number in range(10)]
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(str, [1], chunksize=0)
        with pytest.raises(TimeoutError):
            list(executor.map(time.sleep, [60], timeout=0.2))


def test_as_completed_and_event_loops() -> None:
    with Executor() as executor:
        submitted = [executor.submit(pow, 2, number) for number in range(5)]
        done = [future.result() for future in futures.as_completed(submitted, timeout=PATIENCE_S)]
        assert sorted(done) == [1, 2, 4, 8, 16]

        async def main() -> int:
            return await asyncio.get_running_loop().run_in_executor(executor, pow, 3, 3)

        assert asyncio.run(main()) == 27


def test_what_is_cancelled_ends() -> None:
    executor = Executor()
    submitted = [executor.submit(time.sleep, 60) for _ in range(3)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in submitted)
    eventually(lambda: not state.list_tasks(), PATIENCE_S)
