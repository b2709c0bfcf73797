"""Which names are given back for nodes that died."""

from __future__ import annotations

from typing import Any

from tests.core.conftest import Outbox
from zray import ids
from zray.core.actor_names import PREFIX, key_of
from zray.core.membership import GRAVES
from zray.core.name_sweeper import NameSweeper
from zray.protocol.actor_messages import ActorRow
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.faults import fault_error
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    TABLE_ACTOR,
    TABLE_KV,
    TableDelete,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)

HERE, SHARD = b"b-here", b"shard"
OTHERS = {b"c-other": ""}
ACTOR = ids.task_id(b"p" * 8, 1)
HANDLE = ACTOR + b"handle"
KEY = key_of("bank", "teller")


def sweeper(out: Outbox) -> NameSweeper:
    return NameSweeper(out, node_id=HERE, shards=[SHARD])


def asked(out: Outbox) -> Any:
    ((destination, question),) = out.take()
    assert destination == SHARD
    return question


def row(home: bytes) -> bytes:
    return encode_value(ActorRow(ACTOR, ACTOR_ALIVE, home))


def test_a_name_whose_home_has_a_grave_is_given_back(out: Outbox) -> None:
    machine = sweeper(out)
    machine.node_dead(OTHERS)
    scan = asked(out)
    assert (scan.table, scan.after) == (TABLE_KV, PREFIX)
    assert machine.on_page(TablePage(scan.token, ((KEY, HANDLE), (b"other key", b"")), False))
    question = asked(out)
    assert question == TableGet(question.token, TABLE_ACTOR, ACTOR)
    machine.on_table_reply(OTHERS, TableReply(question.token, True, row(b"dead")))
    grave = asked(out)
    assert grave == TableGet(grave.token, TABLE_KV, GRAVES + b"dead")
    machine.on_table_reply(OTHERS, TableReply(grave.token, True, b""))
    end = asked(out)
    assert end == TableDelete(end.token, TABLE_KV, KEY, HANDLE), "only if it still holds that actor"
    machine.on_table_reply(OTHERS, TableReply(end.token, True))
    assert not machine.asked
    machine.check()


def test_names_of_the_living_stay(out: Outbox) -> None:
    machine = sweeper(out)
    for home in (HERE, *OTHERS):
        machine.node_dead(OTHERS)
        machine.on_page(TablePage(asked(out).token, ((KEY, HANDLE),), False))
        machine.on_table_reply(OTHERS, TableReply(asked(out).token, True, row(home)))
    machine.node_dead(OTHERS)
    machine.on_page(TablePage(asked(out).token, ((KEY, HANDLE),), False))
    machine.on_table_reply(OTHERS, TableReply(asked(out).token, True, row(b"unheard")))
    machine.on_table_reply(OTHERS, TableReply(asked(out).token, False))
    assert not machine.asked, "a node without a grave may be one that was not heard of"


def test_one_of_the_living_sweeps_and_begins_again_with_each_death(out: Outbox) -> None:
    machine = sweeper(out)
    machine.node_dead({b"a-first": ""})
    assert not machine.asked
    machine.node_dead(OTHERS)
    first = asked(out)
    machine.node_dead(OTHERS)
    second = asked(out)
    machine.on_page(TablePage(first.token, ((KEY, HANDLE),), False))
    assert list(machine.asked) == [second.token]


def test_a_shard_that_was_away_is_asked_again(out: Outbox) -> None:
    machine = sweeper(out)
    machine.node_dead(OTHERS)
    scan = asked(out)
    machine.shard_is_back(SHARD)
    assert asked(out) == TableScan(scan.token, TABLE_KV, PREFIX, scan.limit)
    assert not machine.on_page(TablePage(1, ()))


# --- detached actors -----------------------------------------------------------------------------------


def deed(home: bytes, successor: bytes = b"", state: int = ACTOR_ALIVE) -> bytes:
    return encode_value(ActorRow(ACTOR, state, home, successor=successor, detached=True))


def swept_to(out: Outbox, machine: NameSweeper, value: bytes, *graves: bytes) -> None:
    """A name was found, and its row; each of these nodes has a grave."""
    machine.node_dead(OTHERS)
    machine.on_page(TablePage(asked(out).token, ((KEY, HANDLE),), False))
    machine.on_table_reply(OTHERS, TableReply(asked(out).token, True, value))
    for node in graves:
        grave = asked(out)
        assert grave == TableGet(grave.token, TABLE_KV, GRAVES + node)
        machine.on_table_reply(OTHERS, TableReply(grave.token, True, b""))


def test_a_detached_actor_with_a_successor_keeps_its_name(out: Outbox) -> None:
    machine = sweeper(out)
    for successor in (HERE, *OTHERS):
        swept_to(out, machine, deed(b"dead", successor), b"dead")
        assert not machine.asked
    swept_to(out, machine, deed(b"dead", b"unheard"), b"dead")
    machine.on_table_reply(OTHERS, TableReply(asked(out).token, False))
    assert not machine.asked, "its successor has no grave"


def test_one_whose_home_and_successor_died_is_written_dead_before_its_name_is_free(out: Outbox) -> None:
    machine, over = sweeper(out), []
    machine.on_over = over.append
    swept_to(out, machine, deed(b"dead", b"gone"), b"dead", b"gone")
    cas = asked(out)
    assert (cas.key, cas.expected) == (ACTOR, deed(b"dead", b"gone"))
    written = decode_value(cas.value, ActorRow)
    assert (written.state, written.home) == (ACTOR_DEAD, b"dead")
    assert "its successor, died as well" in str(fault_error(written.cause.data))
    machine.on_table_reply(OTHERS, TableReply(cas.token, True, cas.value))
    end = asked(out)
    assert end == TableDelete(end.token, TABLE_KV, KEY, HANDLE)
    assert over == [ACTOR]


def test_a_successor_that_was_faster_is_found_out(out: Outbox) -> None:
    machine = sweeper(out)
    swept_to(out, machine, deed(b"dead"), b"dead")
    cas = asked(out)
    machine.on_table_reply(OTHERS, TableReply(cas.token, False, deed(b"c-other")))
    assert not machine.asked
    assert not out


def test_a_dead_home_whose_actor_is_dead_owes_its_name_only(out: Outbox) -> None:
    machine = sweeper(out)
    swept_to(out, machine, deed(b"dead", b"c-other", ACTOR_DEAD), b"dead")
    end = asked(out)
    assert end == TableDelete(end.token, TABLE_KV, KEY, HANDLE)
