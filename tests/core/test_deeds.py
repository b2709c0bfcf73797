"""Rows of detached actors: one write at a time, each against what the row held before."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.core.conftest import Outbox
from zray import ids
from zray.core.deeds import RESEND_NS, RETRY_NS, Deeds
from zray.protocol.actor_messages import ActorRow
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    ACTOR_RESTARTING,
    TABLE_ACTOR,
    TableCas,
    TableGet,
    TableReply,
)

HERE, HOME, SUCCESSOR, SHARD = b"here", b"home", b"successor", b"shard"
ACTOR = ids.task_id(b"p" * 8, 1)
PENDING = ActorRow(ACTOR, ACTOR_PENDING, HERE, detached=True)
ALIVE = replace(PENDING, state=ACTOR_ALIVE, successor=SUCCESSOR)
DEAD = replace(PENDING, state=ACTOR_DEAD)
THEIRS = replace(ALIVE, home=HOME)


class DeedBench:
    """Deeds, and what they said."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self.durable: list[ActorRow] = []
        self.others: list[ActorRow] = []
        self.read: list[ActorRow | None] = []
        self.deeds = Deeds(
            out, node_id=HERE, shards=[SHARD], on_durable=self.durable.append,
            on_other=lambda row, _: self.others.append(row),
        )  # fmt: skip

    def asked(self) -> Any:
        ((shard, question),) = self.out.take()
        assert shard == SHARD
        self.deeds.check()
        return question

    def wrote(self) -> tuple[ActorRow | None, ActorRow]:
        """What the row is to have held, and what it is to hold."""
        cas = self.asked()
        assert (cas.table, cas.key) == (TABLE_ACTOR, ACTOR)
        self.cas: TableCas = cas
        return cas.expected and decode_value(cas.expected, ActorRow), decode_value(cas.value, ActorRow)

    def answer(self, row: ActorRow | None = None, *, ok: bool = False) -> None:
        value = self.cas.value if ok else (row and encode_value(row))
        self.deeds.on_table_reply(TableReply(self.cas.token, ok, value))
        self.deeds.check()


@pytest.fixture
def bench(out: Outbox) -> DeedBench:
    return DeedBench(out)


def test_a_row_is_claimed_and_then_changed_from_what_it_holds(bench: DeedBench) -> None:
    bench.deeds.write(PENDING)
    assert bench.wrote() == (None, PENDING)
    bench.deeds.write(replace(PENDING, life=1))
    bench.deeds.write(ALIVE)  # the newest that waits counts
    assert not bench.durable
    bench.answer(ok=True)
    assert bench.durable == [PENDING]
    assert bench.wrote() == (PENDING, ALIVE)
    assert not bench.deeds.says(ALIVE)
    bench.answer(ok=True)
    assert bench.deeds.says(ALIVE)
    bench.deeds.write(ALIVE)  # it says so already
    bench.deeds.write(DEAD)
    assert bench.wrote() == (ALIVE, DEAD)
    bench.answer(ok=True)
    assert bench.durable == [PENDING, ALIVE, DEAD]
    assert not bench.deeds.deeds


def test_a_write_that_was_asked_twice_has_won(bench: DeedBench) -> None:
    bench.deeds.write(PENDING)
    bench.wrote()
    bench.deeds.on_tick(RESEND_NS)
    assert bench.wrote() == (None, PENDING)
    bench.deeds.shard_is_back(SHARD)
    bench.wrote()
    bench.deeds.shard_is_back(b"another shard")
    bench.answer(PENDING)
    bench.answer(PENDING)
    assert bench.durable == [PENDING]


def test_a_home_that_was_succeeded_changes_nothing(bench: DeedBench) -> None:
    bench.deeds.write(PENDING)
    bench.wrote()
    bench.answer(ok=True)
    bench.deeds.write(ALIVE)
    bench.wrote()
    bench.answer(THEIRS)
    assert (bench.others, bench.durable) == ([THEIRS], [PENDING])
    bench.deeds.write(replace(ALIVE, life=7))
    assert bench.wrote()[0] == PENDING, "what it knew, which the row does not hold"
    bench.answer(DEAD)
    assert bench.others == [THEIRS, DEAD]


def test_what_was_made_before_is_made_again_once_it_is_dead(bench: DeedBench) -> None:
    bench.deeds.write(PENDING)
    bench.wrote()
    bench.answer(THEIRS)
    assert bench.others == [THEIRS]
    bench.deeds.again_later(ACTOR)
    bench.deeds.on_tick(RETRY_NS)
    assert bench.wrote() == (None, PENDING)
    over = replace(THEIRS, state=ACTOR_DEAD)
    bench.answer(over)
    assert bench.wrote() == (over, PENDING)
    bench.answer(ok=True)
    assert bench.durable == [PENDING]


def test_a_full_table_is_tried_again_and_not_at_once(bench: DeedBench) -> None:
    bench.deeds.write(PENDING)
    bench.wrote()
    bench.answer(None)
    assert not bench.out
    bench.deeds.on_tick(RESEND_NS)
    assert bench.wrote() == (None, PENDING)


def test_a_successor_reads_and_then_takes(bench: DeedBench) -> None:
    bench.deeds.read(ACTOR, lambda row, _: bench.read.append(row))
    question = bench.asked()
    bench.deeds.on_tick(RESEND_NS)
    assert bench.asked() == question == TableGet(question.token, TABLE_ACTOR, ACTOR)
    bench.deeds.on_table_reply(TableReply(question.token, True, encode_value(THEIRS)))
    bench.deeds.on_table_reply(TableReply(question.token, True, encode_value(DEAD)))  # the repeated one's
    assert bench.read == [THEIRS]
    mine = replace(THEIRS, home=HERE, state=ACTOR_RESTARTING)
    bench.deeds.take(encode_value(THEIRS), mine)
    assert bench.wrote() == (THEIRS, mine)
    changed = replace(THEIRS, successor=b"another")
    bench.answer(changed)
    assert bench.others == [changed]
