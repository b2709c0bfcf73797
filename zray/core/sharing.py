"""What a node shares with others: it tells the directory, and lets nothing leave too early.

An object is *shared* from the moment its reference leaves its node, or came from another. Of a shared object
the directory of its shard hears that this node holds it, has a copy of it, or will make it
(``object_directory.py``); of any other object nobody hears anything.

Two rules make this right across links, and one queue, the *gate*, keeps both. What leaves the node waits
in it until everything that was said before is acknowledged:

- *lineage before visibility*: the records of the tasks that made what leaves (paper, section 4.2.1), and the
  descriptors and the code that those name;
- *an acquire is acknowledged before what it came out of is released*: the ``HOLD`` of all that came of it.

The proof is in ``docs/decisions/0010-shared-objects.md``. The gate is one queue for all links, so a shard
that is away stops what goes to other nodes, and nothing of what stays on this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from zray.core.lineage import Lineage
from zray.core.machine import RUNTIME, TRANSFER, Address, Effect, invariant
from zray.core.node_store import PENDING, REMOTE, SEALED, NodeStore, ObjectEntry
from zray.core.references import References
from zray.core.table_writer import TableWriter
from zray.ids import shard_of, short
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
    FreeObjects,
    ObjectFound,
    ShareAcked,
    ShareReset,
    ShareUpdate,
    ShareUpdates,
)
from zray.protocol.messages import AT_NODE, EXTENT, FAULT, FILE, Value, Warn

RESEND_NS = 1_000_000_000
HELD_BACK_NS = 3_000_000_000
"""How long the front of the gate may wait before the operator is told for which shards."""


class SharedObject:
    """What other nodes were told of one object, and where it is; found in ``Sharing.shared``."""

    __slots__ = ("announced", "contained", "copied", "expected", "held", "nodes", "object_id", "wanted")

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id
        self.held = False  # told HOLD, and not DROP since
        self.expected = False  # told EXPECT
        self.announced = False  # COPY is in the gate, or told
        self.copied = False  # told COPY, and not UNCOPY since
        self.wanted = False  # told WANT: nobody on this node makes it
        self.nodes: tuple[bytes, ...] = ()  # that have a copy
        self.contained: tuple[bytes, ...] = ()  # of the value in those copies


class _DirectoryLink:
    """The stream of updates to one shard."""

    __slots__ = (
        "acked", "address", "number", "pending", "resend_at_ns", "sequence", "silent", "snapshot", "unacked",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.number = 1
        self.sequence = 0  # of the last batch sent; goes on through all streams
        self.acked = 0
        self.snapshot = True  # the next batch is the first of a stream
        self.silent = False  # no answer in time: only the oldest batch is sent until one comes
        self.pending: list[ShareUpdate] = []
        self.unacked: deque[ShareUpdates] = deque()
        self.resend_at_ns = 0

    def mark(self) -> int:
        return self.sequence + bool(self.pending)


class _Waiting(NamedTuple):
    """Something at the gate, and the acknowledgements that it waits for."""

    records: tuple[int, ...]
    holds: tuple[int, ...]
    rows: int
    number: int
    destination: Address
    message: Any  # for an empty destination a ShareUpdate, without its value


class Sharing:
    """Shared objects of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        shards: the address that serves each shard now, by number; see :meth:`shard_moved`.
        record_pending: writes the record of an unfinished task, given its return object.
        remind: tells a shard once more who is alive.
        store, references, lineage, tables: the machines of the same node.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        shards: Sequence[Address],
        store: NodeStore,
        references: References,
        lineage: Lineage,
        tables: TableWriter,
        record_pending: Callable[[bytes], None],
        remind: Callable[[Address], None],
    ) -> None:
        self.out = out
        self.store = store
        self.references = references
        self.lineage = lineage
        self.tables = tables
        self.record_pending = record_pending
        self.remind = remind
        self.shared: dict[bytes, SharedObject] = store.shared
        self.links = [_DirectoryLink(address) for address in shards]
        self.by_address = {link.address: link for link in self.links}
        self.gate: deque[_Waiting] = deque()
        self.numbered = 0  # that ever came to the gate
        self._front: _Waiting | None = None  # of the gate at the end of the last batch
        self._front_since_ns = 0
        self._is_told = False
        self.active = False  # whether there are other nodes
        self.evictions: list[ObjectEntry] = []  # of this batch
        self._finding: ObjectEntry | None = None

    @property
    def wake_at_ns(self) -> int | None:
        """When updates that were not acknowledged are sent again."""
        return min((link.resend_at_ns for link in self.links if link.unacked), default=None)

    # --- what is shared ----------------------------------------------------------------------------

    def expose(self, object_ids: Iterable[bytes]) -> None:
        """References to these are about to leave: from now on the directory counts them."""
        open_ids = list(object_ids)
        while open_ids:
            entry = self.store.objects.get(open_ids.pop())
            if entry is None:
                continue
            shared = self.hold(entry)
            if entry.state == SEALED and not shared.announced:
                open_ids += self._announce(entry, shared)
            elif entry.state < SEALED and not (shared.expected or shared.wanted):
                self.record_pending(entry.object_id)
                shared.expected = True
                self._update(EXPECT, entry.object_id)

    def hold(self, entry: ObjectEntry) -> SharedObject:
        """The object is shared, and something on this node needs it."""
        shared = self.shared.get(entry.object_id)
        if shared is None:
            shared = self.shared[entry.object_id] = SharedObject(entry.object_id)
        if not shared.held:
            shared.held = True
            self._update(HOLD, entry.object_id)
        return shared

    def _announce(self, entry: ObjectEntry, shared: SharedObject) -> tuple[bytes, ...]:
        """Tell where the value is, once its lineage is acknowledged; what it contains is exposed as well."""
        assert entry.value is not None
        shared.announced = True
        if not shared.expected:  # else the directory waits for it anyway
            self._update(COMING, entry.object_id)
        self._wait(b"", ShareUpdate(COPY, entry.object_id))
        return entry.value.contained

    def foreign(self, entry: ObjectEntry) -> None:
        """Nobody on this node announced the object: hold it, and look it up or subscribe."""
        shared = self.hold(entry)
        if not shared.wanted:
            shared.wanted = True
            self._update(WANT, entry.object_id)

    def announced(self, entry: ObjectEntry) -> None:
        """An object that was looked for elsewhere is made on this node after all."""
        shared = self.shared[entry.object_id]
        if shared.wanted:
            shared.wanted, shared.expected = False, True
            self._update(EXPECT, entry.object_id)

    def want_again(self, entry: ObjectEntry) -> None:
        """No node that was known to have the object has it: ask once more."""
        self.store.lose(entry)
        if entry.state < SEALED:
            shared = self.hold(entry)
            shared.wanted, shared.nodes = True, ()
            if shared.expected:  # who made it is dead, perhaps before the directory heard that it was made
                self._update(HOME, entry.object_id)
            self._update(WANT, entry.object_id)

    def refuse(self, object_id: bytes) -> None:
        """This node was chosen to make a lost object again and does not."""
        self._update(REFUSE, object_id)

    def made_again(self, entry: ObjectEntry) -> None:
        """A lost object is about to be made on this node."""
        entry.known = True
        shared = self.hold(entry)
        shared.wanted, shared.expected, shared.announced, shared.copied = False, True, False, False
        shared.nodes = ()
        self._update(EXPECT, entry.object_id)

    def adopt(self, entry: ObjectEntry, value: Value, nodes: tuple[bytes, ...], *, is_home: bool) -> None:
        """A large object is in the stores of other nodes; ``is_home``: this node follows its lineage."""
        shared = self.hold(entry)
        shared.nodes, shared.contained = nodes, value.contained
        if is_home and not shared.expected:
            shared.expected = True
            self._update(EXPECT, entry.object_id)
        self.store.found_elsewhere(entry, value.size)

    def sealed(self, entry: ObjectEntry) -> None:
        """A shared object has its value on this node."""
        shared = self.shared[entry.object_id]
        if self._finding is not entry and not shared.announced:
            self.expose(self._announce(entry, shared))

    def evicted(self, entry: ObjectEntry) -> None:
        """A copy leaves to make room; the rest follows at the end of the batch."""
        self.evictions.append(entry)

    def _settle_evictions(self) -> None:
        """Tell that copies are gone, and need no more what they contained."""
        evictions, self.evictions = self.evictions, []
        for entry in evictions:
            shared = self.shared.get(entry.object_id)
            if shared is not None:
                if shared.copied or shared.announced:
                    self._update(UNCOPY, entry.object_id)
                shared.announced = shared.copied = False
                for object_id in shared.contained:
                    self.references.unpin(self.store.objects[object_id])
                if entry.holders or entry.pins:
                    self.hold(entry)  # it may have been let go of, and needed again while the copy was here
                else:
                    self.references.free_if_unneeded(entry)

    # --- what is not needed any more ---------------------------------------------------------------

    def unneeded(self, entry: ObjectEntry) -> None:
        """Nothing on this node needs a shared object: let go of it once all that came out of it is held."""
        shared = self.shared[entry.object_id]
        if _is_made_here(entry, shared):
            return  # and will be looked at again once it is sealed
        if shared.held:
            self._wait(b"", ShareUpdate(DROP, entry.object_id))
        elif not (shared.copied or shared.announced or shared.expected):
            self._forget(entry)

    def _let_go(self, object_id: bytes) -> None:
        """``DROP`` is at the front of the gate: say it, unless the object is needed again."""
        shared, entry = self.shared.get(object_id), self.store.objects.get(object_id)
        if shared is None or entry is None or not shared.held or entry.holders or entry.pins:
            return
        shared.held = False
        self._update(DROP, object_id)
        if not (shared.copied or shared.announced or shared.expected):
            self._forget(entry)

    def _forget(self, entry: ObjectEntry) -> None:
        del self.shared[entry.object_id]
        self.store.lose(entry)
        entry.known = False
        entry.dependents = None  # tasks that were dropped: others would pin it
        self.references.free_if_unneeded(entry)

    def on_free_objects(self, now_ns: int, source: Address, message: FreeObjects) -> None:
        """No node holds these. What this one needs again meanwhile, it shares anew."""
        for object_id in message.object_ids:
            shared, entry = self.shared.get(object_id), self.store.objects.get(object_id)
            if shared is None or entry is None or source not in self.by_address:
                continue
            # Held and not needed: it was looked for again after it was let go of, and that word began a row
            # anew, which ends with the DROP that waits at the gate.
            if entry.holders or entry.pins or shared.held or _is_made_here(entry, shared):
                self._share_anew(entry, shared)
            else:
                self._forget(entry)

    def _share_anew(self, entry: ObjectEntry, shared: SharedObject) -> None:
        """The row is gone from the directory: say again all that it said."""
        shared.held = True
        self._update(HOLD, entry.object_id)
        if shared.expected:
            self._update(EXPECT if _will_be_told(entry, shared) else HOME, entry.object_id)
        if shared.copied:
            self.say_copied(entry)
        elif _waits_at_gate(entry, shared):
            self._update(COMING, entry.object_id)
        elif shared.wanted and entry.state == PENDING:
            self._update(WANT, entry.object_id)

    # --- what the directory says -------------------------------------------------------------------

    def on_object_found(self, now_ns: int, source: Address, message: ObjectFound) -> None:
        """An object that was wanted has a value, or a fault."""
        object_id, value = message.object_id, message.value
        entry = self.store.objects.get(object_id)
        shared = self.shared.get(object_id)
        if entry is None or shared is None or source not in self.by_address:
            return
        if value.kind == AT_NODE:
            shared.nodes, shared.contained = message.nodes, value.contained
            self.store.found_elsewhere(entry, value.size)
            return
        if _is_made_here(entry, shared):
            return
        if value.kind == FAULT:
            self.store.lose(entry)
        if entry.state != PENDING or value.kind in (EXTENT, FILE):
            return
        self.references.contain(now_ns, value.contained)
        self._finding = entry
        self.store.seal(entry, value)
        self._finding = None
        self.references.free_if_unneeded(entry)

    def on_share_acked(self, now_ns: int, source: Address, message: ShareAcked) -> None:
        """A directory has everything up to a sequence number."""
        link = self.by_address.get(source)
        if link is None or link.number != message.stream:
            return
        link.acked = max(link.acked, message.sequence)
        while link.unacked and link.unacked[0].sequence <= message.sequence:
            link.unacked.popleft()
        link.resend_at_ns = now_ns + RESEND_NS
        if link.silent:
            link.silent = False
            self.out.extend((source, batch) for batch in link.unacked)

    def on_share_reset(self, now_ns: int, source: Address, message: ShareReset) -> None:
        """A directory has lost what it knew: say everything again."""
        link = self.by_address.get(source)
        if link is not None and link.number == message.stream:
            self.restate(source)

    def shard_moved(self, number: int, address: Address) -> None:
        """Another replica serves a shard from now on; what was not acknowledged is said to it, restated."""
        link = self.links[number]
        del self.by_address[link.address]
        link.address = address
        self.by_address[address] = link

    def restate(self, shard: Address) -> None:
        """Begin a new stream with all that is shared."""
        link = self.by_address.get(shard)
        if link is None or not self.active:
            return
        link.number += 1
        link.unacked.clear()
        link.snapshot = True
        link.pending = []
        for object_id, shared in self.shared.items():
            if self._link_of(object_id) is link:
                self._restate_one(object_id, shared)

    def _restate_one(self, object_id: bytes, shared: SharedObject) -> None:
        entry = self.store.objects[object_id]
        if shared.held:
            self._update(HOLD, object_id)
        if shared.expected:
            self._update(EXPECT if _will_be_told(entry, shared) else HOME, object_id)
        if shared.copied:
            self.say_copied(entry)
        elif _waits_at_gate(entry, shared):
            self._update(COMING, object_id)
        if shared.wanted and entry.state == PENDING:
            self._update(WANT, object_id)

    # --- the gate ----------------------------------------------------------------------------------

    def depart(self, destination: Address, message: Any) -> int:
        """Send to another node, after all that was said before is acknowledged. Keeps the order.

        Returns:
            its number at the gate: see :meth:`has_left`.
        """
        return self._wait(destination, message)

    def has_left(self, number: int) -> bool:
        """Whether what came to the gate with this number waits there no more.

        What does is not to be repeated: a shard may be away for long, and the gate has no other bound.
        """
        return not self.gate or self.gate[0].number > number

    def _wait(self, destination: Address, message: Any) -> int:
        self.numbered += 1
        holds, records = tuple([link.mark() for link in self.links]), self.lineage.mark()
        self.gate.append(_Waiting(records, holds, self.tables.tokens, self.numbered, destination, message))
        return self.numbered

    def _may_leave(self, waiting: _Waiting) -> bool:
        holds = zip(self.links, waiting.holds, strict=True)
        is_known = self.lineage.passed(waiting.records) and self.tables.passed(waiting.rows)
        return is_known and all(mark <= link.acked for link, mark in holds)

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.destination:
            self.out.append((waiting.destination, waiting.message))
        elif waiting.message.kind == DROP:
            self._let_go(waiting.message.object_id)
        else:
            self._copied(waiting.message.object_id)

    def _copied(self, object_id: bytes) -> None:
        shared, entry = self.shared.get(object_id), self.store.objects.get(object_id)
        if shared is None or entry is None:
            return
        if entry.state != SEALED or not shared.announced:
            self._update(UNCOPY, object_id)  # it was said to be coming
            return
        shared.copied = True
        self.say_copied(entry)

    def _look_at_front(self, now_ns: int, front: _Waiting) -> None:
        """Tell, once, if the same word has been at the front for long: shards must be away."""
        if front is not self._front:
            self._front, self._front_since_ns, self._is_told = front, now_ns, False
        elif not self._is_told and now_ns - self._front_since_ns >= HELD_BACK_NS:
            self._is_told = True
            numbers = ", ".join(map(str, self._awaited_by(front)))
            text = (
                f"shard {numbers} of the control store does not answer; what goes to other nodes waits for it"
            )
            self.out.append((RUNTIME, Warn(text)))

    def _awaited_by(self, waiting: _Waiting) -> list[int]:
        """The shards that did not acknowledge yet what something at the gate waits for."""
        found = self.lineage.awaited_by(waiting.records) + self.tables.awaited_by(waiting.rows)
        found += [number for number, link in enumerate(self.links) if waiting.holds[number] > link.acked]
        return sorted(dict.fromkeys(found))

    def held_back_by(self, now_ns: int) -> list[int]:
        """The shards because of which nothing has left this node for so long that they must be away."""
        if self._front is None or now_ns - self._front_since_ns < RESEND_NS:
            return []
        return self._awaited_by(self._front)

    # --- sending -----------------------------------------------------------------------------------

    def _link_of(self, object_id: bytes) -> _DirectoryLink:
        return self.links[shard_of(object_id, len(self.links))]

    def _update(self, kind: int, object_id: bytes) -> None:
        self._link_of(object_id).pending.append(ShareUpdate(kind, object_id))

    def say_copied(self, entry: ObjectEntry) -> None:
        """A copy is here, and whether it is kept as one of several."""
        object_id, copies = entry.object_id, self.store.kept.get(entry.object_id, 0)
        update = ShareUpdate(COPY, object_id, _as_shared(entry), copies)
        self._link_of(object_id).pending.append(update)

    def flush(self, now_ns: int) -> None:
        """Once per batch: let leave what may, and send what was gathered."""
        if self.evictions:
            self._settle_evictions()
        gate = self.gate
        while gate and self._may_leave(gate[0]):
            self._leave(gate.popleft())
        if gate:
            self.lineage.hurry(now_ns)
            self._look_at_front(now_ns, gate[0])
        else:
            self._front = None
        for link in self.links:
            if link.pending or (link.snapshot and self.active):
                self._send(now_ns, link)

    def _send(self, now_ns: int, link: _DirectoryLink) -> None:
        link.sequence += 1
        batch = ShareUpdates(link.number, link.sequence, tuple(link.pending), link.snapshot)
        link.pending, link.snapshot = [], False
        if not link.unacked:
            link.resend_at_ns = now_ns + RESEND_NS
        link.unacked.append(batch)
        self.out.append((link.address, batch))

    def on_tick(self, now_ns: int) -> None:
        """Repeat the oldest batch that a silent directory did not acknowledge.

        It hears only nodes that it knows to be alive, and that word may be what was lost.
        """
        for link in self.links:
            if link.unacked and link.resend_at_ns <= now_ns:
                link.resend_at_ns = now_ns + RESEND_NS
                link.silent = True
                self.remind(link.address)
                self.out.append((link.address, link.unacked[0]))

    # --- other nodes -------------------------------------------------------------------------------

    def node_dead(self, node: Address) -> None:
        """What only a dead node had is to be found, or made, again. Every copy here may be the last."""
        self.gate = deque(waiting for waiting in self.gate if waiting.destination != node)
        self.store.copies.clear()
        for object_id, shared in list(self.shared.items()):
            if node in shared.nodes:
                shared.nodes = tuple(one for one in shared.nodes if one != node)
                entry = self.store.objects[object_id]
                if not shared.nodes and entry.state == REMOTE:
                    self.want_again(entry)
                    self.references.free_if_unneeded(entry)  # it may have been let go already

    def check(self) -> None:
        """Every shared object is known to the store, and what needs it is counted."""
        for object_id, shared in self.shared.items():
            entry = self.store.objects.get(object_id)
            invariant(entry is not None, "shared and unknown:", short(object_id))
            assert entry is not None
            invariant(not shared.copied or entry.state == SEALED, "no copy of", short(object_id))
            kept = shared.held or shared.announced or shared.expected
            invariant(kept, "shared without reason:", short(object_id))


def _is_made_here(entry: ObjectEntry, shared: SharedObject) -> bool:
    """Whether this node is about to give the object its value, and not as a copy."""
    return entry.state < SEALED and not shared.wanted and entry.creator != TRANSFER


def _will_be_told(entry: ObjectEntry, shared: SharedObject) -> bool:
    """Whether this node is still to announce the value, which a directory without one has to wait for."""
    return _is_made_here(entry, shared) or _waits_at_gate(entry, shared)


def _waits_at_gate(entry: ObjectEntry, shared: SharedObject) -> bool:
    """Whether the value is here and the word of it waits until its lineage is acknowledged."""
    return entry.state == SEALED and shared.announced and not shared.copied


def _as_shared(entry: ObjectEntry) -> Value:
    """The value as others are told of it: small ones themselves, of large ones size and content."""
    value = entry.value
    assert value is not None
    if value.kind in (EXTENT, FILE):
        return Value(AT_NODE, b"", 0, entry.size, value.contained)
    return value
