from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from zray.store import writing
from zray.store.writing import SHARED_BYTES_MIN, copy


@pytest.mark.parametrize("size", [0, 1, SHARED_BYTES_MIN - 1, SHARED_BYTES_MIN, SHARED_BYTES_MIN + 3])
def test_every_byte_is_copied_and_none_around_them(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    target = np.full(size + 2, 7, np.uint8)
    copy(memoryview(target)[1 : size + 1], memoryview(source))
    assert np.array_equal(target[1 : size + 1], source)
    assert target[0] == target[-1] == 7


@pytest.mark.parametrize("turn", range(20))
def test_an_interrupt_waits_until_nothing_is_written_any_more(
    monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """It comes from the thread, as that begins: whatever the caller is at then."""
    source = np.ones(SHARED_BYTES_MIN, np.uint8)
    target = np.zeros_like(source)
    caller, in_thread = threading.get_ident(), list[int]()

    def interrupt_and_copy(to: memoryview, what: memoryview) -> None:
        if threading.get_ident() == caller:
            return
        signal.pthread_kill(caller, signal.SIGINT)
        in_thread.append(1)
        np.copyto(np.asarray(to), np.asarray(what))
        in_thread.append(2)

    monkeypatch.setattr(writing, "_copy_unlocked", interrupt_and_copy)
    with pytest.raises(KeyboardInterrupt):
        copy(memoryview(target), memoryview(source))
    assert in_thread == [1, 2]
    assert target[-1] == 1


def test_what_the_thread_could_not_do_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    caller, plainly = threading.get_ident(), writing._copy_unlocked

    def copy_here_alone(to: memoryview, what: memoryview) -> None:
        if threading.get_ident() != caller:
            raise MemoryError
        plainly(to, what)

    monkeypatch.setattr(writing, "_copy_unlocked", copy_here_alone)
    source = np.arange(SHARED_BYTES_MIN, dtype=np.uint8)
    target = np.zeros_like(source)
    copy(memoryview(target), memoryview(source))
    assert np.array_equal(target, source)


def test_nobody_looks_at_the_source_once_it_is_copied() -> None:
    source, target = bytearray(SHARED_BYTES_MIN), memoryview(bytearray(SHARED_BYTES_MIN))
    for _ in range(50):
        with memoryview(source) as view:
            copy(target, view)
        source.append(1)  # BufferError while it is looked at
        source.pop()


@pytest.fixture
def no_thread() -> Iterator[None]:
    """The system has no memory for the stack of a thread."""
    before = threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.usefixtures("no_thread")
def test_where_no_thread_is_to_be_had_one_copies_all() -> None:
    source = np.arange(SHARED_BYTES_MIN, dtype=np.uint8)
    target = np.zeros_like(source)
    copy(memoryview(target), memoryview(source))
    assert np.array_equal(target, source)
