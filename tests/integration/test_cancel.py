"""Taking work back: queued, waiting, running, below, by force; actor calls; what is not disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests import clusters, conformance
from tests.support import eventually
from zray.api.cluster import report
from zray.exceptions import GetTimeoutError, RayError, TaskCancelledError

PATIENCE_S = 30
IN_A_LOOP = "what never lets virtual time pass cannot be interrupted"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@pytest.fixture(autouse=True)
def everything_is_free_again(cluster: None) -> Iterator[None]:
    """Whatever was cancelled holds nothing afterwards."""
    yield
    everything = zray.cluster_resources()["CPU"]
    eventually(
        lambda: zray.available_resources().get("CPU") == everything, PATIENCE_S, "that all CPUs are free"
    )
    assert report("tasks") == []


def wait_for(path: str) -> str:
    return str(eventually(lambda: os.path.exists(path) and path, PATIENCE_S))


@zray.remote
def blocks(started: str, go: str = "") -> str:
    Path(started).touch()
    return wait_for(go or f"{started}.go")


@zray.remote
def sleeps(started: str) -> None:
    Path(started).touch()
    time.sleep(PATIENCE_S)


@zray.remote
def spins(started: str) -> None:
    Path(started).touch()
    while True:
        pass


@zray.remote
def echo(value: Any = None) -> Any:
    return value


def is_cancelled(ref: Any) -> None:
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "running",
    [
        pytest.param(sleeps, id="in a system call"),
        pytest.param(spins, id="in a loop", marks=pytest.mark.not_simulated(IN_A_LOOP)),
        pytest.param(blocks, id="polling"),
    ],
)
def test_a_running_task_is_interrupted_at_once(running: Any, tmp_path: Path) -> None:
    ref = running.remote(str(tmp_path / "started"))
    eventually((tmp_path / "started").exists, PATIENCE_S)
    began = time.monotonic()
    zray.cancel(ref)
    is_cancelled(ref)
    assert time.monotonic() - began < 5


@pytest.mark.not_simulated(IN_A_LOOP)
def test_its_worker_goes_on(tmp_path: Path) -> None:
    @zray.remote
    def pid_then_spin(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        while True:
            pass

    @zray.remote
    def pid() -> int:
        return os.getpid()

    path = tmp_path / "pid"
    ref = pid_then_spin.remote(str(path))
    eventually(lambda: path.exists() and path.read_text(), PATIENCE_S)
    zray.cancel(ref)
    is_cancelled(ref)
    assert int(path.read_text()) in zray.get([pid.remote() for _ in range(50)])


def test_a_task_that_waits_inside_get(tmp_path: Path) -> None:
    @zray.remote
    def waits(started: str, refs: list[Any]) -> Any:
        Path(started).touch()
        return zray.get(refs[0])

    inner = blocks.remote(str(tmp_path / "inner"))
    outer = waits.remote(str(tmp_path / "outer"), [inner])
    eventually((tmp_path / "outer").exists, PATIENCE_S)
    zray.cancel(outer)
    is_cancelled(outer)
    zray.cancel(inner)
    is_cancelled(inner)


def test_a_queued_task_never_starts(tmp_path: Path) -> None:
    holders = [blocks.remote(str(tmp_path / f"holder{i}"), str(tmp_path / "go")) for i in range(2)]
    queued = sleeps.remote(str(tmp_path / "queued"))
    zray.cancel(queued)
    is_cancelled(queued)
    (tmp_path / "go").touch()
    zray.get(holders, timeout=PATIENCE_S)
    assert not (tmp_path / "queued").exists()


def test_a_task_that_waits_for_its_inputs(tmp_path: Path) -> None:
    holder = blocks.remote(str(tmp_path / "holder"), str(tmp_path / "go"))
    waiting = echo.remote(holder)
    behind = echo.remote(waiting)
    zray.cancel(waiting)
    is_cancelled(waiting)
    is_cancelled(behind)
    (tmp_path / "go").touch()
    assert zray.get(holder, timeout=PATIENCE_S)


def test_many_queued_tasks_and_those_between_them() -> None:
    refs = [echo.remote(number) for number in range(500)]
    for ref in refs[::2]:
        zray.cancel(ref)
    for number, ref in enumerate(refs):
        try:
            assert zray.get(ref, timeout=PATIENCE_S) == number
        except TaskCancelledError:
            assert number % 2 == 0


def test_what_has_ended_stays() -> None:
    ref = echo.remote(7)
    assert zray.get(ref) == 7
    zray.cancel(ref)
    zray.cancel(ref, force=True)
    assert zray.get(ref) == 7


def test_by_force(tmp_path: Path) -> None:
    @zray.remote(max_retries=5)
    def stubborn(started: str) -> None:
        Path(started).touch()
        while True:
            try:
                time.sleep(PATIENCE_S)
            except KeyboardInterrupt:
                Path(f"{started}.caught").touch()

    started = tmp_path / "started"
    ref = stubborn.remote(str(started))
    eventually(started.exists, PATIENCE_S)
    zray.cancel(ref)
    eventually((tmp_path / "started.caught").exists, PATIENCE_S)
    with pytest.raises(GetTimeoutError):
        zray.get(ref, timeout=0.2)
    zray.cancel(ref, force=True)
    is_cancelled(ref)


def test_children_go_along_unless_they_are_to_stay(tmp_path: Path) -> None:
    @zray.remote(num_cpus=0)
    def child(folder: str) -> None:
        try:
            Path(folder, "started").touch()
            wait_for(f"{folder}/go")
        except KeyboardInterrupt:
            Path(folder, "interrupted").touch()
            raise
        Path(folder, "ended").touch()

    @zray.remote(num_cpus=0)
    def parent(folder: str) -> None:
        zray.get(child.remote(folder))

    for number, recursive in enumerate((True, False) * 4):  # later ones go to leased workers
        folder = tmp_path / str(number)
        folder.mkdir()
        ref = parent.remote(str(folder))
        eventually((folder / "started").exists, PATIENCE_S)
        zray.cancel(ref, recursive=recursive)
        is_cancelled(ref)
        if recursive:
            eventually((folder / "interrupted").exists, PATIENCE_S)
        else:
            (folder / "go").touch()
            eventually((folder / "ended").exists, PATIENCE_S)


def test_lone_tasks_in_a_row(tmp_path: Path) -> None:
    """After a few of them their worker is leased: the node does not see the task at all."""

    @zray.remote
    def maybe(started: str) -> str:
        if started:
            Path(started).touch()
            time.sleep(PATIENCE_S)
        return "done"

    for force in (False, True):
        for _ in range(20):
            assert zray.get(maybe.remote("")) == "done"
        started = tmp_path / str(force)
        ref = maybe.remote(str(started))
        eventually(started.exists, PATIENCE_S)
        zray.cancel(ref, force=force)
        is_cancelled(ref)
    assert zray.get(maybe.remote("")) == "done"


@zray.remote
class Plain:
    def __init__(self) -> None:
        self.log: list[Any] = []

    def add(self, item: Any) -> Any:
        self.log.append(item)
        return item

    def wait_for(self, started: str, go: str) -> bool:
        Path(started).touch()
        wait_for(go)
        return zray.get_runtime_context().is_canceled()

    def read(self) -> list[Any]:
        return self.log


def test_queued_calls_of_an_actor(tmp_path: Path) -> None:
    plain = Plain.remote()
    running = plain.wait_for.remote(str(tmp_path / "started"), str(tmp_path / "go"))
    eventually((tmp_path / "started").exists, PATIENCE_S)
    refs = [plain.add.remote(number) for number in range(5)]
    zray.cancel(refs[2])
    is_cancelled(refs[2])
    (tmp_path / "go").touch()
    assert zray.get(running, timeout=PATIENCE_S) is False
    assert zray.get(plain.read.remote()) == [0, 1, 3, 4]


def test_a_running_call_is_told_and_not_interrupted(tmp_path: Path) -> None:
    plain = Plain.remote()
    running = plain.wait_for.remote(str(tmp_path / "started"), str(tmp_path / "go"))
    eventually((tmp_path / "started").exists, PATIENCE_S)
    zray.cancel(running)
    plain.add.remote("a round trip: the word is there before the reply")
    with pytest.raises(GetTimeoutError):
        zray.get(running, timeout=0.2)
    (tmp_path / "go").touch()
    assert zray.get(running, timeout=PATIENCE_S) is True


def test_calls_of_an_actor_that_is_not_there_yet(tmp_path: Path) -> None:
    holder = blocks.remote(str(tmp_path / "holder"), str(tmp_path / "go"))

    @zray.remote
    class Late:
        def __init__(self, value: Any) -> None:
            self.value = value

        def read(self) -> Any:
            return self.value

    late = Late.remote(holder)
    first, second = late.read.remote(), late.read.remote()
    zray.cancel(first)
    is_cancelled(first)
    (tmp_path / "go").touch()
    assert zray.get(second, timeout=PATIENCE_S)


def test_mistakes() -> None:
    with pytest.raises(TypeError, match="ref of a task"):
        zray.cancel(3)
    with pytest.raises(ValueError, match="put"):
        zray.cancel(zray.put(1))
    plain = Plain.remote()
    ref = plain.wait_for.remote(os.devnull, "/")
    with pytest.raises(ValueError, match=r"zray\.kill"):
        zray.cancel(ref, force=True)
    zray.get(ref, timeout=PATIENCE_S)


def test_an_error_that_pickles() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TaskCancelledError("ab")))
    assert isinstance(error, RayError)
    assert error.task_id == "ab"


@pytest.mark.slow
@pytest.mark.not_simulated("it starts a driver of its own")
def test_a_driver_that_ignores_interrupts() -> None:
    """What a parent ignores stays so across fork and exec, unless somebody sees to it."""
    program = """
        import os, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        import zray
        zray.init(num_cpus=1)

        @zray.remote
        def spins(path):
            open(path, "w").close()
            while True:
                pass

        ref = spins.remote("started")
        while not os.path.exists("started"):
            time.sleep(0.01)
        zray.cancel(ref)
        try:
            zray.get(ref, timeout=20)
        except zray.exceptions.TaskCancelledError:
            print("cancelled")
    """
    with clusters.place() as place:
        assert place.run(program).stdout == "cancelled\n"
