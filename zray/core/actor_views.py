"""Actors of other nodes as the processes of this one see them: where they are, and who decides about them.

An actor that is not of this node is looked up in the actor table, or its row is waited for, in one step
(paper, section 4.2.1). The row names its *home*, which from then on posts every change. What a process is
told depends on where the actor lives: on this node, its own socket; on another, nothing, and the process
calls through its node (``call_relay.py``).

Invariant: a process whose calls are relayed was told of the present life. One that was told that a life
is over watches anew, so that a call that it made before is not taken for one that it made after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zray.core.actors import Actors
from zray.core.couriers import Couriers
from zray.core.hosted_actors import HostedActors
from zray.core.machine import Address, Effect, invariant
from zray.core.membership import GRAVES
from zray.ids import shard_of, short
from zray.protocol import faults
from zray.protocol.actor_messages import ActorAt, ActorRow, WatchFrom
from zray.protocol.documents import decode_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    ACTOR_RESTARTING,
    TABLE_ACTOR,
    TABLE_KV,
    ActorState,
    KillActor,
    TableChanged,
    TableGet,
    TableReply,
    TableSubscribe,
    Value,
)

FIRST_TOKEN = 1 << 42
"""Tokens from here on are ours; those below belong to other askers of the same node."""
ORPHAN_LOOK_NS = 100_000_000
"""Between two looks at the row of a detached actor whose home is dead."""


def _unheard(message: Any) -> None:
    pass


class ActorView:
    """One actor of another node; found in ``ActorViews.views``."""

    __slots__ = ("actor_id", "at", "home", "killed", "look_at_ns", "row", "told", "unsaid", "watchers")

    def __init__(self, actor_id: bytes, look_at_ns: int) -> None:
        self.actor_id = actor_id
        self.home: Address = b""  # empty: not found yet
        self.row: ActorRow | None = None  # found, and its home is not known to be alive
        self.at = ActorAt(actor_id, ACTOR_PENDING)
        self.told: Address = b""  # the socket that watchers know, if it lives here
        self.watchers: dict[Address, bool] = {}  # -> whether it was told of a life that it calls by relay
        self.unsaid: list[Any] = []  # posts for the home
        self.killed: KillActor | None = None  # said to the home: said once more to the next one
        self.look_at_ns = look_at_ns  # when to ask again; while the home is not known


class ActorViews:
    """Actors of other nodes that processes of this one call or end. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node.
        actors: the actors of this node.
        hosted: lives of other nodes' actors that run here.
        couriers: post to other nodes.
        shards: every GCS shard, by number.
        patience_ns: between two looks at what nobody made known.
        on_over: called with an actor before anybody is told that its life is over.
        on_unsaid: called with what was still to be posted to a home, once this node is that.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        actors: Actors,
        hosted: HostedActors,
        couriers: Couriers,
        shards: Sequence[Address],
        patience_ns: int,
        on_over: Callable[[bytes], None],
        on_unsaid: Callable[[Any], None] = _unheard,
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.actors = actors
        self.hosted = hosted
        self.couriers = couriers
        self.shards = shards
        self.patience_ns = patience_ns
        self.on_over = on_over
        self.on_unsaid = on_unsaid
        self.views: dict[bytes, ActorView] = {}
        self.asked: dict[int, tuple[int, bytes]] = {}  # token -> table and actor
        self.tokens = FIRST_TOKEN
        self.alive: dict[Address, str] = {}
        self.now_ns = 0

    # --- what processes want -----------------------------------------------------------------------

    def watch(self, client: Address, actor_id: bytes) -> None:
        """Tell ``client`` where an actor is, now and at every change."""
        view = self._view(actor_id)
        view.watchers[client] = False
        self._tell(view, client)

    def kill(self, message: KillActor) -> None:
        """End an actor of another node."""
        view = self._view(message.actor_id)
        if message.no_restart:
            view.killed = message
        if view.home:
            self.couriers.post(view.home, message)
        else:
            view.unsaid.append(message)

    def life_for(self, client: Address, actor_id: bytes) -> tuple[Address, int] | None:
        """The host and the number of the life to which calls of ``client`` are relayed, if there is one."""
        entry = self.actors.entries.get(actor_id)
        if entry is not None:
            watches = client in entry.watchers and entry.state.state == ACTOR_ALIVE
            return (entry.host, entry.restarts) if watches and entry.host else None
        view = self.views.get(actor_id)
        if view is None or client not in view.watchers or view.at.state != ACTOR_ALIVE:
            return None
        return (view.at.host, view.at.life) if view.at.host != self.node_id else None

    def client_gone(self, client: Address) -> None:
        """A process is gone: it watches nothing."""
        for actor_id, view in self.views.items():
            if view.watchers.pop(client, None) is not None:
                self.hosted.reader_gone(actor_id, client)

    # --- finding -----------------------------------------------------------------------------------

    def _view(self, actor_id: bytes) -> ActorView:
        view = self.views.get(actor_id)
        if view is None:
            view = self.views[actor_id] = ActorView(actor_id, self.now_ns + self.patience_ns)
            self._ask(self._shard(actor_id), TABLE_ACTOR, actor_id, TableSubscribe)
        return view

    def _shard(self, actor_id: bytes) -> Address:
        return self.shards[shard_of(actor_id, len(self.shards))]

    def _ask(self, shard: Address, table: int, actor_id: bytes, how: type, key: bytes = b"") -> None:
        self.tokens += 1
        self.asked[self.tokens] = table, actor_id
        self.out.append((shard, how(self.tokens, table, key or actor_id)))

    def on_table_reply(self, message: TableReply) -> None:
        """A shard answers: with the row, that there is none, or whether a home is dead."""
        table, actor_id = self.asked.pop(message.token, (0, b""))
        view = self.views.get(actor_id)
        if view is None or view.home:
            return
        if table == TABLE_KV and message.ok:
            self._lost(view, f"node {short(view.row.home)}, which made it, died" if view.row else "")
        elif table == TABLE_ACTOR and message.ok and message.value is not None:
            self._found(view, decode_value(message.value, ActorRow))
        elif table == TABLE_ACTOR and not message.ok:
            self._lost(view, "no node of this cluster knows it")

    def on_table_changed(self, message: TableChanged) -> None:
        """A row that was waited for is there."""
        view = self.views.get(message.key)
        if message.table == TABLE_ACTOR and view is not None and not view.home:
            self._found(view, decode_value(message.value, ActorRow))

    def _found(self, view: ActorView, row: ActorRow) -> None:
        view.row = row
        if row.state == ACTOR_DEAD and row.cause is not None:
            self._dead(view, row.cause)
        elif row.home == self.node_id and not row.detached:
            self._lost(view, "it ended long ago")
        elif row.home in self.alive:
            view.home = row.home
            self.couriers.post(view.home, WatchFrom(view.actor_id))
            unsaid, view.unsaid = view.unsaid, []
            for message in unsaid:
                self.couriers.post(view.home, message)
        elif row.detached:  # its home is dead, or not heard of yet: it has another home soon, or is dead
            view.look_at_ns = self.now_ns + ORPHAN_LOOK_NS
        else:  # it is dead, or this node has not heard of it yet
            self._ask(self.shards[0], TABLE_KV, view.actor_id, TableGet, GRAVES + row.home)

    def peers_changed(self, alive: dict[Address, str]) -> None:
        """Other nodes are alive than before."""
        self.alive = alive
        for view in list(self.views.values()):
            if not view.home and view.row is not None and view.row.home in alive:
                self._found(view, view.row)

    def ask_again(self, shard: Address) -> None:
        """A shard forgot who waits for what."""
        for view in [view for view in self.views.values() if not view.home]:
            if shard in (self.shards[0], self._shard(view.actor_id)):
                self._look_again(view)

    def _look_again(self, view: ActorView) -> None:
        """The row of an actor may be there by now; that there is none is an answer as well."""
        view.look_at_ns = self.now_ns + self.patience_ns
        for token in [token for token, (_, actor_id) in self.asked.items() if actor_id == view.actor_id]:
            del self.asked[token]
        self._ask(self._shard(view.actor_id), TABLE_ACTOR, view.actor_id, TableGet)

    @property
    def wake_at_ns(self) -> int | None:
        """When to look again for an actor whose home is not known."""
        return min((view.look_at_ns for view in self.views.values() if not view.home), default=None)

    def on_tick(self, now_ns: int) -> None:
        """Look again."""
        self.now_ns = now_ns
        for view in list(self.views.values()):
            if not view.home and view.look_at_ns <= now_ns:
                self._look_again(view)

    # --- what homes say ----------------------------------------------------------------------------

    def on_actor_at(self, source: Address, message: ActorAt) -> None:
        """The home of an actor says how it is."""
        view = self.views.get(message.actor_id)
        if view is None or view.home != source:
            return
        if message.state == ACTOR_DEAD and message.cause is not None:
            self._dead(view, message.cause)
            return
        if message.state == view.at.state == ACTOR_ALIVE and message.life != view.at.life:
            self._life_over(view, "it was made again")  # which was not heard of: its home had died
        self._update(view, message)

    def _update(self, view: ActorView, at: ActorAt) -> None:
        """Tell everybody how it is now."""
        if at.state != ACTOR_ALIVE or at.life != view.at.life:
            self.on_over(view.actor_id)
        view.at = at
        before = dict(view.watchers)
        for client in before:
            self._tell(view, client)
        if at.state == ACTOR_RESTARTING and not view.told:
            # Who was told of the life watches anew; the others still wait for the first word of one.
            view.watchers = {client: False for client, was_told in before.items() if not was_told}
        if at.state != ACTOR_ALIVE:
            view.told = b""

    def _life_over(self, view: ActorView, reason: str) -> None:
        """A life is over, says this node; another may follow."""
        cause = faults.fault_value(faults.ACTOR_UNAVAILABLE, short(view.actor_id), reason)
        self._update(view, ActorAt(view.actor_id, ACTOR_RESTARTING, view.at.life, b"", cause))

    def _tell(self, view: ActorView, client: Address) -> None:
        """One process, as far as there is news for it."""
        at = view.at
        state = ActorState(view.actor_id, at.state, view.told, "", at.cause)
        if at.state == ACTOR_ALIVE and at.host == self.node_id:
            here = self.hosted.state_of(view.actor_id, at.life)
            if here is None:  # its process is gone, and its home will say so
                return
            view.told, state = here.address, here
        elif at.state == ACTOR_PENDING:
            state = ActorState(view.actor_id, ACTOR_PENDING)
        view.watchers[client] = state.state == ACTOR_ALIVE
        self.out.append((client, state))

    def _lost(self, view: ActorView, reason: str) -> None:
        self._dead(view, faults.fault_value(faults.ACTOR_DIED, short(view.actor_id), reason))

    def _dead(self, view: ActorView, cause: Value) -> None:
        """Nothing more is to be heard of it: whoever asks later finds its row."""
        self.on_over(view.actor_id)
        state = ActorState(view.actor_id, ACTOR_DEAD, view.told, "", cause)
        self.out.extend((client, state) for client in view.watchers)
        del self.views[view.actor_id]

    def node_dead(self, node: Address) -> None:
        """The actors of a dead node die with it, wherever they lived, unless they are detached."""
        for view in [view for view in self.views.values() if node in (view.home, view.at.host)]:
            if view.home == node and not (view.row is not None and view.row.detached):
                self._lost(view, f"node {short(node)}, which made it, died")
                continue
            if view.home == node:
                self._orphaned(view)
            if not view.home and view.at.host == node:
                self._life_over(view, f"node {short(node)}, where it lived, died; it is being restarted")

    def _orphaned(self, view: ActorView) -> None:
        """The home of a detached actor died: its life may go on, and its row says who is the next home."""
        view.home, view.row = b"", None
        view.look_at_ns = self.now_ns + 1
        if view.killed is not None:
            view.unsaid.append(view.killed)

    def now_at_home(self, actor_id: bytes) -> dict[Address, None]:
        """This node is the home of an actor from now on; returns who watches it."""
        view = self.views.pop(actor_id, None)
        if view is None:
            return {}
        for message in view.unsaid:
            self.on_unsaid(message)
        return dict.fromkeys(view.watchers)

    def check(self) -> None:
        """An actor is of this node, or of another."""
        for actor_id, view in self.views.items():
            invariant(view.actor_id == actor_id, "view of", short(actor_id))
            invariant(not view.home or not view.unsaid, "unsaid to a known home:", short(actor_id))
