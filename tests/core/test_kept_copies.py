"""Copies that a node keeps as one of several: never evicted, said as such, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

from zray import ids
from zray.config import Config
from zray.core.identity import NodeIdentity
from zray.core.kept_copies import ALONE, LATE, TOO_FEW
from zray.core.machine import RUNTIME, pump
from zray.core.node import Node
from zray.core.node_store import SEALED
from zray.protocol import faults
from zray.protocol.cluster import (
    COPY,
    DROP,
    HOLD,
    ChunkArrived,
    CopiesCounted,
    FreeObjects,
    KeepCopy,
    Members,
    ObjectFound,
    Pull,
    ReceiveInto,
    ShareAcked,
    ShareUpdate,
    ShareUpdates,
)
from zray.protocol.local_messages import Spill
from zray.protocol.messages import (
    AT_NODE,
    DRIVER,
    INLINE,
    PROTOCOL_VERSION,
    Create,
    Created,
    Goodbye,
    Hello,
    Publish,
    Refused,
    Release,
    Seal,
    TablePut,
    TableReply,
    Value,
)
from zray.protocol.user_messages import CopiesKept, KeepCopies

HERE, THERE, SHARD, JOB = b"h" * 16, b"t" * 16, b"shard", b"j" * 16
DRIVER_ADDRESS = b"d" * 16
PUTS = [ids.put_id(ids.child_prefix(JOB), counter) for counter in range(1, 9)]
PUT = PUTS[0]
SMALL = Value(INLINE, b"small")
ARENA_BYTES = 1 << 20
LARGE = 400_000


class Bench:
    """A node with one driver, one other node and one shard, all played by the test."""

    def __init__(self, *, is_alone: bool = False) -> None:
        self.now_ns = 0
        identity = NodeIdentity(node_id=HERE, arena_bytes=ARENA_BYTES, incarnation=1)
        self.node = Node(identity, total=(("CPU", 10_000),), shards=(SHARD,), config=Config())
        hello = Hello(PROTOCOL_VERSION, DRIVER, 1, JOB)
        self.say(DRIVER_ADDRESS, hello)
        if not is_alone:
            self.say(SHARD, Members(1, ((HERE, ""), (THERE, ""))))

    def say(self, source: bytes, *messages: Any) -> list[tuple[bytes, Any]]:
        """What leaves once the shard has acknowledged whatever it was told; the updates themselves too."""
        left: list[tuple[bytes, Any]] = []
        batch = [(source, message) for message in messages]
        while batch:
            pump(self.node, batch, self.now_ns)
            self.node.check()
            left += self.node.out
            updates = [effect for _, effect in self.node.out if isinstance(effect, ShareUpdates)]
            rows = [effect for _, effect in self.node.out if isinstance(effect, TablePut)]
            batch = [(SHARD, ShareAcked(update.stream, update.sequence)) for update in updates]
            batch += [(SHARD, TableReply(row.token, True)) for row in rows]
            self.node.out.clear()
        return left

    def updates(self, effects: list[tuple[bytes, Any]], *kinds: int) -> list[ShareUpdate]:
        batches = [message for _, message in effects if isinstance(message, ShareUpdates)]
        return [update for batch in batches for update in batch.updates if update.kind in kinds]

    def put(self, object_id: bytes = PUT, size: int = LARGE) -> None:
        self.say(DRIVER_ADDRESS, Create(object_id, size))
        self.say(DRIVER_ADDRESS, Seal(object_id))

    def receive(self, object_id: bytes, copies: int, size: int = LARGE) -> list[tuple[bytes, Any]]:
        """The directory chose this node; the bytes come."""
        self.say(SHARD, KeepCopy(object_id, Value(AT_NODE, b"", 0, size), (THERE,), copies))
        return self.say(RUNTIME, ChunkArrived(object_id, 0, size))


def only(effects: list[tuple[bytes, Any]], kind: type) -> list[tuple[bytes, Any]]:
    return [effect for effect in effects if isinstance(effect[1], kind)]


def test_who_asks_hears_of_it_once_the_directory_has_counted() -> None:
    bench = Bench()
    bench.put()
    said = bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2))
    [copy] = bench.updates(said, COPY)
    assert (copy.object_id, copy.copies) == (PUT, 2)
    assert not only(said, CopiesKept)
    said = bench.say(SHARD, CopiesCounted(PUT, 2))
    assert said == [(DRIVER_ADDRESS, CopiesKept(1, 2))]


def test_a_value_that_was_shared_before_is_said_again_as_kept() -> None:
    bench = Bench()
    bench.put()
    bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2))
    [copy] = bench.updates(bench.say(DRIVER_ADDRESS, KeepCopies(2, PUT, 3)), COPY)
    assert copy.copies == 3
    said = bench.say(SHARD, CopiesCounted(PUT, 2))
    assert said == [(DRIVER_ADDRESS, CopiesKept(1, 2)), (DRIVER_ADDRESS, CopiesKept(2, 2, TOO_FEW))]


def test_a_node_alone_says_so_and_tells_the_directory_once_there_are_others() -> None:
    bench = Bench(is_alone=True)
    bench.say(DRIVER_ADDRESS, Publish(PUT, SMALL))
    said = bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2))
    assert said == [(DRIVER_ADDRESS, CopiesKept(1, 1, ALONE))]
    [copy] = bench.updates(bench.say(SHARD, Members(1, ((HERE, ""), (THERE, "")))), COPY)
    assert (copy.object_id, copy.copies, copy.value) == (PUT, 2, SMALL)


def test_what_was_released_meanwhile_is_forgotten() -> None:
    bench = Bench(is_alone=True)
    bench.put()
    bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2), Release((PUT,)))
    assert not bench.node.store.kept
    assert not bench.updates(bench.say(SHARD, Members(1, ((HERE, ""), (THERE, "")))), COPY)


def test_nobody_waits_for_ever() -> None:
    bench = Bench()
    bench.put()
    bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2))
    bench.now_ns = Config().copies_patience_ns
    pump(bench.node, [], bench.now_ns)
    assert only(bench.node.out, CopiesKept) == [(DRIVER_ADDRESS, CopiesKept(1, 1, LATE))]


def test_a_process_that_is_gone_is_answered_no_more() -> None:
    bench = Bench()
    bench.put()
    bench.say(DRIVER_ADDRESS, KeepCopies(1, PUT, 2))
    bench.say(DRIVER_ADDRESS, Goodbye())
    assert not bench.node.cluster.kept.asked
    assert not only(bench.say(SHARD, CopiesCounted(PUT, 2)), CopiesKept)


def test_a_large_copy_comes_is_said_as_kept_and_then_held_no_more() -> None:
    bench = Bench()
    said = bench.say(SHARD, KeepCopy(PUT, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2))
    assert [update.kind for update in bench.updates(said, HOLD, COPY, DROP)] == [HOLD]
    assert only(said, Pull) == [(THERE, Pull(PUT, 0, LARGE))]
    assert len(only(said, ReceiveInto)) == 1
    said = bench.say(RUNTIME, ChunkArrived(PUT, 0, LARGE))
    assert [(update.kind, update.copies) for update in bench.updates(said, COPY, DROP)] == [
        (COPY, 2),
        (DROP, 0),
    ]
    assert bench.node.store.objects[PUT].state == SEALED
    bench.say(SHARD, FreeObjects((PUT,)))
    assert not bench.node.store.objects
    assert not bench.node.store.kept


def test_a_small_copy_is_kept_with_what_it_refers_to() -> None:
    bench = Bench()
    inner = PUTS[1]
    said = bench.say(SHARD, KeepCopy(PUT, Value(INLINE, b"box", 0, 0, (inner,)), (), 2))
    held = [update.object_id for update in bench.updates(said, HOLD)]
    assert held == [PUT, inner]
    kinds = [(update.kind, update.object_id) for update in bench.updates(said, COPY, DROP)]
    assert kinds == [(COPY, PUT), (DROP, PUT)]
    assert bench.updates(bench.say(SHARD, FreeObjects((PUT,))), DROP) == [ShareUpdate(DROP, inner)]


def test_under_pressure_a_kept_copy_is_spilled_and_another_one_evicted() -> None:
    bench = Bench()
    kept, fetched = PUTS[1], PUTS[2]
    bench.receive(kept, 2)
    bench.say(SHARD, KeepCopy(fetched, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2))
    bench.node.store.kept.pop(fetched)  # as if a task here had wanted it
    bench.say(RUNTIME, ChunkArrived(fetched, 0, LARGE))
    said = bench.say(DRIVER_ADDRESS, Create(PUT, LARGE))
    assert only(said, Created)
    assert fetched not in bench.node.store.copies
    assert not only(said, Spill)
    said = bench.say(DRIVER_ADDRESS, Create(PUTS[3], LARGE))
    assert [message.object_id for _, message in only(said, Spill)] == [kept]
    assert bench.node.store.objects[kept].state == SEALED


def test_a_copy_that_could_go_becomes_one_that_stays() -> None:
    bench = Bench()
    bench.say(SHARD, KeepCopy(PUT, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2))
    bench.node.store.kept.pop(PUT)
    bench.say(RUNTIME, ChunkArrived(PUT, 0, LARGE))
    assert PUT in bench.node.store.copies
    [copy] = bench.updates(bench.say(SHARD, KeepCopy(PUT, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2)), COPY)
    assert copy.copies == 2
    assert PUT not in bench.node.store.copies


def test_only_a_few_copies_of_what_was_put_can_be_asked_for() -> None:
    bench = Bench()
    bench.put()
    task = ids.task_id(ids.child_prefix(JOB), 1)
    for question in (
        KeepCopies(1, ids.first_return_id(task), 2),
        KeepCopies(1, PUT, 1),
        KeepCopies(1, PUT, 65),
    ):
        said = bench.say(DRIVER_ADDRESS, question)
        assert [message.reason for _, message in only(said, Refused)] == ["garbage"]
    [(_, answer)] = only(bench.say(DRIVER_ADDRESS, KeepCopies(1, PUTS[5], 2)), CopiesKept)
    assert answer.copies == 0


def test_strangers_choose_nobody() -> None:
    bench = Bench()
    assert bench.say(THERE, KeepCopy(PUT, SMALL, (), 2), CopiesCounted(PUT, 2)) == []
    assert not bench.node.store.objects


def test_nothing_is_left_of_a_copy_whose_sources_all_die() -> None:
    bench = Bench()
    bench.say(SHARD, KeepCopy(PUT, Value(AT_NODE, b"", 0, LARGE), (THERE,), 2))
    bench.say(SHARD, Members(2, ((HERE, ""),)))
    assert PUT in bench.node.store.objects  # it is looked for once more
    fault = faults.fault_value(faults.OBJECT_LOST, "the object", "all died")
    assert len(bench.updates(bench.say(SHARD, ObjectFound(PUT, fault)), DROP)) == 1
    assert not bench.node.store.objects
    assert not bench.node.store.kept
