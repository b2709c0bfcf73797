"""The task table of a shard that flushes: rows in memory, the keys of those on disk, and rows brought back.

A row is in memory or on disk, never both, as far as this table says; a copy in the file whose key is not
in ``flushed`` is garbage. Rows that were read back stay apart, in ``at_hand``, until a write takes one into
memory or nobody waits any more. A released row never leaves memory: there are at most
``released_records_max`` of them. Paper, section 4.2.1 and figure 10b.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from zray.core.flushed_keys import FlushedKeys
from zray.core.machine import invariant
from zray.core.tables import STORED, Entry, TaskTable
from zray.protocol.documents import encode_value
from zray.protocol.messages import TaskRecord

NO_BOUND = 1 << 62
"""Rows beyond what memory takes are on disk, and the disk says when it is full."""
ROW_BYTES = 560
"""Memory of a row without arguments and inputs, measured: the struct, its ids and its place in the table."""
DEPENDENCY_BYTES = 80
"""The same of each input."""


def bytes_of(record: TaskRecord | None) -> int:
    """About the memory of a row that counts against the limit; released ones do not."""
    if record is None or record.released:
        return 0
    return ROW_BYTES + len(record.args) + DEPENDENCY_BYTES * (len(record.deps) + len(record.borrowed))


class FlushingTaskTable(TaskTable):
    """Lineage of which only the newest rows are in memory. It forgets nothing that was not released."""

    __slots__ = (
        "at_hand", "brought_in", "flushed", "leaving_bytes", "memory_bytes", "obsolete", "page_at_hand",
        "under_way",
    )  # fmt: skip

    def __init__(self, released_max: int) -> None:
        super().__init__(NO_BOUND, released_max)
        self.flushed = FlushedKeys()
        self.at_hand: dict[bytes, TaskRecord] = {}
        self.page_at_hand: tuple[TaskRecord, ...] | None = None
        self.memory_bytes = 0  # of unreleased rows
        self.leaving_bytes = 0  # of those under way
        self.under_way: dict[bytes, TaskRecord] = {}  # being written; still in memory
        self.obsolete: list[bytes] = []  # keys whose copy in the file is garbage, to be told
        self.brought_in: list[TaskRecord] | None = None  # rows that left the file since a transfer began

    @property
    def count(self) -> int:
        return len(self.records) + len(self.flushed)

    # --- reading ---------------------------------------------------------------------------------

    def find(self, key: bytes) -> TaskRecord | None:
        """A row that is in memory or at hand."""
        return self.records.get(key) or self.at_hand.get(key)

    def get(self, key: bytes) -> bytes | None:
        record = self.find(key)
        return None if record is None else encode_value(record)

    def lacks(self, key: bytes) -> bool:
        """Whether this row must be read before anything can be said of it."""
        return key in self.flushed and key not in self.at_hand

    def page(self, after: bytes, limit: int) -> tuple[Entry, ...]:
        """A page of what is in memory and of the page at hand, which must begin at ``after``."""
        here = self.page_at_hand or ()
        flushed = tuple((row.task_id, encode_value(row)) for row in here if row.task_id in self.flushed)
        return tuple(sorted((*super().page(after, limit), *flushed))[:limit])

    # --- writing ---------------------------------------------------------------------------------

    def record(self, record: TaskRecord) -> int:
        key = record.task_id
        if self.at_hand:
            self._bring_in(key)
        before = bytes_of(self.records.get(key))
        outcome = super().record(record)
        if outcome == STORED:
            self.memory_bytes += bytes_of(self.records.get(key)) - before
        return outcome

    def release(self, task_id: bytes) -> bool:
        if self.at_hand:
            self._bring_in(task_id)
        before = bytes_of(self.records.get(task_id))
        released = super().release(task_id)
        if released:
            self.memory_bytes -= before
        return released

    def _bring_in(self, key: bytes) -> None:
        """A row at hand is about to change: from now on it is in memory."""
        row = self.at_hand.pop(key, None)
        if row is None:
            return
        self.flushed.discard(key)
        self.obsolete.append(key)
        if self.brought_in is not None:
            self.brought_in.append(row)
        self._pages.forget()
        self.records[key] = row
        self.memory_bytes += bytes_of(row)

    # --- flushing --------------------------------------------------------------------------------

    def coldest(self, bytes_wanted: int, rows_max: int) -> list[TaskRecord]:
        """The oldest rows that may leave, of about so many bytes; they are under way from now on.

        What is looked at goes to the end of the order, so nothing is looked at twice in a row.
        """
        chosen: list[TaskRecord] = []
        found_bytes = 0
        unseen = len(self.records)
        while unseen > 0 and found_bytes < bytes_wanted and len(chosen) < rows_max:
            for record in list(islice(self.records.values(), min(rows_max, unseen))):
                if found_bytes >= bytes_wanted or len(chosen) >= rows_max:
                    break
                unseen -= 1
                self.records.move_to_end(record.task_id)
                if not record.released and record.task_id not in self.under_way:
                    chosen.append(record)
                    found_bytes += bytes_of(record)
        self.under_way.update((record.task_id, record) for record in chosen)
        self.leaving_bytes += found_bytes
        return chosen

    def written(self, rows: Iterable[TaskRecord]) -> None:
        """These rows are in the file: those that are still the same leave memory."""
        for row in rows:
            key = row.task_id
            del self.under_way[key]
            self.leaving_bytes -= bytes_of(row)
            if self.records.get(key) is row and self.flushed.add(key):
                del self.records[key]
                self.memory_bytes -= bytes_of(row)
            else:
                self.obsolete.append(key)
        self._pages.forget()

    def not_written(self, rows: Iterable[TaskRecord]) -> None:
        """These rows are not in the file, and stay where they are."""
        for row in rows:
            del self.under_way[row.task_id]
            self.leaving_bytes -= bytes_of(row)

    def with_flushed(self, rows: Iterable[TaskRecord]) -> Iterator[TaskRecord]:
        """All rows: those in memory now, then those of the file among ``rows``, lazily."""
        return chain(list(self.records.values()), (row for row in rows if row.task_id in self.flushed))

    def check(self) -> None:
        super().check()
        invariant(self.flushed.check_count() == len(self.flushed), "flushed keys are miscounted")
        hot_bytes = sum(map(bytes_of, self.records.values()))
        invariant(hot_bytes == self.memory_bytes, "bytes of rows", hot_bytes, self.memory_bytes)
        leaving_bytes = sum(map(bytes_of, self.under_way.values()))
        invariant(leaving_bytes == self.leaving_bytes, "leaving", leaving_bytes, self.leaving_bytes)
        both = [key for key in self.records if key in self.flushed] if self.flushed.count else []
        invariant(not both, "rows in memory and on disk", both[:3])
