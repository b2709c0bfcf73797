"""The directory of shared objects: messages in, exact outbox out."""

from __future__ import annotations

from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.machine import RUNTIME, pump
from zray.core.object_directory import ObjectDirectory
from zray.protocol.chain import ShardOpened
from zray.protocol.cluster import (
    COPY,
    DROP,
    EXPECT,
    HOLD,
    HOME,
    REFUSE,
    UNCOPY,
    WANT,
    CopiesCounted,
    FreeObjects,
    KeepCopy,
    Members,
    ObjectFound,
    Rebuild,
    ShareAcked,
    ShareReset,
    ShareUpdate,
    ShareUpdates,
)
from zray.protocol.messages import AT_NODE, FAULT, INLINE, TASK_FINISHED, TaskRecord, Value

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
TASK = ids.task_id(ids.child_prefix(b"j" * 16), 1)
MADE = ids.first_return_id(TASK)
OTHER = ids.return_ids(TASK, 2)[1]
PUT = ids.put_id(ids.child_prefix(b"j" * 16), 2)
SMALL = Value(INLINE, b"small")
LARGE = Value(AT_NODE, b"", 0, 1 << 20)
RECORD = TaskRecord(TASK, b"j" * 16, b"d" * 16, b"args", (), A, 0, TASK_FINISHED)
PATIENCE_NS = Config().stranger_patience_ns


class Bench:
    """A directory and the streams of its nodes."""

    def __init__(self, *records: TaskRecord) -> None:
        self.records = {record.task_id: record for record in records}
        self.nodes = [A, B, C]
        self.machine = ObjectDirectory(config=Config(), record_of=self.records.get)
        self.sequences: dict[bytes, int] = {}
        self.tell(A, Members(1, ((A, ""), (B, ""), (C, ""))))

    def feed(self, source: bytes, message: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
        pump(self.machine, [(source, message)], now_ns)
        self.machine.check()
        out = [effect for effect in self.machine.out if not isinstance(effect[1], ShareAcked)]
        self.machine.out.clear()
        return out

    tell = feed

    def say(self, node: bytes, *updates: tuple[Any, ...]) -> list[Any]:
        """One batch of updates; the effects without their acknowledgement."""
        first = node not in self.sequences
        self.sequences[node] = self.sequences.get(node, 0) + 1
        batch = tuple(ShareUpdate(*update) for update in updates)
        return self.feed(node, ShareUpdates(1, self.sequences[node], batch, first))

    def die(self, node: bytes) -> list[Any]:
        self.nodes.remove(node)
        alive = tuple((other, "") for other in self.nodes)
        return self.feed(self.nodes[0], Members(self.machine.epoch + 1, alive))


def test_look_up_or_subscribe() -> None:
    bench = Bench()
    assert bench.say(B, (HOLD, MADE), (WANT, MADE)) == []
    assert bench.say(A, (HOLD, MADE), (EXPECT, MADE)) == []
    assert bench.say(A, (COPY, MADE, LARGE)) == [(B, ObjectFound(MADE, LARGE, (A,)))]
    assert bench.say(C, (HOLD, MADE), (WANT, MADE)) == [(C, ObjectFound(MADE, LARGE, (A,)))]


def test_a_small_value_is_in_the_directory_itself() -> None:
    bench = Bench()
    bench.say(A, (HOLD, MADE), (COPY, MADE, SMALL))
    bench.say(B, (HOLD, MADE))
    bench.die(A)
    assert bench.say(B, (WANT, MADE)) == [(B, ObjectFound(MADE, SMALL))]


def test_when_no_node_holds_it_copies_and_lineage_go() -> None:
    bench = Bench()
    bench.say(A, (HOLD, MADE), (EXPECT, MADE))
    bench.say(B, (HOLD, MADE), (COPY, MADE, LARGE))
    assert bench.say(B, (DROP, MADE)) == []
    freed = FreeObjects((MADE,))
    assert bench.say(A, (DROP, MADE)) == [(B, freed), (A, freed)]
    assert not bench.machine.rows


def test_updates_count_once_and_in_order() -> None:
    bench = Bench()
    hold = ShareUpdates(1, 1, (ShareUpdate(HOLD, MADE),), True)
    drop = ShareUpdates(1, 3, (ShareUpdate(DROP, MADE),))
    bench.feed(A, hold)
    bench.feed(A, drop)  # the second is missing
    assert list(bench.machine.rows) == [MADE]
    pump(bench.machine, [(A, hold)], 0)
    assert bench.machine.out == [(A, ShareAcked(1, 1))]


def test_a_stream_that_is_not_known_is_reset() -> None:
    bench = Bench()
    assert bench.feed(A, ShareUpdates(4, 9, (), False)) == [(A, ShareReset(4))]


def test_the_dead_are_not_heard() -> None:
    bench = Bench()
    bench.say(A, (HOLD, MADE), (COPY, MADE, SMALL))
    bench.die(C)
    assert bench.say(C, (HOLD, MADE)) == []
    assert bench.feed(C, Members(99, ((C, ""),))) == []
    assert bench.machine.rows[MADE].holders == {A: None}


def test_one_node_makes_all_that_was_lost_of_a_task() -> None:
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE), (HOLD, OTHER))
    bench.say(B, (HOLD, OTHER))
    bench.say(C, (COPY, MADE, LARGE), (COPY, OTHER, LARGE))
    rebuilds = [(A, Rebuild(MADE, 1, RECORD)), (A, Rebuild(OTHER, 1, RECORD))]
    assert bench.die(C) == rebuilds


def test_if_that_node_dies_another_one_does() -> None:
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE))
    bench.say(B, (HOLD, MADE))
    bench.say(C, (COPY, MADE, LARGE))
    assert bench.die(C) == [(A, Rebuild(MADE, 1, RECORD))]
    bench.records[TASK] = RECORD
    assert bench.die(A) == [(B, Rebuild(MADE, 1, RECORD))]


def test_an_evicted_last_copy_is_made_again() -> None:
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE), (COPY, MADE, LARGE))
    assert bench.say(A, (UNCOPY, MADE)) == [(A, Rebuild(MADE, 1, RECORD))]


@pytest.mark.parametrize(("object_id", "words"), [(PUT, "put()"), (MADE, "made it or announced it")])
def test_what_cannot_be_made_again_is_lost_with_a_reason(object_id: bytes, words: str) -> None:
    bench = Bench()
    bench.say(A, (HOLD, object_id))
    bench.say(B, (COPY, object_id, LARGE))
    [(node, found)] = bench.die(B)
    assert (node, found.value.kind) == (A, FAULT)
    assert words.encode() in found.value.data


def test_what_nobody_announces_is_lost_after_a_while() -> None:
    bench = Bench()
    bench.say(A, (HOLD, MADE), (WANT, MADE))
    assert bench.machine.wake_at_ns == PATIENCE_NS
    pump(bench.machine, [], PATIENCE_NS)
    [(node, found)] = bench.machine.out
    assert (node, found.value.kind) == (A, FAULT)


def test_a_new_life_frees_and_rebuilds_nothing_before_all_have_restated() -> None:
    bench = Bench(RECORD)
    bench.feed(RUNTIME, ShardOpened())
    assert bench.say(B, (COPY, MADE, LARGE)) == []
    assert bench.say(C) == []
    assert MADE in bench.machine.rows
    assert bench.say(A, (HOLD, MADE)) == []
    assert bench.machine.rows[MADE].holders == {A: None}


def test_a_new_life_does_not_wait_for_the_dead() -> None:
    bench = Bench(RECORD)
    bench.feed(RUNTIME, ShardOpened())
    bench.say(A, (HOLD, MADE))
    assert bench.say(B, (COPY, MADE, LARGE)) == []
    assert list(bench.machine.silent) == [C]
    assert bench.die(C) == []
    assert bench.say(A, (DROP, MADE)) == [(B, FreeObjects((MADE,)))]


def test_a_new_life_waits_for_a_node_of_which_the_shard_knows_nothing_else() -> None:
    """Its introduction to this shard was lost, and what it told the former head of a chain was not."""
    bench = Bench(RECORD)
    bench.feed(RUNTIME, ShardOpened())
    new = b"n" * 16
    bench.tell(A, Members(2, ((A, ""), (B, ""), (C, ""), (new, ""))))
    for node in (A, B, C):
        assert bench.say(node, (COPY, MADE, LARGE)) == []
    assert bench.say(new, (HOLD, MADE)) == []
    assert bench.machine.rows[MADE].holders == {new: None}


def test_a_table_older_than_a_node_does_not_bury_it() -> None:
    """A shard restarts, and a node that has not heard yet of a new one is the first to say who is alive."""
    bench = Bench(RECORD)
    bench.machine = ObjectDirectory(config=Config(), record_of=bench.records.get)
    bench.feed(RUNTIME, ShardOpened())
    bench.tell(A, Members(7, ((A, ""), (B, ""))))
    bench.tell(C, Members(8, ((A, ""), (B, ""), (C, ""))))
    bench.say(A, (HOLD, MADE))
    assert bench.say(B, (COPY, MADE, LARGE)) == []
    assert list(bench.machine.silent) == [C]
    bench.say(C, (HOLD, MADE))
    assert bench.machine.rows[MADE].holders == {A: None, C: None}


def test_who_is_in_no_table_of_the_living_is_not_heard_until_one_names_it() -> None:
    bench = Bench()
    new = b"n" * 16
    hold = ShareUpdates(1, 1, (ShareUpdate(HOLD, MADE),), True)
    pump(bench.machine, [(new, hold)], 0)
    assert bench.machine.out == []  # it repeats that, with its table
    bench.tell(new, Members(2, ((A, ""), (B, ""), (C, ""), (new, ""))))
    pump(bench.machine, [(new, hold)], 0)
    assert bench.machine.out == [(new, ShareAcked(1, 1))]


def test_after_all_have_restated_what_nobody_holds_is_freed() -> None:
    bench = Bench()
    bench.feed(RUNTIME, ShardOpened())
    bench.say(B, (COPY, MADE, LARGE))
    bench.say(C)
    assert bench.say(A) == [(B, FreeObjects((MADE,)))]


def test_who_only_follows_the_lineage_of_what_a_new_life_cannot_find_makes_it_again() -> None:
    """The only copy died together with the former life, which alone knew that it had been made."""
    bench = Bench(RECORD)
    bench.feed(RUNTIME, ShardOpened())
    bench.say(C)
    bench.say(A, (HOLD, MADE), (HOME, MADE))
    assert bench.die(B) == [(A, Rebuild(MADE, 1, RECORD))]
    assert bench.say(C, (HOLD, MADE), (WANT, MADE)) == []  # it is being made now
    assert bench.say(A, (COPY, MADE, LARGE)) == [(C, ObjectFound(MADE, LARGE, (A,)))]


def test_what_one_node_follows_and_another_one_makes_is_waited_for() -> None:
    bench = Bench(RECORD)
    bench.feed(RUNTIME, ShardOpened())
    bench.say(A, (HOLD, MADE), (HOME, MADE), (WANT, MADE))
    bench.say(B, (HOLD, MADE), (EXPECT, MADE))
    assert bench.say(C) == []
    assert bench.die(B) == [(A, Rebuild(MADE, 1, RECORD))]


# --- copies that are kept ---------------------------------------------------------------------------


def test_who_waited_for_a_copy_that_died_before_it_was_told_makes_it_again() -> None:
    """The maker told its origin and died before its word reached the directory."""
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE), (EXPECT, MADE))
    bench.say(B, (HOLD, MADE))
    assert bench.die(B) == []
    assert bench.say(A, (HOME, MADE), (WANT, MADE)) == [(A, Rebuild(MADE, 1, RECORD))]


def test_a_second_node_is_to_keep_a_copy_and_both_hear_when_it_does() -> None:
    bench = Bench()
    bench.say(B)
    bench.say(C)
    [(chosen, keep)] = bench.say(A, (HOLD, PUT), (COPY, PUT, LARGE, 2))
    assert chosen in (B, C)
    assert keep == KeepCopy(PUT, LARGE, (A,), 2)
    assert bench.say(chosen, (HOLD, PUT)) == []
    counted = CopiesCounted(PUT, 2)
    assert bench.say(chosen, (COPY, PUT, LARGE, 2)) == [(A, counted), (chosen, counted)]
    assert bench.say(chosen, (DROP, PUT)) == []
    freed = FreeObjects((PUT,))
    assert bench.say(A, (DROP, PUT)) == [(A, freed), (chosen, freed)]


def test_a_copy_on_its_way_is_not_freed_under_who_takes_it() -> None:
    bench = Bench()
    [(chosen, _)] = bench.say(A, (HOLD, PUT), (COPY, PUT, LARGE, 2))
    assert bench.say(A, (DROP, PUT)) == []
    assert bench.say(chosen, (HOLD, PUT), (COPY, PUT, LARGE, 2)) != []
    assert bench.say(chosen, (DROP, PUT)) == [(A, FreeObjects((PUT,))), (chosen, FreeObjects((PUT,)))]


@pytest.mark.parametrize("value", [SMALL, LARGE])
def test_a_copy_is_made_again_when_the_node_that_put_it_dies(value: Value) -> None:
    bench = Bench()
    [(second, _)] = bench.say(A, (HOLD, PUT), (COPY, PUT, value, 2))
    third = B if second == C else C
    bench.say(third, (HOLD, PUT))
    bench.say(second, (COPY, PUT, value, 2))
    sources = (second,) if value is LARGE else ()
    assert bench.die(A) == [(third, KeepCopy(PUT, value, sources, 2))]
    assert bench.say(third, (COPY, PUT, value, 2))[0] == (second, CopiesCounted(PUT, 2))


def test_who_was_chosen_and_dies_is_replaced() -> None:
    bench = Bench()
    [(second, _)] = bench.say(A, (HOLD, PUT), (COPY, PUT, LARGE, 2))
    third = B if second == C else C
    assert bench.die(second) == [(third, KeepCopy(PUT, LARGE, (A,), 2))]


def test_with_too_few_nodes_there_are_fewer_copies_until_one_joins() -> None:
    bench = Bench()
    bench.die(C)
    bench.die(B)
    assert bench.say(A, (HOLD, PUT), (COPY, PUT, LARGE, 2)) == [(A, CopiesCounted(PUT, 1))]
    new = b"n" * 16
    joined = Members(bench.machine.epoch + 1, ((A, ""), (new, "")))
    assert bench.feed(A, joined) == [(new, KeepCopy(PUT, LARGE, (A,), 2))]
    bench.say(A, (DROP, PUT))
    bench.say(new, (COPY, PUT, LARGE, 2))
    assert not bench.machine.rows
    assert not bench.machine.scarce


def test_copies_are_kept_on_other_machines_if_there_are_any() -> None:
    bench = Bench()
    here, there = "tcp://10.0.0.1:70", "tcp://10.0.0.2:70"
    bench.feed(A, Members(2, ((A, here + "00"), (B, here + "01"), (C, there + "00"))))
    for counter in range(1, 6):
        put = ids.put_id(ids.child_prefix(b"j" * 16), counter)
        [(chosen, _)] = bench.say(A, (HOLD, put), (COPY, put, LARGE, 2))
        assert chosen == C
        bench.say(C, (COPY, put, LARGE, 2))


def test_copies_spread_over_equal_nodes() -> None:
    bench = Bench()
    chosen = []
    for counter in range(1, 9):
        put = ids.put_id(ids.child_prefix(b"j" * 16), counter)
        chosen += [node for node, _ in bench.say(A, (HOLD, put), (COPY, put, LARGE, 2))]
    assert {chosen.count(B), chosen.count(C)} == {4}


def test_a_new_life_counts_copies_once_all_have_restated() -> None:
    bench = Bench()
    bench.feed(RUNTIME, ShardOpened())
    assert bench.say(A, (HOLD, PUT), (COPY, PUT, LARGE, 2)) == []
    assert bench.say(B, (COPY, PUT, LARGE, 2)) == []
    assert bench.say(C) == [(A, CopiesCounted(PUT, 2)), (B, CopiesCounted(PUT, 2))]


def test_both_nodes_that_kept_it_die() -> None:
    bench = Bench()
    bench.say(A, (HOLD, PUT))
    bench.say(B, (HOLD, PUT), (COPY, PUT, LARGE, 2))
    bench.say(C, (COPY, PUT, LARGE, 2))
    bench.feed(A, Members(2, ((A, ""),)))
    row = bench.machine.rows[PUT]
    assert row.value is not None
    assert row.value.kind == FAULT
    assert b"copies=2" in row.value.data
    assert bench.say(A, (DROP, PUT)) == []
    assert not bench.machine.rows


def test_a_lost_value_says_what_would_have_kept_it() -> None:
    bench = Bench()
    bench.say(A, (HOLD, PUT))
    bench.say(B, (COPY, PUT, LARGE))
    [(_, found)] = bench.die(B)
    assert b"put(value, copies=2)" in found.value.data


def test_a_table_of_the_living_is_believed_from_those_in_it() -> None:
    bench = Bench()
    bench.say(A, (HOLD, MADE))
    bench.feed(b"stranger", Members(2**63 - 1, ()))
    assert bench.machine.rows[MADE].holders == {A: None}
    assert list(bench.machine.alive) == [A, B, C]


def test_who_refuses_to_make_it_again_leaves_it_to_the_next_holder() -> None:
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE))
    bench.say(B, (HOLD, MADE))
    bench.say(C, (COPY, MADE, LARGE))
    assert bench.die(C) == [(A, Rebuild(MADE, 1, RECORD))]
    assert bench.say(A, (REFUSE, MADE)) == [(B, Rebuild(MADE, 1, RECORD))]
    told = bench.say(B, (REFUSE, MADE))
    assert [node for node, _ in told] == [A, B]
    assert all(b"the job that made it has ended" in found.value.data for _, found in told)


def test_what_is_there_again_may_be_lost_again() -> None:
    bench = Bench(RECORD)
    bench.say(A, (HOLD, MADE))
    bench.say(B, (HOLD, MADE), (COPY, MADE, LARGE))
    assert bench.say(B, (UNCOPY, MADE)) == [(A, Rebuild(MADE, 1, RECORD))]
    assert bench.say(A, (REFUSE, MADE)) == [(B, Rebuild(MADE, 1, RECORD))]
    assert bench.say(B, (COPY, MADE, LARGE)) == []
    assert bench.say(B, (UNCOPY, MADE)) == [(B, Rebuild(MADE, 1, RECORD))]
    assert bench.say(B, (REFUSE, MADE)) == [(A, Rebuild(MADE, 1, RECORD))]
