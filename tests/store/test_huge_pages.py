"""Huge pages under the arena, where this system gives them; and what happens where it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.store.test_arena import in_child, nothing
from zray.errors import OutOfDiskError
from zray.store import arena as arena_module
from zray.store.arena import Arena, ArenaView, file_bytes
from zray.store.mapping import SharedMapping, huge_page_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

HUGE = huge_page_bytes() or 1 << 21


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(16 * HUGE + 4096)
    yield arena
    arena.close()


@pytest.fixture
def view(arena: Arena) -> Iterator[ArenaView]:
    view = ArenaView(arena.path, arena.capacity_bytes)
    yield view
    view.close()


def pattern(size: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(1, 255, size, dtype=np.uint8)


def hints(view: ArenaView) -> list[int]:
    return list(os.pread(view._fd, 16, view.capacity_bytes))


@pytest.fixture
def given(view: ArenaView) -> None:
    """Only where the system gives huge pages."""
    if not huge_page_bytes():
        pytest.skip("this system has no huge pages of a usable size")
    view.copy_in(15 * HUGE, pattern(HUGE, 9))
    if not hints(view)[15]:
        pytest.skip("this system gives no huge pages of shared memory, or has none left")


def test_only_whole_fresh_ones_are_taken_and_neighbours_stay(given: None, view: ArenaView) -> None:
    """An object from the middle of one huge page to the middle of another, beside two others."""
    left, right, middle = pattern(4096, 1), pattern(4096, 2), pattern(3 * HUGE, 3)
    start = HUGE + HUGE // 2
    view.copy_in(start - 4096, left)
    view.copy_in(start + middle.nbytes, right)
    assert view.copy_in(start, middle) == middle.nbytes
    assert hints(view)[:6] == [0, 0, 1, 1, 0, 0]
    assert bytes(view.read(start - 4096, 4096, nothing)) == left.tobytes()
    assert bytes(view.read(start, middle.nbytes, nothing)) == middle.tobytes()
    assert bytes(view.read(start + middle.nbytes, 4096, nothing)) == right.tobytes()
    per_chunk = [view._touched[i << 3] for i in range(6)]  # of 8 chunks in a huge page
    assert per_chunk == [0, 0, 2, 2, 1, 0]


def test_what_was_used_before_stays_in_small_pages(given: None, arena: Arena, view: ArenaView) -> None:
    """To collapse used pages would copy them: it costs more than it brings."""
    other = ArenaView(arena.path, arena.capacity_bytes, huge_pages=False)
    other.copy_in(HUGE + 4096, b"x" * 4096)
    data = pattern(3 * HUGE, 4)
    view.copy_in(0, data)
    assert hints(view)[:4] == [1, 0, 1, 0]
    assert bytes(other.read(0, data.nbytes, nothing)) == data.tobytes()
    other.close()


def test_one_extent_in_pieces_gets_them_too_and_no_other_extent_is_touched(
    given: None, view: ArenaView
) -> None:
    """As chunks from another node arrive, in any order."""
    data = pattern(3 * HUGE, 10)
    start, half = HUGE // 2, HUGE // 2
    for first in (3 * half, 0, 4 * half, half, 5 * half, 2 * half):
        view.copy_in(start + first, data[first : first + half], (start, start + data.nbytes))
    assert hints(view)[:5] == [0, 1, 1, 0, 0]
    assert bytes(view.read(start, data.nbytes, nothing)) == data.tobytes()


def test_another_process_finds_them_touched(given: None, arena: Arena, view: ArenaView) -> None:
    view.copy_in(0, pattern(4 * HUGE, 5))

    def child() -> None:
        own = ArenaView(arena.path, arena.capacity_bytes)
        own.copy_in(0, pattern(4 * HUGE, 6))
        assert min(own._touched[: 4 << 3]) == 2
        view.copy_in(4 * HUGE, pattern(2 * HUGE, 7))  # a mapping that was inherited

    assert in_child(child) == 0
    assert bytes(view.read(0, 4 * HUGE, nothing)) == pattern(4 * HUGE, 6).tobytes()
    assert bytes(view.read(4 * HUGE, 2 * HUGE, nothing)) == pattern(2 * HUGE, 7).tobytes()


def test_refused_ones_are_asked_for_less_and_less_and_given_again(
    view: ArenaView, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(mapping: SharedMapping, start: int, size: int) -> bool:
        asked.append(start)
        return False

    monkeypatch.setattr(SharedMapping, "collapse", refuse)
    for number in range(16):
        data = pattern(HUGE, number)
        view.copy_in(number * HUGE, data)
        assert bytes(view.read(number * HUGE, HUGE, nothing)) == data.tobytes()
    if view._huge_bytes:
        assert [start // HUGE for start in asked] == [0, 2, 6, 14]  # 1, 3, 7 are skipped in between
    assert hints(view) == [0] * 16
    monkeypatch.undo()


def test_a_file_that_knows_no_holes_is_written_as_ever(
    arena: Arena, view: ArenaView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "_hole_bytes", lambda fd, start, size: 0)
    data = pattern(2 * HUGE, 8)
    view.copy_in(0, data)
    assert bytes(view.read(0, data.nbytes, nothing)) == data.tobytes()
    assert max(view._touched) == 1


def test_a_mapping_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def lines() -> int:
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())

    fd = os.open(tmp_path / "f", os.O_RDONLY | os.O_CREAT)
    before = lines()
    with pytest.raises(OSError, match="denied"):
        SharedMapping(fd, 4096)
    assert lines() == before
    os.close(fd)


def test_a_full_disk_is_a_typed_error_with_huge_pages_too(small_disk: Path) -> None:
    """A file on shared memory with a limit: huge pages must not take the place of the error."""
    path = small_disk / "arena"
    with path.open("wb") as file:
        file.truncate(file_bytes(32 * HUGE))
    view = ArenaView(str(path), 32 * HUGE)
    with pytest.raises(OutOfDiskError):
        view.copy_in(0, bytes(32 * HUGE))
    view.close()
