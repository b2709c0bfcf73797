"""When a wait looks before it sleeps: what it learns, with waits that are told, and real descriptors."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.runtime.spinning import TRY_OTHER_EVERY, Ready, Spinning

SPIN_NS = 200_000
LONG_NS = 5_000_000


def chosen(spinning: Spinning, count: int, *, asleep_ns: int, spinning_ns: int) -> list[bool]:
    """Whether each of ``count`` waits spun, if it takes so long in either way."""
    ways = []
    for _ in range(count):
        spins = spinning.chooses_to_spin()
        spinning.note(spins, spinning_ns if spins else asleep_ns)
        ways.append(spins)
    return ways


def test_long_waits_sleep() -> None:
    spinning = Spinning(SPIN_NS)
    assert not any(chosen(spinning, 1_000, asleep_ns=LONG_NS, spinning_ns=LONG_NS))


def test_short_waits_spin_and_now_and_then_sleep() -> None:
    spinning = Spinning(SPIN_NS)
    chosen(spinning, 100, asleep_ns=110_000, spinning_ns=40_000)
    ways = chosen(spinning, 10 * TRY_OTHER_EVERY, asleep_ns=110_000, spinning_ns=40_000)
    assert ways.count(False) == 10


def test_it_ends_where_it_takes_the_core_from_who_is_to_answer_and_comes_back() -> None:
    spinning = Spinning(SPIN_NS)
    chosen(spinning, 100, asleep_ns=110_000, spinning_ns=40_000)
    chosen(spinning, 100, asleep_ns=110_000, spinning_ns=LONG_NS)
    ways = chosen(spinning, 10 * TRY_OTHER_EVERY, asleep_ns=110_000, spinning_ns=LONG_NS)
    assert ways.count(True) == 10
    chosen(spinning, 100 * TRY_OTHER_EVERY, asleep_ns=110_000, spinning_ns=40_000)
    assert chosen(spinning, TRY_OTHER_EVERY, asleep_ns=110_000, spinning_ns=40_000).count(True) > 1


def test_a_pause_of_the_users_changes_nothing() -> None:
    spinning = Spinning(SPIN_NS)
    chosen(spinning, 100, asleep_ns=110_000, spinning_ns=40_000)
    spinning.note(spinning.chooses_to_spin(), 60 * 10**9)
    assert chosen(spinning, TRY_OTHER_EVERY, asleep_ns=110_000, spinning_ns=40_000).count(False) <= 2


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**10)), max_size=300))
def test_whatever_came_before_long_waits_sleep_in_the_end(waits: list[tuple[int, int]]) -> None:
    spinning = Spinning(SPIN_NS)
    for asleep_ns, spinning_ns in waits:
        chosen(spinning, 1, asleep_ns=asleep_ns, spinning_ns=spinning_ns)
    chosen(spinning, 50 * TRY_OTHER_EVERY, asleep_ns=LONG_NS, spinning_ns=LONG_NS)
    assert not any(chosen(spinning, 1_000, asleep_ns=LONG_NS, spinning_ns=LONG_NS))


class Door:
    """A descriptor that can be made readable, and what was asked of it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0)
        self.epoll = select.epoll()
        self.epoll.register(self.fd, select.EPOLLIN)
        self.timeouts: list[float | None] = []
        self.opens_in_sleep = False

    def poll(self, timeout_s: float | None) -> Ready:
        self.timeouts.append(timeout_s)
        if timeout_s is None and self.opens_in_sleep:
            self.open()
        return self.epoll.poll(timeout_s)

    def open(self) -> None:
        os.eventfd_write(self.fd, 1)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.epoll.close()
    os.close(made.fd)


def eager(spin_ns: int) -> Spinning:
    """One that has learned to spin."""
    spinning = Spinning(spin_ns)
    chosen(spinning, 100, asleep_ns=spin_ns // 2, spinning_ns=0)
    assert spinning.chooses_to_spin()
    return spinning


def test_what_comes_while_it_looks_is_found_without_a_sleep(door: Door) -> None:
    opener = threading.Thread(target=door.open)
    opener.start()
    assert eager(60 * 10**9).wait(door.poll, None) == [(door.fd, select.EPOLLIN)]
    assert set(door.timeouts) == {0}
    opener.join()


def test_what_comes_late_is_found_by_the_sleep(door: Door) -> None:
    door.opens_in_sleep = True
    assert eager(SPIN_NS).wait(door.poll, None) == [(door.fd, select.EPOLLIN)]
    assert door.timeouts[-1] is None


def test_a_wait_ends_in_time_in_either_way(door: Door) -> None:
    for spinning in (eager(SPIN_NS), Spinning(SPIN_NS), Spinning(0)):
        began = time.monotonic()
        assert spinning.wait(door.poll, 0.02) == []
        assert time.monotonic() - began >= 0.02
        assert door.timeouts.pop() == 0.02


@pytest.mark.parametrize(("spin_ns", "timeout_s"), [(0, 0.01), (SPIN_NS, 0.0002), (SPIN_NS, 0.0)])
def test_it_never_looks_where_it_was_told_not_to_or_there_is_no_time(
    door: Door, spin_ns: int, timeout_s: float
) -> None:
    spinning = eager(spin_ns) if spin_ns else Spinning(0)
    assert spinning.wait(door.poll, timeout_s) == []
    assert door.timeouts == [timeout_s]
