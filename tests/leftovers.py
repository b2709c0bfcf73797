"""What tests left behind: threads, processes, socket files, shared memory segments (invariant I14)."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

RUN_VARIABLE = "ZRAY_TEST_RUN"
"""An environment variable that every process of one test run inherits, orphans too."""
SHARED_MEMORY = Path("/dev/shm")
GRACE_S = 5.0
"""How long after the last test a process may still be on its way out (invariant I14)."""


def processes_of(run: str) -> list[psutil.Process]:
    """The living processes that inherited ``run``, other than this one, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(RUN_VARIABLE) == run:
                found.append(process)
    return [process for process in found if not _is_resource_tracker(process)]


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own helper of ``multiprocessing``: it lives as long as the process that tests run in."""
    return process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in _command(process)


def sockets_in(folder: Path) -> Iterator[Path]:
    """The socket files under ``folder``."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield path


def segments() -> list[str]:
    """Named shared memory segments of zray. There should be none at any time: arenas are unnamed."""
    return sorted(path.name for path in SHARED_MEMORY.glob("*zray*"))


def leftovers(run: str, folder: Path, segments_before: list[str], grace_s: float = GRACE_S) -> list[str]:
    """One sentence for each thing that ``run`` left behind.

    Args:
        run: the value of ``RUN_VARIABLE`` in the run's processes.
        folder: where the run kept its temporary files.
        segments_before: ``segments()`` when the run began.
        grace_s: how long to wait for processes on their way out.
    """
    _, alive = psutil.wait_procs(processes_of(run), timeout=grace_s)
    found = [f"process {process.pid}: {_command(process)}" for process in alive if not _is_zombie(process)]
    found += [f"socket {path}" for path in sockets_in(folder)]
    found += [f"shared memory {name}" for name in segments() if name not in segments_before]
    return found


def threads_left(grace_s: float = GRACE_S) -> list[str]:
    """The names of the threads of this process, other than this one, that do not end in time."""
    deadline = time.monotonic() + grace_s
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in others if thread.is_alive()]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "gone by now"
