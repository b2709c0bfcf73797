"""One shard of the global control store: single-key tables, subscriptions and the command log.

It decides what a write does, who is told, and what must be durable before anybody is told. The invariant
(I7): every message that changed a durable table leaves as ``Logged`` for ``LOG`` *before* any reply that
depends on it. The log therefore is a command log: pumping its messages again, effects discarded, gives the
same tables. Paper, section 4.2.1 and figures 7, 10a and 10b.

Durable are the tables and what each peer was told is recorded. Subscriptions belong to a life of the shard:
:class:`ShardOpened` starts a new one, drops them, and tells every known peer with an unasked
``ShardWelcome`` that it should say ``NodeHello``, subscribe and ask again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar, TypeVar

from zray.config import Config
from zray.core.machine import LOG, RUNTIME, Address, Effect, Handler, invariant
from zray.core.tables import (
    CONFLICT,
    UNCHANGED,
    Entry,
    EventTable,
    Flushed,
    TaskTable,
    ValueTable,
    unreleased_copies,
)
from zray.errors import VersionMismatchError
from zray.ids import short
from zray.protocol.chain import Command, Logged, Mutation, ShardOpened, ShardState
from zray.protocol.documents import encode_value
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_ACTOR,
    TABLE_DESCRIPTOR,
    TABLE_EVENT,
    TABLE_FUNCTION,
    TABLE_JOB,
    TABLE_KV,
    TABLE_NODE,
    TABLE_OBJECT,
    TABLE_TASK,
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

PAUSE_DOUBLINGS_MAX = 7
"""A new life is announced again to a peer that does not answer, first after a heartbeat interval, then after
pauses that double so often: a peer that has nothing to say would not find out otherwise."""
PAGE_BYTES_MAX = 8 << 20
"""A page ends with the entry that reaches this, whatever was asked for: it must fit a frame."""
PAGE_STEP = 1_000
"""Entries looked up at once for a page."""
SNAPSHOT_BATCH = 512
"""Records, events or ids of one message of a snapshot."""

VALUE_TABLES = (TABLE_OBJECT, TABLE_FUNCTION, TABLE_ACTOR, TABLE_NODE, TABLE_JOB, TABLE_KV, TABLE_DESCRIPTOR)
"""Tables that ``TablePut``, ``TableCas`` and ``TableDelete`` may change."""


_T = TypeVar("_T")


class _Peer:
    """What the shard knows of one source of task records.

    ``sequence`` is acknowledged; ``seen`` is the highest that arrived in this life, beyond a gap.
    """

    __slots__ = ("incarnation", "seen", "sequence")

    def __init__(self, incarnation: int, sequence: int = 0, seen: int = 0) -> None:
        self.incarnation, self.sequence, self.seen = incarnation, sequence, seen

    def absorb(self, sequence: int) -> bool:
        """Note the arrival of a batch; True if it and all before it are here.

        ``Recorded`` speaks for every earlier batch too, so one that was lost with the former life of the
        shard must not be skipped: a batch beyond a gap is kept without an answer, and the sender repeats
        from its oldest. A repetition that starts beyond the gap means that the sender gave up on it.
        """
        if sequence <= self.sequence + 1 or sequence <= self.seen:
            self.sequence = max(self.sequence, sequence)
            self.seen = max(self.seen, sequence)
            return True
        self.seen = sequence
        return False


class ControlShard:
    """Tables of one shard. Pure.

    Args:
        cluster_id: 16 bytes, told to every node.
        shard: number of this shard, from 0.
        shard_count: number of shards of the cluster.
        config: bounds of the tables; the heartbeat interval paces announcements.
    """

    def __init__(self, *, cluster_id: bytes, shard: int, shard_count: int, config: Config) -> None:
        self.out: list[Effect] = []
        self.wake_at_ns: int | None = None
        self.config = config
        self.cluster_id, self.shard, self.shard_count = cluster_id, shard, shard_count
        self.values = {table: ValueTable(config.table_entries_max) for table in VALUE_TABLES}
        self.tasks = TaskTable(config.table_entries_max, config.released_records_max)
        self.events = EventTable(config.table_entries_max)
        self.tables: dict[int, ValueTable | TaskTable | EventTable] = {
            **self.values, TABLE_TASK: self.tasks, TABLE_EVENT: self.events
        }  # fmt: skip
        self.peers: dict[Address, _Peer] = {}
        self.life = 0
        self.subscribers: dict[tuple[int, bytes], dict[Address, None]] = {}
        self.subscribed: dict[Address, dict[tuple[int, bytes], None]] = {}
        self.subscriptions = 0
        self.unannounced: dict[Address, None] = {}  # peers of a former life that have not greeted again
        self.announcements = 0

    # --- nodes -----------------------------------------------------------------------------------

    def on_node_hello(self, now_ns: int, source: Address, message: NodeHello) -> None:
        """Write the node table and welcome; refuse another version or a dead incarnation (I9)."""
        if message.version != PROTOCOL_VERSION:
            detail = str(VersionMismatchError(PROTOCOL_VERSION, message.version))
            self._refuse(source, "version", detail)
            return
        peer = self.peers.get(source)
        if peer is not None and message.incarnation < peer.incarnation:
            self._refuse(source, "stale", f"incarnation {peer.incarnation} of this node is known")
            return
        value = encode_value(message)
        nodes = self.values[TABLE_NODE]
        is_news = nodes.get(message.node_id) != value
        if is_news and not nodes.write(message.node_id, value):
            self._refuse(source, "full", f"the node table holds {nodes.entries_max} nodes")
            return
        if is_news or peer is None or peer.incarnation != message.incarnation:
            self._meet(source, message)
        self.unannounced.pop(source, None)
        self._welcome(source)

    def _meet(self, source: Address, message: NodeHello) -> None:
        """A new node, or a known one that started again or changed."""
        peer = self.peers.get(source)
        if peer is None or peer.incarnation != message.incarnation:
            self._unsubscribe_all(source)
            self.peers[source] = _Peer(message.incarnation)
        self._log(source, message)
        self._notify(TABLE_NODE, message.node_id)
        self._tell_operator(
            f"node {short(message.node_id)} is here: {message.host}, process {message.pid}, "
            f"incarnation {message.incarnation}, {message.endpoint or 'no endpoint'}"
        )

    def _welcome(self, address: Address) -> None:
        welcome = ShardWelcome(PROTOCOL_VERSION, self.cluster_id, self.shard, self.shard_count)
        self.out.append((address, welcome))

    def _refuse(self, source: Address, reason: str, detail: str) -> None:
        self.out.append((source, Refused(reason, detail)))
        self._tell_operator(f"refused {source.hex()} ({reason}): {detail}")

    def _tell_operator(self, text: str) -> None:
        self.out.append((RUNTIME, Warn(text)))

    def on_client_gone(self, now_ns: int, source: Address, message: ClientGone) -> None:
        """A peer is gone for good: nothing is kept for it. Its rows of the tables stay."""
        self._unsubscribe_all(message.client)
        self.unannounced.pop(message.client, None)
        if self.peers.pop(message.client, None) is not None:
            self._log(source, message)

    # --- lineage ---------------------------------------------------------------------------------

    def on_record_tasks(self, now_ns: int, source: Address, message: RecordTasks) -> None:
        """Keep the records, then acknowledge, unless an earlier batch of this source is missing."""
        stored: list[bytes] = []
        conflicts: list[bytes] = []
        record_task = self.tasks.record
        for record in message.records:
            outcome = record_task(record)
            if outcome != UNCHANGED:
                (conflicts if outcome == CONFLICT else stored).append(record.task_id)
        complete, is_news = self._absorb(source, message.sequence)
        if stored or is_news:
            self._log(source, message)
        if self.subscribers:
            for task_id in stored:
                self._notify(TABLE_TASK, task_id)
        if conflicts:
            count, first = len(conflicts), short(conflicts[0])
            self._refuse(source, "conflict", f"{count} known task ids came with another spec, first {first}")
        if complete:
            self.out.append((source, Recorded(message.sequence)))

    def _absorb(self, source: Address, sequence: int) -> tuple[bool, bool]:
        """:meth:`_Peer.absorb`, and whether it changed the peer; batch 0 is outside of any order."""
        if sequence == 0:  # what snapshots are made of
            return True, False
        peer = self.peers.get(source)
        if peer is None:
            peer = self.peers[source] = _Peer(incarnation=0)
        before = peer.sequence, peer.seen
        complete = peer.absorb(sequence)
        return complete, before != (peer.sequence, peer.seen)

    def on_release_lineage(self, now_ns: int, source: Address, message: ReleaseLineage) -> None:
        """Mark records as not needed; unknown ids are none of our business any more."""
        release = self.tasks.release
        if any([release(task_id) for task_id in message.task_ids]):  # a list: all of them, not up to one
            self._log(source, message)

    def on_record_events(self, now_ns: int, source: Address, message: RecordEvents) -> None:
        """Append to the ring of events."""
        if not message.events:
            return
        keys = [self.events.append(event) for event in message.events]
        self._log(source, message)
        if self.subscribers:
            for key in keys:
                self._notify(TABLE_EVENT, key)

    # --- single keys -----------------------------------------------------------------------------

    def on_put(self, now_ns: int, source: Address, message: TablePut) -> None:
        """Write a key; ``ok`` is false in a full table, or one that is not for writing."""
        written = self._write(source, message.table, message.key, message.value, message)
        self._reply(source, message.token, written, message.value if written else None)

    def on_cas(self, now_ns: int, source: Address, message: TableCas) -> None:
        """Write a key if it holds what was expected; the answer says what it holds now."""
        table = self.values.get(message.table)
        current = None if table is None else table.get(message.key)
        written = current == message.expected and self._write(
            source, message.table, message.key, message.value, message
        )
        self._reply(source, message.token, written, message.value if written else current)

    def _write(
        self, source: Address, number: int, key: bytes, value: bytes, message: TablePut | TableCas
    ) -> bool:
        table = self.values.get(number)
        if table is None:
            return False
        if table.get(key) == value:
            return True
        if not table.write(key, value):
            return False
        self._log(source, message)
        if self.subscribers:
            self._notify(number, key)
        return True

    def on_delete(self, now_ns: int, source: Address, message: TableDelete) -> None:
        """Delete a key; ``ok`` is false if there was none, or it holds something else than expected."""
        table = self.values.get(message.table)
        as_expected = message.expected is None or self._value(message.table, message.key) == message.expected
        deleted = table is not None and as_expected and table.delete(message.key)
        if deleted:
            self._log(source, message)
        self._reply(source, message.token, deleted, None)

    def on_get(self, now_ns: int, source: Address, message: TableGet) -> None:
        """Read a key."""
        value = self._value(message.table, message.key)
        self._reply(source, message.token, value is not None, value)

    def on_scan(self, now_ns: int, source: Address, message: TableScan) -> None:
        """Read a page of a table in key order."""
        table = self.tables.get(message.table)
        entries, more = ((), False) if table is None else bounded_page(table, message.after, message.limit)
        self.out.append((source, TablePage(message.token, entries, more)))

    def record_of(self, task_id: bytes) -> TaskRecord | Flushed | None:
        """The lineage of a task, for what lives beside the shard."""
        return self.tasks.records.get(task_id)

    def _value(self, number: int, key: bytes) -> bytes | None:
        table = self.tables.get(number)
        return None if table is None else table.get(key)

    def _reply(self, source: Address, token: int, ok: bool, value: bytes | None) -> None:
        self.out.append((source, TableReply(token, ok, value)))

    # --- subscriptions ---------------------------------------------------------------------------

    def on_subscribe(self, now_ns: int, source: Address, message: TableSubscribe) -> None:
        """Answer a present key now, an absent one when it is written; ``ok=False``: no room to wait."""
        value = self._value(message.table, message.key)
        if value is not None:
            self._reply(source, message.token, True, value)
        elif not self._subscribe(source, (message.table, message.key)):
            self._reply(source, message.token, False, None)

    def _subscribe(self, source: Address, place: tuple[int, bytes]) -> bool:
        if source in self.subscribers.get(place, ()):
            return True
        if place[0] not in self.tables or self.subscriptions >= self.config.table_entries_max:
            return False
        self.subscribers.setdefault(place, {})[source] = None
        self.subscribed.setdefault(source, {})[place] = None
        self.subscriptions += 1
        return True

    def on_unsubscribe(self, now_ns: int, source: Address, message: TableUnsubscribe) -> None:
        """Take a subscription back, if there is one."""
        place = message.table, message.key
        if place in self.subscribed.get(source, ()):
            self._drop_subscriber(place, source)
            self._drop_subscribed(place, source)
            self.subscriptions -= 1

    def _drop_subscriber(self, place: tuple[int, bytes], source: Address) -> None:
        waiting = self.subscribers[place]
        del waiting[source]
        if not waiting:
            del self.subscribers[place]

    def _drop_subscribed(self, place: tuple[int, bytes], source: Address) -> None:
        places = self.subscribed[source]
        del places[place]
        if not places:
            del self.subscribed[source]

    def _unsubscribe_all(self, source: Address) -> None:
        places = self.subscribed.pop(source, {})
        for place in places:
            self._drop_subscriber(place, source)
        self.subscriptions -= len(places)

    def _notify(self, number: int, key: bytes) -> None:
        """Tell and forget those that wait for a key, in the order in which they asked."""
        place = number, key
        if place not in self.subscribers:
            return
        value = self._value(number, key)
        if value is None:  # written and, in a full table, forgotten within one message
            return
        waiting = self.subscribers.pop(place)
        self.subscriptions -= len(waiting)
        changed = TableChanged(number, key, value)
        for source in waiting:
            self._drop_subscribed(place, source)
            self.out.append((source, changed))

    # --- lives and the log -----------------------------------------------------------------------

    def _log(self, source: Address, message: Mutation) -> None:
        self.out.append((LOG, Logged(source, message)))

    def on_shard_opened(self, now_ns: int, source: Address, message: ShardOpened) -> None:
        """Start a new life: what belonged to the former one is void, and its peers will be told."""
        self.life += 1
        self.subscribers.clear()
        self.subscribed.clear()
        self.subscriptions = 0
        for peer in self.peers.values():
            peer.seen = peer.sequence
        self._log(source, message)
        self.unannounced = dict.fromkeys(self.peers)
        self.announcements = 0
        self.wake_at_ns = now_ns if self.unannounced else None

    def on_tick(self, now_ns: int) -> None:
        """Announce the new life to peers that have not greeted it yet."""
        for address in self.unannounced:
            self._welcome(address)
        pause_ns = self.config.heartbeat_interval_ns << min(self.announcements, PAUSE_DOUBLINGS_MAX)
        self.announcements += 1
        self.wake_at_ns = now_ns + pause_ns if self.unannounced else None

    def flush(self, now_ns: int) -> None:
        """Every message is decided on its own: nothing is left for the end of a batch."""

    def on_shard_state(self, now_ns: int, source: Address, message: ShardState) -> None:
        """Start from the head of a log. The host has checked that the log is this shard's."""
        invariant(not (self.life or self.peers or self.tasks.records), "the head of a log comes first")
        self.life, self.tasks.truncated = message.life, message.truncated
        self.events.first = message.event_first
        for address, *numbers in message.peers:
            self.peers[address] = _Peer(*numbers)

    def replay(self, source: Address, message: Any) -> None:
        """Do what a log or a predecessor tells. Whoever calls it drops the effects."""
        self.HANDLERS[type(message)](self, 0, source, message)

    def emptied(self) -> ControlShard:
        """A new shard in the place of this one, with nothing in it."""
        return ControlShard(
            cluster_id=self.cluster_id, shard=self.shard, shard_count=self.shard_count, config=self.config
        )

    def snapshot(self, flushed: Iterable[TaskRecord] = ()) -> Iterator[Command]:
        """The messages that rebuild the durable state of this shard as it is now in a new one.

        References to what is in the tables are copied at once, messages are made one by one: the shard may
        change before the last one is asked for. Cost at the call: about 10 ms for a million entries.

        Args:
            flushed: the rows in the file of a shard that flushes; this one has none.
        """
        return self._snapshot_of(list(self.tasks.records.values()))

    def state_for_joiner(self) -> Iterator[Command | None]:
        """The same for a replica that joins; ``None``: the next one is not there yet, ask after a pump."""
        return self.snapshot()

    def forget_joiner(self) -> None:
        """Nobody asks for the rest of :meth:`state_for_joiner`."""

    def forget_requests(self) -> None:
        """Clients are served elsewhere: what they asked for and did not get is void."""

    def _snapshot_of(self, records: Iterable[TaskRecord]) -> Iterator[Command]:
        tables = [(number, list(table.entries.items())) for number, table in self.values.items()]
        released, events = tuple(self.tasks.released), tuple(self.events.events)
        return self._messages(self._head(), records, released, tables, events)

    @staticmethod
    def _messages(
        head: ShardState,
        records: Iterable[TaskRecord],
        released: tuple[bytes, ...],
        tables: list[tuple[int, list[Entry]]],
        events: tuple[bytes, ...],
    ) -> Iterator[Command]:
        yield Command(RUNTIME, head)
        for batch in _batches(unreleased_copies(records)):
            yield Command(RUNTIME, RecordTasks(0, batch))
        for task_ids in _batches(iter(released)):
            yield Command(RUNTIME, ReleaseLineage(task_ids))
        for number, entries in tables:
            for key, value in entries:
                yield Command(RUNTIME, TablePut(0, number, key, value))
        for part in _batches(iter(events)):
            yield Command(RUNTIME, RecordEvents(part))

    def _head(self) -> ShardState:
        peers = tuple(
            (address, peer.incarnation, peer.sequence, peer.seen) for address, peer in self.peers.items()
        )
        return ShardState(
            self.cluster_id, self.shard, self.shard_count, self.life, self.tasks.truncated,
            self.events.first, peers,
        )  # fmt: skip

    def check(self) -> None:
        """Bounds hold, and subscriptions agree from both sides."""
        for table in self.tables.values():
            table.check()
        count = sum(len(waiting) for waiting in self.subscribers.values())
        invariant(count == self.subscriptions <= self.config.table_entries_max, "subscriptions", count)
        invariant(count == sum(len(places) for places in self.subscribed.values()), "subscriptions", count)
        for place, waiting in self.subscribers.items():
            invariant(bool(waiting) and self._value(*place) is None, "I6 a waiter of a present key", place)
            for source in waiting:
                invariant(place in self.subscribed[source], "subscription without a subscriber", place)
        for address in self.unannounced:
            invariant(address in self.peers, "announcement to a stranger", address)

    HANDLERS: ClassVar[dict[type, Handler]] = {
        NodeHello: on_node_hello,
        ClientGone: on_client_gone,
        RecordTasks: on_record_tasks,
        ReleaseLineage: on_release_lineage,
        RecordEvents: on_record_events,
        TablePut: on_put,
        TableCas: on_cas,
        TableDelete: on_delete,
        TableGet: on_get,
        TableScan: on_scan,
        TableSubscribe: on_subscribe,
        TableUnsubscribe: on_unsubscribe,
        ShardOpened: on_shard_opened,
        ShardState: on_shard_state,
    }


def bounded_page(
    table: ValueTable | TaskTable | EventTable, after: bytes, limit: int
) -> tuple[tuple[Entry, ...], bool]:
    """Entries above ``after`` until ``limit`` or ``PAGE_BYTES_MAX`` is reached; whether it was the latter."""
    entries: list[Entry] = []
    size_bytes = 0
    while len(entries) < limit:
        asked = min(limit - len(entries), PAGE_STEP)
        found = table.page(after, asked)
        for key, value in found:
            entries.append((key, value))
            size_bytes += len(key) + len(value)
            if size_bytes >= PAGE_BYTES_MAX:
                return tuple(entries), True
        if len(found) < asked:
            break
        after = found[-1][0]
    return tuple(entries), False


def _batches(items: Iterator[_T]) -> Iterator[tuple[_T, ...]]:
    while batch := tuple(islice(items, SNAPSHOT_BATCH)):
        yield batch
