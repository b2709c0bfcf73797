"""Start a program of the cluster and hear that it can be used.

``spawn`` starts a program in a session of its own, so that a Ctrl-C meant for the driver does not reach it,
and waits for the one line of JSON that the program writes with ``announce`` once it can be used. It uses
``posix_spawnp``: that copies no page tables, is safe in a driver with threads, and saves the 6 ms of
importing ``subprocess``.

A driver imports this module alone before it starts its node, and the rest while that starts, on another core:
so nothing is imported here that a driver need not have by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zray.errors import ClusterUnavailableError

READY_BYTES_MAX = 64 * 1024
OUTPUT_TAIL_BYTES = 4096
EXIT_GRACE_S = 0.5
"""How long a program that failed to start has to leave by itself."""

_READY_FD_VARIABLE = "ZRAY_READY_FD"
_READY_FD = 3
# A parent under nohup ignores some of these, and what is ignored stays so across exec.
_DEFAULT_IN_SPAWNED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
)  # fmt: skip


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
            ready = _await_ready(self._ready_end, self._started + timeout_s)
            self._files.close()
            return Spawned(self.pid, ready)
        except NotReadyError as problem:
            from zray.runtime.processes import end_process

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
        from zray.runtime.processes import end_process

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


def launch(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Start a program as :func:`spawn` does, without waiting for it; its pid.

    Raises:
        ClusterUnavailableError: if it cannot be started.
    """
    pid, ready_end = _launch(argv, dict(os.environ if environment is None else environment), -1)
    os.close(ready_end)
    return pid


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``main`` of a module with the interpreter and the ``zray`` of this process."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = f"import sys; sys.path.append({here!r}); from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", program, *arguments]


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
    import msgspec

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


def _await_ready(ready_end: int, deadline: float) -> dict[str, Any]:
    """The one line that the program announces.

    Raises:
        NotReadyError: if it dies, reports an error, or writes no such line by ``deadline``.
    """
    line = b""
    # Its end of the pipe closes when it dies, unless it forked before: then the deadline ends this.
    while not line.endswith(b"\n"):
        poller = select.poll()  # not select(): a process may have more descriptors than that can number
        poller.register(ready_end, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise NotReadyError("was not ready in time", still_runs=True)
        part = os.read(ready_end, READY_BYTES_MAX)
        line += part
        if not part or len(line) > READY_BYTES_MAX:
            raise NotReadyError("ended before it was ready", still_runs=bool(part))
    import msgspec

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
