"""Copies of large objects from other nodes: when, from where, in which order (paper, section 4.2.3).

A copy is pulled in chunks, a bounded number of them under way, from all nodes that have the object in turn. A
source that is lost costs only the chunks it had not sent. Room is made before the first chunk is asked for,
whole, in the order in which copies were wanted; when memory and disk traffic leave none in the arena the
store gives a file instead, so copies can never wait for each other in a full store.

Machines move no bytes: ``ReceiveInto`` and ``SendChunk`` are effects for ``TRANSFER``. What is being sent is
looked at, like what a process here reads, until ``ChunkSent``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from zray.config import Config
from zray.core.machine import RUNTIME, TRANSFER, Address, Effect, invariant
from zray.core.node_store import CREATING, REMOTE, SEALED, NodeStore, ObjectEntry
from zray.core.references import References
from zray.core.sharing import SharedObject, Sharing
from zray.ids import short
from zray.protocol.cluster import ChunkArrived, ChunkSent, Pull, PullFailed, ReceiveInto, SendChunk
from zray.protocol.messages import EXTENT, FILE, Value

PATIENCES_MAX = 8
"""A transfer that has to ask again and again does so after so many times ``pull_patience_ns`` at last."""
SENDING_MAX = 16_384
"""Chunks on their way to other nodes: as many as a hundred and more of them ask for at once."""
_NS_PER_S = 1_000_000_000


class Transfer:
    """One object on its way here."""

    __slots__ = (
        "asked",
        "began_ns",
        "entry",
        "kind",
        "missing",
        "patience_ns",
        "progress_ns",
        "started",
        "turn",
    )

    def __init__(self, entry: ObjectEntry, config: Config) -> None:
        self.entry = entry
        self.kind = EXTENT  # where it is written: EXTENT or FILE
        # starts of chunks that were not asked for, in order; an empty object has one of no bytes
        self.missing = deque(range(0, max(entry.size, 1), config.chunk_bytes))
        self.asked: dict[int, Address] = {}  # start of a chunk -> who was asked
        self.started = False
        self.turn = 0
        self.began_ns = 0
        self.progress_ns = 0
        self.patience_ns = config.pull_patience_ns


class Transfers:
    """Copies under way. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        config: the size of a chunk, and how much may be under way.
        is_peer: whether a node is known to be alive.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        config: Config,
        store: NodeStore,
        references: References,
        sharing: Sharing,
        is_peer: Callable[[Address], bool],
    ) -> None:
        self.out = out
        self.config = config
        self.store = store
        self.references = references
        self.sharing = sharing
        self.is_peer = is_peer
        self.queued: OrderedDict[bytes, ObjectEntry] = OrderedDict()  # wanted, and not begun
        self.active: dict[bytes, Transfer] = {}
        # (to whom, object, start of the chunk) -> whose extent is read; ``None``: a file
        self.sending: dict[tuple[Address, bytes, int], ObjectEntry | None] = {}
        self.bandwidth = 0  # exponential average, bytes per second; 0: nothing came yet
        self.now_ns = 0

    @property
    def wake_at_ns(self) -> int | None:
        """When the transfer that got nothing for longest is to be asked for again."""
        begun = [each.progress_ns + each.patience_ns for each in self.active.values() if each.started]
        return min(begun, default=None)

    # --- wanting -----------------------------------------------------------------------------------

    def want(self, entry: ObjectEntry) -> None:
        """Somebody here needs the bytes of a remote object."""
        if entry.object_id not in self.active:
            self.queued[entry.object_id] = entry

    def flush(self, now_ns: int) -> None:
        """Begin as many transfers as may be under way, in the order in which they were wanted."""
        self.now_ns = now_ns
        while self.queued and len(self.active) < self.config.pulls_max:
            object_id, entry = self.queued.popitem(last=False)
            if entry.state == REMOTE and self.store.objects.get(object_id) is entry:
                self.active[object_id] = Transfer(entry, self.config)
                self.store.create_copy(entry)

    def sweep(self) -> None:
        """End the transfers of what was let go in this batch."""
        for object_id, transfer in list(self.active.items()):
            entry = transfer.entry
            if entry.state != CREATING or self.store.objects.get(object_id) is not entry:
                self._end(object_id)

    def has_room(self, entry: ObjectEntry, kind: int) -> None:
        """There is room for it: ask for the first chunks."""
        transfer = self.active[entry.object_id]
        transfer.kind, transfer.started = kind, True
        transfer.began_ns = transfer.progress_ns = self.now_ns
        self._say_where(transfer)
        self._ask(transfer)

    def _say_where(self, transfer: Transfer) -> None:
        entry = transfer.entry
        room = ReceiveInto(entry.object_id, transfer.kind, max(entry.offset, 0), entry.size)
        self.out.append((TRANSFER, room))

    def _ask(self, transfer: Transfer) -> None:
        entry = transfer.entry
        sources = self.sharing.shared[entry.object_id].nodes
        if not sources:
            self._give_up(transfer)
            return
        while transfer.missing and len(transfer.asked) < self.config.chunks_under_way_max:
            start = transfer.missing.popleft()
            transfer.turn += 1
            source = sources[transfer.turn % len(sources)]
            transfer.asked[start] = source
            size = min(self.config.chunk_bytes, entry.size - start)
            self.out.append((source, Pull(entry.object_id, start, size)))

    def _give_up(self, transfer: Transfer) -> None:
        """Nobody that was known to have it has it."""
        entry = transfer.entry
        self._end(entry.object_id)
        self.sharing.want_again(entry)

    def call_off(self, object_id: bytes) -> None:
        """No copy of an object is wanted any more."""
        self.queued.pop(object_id, None)
        if object_id in self.active:
            self._end(object_id)

    def _end(self, object_id: bytes) -> None:
        del self.active[object_id]
        self.out.append((TRANSFER, ReceiveInto(object_id, EXTENT, 0, 0)))

    # --- coming ------------------------------------------------------------------------------------

    def on_chunk_arrived(self, now_ns: int, source: Address, message: ChunkArrived) -> None:
        """Some bytes are where they belong."""
        transfer = self.active.get(message.object_id)
        if transfer is None or source != RUNTIME or transfer.asked.pop(message.start, None) is None:
            return
        transfer.progress_ns = now_ns
        if transfer.missing:
            self._ask(transfer)
        elif not transfer.asked:
            self._complete(now_ns, transfer)

    def _complete(self, now_ns: int, transfer: Transfer) -> None:
        entry = transfer.entry
        self._end(entry.object_id)
        self._learn_bandwidth(now_ns, transfer)
        contained = self.sharing.shared[entry.object_id].contained
        self.references.contain(now_ns, contained)
        if transfer.kind == EXTENT and entry.object_id not in self.store.kept:  # before sealing may free it
            self.store.copies[entry.object_id] = entry
        self.store.seal(entry, Value(EXTENT, contained=contained))
        self.references.free_if_unneeded(entry)

    def _learn_bandwidth(self, now_ns: int, transfer: Transfer) -> None:
        """Exponential average of what transfers get, together (paper, section 4.2.2).

        Small objects say more of the latency than of the bandwidth, and are left out.
        """
        took_ns, size = now_ns - transfer.began_ns, transfer.entry.size
        if took_ns <= 0 or size < self.config.chunk_bytes:
            return
        sample = size * _NS_PER_S * (len(self.active) + 1) // took_ns
        alpha = self.config.run_average_alpha if self.bandwidth else 1.0
        self.bandwidth = max(1, self.bandwidth + round(alpha * (sample - self.bandwidth)))

    def wanted_bytes(self) -> int:
        """Bytes of all copies that are wanted and have not come."""
        queued = sum(entry.size for entry in self.queued.values())
        return queued + sum(transfer.entry.size for transfer in self.active.values())

    def on_pull_failed(self, now_ns: int, source: Address, message: PullFailed) -> None:
        """A node does not have what it was asked for."""
        transfer = self.active.get(message.object_id)
        shared = self.sharing.shared.get(message.object_id)
        if transfer is not None and shared is not None and source in shared.nodes:
            self._lose_source(transfer, shared, source)

    def _lose_source(self, transfer: Transfer, shared: SharedObject, source: Address) -> None:
        shared.nodes = tuple(node for node in shared.nodes if node != source)
        for start, node in list(transfer.asked.items()):
            if node == source:
                del transfer.asked[start]
                transfer.missing.append(start)
        if transfer.started:
            self._ask(transfer)

    def node_dead(self, node: Address) -> None:
        """Chunks that a dead node was asked for are asked of others."""
        for object_id, transfer in list(self.active.items()):
            shared = self.sharing.shared[object_id]
            if node in shared.nodes or node in transfer.asked.values():
                self._lose_source(transfer, shared, node)

    def on_tick(self, now_ns: int) -> None:
        """Ask again for chunks that did not come: their link was lost while both ends lived.

        Or somebody who had not heard of a death named a dead node as a source after it was known here. Or
        there was no room for them after all, as the disk had filled up. Each time later than the last: where
        a link is slow, what comes twice would make it slower.
        """
        for transfer in list(self.active.values()):
            if transfer.started and transfer.progress_ns + transfer.patience_ns <= now_ns:
                transfer.progress_ns = now_ns
                transfer.patience_ns = min(
                    2 * transfer.patience_ns, PATIENCES_MAX * self.config.pull_patience_ns
                )
                shared = self.sharing.shared[transfer.entry.object_id]
                shared.nodes = tuple(filter(self.is_peer, shared.nodes))
                transfer.missing.extend(transfer.asked)
                transfer.asked.clear()
                self._say_where(transfer)
                self._ask(transfer)

    # --- going -------------------------------------------------------------------------------------

    def on_pull(self, now_ns: int, source: Address, message: Pull) -> None:
        """Another node wants bytes of an object that is here."""
        object_id, start, size = message.object_id, message.start, message.size
        entry = self.store.objects.get(object_id)
        value = None if entry is None or entry.state != SEALED else entry.value
        if (source, object_id, start) in self.sending or len(self.sending) >= SENDING_MAX:
            return  # it is on its way, over a slow link; or who asks may ask again
        if entry is None or value is None or value.kind not in (EXTENT, FILE):
            self.out.append((source, PullFailed(object_id)))
        elif 0 <= start <= start + size <= entry.size and size >= 0:
            read = entry if value.kind == EXTENT else None
            self.sending[source, object_id, start] = read
            if read is not None:
                self.store.look_at(TRANSFER, read)
            chunk = SendChunk(source, object_id, value.kind, max(entry.offset, 0), start, size)
            self.out.append((TRANSFER, chunk))

    def on_chunk_sent(self, now_ns: int, source: Address, message: ChunkSent) -> None:
        """Nobody reads the bytes of a chunk any more."""
        key = message.node_id, message.object_id, message.start
        if source != RUNTIME:
            return
        entry = self.sending.pop(key, None)
        if entry is not None:
            self.store.look_away(TRANSFER, entry)

    def check(self) -> None:
        """What is under way has room or waits for it, within bounds; what is being sent is looked at."""
        looked_at = sum(map(len, self.store.mapped.get(TRANSFER, {}).values()))
        sent = sum(entry is not None for entry in self.sending.values())
        invariant(len(self.sending) <= SENDING_MAX, "I15 chunks that are sent:", len(self.sending))
        invariant(looked_at == sent, "chunks that are sent:", sent, looked_at)
        invariant(len(self.active) <= self.config.pulls_max, "I15 transfers", len(self.active))
        for object_id, transfer in self.active.items():
            invariant(transfer.entry.creator == TRANSFER, "a transfer without room:", short(object_id))
            invariant(len(transfer.asked) <= self.config.chunks_under_way_max, "I15 chunks", short(object_id))
