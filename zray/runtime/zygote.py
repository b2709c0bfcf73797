"""The zygote: a single-threaded process that forks workers, reaps them, and cleans up after its node.

It is forked by the node before the node has a thread or a ZeroMQ context, with everything imported, so a
fork is a ready worker in milliseconds. It talks with the node over a SOCK_SEQPACKET pair, one msgpack
message per packet, and outlives the node on purpose: end-of-file on that channel is how it learns that the
node is gone, and then it kills every worker and removes the session.

The one invariant: each accepted ``ForkWorker`` is answered by exactly one ``Exited``.

Signals. The zygote leads a session of its own, so neither Ctrl-C at a terminal, nor a hang-up, nor a signal
to the node's process group reaches it or a worker: only the driver is interrupted. It ignores SIGINT, SIGHUP
and SIGTERM besides, because service managers send those to every process and the janitor must leave last.
Each worker leads a process group: its death takes along the processes that the user's code left in there.
In a worker every signal has its default meaning and SIGINT raises ``KeyboardInterrupt``, whatever the
ancestors ignored. On Linux a worker is killed when the zygote dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from zray.runtime import session_dir
from zray.runtime.exit_codes import EXIT_RAISED, exit_code_of, print_ending
from zray.runtime.heap import keep_freed_memory

if TYPE_CHECKING:  # 5 ms that a driver need not pay
    from socket import socket

WorkerMain = Callable[[bytes, str], "int | None"]
"""``worker_main(worker_id, session_path) -> exit code``; ``None`` is 0. Runs in the forked worker."""

PACKET_BYTES_MAX = 128 * 1024
"""Largest request; below the socket's default send buffer, so a packet is never refused for its size."""
REAP_TIMEOUT_S = 5.0
"""How long the zygote waits at its end for killed workers; one stuck in the kernel may take longer."""
REPORT_TIMEOUT_S = 1.0
"""How long it waits at its end for the node to take the last reports."""
EXIT_NOT_STARTED = 71
"""``Exited.exit_code`` of a worker that could not be forked (EX_OSERR); its pid is 0."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_IGNORED_IN_ZYGOTE = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ")  # Python turns these into OSError: they stay ignored


class ZygotePacket(msgspec.Struct, array_like=True, gc=False):
    """Base of what crosses the channel."""


class ForkWorker(ZygotePacket, tag=1):
    """Fork a worker. ``None`` inherits the node's output, a path is appended to."""

    worker_id: bytes
    environment: dict[str, str] = {}
    stdout: str | None = None
    stderr: str | None = None


class SignalWorker(ZygotePacket, tag=2):
    """Send a signal to a worker. A dead one is no error."""

    worker_id: bytes
    signal_number: int


class AdoptPath(ZygotePacket, tag=3):
    """Remove this absolute path (a shared memory segment, ...) with the session."""

    path: str


class EndZygote(ZygotePacket, tag=4):
    """Kill and report every worker, remove the session, exit."""


class Started(ZygotePacket, tag=10):
    """A worker was forked."""

    worker_id: bytes
    pid: int


class Exited(ZygotePacket, tag=11):
    """A worker is gone and reaped. ``exit_code`` is negative for the signal that killed it."""

    worker_id: bytes
    pid: int
    exit_code: int


Request = ForkWorker | SignalWorker | AdoptPath | EndZygote
Report = Started | Exited

encode_packet: Callable[[Request | Report], bytes] = msgspec.msgpack.Encoder().encode
decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
decode_report: Callable[[bytes], Report] = msgspec.msgpack.Decoder(Report).decode


def run_zygote(
    channel: socket, worker_main: WorkerMain, session_path: str, prepare: Callable[[], None] | None = None
) -> None:
    """Serve the node at the other end of ``channel`` until it ends or is gone, then clean up.

    ``prepare`` is called first: what it imports is there in every worker.

    Call it in a freshly forked, single-threaded process, which belongs to the zygote from then on: its
    signal handlers, standard input and every other file descriptor above 2 are taken from it.
    """
    Zygote(channel, worker_main, session_path).serve(prepare)


class Zygote:
    """State of the loop: workers by pid, requests not yet done, reports not yet taken by the node."""

    def __init__(self, channel: socket, worker_main: WorkerMain, session_path: str) -> None:
        self._channel = channel
        self._worker_main = worker_main
        self._session_path = session_path
        self._pid = os.getpid()
        self._adopted: list[str] = []
        self._workers: dict[int, bytes] = {}
        self._pids: dict[bytes, int] = {}
        self._requests: deque[Request] = deque()
        self._reports: deque[Report] = deque()
        self._ending = False
        self._prctl = _load_prctl()
        self._wakeup_read = -1
        self._wakeup_write = -1
        self._poller = select.poll()

    def serve(self, prepare: Callable[[], None] | None) -> None:
        """See :func:`run_zygote`."""
        self._detach()
        gc.disable()  # the loop makes no cycles, and a collection would touch every shared page
        if prepare is not None:
            prepare()
        keep_freed_memory()
        gc.freeze()
        try:
            while not self._ending:
                self._wait(None if not self._requests else 0)
                self._read_requests()
                self._reap()
                # One request per turn: the channel is emptied between any two forks, so a node that
                # sends many requests at once never waits for longer than one fork.
                if self._requests and not self._ending:
                    self._perform(self._requests.popleft())
                self._send_reports()
        finally:
            self._kill_all()
        self._send_last_reports()
        session_dir.remove(self._session_path)
        # The list in memory also holds when somebody cleaned the temporary directory before.
        for path in self._adopted:
            session_dir.remove_path(path)

    # --- becoming the zygote ---------------------------------------------------------------------

    def _detach(self) -> None:
        gc.collect()  # finalizers first: later they might close a descriptor that is not theirs any more
        close_inherited_files(self._channel.fileno())
        _read_nothing()
        with contextlib.suppress(PermissionError):  # already leads a session
            os.setsid()
        _reset_signals()
        for number in _IGNORED_IN_ZYGOTE:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._watch_children()
        self._set_name(b"zray-zygote")
        faulthandler.enable(2)  # inherited: a worker that crashes in C says where

    def _watch_children(self) -> None:
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore_signal)  # the byte is all that matters
        self._channel.setblocking(False)
        self._poller.register(self._wakeup_read, select.POLLIN)
        self._poller.register(self._channel, select.POLLIN)

    def _set_name(self, name: bytes) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_NAME, name)

    # --- the loop --------------------------------------------------------------------------------

    def _wait(self, timeout_ms: int | None) -> None:
        wanted = select.POLLIN | select.POLLOUT if self._reports else select.POLLIN
        self._poller.modify(self._channel, wanted)
        self._poller.poll(timeout_ms)
        self._forget_wakeups()

    def _forget_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup_read, 4096)

    def _read_requests(self) -> None:
        while True:
            try:
                packet = self._channel.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self._ending = True
                return
            self._requests.append(decode_request(packet))

    def _send_reports(self) -> None:
        while self._reports:
            try:
                self._channel.send(encode_packet(self._reports[0]))
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._reports.clear()  # nobody is left to read them
                return
            self._reports.popleft()

    def _perform(self, request: Request) -> None:
        if isinstance(request, ForkWorker):
            self._fork(request)
        elif isinstance(request, SignalWorker):
            self._signal(request)
        elif isinstance(request, AdoptPath):
            self._adopted.append(request.path)
            with contextlib.suppress(OSError):  # a full disk; the list in memory still has it
                session_dir.adopt(self._session_path, request.path)
        else:
            self._ending = True

    def _signal(self, request: SignalWorker) -> None:
        pid = self._pids.get(request.worker_id)
        if pid is not None:  # and not reaped yet, so the pid is still its own
            os.kill(pid, request.signal_number)

    def _reap(self) -> None:
        """Reap every child that has ended, and report it."""
        while self._workers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            pid = ended.si_pid
            _kill_group(pid)  # what it left behind; while it is a zombie its pid names no other group
            _, status = os.waitpid(pid, 0)
            worker_id = self._workers.pop(pid)
            del self._pids[worker_id]
            self._reports.append(Exited(worker_id, pid, os.waitstatus_to_exitcode(status)))

    # --- forking ---------------------------------------------------------------------------------

    def _fork(self, request: ForkWorker) -> None:
        # A signal that arrives before the child has its own handlers waits until it has them.
        previous = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(request)
        except OSError:
            self._reports.append(Exited(request.worker_id, 0, EXIT_NOT_STARTED))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides do: whoever comes first, the group is there
        self._workers[pid] = request.worker_id
        self._pids[request.worker_id] = pid
        self._reports.append(Started(request.worker_id, pid))

    def _become_worker(self, request: ForkWorker) -> NoReturn:
        """In the child: run ``worker_main``, and never come back."""
        code = EXIT_RAISED
        try:
            try:
                self._leave_zygote(request)
                code = self._worker_main(request.worker_id, self._session_path) or 0
            except SystemExit as ending:
                print_ending(ending)
                code = exit_code_of(ending)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code & 0xFF)

    def _leave_zygote(self, request: ForkWorker) -> None:
        self._die_with_zygote()
        signal.set_wakeup_fd(-1)
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
        self._channel.close()
        os.setpgid(0, 0)
        self._set_name(b"zray-worker")
        os.environ.update(request.environment)
        open_output(request.stdout, request.stderr)
        _reseed()
        gc.enable()
        _reset_signals()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _die_with_zygote(self) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:  # it died before the line above
            os._exit(EXIT_NOT_STARTED)

    # --- the end ---------------------------------------------------------------------------------

    def _kill_all(self) -> None:
        """Kill and reap every worker. Requests not done yet have lost their node: nobody waits for them."""
        for pid in self._workers:
            _kill_group(pid)
        deadline = time.monotonic() + REAP_TIMEOUT_S
        self._reap()
        while self._workers and (left_s := deadline - time.monotonic()) > 0:
            select.select((self._wakeup_read,), (), (), left_s)
            self._forget_wakeups()
            self._reap()

    def _send_last_reports(self) -> None:
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        self._send_reports()
        while self._reports and (left_s := deadline - time.monotonic()) > 0:
            select.select((), (self._channel,), (), left_s)
            self._send_reports()


def _load_prctl() -> Callable[..., Any] | None:
    """``prctl`` on Linux, bound before the fork because a child should not have to import anything."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl: Callable[..., Any] = ctypes.CDLL(None).prctl
    return prctl


def _ignore_signal(_number: int, _frame: object) -> None:
    pass


def close_inherited_files(keep: int = -1) -> None:
    """Close every descriptor above 2 but ``keep``: a pipe's end kept here would hide the node's end."""
    listing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(listing):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def _read_nothing() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _reset_signals() -> None:
    """Give every signal that has a handler or is ignored its default meaning."""
    for number in signal.valid_signals():
        if signal.getsignal(number) in (signal.SIG_DFL, None):
            continue
        if signal.Signals(number).name not in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)


def _kill_group(pid: int) -> None:
    # PermissionError: the group is only a zombie (macOS), or ran a set-user-id program.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def open_output(stdout: str | None, stderr: str | None) -> None:
    """Point descriptors 1 and 2 at their targets, and fresh, line-buffered streams at those.

    ``None`` leaves a descriptor where it is. The streams are made anew because those inherited from the
    parent may hold text that the parent will write itself.
    """
    for descriptor, path in ((1, stdout), (2, stderr)):
        if path is not None:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
            os.dup2(target, descriptor)
            os.close(target)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _reseed() -> None:
    """Give the worker random numbers of its own. The module ``random`` reseeds itself after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
