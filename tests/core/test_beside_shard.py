"""What lives beside the head of a chain: it speaks while the chain confirms it, and begins with nothing."""

from __future__ import annotations

from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.beside_shard import machines_beside
from zray.core.chain import ChainReplica
from zray.core.control_shard import ControlShard
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import LOG, RUNTIME, pump
from zray.core.membership import GRAVES, Membership
from zray.core.object_directory import ObjectDirectory
from zray.core.placement_groups import PlacementGroups
from zray.protocol.chain import Command, ReplicaAck, Replicate
from zray.protocol.cluster import (
    COPY,
    DROP,
    HOLD,
    FreeObjects,
    LinkLost,
    Members,
    SchedulerHere,
    ShareAcked,
    ShareUpdate,
    ShareUpdates,
)
from zray.protocol.messages import (
    AT_NODE,
    PROTOCOL_VERSION,
    TABLE_KV,
    ChainEpoch,
    ChainMember,
    NodeHello,
    NodeReport,
    ShardWelcome,
    Value,
)

HEAD, TAIL = (ChainMember(b"gcs-0001.%d" % number, 1) for number in range(2))
MASTER = b"gcs-chain-master"
A, B = b"a" * 16, b"b" * 16
OBJECT = ids.first_return_id(ids.task_id(ids.child_prefix(b"j" * 16), 1))
LARGE = Value(AT_NODE, b"", 0, 1 << 20)
BOTH = Members(1, ((A, "a"), (B, "b")))
LOOK_NS = Config().heartbeat_interval_ns


class Bench:
    """One replica of a chain; what it sends to its neighbour is kept apart from its words."""

    def __init__(self, me: ChainMember, shard: int = 1) -> None:
        tables = ControlShard(cluster_id=b"c" * 16, shard=shard, shard_count=2, config=Config())
        self.shard = shard
        self.machine = ChainReplica(
            tables, me=me, master=MASTER, config=Config(),
            beside=lambda found: machines_beside(found, me.address, None),
        )  # fmt: skip

    def seat(self, *members: ChainMember, epoch: int = 1) -> None:
        self.feed(MASTER, ChainEpoch(self.shard, epoch, members, 1))

    def feed(self, source: bytes, *messages: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
        """What leaves for anybody but replicas and the master."""
        pump(self.machine, [(source, message) for message in messages], now_ns)
        self.machine.check()
        out, self.machine.out[:] = list(self.machine.out), []
        inside = (LOG, RUNTIME, MASTER, HEAD.address, TAIL.address)
        self.own = [message for to, message in out if to == self.machine.me.address]
        return [(to, message) for to, message in out if to not in inside]

    def confirm(self) -> list[tuple[bytes, Any]]:
        """The tail has everything."""
        have = self.machine.have
        return self.feed(TAIL.address, ReplicaAck(self.machine.epoch, have, have))

    def directory(self) -> ObjectDirectory:
        [found] = [machine for machine in self.machine.beside if isinstance(machine, ObjectDirectory)]
        return found


def updates(sequence: int, *said: tuple[int, bytes] | tuple[int, bytes, Value]) -> ShareUpdates:
    return ShareUpdates(1, sequence, tuple(ShareUpdate(*each) for each in said), sequence == 1)


def head_that_knows_both_nodes() -> Bench:
    bench = Bench(HEAD)
    bench.seat(HEAD, TAIL)
    bench.feed(TAIL.address, ReplicaAck(1, 0, 0))
    bench.confirm()
    bench.feed(A, BOTH, updates(1, (HOLD, OBJECT)))
    bench.feed(B, updates(1, (COPY, OBJECT, LARGE)))
    assert bench.confirm() == [(A, ShareAcked(1, 1)), (B, ShareAcked(1, 1))]
    return bench


@pytest.mark.parametrize(
    ("shard", "kinds"),
    [
        (2, [ObjectDirectory]),
        (1, [ObjectDirectory, GlobalScheduler]),
        (0, [ObjectDirectory, GlobalScheduler, Membership, PlacementGroups]),
    ],
)
def test_who_lives_beside_which_shard(shard: int, kinds: list[type]) -> None:
    bench = Bench(HEAD, shard)
    assert bench.machine.beside == []
    bench.seat(HEAD, TAIL)
    assert [type(machine) for machine in bench.machine.beside] == kinds


def test_the_directory_says_nothing_before_the_chain_confirms_its_head() -> None:
    bench = head_that_knows_both_nodes()
    assert bench.feed(A, updates(2, (DROP, OBJECT))) == []
    assert bench.confirm() == [(A, ShareAcked(1, 2)), (B, FreeObjects((OBJECT,)))]


def test_a_replaced_head_frees_nothing() -> None:
    """Its own table says that nobody holds the object; who holds it has said so to the new head."""
    bench = head_that_knows_both_nodes()
    assert bench.feed(A, updates(2, (DROP, OBJECT))) == []
    newest = ChainEpoch(1, 2, (TAIL,), 1)
    assert all(type(message) is ChainEpoch for _, message in bench.feed(TAIL.address, newest))
    assert bench.machine.beside == []
    assert bench.feed(A, updates(3, (DROP, OBJECT))) == [(A, newest)]  # it is told where the head is


def test_a_head_whose_chain_gets_shorter_goes_on_with_what_it_knows() -> None:
    bench = head_that_knows_both_nodes()
    bench.seat(HEAD, epoch=2)
    assert list(bench.directory().rows) == [OBJECT]
    assert bench.feed(A, updates(2, (DROP, OBJECT))) == [(A, ShareAcked(1, 2)), (B, FreeObjects((OBJECT,)))]


def test_a_new_head_decides_nothing_before_all_have_restated() -> None:
    bench = Bench(TAIL)
    bench.seat(HEAD, TAIL)
    assert bench.feed(B, updates(1, (COPY, OBJECT, LARGE))) == [(B, ChainEpoch(1, 1, (HEAD, TAIL), 1))]
    bench.seat(TAIL, epoch=2)
    assert bench.feed(B, BOTH, updates(1, (COPY, OBJECT, LARGE))) == [(B, ShareAcked(1, 1))]
    assert bench.feed(A, updates(1, (HOLD, OBJECT))) == [(A, ShareAcked(1, 1))]
    assert bench.directory().rows[OBJECT].holders == {A: None}


def test_a_full_window_takes_nothing_in() -> None:
    bench = head_that_knows_both_nodes()
    bench.machine.config = Config(chain_window_max=0)
    assert bench.feed(A, updates(2, (DROP, OBJECT))) == []
    assert bench.confirm() == []
    assert list(bench.directory().rows) == [OBJECT]


def test_the_new_head_is_announced_until_a_node_greets() -> None:
    bench = Bench(TAIL)
    bench.seat(HEAD, TAIL)
    hello = NodeHello(PROTOCOL_VERSION, A, 1, 7, "host", "a", ())
    bench.feed(HEAD.address, Replicate(1, 1, (Command(A, hello),)))
    bench.seat(TAIL, epoch=2)
    again = bench.feed(RUNTIME, now_ns=LOOK_NS)
    assert [(to, type(message)) for to, message in again] == [(A, ChainEpoch), (A, ShardWelcome)]
    greeted = bench.feed(A, hello, now_ns=LOOK_NS)
    words = [(A, ShardWelcome), (A, SchedulerHere)]
    assert [(to, type(word)) for to, word in greeted] == [(A, ChainEpoch), *words]
    assert [(to, type(word)) for to, word in bench.feed(A, hello, now_ns=LOOK_NS)] == words
    assert bench.feed(RUNTIME, now_ns=20 * LOOK_NS) == []


def test_a_death_is_in_the_whole_chain_before_anybody_is_told() -> None:
    bench = Bench(HEAD, shard=0)
    bench.seat(HEAD, TAIL)
    bench.feed(TAIL.address, ReplicaAck(1, 0, 0))
    told: list[tuple[bytes, Any]] = []

    def turn(source: bytes, *messages: Any, now_ns: int = 0) -> None:
        """One batch, and what follows from it inside the process, each step confirmed by the tail."""
        told.extend(bench.feed(source, *messages, now_ns=now_ns))
        told.extend(bench.confirm())
        while bench.own:
            told.extend(bench.feed(HEAD.address, *bench.own, now_ns=now_ns))
            told.extend(bench.confirm())

    for node in (A, B):
        turn(node, NodeHello(PROTOCOL_VERSION, node, 1, 7, "host", "x", ()))
    turn(RUNTIME, LinkLost(B))
    told.clear()
    for now_ns in range(LOOK_NS, 5 * LOOK_NS, LOOK_NS):
        turn(A, NodeReport(A, 1, (), (), 0, 0, 0, 1 << 40), now_ns=now_ns)
    newest = [message for to, message in told if to == A and isinstance(message, Members)][-1]
    assert newest.nodes == ((A, "x"),)
    assert bench.machine.shard.values[TABLE_KV].get(GRAVES + B) is not None
