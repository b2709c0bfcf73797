"""Calls between a caller of one node and an actor on another.

A caller gives its call to its own node, the *origin*, which posts it to the *host* of the actor's life,
which hands it to the worker; the reply goes the same way back. Order follows from the links and from
posts (I3). A call is run only in the life that it was sent to; what the origin knew of that life is
dropped before a caller hears that it is over, so a late reply changes nothing, and the caller alone
decides about another attempt.

Objects are kept as for guests: the origin pins what a call takes and borrows until it has the reply; the host
pins what the reply refers to until the origin has taken it, and with it the *rule* of ``sharing.py`` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from zray.core.actor_views import ActorViews
from zray.core.machine import Address, Effect, invariant
from zray.core.node_store import SEALED
from zray.core.streams import item_id
from zray.ids import producer_of, return_ids, short
from zray.protocol import faults
from zray.protocol.actor_messages import CallAway, ItemAway, ReplyAway, ReplyTaken
from zray.protocol.messages import AT_NODE, EXTENT, Value
from zray.protocol.user_messages import (
    STREAM,
    Call,
    CancelCall,
    ConsumedItems,
    LastWordsHeard,
    Reply,
    ReplyItem,
)

if TYPE_CHECKING:
    from zray.core.cluster_side import ClusterSide
    from zray.core.identity import ClientEntry


class AwayCall:
    """One call that a process of this node made; found in ``CallRelay.away`` until its reply."""

    __slots__ = ("again", "call", "caller", "host", "life")

    def __init__(self, call: Call, caller: Address, host: Address, life: int) -> None:
        self.call, self.caller, self.host, self.life = call, caller, host, life
        self.again: Call | None = None
        """A stream that is made once more, for a new reader, when this has ended."""


class HostedCall:
    """One call of another node; in ``CallRelay.here`` until its reply, then in ``untaken``."""

    __slots__ = ("attempt", "call", "items", "life", "origin", "pins", "worker")

    def __init__(self, call: Call, life: int, origin: Address, worker: Address) -> None:
        self.attempt = call.attempt
        self.call, self.life, self.origin, self.worker = call, life, origin, worker
        self.pins: dict[bytes, int] = {}  # what it returns and what that contains, with its number of pins
        self.items: dict[int, list[bytes]] = {}  # the same of items that were not taken yet


class CallRelay:
    """The calls that one node passes on. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        cluster: where the other machines of the node are.
        views: where actors are.
        post: says something to another node.
        clients: the processes of this node.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        cluster: ClusterSide,
        views: ActorViews,
        post: Callable[[Address, Any], None],
        clients: dict[Address, ClientEntry],
    ) -> None:
        self.out = out
        self.views = views
        self.clients = clients
        self.store, self.references = cluster.store, cluster.references
        self.sharing, self.away_tasks, self.guests = cluster.sharing, cluster.away, cluster.guests
        self.post = post
        self.hosted = views.hosted
        self.away: dict[bytes, AwayCall] = {}
        self.by_actor: dict[bytes, dict[bytes, None]] = {}  # actor -> its calls in ``away``
        self.here: dict[bytes, HostedCall] = {}
        self.untaken: dict[tuple[Address, bytes, int], HostedCall] = {}  # origin, call and attempt
        self.leaving: dict[Address, None] = {}  # workers that end once nothing of theirs is untaken

    # --- at the origin: going ----------------------------------------------------------------------

    def on_call(self, now_ns: int, caller: Address, call: Call) -> None:
        """A process of this node calls an actor elsewhere. One that has not heard of a change will."""
        where = self.views.life_for(caller, call.actor_id)
        if where is None:
            return
        former = self.away.get(call.task_id)
        if former is not None:  # its caller was a task that died and runs again: it made this before
            former.caller = caller
            if call.returns == STREAM:
                former.again = call
                self.post(former.host, ConsumedItems(call.task_id, 0, True))
                self.post(former.host, CancelCall(call.task_id, False))
            return
        host, life = where
        self.away[call.task_id] = AwayCall(call, caller, host, life)
        self.by_actor.setdefault(call.actor_id, {})[call.task_id] = None
        needs = _needs(call)
        self.references.contain(now_ns, needs)
        self.sharing.expose(needs)
        objects = self.store.objects
        known = [object_id for object_id in dict.fromkeys(call.deps) if objects[object_id].state >= SEALED]
        inputs = tuple([one for object_id in known if (one := self.away_tasks.input(object_id))])
        self.post(host, CallAway(call, life, inputs))

    def on_said(self, caller: Address, message: CancelCall | ConsumedItems) -> None:
        """A caller takes a call back, or items of its stream."""
        away = self.away.get(message.task_id)
        if away is not None and away.caller == caller:
            self.post(away.host, message)

    def client_gone(self, caller: Address) -> None:
        """A process of this node is dead: nobody reads the streams of its calls."""
        for task_id, away in self.away.items():
            if away.caller == caller and away.call.returns == STREAM:
                self.post(away.host, ConsumedItems(task_id, 0, True))

    def life_over(self, actor_id: bytes) -> None:
        """A life that calls were sent to is over: nothing more is heard of them."""
        for task_id in self.by_actor.pop(actor_id, {}):
            self._unpin(_needs(self.away.pop(task_id).call))

    # --- at the origin: coming ---------------------------------------------------------------------

    def on_reply_away(self, now_ns: int, host: Address, message: ReplyAway) -> None:
        """A call has a reply, which counts if its caller still waits for that attempt."""
        away = self._of(host, message)
        if away is not None:
            call = away.call
            del self.away[message.task_id]
            calls = self.by_actor[call.actor_id]
            del calls[message.task_id]
            if not calls:
                del self.by_actor[call.actor_id]
            if away.caller in self.clients and away.again is None:
                object_ids = return_ids(call.task_id, len(message.values))
                values = tuple(
                    self._for_caller(now_ns, away, object_id, value)
                    for object_id, value in zip(object_ids, message.values, strict=True)
                )
                self.out.append((away.caller, Reply(call.task_id, values)))
            self._unpin(_needs(call))
        self.post(host, ReplyTaken(message.task_id, message.attempt))
        if away is not None and away.again is not None and away.caller in self.clients:
            self.on_call(now_ns, away.caller, away.again)

    def on_item_away(self, now_ns: int, host: Address, message: ItemAway) -> None:
        """A call that is a generator has made an item."""
        away = self._of(host, message)
        if away is not None and away.again is None and away.caller in self.clients:
            object_id = item_id(message.task_id, message.index)
            value = self._for_caller(now_ns, away, object_id, message.value)
            self.out.append((away.caller, ReplyItem(message.task_id, message.index, value)))
        self.post(host, ReplyTaken(message.task_id, message.attempt, message.index))

    def _of(self, host: Address, message: ReplyAway | ItemAway) -> AwayCall | None:
        away = self.away.get(message.task_id)
        if away is None or away.host != host:
            return None
        current = away.life == message.life and away.call.attempt == message.attempt
        return away if current else None

    def _for_caller(self, now_ns: int, away: AwayCall, object_id: bytes, value: Value) -> Value:
        """A value as its caller is told of it: a large one is at its node, which counts it as a holder."""
        if value.kind != AT_NODE:
            if value.contained:
                self.references.hand(now_ns, away.call.actor_id, away.caller, value.contained)
            return value
        entry = self.store.entry(object_id)
        self.references.hold(away.caller, entry)
        self.clients[away.caller].promised.pop(object_id, None)
        self.sharing.adopt(entry, value, (away.host,), is_home=False)
        return Value(EXTENT, b"", 0, value.size)

    # --- at the host -------------------------------------------------------------------------------

    def on_call_away(self, now_ns: int, origin: Address, message: CallAway) -> None:
        """A call of another node; one for another life is not run."""
        call = message.call
        hosted = self._worker_of(call.actor_id, message.life)
        if hosted is None:
            return
        former = self.here.get(call.task_id)
        if former is not None:
            self._move(former, origin, call)
            return
        self.here[call.task_id] = HostedCall(call, message.life, origin, hosted)
        for one in message.inputs:
            self.guests.bring(now_ns, one)
        self.references.contain(now_ns, _needs(call))
        self.out.append((hosted, call))

    def _move(self, hosted: HostedCall, origin: Address, call: Call) -> None:
        """The caller was a task that died and runs again on another node: this is the same call."""
        former, hosted.origin = hosted.origin, origin
        if former:
            reason = "the task that made this call runs again on another node"
            lost = faults.fault_value(faults.OBJECT_LOST, short(call.task_id), reason)
            values = (lost,) * call.num_returns
            self.post(former, ReplyAway(call.task_id, hosted.attempt, hosted.life, values))
        hosted.attempt = call.attempt

    def _worker_of(self, actor_id: bytes, life: int) -> Address | None:
        """The worker of a life that runs here: of an actor of this node, or of another's."""
        entry = self.views.actors.entries.get(actor_id)
        if entry is not None:
            alive = entry.worker is not None and entry.state.address and entry.restarts == life
            return entry.worker.worker_id if alive and entry.worker is not None else None
        hosted = self.hosted.actors.get(actor_id)
        if hosted is None or hosted.life != life or not hosted.is_alive or hosted.worker is None:
            return None
        return hosted.worker.worker_id

    def on_said_away(self, origin: Address, message: CancelCall | ConsumedItems) -> None:
        """The caller of a call that is here takes it back, or has taken items of its stream."""
        hosted = self.here.get(message.task_id)
        if hosted is not None and hosted.origin == origin:
            self.out.append((hosted.worker, message))

    def creating(self, worker: Address, object_id: bytes) -> None:
        """A worker asks for room; what a call of another node makes is kept until that has taken it."""
        task_id = producer_of(object_id)
        hosted = self.here.get(task_id)
        if hosted is not None and hosted.worker == worker and object_id not in hosted.pins:
            hosted.pins[object_id] = 1
            self.store.entry(object_id).pins += 1

    def on_reply(self, now_ns: int, worker: Address, message: Reply) -> None:
        """A worker answers a call of another node."""
        hosted = self.here.get(message.task_id)
        if hosted is None or hosted.worker != worker:
            return
        del self.here[message.task_id]
        call = hosted.call
        values = tuple(
            self._as_sent(now_ns, hosted, object_id, value)
            for object_id, value in zip(
                return_ids(call.task_id, len(message.values)), message.values, strict=True
            )
        )
        self._unpin(_needs(call))
        if not hosted.origin:
            self._forget(hosted)
            return
        self.untaken[hosted.origin, call.task_id, hosted.attempt] = hosted
        self.post(hosted.origin, ReplyAway(call.task_id, hosted.attempt, hosted.life, values))

    def on_item(self, now_ns: int, worker: Address, message: ReplyItem) -> None:
        """A worker has made an item for a caller of another node."""
        hosted = self.here.get(message.task_id)
        if hosted is None or hosted.worker != worker or not hosted.origin:
            return
        object_id = item_id(message.task_id, message.index)
        value = self._as_sent(now_ns, hosted, object_id, message.value)
        hosted.items[message.index] = [object_id] if value.kind == AT_NODE else list(value.contained)
        item = ItemAway(message.task_id, hosted.attempt, hosted.life, message.index, value)
        self.post(hosted.origin, item)

    def _as_sent(self, now_ns: int, hosted: HostedCall, object_id: bytes, value: Value) -> Value:
        """A value as the origin is told of it; what it refers to is exposed, and kept."""
        if value.kind == EXTENT:
            self.creating(hosted.worker, object_id)
            entry = self.store.entry(object_id)
            self.sharing.expose((object_id,))
            return Value(AT_NODE, b"", 0, entry.size or value.size, value.contained)
        self.references.contain(now_ns, value.contained)
        for inner in value.contained:
            hosted.pins[inner] = hosted.pins.get(inner, 0) + 1
        self.sharing.expose(value.contained)
        return value

    def on_reply_taken(self, origin: Address, message: ReplyTaken) -> None:
        """The origin holds what came out of a call, or of an item of it."""
        key = origin, message.task_id, message.attempt
        hosted = self.untaken.get(key) or self.here.get(message.task_id)
        if hosted is None or hosted.origin != origin or hosted.attempt != message.attempt:
            return
        if message.index < 0:
            if self.untaken.pop(key, None) is not None:
                self._forget(hosted)
                self._let_leave()
            return
        for object_id in hosted.items.pop(message.index, ()):
            if object_id in hosted.pins:
                hosted.pins[object_id] -= 1
                if not hosted.pins[object_id]:
                    del hosted.pins[object_id]
                self._unpin((object_id,))

    # --- ends --------------------------------------------------------------------------------------

    def on_last_words(self, worker: Address) -> None:
        """An actor ends on purpose, once callers of other nodes have its replies.

        Those may hear of its death from a third node, its home.
        """
        self.leaving[worker] = None
        self._let_leave()

    def _let_leave(self) -> None:
        if not self.leaving:
            return
        kept = dict.fromkeys(hosted.worker for hosted in self.untaken.values())
        for worker in [worker for worker in self.leaving if worker not in kept]:
            del self.leaving[worker]
            self.out.append((worker, LastWordsHeard()))

    def worker_gone(self, worker: Address) -> None:
        """The process of an actor is gone; replies that it gave before are still good."""
        self.leaving.pop(worker, None)
        for task_id, hosted in list(self.here.items()):
            if hosted.worker == worker:
                del self.here[task_id]
                self._unpin(_needs(hosted.call))
                self._forget(hosted)

    def node_dead(self, node: Address) -> None:
        """Nobody waits for the calls of a dead node."""
        for hosted in self.here.values():
            if hosted.origin == node:
                hosted.origin = b""
                if hosted.call.returns == STREAM:
                    self.out.append((hosted.worker, ConsumedItems(hosted.call.task_id, 0, True)))
        for key, hosted in list(self.untaken.items()):
            if hosted.origin == node:
                del self.untaken[key]
                self._forget(hosted)
        self._let_leave()

    def _forget(self, hosted: HostedCall) -> None:
        for object_id, times in hosted.pins.items():
            self._unpin((object_id,) * times)
        hosted.pins.clear()

    def _unpin(self, object_ids: Iterable[bytes]) -> None:
        for object_id in object_ids:
            self.references.unpin(self.store.objects[object_id])

    def check(self) -> None:
        """Every call that is away is filed under its actor, and what it needs is known."""
        filed = {task_id: None for calls in self.by_actor.values() for task_id in calls}
        invariant(filed.keys() == self.away.keys(), "calls that are away", len(filed), len(self.away))
        for away in self.away.values():
            for object_id in _needs(away.call):
                entry = self.store.objects.get(object_id)
                invariant(entry is not None and entry.pins > 0, "input of a call is gone:", short(object_id))


def _needs(call: Call) -> tuple[bytes, ...]:
    return (*call.deps, *call.borrowed)
