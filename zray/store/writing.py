"""Bytes written into the arena and into files, with one error for want of room."""

from __future__ import annotations

import errno
import os
import sys
import threading
from _thread import start_new_thread
from pickle import PickleBuffer
from queue import SimpleQueue
from typing import Any

from zray.errors import OutOfDiskError

UNLOCKED_BYTES_MIN = 1 << 20
"""Copies of at least this size release the interpreter lock, if numpy is there to do so."""
SHARED_BYTES_MIN = 32 << 20
"""Copies of at least this size are shared by two threads: one core does not fill the bandwidth of the memory,
but to begin takes a thread 0.1 to 1 ms. A third one makes it slower again (docs/performance.md)."""
_Order = tuple[memoryview, memoryview]  # target and source
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
    if source.nbytes < UNLOCKED_BYTES_MIN or "numpy" not in sys.modules:
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

    An interrupted ``Thread.start`` or ``Thread.join`` does not know whether the thread runs (CPython 3.11).
    """
    half = source.nbytes // 2
    orders: SimpleQueue[_Order | None] = SimpleQueue()
    ended, errors = threading.Event(), list[BaseException]()
    try:
        try:
            start_new_thread(_carry_out, (orders, ended, errors))
            orders.put((target[half:], source[half:]))
        except RuntimeError:  # the system has no thread left
            orders.put((target[half:], source[half:]))
            _carry_out(orders, ended, errors)
        _copy_unlocked(target[:half], source[:half])
    finally:
        _await_end(ended, orders)
    if errors:
        raise errors[0]


def _carry_out(
    orders: SimpleQueue[_Order | None], ended: threading.Event, errors: list[BaseException]
) -> None:
    """Copy what is ordered, and look at neither side any more once it is said to have ended."""
    try:
        order = orders.get()
        if order is not None:
            _copy_unlocked(*order)
    except BaseException as error:
        errors.append(error)
    finally:
        order = None
        ended.set()


def _await_end(ended: threading.Event, orders: SimpleQueue[_Order | None]) -> None:
    """Wait in spite of Ctrl-C: the bytes that the thread writes may be somebody else's next."""
    interrupt: BaseException | None = None
    while not ended.is_set():
        try:
            orders.put(None)  # if it was interrupted before it gave the order
            ended.wait()
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


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
