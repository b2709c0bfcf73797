"""Which bytes of the arena belong to which object: a pure allocator of extents.

The one invariant (I11): live extents, slabs and holes tile ``[0, high_water_bytes)`` without overlap, and
what lies above was never handed out. Two layers:

- **slots**: sizes up to ``SLOT_BYTES_MAX`` come out of slabs, extents cut into equal slots, eight size
  classes per doubling (at most 1/8 of a slot is wasted, never below the 64 B granule);
- **extents**: everything else is best fit over holes that coalesce, kept in size bins with a bit mask, so
  that neither 7,000 nor 100,000 live objects make the search long.

A page that was never touched costs 15 times as much to write as a warm one, so the space above the
high-water mark is used only when no hole fits: holes are warm, and the mark never falls.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from zray.core.machine import invariant

GRANULE_BYTES = 64
"""Offsets and sizes are multiples of this: a cache line, and what numpy likes to be aligned to."""
SLOT_BYTES_MAX = 64 * 1024
"""Larger requests get an extent of their own."""
PLACED_BYTES_MIN = 16 * 1024 * 1024
"""Extents of at least this size begin in the middle of a page, if there is room. Large arrays of a process
begin at the first bytes of one; a copy of so much bypasses the caches, and on some processors it takes four
times as long if it writes less than 1 KiB behind where it reads, modulo 4 KiB."""

_GRANULE_SHIFT = 6
_PAGE_BYTES = 4096
_SLAB_BYTES = 64 * 1024  # wanted for tiny slots; larger ones want _SLAB_SLOTS of them
_SLAB_SLOTS = 16
_SLAB_SLOTS_MIN = 4  # a slab of fewer slots would save nothing
_SLABS_PER_ARENA_MIN = 64  # one slab may take at most this part of the arena

# Inside a bin a hole is one negative integer, -(size << _OFFSET_BITS | offset): the smallest hole, and of
# equal ones the lowest, is last in the ascending list, where a list is cheap to pop.
_OFFSET_BITS = 48
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_BINS = 8 * _OFFSET_BITS


class _SizeClass:
    """All slots of one size. ``partial`` are its slabs with a free slot, by base offset."""

    __slots__ = ("partial", "slab_bytes", "slab_slots", "slot_bytes")

    def __init__(self, slot_bytes: int, slab_slots: int) -> None:
        self.slot_bytes = slot_bytes
        self.slab_slots = slab_slots
        self.slab_bytes = slot_bytes * slab_slots
        self.partial: dict[int, _Slab] = {}


class _Slab:
    """An extent cut into slots; ``free`` is a stack of offsets, lowest or most recently freed on top."""

    __slots__ = ("base", "free", "size_class")

    def __init__(self, base: int, size_class: _SizeClass) -> None:
        self.base = base
        self.size_class = size_class
        last = base + size_class.slab_bytes - size_class.slot_bytes
        self.free = list(range(last, base - 1, -size_class.slot_bytes))


class Extents:
    """Hands out extents of ``[0, capacity_bytes)`` and takes them back. Pure and deterministic."""

    __slots__ = (
        "_bin_mask", "_bins", "_class_of", "_empty", "_hole_ends", "_holes", "_live", "_slabs",
        "capacity_bytes", "high_water_bytes", "used_bytes",
    )  # fmt: skip

    def __init__(self, capacity_bytes: int) -> None:
        """
        Args:
            capacity_bytes: int, rounded down to a whole number of granules; below 2**48.
        """
        if not 0 <= capacity_bytes <= _OFFSET_MASK:
            raise ValueError(f"an arena of {capacity_bytes} bytes; it must be within 0..2**48")
        self.capacity_bytes = capacity_bytes - capacity_bytes % GRANULE_BYTES
        self.high_water_bytes = 0
        self.used_bytes = 0
        self._live: dict[int, int | _Slab] = {}  # offset -> size of its own extent, or its slab
        self._holes: dict[int, int] = {}  # start -> size
        self._hole_ends: dict[int, int] = {}  # end -> start
        self._bins: list[list[int]] = [[] for _ in range(_BINS)]
        self._bin_mask = 0  # bit i: bin i is not empty
        self._slabs: dict[int, _Slab] = {}  # base -> slab
        self._empty: dict[int, _Slab] = {}  # slabs without a live slot, at most one per size class
        self._class_of = _size_class_table(self.capacity_bytes)

    def __len__(self) -> int:
        """Live extents."""
        return len(self._live)

    def __contains__(self, offset: int) -> bool:
        return offset in self._live

    @property
    def free_bytes(self) -> int:
        """What is not used; not all of it can go to one object (see ``largest_free``)."""
        return self.capacity_bytes - self.used_bytes

    def size_of(self, offset: int) -> int:
        """The bytes that the extent at ``offset`` really occupies: its request, rounded up."""
        entry = self._live[offset]
        return entry.size_class.slot_bytes if isinstance(entry, _Slab) else entry

    def allocate(self, size: int) -> int | None:
        """Room for ``size`` bytes.

        Args:
            size: int >= 0, bytes; an empty object still gets a granule, so that its offset is its own.
        Returns:
            int, a multiple of 64, or ``None`` if nothing free is long enough. It never is ``None`` for a
            size up to ``largest_free()``.
        Cost: about 1 us for a slot and 3 us for an extent, whatever the number of live objects.
        """
        if size <= SLOT_BYTES_MAX:
            size_class = self._class_of[(size + GRANULE_BYTES - 1) >> _GRANULE_SHIFT]
            if size_class is not None:
                slot = self._allocate_slot(size_class)
                if slot is not None:
                    return slot
        size = (size + GRANULE_BYTES - 1) & -GRANULE_BYTES or GRANULE_BYTES
        offset = None
        if size >= PLACED_BYTES_MIN:
            pages_bytes = -(-size // _PAGE_BYTES) * _PAGE_BYTES  # the next one begins in the middle, too
            offset = self._take_placed(pages_bytes)
            size = size if offset is None else pages_bytes
        if offset is None:
            offset = self._take_extent(size)
        if offset is None and self._empty:
            self._release_empty_slabs()
            offset = self._take_extent(size)
        if offset is not None:
            self._live[offset] = size
            self.used_bytes += size
        return offset

    def free(self, offset: int) -> None:
        """Take back an extent.

        Raises:
            InvariantError: if no live extent starts at ``offset`` (freed twice, or never handed out).
        """
        entry = self._live.pop(offset, None)
        if entry is None:
            invariant(False, "no live extent starts at offset", offset)
        elif isinstance(entry, int):
            self.used_bytes -= entry
            self._give_extent(offset, entry)
        else:
            self._free_slot(offset, entry)

    def largest_free(self) -> int:
        """The largest size that ``allocate`` is sure to have room for, in bytes.

        Empty slabs are given up for the answer, as ``allocate`` would.
        """
        self._release_empty_slabs()
        tail_start = self._hole_ends.get(self.high_water_bytes, self.high_water_bytes)
        tail = self.capacity_bytes - tail_start
        if not self._bin_mask:
            return tail
        return max(tail, -self._bins[self._bin_mask.bit_length() - 1][0] >> _OFFSET_BITS)

    # --- slots -----------------------------------------------------------------------------------

    def _allocate_slot(self, size_class: _SizeClass) -> int | None:
        partial = size_class.partial
        if partial:
            slab = next(reversed(partial.values()))
            if len(slab.free) == size_class.slab_slots:
                del self._empty[slab.base]
        else:
            base = self._take_extent(size_class.slab_bytes)
            if base is None:
                return None
            slab = self._slabs[base] = partial[base] = _Slab(base, size_class)
        offset = slab.free.pop()
        if not slab.free:
            del partial[slab.base]
        self._live[offset] = slab
        self.used_bytes += size_class.slot_bytes
        return offset

    def _free_slot(self, offset: int, slab: _Slab) -> None:
        size_class = slab.size_class
        self.used_bytes -= size_class.slot_bytes
        slab.free.append(offset)
        if len(slab.free) == 1:
            size_class.partial[slab.base] = slab
        elif len(slab.free) == size_class.slab_slots:
            if len(size_class.partial) == 1:
                # Kept, so that put, free, put, free of one object does not cut a new slab each time.
                self._empty[slab.base] = slab
            else:
                self._release_slab(slab)

    def _release_slab(self, slab: _Slab) -> None:
        del slab.size_class.partial[slab.base]
        del self._slabs[slab.base]
        self._give_extent(slab.base, slab.size_class.slab_bytes)

    def _release_empty_slabs(self) -> None:
        while self._empty:
            self._release_slab(self._empty.popitem()[1])

    # --- extents ---------------------------------------------------------------------------------

    def _take_placed(self, size: int) -> int | None:
        """An extent that begins in the middle of a page: where one would begin anyway, or a little behind."""
        start = self._take_extent(size)
        if start is None:
            return None
        lead = (_PAGE_BYTES // 2 - start) % _PAGE_BYTES
        if lead and not self._lengthen(start + size, lead):
            self._give_extent(start, size)
            start = self._take_extent(size + _PAGE_BYTES)
            if start is None:
                return None
            lead = (_PAGE_BYTES // 2 - start) % _PAGE_BYTES
            self._give_extent(start + lead + size, _PAGE_BYTES - lead)
        if lead:
            self._give_extent(start, lead)
        return start + lead

    def _lengthen(self, end: int, size: int) -> bool:
        """Take what follows an extent that ends at ``end``, if that is free."""
        rest = self._holes.get(end, 0)
        if rest < size and (end + rest < self.high_water_bytes or self.capacity_bytes - end < size):
            return False
        if rest:
            self._remove_hole(end, rest)
        if rest > size:
            self._add_hole(end + size, rest - size)
        self.high_water_bytes = max(self.high_water_bytes, end + size)
        return True

    def _take_extent(self, size: int) -> int | None:
        """Best fit among the holes; else fresh space, together with the hole that borders on it."""
        start = self._take_best_hole(size)
        if start is not None:
            return start
        start = self._hole_ends.get(self.high_water_bytes, self.high_water_bytes)
        if self.capacity_bytes - start < size:
            return None
        if start != self.high_water_bytes:
            self._remove_hole(start, self.high_water_bytes - start)
        self.high_water_bytes = start + size
        return start

    def _take_best_hole(self, size: int) -> int | None:
        """The start of the smallest, then lowest, hole of at least ``size``; its rest stays a hole."""
        index = _bin_of(size)
        bin_ = self._bins[index]
        # Keys of holes >= size are those <= -(size << bits): the last of them is the best fit.
        position = bisect_right(bin_, -(size << _OFFSET_BITS)) - 1
        if position < 0:
            larger = self._bin_mask >> (index + 1)
            if not larger:
                return None
            index += (larger & -larger).bit_length()
            bin_ = self._bins[index]
            position = len(bin_) - 1
        key = -bin_.pop(position)
        if not bin_:
            self._bin_mask ^= 1 << index
        start = key & _OFFSET_MASK
        hole_size = key >> _OFFSET_BITS
        del self._holes[start]
        del self._hole_ends[start + hole_size]
        if hole_size > size:
            self._add_hole(start + size, hole_size - size)
        return start

    def _give_extent(self, start: int, size: int) -> None:
        """Make a hole, one with the holes on either side."""
        end = start + size
        after = self._holes.get(end)
        if after is not None:
            self._remove_hole(end, after)
            end += after
        before = self._hole_ends.get(start)
        if before is not None:
            self._remove_hole(before, start - before)
            start = before
        self._add_hole(start, end - start)

    def _add_hole(self, start: int, size: int) -> None:
        index = _bin_of(size)
        insort(self._bins[index], -(size << _OFFSET_BITS | start))
        self._bin_mask |= 1 << index
        self._holes[start] = size
        self._hole_ends[start + size] = start

    def _remove_hole(self, start: int, size: int) -> None:
        index = _bin_of(size)
        bin_ = self._bins[index]
        del bin_[bisect_left(bin_, -(size << _OFFSET_BITS | start))]
        if not bin_:
            self._bin_mask ^= 1 << index
        del self._holes[start]
        del self._hole_ends[start + size]

    # --- checks ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Walk all state (I11): nothing overlaps, nothing is missing, the sums are right."""
        self._check_tiling()
        self._check_bins()
        self._check_slabs()
        used = sum(self.size_of(offset) for offset in self._live)
        invariant(used == self.used_bytes, "live extents sum to", used, "not", self.used_bytes)
        invariant(self.used_bytes <= self.capacity_bytes, "more is used than there is")

    def _check_tiling(self) -> None:
        pieces = [(start, size, True) for start, size in self._holes.items()]
        pieces += [(o, e, False) for o, e in self._live.items() if isinstance(e, int)]
        pieces += [(base, slab.size_class.slab_bytes, False) for base, slab in self._slabs.items()]
        expected, after_hole = 0, False
        for start, size, is_hole in sorted(pieces):
            invariant(start == expected, "a piece starts at", start, "not", expected)
            invariant(size > 0 and size % GRANULE_BYTES == 0, "a piece of", size, "bytes at", start)
            invariant(not (is_hole and after_hole), "two holes meet at", start)
            expected, after_hole = start + size, is_hole
        invariant(expected == self.high_water_bytes, "the pieces end at", expected)
        invariant(expected <= self.capacity_bytes, "the pieces end beyond the arena")

    def _check_bins(self) -> None:
        held: dict[int, int] = {}
        for index, bin_ in enumerate(self._bins):
            invariant(bool(bin_) == bool(self._bin_mask >> index & 1), "wrong mask for bin", index)
            invariant(bin_ == sorted(bin_), "unsorted bin", index)
            for key in bin_:
                size = -key >> _OFFSET_BITS
                invariant(_bin_of(size) == index, "a hole of", size, "bytes in bin", index)
                held[-key & _OFFSET_MASK] = size
        invariant(held == self._holes, "the bins disagree with the holes")
        ends = {start + size: start for start, size in self._holes.items()}
        invariant(ends == self._hole_ends, "the ends disagree with the holes")

    def _check_slabs(self) -> None:
        taken: dict[int, list[int]] = {base: [] for base in self._slabs}
        for offset, entry in self._live.items():
            if isinstance(entry, _Slab):
                taken[entry.base].append(offset)
        for base, slab in self._slabs.items():
            size_class = slab.size_class
            slots = sorted(slab.free + taken[base])
            whole = list(range(base, base + size_class.slab_bytes, size_class.slot_bytes))
            invariant(slots == whole, "the slots of the slab at", base, "are not each free or live once")
            invariant((base in size_class.partial) == bool(slab.free), "slab at", base, "misfiled")
            invariant((base in self._empty) == (not taken[base]), "slab at", base, "is not known as empty")


def _bin_of(size: int) -> int:
    """Eight bins per doubling. ``size`` is at least a granule, so four bits of it are there."""
    shift = size.bit_length() - 4
    return (shift << 3) + (size >> shift & 7)


def _size_class_table(capacity_bytes: int) -> list[_SizeClass | None]:
    """Granules of a request -> its size class; ``None`` where a slab would be too much of the arena."""
    table: list[_SizeClass | None] = []
    slab_bytes_max = capacity_bytes // _SLABS_PER_ARENA_MIN
    while len(table) <= SLOT_BYTES_MAX >> _GRANULE_SHIFT:
        granules = max(1, len(table))
        step = 1 << max(0, granules.bit_length() - 4)
        granules = -(-granules // step) * step
        slot_bytes = granules << _GRANULE_SHIFT
        wanted = max(_SLAB_SLOTS, _SLAB_BYTES // slot_bytes)
        slots = min(wanted, slab_bytes_max // slot_bytes)
        size_class = _SizeClass(slot_bytes, slots) if slots >= _SLAB_SLOTS_MIN else None
        table.extend([size_class] * (granules + 1 - len(table)))
    return table
