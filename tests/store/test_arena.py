"""The arena with real memory, real processes and real files."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zray.errors import OutOfDiskError
from zray.store.arena import Arena, ArenaView, file_bytes

# Newer Pythons warn of a fork beside threads, such as those of numpy; these children only read and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(16 * MIB)
    yield arena
    arena.close()


@pytest.fixture
def view(arena: Arena) -> Iterator[ArenaView]:
    view = ArenaView(arena.path, arena.capacity_bytes)
    yield view
    view.close()


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its exit code, 0 unless it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing() -> None:
    """For readers whose release is not looked at."""


def test_what_was_written_is_read(view: ArenaView) -> None:
    view.write(64, 5)[:] = b"hello"
    assert bytes(view.read(64, 5, nothing)) == b"hello"
    assert bytes(view.read(63, 1, nothing)) == b"\0"


def test_a_sealed_object_cannot_be_written_by_its_reader(view: ArenaView) -> None:
    shown = view.read(0, 8, nothing)
    assert shown.readonly
    assert not np.frombuffer(shown, np.int64).flags.writeable
    with pytest.raises(TypeError):
        shown[0] = 1


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, 3 * MIB + 17])
def test_copies_arrive_whole_the_first_second_and_third_time(view: ArenaView, size: int) -> None:
    for turn in range(4):
        data = np.arange(turn, turn + size, dtype=np.uint64).astype(np.uint8)
        offset = 64 * turn  # also over chunks that were touched in part
        assert view.copy_in(offset, data) == size
        assert bytes(view.read(offset, size, nothing)) == data.tobytes()


def test_the_way_of_a_large_write_changes_with_what_was_touched(arena: Arena) -> None:
    view = ArenaView(arena.path, arena.capacity_bytes, huge_pages=False)
    data = bytes(2 * MIB)
    states = []
    for _ in range(3):
        view.copy_in(0, data)
        states.append(max(view._touched[:8]))
    assert states == [1, 2, 2]
    assert max(view._touched[8:]) == 0
    view.copy_in(MIB, data)  # half of it is new: written as new, but nothing is forgotten
    assert list(view._touched[:12]) == [2] * 8 + [1] * 4
    view.close()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.zeros((0, 3)),
        np.array(2.5),
    ],
)
def test_any_contiguous_buffer_is_copied_in_memory_order(
    view: ArenaView, array: np.ndarray[Any, Any]
) -> None:
    assert view.copy_in(128, array) == array.nbytes
    assert bytes(view.read(128, array.nbytes, nothing)) == array.tobytes(order="A")


def test_a_buffer_with_gaps_is_refused(view: ArenaView) -> None:
    with pytest.raises(BufferError, match="not contiguous"):
        view.copy_in(0, np.arange(10)[::2])


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 16 * MIB + 1), (16 * MIB, 1), (0, -1)])
def test_bytes_outside_the_arena_are_refused(view: ArenaView, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="of an arena of"):
        view.write(offset, size)
    with pytest.raises(ValueError, match="of an arena of"):
        view.read(offset, size, nothing)
    if size > 0:
        with pytest.raises(ValueError, match="of an arena of"):
            view.copy_in(offset, bytes(size))


def test_the_last_byte_can_be_used(view: ArenaView) -> None:
    view.copy_in(16 * MIB - MIB, b"x" * MIB)
    assert bytes(view.read(16 * MIB - 1, 1, nothing)) == b"x"
    assert view.read(16 * MIB, 0, nothing).nbytes == 0


DERIVATIONS: dict[str, Callable[[memoryview], Any]] = {
    "itself": lambda shown: shown,
    "slice": lambda shown: shown[8:16],
    "slice of a slice": lambda shown: shown[8:][:4][1:],
    "cast": lambda shown: shown.cast("d"),
    "read-only again": lambda shown: shown.toreadonly(),
    "array": lambda shown: np.frombuffer(shown, np.float64),
    "reshaped, transposed part": lambda shown: np.frombuffer(shown, np.uint8).reshape(8, 8).T[2:, 1::2],
    "view as another type": lambda shown: np.frombuffer(shown, np.uint8)[8:].view(np.int32),
    "asarray of a memoryview": lambda shown: np.asarray(shown[3:]),
    "PickleBuffer": lambda shown: pickle.PickleBuffer(shown),
    "raw PickleBuffer": lambda shown: pickle.PickleBuffer(np.frombuffer(shown, np.int16)).raw(),
    "unpickled out of band": lambda shown: pickle.loads(
        pickle.dumps(np.zeros(64, np.uint8), protocol=5, buffer_callback=[].append), buffers=[shown]
    ),
    "inside a cycle": lambda shown: cycle_around(shown),
}


def cycle_around(shown: memoryview) -> list[Any]:
    """A list that holds itself and ``shown``, so that only the garbage collector ends it."""
    cycle: list[Any] = [shown]
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize("derive", DERIVATIONS.values(), ids=DERIVATIONS.keys())
def test_release_is_told_once_when_the_last_derived_view_is_gone(
    view: ArenaView, derive: Callable[[memoryview], Any]
) -> None:
    released: deque[str] = deque()
    shown = view.read(64, 64, partial(released.append, "x"))
    derived = derive(shown)
    del shown
    gc.collect()
    assert not released
    del derived
    gc.collect()
    assert list(released) == ["x"]


def test_each_reader_of_one_object_is_told_about_on_its_own(view: ArenaView) -> None:
    released: deque[int] = deque()
    first = view.read(0, 8, partial(released.append, 1))
    second = view.read(0, 8, partial(released.append, 2))
    del first
    assert list(released) == [1]
    del second
    assert list(released) == [1, 2]


def test_release_works_in_another_thread(view: ArenaView) -> None:
    released: deque[int] = deque()
    arrays = [np.frombuffer(view.read(0, 8, partial(released.append, 1)), np.uint8)]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert list(released) == [1]


def test_closing_leaves_what_is_looked_at(arena: Arena) -> None:
    released: deque[int] = deque()
    view = ArenaView(arena.path, arena.capacity_bytes)
    view.copy_in(0, b"still here")
    array = np.frombuffer(view.read(0, 10, partial(released.append, 1)), np.uint8)
    writable = view.write(0, 5)
    view.close()
    view.close()
    arena.close()
    writable[:] = b"STILL"
    assert array.tobytes() == b"STILL here"
    assert not released
    with pytest.raises(ValueError, match="closed"):
        view.read(0, 1, nothing)
    with pytest.raises(ValueError, match="closed"):
        view.copy_in(0, b"1")
    del array
    assert list(released) == [1]


def test_a_closed_view_without_readers_is_unmapped(arena: Arena) -> None:
    def mapped() -> bool:
        with open("/proc/self/maps") as maps:
            return any("zray-arena" in line for line in maps)

    if sys.platform != "linux":
        pytest.skip("reads /proc")
    view = ArenaView(arena.path, arena.capacity_bytes)
    view.read(0, 1, nothing)
    assert mapped()
    view.close()
    assert not mapped()


def test_a_forked_child_reads_what_the_parent_wrote_and_the_other_way_round(arena: Arena) -> None:
    view = ArenaView(arena.path, arena.capacity_bytes, huge_pages=False)
    data = np.arange(MIB, dtype=np.uint16)
    for _ in range(3):
        view.copy_in(0, data)  # touched: the child must not rely on that

    def child() -> None:
        assert (np.frombuffer(view.read(0, data.nbytes, nothing), np.uint16) == data).all()
        view.copy_in(0, data[::-1].copy())
        assert max(view._touched) == 1

    assert in_child(child) == 0
    assert (np.frombuffer(view.read(0, data.nbytes, nothing), np.uint16) == data[::-1]).all()
    view.close()


def test_a_process_that_opens_the_path_sees_the_same_bytes(arena: Arena, view: ArenaView) -> None:
    view.copy_in(640, b"from the parent")

    def child() -> None:
        own = ArenaView(arena.path, arena.capacity_bytes)
        assert bytes(own.read(640, 15, nothing)) == b"from the parent"
        own.copy_in(MIB, b"y" * MIB)

    assert in_child(child) == 0
    assert bytes(view.read(2 * MIB - 2, 3, nothing)) == b"yy\0"


def test_a_view_of_an_arena_that_is_gone_is_refused(arena: Arena) -> None:
    arena.close()
    arena.close()
    with pytest.raises(FileNotFoundError):
        ArenaView(arena.path, arena.capacity_bytes)


def test_a_view_larger_than_the_arena_is_refused_and_leaves_no_descriptor(arena: Arena) -> None:
    def lowest_free_descriptor() -> int:
        fd = os.dup(0)
        os.close(fd)
        return fd

    before = lowest_free_descriptor()
    with pytest.raises(ValueError, match="size"):
        ArenaView(arena.path, arena.capacity_bytes + 1)
    assert lowest_free_descriptor() == before


def test_an_arena_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="an arena of 0 bytes"):
        Arena(0)


@pytest.mark.parametrize("capacity", [1, 64, 4097])
def test_small_arenas_work_to_the_last_byte(capacity: int) -> None:
    arena = Arena(capacity)
    view = ArenaView(arena.path, capacity)
    view.copy_in(0, b"z" * capacity)
    assert bytes(view.read(0, capacity, nothing)) == b"z" * capacity
    view.close()
    arena.close()


def test_an_arena_takes_memory_only_as_it_is_used() -> None:
    arena = Arena(1 << 40)
    view = ArenaView(arena.path, arena.capacity_bytes)
    view.copy_in((1 << 40) - 4096, b"end" + bytes(4093))
    assert os.stat(arena.path).st_blocks * 512 <= 4 * MIB
    view.close()
    arena.close()


def test_an_arena_cannot_be_cut_short() -> None:
    arena = Arena(MIB)
    for size in (0, 2 * MIB):
        with pytest.raises(PermissionError):
            os.truncate(arena.path, size)
    arena.close()


def test_no_room_for_fresh_pages_is_a_typed_error(small_disk: Path) -> None:
    """A file stands for the memory, which only a limit of the whole machine could make short."""
    path = small_disk / "arena"
    with path.open("wb") as file:
        file.truncate(file_bytes(64 * MIB))
    view = ArenaView(str(path), 64 * MIB)
    with pytest.raises(OutOfDiskError) as caught:
        view.copy_in(0, bytes(32 * MIB))
    assert caught.value.need_bytes == 32 * MIB
    view.close()


def test_windows_do_not_leak_classes(view: ArenaView) -> None:
    view.read(0, 1, nothing)  # the first makes the one class
    before = len(ctypes.Array.__subclasses__())
    for size in range(100):
        view.read(0, size, nothing)
    assert len(ctypes.Array.__subclasses__()) == before


def test_other_threads_run_while_a_large_object_is_copied(view: ArenaView) -> None:
    data = np.zeros(2 << 20, np.uint8)
    for _ in range(2):
        view.copy_in(0, data)  # from now on it is a plain copy
    copying, seen, ending = False, threading.Event(), threading.Event()

    def look() -> None:
        while not ending.is_set():
            if copying:
                seen.set()
            time.sleep(0)  # lets go of the lock

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=look)
    thread.start()
    sys.setswitchinterval(100.0)  # the other thread runs when this one lets go of the lock, and never else
    try:
        for _ in range(10_000):
            copying = True
            view.copy_in(0, data)
            copying = False
            if seen.is_set():
                break
    finally:
        sys.setswitchinterval(interval_s)
        ending.set()
        thread.join()
    assert seen.is_set()
