"""The index of one node's object store: what is here, where, who looks at it, what must leave.

Decides where new objects go, which sealed ones are spilled to disk when memory is short (least recently
used first, never one that somebody looks at), and who is told when an object is sealed. It holds no
payload of the arena, only offsets; small values are opaque bytes. Invariants: I1 (one value per id),
I6 (no lost wake-up: ``Get`` looks up or subscribes in one step), I10 (sealed never changes), I11 (used at
most capacity, mapped never evicted). Paper, section 4.2.3.

An object moves ``PENDING -> CREATING -> SEALED`` or ``PENDING -> SEALED``; a creator that dies moves it back
to ``PENDING``. A spilled object is read by mapping its file, so a full store can never block a reader. One
that is sealed on another node is ``REMOTE``; a copy of it moves ``REMOTE -> CREATING -> SEALED`` and, when it
is evicted, back. Copies leave before anything is spilled. A task that runs again here makes what it makes: a
copy of that on its way is called off, one that is here stays.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

from zray.config import Config
from zray.core.extents import Extents
from zray.core.machine import DISK, TRANSFER, Address, Effect, invariant
from zray.ids import short
from zray.protocol import faults
from zray.protocol.base import Leaf
from zray.protocol.local_messages import DeleteFile, Spill, Spilled, SpillFailed
from zray.protocol.messages import (
    AT_NODE,
    EXTENT,
    FILE,
    INLINE,
    Abort,
    Create,
    Created,
    CreateFailed,
    Get,
    ObjectReady,
    Unpin,
    Value,
)

RUN_BYTES_MAX = 8 << 20
"""Small inputs of one task that travel inside its ``Run`` message, in bytes."""

PENDING, CREATING, SEALED, REMOTE = 0, 1, 2, 3
"""States of an object; from ``SEALED`` on it has a value, here or on another node."""


class ObjectEntry(Leaf):
    """One object known to the node; found in ``NodeStore.objects``."""

    object_id: bytes
    state: int = PENDING
    value: Value | None = None
    holders: int = 0  # processes that hold it
    pins: int = 0  # unfinished tasks and live containers that need it
    maps: int = 0  # times its extent was handed out and not unpinned
    waiters: list[Address] | None = None  # want the value
    subscribers: list[Address] | None = None  # want to know that it is there
    dependents: list[Any] | None = None  # tasks that wait for it; they know it by its id
    creator: Address | None = None
    created_for: Address | None = None  # holds it because of the Create
    granted: bool = False  # the creator was told where to write
    offset: int = -1
    size: int = 0
    known: bool = False  # a task or a promise will give it a value
    spilling: bool = False
    on_disk: bool = False
    detached: bool = False  # freed, but its extent is still being read or written
    is_actor: bool = False
    counted: bool = False  # among the outputs for which the record of its maker is followed here


class NodeStore:
    """Index of the objects of one node. Pure; shares its outbox with the machines of its node.

    Args:
        out: the node's outbox.
        config: limits.
        extents: the allocator of the arena.
        is_alive: whether an address is a process that may be sent extents.
        on_sealed: called with the tasks that waited for an object once it is sealed.
        on_found: called with them if it is sealed on another node; returns those that wait for a copy.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        config: Config,
        extents: Extents,
        is_alive: Callable[[Address], bool],
        on_sealed: Callable[[list[Any]], None],
        on_found: Callable[[list[Any]], list[Any]],
    ) -> None:
        self.out = out
        self.config = config
        self.extents = extents
        self.is_alive = is_alive
        self.on_sealed = on_sealed
        self.on_found = on_found
        self.objects: dict[bytes, ObjectEntry] = {}
        self.evictable: dict[bytes, ObjectEntry] = {}  # sealed in the arena, least recently used first
        self.mapped: dict[Address, dict[bytes, list[ObjectEntry]]] = {}
        self.creating: dict[Address, dict[bytes, ObjectEntry]] = {}
        self.waiting_creates: deque[tuple[Address, ObjectEntry]] = deque()
        self.detached_spills: dict[bytes, ObjectEntry] = {}  # freed while their file was being written
        self.strangers: OrderedDict[bytes, int] = OrderedDict()  # nobody announced -> when to give up, ns
        self.spilling = 0
        self.spilled_bytes = 0
        self.wake_at_ns: int | None = None
        # In a cluster of several nodes: what other nodes know of, and whom to ask about the rest.
        self.cluster: ClusterStore | None = None
        self.shared: dict[bytes, Any] = {}
        self.copies: dict[bytes, ObjectEntry] = {}  # large ones of which another node has the primary
        self.kept: dict[bytes, int] = {}  # a copy here is one of so many that are kept (``kept_copies.py``)

    # --- entries ---------------------------------------------------------------------------------

    def entry(self, object_id: bytes) -> ObjectEntry:
        """The entry of an object, made if this is the first that is heard of it."""
        entry = self.objects.get(object_id)
        if entry is None:
            entry = self.objects[object_id] = ObjectEntry(object_id)
        return entry

    def announce(self, object_id: bytes) -> ObjectEntry:
        """The entry of an object that will have a value: somebody is going to make it."""
        entry = self.entry(object_id)
        if not entry.known:
            entry.known = True
            self.strangers.pop(object_id, None)
            if object_id in self.shared:
                assert self.cluster is not None
                self.cluster.announced(entry)
        return entry

    def watch_stranger(self, now_ns: int, entry: ObjectEntry) -> None:
        """Give up on an object that nobody announces within a bound (its maker's word may be late)."""
        if entry.known or entry.object_id in self.strangers:
            return
        if self.cluster is not None:
            if entry.object_id not in self.shared:
                self.cluster.foreign(entry)
            return
        deadline_ns = now_ns + self.config.stranger_patience_ns
        self.strangers[entry.object_id] = deadline_ns
        if self.wake_at_ns is None:
            self.wake_at_ns = deadline_ns

    def on_tick(self, now_ns: int) -> list[ObjectEntry]:
        """Fail the objects whose time is over, and return them."""
        failed = []
        while self.strangers:
            object_id, deadline_ns = next(iter(self.strangers.items()))
            if deadline_ns > now_ns:
                break
            del self.strangers[object_id]
            entry = self.objects.get(object_id)
            if entry is not None and entry.state == PENDING:
                reason = "no process of this cluster has it, made it or announced it"
                self.seal(entry, faults.fault_value(faults.OBJECT_LOST, short(object_id), reason))
                failed.append(entry)
        self.wake_at_ns = next(iter(self.strangers.values()), None)
        return failed

    # --- values in -------------------------------------------------------------------------------

    def seal(self, entry: ObjectEntry, value: Value) -> None:
        """Give an object its value and tell whoever waits. A second value is ignored (I1)."""
        if entry.state == SEALED:
            return
        if value.kind == AT_NODE:
            self.found_elsewhere(entry, value.size)
            return
        if entry.state == CREATING:
            value = self._finish_creating(entry, value)
        elif value.kind == EXTENT or value.kind == FILE:
            value = _never_written(entry)
        entry.known = True
        entry.state = SEALED
        entry.value = value
        if value.kind == EXTENT:
            self.evictable[entry.object_id] = entry
        if self.shared and entry.object_id in self.shared:
            assert self.cluster is not None
            self.cluster.sealed(entry)
        waiters, entry.waiters = entry.waiters, None
        dependents, entry.dependents = entry.dependents, None
        if entry.subscribers:
            self._tell_subscribers(entry)
        if waiters:
            for waiter in waiters:
                self.send_ready(waiter, entry)
        if dependents:
            self.on_sealed(dependents)

    def _tell_subscribers(self, entry: ObjectEntry) -> None:
        subscribers, entry.subscribers = entry.subscribers, None
        for subscriber in subscribers or ():
            self.notify(subscriber, entry)

    def found_elsewhere(self, entry: ObjectEntry, size: int) -> None:
        """An object is sealed in the store of another node: its bytes come once somebody wants them."""
        if entry.state != PENDING:
            return
        entry.known = True
        entry.state = REMOTE
        entry.size = size
        self._tell_subscribers(entry)
        if entry.dependents:
            entry.dependents = self.on_found(entry.dependents)
        if entry.waiters or entry.dependents or entry.object_id in self.kept:
            self.want_copy(entry)

    def lose(self, entry: ObjectEntry) -> None:
        """No other node has the object any more: it waits to be found, or made, again."""
        if entry.state == CREATING and entry.creator == TRANSFER:
            self._abandon(entry)
        elif entry.state == REMOTE:
            entry.state = PENDING
            entry.size = 0

    def want_copy(self, entry: ObjectEntry) -> None:
        """Somebody here needs the bytes of an object that another node has."""
        if entry.state == REMOTE:
            assert self.cluster is not None
            self.cluster.want_copy(entry)

    def keep(self, entry: ObjectEntry, copies: int) -> None:
        """The copy here, or on its way, is one of so many that are kept: it is not evicted."""
        self.kept[entry.object_id] = max(copies, self.kept.get(entry.object_id, 0))
        self.copies.pop(entry.object_id, None)

    def create_copy(self, entry: ObjectEntry) -> None:
        """Allocate room for the bytes of a remote object, in the order of all who want room."""
        entry.state = CREATING
        entry.creator = TRANSFER
        self.creating.setdefault(TRANSFER, {})[entry.object_id] = entry
        self.waiting_creates.append((TRANSFER, entry))
        self.admit()

    def _finish_creating(self, entry: ObjectEntry, value: Value) -> Value:
        """The value as it lies in the room that was allocated; the room goes if it is not used."""
        self._forget_creator(entry)
        if value.kind not in (EXTENT, FILE):
            self._drop_room(entry)
            return value
        if not entry.granted:
            return _never_written(entry)
        if entry.offset < 0:
            entry.on_disk = True
            self.spilled_bytes += entry.size
            return Value(FILE, b"", 0, entry.size, value.contained)
        return Value(EXTENT, b"", entry.offset, entry.size, value.contained)

    def on_create(
        self, now_ns: int, source: Address, message: Create, *, makes: bool = False
    ) -> ObjectEntry | None:
        """Allocate room, at once or later; returns the entry unless the object can never be stored.

        Args:
            makes: the object is a result of what ``source`` runs.
        """
        entry = self.objects.get(message.object_id)
        if entry is not None and makes:
            self._prefer_maker(entry)
        if entry is not None and entry.state != PENDING:
            self._refuse_or_repeat(source, entry, message)
            return entry
        if message.size > self.extents.capacity_bytes:
            failed = CreateFailed(message.object_id, message.size, self.extents.capacity_bytes)
            self.out.append((source, failed))
            return None
        entry = self.entry(message.object_id)
        self.strangers.pop(message.object_id, None)
        entry.state = CREATING
        entry.creator = source
        entry.size = message.size
        self.creating.setdefault(source, {})[message.object_id] = entry
        self.waiting_creates.append((source, entry))
        self.admit()
        return entry

    def _prefer_maker(self, entry: ObjectEntry) -> None:
        """A task that runs again here makes what other nodes may have: what it makes counts here.

        A copy on its way might never come, nor one that is here stay, and the report of the task would find
        nothing where it says that its result is.
        """
        if entry.state == SEALED:
            self.copies.pop(entry.object_id, None)
        elif entry.state == REMOTE or entry.creator == TRANSFER:
            self._forget_creator(entry)
            if entry.state == CREATING and entry.offset >= 0:
                self.extents.free(entry.offset)
            entry.offset = -1  # what was written to disk is not complete, and goes with the transfer
            entry.granted = False
            entry.state = PENDING
            entry.size = 0
            assert self.cluster is not None
            self.cluster.made_here(entry)

    def _refuse_or_repeat(self, source: Address, entry: ObjectEntry, message: Create) -> None:
        """Answer a request for an object that has a value or is being written."""
        if entry.state == CREATING and entry.creator == source:
            if entry.granted:  # else the answer is still to come
                self._send_created(entry)
            return
        detail = "the object already has a value" if entry.state >= SEALED else "another process writes it"
        self.out.append((source, CreateFailed(message.object_id, message.size, 0, detail)))

    def on_abort(self, now_ns: int, source: Address, message: Abort) -> ObjectEntry | None:
        """The creator gives up; the object waits for another maker."""
        entry = self.objects.get(message.object_id)
        if entry is None or entry.state != CREATING or entry.creator != source:
            return None
        self._abandon(entry)
        self.admit()
        return entry

    def _abandon(self, entry: ObjectEntry) -> None:
        self._forget_creator(entry)
        self._drop_room(entry)
        entry.state = PENDING

    def _forget_creator(self, entry: ObjectEntry) -> None:
        creator, entry.creator = entry.creator, None
        if creator is not None:
            mine = self.creating[creator]
            del mine[entry.object_id]
            if not mine:
                del self.creating[creator]

    def _drop_room(self, entry: ObjectEntry) -> None:
        if entry.offset >= 0:
            self.extents.free(entry.offset)
            entry.offset = -1
        elif entry.granted:
            self.out.append((DISK, DeleteFile(entry.object_id)))
        entry.granted = False
        entry.size = 0

    # --- room ------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Allocate for waiting creators in their order, spilling what nobody looks at if need be."""
        waiting = self.waiting_creates
        while waiting:
            creator, entry = waiting[0]
            if entry.state != CREATING or entry.creator != creator or entry.granted:
                waiting.popleft()
                continue
            offset = self.extents.allocate(entry.size)
            if offset is None:
                self._make_room(entry.size)
                offset = self.extents.allocate(entry.size)
                if offset is None and self.spilling:
                    return  # the end of a spill comes back here
            waiting.popleft()
            entry.offset = -1 if offset is None else offset
            entry.granted = True
            self._send_created(entry)

    def _make_room(self, need_bytes: int) -> None:
        """Give up copies and what is on disk too, and spill until ``need_bytes`` are on their way out."""
        leaving = self._evict_copies(need_bytes) if self.copies else 0
        if leaving >= need_bytes:
            return
        on_disk = []
        for object_id, entry in self.evictable.items():
            if entry.maps == 0 and not entry.spilling:
                if object_id in self.detached_spills:
                    continue  # its file is still being written by its former life
                if entry.on_disk:
                    on_disk.append(entry)
                    continue
                entry.spilling = True
                self.spilling += 1
                self.out.append((DISK, Spill(object_id, entry.offset, entry.size)))
            if entry.spilling:
                leaving += entry.size
                if leaving >= need_bytes:
                    break
        for entry in on_disk:
            self._to_file(entry)

    def _evict_copies(self, need_bytes: int) -> int:
        """Forget copies of what other nodes have and no task here is about to read; bytes that are free."""
        leaving = 0
        for entry in list(self.copies.values()):
            if entry.maps or entry.spilling or entry.pins or entry.on_disk:
                continue
            leaving += entry.size
            del self.copies[entry.object_id], self.evictable[entry.object_id]
            self.extents.free(entry.offset)
            entry.offset = -1
            entry.granted = False
            entry.value = None
            entry.state = REMOTE
            assert self.cluster is not None
            self.cluster.evicted(entry)
            if leaving >= need_bytes:
                break
        return leaving

    def _to_file(self, entry: ObjectEntry) -> None:
        """The object's file replaces its extent."""
        value = entry.value
        assert value is not None
        del self.evictable[entry.object_id]
        self.extents.free(entry.offset)
        entry.offset = -1
        entry.value = Value(FILE, b"", 0, entry.size, value.contained)

    def _send_created(self, entry: ObjectEntry) -> None:
        assert entry.creator is not None
        kind = EXTENT if entry.offset >= 0 else FILE
        if entry.creator == TRANSFER:
            assert self.cluster is not None
            self.cluster.has_room(entry, kind)
            return
        self.out.append((entry.creator, Created(entry.object_id, kind, max(entry.offset, 0))))

    def on_spilled(self, now_ns: int, source: Address, message: Spilled) -> None:
        """A file is complete: free the extent unless somebody looks at it."""
        entry = self._end_spill(message.object_id)
        if entry is not None:
            entry.on_disk = True
            self.spilled_bytes += entry.size
            if entry.maps == 0:
                self._to_file(entry)
        self.admit()

    def on_spill_failed(self, now_ns: int, source: Address, message: SpillFailed) -> list[ObjectEntry]:
        """The disk took nothing: the object stays, and the creators that wait hear why.

        Returns:
            the entries that nobody creates any more.
        """
        entry = self._end_spill(message.object_id)
        if entry is None:  # nobody needs it: its room is free all the same
            self.admit()
            return []
        self.evictable.pop(message.object_id)  # do not try this one again and again
        self.evictable[message.object_id] = entry
        abandoned = []
        waiting, self.waiting_creates = self.waiting_creates, deque()
        for creator, wanted in waiting:
            if creator == TRANSFER:  # it waits for those who look away
                self.waiting_creates.append((creator, wanted))
            elif wanted.state == CREATING and wanted.creator == creator and not wanted.granted:
                capacity_bytes = self.extents.capacity_bytes
                failed = CreateFailed(wanted.object_id, wanted.size, capacity_bytes, message.detail)
                self._abandon(wanted)
                self.out.append((creator, failed))
                abandoned.append(wanted)
        return abandoned

    def _end_spill(self, object_id: bytes) -> ObjectEntry | None:
        """The entry whose spill ended, or ``None`` if the object was freed meanwhile."""
        self.spilling -= 1
        gone = self.detached_spills.pop(object_id, None)
        if gone is None:
            entry = self.evictable[object_id]
            entry.spilling = False
            return entry
        gone.spilling = False
        self._release_extent(gone)
        self.out.append((DISK, DeleteFile(object_id)))
        return None

    # --- values out ------------------------------------------------------------------------------

    def on_get(self, now_ns: int, source: Address, message: Get) -> None:
        """Answer for every sealed object; remember the reader of the others."""
        for object_id in message.object_ids:
            entry = self.entry(object_id)
            if entry.state != SEALED:
                self.watch_stranger(now_ns, entry)
            if not message.fetch:
                self.subscribe(source, entry)
            elif entry.state == SEALED:
                self.send_ready(source, entry)
            else:
                if entry.waiters is None:
                    entry.waiters = [source]
                else:
                    entry.waiters.append(source)  # twice is right: one answer per Get
                self.want_copy(entry)

    def subscribe(self, reader: Address, entry: ObjectEntry) -> None:
        """Tell ``reader`` when the object is sealed, now if it is."""
        if entry.state >= SEALED:
            self.notify(reader, entry)
        elif entry.subscribers is None:
            entry.subscribers = [reader]
        elif reader not in entry.subscribers:
            entry.subscribers.append(reader)

    def unsubscribe(self, reader: Address, entry: ObjectEntry) -> None:
        """``reader`` no longer wants to know of the object, or see it."""
        for readers in (entry.subscribers, entry.waiters):
            while readers and reader in readers:
                readers.remove(reader)

    def notify(self, reader: Address, entry: ObjectEntry) -> None:
        """Tell that an object is sealed: a small value itself, of a large one only that it is here."""
        if self.is_alive(reader):
            value = entry.value
            if value is None or value.kind == EXTENT or value.kind == FILE:
                value = Value(AT_NODE, b"", 0, entry.size)
            self.out.append((reader, ObjectReady(entry.object_id, value)))

    def send_ready(self, reader: Address, entry: ObjectEntry) -> None:
        """Send a sealed object to a living reader."""
        if self.is_alive(reader):
            self.out.append((reader, self.ready(reader, entry)))

    def ready(self, reader: Address, entry: ObjectEntry) -> ObjectReady:
        """The message that shows a sealed object to ``reader``; an extent is pinned for it."""
        value = entry.value
        assert value is not None
        if value.kind == EXTENT:
            self.look_at(reader, entry)
            self.evictable[entry.object_id] = self.evictable.pop(entry.object_id)
        return ObjectReady(entry.object_id, value)

    def inputs(self, reader: Address, object_ids: tuple[bytes, ...]) -> tuple[ObjectReady, ...]:
        """Sealed inputs of a task as its worker is shown them; it gets those itself that are too much."""
        shown = []
        bytes_left = RUN_BYTES_MAX
        for object_id in object_ids:
            entry = self.objects[object_id]
            if bytes_left > 0:
                ready = self.ready(reader, entry)
                bytes_left -= len(ready.value.data)
            else:
                ready = ObjectReady(object_id, Value(AT_NODE))
            shown.append(ready)
        return tuple(shown)

    def on_unpin(self, now_ns: int, source: Address, message: Unpin) -> None:
        """A reader looks away, once per id."""
        mine = self.mapped.get(source, {})
        for object_id in message.object_ids:
            entries = mine.get(object_id)
            if entries:
                self.look_away(source, entries[-1])

    def look_at(self, reader: Address, entry: ObjectEntry) -> None:
        """The extent of an object stays what it is until :meth:`look_away`."""
        entry.maps += 1
        self.mapped.setdefault(reader, {}).setdefault(entry.object_id, []).append(entry)

    def look_away(self, reader: Address, entry: ObjectEntry) -> None:
        """Take one :meth:`look_at` back."""
        mine = self.mapped[reader]
        mine[entry.object_id].remove(entry)
        if not mine[entry.object_id]:
            del mine[entry.object_id]
            if not mine:
                del self.mapped[reader]
        self._unmap(entry)
        self.admit()

    def _unmap(self, entry: ObjectEntry) -> None:
        entry.maps -= 1
        if entry.maps == 0 and entry.detached:
            self._release_extent(entry)
        elif entry.maps == 0 and entry.on_disk and self.waiting_creates:
            self._to_file(entry)

    # --- end of life -----------------------------------------------------------------------------

    def free_plain(self, entry: ObjectEntry) -> bool:
        """Forget an object that nobody needs, if it is nothing but a small value; whether it was that."""
        value = entry.value
        if value is None or value.kind != INLINE or value.contained or entry.on_disk:
            return False
        if self.shared or self.copies or self.kept:
            return False
        del self.objects[entry.object_id]
        return True

    def free(self, entry: ObjectEntry) -> tuple[bytes, ...]:
        """Forget an object that nobody needs; returns the ids it contained."""
        del self.objects[entry.object_id]
        if not entry.known:
            self.strangers.pop(entry.object_id, None)
        if self.copies:
            self.copies.pop(entry.object_id, None)
        if self.kept:
            self.kept.pop(entry.object_id, None)
        value = entry.value
        if value is None or value.kind == INLINE:
            return value.contained if value is not None else ()
        if value.kind == EXTENT:
            del self.evictable[entry.object_id]
            entry.detached = True
            if entry.spilling:
                self.detached_spills[entry.object_id] = entry
            else:
                self._release_extent(entry)
                self.admit()
        if entry.on_disk:
            self.spilled_bytes -= entry.size
            self.out.append((DISK, DeleteFile(entry.object_id)))
        return value.contained

    def _release_extent(self, entry: ObjectEntry) -> None:
        if entry.maps == 0 and not entry.spilling and entry.offset >= 0:
            self.extents.free(entry.offset)
            entry.offset = -1

    def client_gone(self, client: Address) -> list[ObjectEntry]:
        """A process is gone: it looks at nothing and finishes nothing any more.

        Returns:
            the entries that nobody creates any more.
        """
        for entries in self.mapped.pop(client, {}).values():
            for entry in entries:
                self._unmap(entry)
        abandoned = list(self.creating.get(client, {}).values())
        for entry in abandoned:
            self._abandon(entry)
        self.admit()
        return abandoned

    def check(self) -> None:
        """Walk everything (I10, I11)."""
        maps: dict[bytes, int] = {}
        for mine in self.mapped.values():
            for object_id, entries in mine.items():
                maps[object_id] = maps.get(object_id, 0) + sum(not entry.detached for entry in entries)
        for object_id, entry in self.objects.items():
            invariant(entry.maps == maps.get(object_id, 0), "maps of", short(object_id), entry.maps)
            invariant((entry.state == SEALED) == (entry.value is not None), "value of", short(object_id))
            in_arena = entry.value is not None and entry.value.kind == EXTENT
            invariant(in_arena == (object_id in self.evictable), "evictable", short(object_id))
            invariant((entry.state == CREATING) == (entry.creator is not None), "creator", short(object_id))
            invariant(entry.state == SEALED or entry.maps == 0, "mapped before sealed", short(object_id))
        invariant(0 <= self.extents.used_bytes <= self.extents.capacity_bytes, "I11")
        self.extents.check()


class ClusterStore(Protocol):
    """What the store asks of the machines that know other nodes."""

    def foreign(self, entry: ObjectEntry) -> None:
        """Nobody on this node announced the object."""

    def announced(self, entry: ObjectEntry) -> None:
        """A shared object that nobody had announced here is going to be made here."""

    def sealed(self, entry: ObjectEntry) -> None:
        """A shared object has its value here."""

    def want_copy(self, entry: ObjectEntry) -> None:
        """Somebody here needs the bytes of a remote object."""

    def made_here(self, entry: ObjectEntry) -> None:
        """A remote object is about to be made here once more: no copy of it is to come."""

    def has_room(self, entry: ObjectEntry, kind: int) -> None:
        """There is room for the bytes of a remote object."""

    def evicted(self, entry: ObjectEntry) -> None:
        """The bytes of a copy are gone from here."""


def _never_written(entry: ObjectEntry) -> Value:
    """The value of an object that was reported as stored by a process that was given no room for it."""
    return faults.fault_value(faults.OBJECT_LOST, short(entry.object_id), "its maker did not write it")
