"""Lone tasks on leased workers, with real processes: same results, same resources, same failures."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

import zray
from tests.clusters import finish, place
from tests.support import eventually
from zray.api.cluster import report
from zray.exceptions import TaskError

LONE = 20
"""Enough lone tasks for a lease, and to use it."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with zray.init(num_cpus=1):
        yield


@zray.remote
def echo(value: Any = None) -> Any:
    return value


@zray.remote
def where() -> int:
    return os.getpid()


def leased_worker() -> int:
    """The process that is leased to this one for ``where``."""
    pids = [zray.get(where.remote()) for _ in range(LONE)]
    assert len(set(pids[-5:])) == 1
    return pids[-1]


def test_every_kind_of_value_comes_back() -> None:
    values = [1, None, "text", b"x" * 20_000, np.arange(100_000), {"a": [1, 2]}]
    for _ in range(LONE // 2):
        for value in values:
            found = zray.get(echo.remote(value))
            assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def test_refs_inside_a_value_stay_alive() -> None:
    @zray.remote
    def boxed(value: int) -> list[Any]:
        return [zray.put([value])]

    for number in range(LONE):
        box = boxed.remote(number)
        (inner,) = zray.get(box)
        del box
        assert zray.get(inner) == [number]


def test_an_error_is_the_users_own_each_time() -> None:
    @zray.remote
    def fails(number: int) -> None:
        raise KeyError(number)

    for number in range(LONE):
        with pytest.raises(KeyError, match=str(number)) as caught:
            zray.get(fails.remote(number))
        assert isinstance(caught.value, TaskError)


def test_a_ref_can_be_passed_on_before_and_after_its_task_ends() -> None:
    kept = []
    for number in range(LONE):
        ref = echo.remote(number)
        further = echo.remote(ref)  # another task of the same kind, with an input
        assert zray.get([further, ref]) == [number, number]
        kept.append(ref)
    assert zray.get(echo.remote([kept])) == [kept]
    assert zray.get([echo.remote(ref) for ref in kept]) == list(range(LONE))


def test_a_task_that_waits_for_another_lends_its_cpu() -> None:
    """There is one CPU: a leased task that waits must not stand in the way of what it waits for."""

    @zray.remote
    def nested(number: int) -> int:
        return zray.get(echo.remote(number)) + 1

    assert [zray.get(nested.remote(number)) for number in range(LONE)] == list(range(1, LONE + 1))


def test_a_lease_is_no_resource_in_use() -> None:
    for _ in range(3):
        leased_worker()
        assert zray.available_resources()["CPU"] == 1


def test_the_only_worker_is_there_for_another_kind_at_once() -> None:
    @zray.remote
    def other() -> str:
        return "other"

    for _ in range(LONE):
        leased_worker()
        assert zray.get(other.remote(), timeout=10) == "other"


def test_the_only_cpu_is_there_for_another_driver() -> None:
    leased_worker()
    program = """
        import zray
        zray.init(address={address!r})
        @zray.remote
        def triple(x): return 3 * x
        print(sum(zray.get(triple.remote(x)) for x in range(20)))
    """
    address = report("node")["endpoint"]
    with place() as here:
        done = here.run(textwrap.dedent(program).format(address=address))
    assert (done.stdout.strip(), done.stderr) == ("570", "")


def test_a_leased_worker_that_is_killed_between_tasks_is_replaced() -> None:
    for _ in range(5):
        os.kill(leased_worker(), signal.SIGKILL)
        assert zray.get(echo.remote("next"), timeout=30) == "next"


def test_a_leased_worker_that_dies_in_its_task_costs_one_retry(tmp_path: Any) -> None:
    @zray.remote(max_retries=1)
    def dies_at(number: int, fatal: int) -> int:
        if number == fatal:
            with open(tmp_path / "attempts", "a") as note:
                note.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    for number in range(LONE):
        zray.get(dies_at.remote(number, -1))
    with pytest.raises(zray.exceptions.WorkerCrashedError) as caught:
        zray.get(dies_at.remote(1, 1))
    assert caught.value.attempts == 2
    assert (tmp_path / "attempts").read_text() == "xx"


def test_what_must_not_run_twice_never_does(tmp_path: Any) -> None:
    @zray.remote(max_retries=0)
    def once(number: int) -> int:
        with open(tmp_path / str(number), "a") as note:
            note.write("x")
        if number % 5 == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    for number in range(LONE):
        if number % 5 == 4:
            with pytest.raises(zray.exceptions.WorkerCrashedError):
                zray.get(once.remote(number))
        else:
            assert zray.get(once.remote(number)) == number
    assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}


def test_an_unused_lease_ends_by_itself() -> None:
    leased_worker()
    eventually(lambda: all(row["state"] != "leased" for row in report("workers")), 10.0)


def test_every_task_is_recorded() -> None:
    """What did not pass the node is in its count of finished tasks all the same."""
    before = report("node")["tasks"]["finished"]
    for _ in range(100):
        zray.get(echo.remote())
    assert report("node")["tasks"]["finished"] == before + 100


def test_leases_come_and_go_between_bursts() -> None:
    """The same worker is leased, taken back and leased again, hundreds of times."""
    for turn in range(200):
        assert [zray.get(echo.remote(number)) for number in range(5)] == list(range(5))
        assert zray.get([echo.remote(turn) for _ in range(5)]) == [turn] * 5


def test_a_submitter_that_is_stopped_keeps_nobody_from_the_worker() -> None:
    """The lease is taken back from the worker, whatever its submitter does."""
    stopped = """
        import os, signal, zray
        from zray.api.cluster import report
        zray.init(num_cpus=1)
        @zray.remote
        def f(x): return x
        for x in range(20):
            assert zray.get(f.remote(x)) == x
        print(report("node")["endpoint"], flush=True)
        assert zray.get([f.remote(x) for x in range(20)]) == list(range(20))
        for x in range(20):
            assert zray.get(f.remote(x)) == x
        os.kill(os.getpid(), signal.SIGSTOP)
        assert zray.get(f.remote("on")) == "on"
    """
    other = """
        import zray
        zray.init(address={address!r})
        @zray.remote
        def g(x): return x + 1
        assert [zray.get(g.remote(x), timeout=20) for x in range(20)] == list(range(1, 21))
    """
    with place() as here:
        first = here.start(textwrap.dedent(stopped))
        assert first.stdout is not None
        address = first.stdout.readline().strip()
        eventually(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, 20.0)
        done = here.run(textwrap.dedent(other).format(address=address))
        assert (done.returncode, done.stderr) == (0, "")
        first.send_signal(signal.SIGCONT)
        assert finish(first).returncode == 0
