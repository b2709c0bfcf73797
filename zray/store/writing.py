"""Bytes written into the arena and into files, with one error for want of room."""

from __future__ import annotations

import errno
import os
import sys
from pickle import PickleBuffer
from typing import Any

from zray.errors import OutOfDiskError

UNLOCKED_BYTES_MIN = 1 << 20
"""Copies of at least this size release the interpreter lock, if numpy is there to do so."""
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
    numpy = sys.modules.get("numpy") if source.nbytes >= UNLOCKED_BYTES_MIN else None
    if numpy is None:
        target[:] = source
    else:
        numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))


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
