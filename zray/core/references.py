"""How long an object and its lineage must live on this node.

An object is needed while a process holds it, an unfinished task takes it or borrows it, or a live object
contains it. The lineage of a task is needed while one of its return values is, or while the lineage of a
task that consumed one is, because rebuilding that one could mean running this one again (paper, section
4.2.3). When the last need ends the object is freed, and so on through what it contained.

The one rule that keeps this right across processes: *an acquire is acknowledged before what it came out of
is released*. On one link the order of messages does that; across links the sender waits for ``Acked``.

What one process passes to another (``HoldFor``) is *handed*: counted apart from what the receiver holds until
it takes it over. Its own ``Release`` of the same object may be on the way, and speaks only of its own hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from zray.core.machine import Address, invariant
from zray.core.node_store import PENDING, SEALED, NodeStore, ObjectEntry
from zray.ids import producer_of, short


class References:
    """Counts of need, per object and per task. Pure; works on the entries of a :class:`NodeStore`.

    Args:
        store: the index whose entries are counted and freed.
        on_lineage_released: called with a task id once its record can never be needed again.
        on_actor_released: called with the creation object of an actor that nobody holds any more.
        lineage_max: tasks whose lineage is followed; the oldest are given up first (I15).
    """

    def __init__(
        self,
        store: NodeStore,
        *,
        on_lineage_released: Callable[[bytes], None],
        on_actor_released: Callable[[bytes], None],
        lineage_max: int,
    ) -> None:
        self.store = store
        self.on_lineage_released = on_lineage_released
        self.on_actor_released = on_actor_released
        self.lineage_max = lineage_max
        self.held: dict[Address, dict[bytes, None]] = {}
        # receiver -> actor that gives -> object -> times; each time is a pin
        self.handed: dict[Address, dict[bytes, dict[bytes, int]]] = {}
        # Task -> needs of its record, the oldest first. Ordered by links: the first of a plain dictionary is
        # found by a walk over all that was deleted before it.
        self.lineage: OrderedDict[bytes, int] = OrderedDict()
        self.producers: dict[bytes, tuple[bytes, ...]] = {}  # of what these tasks took, if they took any
        self.lineage_truncated = 0
        self.on_unneeded: Callable[[ObjectEntry], None] | None = None  # of shared objects

    # --- processes -------------------------------------------------------------------------------

    def hold(self, client: Address, entry: ObjectEntry) -> None:
        """``client`` holds the object from now on; once is as good as twice."""
        held = self.held.get(client)
        if held is None:
            held = self.held[client] = {}
        if entry.object_id not in held:
            held[entry.object_id] = None
            entry.holders += 1

    def expect(self, client: Address, object_id: bytes) -> ObjectEntry:
        """``client`` submits the task that makes this object: it holds it and is told once it is sealed."""
        store = self.store
        entry = store.objects.get(object_id)
        if entry is None:  # as a rule: nothing of it can be known yet
            entry = store.objects[object_id] = ObjectEntry(object_id)
            entry.known = True
        else:
            store.announce(object_id)
        self.hold(client, entry)
        store.subscribe(client, entry)
        return entry

    def expect_all(self, client: Address, object_ids: Sequence[bytes]) -> list[ObjectEntry]:
        """:meth:`expect` for all that one task makes."""
        entries: list[ObjectEntry] = []
        if not object_ids:
            return entries
        objects, held = self.store.objects, self.held.setdefault(client, {})
        for object_id in object_ids:
            if object_id in objects:
                entries.append(self.expect(client, object_id))
                continue
            entry = objects[object_id] = ObjectEntry(object_id)
            entry.known = True
            entry.holders = 1
            entry.subscribers = [client]
            held[object_id] = None
            entries.append(entry)
        return entries

    def holds(self, client: Address, entry: ObjectEntry) -> bool:
        """Whether ``client`` holds the object."""
        return entry.object_id in self.held.get(client, ())

    def acquire(self, now_ns: int, client: Address, object_ids: Iterable[bytes]) -> None:
        """``client`` holds these, known here or not yet."""
        for object_id in object_ids:
            entry = self.store.entry(object_id)
            self.store.watch_stranger(now_ns, entry)
            self.hold(client, entry)

    def hand(self, now_ns: int, actor_id: bytes, receiver: Address, object_ids: Iterable[bytes]) -> None:
        """Keep these for ``receiver`` until it takes them over, or knows that the giving actor is dead."""
        handed = self.handed.setdefault(receiver, {}).setdefault(actor_id, {})
        self.contain(now_ns, object_ids)
        for object_id in object_ids:
            handed[object_id] = handed.get(object_id, 0) + 1

    def take_over(self, now_ns: int, client: Address, actor_id: bytes, object_ids: Iterable[bytes]) -> None:
        """``client`` has received what an actor handed to it, and holds it itself from now on."""
        self.acquire(now_ns, client, object_ids)
        for object_id in object_ids:
            self._taken(client, actor_id, object_id)

    def _taken(self, client: Address, actor_id: bytes, object_id: bytes) -> None:
        givers = self.handed.get(client, {})
        handed = givers.get(actor_id, {})
        if object_id not in handed:
            return
        handed[object_id] -= 1
        if not handed[object_id]:
            del handed[object_id]
        if not handed:
            del givers[actor_id]
        if not givers:
            del self.handed[client]
        self.unpin(self.store.objects[object_id])

    def let_go(self, client: Address, actor_id: bytes) -> None:
        """``client`` takes nothing more of what a dead actor handed to it."""
        givers = self.handed.get(client, {})
        handed = givers.pop(actor_id, {})
        if not givers:
            self.handed.pop(client, None)
        for object_id, times in handed.items():
            entry = self.store.objects[object_id]
            entry.pins -= times - 1
            self.unpin(entry)

    def release(self, client: Address, object_ids: Iterable[bytes]) -> None:
        """``client`` does not hold these any more; what it never held is ignored."""
        held = self.held.get(client)
        if held is None:
            return
        store = self.store
        objects = store.objects
        maker = b""  # of what was freed last, and how much of it was
        freed = 0
        for object_id in object_ids:
            if object_id not in held:
                continue
            del held[object_id]
            entry = objects[object_id]
            entry.holders -= 1
            if entry.subscribers or entry.waiters:
                store.unsubscribe(client, entry)
            if entry.holders or entry.pins:
                continue
            if entry.is_actor or not store.free_plain(entry):
                self.free_if_unneeded(entry)
            elif entry.counted:
                entry.counted = False
                if object_id[:12] != maker:  # the results of one task come one after the other
                    if freed:
                        self._lineage_unneeded(producer_of(maker), freed)
                    maker = object_id[:12]
                    freed = 0
                freed += 1
        if freed:
            self._lineage_unneeded(producer_of(maker), freed)

    def client_gone(self, client: Address) -> None:
        """Everything that a process held, or was about to, is released."""
        held = self.held.get(client)
        if held is not None:
            self.release(client, list(held))
            del self.held[client]
        for actor_id in list(self.handed.get(client, {})):
            self.let_go(client, actor_id)

    # --- tasks and containers --------------------------------------------------------------------

    def pin(self, entry: ObjectEntry) -> None:
        """An unfinished task or a live container needs the object."""
        entry.pins += 1

    def unpin(self, entry: ObjectEntry) -> None:
        """Take one :meth:`pin` back."""
        entry.pins -= 1
        self.free_if_unneeded(entry)

    def contain(self, now_ns: int, object_ids: Iterable[bytes]) -> None:
        """A sealed object contains these: they live at least as long."""
        for object_id in object_ids:
            entry = self.store.entry(object_id)
            self.store.watch_stranger(now_ns, entry)
            entry.pins += 1

    def free_if_unneeded(self, entry: ObjectEntry) -> None:
        """Free the object, and what only it contained, if nothing needs it.

        An object that is still to come is kept: whoever makes it finds the entry and frees it then.
        """
        if entry.holders or entry.pins:
            return
        unneeded = [entry]
        objects = self.store.objects
        while unneeded:
            entry = unneeded.pop()
            if self.store.shared and entry.object_id in self.store.shared:
                assert self.on_unneeded is not None
                self.on_unneeded(entry)
                continue
            if entry.state < SEALED and self._to_come(entry):
                continue
            contained = self.store.free(entry)
            if entry.is_actor:
                self.on_actor_released(entry.object_id)
            self._output_gone(entry)
            for object_id in contained:
                inner = objects[object_id]
                inner.pins -= 1
                if not inner.holders and not inner.pins:
                    unneeded.append(inner)

    @staticmethod
    def _to_come(entry: ObjectEntry) -> bool:
        """Whether somebody makes an object without a value, or waits for it until it counts as lost."""
        return bool(
            entry.known or entry.state != PENDING or entry.dependents or entry.waiters or entry.subscribers
        )

    # --- lineage ---------------------------------------------------------------------------------

    @staticmethod
    def newly_made(entries: Iterable[ObjectEntry]) -> int:
        """How many need the record of their maker from now on: each counts once, however often it is made."""
        found = 0
        for entry in entries:
            if not entry.counted:
                entry.counted = True
                found += 1
        return found

    def follow_lineage(self, task_id: bytes, new_outputs: int, deps: tuple[bytes, ...]) -> None:
        """Keep a task's record until its outputs and its consumers' records are gone.

        A task that ran again made only some of its outputs anew; the others are counted already.
        """
        lineage = self.lineage
        if task_id in lineage:
            lineage[task_id] += new_outputs
            return
        if deps:
            producers = dict.fromkeys(producer_of(dep) for dep in deps)
            followed = tuple(producer for producer in producers if producer in lineage)
            for producer in followed:
                lineage[producer] += 1
            if followed:
                self.producers[task_id] = followed
        lineage[task_id] = new_outputs
        if len(lineage) > self.lineage_max:
            self._truncate()

    def _output_gone(self, entry: ObjectEntry) -> None:
        if entry.counted:
            entry.counted = False
            self._lineage_unneeded(producer_of(entry.object_id))

    def _lineage_unneeded(self, task_id: bytes, times: int = 1) -> None:
        """So many needs of a record are gone; release it, and up its inputs, at the last."""
        ending = [task_id]
        lineage, producers = self.lineage, self.producers
        while ending:
            task_id = ending.pop()
            needs = lineage.get(task_id, 0)
            if not needs:
                continue  # truncated before
            if needs > times:
                lineage[task_id] = needs - times
            else:
                del lineage[task_id]
                self.on_lineage_released(task_id)
                if producers:
                    ending.extend(producers.pop(task_id, ()))
            times = 1  # of each producer

    def _truncate(self) -> None:
        """Give up the oldest record: its objects can no more be rebuilt, which is said if they are lost."""
        oldest, _ = self.lineage.popitem(last=False)
        self.lineage_truncated += 1
        self.on_lineage_released(oldest)
        for producer in self.producers.pop(oldest, ()):
            self._lineage_unneeded(producer)

    def check(self) -> None:
        """Walk everything: counts equal what they count, and nothing unneeded is kept."""
        holders: dict[bytes, int] = {}
        for held in self.held.values():
            for object_id in held:
                holders[object_id] = holders.get(object_id, 0) + 1
        for object_id, entry in self.store.objects.items():
            invariant(entry.holders == holders.pop(object_id, 0), "holders of", short(object_id))
            invariant(entry.pins >= 0, "pins of", short(object_id), entry.pins)
            needed = entry.holders or entry.pins or entry.state < SEALED
            needed = needed or object_id in self.store.shared
            invariant(bool(needed), "kept without need:", short(object_id))
        invariant(not holders, "held but unknown:", [short(object_id) for object_id in holders])
        for task_id, needs in self.lineage.items():
            invariant(needs > 0, "lineage kept without need:", short(task_id))
        invariant(self.producers.keys() <= self.lineage.keys(), "producers of a task without a record")
