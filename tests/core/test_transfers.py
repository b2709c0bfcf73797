"""Chunks on their way out and in: what is read stays, what does not come is asked for again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_kept_copies import (
    ARENA_BYTES,
    DRIVER_ADDRESS,
    HERE,
    LARGE,
    PUT,
    PUTS,
    SHARD,
    THERE,
    Bench,
    only,
)
from zray.core import transfers
from zray.core.machine import RUNTIME, TRANSFER
from zray.protocol.cluster import (
    AskRawLink,
    ChunkArrived,
    ChunkSent,
    KeepCopy,
    Members,
    OfferRawLink,
    Pull,
    PullFailed,
    ReceiveInto,
    SendChunk,
)
from zray.protocol.messages import AT_NODE, Create, Created, Release, Value

SENT = ChunkSent(THERE, PUT, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def begin(bench: Bench) -> None:
    """The other node is sent a chunk of what was put here."""
    bench.put()
    assert len(only(bench.say(THERE, Pull(PUT, 0, LARGE)), SendChunk)) == 1


def create(bench: Bench) -> list[tuple[bytes, Any]]:
    """Room that there is only where nothing else is."""
    return only(bench.say(DRIVER_ADDRESS, Create(PUTS[1], ARENA_BYTES)), Created)


def test_the_room_of_what_is_freed_while_it_is_sent_is_nobody_elses_until_it_is_sent(bench: Bench) -> None:
    begin(bench)
    bench.say(DRIVER_ADDRESS, Release((PUT,)))
    assert PUT not in bench.node.store.objects
    assert bench.node.store.extents.used_bytes
    bench.say(THERE, SENT)  # only this process knows
    assert bench.node.store.extents.used_bytes
    bench.say(RUNTIME, SENT)
    assert not bench.node.store.extents.used_bytes
    bench.say(RUNTIME, SENT)
    assert [message.offset for _, message in create(bench)] == [0]


def test_what_is_being_sent_is_not_sent_twice(bench: Bench) -> None:
    """Who waits for long asks again, and would make a slow link slower."""
    begin(bench)
    assert not bench.say(THERE, Pull(PUT, 0, LARGE))
    bench.say(RUNTIME, SENT)
    assert only(bench.say(THERE, Pull(PUT, 0, LARGE)), SendChunk)


def test_nobody_can_have_more_sent_than_a_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "SENDING_MAX", 3)
    bench.put()
    asked = [Pull(PUT, start, 1) for start in range(5)]
    assert len(only(bench.say(THERE, *asked), SendChunk)) == 3
    bench.say(RUNTIME, ChunkSent(THERE, PUT, 1))
    assert len(only(bench.say(THERE, *asked), SendChunk)) == 1


def test_one_that_is_gone_can_still_be_sent_the_rest_of_what_it_asked_for(bench: Bench) -> None:
    """The thread that reads does not know of the death yet."""
    begin(bench)
    bench.say(SHARD, Members(2, ((HERE, ""),)))
    bench.say(DRIVER_ADDRESS, Release((PUT,)))
    assert bench.node.store.extents.used_bytes
    bench.say(RUNTIME, SENT)
    assert not bench.node.store.extents.used_bytes


def test_an_object_that_is_sent_and_freed_is_not_there_for_the_next_one(bench: Bench) -> None:
    begin(bench)
    bench.say(DRIVER_ADDRESS, Release((PUT,)))
    assert bench.say(THERE, Pull(PUT, LARGE, 0)) == [(THERE, PullFailed(PUT))]


def test_who_got_nothing_for_long_says_again_where_it_belongs_and_asks_later_and_later(bench: Bench) -> None:
    where = KeepCopy(PUT, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2)
    said = bench.say(SHARD, where)
    [room], [pull] = only(said, ReceiveInto), only(said, Pull)
    patience_ns = bench.node.config.pull_patience_ns
    waited = []
    for _ in range(6):
        asked_ns, again = bench.now_ns, []
        while not again:
            bench.now_ns += patience_ns
            said = bench.say(DRIVER_ADDRESS, Release(()))
            again = only(said, ReceiveInto) + only(said, Pull)
        assert again == [room, pull]
        waited.append((bench.now_ns - asked_ns) // patience_ns)
    assert waited == [1, 2, 4, 8, 8, 8]
    assert only(bench.say(RUNTIME, ChunkArrived(PUT, 0, LARGE)), ReceiveInto)[0][1].size == 0


def test_processes_of_two_nodes_arrange_a_raw_link(bench: Bench) -> None:
    offer = "tcp://10.0.0.1:1", b"t" * 16, b"r" * 16
    assert bench.say(RUNTIME, AskRawLink(THERE)) == [(THERE, AskRawLink(HERE))]
    assert bench.say(THERE, AskRawLink(THERE)) == [(TRANSFER, AskRawLink(THERE))]
    assert bench.say(RUNTIME, OfferRawLink(THERE, *offer)) == [(THERE, OfferRawLink(HERE, *offer))]
    assert bench.say(THERE, OfferRawLink(THERE, *offer)) == [(TRANSFER, OfferRawLink(THERE, *offer))]


def test_nobody_speaks_for_another_node_about_raw_links(bench: Bench) -> None:
    offer = "tcp://10.0.0.1:1", b"t" * 16, b"r" * 16
    assert bench.say(THERE, AskRawLink(b"x" * 16)) == [(TRANSFER, AskRawLink(THERE))]
    assert bench.say(THERE, OfferRawLink(b"x" * 16, *offer)) == [(TRANSFER, OfferRawLink(THERE, *offer))]
    for source in (b"stranger", SHARD):
        assert not bench.say(source, AskRawLink(THERE))
        assert not bench.say(source, OfferRawLink(THERE, *offer))
    assert not bench.say(RUNTIME, AskRawLink(b"dead"))
    assert not bench.say(RUNTIME, OfferRawLink(b"dead", *offer))
