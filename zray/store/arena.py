"""The object store's memory: one arena per node, mapped once by every process of that node.

The node creates an :class:`Arena` and tells its path; each process opens it as an :class:`ArenaView`.
Which extent belongs to which object is decided by ``core.extents``.

The invariant of the memory: nobody dies of ``SIGBUS``. The arena is a memfd: no mount limits its size,
and seals forbid to shrink it, so every offset below the capacity stays backed; when memory itself runs
out, ``pwrite`` fails with a typed error and the kernel's out-of-memory rules decide the rest, as for any
memory. A memfd has no name either: nothing is left behind, however its processes end.

Cost of 100 MiB where a warm memcpy takes 6 ms (``benchmarks/bench_store.py`` measures it anew). Fresh
memory: 12 ms in huge pages, if they are asked for, 40 in small ones by ``pwrite``, 60 through the mapping;
each several times as much on a virtual machine whose host has to find the memory too. Recycled memory: 6 ms
through a mapping that touched it before, and through any mapping if it is in huge pages; else 20 by
``pwrite``, 26 to 32 through the mapping.
See :meth:`ArenaView.copy_in`, and ``docs/performance.md`` for what did not help.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

from zray.store.mapping import SharedMapping, huge_page_bytes
from zray.store.writing import copy, flat, pwrite_all, typed

_CHUNK_SHIFT = 18  # what this process touched is remembered per 256 KiB
_MAPPED_COPY_MAX = 1 << _CHUNK_SHIFT
_UNSEEN, _SEEN, _TOUCHED = 0, 1, 2
_HUGE_RUN_MAX = 4  # huge pages asked for at once: each call costs something, and caches are small
_REFUSALS_MAX = 10  # after so many refusals in a row a process asks for one in a thousand writes only


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
            os.ftruncate(self._fd, file_bytes(capacity_bytes))
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            self.close()
            raise typed(error, capacity_bytes) from error

    def close(self) -> None:
        """End the arena. Processes that still map it keep their bytes until they let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ArenaView:
    """One process's mapping of an arena, made at the first use.

    Behind the capacity the file has a byte for each huge page of it: not 0 if the arena was filled with a
    huge page there. Only a hint for other processes, of how to write there.
    """

    def __init__(self, path: str, capacity_bytes: int, *, huge_pages: bool = True) -> None:
        """
        Args:
            path: str, ``Arena.path``; capacity_bytes: int, as the node said.
            huge_pages: whether to ask for some where large objects meet fresh memory.
        Raises:
            FileNotFoundError: if the node is gone.
            ValueError: if the arena is smaller than that.
        """
        self.capacity_bytes = capacity_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        there_are = os.fstat(self._fd).st_size
        if there_are < file_bytes(capacity_bytes):
            os.close(self._fd)
            raise ValueError(f"the size of the arena is {there_are} bytes, too few for {capacity_bytes}")
        self._huge_bytes = huge_page_bytes() if huge_pages else 0
        self._refusals = 0  # of huge pages, in a row
        self._writes_to_skip = 0  # before the next one is asked for
        self._mapping: SharedMapping | None = None
        self._bytes = memoryview(b"")
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
        mapping = self._check_bounds(offset, size)
        if self._window_class is None:
            self._window_class = _window_class(self.capacity_bytes)
        window = self._window_class.from_buffer(mapping.view)
        view = memoryview(window).cast("B")[offset : offset + size].toreadonly()
        window.on_release = on_release
        return view

    def write(self, offset: int, size: int) -> memoryview:
        """The writable bytes of an extent that is not sealed yet: memoryview, uint8[size]."""
        self._check_bounds(offset, size)
        return self._bytes[offset : offset + size]

    def copy_in(self, offset: int, data: Any, extent: tuple[int, int] | None = None) -> int:
        """Copy a contiguous buffer to ``offset``, in the way that is cheapest from what this process did.

        A write of up to 256 KiB, or to bytes that this process has touched, is a memcpy. Huge pages are
        asked for where at least one whole one of fresh memory is written; they are touched at once, in any
        process. Otherwise the first write goes by ``pwrite``, which maps nothing: the cheapest way for the
        process that never comes back. A second write to the same bytes maps their pages in bulk and
        copies; from then on they are touched. Renting once before buying is never worse than twice the
        best choice.

        Args:
            offset: int, bytes.
            data: what is written.
            extent: (start, end) of the bytes around them that are the writer's, if it fills them in pieces.
        Returns:
            int, the bytes written.
        Raises:
            OutOfDiskError: if the system has no memory for fresh pages.
            ValueError: if the bytes are not all inside the arena.
            BufferError: if ``data`` is not contiguous.
        """
        source = flat(data)
        size = source.nbytes
        mapping = self._check_bounds(offset, size)
        if size <= _MAPPED_COPY_MAX:
            self._bytes[offset : offset + size] = source
            return size
        if self._pid != os.getpid():
            self._forget_touched()  # a fork inherits the mapping, but not the pages in it
        first, end = _chunks(offset, size)
        known = min(self._touched[first:end])
        if known == _UNSEEN:
            self._write_unseen(mapping, offset, source, *(extent or (offset, offset + size)))
            return size
        if known == _SEEN:
            # Kernels without it map the pages one by one, under the copy.
            mapping.populate(offset, size)
            self._touched[first:end] = bytes([_TOUCHED]) * (end - first)
        copy(self._bytes[offset : offset + size], source)
        return size

    def _write_unseen(
        self, mapping: SharedMapping, offset: int, source: memoryview, own_start: int, own_end: int
    ) -> None:
        """Write where some bytes are new to this process: in huge pages as far as there are any."""
        position, size = 0, source.nbytes
        huge_bytes = self._huge_bytes if mapping.is_aligned else 0
        while position < size:
            start, count = offset + position, size - position
            if huge_bytes:
                page = start - start % huge_bytes
                last = min(own_end, offset + size + -(offset + size) % huge_bytes)
                count = min(count, page + huge_bytes - start)
                if own_start <= page and page + huge_bytes <= last:
                    taken = self._take_huge(mapping, page, last - last % huge_bytes - page, size)
                    if taken:
                        count = min(size - position, page + taken - start)
                        copy(self._bytes[start : start + count], source[position : position + count])
                        first, end = _chunks(start, count)
                        self._touched[first:end] = bytes([_TOUCHED]) * (end - first)
                        position += count
                        continue
            self._write_by_system(start, source[position : position + count], size)
            position += count

    def _write_by_system(self, offset: int, source: memoryview, need_bytes: int) -> None:
        pwrite_all(self._fd, source, offset, need_bytes=need_bytes)
        first, end = _chunks(offset, source.nbytes)
        self._touched[first:end] = self._touched[first:end].replace(bytes([_UNSEEN]), bytes([_SEEN]))

    def _take_huge(self, mapping: SharedMapping, start: int, size: int, need_bytes: int) -> int:
        """How many bytes from ``start`` on are in huge pages, some of them made now; 0: none are.

        Args:
            start, size: int, bytes, multiples of a huge page.
            need_bytes: int, of the whole write.
        """
        huge_bytes = self._huge_bytes
        size = min(size, _HUGE_RUN_MAX * huge_bytes)
        hints_at = self.capacity_bytes + start // huge_bytes
        hints = os.pread(self._fd, size // huge_bytes, hints_at)
        known = len(hints) - len(hints.lstrip(b"\1"))
        if known:
            return known * huge_bytes
        fresh = _hole_bytes(self._fd, start, size) // huge_bytes
        if not fresh or not self._asks_for_huge():
            return 0
        for page in range(fresh):  # the system makes none out of nothing at all
            pwrite_all(self._fd, memoryview(b"\0"), start + page * huge_bytes, need_bytes=need_bytes)
        if not mapping.collapse(start, fresh * huge_bytes):
            self._refusals += 1
            self._writes_to_skip = (1 << min(self._refusals, _REFUSALS_MAX)) - 1
            return 0
        self._refusals = 0
        pwrite_all(self._fd, memoryview(b"\1" * fresh), hints_at, need_bytes=need_bytes)
        return fresh * huge_bytes

    def _asks_for_huge(self) -> bool:
        """Whether to ask for huge pages once more: less and less often while none are given."""
        if self._writes_to_skip:
            self._writes_to_skip -= 1
            return False
        return True

    def close(self) -> None:
        """Let go of the mapping. Bytes that are still looked at stay mapped until they are not."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._bytes.release()
        self._mapping = None

    def _forget_touched(self) -> None:
        self._touched = bytearray((self.capacity_bytes >> _CHUNK_SHIFT) + 1)
        self._pid = os.getpid()

    def _check_bounds(self, offset: int, size: int) -> SharedMapping:
        """The mapping, made now if this is its first use.

        Raises:
            ValueError: if the arena is closed, or bytes are outside it.
        """
        if self._fd < 0:
            raise ValueError("the arena is closed")
        if offset < 0 or size < 0 or offset + size > self.capacity_bytes:
            raise ValueError(f"bytes {offset}..{offset + size} of an arena of {self.capacity_bytes}")
        mapping = self._mapping
        if mapping is None:
            mapping = self._mapping = SharedMapping(self._fd, self.capacity_bytes)
            self._bytes = mapping.view
        return mapping


def file_bytes(capacity_bytes: int) -> int:
    """The size of the file of an arena: its bytes, and one for each huge page of them."""
    return capacity_bytes + capacity_bytes // (huge_page_bytes() or capacity_bytes + 1)


def _chunks(offset: int, size: int) -> tuple[int, int]:
    """The first chunk of these bytes, and the one behind the last."""
    return offset >> _CHUNK_SHIFT, ((offset + size - 1) >> _CHUNK_SHIFT) + 1


def _hole_bytes(fd: int, start: int, size: int) -> int:
    """How many bytes from ``start`` on were never written, as the system knows; at most ``size``."""
    try:
        return min(size, os.lseek(fd, start, os.SEEK_DATA) - start)
    except OSError as error:  # nothing but hole up to the end; or this file does not know
        return size if error.errno == errno.ENXIO else 0


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
