"""Bytes written into the arena and into files, with one error for want of room."""

from __future__ import annotations

import errno
import os
import sys
from _thread import LockType, allocate_lock, start_new_thread
from pickle import PickleBuffer
from typing import Any

from zray.errors import OutOfDiskError

UNLOCKED_BYTES_MIN = 1 << 20
"""Copies of at least this size release the interpreter lock, if numpy is there to do so."""
SHARED_BYTES_MIN = 32 << 20
"""Copies of at least this size are shared by two threads: one core does not fill the bandwidth of the memory,
but to begin takes a thread 0.1 to 1 ms. A third one makes it slower again (docs/performance.md)."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


def flat(data: Any) -> memoryview:
    """The bytes of a C- or Fortran-contiguous buffer, in memory order, without a copy.

    Raises:
        BufferError: if it is neither.
    """
    view = memoryview(data)
    if not view.contiguous:
        raise BufferError("the buffer is not contiguous")
    if view.nbytes == 0:
        return memoryview(b"")
    if view.ndim == 1 and view.format == "B":
        return view
    if view.c_contiguous:
        return view.cast("B")
    # memoryview does not flatten Fortran order itself; PickleBuffer does.
    return PickleBuffer(view).raw()


def copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes, uint8[n] both. While many are copied, other threads run: a gigabyte takes 50 ms."""
    if source.nbytes < UNLOCKED_BYTES_MIN or sys.modules.get("numpy") is None:
        target[:] = source
    elif source.nbytes < SHARED_BYTES_MIN:
        _copy_unlocked(target, source)
    else:
        _copy_by_two(target, source)


def _copy_unlocked(target: memoryview, source: memoryview) -> None:
    numpy = sys.modules["numpy"]
    numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))


def _copy_by_two(target: memoryview, source: memoryview) -> None:
    """Copy one half here and one in a thread; neither writes any more when this returns or raises.

    With ``_thread`` alone: an interrupt in ``Thread.start``, ``Thread.join`` or ``Event.wait`` leaves those
    not knowing what has happened (CPython 3.11).
    """
    half = source.nbytes // 2
    work, ended, end = [target[half:], source[half:]], list[bool](), allocate_lock()
    end.acquire()
    interrupt: BaseException | None = None
    is_alone = False
    try:
        try:
            start_new_thread(_copy_beside, (work, ended, end))
        except (RuntimeError, MemoryError):  # the system has no thread left
            is_alone = True
        _copy_unlocked(target[:half], source[:half])
    finally:
        while True:
            try:
                while (
                    not ended and not is_alone
                ):  # and not what the lock says: an interrupt may come after it
                    end.acquire()
                break
            except BaseException as error:  # what the thread writes to may be somebody else's next
                interrupt = error
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt  # or the error would keep this frame, and that the buffers
    if is_alone or not ended[0]:
        work.clear()
        _copy_unlocked(target[half:], source[half:])


def _copy_beside(work: list[memoryview], ended: list[bool], end: LockType) -> None:
    """In the thread: copy, then tell whether that is done, and look at neither side any more."""
    is_done = False
    try:
        _copy_unlocked(*work)
        is_done = True
    except Exception:
        pass  # the other thread does it, and meets the error
    finally:
        work.clear()
        ended.append(is_done)
        end.release()


def pwrite_all(fd: int, source: memoryview, offset: int, *, need_bytes: int = 0) -> None:
    """Write all of ``source`` at ``offset`` of a file.

    Args:
        need_bytes: int, of the object of which this is a part; 0: it is all of it.
    Raises:
        OutOfDiskError: if there is no room.
    """
    position = 0
    try:
        while position < source.nbytes:  # one call writes less than 2 GiB
            position += os.pwrite(fd, source[position:], offset + position)
    except OSError as error:
        raise typed(error, need_bytes or source.nbytes) from error


def typed(error: OSError, need_bytes: int) -> Exception:
    """``OutOfDiskError`` for an error that says that there is no room, else the error itself."""
    return OutOfDiskError(need_bytes, str(error)) if error.errno in _NO_ROOM else error
