"""What a bare node asks its processes, and how long it waits for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.test_local_scheduler import DRIVER_ADDRESS
from tests.core.test_node import NodeBench
from zray.core import inquiries
from zray.core.machine import pump
from zray.protocol.messages import Answer, Query
from zray.protocol.user_messages import Tell, Told


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    yield made
    made.node.check()


@pytest.fixture
def worker(bench: NodeBench) -> bytes:
    found, _ = bench.running(bench.describe())
    bench.all()
    return found


def ask(bench: NodeBench, what: str = "spans") -> dict[bytes, int]:
    """Who is told, with the number of the inquiry."""
    bench.say(DRIVER_ADDRESS, Query(5, what))
    return {to: message.token for to, message in bench.take(Tell)}


def answer(bench: NodeBench) -> Any:
    ((to, message),) = bench.take(Answer)
    assert (to, message.token) == (DRIVER_ADDRESS, 5)
    return json.loads(message.body)


def test_everybody_is_asked_and_answers_once(bench: NodeBench, worker: bytes) -> None:
    numbers = ask(bench)
    assert set(numbers) == {DRIVER_ADDRESS, worker}
    number = numbers[worker]
    bench.say(worker, Told(number, b"one"), Told(number, b"two"), Told(number + 1, b"three"))
    bench.say(b"stranger", Told(number, b"four"))
    bench.all()
    bench.say(DRIVER_ADDRESS, Told(number, b"five"))
    found = answer(bench)
    assert [row["body"] for row in found["processes"]] == ["one", "five"]
    assert found["silent"] == []


def test_who_dies_is_not_waited_for(bench: NodeBench, worker: bytes) -> None:
    number = ask(bench)[worker]
    bench.say(DRIVER_ADDRESS, Told(number, b"here"))
    bench.exit(worker)
    assert [row["body"] for row in answer(bench)["processes"]] == ["here"]
    bench.all()


def test_the_silent_are_named_after_a_while(bench: NodeBench, worker: bytes) -> None:
    number = ask(bench)[worker]
    bench.say(DRIVER_ADDRESS, Told(number, b"here"))
    assert bench.node.wake_at_ns is not None
    later = bench.node.inquiries.wake_at_ns
    assert later is not None
    bench.node.on_tick(later)
    (body,) = [message.body for _, message in bench.node.out if isinstance(message, Answer)]
    bench.node.out.clear()
    assert len(json.loads(body)["silent"]) == 1
    pump(bench.node, [(worker, Told(number, b"late"))], later)
    assert not bench.node.inquiries.open


def test_what_the_ended_had_is_kept_within_bounds(
    bench: NodeBench, worker: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries, "KEPT_BYTES_MAX", 10)
    for body in (b"12345", b"67890", b"abcde"):
        bench.say(worker, Told(0, body))
    numbers = ask(bench)
    for address, number in numbers.items():
        bench.say(address, Told(number, b"\xff"))
    assert [row["body"] for row in answer(bench)["former"]] == ["67890", "abcde"]


def test_inquiries_are_bounded(bench: NodeBench, worker: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiries, "INQUIRIES_MAX", 1)
    ask(bench)
    bench.say(DRIVER_ADDRESS, Query(5, "spans"))
    assert "are open already" in answer(bench)["error"]
