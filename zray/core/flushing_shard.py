"""A shard that keeps the rows of its task table below a limit of memory: the coldest ones are on disk.

It decides which rows leave, and what has to wait until a row is back. Reading and writing the file is the
host's: effects for ``ROWS``, answered in order. The invariant: a message is handled only when every row that
it touches is in memory or at hand, and messages are handled in the order in which they came. So a flushed row
behaves like any other, only later, and replicas agree although each flushes as it likes.

Nothing durable rests on the file: the log has every row, and a new life begins with an empty file. Paper,
section 4.2.1 and figure 10b; ``docs/decisions/0018-flushed-rows.md``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

from zray.config import Config
from zray.core.control_shard import PAGE_STEP, SNAPSHOT_BATCH, ControlShard, bounded_page
from zray.core.flushing_table import FlushingTaskTable
from zray.core.machine import ROWS, Address, Handler, invariant
from zray.core.tables import FLUSHED, Flushed
from zray.protocol.chain import Command
from zray.protocol.flushing import (
    ClearRows,
    DropRows,
    FlushRows,
    ReadRowPage,
    ReadRows,
    RowsFlushed,
    RowsRead,
)
from zray.protocol.messages import (
    TABLE_TASK,
    RecordTasks,
    ReleaseLineage,
    TableGet,
    TablePage,
    TableScan,
    TableSubscribe,
    TaskRecord,
)

ROWS_PER_FLUSH = 1_000
"""Rows of one ``FlushRows``: some milliseconds of a host that can do nothing else meanwhile."""
LOW_WATER = 7 / 8
"""A shard that flushes goes on until this share of the limit, so that it does not flush row by row."""
RETRY_DOUBLINGS_MAX = 6
"""After a failure the next try is a heartbeat interval later, then the pause doubles."""


class _InLine(NamedTuple):
    """A message in line behind a row that is being read."""

    handler: Handler
    source: Address
    message: Any
    replayed: bool


def _keys_of_records(message: RecordTasks) -> list[bytes]:
    return [record.task_id for record in message.records]


def _keys_of_release(message: ReleaseLineage) -> tuple[bytes, ...]:
    return message.task_ids


def _keys_of_look(message: TableGet | TableSubscribe) -> tuple[bytes, ...]:
    return (message.key,) if message.table == TABLE_TASK else ()


_KEYS_OF: dict[type, Callable[[Any], Iterable[bytes]]] = {
    RecordTasks: _keys_of_records,
    ReleaseLineage: _keys_of_release,
    TableGet: _keys_of_look,
    TableSubscribe: _keys_of_look,
}
"""The rows of the task table that a message touches."""


class FlushingShard(ControlShard):
    """A :class:`ControlShard` whose task table may be larger than its memory. Pure."""

    HANDLERS: ClassVar[dict[type, Handler]]

    def __init__(self, *, cluster_id: bytes, shard: int, shard_count: int, config: Config) -> None:
        super().__init__(cluster_id=cluster_id, shard=shard, shard_count=shard_count, config=config)
        self.rows = FlushingTaskTable(config.released_records_max)
        self.tasks = self.tables[TABLE_TASK] = self.rows
        self.line: deque[_InLine] = deque()
        self.requests: list[Any] = []  # for the file, since the last flush
        self.number = 0  # of the newest request
        self.writing: dict[int, tuple[TaskRecord, ...]] = {}
        self.reading: dict[int, tuple[bytes, ...]] = {}
        self.being_read: dict[bytes, None] = {}
        self.page_number = 0  # of the page that the first in line waits for; 0: none
        self.transfer: RowTransfer | None = None
        self.failures = 0  # to write, in a row
        self.retry_at_ns = 0
        self._is_replay = False

    def emptied(self) -> FlushingShard:
        new = FlushingShard(
            cluster_id=self.cluster_id, shard=self.shard, shard_count=self.shard_count, config=self.config
        )
        new.number = self.number  # an answer to this one is none to the new one
        new.requests.append(ClearRows())
        return new

    # --- the line --------------------------------------------------------------------------------

    def in_turn(self, handler: Handler, now_ns: int, source: Address, message: Any) -> None:
        """Handle a message now, or when what came before it was, and its rows are here."""
        if self.line:
            self._ask(self._missing(message))  # early: it is here when its turn comes
        elif not self._must_wait(message):
            handler(self, now_ns, source, message)
            return
        self.line.append(_InLine(handler, source, message, self._is_replay))

    def replay(self, source: Address, message: Any) -> None:
        self._is_replay = True
        super().replay(source, message)
        self._is_replay = False

    def _missing(self, message: Any) -> list[bytes]:
        """The rows that this message waits for, once each."""
        keys_of = _KEYS_OF.get(type(message))
        if keys_of is None or not self.rows.flushed.count:
            return []
        lacks = self.rows.lacks
        return list(dict.fromkeys(key for key in keys_of(message) if lacks(key)))

    def _must_wait(self, message: Any) -> bool:
        """Whether the first in line cannot be handled yet; then what it lacks is asked for."""
        if type(message) is TableScan:
            return message.table == TABLE_TASK and self._must_wait_for_page(message)
        missing = self._missing(message)
        self._ask(missing)
        return bool(missing)

    def _must_wait_for_page(self, message: TableScan) -> bool:
        """A page is read when it is its turn: until the answer is here no row goes into memory."""
        if not self.rows.flushed.count or self.rows.page_at_hand is not None:
            return False
        if not self.page_number:
            limit = max(0, min(message.limit, PAGE_STEP))
            self.page_number = self.request(partial(ReadRowPage, after=message.after, limit=limit))
        return True

    def _ask(self, keys: list[bytes]) -> None:
        keys = [key for key in keys if key not in self.being_read]
        if keys:
            number = self.request(partial(ReadRows, task_ids=tuple(keys)))
            self.reading[number] = tuple(keys)
            self.being_read.update(dict.fromkeys(keys))

    def request(self, make: Callable[[int], Any]) -> int:
        """Ask the file for something under the next number."""
        self.number += 1
        self.requests.append(make(self.number))
        return self.number

    def on_rows_read(self, now_ns: int, source: Address, message: RowsRead) -> None:
        """Rows are back: whoever waited for them goes on."""
        if self.transfer is not None and message.number == self.transfer.number:
            self.transfer.hear(message.rows)
            return
        asked = self.reading.pop(message.number, None)
        if message.number == self.page_number:
            self.page_number = 0
            self.rows.page_at_hand = message.rows
        elif asked is None:
            return  # asked for a transfer that is over, or by the shard that was here before
        else:
            for key in asked:
                del self.being_read[key]
            for row in message.rows:
                if row.task_id in self.rows.flushed:
                    self.rows.at_hand[row.task_id] = row
        while self.line and not self._must_wait(self.line[0].message):
            self._handle(now_ns, self.line.popleft())
        if not self.line:
            self.rows.at_hand.clear()

    def _handle(self, now_ns: int, waiting: _InLine) -> None:
        """Now is the time of a message that waited; what a replica tells anybody is its head's to tell."""
        mark = len(self.out)
        wake_at_ns = self.wake_at_ns
        waiting.handler(self, now_ns, waiting.source, waiting.message)
        if waiting.replayed:
            del self.out[mark:]
            self.wake_at_ns = wake_at_ns

    def on_scan(self, now_ns: int, source: Address, message: TableScan) -> None:
        """As any shard, but a page of tasks ends where the page of the file ends."""
        if message.table != TABLE_TASK or self.rows.page_at_hand is None:
            super().on_scan(now_ns, source, message)
            return
        limit = min(message.limit, PAGE_STEP)
        entries, more = bounded_page(self.rows, message.after, limit)
        self.rows.page_at_hand = None
        more = more or (len(entries) == limit < message.limit)
        self.out.append((source, TablePage(message.token, entries, more)))

    def record_of(self, task_id: bytes) -> TaskRecord | Flushed | None:
        record = self.rows.find(task_id)
        if record is None and task_id in self.rows.flushed:
            self._ask([task_id])
            self.let_out()  # who asks is pumped after this machine
            return FLUSHED
        return record

    # --- flushing --------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Tell the file what is garbage, then what to write."""
        if self.rows.obsolete:
            self.requests.append(DropRows(tuple(self.rows.obsolete)))
            self.rows.obsolete.clear()
        self._make_room(now_ns)
        self.let_out()

    def let_out(self) -> None:
        """Requests become effects."""
        self.out.extend((ROWS, request) for request in self.requests)
        self.requests.clear()

    def _make_room(self, now_ns: int) -> None:
        """Let the oldest rows leave while those in memory are beyond the limit."""
        rows = self.rows
        limit = self.config.gcs_memory_max - rows.flushed.memory_bytes
        if rows.memory_bytes - rows.leaving_bytes <= limit or now_ns < self.retry_at_ns:
            return
        while not (self.failures and self.writing):  # a disk that failed is tried with one request
            wanted = rows.memory_bytes - rows.leaving_bytes - int(max(0, limit) * LOW_WATER)
            chosen = tuple(rows.coldest(wanted, ROWS_PER_FLUSH)) if wanted > 0 else ()
            if not chosen:
                return
            self.writing[self.request(partial(FlushRows, rows=chosen))] = chosen

    def on_rows_flushed(self, now_ns: int, source: Address, message: RowsFlushed) -> None:
        """Rows are in the file, or they stay and it is tried again later."""
        written = self.writing.pop(message.number, None)
        if written is None:
            return
        if not message.error:
            self.rows.written(written)
            if self.failures:
                self.failures = self.retry_at_ns = 0
                self._tell_operator("task rows can be flushed again")
            return
        self.rows.not_written(written)
        if now_ns < self.retry_at_ns:
            return  # one of several that failed together
        self.retry_at_ns = now_ns + (
            self.config.heartbeat_interval_ns << min(self.failures, RETRY_DOUBLINGS_MAX)
        )
        self.failures += 1
        if self.failures == 1:
            self._tell_operator(
                f"task rows cannot be flushed and stay in memory, above the limit of "
                f"{self.config.gcs_memory_max} bytes, until they can: {message.error}"
            )

    # --- copies ----------------------------------------------------------------------------------

    def snapshot(self, flushed: Iterable[TaskRecord] = ()) -> Iterator[Command]:
        """As any shard; ``flushed`` is what the file has, read while nothing is pumped."""
        return chain(self._snapshot_of(self.rows.with_flushed(flushed)), self._promised())

    def _promised(self) -> list[Command]:
        """Changes that a log or a predecessor has told, and that wait in line: they are in the log."""
        return [Command(waiting.source, waiting.message) for waiting in self.line if waiting.replayed]

    def state_for_joiner(self) -> Iterator[Command | None]:
        """The same for a replica that joins, while this one goes on; ``None``: ask again after a pump.

        Rows of the file are read page by page, so some of them are newer than this moment. That is harmless:
        what the joiner is told afterwards it finds done already. A row that leaves the file before its page
        is read is kept for it.
        """
        self.transfer = transfer = RowTransfer(self)
        promised = self._promised()
        commands = self._snapshot_of(list(self.rows.records.values()))
        return chain(commands, transfer.pages(), promised)

    def forget_joiner(self) -> None:
        if self.transfer is not None:
            self.transfer.end()

    def forget_requests(self) -> None:
        self.line = deque(waiting for waiting in self.line if waiting.replayed)

    def check(self) -> None:
        """Also: whoever waits, waits for something that was asked for."""
        super().check()
        invariant(not self.requests, "requests that were not let out", len(self.requests))
        if self.line:
            waits = self.page_number or any(key in self.being_read for key in self._first_missing())
            invariant(bool(waits), "a message waits for nothing", type(self.line[0].message).__name__)
        under_way = sum(map(len, self.writing.values()))
        invariant(len(self.rows.under_way) == under_way, "rows under way", under_way)

    def _first_missing(self) -> list[bytes]:
        return self._missing(self.line[0].message)


class RowTransfer:
    """The rows of the file, page by page, for a replica that joins."""

    def __init__(self, shard: FlushingShard) -> None:
        self.shard = shard
        self.number = 0
        self.page: tuple[TaskRecord, ...] | None = None
        self.kept: list[TaskRecord] = []
        shard.rows.brought_in = self.kept

    def hear(self, rows: tuple[TaskRecord, ...]) -> None:
        """The page that was asked for."""
        self.page = rows

    def pages(self) -> Iterator[Command | None]:
        """Commands; ``None`` while a page is being read."""
        rows, after = self.shard.rows, b""
        while rows.flushed.count:
            request = partial(ReadRowPage, after=after, limit=SNAPSHOT_BATCH)
            self.page = None
            self.number = self.shard.request(request)
            self.shard.let_out()  # who asks for pieces does so after the shard has flushed
            while (page := self.page) is None:
                yield None
            if not page:
                break
            after = page[-1].task_id
            yield Command(ROWS, RecordTasks(0, tuple(row for row in page if row.task_id in rows.flushed)))
        while self.kept:
            part = tuple(self.kept[:SNAPSHOT_BATCH])
            del self.kept[:SNAPSHOT_BATCH]
            yield Command(ROWS, RecordTasks(0, part))
        self.end()

    def end(self) -> None:
        """Nobody needs what leaves the file any more."""
        if self.shard.transfer is self:
            self.shard.transfer = None
            self.shard.rows.brought_in = None


def _in_turn(handler: Handler) -> Handler:
    def handle(shard: FlushingShard, now_ns: int, source: Address, message: Any) -> None:
        shard.in_turn(handler, now_ns, source, message)

    return handle


FlushingShard.HANDLERS = {
    **{
        kind: _in_turn(FlushingShard.on_scan if kind is TableScan else handler)
        for kind, handler in ControlShard.HANDLERS.items()
    },
    RowsRead: FlushingShard.on_rows_read,
    RowsFlushed: FlushingShard.on_rows_flushed,
}


def new_shard(*, cluster_id: bytes, shard: int, shard_count: int, config: Config) -> ControlShard:
    """An empty shard that flushes, if there is a limit of memory."""
    kind = FlushingShard if config.gcs_memory_max else ControlShard
    return kind(cluster_id=cluster_id, shard=shard, shard_count=shard_count, config=config)
