"""Session directories: safe to use, found again, and removed exactly when nobody lives in them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zray.runtime import session_dir
from zray.runtime.session_dir import ProcessStamp, Session, SessionInfo


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short ``$ZRAY_TMPDIR``: pytest's own directories leave no room for the paths of sockets."""
    directory = tempfile.mkdtemp(prefix="zs")
    monkeypatch.setenv("ZRAY_TMPDIR", directory)
    yield Path(directory)
    shutil.rmtree(directory, ignore_errors=True)


def dead_stamp() -> ProcessStamp:
    """The stamp of a process that has ended and was reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return ProcessStamp(pid, 1)


def inhabit(session: Session, *processes: ProcessStamp) -> None:
    """Make ``processes`` the only ones of the session."""
    session.info.processes = list(processes)
    session.set_address(session.info.address)


def dead_session() -> Session:
    session = session_dir.create("node")
    inhabit(session, dead_stamp())
    return session


def age(path: str, seconds: float) -> None:
    then = os.lstat(path).st_mtime - seconds
    os.utime(path, (then, then))


def test_a_base_that_cannot_be_made_is_answered_with_the_variable(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRAY_TMPDIR", str(parent / "missing"))
    with pytest.raises(FileNotFoundError, match="set ZRAY_TMPDIR to a directory"):
        session_dir.ensure_base_dir()


def test_a_session_is_private_and_holds_its_places(parent: Path) -> None:
    session = session_dir.create("node")
    assert Path(session.path).parent == parent / f"zray-{os.getuid()}"
    for path in (session_dir.base_dir(), session.path, session.spill_dir, session.logs_dir):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o700
    assert session_dir.load(session.path).info == session.info
    assert session.info.processes == [ProcessStamp(os.getpid(), session_dir.process_start(os.getpid()))]


@pytest.mark.usefixtures("parent")
def test_the_base_survives_a_umask_that_takes_nothing_needed() -> None:
    previous = os.umask(0)
    try:
        session_dir.create("node")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.lstat(session_dir.base_dir()).st_mode) == 0o700


@pytest.mark.usefixtures("parent")
def test_a_base_that_others_may_enter_is_refused() -> None:
    os.mkdir(session_dir.base_dir(), 0o700)
    os.chmod(session_dir.base_dir(), 0o755)
    with pytest.raises(PermissionError, match="its mode is 755, not 700"):
        session_dir.create("node")


def test_a_symbolic_link_as_base_is_refused(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    os.symlink(elsewhere, session_dir.base_dir())
    with pytest.raises(PermissionError, match="symbolic link"):
        session_dir.create("node")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.usefixtures("parent")
def test_a_file_as_base_is_refused() -> None:
    Path(session_dir.base_dir()).touch(mode=0o700)
    with pytest.raises(PermissionError, match="not a directory"):
        session_dir.create("node")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.usefixtures("parent")
def test_a_base_of_somebody_else_is_refused() -> None:
    os.mkdir(session_dir.base_dir(), 0o700)
    os.chown(session_dir.base_dir(), 65534, -1)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        session_dir.create("node")


def test_every_socket_path_fits(monkeypatch: pytest.MonkeyPatch, parent: Path) -> None:
    room = session_dir.BASE_PATH_MAX - len(f"/zray-{os.getuid()}")
    longest = parent / ("x" * (room - len(str(parent)) - 1))
    longest.mkdir()
    monkeypatch.setenv("ZRAY_TMPDIR", str(longest))
    path = session_dir.create("node").socket_path("s" * session_dir.SOCKET_NAME_MAX)
    assert len(path) == session_dir.SOCKET_PATH_MAX
    monkeypatch.setenv("ZRAY_TMPDIR", f"{longest}x")
    with pytest.raises(OSError, match=f"at most {room}"):
        session_dir.create("node")


def test_a_long_tmpdir_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZRAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    assert session_dir.base_dir() == f"/tmp/short/zray-{os.getuid()}"
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 90)
    assert session_dir.base_dir() == f"/tmp/zray-{os.getuid()}"


@pytest.mark.usefixtures("parent")
@pytest.mark.parametrize("name", ["", "a/b", "x" * (session_dir.SOCKET_NAME_MAX + 1)])
def test_a_name_that_is_no_socket_name_is_refused(name: str) -> None:
    session = session_dir.create("node")
    with pytest.raises(ValueError, match="1 to 40 bytes"):
        session.socket_path(name)


@pytest.mark.usefixtures("parent")
def test_latest_is_the_newest_with_an_address_and_a_live_server() -> None:
    assert session_dir.latest() is None
    first, second = session_dir.create("node"), session_dir.create("node")
    assert session_dir.latest() is None, "nobody has an address yet"
    first.set_address("ipc://first")
    second.set_address("ipc://second")
    latest = session_dir.latest()
    assert latest is not None
    assert (latest.path, latest.info.address) == (second.path, "ipc://second")
    # The server is gone, its zygote still cleans up: alive for a sweep, not for a driver.
    inhabit(second, dead_stamp(), *second.info.processes)
    assert [session.path for session in session_dir.list_live()] == [second.path, first.path]
    latest = session_dir.latest()
    assert latest is not None
    assert latest.path == first.path


@pytest.mark.usefixtures("parent")
def test_a_sweep_removes_the_dead_and_only_them(tmp_path: Path) -> None:
    live, dead = session_dir.create("node"), dead_session()
    (Path(dead.spill_dir) / "object").write_bytes(b"spilled")
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").touch()
    os.symlink(treasure, Path(dead.path) / "link")
    segment, foreign = tmp_path / "segment", tmp_path / "foreign"
    segment.touch()
    foreign.touch()
    session_dir.adopt(dead.path, str(segment))
    session_dir.adopt(live.path, str(foreign))

    assert session_dir.sweep() == 1
    assert os.listdir(session_dir.base_dir()) == [os.path.basename(live.path)]
    assert not segment.exists()
    assert foreign.exists()
    assert (treasure / "gold").exists(), "links are not followed"
    assert session_dir.sweep() == 0


@pytest.mark.usefixtures("parent")
def test_a_recycled_pid_does_not_keep_a_session() -> None:
    session = session_dir.create("node")
    mine = session.info.processes[0]
    inhabit(session, ProcessStamp(mine.pid, mine.start - 1))
    assert session_dir.list_live() == []
    assert session_dir.sweep() == 1


@pytest.mark.usefixtures("parent")
def test_a_zombie_does_not_keep_a_session() -> None:
    session = session_dir.create("node")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    session.add_process(child)
    inhabit(session, session.info.processes[1])
    assert session_dir.sweep() == 0
    os.close(write_end)
    os.close(read_end)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert session_dir.sweep() == 1
    os.waitpid(child, 0)


@pytest.mark.usefixtures("parent")
def test_what_cannot_be_judged_is_left_alone() -> None:
    elsewhere, earlier = dead_session(), session_dir.create("node")
    elsewhere.info.machine = "another-host pid:[1]"
    elsewhere.set_address("tcp://another-host:1")
    earlier.info.boot = "the boot before"
    earlier.set_address("")
    assert session_dir.list_live() == []
    assert session_dir.sweep() == 1, "of the boot before nothing is alive, whatever the pids say"
    assert os.path.isdir(elsewhere.path)


@pytest.mark.usefixtures("parent")
def test_a_session_in_the_making_has_time() -> None:
    damaged, empty = session_dir.create("node"), Path(session_dir.base_dir()) / "00000000"
    Path(damaged.path, "session.json").write_bytes(b"{")
    empty.mkdir()
    assert session_dir.sweep() == 0
    age(damaged.path, session_dir.UNREADABLE_GRACE_S + 1)
    age(str(empty), session_dir.UNREADABLE_GRACE_S + 1)
    assert session_dir.sweep() == 2
    with pytest.raises(OSError, match=r"session\.json"):
        session_dir.load(damaged.path)


@pytest.mark.usefixtures("parent")
def test_an_interrupted_removal_is_finished(tmp_path: Path) -> None:
    session, segment = dead_session(), tmp_path / "segment"
    segment.touch()
    session_dir.adopt(session.path, str(segment))
    base, name = os.path.split(session.path)
    os.rename(session.path, os.path.join(base, f".dead-{name}"))
    assert session_dir.sweep() == 0, "somebody else's removal"
    assert os.listdir(base) == []
    assert not segment.exists()
    assert session_dir.remove(session.path) is False


def test_a_sweep_without_a_base_finds_nothing(parent: Path) -> None:
    assert session_dir.sweep() == 0
    assert list(parent.iterdir()) == []


@pytest.mark.usefixtures("parent")
def test_racing_sweepers_remove_each_session_once() -> None:
    live = session_dir.create("node")
    stamp = dead_stamp()
    for _ in range(60):
        inhabit(session_dir.create("node"), stamp)
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(4), context.SimpleQueue()

    def race() -> None:
        barrier.wait()
        counts.put(session_dir.sweep())

    sweepers = [context.Process(target=race) for _ in range(4)]
    for sweeper in sweepers:
        sweeper.start()
    for sweeper in sweepers:
        sweeper.join(10)
    assert [sweeper.exitcode for sweeper in sweepers] == [0] * 4
    assert sum(counts.get() for _ in sweepers) == 60
    assert os.listdir(session_dir.base_dir()) == [os.path.basename(live.path)]


def test_an_older_session_file_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_bytes(b'{"kind":"node","later_field":1}')
    assert session_dir.load(str(tmp_path)).info == SessionInfo("node")


@pytest.mark.usefixtures("parent")
def test_only_absolute_paths_are_adopted() -> None:
    with pytest.raises(ValueError, match="absolute"):
        session_dir.adopt(session_dir.create("node").path, "segment")
