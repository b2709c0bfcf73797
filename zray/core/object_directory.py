"""The shared objects of one shard: which nodes need each, which have it, which will make it.

An object is in this directory from the moment its reference leaves its node. Nodes count for their own
processes and say only ``HOLD`` and ``DROP`` here; when no node holds an object its copies are told to go and
its row goes with them. A row whose last copy is lost is rebuilt by one node, chosen here: that is why there
is one reconstruction per loss (I8). Paper, sections 4.2.1 and 4.2.3.

All of it is soft: in a new life of the shard, or at a new head of its chain, every node says again what it
shares, and nothing is freed or rebuilt before all that live have. So sharing costs the shard's log nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

from zray.config import Config
from zray.core.checks import speaks_for_itself
from zray.core.machine import Address, Effect, Handler, invariant
from zray.core.tables import Flushed
from zray.ids import is_put, producer_of, short
from zray.protocol import faults
from zray.protocol.chain import ShardOpened
from zray.protocol.cluster import (
    COMING,
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
from zray.protocol.flushing import RowsRead
from zray.protocol.messages import AT_NODE, ERROR, FAULT, INLINE, TaskRecord, Value

DEAD_NODES_MAX = 10_000
"""Dead nodes that are remembered so that no table of theirs is believed (I9); the longest dead go first."""


class SharedRow:
    """What is known of one shared object; every dictionary is an ordered set of nodes."""

    __slots__ = (
        "asked", "coming", "copies", "copies_wanted", "holders", "idle", "kept", "makers", "object_id",
        "refused", "told", "value", "waiters",
    )  # fmt: skip

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id
        self.holders: dict[Address, None] = {}
        self.copies: dict[Address, None] = {}
        self.makers: dict[Address, None] = {}
        self.idle: dict[Address, None] = {}  # makers that only follow the lineage of what was made once
        self.waiters: dict[Address, None] = {}
        self.coming: dict[Address, None] = {}  # nodes that have it and will say where
        self.value: Value | None = None  # inline, or how large it is and what it contains
        self.copies_wanted = 0  # on as many nodes a copy is to be kept
        self.kept: dict[Address, None] = {}  # copies that do not go while anybody holds the object
        self.asked: dict[Address, None] = {}  # nodes that are to have a copy and keep it
        self.refused: dict[Address, None] = {}  # holders that do not make it again
        self.told = 0  # of how many kept copies those who keep them know

    @property
    def found(self) -> bool:
        """Whether a reader can have it now."""
        value = self.value
        return value is not None and (value.kind in (INLINE, ERROR, FAULT) or bool(self.copies))

    @property
    def is_coming(self) -> bool:
        """Whether it is not made (any more) and somebody will.

        A maker that said ``HOME`` only follows its lineage. Of a row whose value is known nothing follows
        from its makers: they stay, for its lineage. What is made, and not announced yet, is coming, too.
        """
        if self.coming:
            return True
        return self.value is None and any(maker not in self.idle for maker in self.makers)

    def forget(self, node: Address) -> bool:
        """Drop all that ``node`` said; whether there was any."""
        kinds = (
            self.holders, self.copies, self.makers, self.idle, self.waiters, self.coming, self.kept,
            self.asked, self.refused,
        )  # fmt: skip
        found = [kind for kind in kinds if node in kind]
        for kind in found:
            del kind[node]
        if found:
            self.told = 0
        return bool(found)

    def keep(self, node: Address, copies: int) -> None:
        """``node`` has a copy that it keeps as one of so many."""
        self.kept[node] = None
        self.asked.pop(node, None)
        self.copies_wanted = max(self.copies_wanted, copies)
        self.told = 0


class _Stream:
    """How far the updates of one node have come."""

    __slots__ = ("number", "sequence")

    def __init__(self, number: int, sequence: int) -> None:
        self.number, self.sequence = number, sequence


class ObjectDirectory:
    """Rows of the shared objects of a shard. Pure.

    Args:
        config: bounds, and how long an object may be wanted before anybody announces it.
        record_of: the lineage of a task, from the task table of the same shard; or that it comes later.
    """

    def __init__(
        self,
        *,
        config: Config,
        record_of: Callable[[bytes], TaskRecord | Flushed | None],
    ) -> None:
        self.out: list[Effect] = []
        self.config = config
        self.record_of = record_of
        self.rows: dict[bytes, SharedRow] = {}
        self.streams: dict[Address, _Stream] = {}
        self.dead: dict[Address, None] = {}
        self.alive: dict[Address, str] = {}  # only they are heard -> the machine that each runs on
        self.epoch = 0  # of the table of the living; 0: none was heard of in this life
        self.reopened = False  # whether nodes may have told a former life what this one does not know
        self.silent: dict[Address, None] = {}  # the living that did not restate: nothing is decided yet
        self.touched: dict[bytes, SharedRow] = {}
        # Wanted, and nobody has or makes it -> when it is lost.
        self.orphans: OrderedDict[bytes, int] = OrderedDict()
        self.reading: dict[bytes, dict[bytes, None]] = {}  # task whose row is read -> its lost objects
        self.rows_read: dict[bytes, TaskRecord] = {}  # in this batch
        self.rebuilding: dict[bytes, tuple[Address, int]] = {}  # task -> who runs it again, which attempt
        self.scarce: dict[bytes, None] = {}  # objects of which more copies are wanted than there are nodes

    @property
    def wake_at_ns(self) -> int | None:
        """When the oldest object that nobody announced counts as lost."""
        return None if self.silent else next(iter(self.orphans.values()), None)

    # --- streams -----------------------------------------------------------------------------------

    def on_share_updates(self, now_ns: int, source: Address, message: ShareUpdates) -> None:
        """Absorb what a node says, once and in order.

        A node that is in no table of the living is dead, or its table was lost on the way: then both are
        said again (I9).
        """
        if source not in self.alive:
            return
        stream = self.streams.get(source)
        if message.snapshot and (stream is None or stream.number < message.stream):
            stream = self._restart(source, message)
        if stream is None or stream.number != message.stream:
            if stream is None or stream.number < message.stream:
                self.out.append((source, ShareReset(message.stream)))
            return
        if message.sequence == stream.sequence + 1:
            stream.sequence = message.sequence
            for update in message.updates:
                self._absorb(source, update)
        self.out.append((source, ShareAcked(stream.number, stream.sequence)))

    def _restart(self, source: Address, message: ShareUpdates) -> _Stream:
        """A node says everything again: what it said before is void."""
        for row in self.rows.values():
            if row.forget(source):
                self.touched[row.object_id] = row
        stream = self.streams[source] = _Stream(message.stream, message.sequence - 1)
        self._await_silent()
        return stream

    def _absorb(self, node: Address, update: ShareUpdate) -> None:
        row = self.rows.get(update.object_id)
        if row is None:
            if update.kind in (DROP, UNCOPY, REFUSE) or len(self.rows) >= self.config.table_entries_max:
                return
            row = self.rows[update.object_id] = SharedRow(update.object_id)
        self.touched[update.object_id] = row
        if row.coming and update.kind != HOLD:
            row.coming.pop(node, None)
        match update.kind:
            case k if k == HOLD:
                row.holders[node] = None
            case k if k == DROP:
                row.holders.pop(node, None)
                row.waiters.pop(node, None)
            case k if k == EXPECT:
                row.makers[node] = None
                row.idle.pop(node, None)
            case k if k == HOME:
                row.makers[node] = row.idle[node] = None
            case k if k == UNCOPY:
                row.copies.pop(node, None)
            case k if k == REFUSE:
                self._refused(row, node)
            case k if k == WANT:
                row.waiters[node] = None
            case k if k == COMING:
                row.coming[node] = None
            case k if k == COPY and update.value is not None:
                self._copied(row, node, update.value)
                if update.copies:
                    row.keep(node, update.copies)

    def _copied(self, row: SharedRow, node: Address, value: Value) -> None:
        """The first value counts (I1); a fault gives way to a value, which was made again."""
        row.copies[node] = None
        row.waiters.pop(node, None)
        row.refused.clear()
        if row.value is None or row.value.kind == FAULT:
            row.value = value
        self.rebuilding.pop(producer_of(row.object_id), None)

    def _refused(self, row: SharedRow, node: Address) -> None:
        """Another holder is to make it again."""
        row.makers.pop(node, None)
        row.idle.pop(node, None)
        row.refused[node] = None
        task_id = producer_of(row.object_id)
        if self.rebuilding.get(task_id, (b"", 0))[0] == node:
            del self.rebuilding[task_id]

    # --- membership and lives ----------------------------------------------------------------------

    def on_members(self, now_ns: int, source: Address, message: Members) -> None:
        """A node says who is alive: forget what others have said."""
        if message.epoch <= self.epoch or source in self.dead or not speaks_for_itself(source, message):
            return
        self.epoch = message.epoch
        before = self.alive
        self.alive = {node_id: _machine_of(endpoint) for node_id, endpoint in message.nodes}
        for node in before:
            if node not in self.alive:
                self._bury(node)
        for object_id in self.scarce:
            self.touched[object_id] = self.rows[object_id]
        self._await_silent()

    def _bury(self, node: Address) -> None:
        self.dead[node] = None
        if len(self.dead) > DEAD_NODES_MAX:
            del self.dead[next(iter(self.dead))]
        self.streams.pop(node, None)
        for row in self.rows.values():
            if row.forget(node):
                self.touched[row.object_id] = row
        for task_id in [task for task, (chosen, _) in self.rebuilding.items() if chosen == node]:
            del self.rebuilding[task_id]

    def on_shard_opened(self, now_ns: int, source: Address, message: ShardOpened) -> None:
        """A new life: nothing is known until every node has restated."""
        self.reopened = True
        self._await_silent()

    def _await_silent(self) -> None:
        """Find out for whom decisions wait, and take those that waited if it is for nobody any more.

        A node that the newest table lacks is waited for no longer, but it is not dead: the table may be
        older than the node. Whoever has exchanged anything with it knows a newer one, and says so before
        anything else.
        """
        waited = self.silent
        self.silent = {node: None for node in self.alive if self.reopened and node not in self.streams}
        if waited and not self.silent:
            self.touched.update(self.rows)

    # --- deciding ----------------------------------------------------------------------------------

    def on_tick(self, now_ns: int) -> None:
        """Objects that nobody announced in time are lost."""
        while not self.silent and self.orphans:
            object_id, deadline_ns = next(iter(self.orphans.items()))
            if deadline_ns > now_ns:
                return
            del self.orphans[object_id]
            self._lost(self.rows[object_id])

    def flush(self, now_ns: int) -> None:
        """Decide once per batch about every row that it touched."""
        touched, self.touched = self.touched, {}
        for object_id, row in touched.items():
            if row.found:
                self._tell_waiters(row)
            if self.silent:
                self.orphans.pop(object_id, None)
            elif not row.holders and not row.asked:
                self._free(row)
            elif row.found or row.is_coming:
                self.orphans.pop(object_id, None)
                if row.copies_wanted:
                    self._keep_copies(row)
            elif object_id not in self.orphans:
                self._orphaned(now_ns, row)
        self.rows_read.clear()

    def _tell_waiters(self, row: SharedRow) -> None:
        assert row.value is not None
        nodes = () if row.value.kind in (INLINE, ERROR, FAULT) else tuple(row.copies)
        self.out.extend((waiter, ObjectFound(row.object_id, row.value, nodes)) for waiter in row.waiters)
        row.waiters.clear()

    def _free(self, row: SharedRow) -> None:
        """No node holds it: whoever has it, or follows its lineage, may forget it."""
        del self.rows[row.object_id]
        self.orphans.pop(row.object_id, None)
        self.scarce.pop(row.object_id, None)
        freed = FreeObjects((row.object_id,))
        self.out.extend((node, freed) for node in {**row.copies, **row.makers})

    def _keep_copies(self, row: SharedRow) -> None:
        """Have more nodes keep a copy while too few do; tell those that keep one how many they are."""
        value = row.value
        if value is None or value.kind == FAULT:
            return
        missing = row.copies_wanted - len(row.kept) - len(row.asked)
        if missing > 0:
            sources = tuple(row.copies) if value.kind == AT_NODE else ()
            for node in self._keepers_for(row)[:missing]:
                row.asked[node] = None
                self.out.append((node, KeepCopy(row.object_id, value, sources, row.copies_wanted)))
        if len(row.kept) + len(row.asked) < row.copies_wanted:
            self.scarce[row.object_id] = None
        else:
            self.scarce.pop(row.object_id, None)
        settled = not row.asked or len(row.kept) >= row.copies_wanted
        if settled and row.told != len(row.kept):
            row.told = len(row.kept)
            self.out.extend((node, CopiesCounted(row.object_id, row.told)) for node in row.kept)

    def _keepers_for(self, row: SharedRow) -> list[Address]:
        """Who could keep another copy, the best first: on another machine, then with a copy that could go.

        Among equals the id of the object decides where to begin, so that many objects spread over all nodes.
        """
        keepers = [node for node in self.alive if node not in row.kept and node not in row.asked]
        if not keepers:
            return []
        maker, counter = row.object_id[:8], row.object_id[8:12]
        first = (int.from_bytes(maker, "big") + int.from_bytes(counter, "big")) % len(keepers)
        machines = {self.alive[node]: None for node in (*row.kept, *row.asked)}
        spread = keepers[first:] + keepers[:first]
        return sorted(spread, key=lambda node: (self.alive[node] in machines, node not in row.copies))

    def _orphaned(self, now_ns: int, row: SharedRow) -> None:
        """Held, and nobody has or makes it: it was lost, or its maker's word is still on the way."""
        if row.value is not None or self.record_of(producer_of(row.object_id)) is not None:
            self._lost(row)
        else:
            self.orphans[row.object_id] = now_ns + self.config.stranger_patience_ns

    def _lost(self, row: SharedRow) -> None:
        """Choose who makes it again, or say why nobody can."""
        row.asked.clear()  # they find nothing to copy
        if not row.holders:
            self._free(row)
            return
        task_id = producer_of(row.object_id)
        record = self._record_of(task_id)
        if isinstance(record, Flushed):  # decided when it is here, if that is still the question
            self.reading.setdefault(task_id, {})[row.object_id] = None
            return
        reason = _why_not(row, record)
        willing = [node for node in row.holders if node not in row.refused]
        if not willing:
            reason = reason or "its last copy is lost and the job that made it has ended"
        if reason or record is None:
            row.value = faults.fault_value(faults.OBJECT_LOST, short(row.object_id), reason)
            self._tell_everybody(row)
            return
        node, attempt = self.rebuilding.get(task_id, (b"", 0))
        if not node:
            homes = [node for node in row.makers if node in willing]
            node, attempt = next(iter(homes or willing)), record.attempt + 1
            self.rebuilding[task_id] = node, attempt
        row.value = None
        row.makers[node] = None
        row.idle.pop(node, None)
        self.out.append((node, Rebuild(row.object_id, attempt, record)))

    def _record_of(self, task_id: bytes) -> TaskRecord | Flushed | None:
        record = self.record_of(task_id)
        return self.rows_read.get(task_id, record) if isinstance(record, Flushed) else record

    def on_rows_read(self, now_ns: int, source: Address, message: RowsRead) -> None:
        """Rows that the shard had flushed are here."""
        for record in message.rows:
            lost = self.reading.pop(record.task_id, None)
            if lost is not None:
                self.rows_read[record.task_id] = record
                self.touched.update((id_, self.rows[id_]) for id_ in lost if id_ in self.rows)

    def _tell_everybody(self, row: SharedRow) -> None:
        assert row.value is not None
        found = ObjectFound(row.object_id, row.value)
        self.out.extend((node, found) for node in {**row.waiters, **row.holders})
        row.waiters.clear()

    def check(self) -> None:
        """Every row is needed, bounded, and nobody waits for what is there."""
        invariant(len(self.rows) <= self.config.table_entries_max, "I15 shared objects", len(self.rows))
        invariant(not self.touched, "rows nobody decided about", len(self.touched))
        for object_id, row in self.rows.items():
            invariant(row.object_id == object_id, "a row under another id")
            needed = row.holders or row.asked or self.silent
            invariant(bool(needed), "a row that no node holds:", short(object_id))
            invariant(not row.kept.keys() - row.copies.keys(), "kept and no copy of", short(object_id))
            invariant(not (row.found and row.waiters), "I6 waits for what is there:", short(object_id))
            invariant(not row.idle.keys() - row.makers.keys(), "idle and no maker of", short(object_id))
            everybody = {**row.holders, **row.copies, **row.makers, **row.waiters, **row.asked}
            invariant(all(node in self.alive for node in everybody), "I9 the dead in", short(object_id))
        for object_id in (*self.orphans, *self.scarce):
            invariant(object_id in self.rows, "an orphan, or scarce, without a row")

    HANDLERS: ClassVar[dict[type, Handler]] = {
        ShareUpdates: on_share_updates,
        Members: on_members,
        ShardOpened: on_shard_opened,
        RowsRead: on_rows_read,
    }


def _machine_of(endpoint: str) -> str:
    """What the nodes of one machine have in common; processes that speak over ipc are on one."""
    scheme, _, place = endpoint.partition("://")
    return place.rpartition(":")[0] if scheme == "tcp" else scheme


def _why_not(row: SharedRow, record: TaskRecord | None) -> str:
    """Why a lost object cannot be made again; nothing if it can."""
    if is_put(row.object_id) and row.copies_wanted:
        return (
            f"it was put with copies={row.copies_wanted}, and the nodes that kept one died before there was "
            "another; no task can make it again"
        )
    if is_put(row.object_id):
        return (
            "the node that held the value of this put() died, and no task can make it again; "
            "put(value, copies=2) keeps a second copy on another node"
        )
    if record is None:
        return "no process of this cluster has it, made it or announced it"
    if record.released:
        return "its lineage was released, so its task cannot run again"
    return ""
