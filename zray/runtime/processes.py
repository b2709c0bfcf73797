"""Learn that processes are gone, and end them; the node's side of the zygote.

``WorkerProcesses`` is one more descriptor in the node's poll loop. Its invariant: every accepted ``start``
is answered by exactly one ``Exited``, even when the zygote itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

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
EXIT_UNKNOWN = 255
"""Exit code of a child that somebody else in this process has reaped."""


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
