"""The master of chains: founding, loss, joins, and a new master. Reference: section 4.2.1."""

from __future__ import annotations

from typing import Any

from zray.config import Config
from zray.core.chain_master import ChainMaster
from zray.core.machine import RUNTIME, pump
from zray.protocol.chain import Admit, Admitted, ReplicaHello, ReplicaLost
from zray.protocol.messages import PROTOCOL_VERSION, ChainEpoch, ChainMember, Refused

CONFIG = Config(chain_heartbeat_ns=10, chain_liveness_count=10)
A, B, C = (ChainMember(b"gcs-0000.%d" % number, 1) for number in range(3))


def master_of(replicas: int = 2, life: int = 5) -> ChainMaster:
    return ChainMaster(life=life, shard_count=1, replicas=replicas, config=CONFIG)


def hello(member: ChainMember, epoch: int = 0, *members: ChainMember, **changes: Any) -> ReplicaHello:
    fields: dict[str, Any] = {
        "version": PROTOCOL_VERSION, "cluster_id": b"c" * 16, "shard": 0, "shard_count": 1,
        "incarnation": member.incarnation, "endpoint": member.endpoint, "host": "h", "pid": 1, "epoch": epoch,
        "members": members, "master": 1, "have": 0, "committed": 0, "has_state": bool(members),
        "address": member.address, **changes,
    }  # fmt: skip
    return ReplicaHello(**fields)


def feed(master: ChainMaster, source: bytes, message: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
    pump(master, [(source, message)], now_ns)
    master.check()
    out = [(to, message) for to, message in master.out if to != RUNTIME]
    master.out.clear()
    return out


def founded(*members: ChainMember) -> ChainMaster:
    master = master_of(len(members))
    for member in members:
        feed(master, member.address, hello(member))
    return master


def test_a_chain_is_founded_once_all_replicas_have_come() -> None:
    master = master_of()
    assert feed(master, B.address, hello(B)) == []
    news = ChainEpoch(0, 1, (A, B), 5)
    assert feed(master, A.address, hello(A)) == [(B.address, news), (A.address, news)]


def test_a_replica_that_died_leaves_the_chain_at_once_and_a_stranger_joins() -> None:
    master = founded(A, B)
    news = ChainEpoch(0, 2, (B,), 5)
    assert feed(master, RUNTIME, ReplicaLost(A.address, 1)) == [(B.address, news)]
    again = ChainMember(A.address, 2)
    assert feed(master, A.address, hello(again)) == [(A.address, news), (B.address, Admit(2, again, 5))]
    whole = ChainEpoch(0, 3, (B, again), 5)
    assert feed(master, B.address, Admitted(2, again)) == [(B.address, whole), (A.address, whole)]


def test_silence_for_the_whole_deadline_counts_as_death_and_the_last_member_stays() -> None:
    master = founded(A, B)
    feed(master, B.address, hello(B, 1, A, B), now_ns=50)
    assert feed(master, B.address, hello(B, 1, A, B), now_ns=110) == [(B.address, ChainEpoch(0, 2, (B,), 5))]
    assert feed(master, A.address, hello(A, 1, A, B), now_ns=400) != []
    assert master.chains[0].members == (B,)


def test_a_joiner_that_dies_ends_its_admission() -> None:
    master = founded(A)
    feed(master, B.address, hello(B))
    assert master.chains[0].joiner == B
    assert feed(master, RUNTIME, ReplicaLost(B.address, 1)) == [(A.address, ChainEpoch(0, 2, (A,), 5))]
    assert feed(master, A.address, Admitted(1, B)) == []


def test_a_new_master_waits_for_all_members_of_the_newest_list() -> None:
    master = master_of(3)
    assert feed(master, C.address, hello(C)) == []  # an empty one does not found a chain
    assert feed(master, B.address, hello(B, 7, A, B)) == []
    sent = feed(master, A.address, hello(A, 7, A, B))
    assert (A.address, ChainEpoch(0, 8, (A, B), 5)) in sent
    assert (B.address, Admit(8, C, 5)) in sent


def test_a_new_master_goes_on_without_a_member_that_stays_silent() -> None:
    master = master_of(2)
    assert feed(master, B.address, hello(B, 7, A, B)) == []
    assert feed(master, B.address, hello(B, 7, A, B), now_ns=99) == []
    assert feed(master, B.address, hello(B, 7, A, B), now_ns=101) == [(B.address, ChainEpoch(0, 8, (B,), 5))]


def test_a_member_that_lost_its_state_does_not_lead() -> None:
    master = master_of(2)
    feed(master, B.address, hello(B, 7, A, B, have=9, committed=8))
    sent = feed(master, A.address, hello(ChainMember(A.address, 2)))
    assert (B.address, ChainEpoch(0, 8, (B,), 5)) in sent


def test_a_whole_chain_that_started_again_from_its_logs_is_seated_again() -> None:
    master = founded(A, B)
    a, b = ChainMember(A.address, 2), ChainMember(B.address, 2)
    for member in (A, B):
        feed(master, RUNTIME, ReplicaLost(member.address, 1))
    feed(master, B.address, hello(b, 2, B, have=4, committed=4))
    assert master.chains[0].members == (b,)
    feed(master, A.address, hello(a, 1, A, B, have=4, committed=3))
    assert master.chains[0].joiner == a


def test_nonsense_is_refused_and_changes_nothing() -> None:
    master = founded(A, B)
    for wrong in (
        {"version": 99}, {"shard": 3}, {"shard": -1}, {"shard_count": 2}, {"cluster_id": b"x" * 16},
        {"address": b"somebody"},
    ):  # fmt: skip
        sent = feed(master, C.address, hello(C, **wrong))
        assert [type(message) for _, message in sent] == [Refused]
    assert C.address not in master.chains[0].known
    assert feed(master, C.address, Admitted(1, C)) == []
    assert feed(master, C.address, ReplicaLost(A.address, 1)) == []
    assert master.chains[0].members == (A, B)
