"""The GCS shard against a naive model, with restarts from its log and from its snapshot at any moment."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.machine import LOG, RUNTIME, pump
from zray.protocol.chain import Logged, ShardOpened
from zray.protocol.codec import encode_batch
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_TASK,
    TASK_FINISHED,
    TASK_PENDING,
    Recorded,
    RecordTasks,
    ReleaseLineage,
    TableCas,
    TableChanged,
    TableDelete,
    TablePage,
    TablePut,
    TableReply,
    TableScan,
    TableSubscribe,
    TableUnsubscribe,
    TaskRecord,
)

ENTRIES_MAX, RELEASED_MAX = 5, 2
CONFIG = Config(table_entries_max=ENTRIES_MAX, released_records_max=RELEASED_MAX)
decode_commands = msgspec.msgpack.Decoder(list[Logged]).decode

sources = st.sampled_from([b"a", b"b"])
keys = st.sampled_from([b"k%d" % number for number in range(8)])
values = st.sampled_from([b"", b"v", b"w"])
task_ids = st.sampled_from([b"t%d" % number for number in range(10)])
records = st.builds(
    TaskRecord, task_ids, st.just(b"p"), st.just(b"d"), st.sampled_from([b"", b"x"]), st.just(()),
    st.just(b"n"), st.integers(0, 2), st.sampled_from([TASK_FINISHED, TASK_PENDING]), released=st.booleans(),
)  # fmt: skip


def new_shard() -> ControlShard:
    return ControlShard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=CONFIG)


def rebuilt(commands: list[Logged]) -> ControlShard:
    """A shard pumped from commands that went through the codec, as those of a log do."""
    shard = new_shard()
    decoded = decode_commands(encode_batch(commands))
    pump(shard, [(command.source, command.message) for command in decoded], 0)
    shard.out.clear()
    return shard


class Lineage:
    """The task table as plain lists: ``[task_id, (attempt, ended), args, released]`` in order of arrival."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.released: list[bytes] = []
        self.truncated = 0

    def row(self, task_id: bytes) -> list[Any] | None:
        return next((row for row in self.rows if row[0] == task_id), None)

    def record(self, record: TaskRecord) -> bool:
        """Returns whether the record is in conflict with what is known."""
        row = self.row(record.task_id)
        age = record.attempt, record.state == TASK_FINISHED
        if row is None:
            if len(self.rows) == ENTRIES_MAX:
                self.forget_one()
            self.rows.append([record.task_id, age, record.args, False])
        elif record.args != row[2] and not row[3] and not record.released:
            return True
        else:
            row[1] = max(row[1], age)
        if record.released:
            self.release(record.task_id)
        return False

    def forget_one(self) -> None:
        if self.released:
            oldest = self.released.pop(0)
            self.rows = [row for row in self.rows if row[0] != oldest]
        else:
            self.rows.pop(0)
            self.truncated += 1

    def release(self, task_id: bytes) -> None:
        row = self.row(task_id)
        if row is None or row[3]:
            return
        row[2:] = b"", True
        self.released.append(task_id)
        if len(self.released) > RELEASED_MAX:
            self.forget_one()


class ShardAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shard = new_shard()
        self.log: list[Logged] = list(self.shard.snapshot())
        self.kv: dict[bytes, bytes] = {}
        self.waiting: list[tuple[bytes, bytes]] = []  # (key, source), in order
        self.lineage = Lineage()
        self.sequences: dict[bytes, int] = {}

    def feed(self, source: bytes, message: Any) -> list[tuple[bytes, Any]]:
        """Pump one message; keeps its log record, which must come first; returns the other effects."""
        pump(self.shard, [(source, message)], 0)
        effects = [effect for effect in self.shard.out if effect[0] != RUNTIME]
        self.shard.out.clear()
        logged = [index for index, effect in enumerate(effects) if effect[0] == LOG]
        assert logged in ([], [0])
        if logged:
            self.log.append(effects.pop(0)[1])
        return effects

    def expect_write(self, key: bytes, value: bytes) -> tuple[bool, list[tuple[bytes, Any]]]:
        """Write to the model; whether it has room, and whom it tells."""
        if key not in self.kv and len(self.kv) == ENTRIES_MAX:
            return False, []
        self.kv[key] = value
        told = [
            (source, TableChanged(TABLE_KV, key, value)) for waits, source in self.waiting if waits == key
        ]
        self.waiting = [pair for pair in self.waiting if pair[0] != key]
        return True, told

    @rule(source=sources, key=keys, value=values)
    def put(self, source: bytes, key: bytes, value: bytes) -> None:
        effects = self.feed(source, TablePut(1, TABLE_KV, key, value))
        ok, told = self.expect_write(key, value)
        assert effects == [*told, (source, TableReply(1, ok, value if ok else None))]

    @rule(source=sources, key=keys, expected=st.none() | values, value=values)
    def compare_and_set(self, source: bytes, key: bytes, expected: bytes | None, value: bytes) -> None:
        effects = self.feed(source, TableCas(2, TABLE_KV, key, expected, value))
        ok, told = self.expect_write(key, value) if self.kv.get(key) == expected else (False, [])
        assert effects == [*told, (source, TableReply(2, ok, self.kv.get(key)))]

    @rule(source=sources, key=keys)
    def delete(self, source: bytes, key: bytes) -> None:
        ok = self.kv.pop(key, None) is not None
        assert self.feed(source, TableDelete(3, TABLE_KV, key)) == [(source, TableReply(3, ok))]

    @rule(source=sources, key=keys)
    def subscribe(self, source: bytes, key: bytes) -> None:
        effects = self.feed(source, TableSubscribe(4, TABLE_KV, key))
        if key in self.kv:
            assert effects == [(source, TableReply(4, True, self.kv[key]))]
        elif (key, source) not in self.waiting and len(self.waiting) == ENTRIES_MAX:
            assert effects == [(source, TableReply(4, False))]
        else:
            assert effects == []
            if (key, source) not in self.waiting:
                self.waiting.append((key, source))

    @rule(source=sources, key=keys)
    def unsubscribe(self, source: bytes, key: bytes) -> None:
        assert self.feed(source, TableUnsubscribe(TABLE_KV, key)) == []
        self.waiting = [pair for pair in self.waiting if pair != (key, source)]

    @rule(source=sources)
    def client_gone(self, source: bytes) -> None:
        assert self.feed(RUNTIME, ClientGone(source)) == []
        self.waiting = [pair for pair in self.waiting if pair[1] != source]
        self.sequences.pop(source, None)

    @rule(source=sources, batch=st.lists(records, max_size=3).map(tuple))
    def record_tasks(self, source: bytes, batch: tuple[TaskRecord, ...]) -> None:
        sequence = self.sequences[source] = self.sequences.get(source, 0) + 1
        effects = self.feed(source, RecordTasks(sequence, batch))
        conflicts = sum([self.lineage.record(record) for record in batch])
        refusals = [message.reason for _, message in effects[:-1]]
        assert refusals == ["conflict"] * bool(conflicts)
        assert effects[-1] == (source, Recorded(sequence))

    @rule(source=sources, released=st.lists(task_ids, max_size=3).map(tuple))
    def release(self, source: bytes, released: tuple[bytes, ...]) -> None:
        assert self.feed(source, ReleaseLineage(released)) == []
        for task_id in released:
            self.lineage.release(task_id)

    @rule(from_snapshot=st.booleans())
    def restart(self, from_snapshot: bool) -> None:
        """Kill the shard and recover it; compacting the log first, or not."""
        if from_snapshot:
            self.log = list(self.shard.snapshot())
        before = list(self.shard.snapshot())
        self.shard = rebuilt(self.log)
        assert list(self.shard.snapshot()) == before
        self.feed(RUNTIME, ShardOpened())
        self.waiting.clear()

    @rule(after=keys | st.just(b""), limit=st.integers(-1, 9))
    def scan(self, after: bytes, limit: int) -> None:
        above = sorted(item for item in self.kv.items() if item[0] > after)
        page = TablePage(5, tuple(above[: max(0, limit)]))
        assert self.feed(b"a", TableScan(5, TABLE_KV, after, limit)) == [(b"a", page)]

    @invariant()
    def tables_equal_the_model(self) -> None:
        self.shard.check()
        table = self.shard.tables[TABLE_TASK]
        found = [msgspec.msgpack.decode(value, type=TaskRecord) for _, value in table.page(b"", 100)]
        assert [
            [record.task_id, (record.attempt, record.state == TASK_FINISHED), record.args, record.released]
            for record in found
        ] == sorted(self.lineage.rows)
        assert self.shard.tasks.truncated == self.lineage.truncated


ShardAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestShardAgainstModel = ShardAgainstModel.TestCase
