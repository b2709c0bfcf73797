"""Objects on disk: one file each, named by the object id in hex, in a directory of the node.

A file appears under its name complete or not at all: bytes go to ``<name>.part``, which is renamed. There
is no fsync, because a spilled object need not survive the machine, only the pressure on its memory.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from zray.store.writing import flat, pwrite_all, typed

_PART = ".part"

SPILL = "spill"
DELETE = "delete"


class SpillDirectory:
    """The files of one node. Any process of the node may read, and create, by the same path.

    The directory, this user's alone, is there already: it is part of the session.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def path_of(self, object_id: bytes) -> str:
        """Where the file of ``object_id`` is once it is complete."""
        return os.path.join(self.path, object_id.hex())

    def write(self, object_id: bytes, data: Any) -> None:
        """Write a whole object; nothing of it stays if that fails.

        Args:
            data: a contiguous buffer.
        Raises:
            OutOfDiskError: if the disk is full.
        """
        source = flat(data)
        file = self.create(object_id, source.nbytes)
        try:
            file.copy_in(0, source)
            file.seal()
        except BaseException:
            file.abort()
            raise

    def create(self, object_id: bytes, size: int) -> SpillFile:
        """A file to write an object into directly; its blocks are allocated before it is handed out.

        Raises:
            OutOfDiskError: if the disk has no room for ``size`` bytes.
        """
        return SpillFile(self.path_of(object_id), size)

    def open_view(self, object_id: bytes, size: int) -> memoryview:
        """The bytes of a complete file, from the page cache, without a copy.

        The file may be deleted while the result is alive; its blocks go when the last view does.

        Returns:
            read-only memoryview, uint8[size].
        Raises:
            FileNotFoundError: if there is no such file, or it is not complete.
            ValueError: if the file has another size.
        """
        fd = os.open(self.path_of(object_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise ValueError(f"the file of {object_id.hex()} has {found} bytes, not {size}")
            if size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)

    def delete(self, object_id: bytes) -> None:
        """Delete an object's file, complete or not; one that is not there is deleted already."""
        path = self.path_of(object_id)
        for name in (path, path + _PART):
            with suppress(FileNotFoundError):
                os.unlink(name)

    def clear(self) -> None:
        """Delete every file of this directory that an object may own; others are not touched."""
        with os.scandir(self.path) as entries:
            paths = [entry.path for entry in entries if _is_object_file(entry.name)]
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def remove(self) -> None:
        """Delete the files and, unless something else is in it, the directory."""
        with suppress(FileNotFoundError):
            self.clear()
        with suppress(OSError):
            os.rmdir(self.path)


class SpillFile:
    """An object that is being written to disk. End it with ``seal`` or ``abort``."""

    def __init__(self, path: str, size: int) -> None:
        """
        Args:
            path: str, its name once it is sealed; size: int, bytes.
        Raises:
            OutOfDiskError: if the disk has no room; nothing stays then.
        """
        self.size = size
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._fd = os.open(path + _PART, flags, 0o600)
        except OSError as error:
            raise typed(error, size) from error
        try:
            if size:
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            self.abort()
            raise typed(error, size) from error

    def copy_in(self, offset: int, data: Any) -> int:
        """Copy a contiguous buffer to ``offset``; the bytes written. As ``ArenaView.copy_in``.

        Raises:
            OutOfDiskError: if the disk is full in spite of the allocation (copy-on-write file systems).
            ValueError: if the bytes are not all inside the file.
        """
        source = flat(data)
        if offset < 0 or offset + source.nbytes > self.size:
            raise ValueError(f"bytes {offset}..{offset + source.nbytes} of a file of {self.size}")
        pwrite_all(self._fd, source, offset)
        return source.nbytes

    def seal(self) -> None:
        """The bytes are all there: give the file its name."""
        os.rename(self._path + _PART, self._path)
        self._close()

    def abort(self) -> None:
        """Give up; nothing stays. Does nothing to a file that was sealed or given up before."""
        if self._fd >= 0:
            self._close()
            with suppress(FileNotFoundError):
                os.unlink(self._path + _PART)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class DiskOutcome(NamedTuple):
    """What became of one job; ``error`` is ``None`` if it was done."""

    kind: str  # SPILL or DELETE
    object_id: bytes
    error: Exception | None


class _DiskJob(NamedTuple):
    kind: str
    object_id: bytes
    data: Any


class SpillWorker:
    """Does the disk work of a node in one thread, in order, so that its loop never waits for a disk."""

    def __init__(
        self, directory: SpillDirectory, report: Callable[[DiskOutcome], object], spills_max: int = 64
    ) -> None:
        """
        Args:
            directory: where the files are.
            report: called in the worker's thread with one outcome per job, in the order of the jobs. It
                must not raise; a deque's ``append`` and a wake-up of the loop are meant.
            spills_max: int, objects that may wait to be written, each of which holds its memory.
        """
        self._directory = directory
        self._report = report
        self._spills_max = spills_max
        self._spills_asked = 0  # counted by the caller's thread alone
        self._spills_ended = 0  # counted by the worker's thread alone
        self._jobs: SimpleQueue[_DiskJob | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zray-disk", daemon=True)
        self._thread.start()

    def spill(self, object_id: bytes, data: Any) -> bool:
        """Ask for an object's bytes to be written; ``data`` is let go of before the report.

        Returns:
            ``False`` if too many wait already: nothing was asked then, and nothing will be reported.
        """
        if self._closing or self._spills_asked - self._spills_ended >= self._spills_max:
            return False
        self._spills_asked += 1
        self._jobs.put(_DiskJob(SPILL, object_id, data))
        return True

    def delete(self, object_id: bytes) -> None:
        """Ask for an object's file to be deleted, after the jobs asked for before."""
        self._jobs.put(_DiskJob(DELETE, object_id, None))

    def close(self, timeout_s: float = 3.0) -> bool:
        """End the thread; spills that did not begin are reported as interrupted, deletes are done.

        Returns:
            ``False`` if the thread is still busy with a slow disk after ``timeout_s``; it ends after that
            job, or with the process.
        """
        self._closing = True
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            kind, object_id = job.kind, job.object_id
            error = self._do(job)
            if kind == SPILL:
                self._spills_ended += 1
            del job  # lets go of the object's memory
            self._report(DiskOutcome(kind, object_id, error))

    def _do(self, job: _DiskJob) -> Exception | None:
        try:
            if job.kind == DELETE:
                self._directory.delete(job.object_id)
            elif self._closing:
                raise InterruptedError("the node is closing")
            else:
                self._directory.write(job.object_id, job.data)
        except Exception as error:
            _drop_frames(error)
            return error
        return None


def _drop_frames(error: BaseException | None) -> None:
    """Take the tracebacks off an error and its causes: their frames hold the object's memory."""
    while error is not None:
        error.__traceback__ = None
        cause = error.__cause__ or error.__context__
        error = None if cause is error else cause  # one that is raised anew is its own cause


def _is_object_file(name: str) -> bool:
    stem = name.removesuffix(_PART)
    return len(stem) % 2 == 0 and bool(stem) and all(letter in "0123456789abcdef" for letter in stem)
