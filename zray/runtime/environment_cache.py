"""What environments are made of, on the disk of a node: each part once, while a worker uses it and beyond.

A part (an unpacked package, a set of installed ones) is a directory ``<key>`` of the session, named by what
is in it, and a file ``<key>.lock``. A worker that uses it holds the lock, shared, for the rest of its life,
so a part is in use exactly while some process says so, however that process ends. Whoever makes one holds the
lock alone, and makes it under another name, so what has the right name is complete.

After each new part those that nobody uses are removed, the longest unused first, until the rest fits its
bound; what is left goes with the session.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from zray.errors import RuntimeEnvSetupError
from zray.runtime.session_dir import remove_path

POLL_S = 0.02
_LOCK = ".lock"
_DRAFT = ".new-"
_GONE = ".gone-"


class _CachedPart(NamedTuple):
    used_ns: int
    key: str
    size_bytes: int


class EnvironmentCache:
    """The parts that one process uses.

    Args:
        root: the directory of all parts; made when it is first needed.
        bytes_max: of the parts that nobody uses.
    """

    def __init__(self, root: str, bytes_max: int) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self._held: dict[str, int] = {}  # key -> descriptor of its lock, held to the end of the process

    def use(self, key: str, make: Callable[[str], None], timeout_s: float) -> str:
        """The directory of a part, which stays until this process ends.

        Args:
            key: names the content.
            make: fills a new directory, whose path it is given.
            timeout_s: how long others may take that make the same part.
        Raises:
            RuntimeEnvSetupError: if they take longer.
            Exception: whatever ``make`` raises; nothing of the part is left then.
        """
        path = os.path.join(self.root, key)
        if key in self._held:
            return path
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        lock = os.open(path + _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + timeout_s
            while not self._share(lock, path, deadline):
                if _try_lock(lock, fcntl.LOCK_EX):
                    self._make(path, make)
        except BaseException:
            os.close(lock)
            raise
        self._held[key] = lock
        os.utime(path)
        return path

    def _share(self, lock: int, path: str, deadline: float) -> bool:
        """Hold the lock with others; false, and nothing held, if there is no part yet."""
        while not _try_lock(lock, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise RuntimeEnvSetupError(
                    "another worker is still setting the same one up; raise setup_timeout_seconds in its "
                    "'config' if it needs more time"
                )
            time.sleep(POLL_S)  # a lock of another process wakes nobody
        if os.path.isdir(path):
            return True
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False

    def _make(self, path: str, make: Callable[[str], None]) -> None:
        if os.path.isdir(path):  # another was faster
            return
        for name in os.listdir(self.root):
            if name.startswith(os.path.basename(path) + _DRAFT):  # its maker was killed: the lock is ours
                remove_path(os.path.join(self.root, name))
        draft = f"{path}{_DRAFT}{os.getpid()}"
        try:
            os.mkdir(draft, 0o700)
            make(draft)
            os.rename(draft, path)
        except BaseException:
            remove_path(draft)
            raise
        self._sweep()

    def _sweep(self) -> None:
        """Remove what nobody uses and there is no room for, and what a killed process left half made."""
        parts = []
        for name in os.listdir(self.root):
            if _DRAFT in name or _GONE in name:
                self._remove_unless_made(name)
            elif not name.endswith(_LOCK):
                path = os.path.join(self.root, name)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    parts.append(_CachedPart(os.stat(path).st_mtime_ns, name, _size_of(path)))
        kept = 0
        for part in sorted(parts, reverse=True):
            with self._alone(part.key) as alone:
                if alone:  # else it is in use
                    kept += part.size_bytes
                    if kept > self.bytes_max:
                        self._remove(part.key)

    def _remove_unless_made(self, name: str) -> None:
        key = name.partition(_DRAFT)[0].partition(_GONE)[0]
        with self._alone(key) as alone:
            if alone:
                remove_path(os.path.join(self.root, name))

    def _remove(self, key: str) -> None:
        """Remove a part whose lock is held alone, under another name: half of it is no part."""
        path = os.path.join(self.root, key)
        if os.path.isdir(path):
            gone = f"{path}{_GONE}{os.getpid()}"
            os.rename(path, gone)
            remove_path(gone)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[bool]:
        """Whether nobody else has to do with a part, while this lasts."""
        lock = os.open(os.path.join(self.root, key) + _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _try_lock(lock, fcntl.LOCK_EX)
        finally:
            os.close(lock)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size_of(path: str) -> int:
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
