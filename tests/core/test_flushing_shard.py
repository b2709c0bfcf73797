"""A shard that flushes, message by message; ``tests/property`` holds it against one that does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zray.config import Config
from zray.core.flushed_keys import FlushedKeys
from zray.core.flushing_shard import ROWS_PER_FLUSH, FlushingShard, new_shard
from zray.core.flushing_table import bytes_of
from zray.core.machine import LOG, ROWS, RUNTIME, pump
from zray.ids import task_id
from zray.protocol.chain import Logged
from zray.protocol.flushing import DropRows, FlushRows, ReadRows, RowsFlushed, RowsRead
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_TASK,
    Recorded,
    RecordTasks,
    ReleaseLineage,
    TableGet,
    TablePut,
    TableReply,
    TaskRecord,
    Warn,
)

NODE = b"node-a"
MS = 1_000_000


def row(number: int, **changes: Any) -> TaskRecord:
    base = TaskRecord(task_id(b"p" * 8, number), b"p" * 16, b"d" * 16, b"args", (b"o" * 16,), NODE, 0, 0)
    return msgspec.structs.replace(base, **changes)


ROW_BYTES = bytes_of(row(0))


def a_shard(rows_in_memory: float) -> FlushingShard:
    limit = int(ROW_BYTES * rows_in_memory)
    shard = new_shard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=Config(gcs_memory_max=limit))
    assert isinstance(shard, FlushingShard)
    return shard


def feed(shard: FlushingShard, source: bytes, *messages: Any, now_ns: int = 0) -> list[tuple[bytes, Any]]:
    pump(shard, [(source, message) for message in messages], now_ns)
    shard.check()
    effects, shard.out[:] = list(shard.out), []
    return [(to, message) for to, message in effects if to != LOG]


def flushed(shard: FlushingShard, count: int) -> tuple[TaskRecord, ...]:
    """Record rows and let the file take what it is given, which is returned."""
    batch = tuple(map(row, range(count)))
    effects = feed(shard, NODE, RecordTasks(1, batch))
    [(_, request)] = [effect for effect in effects if effect[0] == ROWS]
    assert isinstance(request, FlushRows)
    assert feed(shard, ROWS, RowsFlushed(request.number)) == []
    return request.rows


def test_the_oldest_rows_leave_once_they_are_written() -> None:
    shard = a_shard(4)
    assert feed(shard, NODE, RecordTasks(1, tuple(map(row, range(4))))) == [(NODE, Recorded(1))]
    effects = feed(shard, NODE, RecordTasks(2, (row(4),)))
    wanted = FlushRows(1, (row(0), row(1)))  # down to seven eighths of the limit
    assert effects == [(NODE, Recorded(2)), (ROWS, wanted)]
    assert len(shard.tasks.records) == 5
    feed(shard, ROWS, RowsFlushed(1))
    assert list(shard.tasks.records) == [row(number).task_id for number in (2, 3, 4)]
    assert shard.tasks.count == 5


def test_a_look_at_a_flushed_row_waits_and_other_words_wait_behind_it() -> None:
    shard = a_shard(1)
    gone = flushed(shard, 3)
    effects = feed(
        shard, NODE, TablePut(1, TABLE_KV, b"k", b"v"), TableGet(2, TABLE_TASK, gone[0].task_id),
        TableGet(3, TABLE_KV, b"k"), TableGet(4, TABLE_TASK, gone[0].task_id),
    )  # fmt: skip
    assert effects == [(NODE, TableReply(1, True, b"v")), (ROWS, ReadRows(2, (gone[0].task_id,)))]
    value = msgspec.msgpack.encode(gone[0])
    answers = [TableReply(2, True, value), TableReply(3, True, b"v"), TableReply(4, True, value)]
    assert feed(shard, ROWS, RowsRead(2, gone[:1])) == [(NODE, answer) for answer in answers]
    assert gone[0].task_id in shard.rows.flushed  # a look changes nothing


def test_a_key_that_nobody_recorded_asks_no_disk() -> None:
    shard = a_shard(1)
    flushed(shard, 3)
    assert feed(shard, NODE, TableGet(1, TABLE_TASK, row(77).task_id)) == [(NODE, TableReply(1, False))]


def test_a_release_takes_the_row_back_and_its_copy_is_dropped() -> None:
    shard = a_shard(1)
    gone = flushed(shard, 3)
    feed(shard, NODE, ReleaseLineage((gone[0].task_id, gone[1].task_id)))
    assert feed(shard, ROWS, RowsRead(2, gone[:2])) == [(ROWS, DropRows((gone[0].task_id, gone[1].task_id)))]
    assert shard.tasks.records[gone[0].task_id].released
    assert gone[0].task_id not in shard.rows.flushed


def test_a_release_is_logged_when_it_happens() -> None:
    shard = a_shard(1)
    gone = flushed(shard, 3)
    release = ReleaseLineage((gone[0].task_id,))
    pump(shard, [(NODE, release)], 0)
    assert (LOG, Logged(NODE, release)) not in shard.out
    pump(shard, [(ROWS, RowsRead(2, gone[:1]))], 0)
    assert (LOG, Logged(NODE, release)) in shard.out


def test_a_row_that_changes_while_it_is_written_stays() -> None:
    shard = a_shard(1)
    feed(shard, NODE, RecordTasks(1, (row(0), row(1))))
    feed(shard, NODE, RecordTasks(2, (row(0, attempt=1),)))
    effects = feed(shard, ROWS, RowsFlushed(1))
    assert (ROWS, DropRows((row(0).task_id,))) in effects
    assert shard.tasks.records[row(0).task_id].attempt == 1


def test_a_repeated_record_of_a_flushed_row_changes_nothing() -> None:
    shard = a_shard(1)
    gone = flushed(shard, 3)
    feed(shard, NODE, RecordTasks(2, gone[:1]))
    [answer, *_] = feed(shard, ROWS, RowsRead(2, gone[:1]))
    assert answer == (NODE, Recorded(2))
    assert shard.tasks.count == 3


def test_another_spec_under_the_id_of_a_flushed_row_is_refused() -> None:
    shard = a_shard(1)
    gone = flushed(shard, 3)
    feed(shard, NODE, RecordTasks(2, (row(0, args=b"other"),)))
    said = feed(shard, ROWS, RowsRead(2, gone[:1]))
    assert [message.reason for to, message in said if to == NODE and hasattr(message, "reason")] == [
        "conflict"
    ]


def test_a_disk_that_refuses_keeps_rows_in_memory_with_one_warning_and_is_asked_later() -> None:
    shard = a_shard(1)
    feed(shard, NODE, RecordTasks(1, (row(0), row(1))))
    [(to, warning)] = feed(shard, ROWS, RowsFlushed(1, "the disk is full"))
    assert to == RUNTIME
    assert isinstance(warning, Warn)
    assert "the disk is full" in warning.text
    assert len(shard.tasks.records) == 2
    pause_ns = shard.config.heartbeat_interval_ns
    later = RecordTasks(2, (row(2),))
    assert feed(shard, NODE, later, now_ns=pause_ns - 1) == [(NODE, Recorded(2))]
    effects = feed(shard, NODE, TableGet(1, TABLE_KV, b"k"), now_ns=pause_ns)
    assert isinstance(effects[-1][1], FlushRows)
    assert feed(shard, ROWS, RowsFlushed(2, "the disk is full"), now_ns=pause_ns) == []
    feed(shard, NODE, TableGet(2, TABLE_KV, b"k"), now_ns=4 * pause_ns)
    [(to, said)] = feed(shard, ROWS, RowsFlushed(3), now_ns=4 * pause_ns)
    assert "again" in said.text
    assert shard.rows.memory_bytes <= shard.config.gcs_memory_max


def test_much_at_once_leaves_in_batches() -> None:
    shard = a_shard(10)
    effects = feed(shard, NODE, RecordTasks(1, tuple(map(row, range(5 * ROWS_PER_FLUSH)))))
    requests = [message for to, message in effects if to == ROWS]
    assert [len(request.rows) for request in requests] == [ROWS_PER_FLUSH] * 4 + [ROWS_PER_FLUSH - 8]
    [(to, rest)] = feed(shard, ROWS, *(RowsFlushed(request.number) for request in requests))
    assert to == ROWS
    assert len(rest.rows) == 8  # now their keys alone are beyond the limit
    assert feed(shard, ROWS, RowsFlushed(rest.number)) == []
    assert shard.rows.memory_bytes == 0
    assert shard.tasks.count == 5 * ROWS_PER_FLUSH


@pytest.mark.parametrize("prefixes", [1, 5_000])
def test_keys_take_nine_bytes_each_whoever_made_them(prefixes: int) -> None:
    keys = FlushedKeys()
    made = [task_id((number % prefixes).to_bytes(8, "big"), number // prefixes) for number in range(20_000)]
    assert all(map(keys.add, made))
    assert not any(map(keys.add, made[:50]))
    assert len(keys) == keys.check_count() == len(made)
    assert all(key in keys for key in made)
    assert not any(task_id(b"z" * 8, number) in keys for number in range(1000))
    longest = max(map(len, keys._buckets.values()))
    assert longest < 40  # of five on average
    for key in made[::2]:
        keys.discard(key)
    assert [key in keys for key in made[:4]] == [False, True, False, True]
