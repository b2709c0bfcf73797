"""Start processes and learn that they are gone: the node's side of the zygote, and ``init``'s of a node.

``WorkerProcesses`` is one more descriptor in the node's poll loop. Its invariant: every accepted ``start``
is answered by exactly one ``Exited``, even when the zygote itself is killed.

``spawn`` starts a program in a session of its own, so that a Ctrl-C meant for the driver does not reach it,
and waits for the one line of JSON that the program writes with ``announce`` once it can be used. It uses
``posix_spawn``: that copies no page tables, is safe in a driver with threads, and saves the 6 ms of
importing ``subprocess``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec

from zray.errors import ClusterUnavailableError, LocalProtocolError
from zray.runtime import session_dir, zygote
from zray.runtime.session_dir import Session
from zray.runtime.zygote import AdoptPath, EndZygote, Exited, ForkWorker, SignalWorker, Started, WorkerMain

if TYPE_CHECKING:  # 5 ms that a driver need not pay
    from socket import socket

SEND_TIMEOUT_S = 5.0
"""How long the node waits for a zygote that takes no requests; it empties its channel every few ms."""
WATCH_INTERVAL_MS = 100
"""How often ``watch_pid`` looks where the system cannot tell by itself."""
READY_BYTES_MAX = 64 * 1024
OUTPUT_TAIL_BYTES = 4096
EXIT_GRACE_S = 0.5
"""How long a program that failed to start has to leave by itself."""
EXIT_UNKNOWN = 255
"""Exit code of a child that somebody else in this process has reaped."""

_READY_FD_VARIABLE = "ZRAY_READY_FD"
_READY_FD = 3
# A parent under nohup ignores some of these, and what is ignored stays so across exec.
_DEFAULT_IN_SPAWNED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
)  # fmt: skip


class ZygoteGone(NamedTuple):
    """The zygote died by itself: no worker can be started any more. Every worker was reported before."""


ProcessEvent = Started | Exited | ZygoteGone


def fork_zygote(
    worker_main: WorkerMain, session: Session, prepare: Callable[[], None] | None = None
) -> WorkerProcesses:
    """Fork the zygote of this node.

    Args:
        prepare: runs in the zygote before it serves; what it imports is there in every worker.
    Raises:
        LocalProtocolError: if this process has threads already: a fork would copy their locks, held.
    """
    if threading.active_count() > 1:
        raise LocalProtocolError("fork the zygote before starting a thread")
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_zygote(theirs, worker_main, session.path, prepare)
    theirs.close()
    session.add_process(pid)
    return WorkerProcesses(ours, pid, session.path)


def _be_zygote(
    channel: socket, worker_main: WorkerMain, session_path: str, prepare: Callable[[], None] | None
) -> NoReturn:
    code = 1
    try:
        zygote.run_zygote(channel, worker_main, session_path, prepare)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


class WorkerProcesses:
    """The workers of a node, started by its zygote. For one thread."""

    def __init__(self, channel: socket, zygote_pid: int, session_path: str) -> None:
        self.zygote_pid = zygote_pid
        self.pids: dict[bytes, int] = {}
        """Workers asked for and not reported gone -> pid, 0 until ``Started`` was received."""
        self._channel = channel
        self._session_path = session_path
        self._gone = False
        channel.setblocking(False)

    def start(
        self,
        worker_id: bytes,
        environment: Mapping[str, str] | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
    ) -> None:
        """Ask for a worker; ``Started`` and, later, ``Exited`` will be received.

        Args:
            worker_id: bytes, never used before.
            environment: added to the node's own.
            stdout, stderr: files to append to; ``None`` inherits the node's.
        Raises:
            ClusterUnavailableError: if the zygote is gone or stuck.
            LocalProtocolError: if a worker has this id, or the environment is too large.
        """
        if worker_id in self.pids:
            raise LocalProtocolError(f"worker {worker_id.hex()} was started before")
        self._send(ForkWorker(worker_id, dict(environment or {}), stdout, stderr))
        self.pids[worker_id] = 0

    def kill(self, worker_id: bytes, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a worker. No error if it is gone, and no event: ``Exited`` says what it did."""
        self._send(SignalWorker(worker_id, signal.Signals(signal_number)))

    def adopt(self, path: str) -> None:
        """Have an absolute path outside the session directory removed with it, whoever dies first."""
        if not os.path.isabs(path):
            raise ValueError(f"only an absolute path can be adopted: {path!r}")
        self._send(AdoptPath(path))

    def fileno(self) -> int:
        """Readable when ``receive`` has something to return; for ever, after ``ZygoteGone``."""
        return self._channel.fileno()

    def receive(self) -> list[ProcessEvent]:
        """What happened since the last call, in order; never blocks.

        When the zygote is gone, the kernel has killed its workers: they are reported, then ``ZygoteGone``,
        once, and ``start`` raises from then on.
        """
        events: list[ProcessEvent] = []
        while not self._gone:
            try:
                packet = self._channel.recv(zygote.PACKET_BYTES_MAX)
            except BlockingIOError:
                break
            except ConnectionResetError:  # it died with requests unread
                packet = b""
            if packet:
                events.append(self._note(zygote.decode_report(packet)))
            else:
                events.extend(self._lose_zygote())
        return events

    def close(self, timeout_s: float) -> list[ProcessEvent]:
        """End the zygote and with it every worker and the session; kill it if that takes too long.

        Returns:
            The events not received so far; one ``Exited`` for each worker among them.
        """
        deadline = time.monotonic() + timeout_s
        events: list[ProcessEvent] = []
        with contextlib.suppress(ClusterUnavailableError):
            self._send(EndZygote(), timeout_s)
        while not self._gone and _readable(self._channel.fileno(), deadline - time.monotonic()):
            events += self.receive()
        end_process(self.zygote_pid, deadline - time.monotonic(), first_signal=None)
        events += self.receive()
        self._channel.close()
        session_dir.remove(self._session_path)  # unless the zygote did
        return [event for event in events if not isinstance(event, ZygoteGone)]

    def _send(self, request: zygote.Request, timeout_s: float = SEND_TIMEOUT_S) -> None:
        packet = zygote.encode_packet(request)
        if len(packet) > zygote.PACKET_BYTES_MAX:
            raise LocalProtocolError(f"{len(packet)} bytes for one worker; shorten its environment")
        if self._gone:
            raise ClusterUnavailableError("the zygote is gone", 0.0)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._channel.send(packet)
                return
            except BlockingIOError:
                if not _writable(self._channel.fileno(), deadline - time.monotonic()):
                    raise ClusterUnavailableError("the zygote takes no requests", timeout_s) from None
            except (BrokenPipeError, ConnectionResetError):
                return  # receive() reports it, this worker included

    def _note(self, report: zygote.Report) -> ProcessEvent:
        if isinstance(report, Started):
            self.pids[report.worker_id] = report.pid
        else:
            del self.pids[report.worker_id]
        return report

    def _lose_zygote(self) -> list[ProcessEvent]:
        self._gone = True
        events: list[ProcessEvent] = []
        for worker_id, pid in self.pids.items():
            if pid:
                # Linux has killed the worker already; this ends what its code left in its process group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            events.append(Exited(worker_id, pid, -signal.SIGKILL))
        self.pids.clear()
        events.append(ZygoteGone())
        return events


# --- waiting for the end of a process ------------------------------------------------------------


def watch_pid(pid: int) -> int:
    """A descriptor, the caller's to close, that polls readable once the process ``pid`` is gone.

    Linux has one (pidfd). Elsewhere a daemon thread looks every ``WATCH_INTERVAL_MS`` and closes a pipe.

    Raises:
        ProcessLookupError: if there is no such process now.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError:  # a kernel or a sandbox without it
            pass
    return _watch_by_polling(pid)


def _watch_by_polling(pid: int) -> int:
    start = session_dir.process_start(pid)
    if start is None:
        raise ProcessLookupError(f"no process {pid}")
    read_end, write_end = os.pipe()
    process = session_dir.ProcessStamp(pid, start)
    threading.Thread(target=_close_when_gone, args=(process, write_end), daemon=True).start()
    return read_end


def _close_when_gone(process: session_dir.ProcessStamp, write_end: int) -> None:
    poller = select.poll()
    poller.register(write_end, 0)  # reports only that the read end was closed: nobody watches any more
    while not poller.poll(WATCH_INTERVAL_MS) and session_dir.is_alive(process):
        pass
    os.close(write_end)


def signal_process(process: session_dir.ProcessStamp, number: int) -> bool:
    """Send a signal to this very process, whoever's child it is; false if it is gone."""
    try:
        watch = watch_pid(process.pid)
    except ProcessLookupError:
        return False
    try:  # the descriptor keeps the pid from being used again between the look and the signal
        if not session_dir.is_alive(process):
            return False
        _send_signal(process.pid, number)
        return True
    finally:
        os.close(watch)


def wait_for_exit(pid: int, timeout_s: float) -> int | None:
    """Wait for a child of this process and reap it.

    Returns:
        Its exit code, negative for a signal; ``None`` if it runs on; ``EXIT_UNKNOWN`` if it was reaped
        elsewhere.
    """
    try:
        watch = watch_pid(pid)
    except ProcessLookupError:
        return _reap(pid)
    try:
        _readable(watch, timeout_s)
        return _reap(pid)
    finally:
        os.close(watch)


def end_process(pid: int, timeout_s: float, first_signal: int | None = signal.SIGTERM) -> int:
    """End a child of this process: ask with ``first_signal``, and SIGKILL it after ``timeout_s``.

    Returns:
        Its exit code, as for :func:`wait_for_exit`.
    """
    if first_signal is not None:
        _send_signal(pid, first_signal)
    code = wait_for_exit(pid, timeout_s)
    if code is None:
        _send_signal(pid, signal.SIGKILL)
        code = wait_for_exit(pid, SEND_TIMEOUT_S)
    return EXIT_UNKNOWN if code is None else code


def _reap(pid: int) -> int | None:
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return EXIT_UNKNOWN
    return os.waitstatus_to_exitcode(status) if reaped else None


def _send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _readable(descriptor: int, timeout_s: float) -> bool:
    return _poll(descriptor, select.POLLIN, timeout_s)


def _writable(descriptor: int, timeout_s: float) -> bool:
    return _poll(descriptor, select.POLLOUT, timeout_s)


def _poll(descriptor: int, wanted: int, timeout_s: float) -> bool:
    # Not select(): a node has more descriptors than that can number.
    poller = select.poll()
    poller.register(descriptor, wanted)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))


# --- starting a node or a shard ------------------------------------------------------------------


class Spawned(NamedTuple):
    """A child of this process that said it is ready; end it with :func:`end_process`."""

    pid: int
    ready: dict[str, Any]


class NotReadyError(Exception):
    """Why a spawned program cannot be used; becomes part of a ``ClusterUnavailableError``."""

    def __init__(self, reason: str, still_runs: bool) -> None:
        super().__init__(reason)
        self.still_runs = still_runs


class Spawning:
    """A program of the cluster on its way up. End the wait with :meth:`wait` or :meth:`give_up`.

    It gets a session of its own, default signals and no standard input. Its output is appended to
    ``log_path``; without one it shares the output of this process. Sharing the open file, and not opening
    it once more, keeps both from writing over each other where it is a regular file.

    Args:
        argv: the program, found along ``$PATH``, and its arguments.
        name: how messages call it; ``None``: its command line.
        environment: all of its environment; ``None``: that of this process.
    Raises:
        ClusterUnavailableError: if there is no such program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        log_path: str | None = None,
    ) -> None:
        self._name = name or _command(argv)
        self._started = time.monotonic()
        self._files = contextlib.ExitStack()
        self._log = -1
        self._log_start = 0
        with contextlib.ExitStack() as files:
            if log_path is not None:
                log = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                self._log = _own_high(files, log)
                self._log_start = os.lseek(self._log, 0, os.SEEK_END)
            every = dict(os.environ if environment is None else environment)
            self.pid, self._ready_end = _launch(argv, every, self._log)
            files.callback(os.close, self._ready_end)
            self._files = files.pop_all()

    def wait(self, timeout_s: float) -> Spawned:
        """Wait until it calls :func:`announce`.

        Args:
            timeout_s: counted from its start.
        Raises:
            ClusterUnavailableError: if it reports an error, dies or is not ready in time. It is ended then,
                and the end of ``log_path`` is in the message.
        """
        try:
            ready = _await_ready(self._ready_end, self.pid, self._started + timeout_s)
            self._files.close()
            return Spawned(self.pid, ready)
        except NotReadyError as problem:
            code = end_process(self.pid, EXIT_GRACE_S, signal.SIGTERM if problem.still_runs else None)
            tail = _tail(self._log, self._log_start) if self._log >= 0 else ""
            what = f"{self._name} {problem} (exit code {code}){tail}"
            self._files.close()
            raise ClusterUnavailableError(what, time.monotonic() - self._started) from None
        except BaseException:  # Ctrl-C while it starts
            self.give_up()
            raise

    def give_up(self) -> None:
        """End it."""
        end_process(self.pid, EXIT_GRACE_S)
        self._files.close()


def spawn(
    argv: Sequence[str],
    ready_timeout_s: float,
    *,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
    log_path: str | None = None,
) -> Spawned:
    """Start a program of the cluster and wait until it is ready; see :class:`Spawning`.

    Raises:
        ClusterUnavailableError: if it does not start, reports an error, dies or is not ready in time.
    """
    return Spawning(argv, name=name, environment=environment, log_path=log_path).wait(ready_timeout_s)


def launch(argv: Sequence[str]) -> int:
    """Start a program as :func:`spawn` does, without waiting for it; its pid.

    Raises:
        ClusterUnavailableError: if it cannot be started.
    """
    pid, ready_end = _launch(argv, dict(os.environ), -1)
    os.close(ready_end)
    return pid


def take_ready_fd() -> int | None:
    """In a spawned program: where to :func:`announce`; ``None`` if it was started by hand.

    Call it before forking or starting anything: it takes the descriptor out of the environment.
    """
    text = os.environ.pop(_READY_FD_VARIABLE, None)
    if text is None:
        return None
    os.set_inheritable(int(text), False)
    return int(text)


def announce(ready_fd: int | None, ready: Mapping[str, Any]) -> None:
    """In a spawned program: tell ``spawn``, once, where to connect; ``{"error": sentence}``: why not."""
    if ready_fd is None:
        return
    with contextlib.suppress(BrokenPipeError):  # the spawner is gone; whoever watches it will notice
        os.write(ready_fd, msgspec.json.encode(ready) + b"\n")
    os.close(ready_fd)


def _own_high(files: contextlib.ExitStack, descriptor: int) -> int:
    """Move a descriptor above those that a spawned program gets at fixed numbers; ``files`` closes it."""
    high: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _READY_FD + 1)
    os.close(descriptor)
    files.callback(os.close, high)
    return high


def _launch(argv: Sequence[str], environment: dict[str, str], output: int) -> tuple[int, int]:
    """Start a program; its pid and the read end of the pipe that it announces on."""
    read_end, write_end = os.pipe()
    with contextlib.ExitStack() as files:
        high_write_end = _own_high(files, write_end)
        environment[_READY_FD_VARIABLE] = str(_READY_FD)
        try:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    *(_output_action(descriptor, output) for descriptor in (1, 2)),
                    (os.POSIX_SPAWN_DUP2, high_write_end, _READY_FD),
                ),
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_IN_SPAWNED,
            )
        except OSError as error:
            os.close(read_end)
            raise ClusterUnavailableError(f"cannot start {_command(argv)}: {error.strerror}", 0.0) from error
    return pid, read_end


def _output_action(descriptor: int, output: int) -> tuple[Any, ...]:
    """What a spawned program gets as ``descriptor``: ``output``, or this process's own if that is -1."""
    if output >= 0:
        return os.POSIX_SPAWN_DUP2, output, descriptor
    # Closed since the start: whatever file has the number now is not meant for output. The program gets an
    # open one, so that this cannot happen to it.
    if (sys.__stdout__ if descriptor == 1 else sys.__stderr__) is None or not _is_open(descriptor):
        return os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0
    return os.POSIX_SPAWN_DUP2, descriptor, descriptor


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _await_ready(ready_end: int, pid: int, deadline: float) -> dict[str, Any]:
    """The one line that the program announces.

    Raises:
        NotReadyError: if it dies, reports an error, or writes no such line by ``deadline``.
    """
    line = b""
    # Its end of the pipe closes when it dies, unless it forked before: then the deadline ends this.
    while not line.endswith(b"\n"):
        if not _readable(ready_end, deadline - time.monotonic()):
            raise NotReadyError("was not ready in time", still_runs=True)
        part = os.read(ready_end, READY_BYTES_MAX)
        line += part
        if not part or len(line) > READY_BYTES_MAX:
            raise NotReadyError("ended before it was ready", still_runs=bool(part))
    try:
        ready = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise NotReadyError(f"announced garbage ({error})", still_runs=True) from None
    if "error" in ready:
        raise NotReadyError(f"failed to start: {ready['error']}", still_runs=False)
    return ready


def _command(argv: Sequence[str]) -> str:
    return " ".join(argv)


def _tail(output: int, start: int) -> str:
    """The end of what was written to ``output`` since ``start``, as lines of a message."""
    end = os.lseek(output, 0, os.SEEK_END)
    first = max(start, end - OUTPUT_TAIL_BYTES)
    text = os.pread(output, end - first, first).decode(errors="replace").strip()
    return f":\n{text}\n" if text else " and wrote nothing"
