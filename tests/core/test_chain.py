"""The machine of a replica: order of words and writes, fencing, joins. Reference: section 4.2.1."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.chain_world import CLIENT, MASTER, World
from zray.config import Config
from zray.core.chain import ChainReplica
from zray.core.chain_feed import PART_BYTES_MAX, PIECES_ON_THE_WAY, parts_of
from zray.core.control_shard import ControlShard
from zray.core.machine import LOG, RUNTIME, pump
from zray.protocol.chain import (
    Admit,
    ChainPosition,
    Command,
    Logged,
    ReplicaAck,
    Replicate,
    RewriteLog,
    StatePiece,
)
from zray.protocol.messages import (
    TABLE_KV,
    ChainEpoch,
    ChainMember,
    TableChanged,
    TableGet,
    TablePut,
    TableReply,
    TableSubscribe,
)

HEAD, TAIL, JOINER = (ChainMember(b"gcs-0000.%d" % number, 1) for number in range(3))
PUT = TablePut(7, TABLE_KV, b"k", b"v")


def replica_of(member: ChainMember) -> ChainReplica:
    shard = ControlShard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=Config())
    return ChainReplica(shard, me=member, master=MASTER, config=Config())


def feed(replica: ChainReplica, source: bytes, *messages: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
    """What leaves after these messages, without the log and heartbeats."""
    pump(replica, [(source, message) for message in messages], now_ns)
    replica.check()
    out = [(to, message) for to, message in replica.out if to not in (LOG, RUNTIME, MASTER)]
    replica.out.clear()
    return out


def seated(member: ChainMember, *members: ChainMember, epoch: int = 1) -> ChainReplica:
    """A member of a chain, in step with its neighbours."""
    replica = replica_of(member)
    feed(replica, MASTER, ChainEpoch(0, epoch, members, 1))
    return replica


def test_a_word_leaves_only_when_the_tail_has_what_it_depends_on() -> None:
    head = seated(HEAD, HEAD, TAIL)
    opened = feed(head, TAIL.address, ReplicaAck(1, 0, 0))
    assert [(to, type(message), message.sequence) for to, message in opened] == [(TAIL.address, Replicate, 1)]
    feed(head, TAIL.address, ReplicaAck(1, 1, 1))
    assert feed(head, CLIENT, PUT) == [(TAIL.address, Replicate(1, 2, (Command(CLIENT, PUT),)))]
    assert feed(head, TAIL.address, ReplicaAck(1, 1, 1)) == []
    assert feed(head, TAIL.address, ReplicaAck(1, 2, 2)) == [(CLIENT, TableReply(7, True, b"v"))]
    assert feed(head, TAIL.address, ReplicaAck(1, 2, 2)) == []


def test_a_read_asks_the_tail_whether_this_is_still_the_head() -> None:
    head = seated(HEAD, HEAD, TAIL)
    feed(head, TAIL.address, ReplicaAck(1, 0, 0))
    feed(head, TAIL.address, ReplicaAck(1, 1, 1))
    assert feed(head, CLIENT, TableGet(3, TABLE_KV, b"k")) == [(TAIL.address, Replicate(1, 2))]
    assert feed(head, TAIL.address, ReplicaAck(1, 2, 2)) == [(CLIENT, TableReply(3, False))]


def test_a_chain_of_one_answers_at_once() -> None:
    alone = seated(HEAD, HEAD)
    assert feed(alone, CLIENT, PUT) == [(CLIENT, TableReply(7, True, b"v"))]


def test_notifications_wait_like_answers() -> None:
    head = seated(HEAD, HEAD, TAIL)
    feed(head, TAIL.address, ReplicaAck(1, 0, 0))
    feed(head, b"other", TableSubscribe(1, TABLE_KV, b"k"))
    feed(head, CLIENT, PUT)
    told = feed(head, TAIL.address, ReplicaAck(1, 2, 2))
    assert told == [(b"other", TableChanged(TABLE_KV, b"k", b"v")), (CLIENT, TableReply(7, True, b"v"))]


def test_the_tail_takes_each_number_once_and_in_order() -> None:
    tail = seated(TAIL, HEAD, TAIL)
    second = Replicate(1, 2, (Command(CLIENT, PUT),))
    assert feed(tail, HEAD.address, second) == [(HEAD.address, ReplicaAck(1, 0, 0))]
    first = Replicate(1, 1, (Command(CLIENT, replace(PUT, value=b"first")),))
    assert feed(tail, HEAD.address, first, second) == [(HEAD.address, ReplicaAck(1, 2, 2))]
    assert feed(tail, HEAD.address, first) == [(HEAD.address, ReplicaAck(1, 2, 2))]
    assert tail.shard.values[TABLE_KV].entries == {b"k": b"v"}


def test_nobody_but_the_predecessor_may_replicate() -> None:
    tail = seated(TAIL, HEAD, TAIL)
    assert feed(tail, JOINER.address, Replicate(1, 1, (Command(CLIENT, PUT),))) == []
    assert tail.have == 0


def test_an_epoch_that_is_over_is_answered_with_the_newest() -> None:
    tail = seated(TAIL, TAIL, epoch=2)
    had = tail.have
    newest = ChainEpoch(0, 2, (TAIL,), 1)
    assert feed(tail, HEAD.address, Replicate(1, had + 1, (Command(CLIENT, PUT),))) == [
        (HEAD.address, newest)
    ]
    assert tail.have == had
    head = seated(HEAD, HEAD, TAIL)
    feed(head, CLIENT, PUT)
    pump(head, [(TAIL.address, newest)], 0)
    assert (LOG, RewriteLog()) in head.out
    assert (head.has_state, head.held, head.shard.values[TABLE_KV].entries) == (False, {}, {})


def test_an_old_master_decides_nothing() -> None:
    head = replica_of(HEAD)
    feed(head, MASTER, ChainEpoch(0, 3, (HEAD,), 5))
    feed(head, MASTER, ChainEpoch(0, 4, (TAIL,), 4))
    assert head.newest.members == (HEAD,)


def test_who_is_not_the_head_names_it() -> None:
    tail = seated(TAIL, HEAD, TAIL)
    assert feed(tail, CLIENT, PUT, PUT) == [(CLIENT, ChainEpoch(0, 1, (HEAD, TAIL), 1))]


def test_a_joiner_is_fed_in_bounded_pieces_and_waited_for_before_the_master_knows() -> None:
    alone = seated(HEAD, HEAD)
    large = bytes(PART_BYTES_MAX // 2)
    for number in range(2 * PIECES_ON_THE_WAY + 4):
        feed(alone, CLIENT, TablePut(number, TABLE_KV, b"%d" % number, large))
    sent = feed(alone, MASTER, Admit(1, JOINER, 1))
    pieces = [message for _, message in sent if type(message) is StatePiece]
    assert len(sent) == len(pieces) == PIECES_ON_THE_WAY
    assert all(len(piece.commands) <= 3 for piece in pieces)
    assert feed(alone, CLIENT, PUT) == [(CLIENT, TableReply(7, True, b"v"))]  # it serves meanwhile


def test_a_member_that_was_left_behind_by_a_lost_frame_is_sent_it_again() -> None:
    world = World(2)
    world.settle(6)
    world.put(b"a", b"1")
    head, tail = world.addresses
    world.deliver((CLIENT, head))
    world.links[head, tail].clear()
    world.settle(40)
    assert world.acknowledged == {b"a": b"1"}


def test_restore_keeps_what_may_not_have_reached_the_next_replica() -> None:
    head = seated(HEAD, HEAD, TAIL)
    pump(head, [(CLIENT, PUT)], 0)
    twin = replica_of(replace(HEAD, incarnation=2))
    twin.restore(head.snapshot())
    assert (twin.have, twin.committed, twin.window) == (head.have, 0, head.window)
    assert list(twin.snapshot()) == list(head.snapshot())


def test_the_log_holds_a_write_before_anybody_is_told_of_it() -> None:
    alone = seated(HEAD, HEAD)
    pump(alone, [(CLIENT, PUT)], 0)
    logged = [message for to, message in alone.out if to == LOG]
    assert logged[0] == Logged(CLIENT, PUT)
    assert isinstance(logged[1].message, ChainPosition)
    kinds = [to for to, _ in alone.out]
    assert kinds.index(LOG) < kinds.index(CLIENT)


def test_parts_have_a_bound_and_keep_the_order() -> None:
    commands = [Command(b"", TablePut(n, TABLE_KV, b"", bytes(PART_BYTES_MAX // 3))) for n in range(10)]
    parts = parts_of(commands)
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert [command for part in parts for command in part] == commands
    assert parts_of([]) == []


# --- what the rules are for ------------------------------------------------------------------------


def replaced_head_writes(world: World) -> bool:
    """A head is cut off from its master, replaced, and asked by one who does not know: is a write lost?"""
    world.settle(6)
    head, tail = world.addresses
    world.cut[head, MASTER] = world.cut[MASTER, head] = None
    world.cut[tail, CLIENT] = None
    for _ in range(12):
        for link in [link for link in world.busy() if MASTER in link]:
            while world.links[link]:
                world.deliver(link)
        world.tick()
    assert world.replicas[tail].is_head
    world.put(b"k", b"v")
    while busy := world.busy():
        for link in busy:
            world.deliver(link)
    answered = bool(world.acknowledged)
    world.cut.clear()
    world.puts.clear()
    world.settle(60)
    return answered and any(
        replica.shard.values[TABLE_KV].entries != world.acknowledged for replica in world.chain()
    )


def test_a_head_that_was_replaced_commits_nothing() -> None:
    assert not replaced_head_writes(World(2))


def test_without_fencing_a_replaced_head_would_lose_what_it_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A canary: every epoch is taken for the own one, and the judge above notices."""
    replicate, acknowledge = ChainReplica.on_replicate, ChainReplica.on_ack

    def take(self: ChainReplica, now_ns: int, source: bytes, message: Any) -> None:
        follows, self.upstream = self.upstream, source
        replicate(self, now_ns, source, replace(message, epoch=self.epoch))
        self._acknowledge()
        self.upstream = follows

    def hear(self: ChainReplica, now_ns: int, source: bytes, message: Any) -> None:
        acknowledge(self, now_ns, source, replace(message, epoch=self.epoch))

    handlers = {**ChainReplica.HANDLERS, Replicate: take, ReplicaAck: hear}
    monkeypatch.setattr(ChainReplica, "HANDLERS", handlers)
    monkeypatch.setattr(ChainReplica, "check", lambda self: None)
    assert replaced_head_writes(World(2))
