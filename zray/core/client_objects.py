"""The objects that one driver or worker refers to: how often, what is known of them, who was told.

The client's side of reference counting and of values. A value that the process itself made (a small ``put``,
the reply of an actor call) lives here alone until a ref to it leaves the process; then it is *shared*: it is
published to the node before the message that carries the ref (same link, same order). So local work costs
nobody else anything, and no other process can hold a ref that the node does not know.

The rule for letting go: an ``Acquire`` is in the outbox before the ``Release`` of what the ref came out of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zray.core.machine import Address, Effect, invariant
from zray.ids import short
from zray.protocol.base import Leaf
from zray.protocol.messages import (
    AT_NODE,
    EXTENT,
    FILE,
    Acquire,
    Get,
    HoldFor,
    ObjectReady,
    Promise,
    Publish,
    Release,
    Unpin,
    Value,
)


class Want:
    """Somebody waits until ``needed`` of these objects are ready. ``missing`` shrinks as they come."""

    __slots__ = ("fetch", "missing", "needed", "on_done")

    def __init__(self, missing: dict[bytes, None], needed: int, fetch: bool) -> None:
        self.missing = missing
        self.needed = needed  # how many of the missing ones must come
        self.fetch = fetch
        self.on_done: Callable[[], None] | None = None  # for who does not wait in a thread of their own

    @property
    def done(self) -> bool:
        """Whether enough of them are ready."""
        return self.needed <= 0


class LocalObject(Leaf):
    """One object that the process refers to; found in ``ClientObjects.objects``."""

    refs: int  # handles in this process, and things here that need it
    known: bool  # the node knows it, and that this process holds it
    value: Value | None
    asked: bool  # an answer or a reply will come without asking
    shown: list[Value] | None = None  # extents or files to look at, each good for one reader
    contained: tuple[bytes, ...] = ()  # refs inside the value, held here as long as it


class ClientObjects:
    """Reference counts and values of one process. Pure.

    Args:
        out: the process's outbox.
        node: the address of its node.
    """

    def __init__(self, out: list[Effect], *, node: Address) -> None:
        self.out = out
        self.node = node
        self.objects: dict[bytes, LocalObject] = {}
        self.wants: dict[bytes, list[Want]] = {}  # of those that somebody waits for
        self.released: dict[bytes, None] = {}
        self.unpinned: list[bytes] = []
        self.acquires = 0  # Acquire messages ever sent

    # --- refs ------------------------------------------------------------------------------------

    def expect(self, object_ids: Iterable[bytes]) -> None:
        """This process submits the task that returns these; it will be told when they are sealed."""
        objects, released = self.objects, self.released
        for object_id in object_ids:
            if object_id in objects:  # the submitting task runs again, and handles of its first run are left
                objects[object_id].refs += 1
            else:
                if object_id in released:
                    del released[object_id]
                objects[object_id] = LocalObject(1, True, None, True)

    def expect_reply(self, object_ids: Iterable[bytes]) -> None:
        """This process makes the actor call that returns these; the call needs them until it ends."""
        for object_id in object_ids:
            if object_id in self.objects or object_id in self.released:
                self._made_here(object_id, None).refs += 1
            else:  # as a rule: nothing of it can be known yet
                self.objects[object_id] = LocalObject(2, False, None, True)

    def keep(self, object_id: bytes, value: Value) -> None:
        """A value that this process made and that nobody else knows."""
        local = self._made_here(object_id, value)
        if local.value is value:
            self._contain(local, value.contained)

    def stored(self, object_id: bytes) -> None:
        """A value that this process wrote to the node's store."""
        self._made_here(object_id, Value(AT_NODE)).known = True

    def _made_here(self, object_id: bytes, value: Value | None) -> LocalObject:
        """The object, with one handle more. The first value counts if its maker runs again (I1)."""
        local = self.objects.get(object_id)
        if local is None:
            known = object_id in self.released  # then the node was not told yet that it was let go
            if known:
                del self.released[object_id]
            local = self.objects[object_id] = LocalObject(0, known, value, True)
        elif local.value is None:
            local.value = value
        local.refs += 1
        return local

    def borrow(self, object_id: bytes) -> None:
        """One more handle, unpickled from somewhere; the node hears of the first."""
        local = self.objects.get(object_id)
        if local is not None:
            local.refs += 1
            return
        self.objects[object_id] = LocalObject(1, True, None, False)
        if object_id in self.released:
            del self.released[object_id]  # the node was not told yet that it was let go
        else:
            self.acquires += 1
            self.out.append((self.node, Acquire((object_id,))))

    def hold_all(self, object_ids: Iterable[bytes]) -> None:
        """:meth:`hold` for several."""
        objects = self.objects
        for object_id in object_ids:
            objects[object_id].refs += 1

    def hold(self, object_id: bytes) -> None:
        """Something in this process needs an object that it refers to already."""
        self.objects[object_id].refs += 1

    def drop(self, object_id: bytes) -> None:
        """One handle or need less; at the last the node is told, with the next batch."""
        local = self.objects.get(object_id)
        if local is None:
            return
        if local.refs > 1:
            local.refs -= 1
            return
        if not local.shown and not local.contained:  # as a rule
            local.refs = 0
            del self.objects[object_id]
            if self.wants:
                self.wants.pop(object_id, None)
            if local.known:
                self.released[object_id] = None
            return
        dropped = [object_id]
        while dropped:
            object_id = dropped.pop()
            local = self.objects.get(object_id)
            if local is None:
                continue
            local.refs -= 1
            if local.refs > 0:
                continue
            del self.objects[object_id]
            self.wants.pop(object_id, None)
            if local.known:
                self.released[object_id] = None
            if local.shown:
                self.unpinned += [object_id for value in local.shown if value.kind == EXTENT]
            if local.contained:
                dropped.extend(local.contained)

    def refers_to(self, object_id: bytes) -> bool:
        """Whether any handle is left."""
        return object_id in self.objects

    def is_shared(self, object_id: bytes) -> bool:
        """Whether the node knows of the object and that this process holds it."""
        local = self.objects.get(object_id)
        return local is not None and local.known

    def settle(self) -> None:
        """Put what was let go into the outbox; called before it is sent."""
        if self.unpinned:
            self.out.append((self.node, Unpin(tuple(self.unpinned))))
            self.unpinned.clear()
        if self.released:
            self.out.append((self.node, Release(tuple(self.released))))
            self.released.clear()

    # --- sharing ---------------------------------------------------------------------------------

    def share(self, object_ids: Iterable[bytes]) -> None:
        """Refs to these are about to leave the process: the node must know the objects first."""
        for object_id in object_ids:
            local = self.objects.get(object_id)
            if local is None or local.known:
                continue
            local.known = True
            if local.value is None:
                self.out.append((self.node, Promise((object_id,))))
            else:
                self._publish(object_id, local.value)

    def _publish(self, object_id: bytes, value: Value) -> None:
        self.share(value.contained)
        self.out.append((self.node, Publish(object_id, value)))

    # --- values ----------------------------------------------------------------------------------

    def on_reply(self, object_id: bytes, value: Value, giver: bytes = b"") -> None:
        """An actor call that this process made has a value; the call needs the object no more.

        The actor ``giver`` has handed to this process what the value contains.
        """
        local = self.objects.get(object_id)
        if local is None:
            return
        is_private = value.kind != EXTENT and not value.contained and not local.known
        unwanted = object_id not in self.wants
        if is_private and local.refs > 1 and local.value is None and unwanted:  # as a rule
            local.value = value
            local.refs -= 1
            return
        if value.contained:
            self._adopt(value.contained, giver)
        if value.kind == EXTENT:  # it is in the node's store, which counts us as a holder
            local.known = True
        if local.value is not None or value.kind == EXTENT:
            # Its maker ran again, and the first value stays (I1); or the node keeps what it contains.
            for inner in value.contained:
                self.drop(inner)
        if local.value is None:
            self._set_reply(object_id, local, value)
        self._satisfy(object_id, local)
        self.drop(object_id)

    def node_holds(self, object_id: bytes) -> None:
        """What this process waited for itself comes from the node, which counts it as a holder now."""
        self.objects[object_id].known = True
        self.drop(object_id)

    def _set_reply(self, object_id: bytes, local: LocalObject, value: Value) -> None:
        if value.kind == EXTENT:
            local.value = Value(AT_NODE, b"", 0, value.size)
            return
        local.value = value
        local.contained = value.contained
        if local.known:
            self._publish(object_id, value)

    def _adopt(self, object_ids: tuple[bytes, ...], giver: bytes) -> None:
        """Hold what the actor has handed to this process, and tell the node that it arrived.

        Until then the node counts it apart: a ``Release`` of the same object may have crossed the reply.
        """
        self.out.append((self.node, HoldFor(b"", object_ids, 0, giver)))
        for object_id in object_ids:
            local = self.objects.get(object_id)
            if local is None:
                self.released.pop(object_id, None)
                self.objects[object_id] = LocalObject(1, True, None, False)
            else:
                local.known = True
                local.refs += 1

    def _contain(self, local: LocalObject, object_ids: tuple[bytes, ...]) -> None:
        for object_id in object_ids:
            if object_id in self.objects:
                self.hold(object_id)
        local.contained = tuple(object_id for object_id in object_ids if object_id in self.objects)

    def on_ready(self, message: ObjectReady) -> None:
        """The node shows or announces a value."""
        object_id, value = message.object_id, message.value
        local = self.objects.get(object_id)
        if local is None:
            if value.kind == EXTENT:
                self.unpinned.append(object_id)
            return
        if value.kind == EXTENT or value.kind == FILE:
            if local.shown is None:
                local.shown = [value]
            else:
                local.shown.append(value)
            if local.value is None:
                local.value = Value(AT_NODE, b"", 0, value.size)
        elif local.value is None or local.value.kind == AT_NODE:
            # It was at the node, or an actor said so, and cannot be shown any more: this is why.
            local.value = value
        if object_id in self.wants:
            self._satisfy(object_id, local)

    def on_results(self, object_ids: Iterable[bytes], values: Iterable[Value]) -> None:
        """The node tells of all return objects of a task at once; none of them is in the arena or a file."""
        objects, wants = self.objects, self.wants
        for object_id, value in zip(object_ids, values, strict=True):
            local = objects.get(object_id)
            if local is None:
                continue
            if local.value is None:
                local.value = value
            if object_id in wants:
                self._satisfy(object_id, local)

    def _satisfy(self, object_id: bytes, local: LocalObject) -> None:
        wants = self.wants.pop(object_id, None)
        if not wants:
            return
        here = self._is_here(local)
        want = wants[0]
        if here and want.needed > 1 and len(wants) == 1:  # as a rule: one reader, who waits for more
            if object_id in want.missing:
                del want.missing[object_id]
                want.needed -= 1
            return
        for want in wants:
            if object_id not in want.missing:
                continue
            if here or not want.fetch:
                del want.missing[object_id]
                want.needed -= 1
                if want.on_done is not None and want.done:
                    on_done, want.on_done = want.on_done, None
                    on_done()
            else:  # it is at the node: now ask to see it
                self._note_want(object_id, want)
        if object_id in self.wants:
            self.out.append((self.node, Get((object_id,))))

    def _note_want(self, object_id: bytes, want: Want) -> None:
        wants = self.wants.get(object_id)
        if wants is None:
            self.wants[object_id] = [want]
        else:
            wants.append(want)

    @staticmethod
    def _is_here(local: LocalObject) -> bool:
        return bool(local.shown) or (local.value is not None and local.value.kind != AT_NODE)

    def want(self, object_ids: Iterable[bytes], needed: int | None, fetch: bool) -> Want:
        """Wait for objects: with ``fetch`` to look at them, else to know that they are sealed.

        Args:
            object_ids: without repetition, all referred to by this process.
            needed: how many must be ready; ``None``: all.
            fetch: ask the node for large values.
        """
        missing: dict[bytes, None] = {}
        want = Want(missing, 0, fetch)
        asks: list[bytes] = []
        ready = 0
        objects = self.objects
        for object_id in object_ids:
            local = objects[object_id]
            value = local.value
            if value is not None and (not fetch or value.kind != AT_NODE or local.shown):
                ready += 1
                continue
            missing[object_id] = None
            self._note_want(object_id, want)
            if not local.asked or value is not None:
                local.asked = True
                asks.append(object_id)
        want.needed = len(missing) if needed is None else needed - ready
        if asks:
            self.out.append((self.node, Get(tuple(asks), fetch)))
        return want

    def take_all(self, object_ids: Iterable[bytes], taken: dict[bytes, Value]) -> Want | None:
        """Add to ``taken`` what can be looked at now; waits for the rest, or ``None`` if that is nothing.

        Once the want is done, this is called again: what it waited for may be with another reader by then.
        """
        left = []
        objects = self.objects
        for object_id in object_ids:
            if object_id in taken:
                continue
            local = objects[object_id]
            value = self.take(object_id) if local.shown else local.value
            if value is None or value.kind == AT_NODE:
                left.append(object_id)
            else:
                taken[object_id] = value
        return self.want(left, None, True) if left else None

    def await_ready(self, object_ids: Sequence[bytes], needed: int) -> Want | None:
        """Wait until ``needed`` of these are sealed; ``None`` if they are already."""
        objects = self.objects
        here = sum(objects[object_id].value is not None for object_id in object_ids)
        return self.want(object_ids, needed, False) if here < needed else None

    def first_ready(self, object_ids: Iterable[bytes], needed: int) -> list[int]:
        """The positions of the first of these that are known to be sealed, at most ``needed``."""
        found: list[int] = []
        objects = self.objects
        for position, object_id in enumerate(object_ids):
            if objects[object_id].value is not None:
                found.append(position)
                if len(found) == needed:
                    break
        return found

    def end_want(self, want: Want) -> None:
        """Nobody waits any more; what is still missing forgets it."""
        for object_id in want.missing:
            wants = self.wants.get(object_id)
            if wants is not None and want in wants:
                wants.remove(want)
                if not wants:
                    del self.wants[object_id]

    def is_ready(self, object_id: bytes) -> bool:
        """Whether the object is known to be sealed."""
        local = self.objects.get(object_id)
        return local is not None and local.value is not None

    def take(self, object_id: bytes) -> Value | None:
        """The value to look at now; an extent is given to one reader, who owes the ``Unpin``."""
        local = self.objects[object_id]
        if local.shown:
            return local.shown.pop()
        value = local.value
        return None if value is None or value.kind == AT_NODE else value

    def check(self) -> None:
        """Counts are positive; what was let go is not referred to."""
        for object_id, local in self.objects.items():
            invariant(local.refs > 0, "kept without need:", short(object_id))
            invariant(object_id not in self.released, "released and referred to:", short(object_id))
        for object_id, wants in self.wants.items():
            invariant(object_id in self.objects and bool(wants), "waited for by nobody:", short(object_id))
