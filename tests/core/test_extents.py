"""The allocator of the arena, case by case. ``tests/property/test_extents.py`` has the naive model."""

from __future__ import annotations

import random

import pytest

from zray.core.extents import GRANULE_BYTES, PLACED_BYTES_MIN, SLOT_BYTES_MAX, Extents
from zray.errors import InvariantError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def take(extents: Extents, size: int) -> int:
    """Allocate what must be there."""
    offset = extents.allocate(size)
    assert offset is not None
    return offset


def test_an_empty_arena_gives_all_of_itself_to_one_object() -> None:
    extents = Extents(10 * MIB)
    assert extents.largest_free() == extents.free_bytes == 10 * MIB
    assert extents.allocate(10 * MIB + 1) is None
    assert extents.allocate(10 * MIB) == 0
    assert (extents.free_bytes, extents.largest_free()) == (0, 0)
    assert extents.allocate(1) is None
    extents.free(0)
    extents.check()
    assert extents.largest_free() == 10 * MIB


@pytest.mark.parametrize("capacity", [0, 1, 63])
def test_an_arena_without_a_whole_granule_has_no_room(capacity: int) -> None:
    extents = Extents(capacity)
    assert extents.allocate(0) is None
    assert extents.largest_free() == 0
    extents.check()


def test_the_smallest_arena_holds_one_granule() -> None:
    extents = Extents(127)
    assert extents.capacity_bytes == GRANULE_BYTES
    assert extents.allocate(65) is None
    assert extents.allocate(0) == 0
    assert extents.allocate(0) is None
    extents.check()


@pytest.mark.parametrize("capacity", [-1, 1 << 48])
def test_a_capacity_that_offsets_cannot_express_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="an arena of"):
        Extents(capacity)


def test_the_largest_capacity_works() -> None:
    extents = Extents((1 << 48) - 1)
    size = (1 << 48) - GRANULE_BYTES
    offset = take(extents, size)
    assert extents.allocate(1) is None
    extents.free(offset)
    extents.check()
    assert extents.largest_free() == size


def test_empty_objects_have_offsets_of_their_own() -> None:
    extents = Extents(MIB)
    assert take(extents, 0) != take(extents, 0)
    assert extents.used_bytes == 2 * GRANULE_BYTES


@pytest.mark.parametrize("size", [1, 64, 65, 513, 4097, 33_000, SLOT_BYTES_MAX, SLOT_BYTES_MAX + 1, MIB + 1])
def test_an_extent_is_aligned_large_enough_and_at_most_an_eighth_too_large(size: int) -> None:
    extents = Extents(GIB)
    offset = take(extents, size)
    occupied = extents.size_of(offset)
    assert offset % GRANULE_BYTES == 0
    assert size <= occupied <= max(size + GRANULE_BYTES - 1, size * 9 // 8)
    assert extents.used_bytes == occupied


def test_what_is_freed_twice_or_was_never_handed_out_is_refused() -> None:
    extents = Extents(64 * MIB)
    small, large = take(extents, 100), take(extents, MIB)
    for offset in (small, large):
        extents.free(offset)
        with pytest.raises(InvariantError, match="no live extent"):
            extents.free(offset)
    with pytest.raises(InvariantError, match="no live extent"):
        extents.free(small + GRANULE_BYTES)
    extents.check()


def test_neighbouring_holes_become_one_whatever_the_order() -> None:
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        extents = Extents(4 * MIB)
        offsets = [take(extents, MIB) for _ in range(4)]
        for index in order:
            extents.free(offsets[index])
            extents.check()
        assert extents.largest_free() == 3 * MIB
        assert extents.allocate(3 * MIB) == 0


def test_the_smallest_hole_that_fits_is_taken_and_of_equal_ones_the_lowest() -> None:
    extents = Extents(GIB)
    sizes = (300 * KIB, 200 * KIB, 100 * KIB, 200 * KIB, 400 * KIB)
    holes = []
    for size in sizes:
        holes.append(take(extents, size))
        take(extents, SLOT_BYTES_MAX + 1)  # keeps the holes apart
    for offset in holes:
        extents.free(offset)
    assert take(extents, 150 * KIB) == holes[1]
    assert take(extents, 190 * KIB) == holes[3]
    assert take(extents, 250 * KIB) == holes[0]
    extents.check()


def test_warm_space_is_used_before_fresh_space() -> None:
    extents = Extents(GIB)
    first, _ = take(extents, 10 * MIB), take(extents, MIB)
    extents.free(first)
    mark = extents.high_water_bytes
    for _ in range(10):
        assert take(extents, MIB) < mark
    assert extents.high_water_bytes == mark
    assert take(extents, MIB) == mark


def test_fresh_space_is_joined_to_the_warm_hole_before_it() -> None:
    extents = Extents(10 * MIB)
    extents.free(take(extents, 4 * MIB))
    assert extents.allocate(10 * MIB) == 0
    extents.check()


def test_the_same_object_put_and_freed_again_and_again_stays_on_the_same_bytes() -> None:
    extents = Extents(GIB)
    for size in (100, 50_000, 10 * MIB):
        first = take(extents, size)
        extents.free(first)
        for _ in range(20):
            assert take(extents, size) == first
            extents.free(first)
    extents.check()


def test_empty_slabs_are_given_up_for_a_large_object() -> None:
    extents = Extents(64 * MIB)
    for size in (64, 1000, 10_000, 40_000):
        extents.free(take(extents, size))
    assert extents.high_water_bytes > 0
    assert extents.allocate(64 * MIB) == 0
    extents.check()


def test_a_slab_with_a_live_slot_stays_and_its_other_slots_are_used() -> None:
    extents = Extents(64 * MIB)
    slots = [take(extents, 4096) for _ in range(100)]
    mark = extents.high_water_bytes
    for offset in slots[1:]:
        extents.free(offset)
    extents.check()
    assert slots[0] in extents
    assert len(extents) == 1
    for _ in range(99):
        take(extents, 4096)
    assert extents.high_water_bytes == mark


def test_a_small_object_finds_room_where_no_slab_does() -> None:
    extents = Extents(8 * MIB)
    take(extents, 8 * MIB - 4096)
    offsets = [take(extents, 4096)]
    assert extents.allocate(1) is None
    extents.free(offsets[0])
    assert extents.allocate(100) is not None
    extents.check()


def test_huge_extents_begin_in_the_middle_of_a_page_and_are_found_again() -> None:
    extents = Extents(8 * PLACED_BYTES_MIN)
    sizes = [PLACED_BYTES_MIN + 1, PLACED_BYTES_MIN, 2 * PLACED_BYTES_MIN - 64]
    offsets = [take(extents, size) for size in sizes]
    assert [offset % 4096 for offset in offsets] == [2048] * 3
    mark = extents.high_water_bytes
    for offset in offsets:
        extents.free(offset)
        extents.check()
    assert [take(extents, size) for size in sizes] == offsets
    assert extents.high_water_bytes == mark


@pytest.mark.parametrize("before", [100_000, MIB - 4096])
def test_one_in_a_hole_moves_to_the_middle_if_there_is_room(before: int) -> None:
    extents = Extents(8 * PLACED_BYTES_MIN)
    hole, behind = (take(extents, size) for size in (PLACED_BYTES_MIN + MIB, 4 * MIB))
    extents.free(hole)
    assert take(extents, before) < hole
    moved = take(extents, PLACED_BYTES_MIN)
    assert hole < moved < behind
    assert moved % 4096 == 2048
    extents.check()


def test_one_without_that_room_begins_where_it_can() -> None:
    extents = Extents(2 * PLACED_BYTES_MIN)
    assert take(extents, 2 * PLACED_BYTES_MIN) == 0
    extents.free(0)
    small = take(extents, MIB)
    assert take(extents, 2 * PLACED_BYTES_MIN - MIB) == small + MIB
    extents.check()


def test_a_tiny_arena_has_no_slabs_to_waste_room_on() -> None:
    extents = Extents(4096)
    assert [extents.allocate(64) for _ in range(64)] == list(range(0, 4096, 64))
    assert extents.allocate(1) is None


def test_a_hundred_thousand_live_objects_of_all_sizes() -> None:
    chance = random.Random(7)
    extents = Extents(1 << 40)
    sizes = [1 << chance.randrange(24) for _ in range(100_000)]
    offsets = [take(extents, size) for size in sizes]
    for index in chance.sample(range(100_000), 50_000):
        extents.free(offsets[index])
        offsets[index] = take(extents, chance.randrange(MIB))
    assert len(extents) == 100_000
    extents.check()
    for offset in offsets:
        extents.free(offset)
    assert extents.used_bytes == 0
    assert extents.largest_free() == 1 << 40


def test_check_notices_a_damaged_table() -> None:
    for damage in ("_live", "_holes", "_hole_ends", "_slabs"):
        extents = Extents(64 * MIB)
        take(extents, 100)
        first = take(extents, MIB)
        take(extents, MIB)
        extents.free(first)
        extents.check()
        getattr(extents, damage).popitem()
        with pytest.raises((InvariantError, KeyError)):
            extents.check()
