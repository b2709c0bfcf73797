"""How far a wait is, and arguments that are too much: what a person is told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import zray
from tests import conformance
from tests.integration.programs import run_script
from tests.integration.remotes import PATIENCE_S, echo


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@zray.remote
def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_a_wait_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    refs = [echo.remote(number) for number in range(20)]
    ready, _ = zray.wait(refs, num_returns=20, timeout=PATIENCE_S, progress=lambda *far: told.append(far))
    assert len(ready) == 20
    assert told == sorted(told)
    assert told[-1] == (20, 20)
    assert len(told) <= 20
    never = sleep.remote(PATIENCE_S)
    told.clear()
    pair = [refs[0], never]
    _, left = zray.wait(pair, num_returns=2, timeout=0.2, progress=lambda *far: told.append(far))
    assert left == [never]
    assert told[-1] == (1, 2)
    zray.cancel(never)
    with pytest.raises(TypeError, match="progress"):
        zray.wait(refs, progress=3)  # type: ignore[arg-type]


def test_progress_and_huge_arguments_are_said_on_standard_error() -> None:
    done = run_script(
        """
        import zray
        zray.init(num_cpus=1)
        @zray.remote
        def size(data):
            return len(data)
        large = zray.put(bytes(300_000))
        refs = [size.remote(bytes(200_000)) for _ in range(3)] + [size.remote(large)]
        zray.wait(refs, num_returns=4, progress=True)
        print(zray.get(refs))
        """,
        ZRAY_ARGUMENTS_WARN_BYTES="100000",
    )
    assert done.stdout.strip() == "[200000, 200000, 200000, 300000]", done.stderr
    assert done.stderr.count("put() what is large once") == 1
    assert "size() is called with 200" in done.stderr
    assert "4 of 4 ready after " in done.stderr
