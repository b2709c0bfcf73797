"""The bounded tables of a GCS shard: plain values, task records and events.

Every table answers ``get(key)`` and ``page(after, limit)`` with bytes. The value of a task is the msgpack of
its ``TaskRecord``, that of a node the msgpack of its ``NodeHello``; all other values are opaque. No table
grows beyond its bound (I15): a value table refuses a new key, the task table forgets what was released and
then what is oldest, the event table is a ring. Paper, section 4.2.1 and figure 10b.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from msgspec.structs import replace

from zray.core.machine import invariant
from zray.protocol.documents import encode_value
from zray.protocol.messages import TASK_PENDING, TaskRecord

Entry = tuple[bytes, bytes]

"""A message -> the bytes it has as the value of a key."""


class Flushed:
    """In the place of a row: it is on disk, and comes with the next ``RowsRead``."""


FLUSHED = Flushed()

# Outcomes of TaskTable.record.
UNCHANGED = 0
STORED = 1
CONFLICT = 2


class _OrderedPages:
    """Pages in key order from a sorted list of keys that lives until a key comes or goes."""

    __slots__ = ("_ordered",)

    def __init__(self) -> None:
        self._ordered: list[bytes] | None = None

    def keys_after(self, keys: Collection[bytes], after: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` keys above ``after``. Cost: one sort after a change, then a bisection."""
        if self._ordered is None:
            self._ordered = sorted(keys)
        start = bisect_right(self._ordered, after)
        return self._ordered[start : start + max(0, limit)]

    def forget(self) -> None:
        """The set of keys changed."""
        self._ordered = None


class ValueTable:
    """Opaque values by key, at most ``entries_max`` of them."""

    __slots__ = ("_pages", "entries", "entries_max")

    def __init__(self, entries_max: int) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.entries_max = entries_max
        self._pages = _OrderedPages()

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def write(self, key: bytes, value: bytes) -> bool:
        """Set a key; False, and nothing changed, if it is new and the table is full."""
        if key not in self.entries:
            if len(self.entries) >= self.entries_max:
                return False
            self._pages.forget()
        self.entries[key] = value
        return True

    def delete(self, key: bytes) -> bool:
        """Remove a key; False if there is none."""
        if self.entries.pop(key, None) is None:
            return False
        self._pages.forget()
        return True

    def page(self, after: bytes, limit: int) -> tuple[Entry, ...]:
        entries = self.entries
        return tuple((key, entries[key]) for key in self._pages.keys_after(entries, after, limit))

    def check(self) -> None:
        invariant(len(self.entries) <= self.entries_max, "I15 value table", len(self.entries))


class TaskTable:
    """Lineage: the record of every task that may have to run again, and of some that will not.

    ``records`` is in order of arrival, ``released`` in order of release, both so that the oldest entry is
    found in O(1). ``truncated`` counts records that were forgotten although nobody had released them.
    """

    __slots__ = ("_pages", "entries_max", "records", "released", "released_max", "truncated")

    def __init__(self, entries_max: int, released_max: int) -> None:
        self.records: OrderedDict[bytes, TaskRecord] = OrderedDict()
        self.released: OrderedDict[bytes, None] = OrderedDict()
        self.entries_max, self.released_max = entries_max, released_max
        self.truncated = 0
        self._pages = _OrderedPages()

    @property
    def count(self) -> int:
        """Rows that are known, wherever they are."""
        return len(self.records)

    def get(self, key: bytes) -> bytes | None:
        record = self.records.get(key)
        return None if record is None else encode_value(record)

    def record(self, record: TaskRecord) -> int:
        """Keep a record unless a newer one is known: ``STORED``, ``UNCHANGED`` or ``CONFLICT``.

        Newer is a higher attempt, or the end of an attempt that was pending. A different spec under a
        known id changes nothing.
        """
        known = self.records.get(record.task_id)
        if known is None:
            self._insert(record)
            return STORED
        if not _same_spec(known, record):
            return CONFLICT
        newer = _age(record) > _age(known)
        if newer:
            self.records[record.task_id] = _without_args(record) if known.released else record
        releases = record.released and not known.released
        if releases:
            self._note_release(self.records[record.task_id])
        return STORED if newer or releases else UNCHANGED

    def _insert(self, record: TaskRecord) -> None:
        self._pages.forget()
        if len(self.records) >= self.entries_max:
            self._make_room()
        self.records[record.task_id] = record
        if record.released:
            self._note_release(record)

    def release(self, task_id: bytes) -> bool:
        """The task will never run again; False if it is unknown or was released before."""
        record = self.records.get(task_id)
        if record is None or record.released:
            return False
        self._note_release(record)
        return True

    def _note_release(self, record: TaskRecord) -> None:
        self.records[record.task_id] = _without_args(record)
        self.released[record.task_id] = None
        if len(self.released) > self.released_max:
            self._forget_oldest_released()

    def _forget_oldest_released(self) -> None:
        task_id, _ = self.released.popitem(last=False)
        del self.records[task_id]
        self._pages.forget()

    def _make_room(self) -> None:
        if self.released:
            self._forget_oldest_released()
        else:
            self.records.popitem(last=False)
            self.truncated += 1

    def page(self, after: bytes, limit: int) -> tuple[Entry, ...]:
        records = self.records
        found = self._pages.keys_after(records, after, limit)
        return tuple((key, encode_value(records[key])) for key in found)

    def check(self) -> None:
        invariant(len(self.records) <= self.entries_max, "I15 task table", len(self.records))
        invariant(len(self.released) <= self.released_max, "I15 released records", len(self.released))
        flagged = {key: None for key, record in self.records.items() if record.released}
        invariant(flagged == dict(self.released), "released flags and order differ")


def unreleased_copies(records: Iterable[TaskRecord]) -> Iterator[TaskRecord]:
    """Records as they were before they were released."""
    for record in records:
        yield replace(record, released=False) if record.released else record


def _age(record: TaskRecord) -> tuple[int, bool]:
    return record.attempt, record.state != TASK_PENDING


def _same_spec(known: TaskRecord, record: TaskRecord) -> bool:
    """Whether both describe one task. A released record has no arguments left to compare."""
    return (
        known.descriptor_id == record.descriptor_id
        and known.deps == record.deps
        and (known.args == record.args or known.released or record.released)
    )


def _without_args(record: TaskRecord) -> TaskRecord:
    """The record of a task that never runs again: its arguments are dead weight."""
    if record.released and not record.args:
        return record
    return replace(record, released=True, args=b"")


class EventTable:
    """A ring of the newest events; keys are their numbers, eight bytes, big endian, counted from 0."""

    __slots__ = ("events", "first")

    def __init__(self, entries_max: int) -> None:
        self.events: deque[bytes] = deque(maxlen=entries_max)
        self.first = 0

    def append(self, event: bytes) -> bytes:
        """Add an event, forgetting the oldest of a full ring; returns its key."""
        if len(self.events) == self.events.maxlen:
            self.first += 1
        self.events.append(event)
        return _event_key(self.first + len(self.events) - 1)

    def get(self, key: bytes) -> bytes | None:
        position = int.from_bytes(key, "big") - self.first
        return self.events[position] if len(key) == 8 and 0 <= position < len(self.events) else None

    def page(self, after: bytes, limit: int) -> tuple[Entry, ...]:
        numbers = range(self.first, self.first + len(self.events))
        start = bisect_right(numbers, after, key=_event_key)
        stop = min(len(numbers), start + max(0, limit))
        keys = map(_event_key, numbers[start:stop])
        return tuple(zip(keys, islice(self.events, start, stop), strict=True))

    def check(self) -> None:
        invariant(self.first >= 0, "event number", self.first)


def _event_key(number: int) -> bytes:
    return number.to_bytes(8, "big")
