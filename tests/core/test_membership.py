"""Who is alive: messages in, exact outbox out."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from zray.config import Config
from zray.core.machine import RUNTIME, pump
from zray.core.membership import GRAVES, Membership
from zray.protocol.cluster import LinkLost, Members
from zray.protocol.documents import encode_value
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_KV,
    TABLE_NODE,
    NodeHello,
    NodeReport,
    TableCas,
    TablePage,
    TableReply,
    TableScan,
    Warn,
)

STORE = b"gcs-0000"
A, B = b"a" * 16, b"b" * 16
S = 1_000_000_000
DEATH_NS = Config().node_death_ns
RETURN_NS = Config().node_return_ns
LINK_NS = Config().node_link_loss_ns
LOOK_NS = Config().heartbeat_interval_ns


def hello(node: bytes) -> tuple[bytes, NodeHello]:
    return node, NodeHello(PROTOCOL_VERSION, node, 1, 7, "host", "ipc://" + node.decode(), ())


def report(node: bytes, epoch: int = 0) -> tuple[bytes, NodeReport]:
    return node, NodeReport(node, 1, (), (), 0, 0, 0, epoch)


class Bench:
    """A table whose store answers when the test says so."""

    def __init__(self, life: int = 0, graves: tuple[bytes, ...] = (), nodes: tuple[bytes, ...] = ()) -> None:
        self.machine = Membership(store=STORE, life=lambda: life, config=Config())
        token = (life << 32) + 1
        assert self.feed(now_ns=0) == [(STORE, TableScan(token, TABLE_KV, GRAVES, 1000))]
        keys = tuple((GRAVES + node, b"") for node in graves)
        [(_, scan)] = self.feed((STORE, TablePage(token, keys)))
        assert scan == TableScan(token + 1, TABLE_NODE, b"", 1000)
        rows = tuple((node, encode_value(hello(node)[1])) for node in nodes)
        assert self.feed((STORE, TablePage(token, rows))) == []  # an answer that came twice
        self.first = self.feed((STORE, TablePage(token + 1, rows)))

    def feed(self, *batch: tuple[bytes, Any], now_ns: int = 0) -> list[tuple[bytes, Any]]:
        pump(self.machine, batch, now_ns)
        self.machine.check()
        out = [effect for effect in self.machine.out if not isinstance(effect[1], Warn)]
        self.machine.out.clear()
        return out

    def wait(self, from_ns: int, until_ns: int) -> list[tuple[bytes, Any]]:
        """Ticks at their times; what came of them."""
        times = range(from_ns, until_ns + 1, LOOK_NS // 4)
        return [effect for now_ns in times for effect in self.feed(now_ns=now_ns)]

    def bury(self, node: bytes, now_ns: int = 0) -> TableCas:
        """A node loses its link for good; others report. Returns the grave that is to be written."""
        self.feed((RUNTIME, LinkLost(node)), now_ns=now_ns)
        out = self.wait(now_ns, now_ns + LINK_NS + LOOK_NS // 2)
        [write] = [message for to, message in out if to == STORE]
        assert isinstance(write, TableCas)
        return write

    def table(self, *nodes: bytes) -> Members:
        return Members(self.machine.epoch, tuple((node, "ipc://" + node.decode()) for node in nodes))


def test_everybody_hears_of_a_new_node() -> None:
    bench = Bench()
    assert bench.feed(hello(A)) == [(A, bench.table(A))]
    both = bench.feed(hello(B))
    assert both == [(A, bench.table(A, B)), (B, bench.table(A, B))]


def test_nobody_introduces_another_node_or_one_of_another_version() -> None:
    bench = Bench()
    assert bench.feed((A, hello(B)[1])) == []
    other = replace(hello(A)[1], version=PROTOCOL_VERSION + 1)
    assert bench.feed((A, other)) == []
    assert not bench.machine.members


def test_whoever_has_an_old_table_is_told_again() -> None:
    bench = Bench()
    bench.feed(hello(A))
    assert bench.feed(report(A, bench.machine.epoch)) == []
    assert bench.feed(report(A, 0)) == [(A, bench.table(A))]


def test_death_is_written_before_anybody_is_told() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    write = bench.bury(B)
    assert write.expected is None
    assert write.key == GRAVES + B
    assert bench.feed((STORE, TableReply(write.token, True, b""))) == [(A, bench.table(A))]
    assert bench.feed(hello(B)) == [(B, bench.table(A))]  # it learns that it is dead
    assert bench.feed(report(B)) == [(B, bench.table(A))]


def test_silence_is_death_unless_nobody_else_is_there() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    assert bench.wait(0, DEATH_NS // 2) == []
    bench.feed(report(A, bench.machine.epoch), now_ns=DEATH_NS // 2)
    [(_, write)] = bench.wait(DEATH_NS // 2, DEATH_NS + LOOK_NS // 2)
    assert write.key == GRAVES + B
    bench.feed((STORE, TableReply(write.token, True, b"")), now_ns=DEATH_NS + LOOK_NS)
    assert bench.wait(DEATH_NS + LOOK_NS, 10 * DEATH_NS) == []


def test_a_node_that_is_alone_is_not_looked_at_until_it_has_company() -> None:
    bench = Bench()
    bench.feed(hello(A))
    bench.feed(report(A, bench.machine.epoch))
    assert bench.wait(0, LOOK_NS) == []
    assert bench.machine.wake_at_ns is None
    bench.feed(hello(B), now_ns=60 * S)  # A was silent for a minute, as nobody would have missed it
    assert bench.machine.wake_at_ns == 60 * S + LOOK_NS
    assert bench.wait(60 * S, 60 * S + DEATH_NS - LOOK_NS) == []
    bench.feed(report(B, bench.machine.epoch), now_ns=60 * S + DEATH_NS - LOOK_NS)
    [(_, write)] = bench.wait(60 * S + DEATH_NS - LOOK_NS, 60 * S + DEATH_NS + LOOK_NS // 2)
    assert write.key == GRAVES + A


def test_of_two_nodes_that_die_at_once_both_are_buried() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    graves = {message.token: message.key for _, message in bench.wait(0, DEATH_NS)}
    assert set(graves.values()) == {GRAVES + A, GRAVES + B}
    first, *others = graves
    bench.feed((STORE, TableReply(first, True, b"")), now_ns=DEATH_NS)
    again = bench.wait(DEATH_NS, DEATH_NS + 2 * LOOK_NS)  # the answer of the other one was lost
    assert {message.key for to, message in again if to == STORE} == {graves[others[0]]}


def test_death_is_noticed_within_a_second() -> None:
    config = Config()
    assert config.node_death_ns + config.heartbeat_interval_ns < S
    assert config.node_link_loss_ns + config.heartbeat_interval_ns < S


def test_a_node_whose_link_was_lost_and_that_is_heard_again_lives() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    assert bench.feed((RUNTIME, LinkLost(B))) == []
    assert bench.wait(0, LINK_NS // 2) == []
    bench.feed(report(A, bench.machine.epoch), report(B, bench.machine.epoch), now_ns=LINK_NS // 2)
    assert bench.wait(LINK_NS // 2, LINK_NS * 2) == []


def test_a_lost_link_says_nothing_of_a_node_that_is_on_its_way_back() -> None:
    bench = Bench(life=2, nodes=(A, B))
    bench.feed(report(A, bench.machine.epoch))
    assert bench.feed((RUNTIME, LinkLost(B))) == []
    for now_ns in range(0, RETURN_NS - 2 * LOOK_NS, LOOK_NS):
        assert bench.feed(report(A, bench.machine.epoch), now_ns=now_ns) == []
    bench.feed(report(B, bench.machine.epoch), now_ns=RETURN_NS - LOOK_NS)
    assert bench.machine.members.keys() == {A, B}


def test_nobody_else_says_that_a_link_was_lost() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    assert bench.feed((A, LinkLost(B))) == []
    assert bench.wait(0, LINK_NS * 2) == []


def test_a_judge_that_was_held_up_buries_nobody_for_it() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    assert bench.feed(now_ns=60 * S) == []
    assert bench.wait(60 * S, 60 * S + DEATH_NS // 2) == []
    bench.feed(report(A, bench.machine.epoch), now_ns=60 * S + DEATH_NS // 2)
    graves = bench.wait(60 * S + DEATH_NS // 2, 60 * S + DEATH_NS + LOOK_NS)
    assert {message.key for _, message in graves} == {GRAVES + B}


def test_a_death_that_somebody_else_wrote_counts() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    write = bench.bury(B)
    assert bench.feed((STORE, TableReply(write.token, False, b"written before"))) == [(A, bench.table(A))]


def test_a_write_without_an_answer_is_repeated() -> None:
    bench = Bench()
    bench.feed(hello(A), hello(B))
    write = bench.bury(B)
    [(_, again)] = bench.feed(now_ns=LINK_NS + 2 * LOOK_NS)
    assert again.key == write.key


def test_a_new_life_knows_the_dead_and_forgets_no_living_node() -> None:
    bench = Bench(life=3, graves=(B,), nodes=(A, B))
    assert bench.first == [(A, Members((3 << 32) + 1, ((A, "ipc://" + A.decode()),)))]
    assert bench.feed(hello(B)) == [(B, bench.table(A))]


def test_a_new_life_is_patient_with_nodes_that_it_has_not_heard_yet() -> None:
    """After a fail-over the way of their first word is long, and silence no sign of death."""
    bench = Bench(life=3, nodes=(A, B))
    bench.feed(report(A, bench.machine.epoch), now_ns=DEATH_NS // 2)
    assert RETURN_NS > 2 * DEATH_NS
    for now_ns in range(DEATH_NS // 2, RETURN_NS - LOOK_NS, LOOK_NS):
        assert bench.feed(report(A, bench.machine.epoch), now_ns=now_ns) == []
    late_ns = RETURN_NS - LOOK_NS
    assert bench.feed(report(B, bench.machine.epoch), now_ns=late_ns) == []
    graves = bench.wait(late_ns, late_ns + DEATH_NS - LOOK_NS // 4)  # once heard, each has as long as ever
    assert {message.key for _, message in graves} == {GRAVES + A}


def test_a_greeting_of_all_replicas_is_no_first_word() -> None:
    """A node that looks for the head greets everybody; it need not know yet that this one is."""
    bench = Bench(life=3, nodes=(A, B))
    bench.feed(report(A, bench.machine.epoch), hello(B))
    for now_ns in range(LOOK_NS, RETURN_NS - LOOK_NS, LOOK_NS):
        assert bench.feed(report(A, bench.machine.epoch), now_ns=now_ns) == []
