"""The object store's memory: one arena per node, mapped once by every process of that node.

The node creates an :class:`Arena` and tells its path; each process opens it as an :class:`ArenaView`.
Which extent belongs to which object is decided by ``core.extents``.

The invariant of the memory: nobody dies of ``SIGBUS``. The arena is a memfd: no mount limits its size,
and seals forbid to shrink it, so every offset below the capacity stays backed; when memory itself runs
out, ``pwrite`` fails with a typed error and the kernel's out-of-memory rules decide the rest, as for any
memory. A memfd has no name either: nothing is left behind, however its processes end.

Cost of 100 MiB where a warm memcpy takes 6 ms (``benchmarks/bench_store.py`` measures it anew). Recycled
pages: 6 ms through a mapping that touched them before, 20 by ``pwrite``, 26 to 32 through a mapping that
did not. Fresh pages: 290 ms by ``pwrite`` and 330 through the mapping on a virtual machine whose host has
to find the memory too, about 40 where the system had it at hand. A second copying thread gained nothing
at 16 MiB and a fifth at 100 MiB, and is not used; ``posix_fallocate`` takes 30 ms and saves none of it,
because pages are cleared at their first use. See :meth:`ArenaView.copy_in`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from zray.store.writing import flat, pwrite_all

_CHUNK_SHIFT = 18  # what this process touched is remembered per 256 KiB
_MAPPED_COPY_MAX = 1 << _CHUNK_SHIFT
_UNSEEN, _SEEN, _TOUCHED = 0, 1, 2
_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module of Python 3.11 has no name for it


class Arena:
    """The node's side: creates the memory and ends it.

    Attributes:
        path: str, what other processes of this user open while the node lives.
        capacity_bytes: int.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """
        Args:
            capacity_bytes: int > 0. The memory is sparse: it is taken as it is used.
        """
        if capacity_bytes <= 0:
            raise ValueError(f"an arena of {capacity_bytes} bytes")
        self.capacity_bytes = capacity_bytes
        self._fd = os.memfd_create("zray-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        try:
            os.ftruncate(self._fd, capacity_bytes)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """End the arena. Processes that still map it keep their bytes until they let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ArenaView:
    """One process's mapping of an arena, made once."""

    def __init__(self, path: str, capacity_bytes: int) -> None:
        """
        Args:
            path: str, ``Arena.path``; capacity_bytes: int, as the node said.
        Raises:
            FileNotFoundError: if the node is gone.
            ValueError: if the arena is smaller than that.
        """
        self.capacity_bytes = capacity_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mapping = mmap.mmap(self._fd, capacity_bytes)
        except BaseException:
            os.close(self._fd)
            raise
        self._bytes = memoryview(self._mapping)
        self._window_class: Any = None
        self._forget_touched()

    def read(self, offset: int, size: int, on_release: Callable[[], object]) -> memoryview:
        """The bytes of a sealed object, without a copy.

        Args:
            offset, size: int, bytes.
            on_release: called once, when the last memoryview, array or buffer made from the result is
                gone, in whichever thread and at whichever point of it that is: it must only append to
                a deque or the like.
        Returns:
            read-only memoryview, uint8[size].
        Cost: 1 to 4 us, whatever the size; pages are mapped as they are looked at.
        """
        self._check_bounds(offset, size)
        if self._window_class is None:
            self._window_class = _window_class(self.capacity_bytes)
        window = self._window_class.from_buffer(self._mapping)
        view = memoryview(window).cast("B")[offset : offset + size].toreadonly()
        window.on_release = on_release
        return view

    def write(self, offset: int, size: int) -> memoryview:
        """The writable bytes of an extent that is not sealed yet: memoryview, uint8[size]."""
        self._check_bounds(offset, size)
        return self._bytes[offset : offset + size]

    def copy_in(self, offset: int, data: Any) -> int:
        """Copy a contiguous buffer to ``offset``, in the way that is cheapest from what this process did.

        A write of up to 256 KiB, or to bytes that this process has touched, is a memcpy. Otherwise
        the first write goes by ``pwrite``, which maps nothing: the cheapest way for the process that never
        comes back. A second write to the same bytes maps their pages in bulk and copies; from then on
        they are touched. Renting once before buying is never worse than twice the best choice.

        Returns:
            int, the bytes written.
        Raises:
            OutOfDiskError: if the system has no memory for fresh pages.
            ValueError: if the bytes are not all inside the arena.
            BufferError: if ``data`` is not contiguous.
        """
        source = flat(data)
        size = source.nbytes
        self._check_bounds(offset, size)
        if size <= _MAPPED_COPY_MAX:
            self._bytes[offset : offset + size] = source
            return size
        if self._pid != os.getpid():
            self._forget_touched()  # a fork inherits the mapping, but not the pages in it
        first, end = offset >> _CHUNK_SHIFT, ((offset + size - 1) >> _CHUNK_SHIFT) + 1
        known = min(self._touched[first:end])
        if known == _UNSEEN:
            pwrite_all(self._fd, source, offset)
            seen = self._touched[first:end].replace(bytes([_UNSEEN]), bytes([_SEEN]))
            self._touched[first:end] = seen
            return size
        if known == _SEEN:
            self._populate(offset, size)
            self._touched[first:end] = bytes([_TOUCHED]) * (end - first)
        self._bytes[offset : offset + size] = source
        return size

    def close(self) -> None:
        """Let go of the mapping. Bytes that are still looked at stay mapped until they are not."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._bytes.release()
        with suppress(BufferError):  # then the mapping lives until the last of its views is gone
            self._mapping.close()
        del self._mapping

    def _forget_touched(self) -> None:
        self._touched = bytearray((self.capacity_bytes >> _CHUNK_SHIFT) + 1)
        self._pid = os.getpid()

    def _populate(self, offset: int, size: int) -> None:
        start = offset & -mmap.PAGESIZE
        # Kernels without it map the pages one by one, under the copy.
        with suppress(OSError, AttributeError):
            self._mapping.madvise(_MADV_POPULATE_WRITE, start, offset + size - start)

    def _check_bounds(self, offset: int, size: int) -> None:
        if self._fd < 0:
            raise ValueError("the arena is closed")
        if offset < 0 or size < 0 or offset + size > self.capacity_bytes:
            raise ValueError(f"bytes {offset}..{offset + size} of an arena of {self.capacity_bytes}")


def _window_class(capacity_bytes: int) -> Any:
    """A ctypes array over the whole mapping whose instances say when they die.

    Every memoryview, numpy array and ``PickleBuffer`` made from an instance keeps it alive, through the
    buffer protocol, however they were sliced, reshaped or cast. One class serves all sizes, because a
    ctypes class for each would cost more than the objects. It is made for the first view: many processes
    never look at a large value.
    """
    import ctypes

    def __del__(self: Any) -> None:
        on_release = getattr(self, "on_release", None)
        if on_release is not None:
            on_release()

    fields = {"_type_": ctypes.c_ubyte, "_length_": capacity_bytes, "__del__": __del__}
    return type("_Window", (ctypes.Array,), fields)
