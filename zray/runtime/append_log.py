"""An append-only file of checksummed records: what survives the death of its process, and how it is found.

Layout: eight bytes of magic, then records, as ``zray/runtime/record_log.py`` has them.

A record is what was written at once, so it is there as a whole or not at all. The checksum of the header
lets a reader tell a *torn tail* (a write that was cut off by a crash; nobody was told of it, so it is cut
off) from *damage in the middle* (intact records follow; dropping them would lose acknowledged writes, so
opening fails). A compaction writes a new file, makes it durable and renames it over the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
from collections.abc import Generator, Iterable, Iterator
from zlib import crc32

from zray.errors import ZrayError
from zray.runtime.record_log import (
    HEADER,
    MAGIC,
    NUMBERS,
    LogCorruptError,
    LogUnavailableError,
    LogWriteError,
    RecordLog,
    encode_record,
)

log = logging.getLogger("zray.log")

LOG_NAME = "shard.log"
_NEW_NAME = "shard.log.new"
_LOCK_NAME = "lock"


class AppendLog(RecordLog):
    """The log of one process in a directory of its own, which is locked while the log is open.

    Call :meth:`replay` to its end before the first :meth:`append`.

    Args:
        directory: made if it is missing, but not what it is in: a shard that gets to its log only after its
            node was killed must not bring the directory of a session back that has been removed.
        sync: whether every append waits until the disk has it (``fdatasync``).
        compact_bytes: growth since the last snapshot after which :attr:`wants_compaction` is true. It
            never is before the log has doubled, so that rewriting costs at most as much as writing.

    Raises:
        LogUnavailableError: if the directory cannot be written or is in use.
        LogCorruptError: if the file is not a log.
    """

    def __init__(self, directory: str, *, sync: bool, compact_bytes: int) -> None:
        super().__init__(os.path.join(directory, LOG_NAME), compact_bytes)
        self.directory = directory
        self.sync = sync
        self.cut_bytes = 0  # torn tail that replay removed
        self._lock_fd = self._fd = -1
        try:
            os.mkdir(directory)
        except FileNotFoundError as error:
            problem = "what it is to be in is not there; make that first"
            raise LogUnavailableError(directory, problem) from error
        except OSError:
            pass  # it is there, or what follows says what is wrong
        try:
            self._lock_fd = _lock(os.path.join(directory, _LOCK_NAME))
            self._fd = self._open()
        except OSError as error:
            self.close()
            raise LogUnavailableError(directory, f"cannot keep a log here: {error.strerror}") from error
        except ZrayError:
            self.close()
            raise
        self.size_bytes = os.fstat(self._fd).st_size

    def _open(self) -> int:
        new = os.path.join(self.directory, _NEW_NAME)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # a compaction that did not come to its end
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            head = os.pread(fd, len(MAGIC), 0)
            if head != MAGIC:
                if not MAGIC.startswith(head):
                    raise LogCorruptError(self.path, 0, "this is not a log of zray; move it out of the way")
                _write_all(fd, MAGIC, 0)
                os.fsync(fd)
                _sync_directory(self.directory)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def replay(self) -> Iterator[memoryview]:
        """Every payload in order, valid until the next one is asked for; then a torn tail is cut off.

        Raises:
            LogCorruptError: if intact records follow damaged bytes.
        """
        if self.size_bytes > len(MAGIC):
            with mmap.mmap(self._fd, self.size_bytes, access=mmap.ACCESS_READ) as content:
                end = yield from _replay(content, self.path)
            self._cut(end)

    def _cut(self, end: int) -> None:
        self.cut_bytes = self.size_bytes - end
        if not self.cut_bytes:
            return
        log.warning(
            "%s: cut off %d bytes of a write that a crash left unfinished; nobody was told of it",
            self.path, self.cut_bytes,
        )  # fmt: skip
        os.ftruncate(self._fd, end)
        os.fsync(self._fd)
        self.size_bytes = end

    def append(self, payload: bytes) -> None:
        """Write one record; with ``sync`` it is on disk when this returns.

        Raises:
            LogWriteError: if it is not; the log is as it was before, and the caller must not go on as if
                it had been written.
        """
        try:
            _write_all(self._fd, encode_record(payload), self.size_bytes)
            if self.sync:
                os.fdatasync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size_bytes)
            detail = f"a record of {len(payload)} bytes could not be written: {error.strerror}"
            raise LogWriteError(self.path, detail) from error
        self.size_bytes += HEADER.size + len(payload)

    def compact(self, payloads: Iterable[bytes]) -> bool:
        """Replace the whole log by these records, at once and durably.

        False, logged, and the old log goes on, if there is no room for a second file; then the next try is
        after as much growth again.

        Raises:
            LogWriteError: if the new file is there and its name cannot be made durable.
        """
        new = os.path.join(self.directory, _NEW_NAME)
        fd = -1
        try:
            fd, size_bytes = _write_file(new, payloads)
            os.replace(new, self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            log.warning("%s: cannot be compacted now: %s", self.path, error.strerror)
            with contextlib.suppress(OSError):
                os.unlink(new)
            self._snapshot_bytes = self.size_bytes
            return False
        log.info("%s: compacted from %d to %d bytes", self.path, self.size_bytes, size_bytes)
        os.close(self._fd)
        self._fd, self.size_bytes, self._snapshot_bytes = fd, size_bytes, size_bytes
        try:
            _sync_directory(self.directory)
        except OSError as error:  # which of the two files a power failure leaves is not known
            raise LogWriteError(self.path, f"its directory cannot be written: {error.strerror}") from error
        return True

    def close(self) -> None:
        """Make what was written durable, whatever ``sync`` says, and let go of the directory."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fdatasync(self._fd)
            os.close(self._fd)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._fd = self._lock_fd = -1


def _lock(path: str) -> int:
    """Take the lock file, with our pid in it. Writing it also proves that the disk has room.

    Raises:
        LogUnavailableError: if another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        _write_all(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise LogUnavailableError(path, f"in use by process {holder}") from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _write_file(path: str, payloads: Iterable[bytes]) -> tuple[int, int]:
    """A new, durable file of these records: its descriptor and its size in bytes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, MAGIC, 0)
        size_bytes = len(MAGIC)
        for payload in payloads:
            record = encode_record(payload)
            _write_all(fd, record, size_bytes)
            size_bytes += len(record)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, size_bytes


def _sync_directory(directory: str) -> None:
    """Make the names in a directory durable, too."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- reading -------------------------------------------------------------------------------------


def _replay(content: mmap.mmap, path: str) -> Generator[memoryview, None, int]:
    """Yield the payloads; return where the last intact record ends."""
    with memoryview(content) as view:
        offset = len(MAGIC)
        while (end := _record_end(view, offset)) is not None:
            with view[offset + HEADER.size : end] as payload:
                yield payload
            offset = end
        if offset < len(view):
            _refuse_damage(content, view, offset, path)
        return offset


def _header_end(view: memoryview, offset: int) -> int | None:
    """Where the record at ``offset`` ends by its header, maybe beyond the file; ``None``: no header."""
    if offset + HEADER.size > len(view):
        return None
    length, _, check = HEADER.unpack_from(view, offset)
    if crc32(view[offset : offset + NUMBERS.size]) != check:
        return None
    return offset + HEADER.size + int(length)


def _record_end(view: memoryview, offset: int) -> int | None:
    """Where the intact record at ``offset`` ends; ``None``: there is none."""
    end = _header_end(view, offset)
    if end is None or end > len(view):
        return None
    with view[offset + HEADER.size : end] as payload:
        intact = crc32(payload) == NUMBERS.unpack_from(view, offset)[1]
    return end if intact else None


def _refuse_damage(content: mmap.mmap, view: memoryview, offset: int, path: str) -> None:
    """Raise if an intact record follows the damage at ``offset``.

    A header that is intact and reaches the end of the file or beyond is that of the last record. Otherwise
    any later offset may start one, from the end of the damaged record where its header tells it. Cost:
    about a second per 3 MB, and nothing for the zeros that file systems leave behind after a crash.
    """
    first = _header_end(view, offset) or offset + 1
    last = min(first, len(view)) + len(content[first:].rstrip(b"\0"))
    for candidate in range(first, last):
        if _record_end(view, candidate) is not None:
            raise LogCorruptError(
                path, offset,
                f"damaged at byte {offset}, and intact records follow from byte {candidate} of {len(view)}: "
                "put back a copy of the file, or cut it there to give up all that follows",
            )  # fmt: skip
