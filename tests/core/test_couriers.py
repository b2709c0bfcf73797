"""Posts between two nodes, whose link loses, repeats and delays."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import pytest

from zray.core.couriers import RESEND_NS, STRANGER_PATIENCE_NS, Couriers
from zray.protocol.actor_messages import Posted, PostTaken, WatchFrom

HERE, THERE = b"here", b"there"


class OpenGate:
    """A gate that lets everything leave at once, or holds it back."""

    def __init__(self, out: list[tuple[bytes, Any]]) -> None:
        self.out = out
        self.gate: deque[Any] = deque()
        self.is_open = True

    def depart(self, destination: bytes, message: Any) -> None:
        if self.is_open:
            self.out.append((destination, message))
        else:
            self.gate.append(message)


def courier(heard: list[Any]) -> Couriers:
    out: list[tuple[bytes, Any]] = []
    gate: Any = OpenGate(out)
    return Couriers(out, sharing=gate, on_post=lambda _now, _source, message: heard.append(message))


def message(number: int) -> WatchFrom:
    return WatchFrom(b"%016d" % number)


def taken(machine: Couriers) -> list[Any]:
    sent = [sent for _, sent in machine.out]
    machine.out.clear()
    return sent


def test_posts_are_numbered_and_acknowledged_once_per_batch() -> None:
    heard: list[Any] = []
    machine = courier(heard)
    machine.post(THERE, message(1))
    machine.post(THERE, message(2))
    first, second = taken(machine)
    machine.on_posted(5, THERE, Posted(1, message(7)))
    machine.on_posted(5, THERE, Posted(2, message(8)))
    machine.flush(5)
    assert taken(machine) == [PostTaken(2)]
    assert heard == [message(7), message(8)]
    assert (first, second) == (Posted(1, message(1)), Posted(2, message(2)))
    machine.on_post_taken(6, THERE, PostTaken(2))
    assert machine.wake_at_ns is None
    machine.check()


def test_what_comes_twice_or_beyond_a_gap_is_not_handled() -> None:
    heard: list[Any] = []
    machine = courier(heard)
    for number in (2, 1, 1, 3, 2):
        machine.on_posted(0, THERE, Posted(number, message(number)))
    machine.flush(0)
    assert heard == [message(1), message(2)]
    assert taken(machine) == [PostTaken(2)]


def test_what_the_gate_holds_back_is_not_repeated() -> None:
    machine = courier([])
    gate: Any = machine.sharing
    gate.is_open = False
    machine.post(THERE, message(1))
    machine.on_tick(RESEND_NS, {THERE: ""})
    assert taken(machine) == []
    gate.gate.clear()
    machine.on_tick(2 * RESEND_NS, {THERE: ""})
    assert taken(machine) == [Posted(1, message(1))]


def test_nothing_is_said_to_the_dead() -> None:
    machine = courier([])
    machine.post(THERE, message(1))
    taken(machine)
    machine.node_dead(THERE, dead_max=1)
    machine.post(THERE, message(2))
    machine.on_tick(10 * RESEND_NS, {})
    assert taken(machine) == []
    machine.node_dead(b"other", dead_max=1)
    assert list(machine.dead) == [b"other"], "I15"
    machine.check()


def test_a_node_that_nobody_has_heard_of_is_given_up() -> None:
    machine = courier([])
    machine.post(THERE, message(1))
    taken(machine)
    machine.on_tick(STRANGER_PATIENCE_NS, {})
    assert taken(machine) == [Posted(1, message(1))], "it may be in the next table of the living"
    machine.on_tick(2 * STRANGER_PATIENCE_NS, {})
    assert taken(machine) == []
    assert machine.wake_at_ns is None


@pytest.mark.parametrize("seed", range(20))
def test_everything_arrives_once_and_in_order_over_a_bad_link(seed: int) -> None:
    random = Random(seed)
    heard: list[Any] = []
    ours, theirs = courier([]), courier(heard)
    posted = [message(number) for number in range(300)]
    waiting, now_ns = deque(posted), 0
    while len(heard) < len(posted) or ours.wake_at_ns is not None:
        now_ns += RESEND_NS // 3
        for _ in range(random.randint(0, 20)):
            if waiting:
                ours.post(THERE, waiting.popleft())
        ours.on_tick(now_ns, {THERE: ""})
        frame = taken(ours)
        if random.random() < 0.3:
            frame = []
        elif random.random() < 0.3:
            frame = frame[random.randrange(len(frame) + 1) :] + frame
        for each in frame:
            theirs.on_posted(now_ns, HERE, each)
        theirs.flush(now_ns)
        for each in taken(theirs):
            if random.random() < 0.7:
                ours.on_post_taken(now_ns, THERE, each)
        ours.check()
        assert now_ns < 10_000 * RESEND_NS
    assert heard == posted
