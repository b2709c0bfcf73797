"""The zygote and the node's side of it, with real processes: forking, reaping, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import eventually
from zray.errors import ClusterUnavailableError, LocalProtocolError
from zray.runtime import processes, session_dir, zygote
from zray.runtime.processes import ProcessEvent, WorkerProcesses, ZygoteGone, fork_zygote
from zray.runtime.session_dir import process_start
from zray.runtime.spawning import spawn
from zray.runtime.zygote import Exited, Started

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 2.0
"""How long anything may outlive the process it belongs to."""
SHUTDOWN_S = 5.0


@pytest.fixture(autouse=True)
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short ``$ZRAY_TMPDIR``: pytest's own directories leave no room for the paths of sockets."""
    directory = tempfile.mkdtemp(prefix="zz")
    monkeypatch.setenv("ZRAY_TMPDIR", directory)
    yield Path(directory)
    shutil.rmtree(directory, ignore_errors=True)


Node = Callable[[zygote.WorkerMain], WorkerProcesses]


@pytest.fixture
def node() -> Iterator[Node]:
    """Start zygotes of this process, and end them after the test."""
    started: list[WorkerProcesses] = []

    def start(worker_main: zygote.WorkerMain) -> WorkerProcesses:
        started.append(fork_zygote(worker_main, session_dir.create("node")))
        return started[-1]

    yield start
    for workers in started:
        if workers.fileno() >= 0:
            workers.close(SHUTDOWN_S)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Pids of children of this process that must not outlive the test, even if it fails."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        processes.end_process(pid, 0.0, first_signal=None)


# --- what workers do -----------------------------------------------------------------------------


def sleep(_worker_id: bytes, _session: str) -> int:
    """Run until a signal says otherwise; 42 after ``KeyboardInterrupt``."""
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 42


def exit_with_length(worker_id: bytes, _session: str) -> int:
    return len(worker_id)


def write_ready(session: str, name: str, content: object) -> None:
    """Make ``content`` appear in the session, all of it at once."""
    draft = Path(session, f"{name}.new")
    draft.write_text(json.dumps(content))
    draft.rename(Path(session, name))


def say_ready_and_sleep(worker_id: bytes, session: str) -> int:
    try:
        write_ready(session, f"ready-{worker_id.decode()}", os.getpid())
        return sleep(worker_id, session)
    except KeyboardInterrupt:
        return 42


def start_grandchild_and_sleep(worker_id: bytes, session: str) -> int:
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    write_ready(session, "grandchild", pid)
    return sleep(worker_id, session)


def start_grandchild_and_leave(worker_id: bytes, session: str) -> None:
    write_ready(session, "grandchild", os.posix_spawnp("sleep", ["sleep", "1000"], os.environ))


# --- watching ------------------------------------------------------------------------------------


def receive_until(
    workers: WorkerProcesses, enough: Callable[[list[ProcessEvent]], bool], timeout_s: float = 5.0
) -> list[ProcessEvent]:
    """Everything received until it is ``enough``."""
    deadline = time.monotonic() + timeout_s
    events: list[ProcessEvent] = []
    while not enough(events):
        poller = select.poll()
        poller.register(workers.fileno(), select.POLLIN)
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"only {events}"
        poller.poll(left_s * 1000)
        events += workers.receive()
    return events


def started(count: int) -> Callable[[list[ProcessEvent]], bool]:
    return lambda events: sum(isinstance(event, Started) for event in events) == count


def exited(count: int) -> Callable[[list[ProcessEvent]], bool]:
    return lambda events: sum(isinstance(event, Exited) for event in events) == count


def exit_codes(events: list[ProcessEvent]) -> dict[bytes, int]:
    """Worker -> exit code; fails if one was reported twice."""
    reports = [event for event in events if isinstance(event, Exited)]
    codes = {report.worker_id: report.exit_code for report in reports}
    assert len(codes) == len(reports), "a worker was reported twice"
    return codes


def run_one(workers: WorkerProcesses, worker_id: bytes = b"w") -> tuple[int, str, str]:
    """Start a worker and wait for its end: exit code, standard output, standard error."""
    out, err = (Path(session_of(workers), f"{worker_id.hex()}.{name}") for name in ("out", "err"))
    workers.start(worker_id, stdout=str(out), stderr=str(err))
    codes = exit_codes(receive_until(workers, exited(1)))
    return codes[worker_id], out.read_text(), err.read_text()


def session_of(workers: WorkerProcesses) -> str:
    (session,) = session_dir.list_live()
    assert workers.zygote_pid in [process.pid for process in session.info.processes]
    return session.path


def read_ready(session: str, name: str) -> object:
    path = Path(session, name)
    eventually(path.exists, what=name)
    return json.loads(path.read_text())


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def fork_and_run(body: Callable[[], int]) -> int:
    """Run ``body`` in a child that exits with its answer, and never comes back here; the child's pid."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def are_gone(pids: list[int]) -> bool:
    return all(process_start(pid) is None for pid in pids)


# --- a worker's life -----------------------------------------------------------------------------


def test_a_worker_is_started_runs_and_is_reported_once(node: Node) -> None:
    workers = node(exit_with_length)
    workers.start(b"three")
    assert workers.pids == {b"three": 0}
    events = receive_until(workers, exited(1))
    pid = events[0].pid
    assert events == [Started(b"three", pid), Exited(b"three", pid, 5)]
    assert workers.pids == {}


def test_a_fork_is_much_cheaper_than_an_interpreter(node: Node) -> None:
    workers = node(exit_with_length)
    forked_s, begun_s = [], []
    for number in range(10):
        began_s = time.perf_counter()
        workers.start(b"%d" % number)
        receive_until(workers, exited(1))
        forked_s.append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import cloudpickle, msgspec, zmq"], check=True)
        begun_s.append(time.perf_counter() - began_s)
    assert min(forked_s) < min(begun_s) / 3, (
        "fork, run, exit and reap, beside an interpreter that begins anew"
    )


def test_twenty_workers_at_once(node: Node) -> None:
    workers = node(sleep)
    for number in range(20):
        workers.start(b"%d" % number)
    events = receive_until(workers, started(20))
    pids = [event.pid for event in events]
    assert len(set(pids)) == 20
    assert exit_codes(workers.close(SHUTDOWN_S)) == {b"%d" % number: -9 for number in range(20)}
    assert are_gone(pids)


def test_a_killed_worker_is_reported_once_with_its_signal(node: Node) -> None:
    workers = node(sleep)
    workers.start(b"victim")
    workers.start(b"bystander")
    pids = {event.worker_id: event.pid for event in receive_until(workers, started(2))}
    os.kill(pids[b"victim"], signal.SIGKILL)
    assert receive_until(workers, exited(1)) == [Exited(b"victim", pids[b"victim"], -9)]
    workers.kill(b"victim")  # no error: it is gone
    workers.kill(b"bystander")
    assert receive_until(workers, exited(1)) == [Exited(b"bystander", pids[b"bystander"], -9)]


def test_a_signal_to_a_worker_that_is_still_being_made_is_not_lost(node: Node) -> None:
    workers = node(sleep)
    for number in range(10):  # the zygote itself ignores SIGTERM
        workers.start(b"%d" % number)
        workers.kill(b"%d" % number, signal.SIGTERM)
    assert set(exit_codes(receive_until(workers, exited(10))).values()) == {-signal.SIGTERM}


def test_keyboard_interrupt_works_although_every_ancestor_ignores_sigint(node: Node) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        workers = node(say_ready_and_sleep)
    finally:
        signal.signal(signal.SIGINT, previous)
    workers.start(b"w")
    read_ready(session_of(workers), "ready-w")
    workers.kill(b"w", signal.SIGINT)
    assert exit_codes(receive_until(workers, exited(1))) == {b"w": 42}


def test_a_worker_has_default_signals_and_none_blocked(node: Node) -> None:
    def report(_worker_id: bytes, _session: str) -> None:
        print(json.dumps([
            signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,  # Python raises BrokenPipeError instead
            sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        ]))  # fmt: skip

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        code, out, err = run_one(node(report))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert (code, json.loads(out), err) == (0, [True, True, True, True, []], "")


def test_a_terminal_cannot_reach_zygote_or_worker(node: Node) -> None:
    def report(_worker_id: bytes, _session: str) -> None:
        print(json.dumps([os.getsid(0), os.getpgid(0), os.getpid(), os.getppid()]))

    workers = node(report)
    sid, group, pid, zygote_pid = json.loads(run_one(workers)[1])
    assert (sid, group, zygote_pid) == (workers.zygote_pid, pid, workers.zygote_pid)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(workers.zygote_pid, number)
    assert run_one(workers, b"after")[0] == 0, "the zygote ignores what service managers send to all"


def test_a_worker_main_that_raises_leaves_a_traceback(node: Node) -> None:
    def fail(_worker_id: bytes, _session: str) -> int:
        print("half a line", end="")
        raise LookupError("lost my way")

    code, out, err = run_one(node(fail))
    assert (code, out) == (1, "half a line")
    assert err.startswith("Traceback")
    assert err.rstrip().endswith("LookupError: lost my way")


@pytest.mark.parametrize(
    ("argument", "expected"), [(None, (0, "")), (7, (7, "")), ("that was all", (1, "that was all\n"))]
)
def test_sys_exit_means_what_it_always_means(
    node: Node, argument: int | str | None, expected: tuple[int, str]
) -> None:
    code, _, err = run_one(node(lambda *_: sys.exit(argument)))
    assert (code, err) == expected


def test_a_crash_in_c_says_where(node: Node) -> None:
    def crash(_worker_id: bytes, _session: str) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    code, _, err = run_one(node(crash))
    assert code == -signal.SIGSEGV
    assert "in crash" in err


def test_the_environment_reaches_the_worker_and_nobody_else(node: Node) -> None:
    def exit_with_variable(_worker_id: bytes, _session: str) -> int:
        return int(os.environ.get("ZRAY_TEST_CODE", "0"))

    workers = node(exit_with_variable)
    workers.start(b"told", {"ZRAY_TEST_CODE": "9"})
    workers.start(b"not told")
    assert exit_codes(receive_until(workers, exited(2))) == {b"told": 9, b"not told": 0}


def test_workers_draw_different_random_numbers(node: Node) -> None:
    import numpy as np

    def draw(_worker_id: bytes, _session: str) -> None:
        print(random.random(), np.random.random())

    random.seed(1)
    np.random.seed(1)
    workers = node(draw)
    first, second = (run_one(workers, name)[1].split() for name in (b"a", b"b"))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_worker_holds_nothing_of_the_zygote(node: Node) -> None:
    def list_files(_worker_id: bytes, _session: str) -> None:
        print(json.dumps([descriptor for descriptor in range(256) if is_open(descriptor)]))
        print(os.readlink("/proc/self/fd/0"))
        print(Path("/proc/self/comm").read_text(), end="")

    read_end, write_end = os.pipe()
    code, out, err = run_one(node(list_files))
    assert (code, err) == (0, "")
    files, stdin, name = out.splitlines()
    assert json.loads(files) == [0, 1, 2]
    assert stdin == os.devnull
    assert name == "zray-worker"
    os.close(read_end)
    os.close(write_end)


def test_what_a_worker_started_goes_with_it(node: Node) -> None:
    workers = node(start_grandchild_and_sleep)
    workers.start(b"w")
    grandchild = read_ready(session_of(workers), "grandchild")
    workers.kill(b"w")
    receive_until(workers, exited(1))
    eventually(lambda: are_gone([grandchild]), GONE_S)


def test_what_a_worker_started_goes_when_it_ends_by_itself(node: Node) -> None:
    workers = node(start_grandchild_and_leave)
    workers.start(b"w")
    assert exit_codes(receive_until(workers, exited(1))) == {b"w": 0}
    grandchild = read_ready(session_of(workers), "grandchild")
    eventually(lambda: are_gone([grandchild]), GONE_S)


def test_a_worker_id_is_used_once(node: Node) -> None:
    workers = node(sleep)
    workers.start(b"w")
    with pytest.raises(LocalProtocolError, match="started before"):
        workers.start(b"w")
    with pytest.raises(LocalProtocolError, match="shorten its environment"):
        workers.start(b"v", {"LONG": "x" * zygote.PACKET_BYTES_MAX})
    assert list(workers.pids) == [b"w"]


def test_a_node_that_does_not_read_is_not_held_up(node: Node) -> None:
    workers = node(exit_with_length)
    for number in range(30):
        workers.start(b"%d" % number)
        for _ in range(50):
            workers.kill(b"nobody", signal.SIGTERM)
    assert len(exit_codes(receive_until(workers, exited(30)))) == 30


def test_a_zygote_is_not_forked_beside_threads(children: list[int]) -> None:
    def fork_beside_a_thread() -> int:
        processes._watch_by_polling(os.getppid())
        with pytest.raises(LocalProtocolError, match="before starting a thread"):
            fork_zygote(sleep, session_dir.create("node"))
        return 0

    children.append(fork_and_run(fork_beside_a_thread))
    assert processes.wait_for_exit(children[0], 5.0) == 0


# --- the end of a node ---------------------------------------------------------------------------


def test_close_reports_every_worker_once_and_removes_the_session(node: Node, tmp_path: Path) -> None:
    workers = node(sleep)
    session, segment = session_of(workers), tmp_path / "segment"
    segment.touch()
    workers.adopt(str(segment))
    for number in range(10):  # closed before most of them are forked
        workers.start(b"%d" % number)
    assert exit_codes(workers.close(SHUTDOWN_S)) == {b"%d" % number: -9 for number in range(10)}
    assert not os.path.exists(session)
    assert not segment.exists()
    assert are_gone([workers.zygote_pid])


def test_close_is_bounded_by_its_timeout(node: Node) -> None:
    workers = node(sleep)
    workers.start(b"w")
    (event,) = receive_until(workers, started(1))
    session = session_of(workers)
    os.kill(workers.zygote_pid, signal.SIGSTOP)
    begin_s = time.monotonic()
    assert exit_codes(workers.close(0.2)) == {b"w": -9}
    assert time.monotonic() - begin_s < 1.0
    assert not os.path.exists(session)
    eventually(lambda: are_gone([event.pid, workers.zygote_pid]), GONE_S)


def test_a_killed_zygote_takes_its_workers_along(node: Node) -> None:
    workers = node(sleep)
    for number in range(3):
        workers.start(b"%d" % number)
    pids = [event.pid for event in receive_until(workers, started(3))]
    session = session_of(workers)
    os.kill(workers.zygote_pid, signal.SIGKILL)
    eventually(lambda: are_gone(pids), GONE_S, "workers of a zygote that nobody knows to be dead")
    events = receive_until(workers, lambda events: ZygoteGone() in events)
    assert exit_codes(events) == {b"0": -9, b"1": -9, b"2": -9}
    assert events[-1] == ZygoteGone()
    assert workers.receive() == [], "it is reported once"
    with pytest.raises(ClusterUnavailableError, match="the zygote is gone"):
        workers.start(b"3")
    assert workers.close(SHUTDOWN_S) == []
    assert not os.path.exists(session)


def test_a_killed_node_leaves_nothing_behind(parent: Path, children: list[int]) -> None:
    segment, note = parent / "segment", parent / "note"
    segment.touch()

    def be_node() -> int:
        session = session_dir.create("node")
        Path(session.spill_dir, "object").touch()
        workers = fork_zygote(start_grandchild_and_sleep, session)
        workers.adopt(str(segment))
        for number in range(3):
            workers.start(b"%d" % number)
        pids = [event.pid for event in receive_until(workers, started(3))]
        grandchild = read_ready(session.path, "grandchild")
        write_ready(str(parent), "note", [session.path, [*pids, grandchild, workers.zygote_pid]])
        signal.pause()
        return 0

    child = fork_and_run(be_node)
    children.append(child)
    eventually(note.exists)
    session_path, pids = json.loads(note.read_text())
    assert os.path.isdir(session_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    eventually(lambda: are_gone(pids), GONE_S)
    assert not os.path.exists(session_path), "the zygote goes last"
    assert not segment.exists()


def test_a_segment_is_removed_even_if_the_session_was_cleaned_away(node: Node, tmp_path: Path) -> None:
    workers = node(exit_with_length)
    segment = tmp_path / "segment"
    segment.touch()
    shutil.rmtree(session_of(workers))
    workers.adopt(str(segment))
    workers.close(SHUTDOWN_S)
    assert not segment.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_fork_that_fails_is_an_exit(parent: Path, children: list[int]) -> None:
    os.chmod(parent, 0o777)
    os.chmod(parent.parent, 0o711)  # the tests' own folder, which another user could not pass

    def be_node() -> int:
        if os.getuid() == 0:  # the limit does not bind root
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        workers = fork_zygote(exit_with_length, session_dir.create("node"))
        resource.prlimit(workers.zygote_pid, resource.RLIMIT_NPROC, (0, 0))
        workers.start(b"w")
        events = receive_until(workers, exited(1))
        workers.close(SHUTDOWN_S)
        assert events == [Exited(b"w", 0, zygote.EXIT_NOT_STARTED)]
        return 0

    children.append(fork_and_run(be_node))
    assert processes.wait_for_exit(children[0], 10.0) == 0


# --- watching and spawning -----------------------------------------------------------------------


@pytest.mark.parametrize("watch", [processes.watch_pid, processes._watch_by_polling])
def test_a_watched_process_is_seen_to_end(watch: Callable[[int], int], children: list[int]) -> None:
    child = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    children.append(child)
    descriptor = watch(child)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(0) == []
    os.kill(child, signal.SIGKILL)
    assert poller.poll(GONE_S * 1000), "a zombie is gone, too"
    assert processes.wait_for_exit(child, 1.0) == -9
    with pytest.raises(ProcessLookupError):
        watch(child)
    os.close(descriptor)


def test_a_process_that_ignores_sigterm_is_killed(children: list[int]) -> None:
    def ignore_sigterm() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write_end, b"!")
        signal.pause()
        return 0

    read_end, write_end = os.pipe()
    child = fork_and_run(ignore_sigterm)
    children.append(child)
    os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)
    assert processes.wait_for_exit(child, 0.0) is None
    assert processes.end_process(child, 0.1) == -signal.SIGKILL
    assert processes.wait_for_exit(child, 0.0) == processes.EXIT_UNKNOWN


READY = """
import json, os, signal
from zray.runtime.spawning import announce, take_ready_fd
ready_fd = take_ready_fd()
print("hello from the node", flush=True)
announce(ready_fd, {
    "detached": os.getsid(0) == os.getpid(), "variable": os.environ.get("ZRAY_READY_FD"),
    "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
})
signal.pause()
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_spawn_returns_what_the_program_announces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, children: list[int]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    log = tmp_path / "node.log"
    log.write_text("from before\n")
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        spawned = spawn(python(READY), 10.0, log_path=str(log))
    finally:
        signal.signal(signal.SIGINT, previous)
    children.append(spawned.pid)
    assert spawned.ready == {"detached": True, "variable": None, "interrupts": True}
    assert processes.end_process(spawned.pid, 5.0) == -signal.SIGTERM
    assert log.read_text() == "from before\nhello from the node\n"


def test_a_program_that_dies_early_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("from before\n")
    program = "import sys; print('no port free', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ClusterUnavailableError, match=r"ended before it was ready \(exit code 3\)") as caught:
        spawn(python(program), 10.0, log_path=str(log))
    assert "no port free" in str(caught.value)
    assert "from before" not in str(caught.value)


def test_a_program_that_reports_an_error_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = """
from zray.runtime.spawning import announce, take_ready_fd
announce(take_ready_fd(), {"error": "port 1 is taken"})
"""
    with pytest.raises(ClusterUnavailableError, match=r"failed to start: port 1 is taken \(exit code 0\)"):
        spawn(python(program), 10.0)


def test_a_program_that_is_never_ready_is_ended() -> None:
    begin_s = time.monotonic()
    with pytest.raises(ClusterUnavailableError, match="was not ready in time") as caught:
        spawn(["sleep", "1000"], 0.1)
    assert time.monotonic() - begin_s < 2.0
    assert caught.value.waited_s >= 0.1


def test_a_program_that_does_not_exist_is_named() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ClusterUnavailableError, match="cannot start /no/such/program: No such file"):
        spawn(["/no/such/program"], 1.0)
    assert len(os.listdir("/proc/self/fd")) == before
