"""Write-behind lineage: task records gather here and leave for their GCS shard in batches.

The invariant (design: *lineage before visibility*): :meth:`Lineage.committed` is true of a task only once
its shard acknowledged the record, and nothing of a task may leave the node before. On its own node a result
never waits for this. Records are idempotent, so whatever is not acknowledged in time is sent again.
Paper, section 4.2.1.
"""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from zray.config import Config
from zray.core.machine import Address, Effect, invariant
from zray.ids import shard_of
from zray.protocol.messages import Recorded, RecordTasks, ReleaseLineage, TaskRecord

RESEND_NS = 1_000_000_000
RESEND_NS_MAX = 60_000_000_000
"""A shard that is away is asked after one pause, then after twice that, up to this."""


class _ShardLink:
    """What is on its way to one shard."""

    __slots__ = (
        "address", "patience_ns", "pending", "released", "resend_at_ns", "sequence", "silent", "unacked",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.pending: dict[bytes, TaskRecord] = {}
        self.released: list[bytes] = []
        self.sequence = 0
        self.unacked: deque[RecordTasks] = deque()
        self.resend_at_ns = 0
        self.patience_ns = RESEND_NS
        self.silent = False  # no answer in time: only the oldest batch is sent until one comes


class Lineage:
    """Batches records per shard and resends what is not acknowledged. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        shards: the addresses of all GCS shards, by number.
        config: batch size, linger and the bound on records that wait for a shard.
    """

    def __init__(self, out: list[Effect], *, shards: tuple[Address, ...], config: Config) -> None:
        self.out = out
        self.config = config
        self.links = [_ShardLink(address) for address in shards]
        self.by_address = {link.address: link for link in self.links}
        self.uncommitted: dict[bytes, None] = {}
        self.flush_at_ns: int | None = None
        self.dropped = 0
        self.unacked_records = 0

    @property
    def wake_at_ns(self) -> int | None:
        """When a batch is due, or a batch that got no answer is to be sent again."""
        due = self.flush_at_ns
        for link in self.links:
            if link.unacked and (due is None or link.resend_at_ns < due):
                due = link.resend_at_ns
        return due

    def link_of(self, key: bytes) -> _ShardLink:
        """The link to the shard that owns a key."""
        links = self.links
        return links[0] if len(links) == 1 else links[shard_of(key, len(links))]

    def record(self, now_ns: int, record: TaskRecord) -> None:
        """Take a record; it leaves with the next batch."""
        if not self.links:
            return
        link = self.link_of(record.task_id)
        link.pending[record.task_id] = record
        if not record.released:  # nothing of a released task can be visible anywhere
            self.uncommitted[record.task_id] = None
        if self.flush_at_ns is None:
            self.flush_at_ns = now_ns + self.config.lineage_flush_ns
        if len(link.pending) >= self.config.lineage_batch_max:
            self._send(now_ns, link)

    def release(self, now_ns: int, task_id: bytes) -> None:
        """Nobody will ever run this task again: a record still here leaves without its arguments."""
        if not self.links:
            return
        link = self.link_of(task_id)
        record = link.pending.get(task_id)
        if record is not None:
            link.pending[task_id] = replace(record, released=True, args=b"")
            self.uncommitted.pop(task_id, None)
            return
        self.uncommitted.pop(task_id, None)
        link.released.append(task_id)
        if self.flush_at_ns is None:
            self.flush_at_ns = now_ns + self.config.lineage_flush_ns

    def committed(self, task_id: bytes) -> bool:
        """Whether the shard has acknowledged what was recorded of this task."""
        return task_id not in self.uncommitted

    def mark(self) -> tuple[int, ...]:
        """A point in time: :meth:`passed` once every record taken before it is acknowledged."""
        return tuple(link.sequence + bool(link.pending) for link in self.links)

    def passed(self, mark: tuple[int, ...]) -> bool:
        """Whether all records that were taken before ``mark`` are acknowledged, or given up."""
        for link, sequence in zip(self.links, mark, strict=True):
            if link.unacked and link.unacked[0].sequence <= sequence:
                return False
            if link.pending and link.sequence < sequence:
                return False
        return True

    def awaited_by(self, mark: tuple[int, ...]) -> list[int]:
        """The numbers of the shards because of which ``mark`` is not passed."""
        links = enumerate(zip(self.links, mark, strict=True))
        return [
            number
            for number, (link, sequence) in links
            if (link.unacked and link.unacked[0].sequence <= sequence)
            or (link.pending and link.sequence < sequence)
        ]

    def hurry(self, now_ns: int) -> None:
        """Somebody waits for what is gathered here: send it without waiting for company."""
        self.flush_at_ns = None
        for link in self.links:
            if link.pending or link.released:
                self._send(now_ns, link)

    def flush_due(self, now_ns: int) -> None:
        """Send what is due; called by ``on_tick``."""
        if self.flush_at_ns is not None and self.flush_at_ns <= now_ns:
            self.flush_at_ns = None
            for link in self.links:
                self._send(now_ns, link)
        for link in self.links:
            if link.unacked and link.resend_at_ns <= now_ns:
                self._probe(now_ns, link)

    def _probe(self, now_ns: int, link: _ShardLink) -> None:
        """Knock with the oldest batch. More would only pile up on the way to a shard that is away (I15)."""
        link.silent = True
        link.resend_at_ns = now_ns + link.patience_ns
        link.patience_ns = min(2 * link.patience_ns, RESEND_NS_MAX)
        self.out.append((link.address, link.unacked[0]))

    def shard_is_back(self, now_ns: int, source: Address) -> None:
        """A shard greets or answers after a silence: it may have missed anything that it did not confirm."""
        link = self.by_address.get(source)
        if link is None:
            return
        link.silent = False
        link.patience_ns = RESEND_NS
        link.resend_at_ns = now_ns + RESEND_NS
        self.out.extend((link.address, batch) for batch in link.unacked)
        self._send(now_ns, link)

    def shard_moved(self, number: int, address: Address) -> None:
        """A shard is served by another of its replicas from now on; that one will greet."""
        link = self.links[number]
        del self.by_address[link.address]
        link.address = address
        self.by_address[address] = link

    def _send(self, now_ns: int, link: _ShardLink) -> None:
        if link.pending:
            link.sequence += 1
            batch = RecordTasks(link.sequence, tuple(link.pending.values()))
            link.pending.clear()
            if not link.unacked:
                link.resend_at_ns = now_ns + RESEND_NS
            link.unacked.append(batch)
            self.unacked_records += len(batch.records)
            if not link.silent:
                self.out.append((link.address, batch))
            self._bound(link)
        if link.released and not link.silent:
            self.out.append((link.address, ReleaseLineage(tuple(link.released))))
            link.released.clear()

    def _bound(self, link: _ShardLink) -> None:
        """A shard that is away for long costs lineage, never memory (I15)."""
        while self.unacked_records > self.config.lineage_unacked_max and link.unacked:
            lost = link.unacked.popleft()
            self.unacked_records -= len(lost.records)
            self.dropped += len(lost.records)
        del link.released[: -self.config.lineage_unacked_max]

    def on_recorded(self, now_ns: int, source: Address, message: Recorded) -> None:
        """A shard has everything up to a sequence number."""
        link = self.by_address.get(source)
        if link is None:
            return
        while link.unacked and link.unacked[0].sequence <= message.sequence:
            batch = link.unacked.popleft()
            self.unacked_records -= len(batch.records)
            for record in batch.records:
                if record.task_id not in link.pending:
                    self.uncommitted.pop(record.task_id, None)
        if link.silent:
            self.shard_is_back(now_ns, source)
        link.resend_at_ns = now_ns + RESEND_NS

    def check(self) -> None:
        """The counters equal what they count."""
        count = sum(len(batch.records) for link in self.links for batch in link.unacked)
        invariant(count == self.unacked_records, "unacked records", self.unacked_records, "counted", count)
        invariant(count <= self.config.lineage_unacked_max + self.config.lineage_batch_max, "I15 lineage")
