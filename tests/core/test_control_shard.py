"""The GCS shard as a bare machine: messages in, the exact outbox out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zray.config import Config
from zray.core.control_shard import PAGE_BYTES_MAX, PAUSE_DOUBLINGS_MAX, ControlShard
from zray.core.machine import LOG, RUNTIME, pump
from zray.protocol.chain import Logged, ShardOpened
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_EVENT,
    TABLE_FUNCTION,
    TABLE_KV,
    TABLE_NODE,
    TABLE_TASK,
    TASK_FAILED,
    TASK_FINISHED,
    TASK_PENDING,
    NodeHello,
    Recorded,
    RecordEvents,
    RecordTasks,
    Refused,
    ReleaseLineage,
    ShardWelcome,
    TableCas,
    TableChanged,
    TableDelete,
    TableGet,
    TablePage,
    TablePut,
    TableReply,
    TableScan,
    TableSubscribe,
    TableUnsubscribe,
    TaskRecord,
    Warn,
)

CLUSTER = b"c" * 16
NODE, OTHER = b"node-a", b"node-b"
MS = 1_000_000


def new_shard(**limits: int) -> ControlShard:
    return ControlShard(cluster_id=CLUSTER, shard=1, shard_count=4, config=Config(**limits))


def feed(shard: ControlShard, source: bytes, *messages: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
    """Pump messages of one source; returns the effects, sentences for the operator left out."""
    pump(shard, [(source, message) for message in messages], now_ns)
    shard.check()
    effects = [effect for effect in shard.out if effect[0] != RUNTIME]
    shard.out.clear()
    return effects


def replies(shard: ControlShard, source: bytes, *messages: Any) -> list[Any]:
    """Pump messages of one source; returns what it was answered."""
    return [message for address, message in feed(shard, source, *messages) if address == source]


def record(number: int, **changes: Any) -> TaskRecord:
    base = TaskRecord(
        task_id=b"task%012d" % number, parent_id=b"p" * 16, descriptor_id=b"d" * 16, args=b"args",
        deps=(b"dep",), node_id=NODE, attempt=0, state=TASK_FINISHED,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def stored(shard: ControlShard, number: int) -> TaskRecord | None:
    value = shard.tasks.get(record(number).task_id)
    return None if value is None else msgspec.msgpack.decode(value, type=TaskRecord)


def hello(incarnation: int = 1, version: int = PROTOCOL_VERSION) -> NodeHello:
    return NodeHello(version, b"n" * 16, incarnation, 42, "host", "tcp://host:1", (("CPU", 20_000),))


WELCOME = ShardWelcome(PROTOCOL_VERSION, CLUSTER, 1, 4)


# --- nodes ---------------------------------------------------------------------------------------


def test_hello_is_logged_then_welcomed_and_fills_the_node_table() -> None:
    shard = new_shard()
    assert feed(shard, NODE, hello()) == [(LOG, Logged(NODE, hello())), (NODE, WELCOME)]
    value = shard.values[TABLE_NODE].get(b"n" * 16)
    assert msgspec.msgpack.decode(value, type=NodeHello) == hello()


def test_repeated_hello_is_welcomed_and_not_logged_again() -> None:
    shard = new_shard()
    feed(shard, NODE, hello())
    assert feed(shard, NODE, hello()) == [(NODE, WELCOME)]


def test_hello_of_another_version_is_refused_and_changes_nothing() -> None:
    shard = new_shard()
    [answer] = replies(shard, NODE, hello(version=PROTOCOL_VERSION + 1))
    assert isinstance(answer, Refused)
    assert answer.reason == "version"
    assert not shard.values[TABLE_NODE].entries


def test_hello_of_a_dead_incarnation_is_refused() -> None:
    shard = new_shard()
    feed(shard, NODE, hello(incarnation=2))
    [answer] = replies(shard, NODE, hello(incarnation=1))
    assert isinstance(answer, Refused)
    assert answer.reason == "stale"
    assert replies(shard, NODE, hello(incarnation=3)) == [WELCOME]


def test_operator_hears_of_nodes_and_refusals() -> None:
    shard = new_shard()
    pump(shard, [(NODE, hello()), (NODE, hello(version=99))], 0)
    texts = [message.text for address, message in shard.out if address == RUNTIME and type(message) is Warn]
    assert len(texts) == 2
    assert "host" in texts[0]
    assert "99" in texts[1]


# --- lineage -------------------------------------------------------------------------------------


def test_records_are_logged_before_they_are_acknowledged() -> None:
    shard = new_shard()
    batch = RecordTasks(1, (record(1), record(2)))
    assert feed(shard, NODE, batch) == [(LOG, Logged(NODE, batch)), (NODE, Recorded(1))]
    assert stored(shard, 1) == record(1)


def test_repeated_batch_is_acknowledged_and_not_logged_again() -> None:
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(1),)))
    assert feed(shard, NODE, RecordTasks(1, (record(1),))) == [(NODE, Recorded(1))]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"attempt": 1}, {"attempt": 0}, 0),
        ({"attempt": 0}, {"attempt": 1}, 1),
        ({"state": TASK_PENDING}, {"state": TASK_FINISHED}, 1),
        ({"state": TASK_FINISHED}, {"state": TASK_PENDING}, 0),
        ({"state": TASK_FINISHED}, {"state": TASK_FAILED}, 0),
        ({"state": TASK_FINISHED}, {"attempt": 1, "state": TASK_PENDING}, 1),
    ],
)
def test_newest_attempt_wins_and_within_it_the_first_end(
    first: dict[str, int], second: dict[str, int], kept: int
) -> None:
    shard = new_shard()
    both = record(1, **first), record(1, **second)
    feed(shard, NODE, RecordTasks(1, both[:1]), RecordTasks(2, both[1:]))
    assert stored(shard, 1) == both[kept]


@pytest.mark.parametrize("change", [{"descriptor_id": b"x" * 16}, {"args": b"other"}, {"deps": ()}])
def test_another_spec_under_a_known_id_is_refused_and_the_rest_is_kept(change: dict[str, Any]) -> None:
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(1),)))
    refused, recorded = replies(shard, NODE, RecordTasks(2, (record(1, attempt=1, **change), record(2))))
    assert isinstance(refused, Refused)
    assert refused.reason == "conflict"
    assert recorded == Recorded(2)
    assert stored(shard, 1) == record(1)
    assert stored(shard, 2) == record(2)


def test_batch_beyond_a_gap_is_kept_but_not_acknowledged() -> None:
    """``Recorded(3)`` would also speak for batch 2, which was lost with the former life of the shard."""
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(1),)))
    third = RecordTasks(3, (record(3),))
    assert feed(shard, NODE, third) == [(LOG, Logged(NODE, third))]
    assert replies(shard, NODE, RecordTasks(2, (record(2),)), third) == [Recorded(2), Recorded(3)]


def test_news_in_a_repeated_or_unnumbered_batch_is_logged_too() -> None:
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(1),)))
    for batch in (RecordTasks(1, (record(2),)), RecordTasks(0, (record(3),))):
        assert feed(shard, NODE, batch) == [(LOG, Logged(NODE, batch)), (NODE, Recorded(batch.sequence))]


def test_gap_that_its_sender_gave_up_does_not_block_for_ever() -> None:
    shard = new_shard()
    third, fourth = RecordTasks(3, (record(3),)), RecordTasks(4, (record(4),))
    assert replies(shard, NODE, third, fourth) == []
    assert replies(shard, NODE, third, fourth) == [Recorded(3), Recorded(4)]


def test_new_incarnation_counts_its_batches_from_one() -> None:
    shard = new_shard()
    feed(shard, NODE, hello(1), *(RecordTasks(n, ()) for n in (1, 2, 3)), hello(2))
    assert replies(shard, NODE, RecordTasks(3, ())) == []
    assert replies(shard, NODE, RecordTasks(1, ())) == [Recorded(1)]


def test_release_marks_records_drops_their_arguments_and_answers_nothing() -> None:
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(1), record(2))))
    release = ReleaseLineage((record(1).task_id, b"unknown"))
    assert feed(shard, NODE, release) == [(LOG, Logged(NODE, release))]
    assert stored(shard, 1) == record(1, released=True, args=b"")
    assert stored(shard, 2) == record(2)
    assert feed(shard, NODE, release) == []


def test_released_record_meets_its_full_form_without_conflict_in_either_order() -> None:
    bare = record(1, released=True, args=b"")
    for first, second in ((record(1), bare), (bare, record(1)), (bare, record(1, attempt=1))):
        shard = new_shard()
        assert replies(shard, NODE, RecordTasks(1, (first,)), RecordTasks(2, (second,))) == [
            Recorded(1), Recorded(2)
        ]  # fmt: skip
        kept = stored(shard, 1)
        assert kept is not None
        assert (kept.released, kept.args, kept.attempt) == (True, b"", second.attempt)


def test_newer_released_record_replaces_an_unreleased_one() -> None:
    shard = new_shard()
    newer = record(1, attempt=1, released=True, args=b"")
    feed(shard, NODE, RecordTasks(1, (record(1),)), RecordTasks(2, (newer,)))
    assert stored(shard, 1) == newer


def test_released_records_are_forgotten_in_order_of_release() -> None:
    shard = new_shard(released_records_max=2)
    feed(shard, NODE, RecordTasks(1, tuple(record(n) for n in range(5))))
    feed(shard, NODE, ReleaseLineage(tuple(record(n).task_id for n in (3, 1, 0))))
    assert [n for n in range(5) if stored(shard, n)] == [0, 1, 2, 4]
    assert shard.tasks.truncated == 0


def test_full_task_table_forgets_released_then_oldest_records_and_counts_those() -> None:
    shard = new_shard(table_entries_max=3)
    feed(shard, NODE, RecordTasks(1, tuple(record(n) for n in range(3))))
    feed(shard, NODE, ReleaseLineage((record(1).task_id,)))
    feed(shard, NODE, RecordTasks(2, (record(3),)))
    assert [n for n in range(5) if stored(shard, n)] == [0, 2, 3]
    assert shard.tasks.truncated == 0
    feed(shard, NODE, RecordTasks(3, (record(4),)))
    assert [n for n in range(5) if stored(shard, n)] == [2, 3, 4]
    assert shard.tasks.truncated == 1


# --- single keys ---------------------------------------------------------------------------------


def test_put_get_and_delete_one_key() -> None:
    shard = new_shard()
    put, delete = TablePut(1, TABLE_KV, b"k", b"v"), TableDelete(3, TABLE_KV, b"k")
    assert feed(shard, NODE, put) == [(LOG, Logged(NODE, put)), (NODE, TableReply(1, True, b"v"))]
    assert feed(shard, NODE, TableGet(2, TABLE_KV, b"k")) == [(NODE, TableReply(2, True, b"v"))]
    assert feed(shard, NODE, delete) == [(LOG, Logged(NODE, delete)), (NODE, TableReply(3, True))]
    assert feed(shard, NODE, delete, TableGet(4, TABLE_KV, b"k")) == [
        (NODE, TableReply(3, False)), (NODE, TableReply(4, False))
    ]  # fmt: skip


def test_put_of_the_same_value_is_not_logged_again() -> None:
    shard = new_shard()
    feed(shard, NODE, TablePut(1, TABLE_KV, b"k", b"v"))
    assert feed(shard, NODE, TablePut(2, TABLE_KV, b"k", b"v")) == [(NODE, TableReply(2, True, b"v"))]


def test_compare_and_set_has_one_winner_and_tells_the_loser_who() -> None:
    shard = new_shard()
    assert replies(shard, NODE, TableCas(1, TABLE_KV, b"k", None, b"a")) == [TableReply(1, True, b"a")]
    lost = TableCas(2, TABLE_KV, b"k", None, b"b")
    assert feed(shard, OTHER, lost) == [(OTHER, TableReply(2, False, b"a"))]
    assert replies(shard, OTHER, TableCas(3, TABLE_KV, b"k", b"a", b"b")) == [TableReply(3, True, b"b")]
    assert replies(shard, OTHER, TableCas(4, TABLE_KV, b"?", b"a", b"b")) == [TableReply(4, False, None)]


@pytest.mark.parametrize("table", [TABLE_TASK, TABLE_EVENT, 99])
def test_tables_that_are_not_for_writing_answer_no(table: int) -> None:
    shard = new_shard()
    writes = (
        TablePut(1, table, b"k", b"v"), TableCas(2, table, b"k", None, b"v"), TableDelete(3, table, b"k")
    )  # fmt: skip
    assert feed(shard, NODE, *writes) == [(NODE, TableReply(token, False)) for token in (1, 2, 3)]


def test_full_table_refuses_new_keys_and_still_takes_known_ones() -> None:
    shard = new_shard(table_entries_max=1)
    feed(shard, NODE, TablePut(1, TABLE_KV, b"a", b"1"))
    assert feed(shard, NODE, TablePut(2, TABLE_KV, b"b", b"2"), TableCas(3, TABLE_KV, b"b", None, b"2")) == [
        (NODE, TableReply(2, False)), (NODE, TableReply(3, False))
    ]  # fmt: skip
    assert replies(shard, NODE, TablePut(4, TABLE_KV, b"a", b"2")) == [TableReply(4, True, b"2")]
    assert replies(shard, NODE, TablePut(5, TABLE_FUNCTION, b"b", b"2")) == [TableReply(5, True, b"2")]


def test_scan_pages_through_keys_in_order_also_after_changes() -> None:
    shard = new_shard()
    feed(shard, NODE, *(TablePut(0, TABLE_KV, key, key.upper()) for key in (b"c", b"a", b"b")))
    a, b, c = ((key, key.upper()) for key in (b"a", b"b", b"c"))
    assert replies(shard, NODE, TableScan(1, TABLE_KV, b"", 2)) == [TablePage(1, (a, b))]
    assert replies(shard, NODE, TableScan(2, TABLE_KV, b"b", 2)) == [TablePage(2, (c,))]
    feed(shard, NODE, TableDelete(0, TABLE_KV, b"a"))
    assert replies(shard, NODE, TableScan(3, TABLE_KV, b"", 2**63)) == [TablePage(3, (b, c))]
    assert replies(shard, NODE, TableScan(4, TABLE_KV, b"", -1)) == [TablePage(4, ())]
    assert replies(shard, NODE, TableScan(5, 99, b"", 10)) == [TablePage(5, ())]


def test_scan_ends_a_page_where_its_bytes_end_and_says_so() -> None:
    shard = new_shard()
    large = bytes(PAGE_BYTES_MAX // 2)
    feed(shard, NODE, *(TablePut(0, TABLE_KV, key, large) for key in (b"a", b"b", b"c")))
    a, b, c = ((key, large) for key in (b"a", b"b", b"c"))
    assert replies(shard, NODE, TableScan(1, TABLE_KV, b"", 10)) == [TablePage(1, (a, b), more=True)]
    assert replies(shard, NODE, TableScan(2, TABLE_KV, b"b", 10)) == [TablePage(2, (c,))]


def test_scan_of_the_task_table_gives_records() -> None:
    shard = new_shard()
    feed(shard, NODE, RecordTasks(1, (record(2), record(1))))
    [page] = replies(shard, NODE, TableScan(1, TABLE_TASK, b"", 10))
    assert [msgspec.msgpack.decode(value, type=TaskRecord) for _, value in page.entries] == [
        record(1), record(2)
    ]  # fmt: skip


def test_events_are_a_ring_with_lasting_numbers() -> None:
    shard = new_shard(table_entries_max=2)
    events = RecordEvents((b"zero", b"one", b"two"))
    assert feed(shard, NODE, events) == [(LOG, Logged(NODE, events))]
    one, two = ((number.to_bytes(8, "big"), text) for number, text in ((1, b"one"), (2, b"two")))
    assert replies(shard, NODE, TableScan(1, TABLE_EVENT, b"", 2**63)) == [TablePage(1, (one, two))]
    assert replies(shard, NODE, TableScan(2, TABLE_EVENT, one[0], 5)) == [TablePage(2, (two,))]
    assert replies(shard, NODE, TableGet(3, TABLE_EVENT, two[0])) == [TableReply(3, True, b"two")]
    assert replies(shard, NODE, TableGet(4, TABLE_EVENT, bytes(8))) == [TableReply(4, False)]


# --- subscriptions -------------------------------------------------------------------------------


def test_subscription_to_a_present_key_is_a_look_up() -> None:
    """Reference: figure 7b, step 2."""
    shard = new_shard()
    feed(shard, NODE, TablePut(1, TABLE_KV, b"k", b"v"))
    assert feed(shard, OTHER, TableSubscribe(7, TABLE_KV, b"k")) == [(OTHER, TableReply(7, True, b"v"))]
    assert feed(shard, NODE, TablePut(2, TABLE_KV, b"k", b"w"))[1:] == [(NODE, TableReply(2, True, b"w"))]


def test_subscription_to_an_absent_key_is_answered_once_when_it_is_written() -> None:
    """Reference: figure 7b, steps 2 to 5."""
    shard = new_shard()
    ask, put = TableSubscribe(7, TABLE_KV, b"k"), TablePut(1, TABLE_KV, b"k", b"v")
    assert feed(shard, OTHER, ask, ask) == []
    assert feed(shard, NODE, put) == [
        (LOG, Logged(NODE, put)),
        (OTHER, TableChanged(TABLE_KV, b"k", b"v")),
        (NODE, TableReply(1, True, b"v")),
    ]
    assert feed(shard, NODE, TablePut(2, TABLE_KV, b"k", b"w"))[1:] == [(NODE, TableReply(2, True, b"w"))]


def test_subscribers_hear_of_tasks_nodes_and_events() -> None:
    shard = new_shard()
    keys = ((TABLE_TASK, record(1).task_id), (TABLE_NODE, b"n" * 16), (TABLE_EVENT, bytes(8)))
    feed(shard, OTHER, *(TableSubscribe(0, table, key) for table, key in keys))
    effects = feed(shard, NODE, RecordTasks(1, (record(1),)), hello(), RecordEvents((b"event",)))
    changes = [message for address, message in effects if address == OTHER]
    assert [(change.table, change.key) for change in changes] == list(keys)
    assert changes[2].value == b"event"


def test_unsubscribed_and_gone_clients_hear_nothing() -> None:
    shard = new_shard()
    for source in (NODE, OTHER):
        feed(shard, source, TableSubscribe(0, TABLE_KV, b"k"), TableSubscribe(0, TABLE_KV, b"l"))
    feed(shard, NODE, TableUnsubscribe(TABLE_KV, b"k"), TableUnsubscribe(TABLE_KV, b"never"))
    assert feed(shard, RUNTIME, ClientGone(OTHER)) == []
    effects = feed(shard, b"writer", *(TablePut(0, TABLE_KV, key, b"v") for key in (b"k", b"l")))
    assert [effect for effect in effects if effect[0] in (NODE, OTHER)] == [
        (NODE, TableChanged(TABLE_KV, b"l", b"v"))
    ]


def test_subscriptions_are_bounded_and_the_refused_one_is_told() -> None:
    shard = new_shard(table_entries_max=1)
    first, second = TableSubscribe(1, TABLE_KV, b"a"), TableSubscribe(2, TABLE_KV, b"b")
    assert replies(shard, NODE, first, second) == [TableReply(2, False)]
    feed(shard, NODE, TableUnsubscribe(TABLE_KV, b"a"))
    assert replies(shard, NODE, second, TableSubscribe(3, 99, b"a")) == [TableReply(3, False)]


# --- lives ---------------------------------------------------------------------------------------


def test_new_life_voids_subscriptions_and_is_announced_until_the_node_greets() -> None:
    shard = new_shard()
    feed(shard, NODE, hello(), TableSubscribe(0, TABLE_KV, b"k"))
    opened = [(LOG, Logged(RUNTIME, ShardOpened())), (NODE, WELCOME)]
    assert feed(shard, RUNTIME, ShardOpened(), now_ns=5) == opened
    assert shard.wake_at_ns == 5 + 100 * MS
    assert feed(shard, RUNTIME, now_ns=5 + 100 * MS) == [(NODE, WELCOME)]
    assert feed(shard, NODE, hello(), now_ns=6 + 100 * MS) == [(NODE, WELCOME)]
    assert feed(shard, RUNTIME, now_ns=10**12) == []
    assert shard.wake_at_ns is None
    assert shard.subscriptions == 0


def test_announcements_to_a_silent_peer_become_rare_and_do_not_end() -> None:
    shard = new_shard()
    feed(shard, NODE, hello())
    feed(shard, RUNTIME, ShardOpened(), now_ns=0)
    now_ns, pauses = 0, []
    for _ in range(PAUSE_DOUBLINGS_MAX + 3):
        assert shard.wake_at_ns is not None
        pauses.append(shard.wake_at_ns - now_ns)
        now_ns = shard.wake_at_ns
        assert feed(shard, RUNTIME, now_ns=now_ns) == [(NODE, WELCOME)]
    longest_ns = 100 * MS << PAUSE_DOUBLINGS_MAX
    assert pauses[:2] == [100 * MS, 200 * MS]
    assert pauses[-3:] == [longest_ns] * 3
    feed(shard, RUNTIME, ClientGone(NODE))
    feed(shard, RUNTIME, now_ns=now_ns + longest_ns)
    assert shard.wake_at_ns is None


def test_gone_peer_is_forgotten_and_its_rows_stay() -> None:
    shard = new_shard()
    feed(shard, NODE, hello(), RecordTasks(1, (record(1),)))
    gone = ClientGone(NODE)
    assert feed(shard, RUNTIME, gone) == [(LOG, Logged(RUNTIME, gone))]
    assert not shard.peers
    assert stored(shard, 1) == record(1)
    assert shard.values[TABLE_NODE].entries


def test_snapshot_rebuilds_the_shard_and_log_replay_does_too() -> None:
    shard = new_shard(table_entries_max=3, released_records_max=1)
    commands: list[Any] = list(shard.snapshot())
    for messages in (
        (hello(), RecordTasks(1, tuple(record(n) for n in range(5))), RecordTasks(3, ())),
        (ReleaseLineage((record(4).task_id, record(3).task_id)), RecordEvents((b"a", b"b", b"c", b"d"))),
        (TablePut(0, TABLE_KV, b"k", b"v"), TableCas(0, TABLE_KV, b"k", b"v", b"w")),
        (TablePut(0, TABLE_KV, b"gone", b"v"), TableDelete(0, TABLE_KV, b"gone"), ShardOpened()),
    ):
        commands += [logged for address, logged in feed(shard, NODE, *messages) if address == LOG]
    for source in (commands, list(shard.snapshot())):
        twin = new_shard(table_entries_max=3, released_records_max=1)
        pump(twin, [(command.source, command.message) for command in source], 0)
        twin.check()
        assert list(twin.snapshot()) == list(shard.snapshot())
