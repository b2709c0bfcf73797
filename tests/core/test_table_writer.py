"""Table writes that nobody waits for: sent once, kept until acknowledged, sent again."""

from __future__ import annotations

from typing import Any

from zray.core.table_writer import RESEND_NS, TableWriter
from zray.ids import shard_of
from zray.protocol.messages import TABLE_ACTOR, TABLE_KV, TablePut, TableReply

SHARDS = (b"gcs-0000", b"gcs-0001")


def writer(unacked_max: int = 100) -> TableWriter:
    return TableWriter([], shards=SHARDS, unacked_max=unacked_max)


def sent(machine: TableWriter) -> list[tuple[bytes, Any]]:
    """The effects since the last call, after a check of the machine."""
    machine.check()
    effects = list(machine.out)
    machine.out.clear()
    return effects


def home(key: bytes) -> bytes:
    return SHARDS[shard_of(key, len(SHARDS))]


def test_a_write_goes_to_the_shard_of_its_key_and_is_forgotten_when_acknowledged() -> None:
    machine = writer()
    machine.put(0, TABLE_KV, b"k", b"v")
    assert sent(machine) == [(home(b"k"), TablePut(1, TABLE_KV, b"k", b"v"))]
    machine.on_reply(1, home(b"k"), TableReply(1, True, b"v"))
    machine.on_tick(10 * RESEND_NS)
    assert sent(machine) == []
    assert machine.wake_at_ns is None


def test_silence_is_answered_by_knocking_with_the_oldest() -> None:
    machine = writer()
    keys = [bytes([i]) for i in range(8)]
    for key in keys:
        machine.put(0, TABLE_KV, key, b"v")
    sent(machine)
    machine.on_tick(RESEND_NS - 1)
    assert sent(machine) == []
    machine.on_tick(RESEND_NS)
    again = sent(machine)
    assert sorted(shard for shard, _ in again) == sorted({home(key) for key in keys})
    assert all(write.key == next(k for k in keys if home(k) == shard) for shard, write in again)


def test_a_shard_that_greets_gets_everything_of_its_own_again() -> None:
    machine = writer()
    keys = [bytes([i]) for i in range(8)]
    for key in keys:
        machine.put(0, TABLE_KV, key, b"v")
    sent(machine)
    machine.shard_is_back(SHARDS[1])
    assert [write.key for _, write in sent(machine)] == [key for key in keys if home(key) == SHARDS[1]]


def test_only_the_newest_write_of_a_key_counts() -> None:
    machine = writer()
    machine.put(0, TABLE_ACTOR, b"a", b"pending")
    machine.put(0, TABLE_ACTOR, b"a", b"alive")
    sent(machine)
    machine.on_reply(1, home(b"a"), TableReply(1, True, b"pending"))
    machine.shard_is_back(home(b"a"))
    assert sent(machine) == [(home(b"a"), TablePut(2, TABLE_ACTOR, b"a", b"alive"))]


def test_shards_that_stay_away_cost_writes_and_not_memory() -> None:
    machine = writer(unacked_max=3)
    for i in range(10):
        machine.put(0, TABLE_KV, bytes([i]), b"v")
    sent(machine)
    assert machine.dropped == 7
    assert [key for _, key in machine.unacked] == [b"\7", b"\x08", b"\t"]


def test_without_shards_nothing_is_written() -> None:
    machine = TableWriter([], shards=(), unacked_max=3)
    machine.put(0, TABLE_KV, b"k", b"v")
    assert sent(machine) == []
