"""Write-behind lineage of a node: batches, acknowledgements, and shards that are away."""

from __future__ import annotations

from typing import Any

import pytest

from zray.config import Config
from zray.core.lineage import RESEND_NS, RESEND_NS_MAX, Lineage
from zray.ids import task_id
from zray.protocol.messages import Recorded, RecordTasks, ReleaseLineage, TaskRecord

SHARD = b"gcs-0000"
FLUSH_NS = Config().lineage_flush_ns


class Bench:
    """One node's lineage, and the time."""

    def __init__(self, **limits: int) -> None:
        self.out: list[Any] = []
        self.lineage = Lineage(self.out, shards=(SHARD,), config=Config()._replace(**limits))
        self.now_ns = 1
        self.made = 0

    def record(self, count: int = 1) -> list[bytes]:
        """Finish ``count`` tasks and let their batch become due; the ids."""
        ids = []
        for _ in range(count):
            ids.append(task_id(b"p" * 8, self.made))
            self.made += 1
            record = TaskRecord(ids[-1], b"", b"", b"", (), b"", 0, 0)
            self.lineage.record(self.now_ns, record)
        self.wait(FLUSH_NS)
        return ids

    def wait(self, pause_ns: int) -> None:
        self.now_ns += pause_ns
        self.lineage.flush_due(self.now_ns)
        self.lineage.check()

    def acknowledge(self, sequence: int) -> None:
        self.lineage.on_recorded(self.now_ns, SHARD, Recorded(sequence))
        self.lineage.check()

    def sent(self) -> list[Any]:
        """What left since the last call: sequences of batches, and tuples of released ids."""
        messages = [message for _, message in self.out]
        self.out.clear()
        return [m.sequence if isinstance(m, RecordTasks) else m.task_ids for m in messages]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_records_leave_in_batches_and_are_committed_when_acknowledged(bench: Bench) -> None:
    first = bench.record(3)
    assert bench.sent() == [1]
    assert not any(bench.lineage.committed(an_id) for an_id in first)
    bench.acknowledge(1)
    assert all(bench.lineage.committed(an_id) for an_id in first)
    assert bench.lineage.wake_at_ns is None


def test_a_silent_shard_gets_one_batch_now_and_then(bench: Bench) -> None:
    """Anything more would wait in memory for as long as it is away (I15)."""
    bench.record()
    assert bench.sent() == [1]
    bench.wait(RESEND_NS)
    assert bench.sent() == [1]
    for _ in range(100):
        bench.record()
    knocks = bench.sent()
    assert set(knocks) <= {1}
    assert len(knocks) <= 2
    for _ in range(1000):
        bench.wait(RESEND_NS)
    assert len(bench.sent()) < 8 + 1000 * RESEND_NS / RESEND_NS_MAX


@pytest.mark.parametrize("how", ["it answers", "it greets"])
def test_a_shard_that_is_back_gets_all_that_it_did_not_confirm(bench: Bench, how: str) -> None:
    bench.record()
    bench.wait(RESEND_NS)
    bench.record()
    bench.record()
    bench.sent()
    if how == "it answers":
        bench.acknowledge(1)
        assert bench.sent() == [2, 3]
    else:
        bench.lineage.shard_is_back(bench.now_ns, SHARD)
        assert bench.sent() == [1, 2, 3]
    bench.record()
    assert bench.sent() == [4], "and it is no longer silent"


def test_releases_wait_for_a_silent_shard(bench: Bench) -> None:
    [kept] = bench.record()
    bench.acknowledge(1)
    bench.record()
    bench.wait(RESEND_NS)
    bench.lineage.release(bench.now_ns, kept)
    bench.wait(FLUSH_NS)
    assert (kept,) not in bench.sent()
    bench.acknowledge(2)
    assert bench.sent() == [(kept,)]


def test_memory_is_bounded_while_a_shard_is_away() -> None:
    bench = Bench(lineage_unacked_max=50, lineage_batch_max=10)
    for _ in range(100):
        bench.record(10)
        assert bench.lineage.unacked_records <= 60
    assert bench.lineage.dropped >= 900
    bench.lineage.shard_is_back(bench.now_ns, SHARD)
    assert isinstance(bench.out[-1][1], RecordTasks | ReleaseLineage)
    assert len(bench.out) < 150
