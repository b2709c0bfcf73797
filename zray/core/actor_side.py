"""What a node does with other nodes about actors, as one: lives elsewhere, lives for others, calls
between them.

A node alone in its cluster has it, too, and it does nothing. This file routes messages, and tells the
actor table and the nodes that watch how the actors of this node are; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.core import deeds, name_sweeper
from zray.core.actor_views import ActorViews
from zray.core.actors import ActorEntry, alive_state
from zray.core.call_relay import CallRelay
from zray.core.couriers import Couriers
from zray.core.deeds import Deeds
from zray.core.hosted_actors import HostedActor, HostedActors
from zray.core.machine import Address, Effect
from zray.core.name_sweeper import NameSweeper
from zray.core.succession import Succession
from zray.core.wills import HeldWill, Wills
from zray.core.worker_pool import Worker
from zray.ids import short
from zray.protocol import faults
from zray.protocol.actor_messages import (
    ActorAt,
    ActorRow,
    CallAway,
    EndLife,
    FromPast,
    ItemAway,
    LifeEnded,
    OutputAway,
    PastKept,
    Posted,
    PostTaken,
    ReplyAway,
    ReplyTaken,
    ToPast,
    WatchFrom,
    Will,
    WillVoid,
)
from zray.protocol.cluster import Declined
from zray.protocol.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, KillActor, TableReply
from zray.protocol.user_messages import CancelCall, ConsumedItems

if TYPE_CHECKING:
    from zray.core.cluster_side import ClusterSide
    from zray.core.identity import ClientEntry
    from zray.core.output import OutputRelay

ACTOR_MESSAGES: tuple[type, ...] = (Posted, PostTaken)
"""What other nodes send about actors."""


class ActorSide:
    """Actors of several nodes. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        cluster: what else the node has for other nodes.
        clients: the processes of this node.
    """

    def __init__(
        self, out: list[Effect], *, cluster: ClusterSide, clients: dict[Address, ClientEntry]
    ) -> None:
        scheduler = cluster.scheduler
        self.node_id = scheduler.node_id
        self.sharing = cluster.sharing
        self._unsaid: list[KillActor] = []  # for an actor that this node is the home of by now
        self.actors, self.lives = scheduler.actors, scheduler.lives
        self.dead_max = scheduler.config.finished_tasks_max
        self.couriers = Couriers(out, sharing=cluster.sharing, on_post=self._on_post)
        self.hosted = HostedActors(scheduler, sharing=cluster.sharing, post=self.couriers.post)
        self.views = ActorViews(
            out,
            node_id=scheduler.node_id,
            actors=scheduler.actors,
            hosted=self.hosted,
            couriers=self.couriers,
            shards=cluster.shards,
            patience_ns=scheduler.config.stranger_patience_ns,
            on_over=self._life_over,
            on_unsaid=lambda message: self._unsaid.append(message),
        )
        self.relay = CallRelay(
            out, cluster=cluster, views=self.views, post=self.couriers.post, clients=clients
        )
        self.lives.hosted, self.lives.post = self.hosted, self.couriers.post
        self.actors.end_away = self.lives.end_away
        self.sweeper = NameSweeper(
            out, node_id=scheduler.node_id, shards=cluster.shards, on_over=cluster.job_over_everywhere
        )
        self._provide_for_death(out, cluster)
        self.alive: dict[Address, str] = {}
        self.output: OutputRelay | None = None  # set by the node
        self.handlers: dict[type, Callable[[int, Address, Any], None]] = {
            WatchFrom: self._on_watch_from,
            Will: self.wills.on_will,
            WillVoid: lambda _now_ns, source, message: self.wills.on_void(source, message),
            ActorAt: lambda _now_ns, source, message: self.views.on_actor_at(source, message),
            LifeEnded: lambda _now_ns, source, message: self.lives.life_ended(source, message),
            EndLife: lambda _now_ns, source, message: self.hosted.on_end_life(source, message),
            KillActor: self._on_kill,
            Declined: cluster.away.on_declined,
            ToPast: lambda now_ns, source, message: self.lives.checkpoints.on_to_past(
                now_ns, source, message
            ),
            PastKept: self._on_past_kept,
            FromPast: lambda _now_ns, source, message: self.hosted.on_from_past(source, message),
            CallAway: self.relay.on_call_away,
            ReplyAway: self.relay.on_reply_away,
            ItemAway: self.relay.on_item_away,
            ReplyTaken: lambda _now_ns, source, message: self.relay.on_reply_taken(source, message),
            CancelCall: lambda _now_ns, source, message: self.relay.on_said_away(source, message),
            OutputAway: self._on_output_away,
            ConsumedItems: lambda _now_ns, source, message: self.relay.on_said_away(source, message),
        }

    def _provide_for_death(self, out: list[Effect], cluster: ClusterSide) -> None:
        """Make what detached actors outlive their home with; without a control store they do not."""
        self.deeds = Deeds(
            out,
            node_id=self.node_id,
            shards=cluster.shards,
            on_durable=self._on_durable,
            on_other=self._on_other_deed,
        )
        self.succession = Succession(
            self.lives, deeds=self.deeds, sharing=self.sharing, post=self.couriers.post, row_of=self._row_of
        )
        self.wills = Wills(
            self.lives,
            self.hosted,
            deeds=self.deeds,
            post=self.couriers.post,
            on_inherited=self._on_inherited,
        )
        self.hosted.wills = self.lives.checkpoints.wills = self.wills
        self.lives.spend_will = self.wills.spend
        if cluster.shards:
            self.lives.succession = self.succession
            self.actors.shown_later = self.succession.constructed

    def _life_over(self, actor_id: bytes) -> None:
        self.relay.life_over(actor_id)

    # --- posts -------------------------------------------------------------------------------------

    def on_message(self, now_ns: int, source: Address, message: Posted | PostTaken) -> None:
        """Another node posts something, or has what was posted."""
        self.views.now_ns = now_ns
        if isinstance(message, Posted):
            self.couriers.on_posted(now_ns, source, message)
        else:
            self.couriers.on_post_taken(now_ns, source, message)

    def _on_post(self, now_ns: int, source: Address, message: Any) -> None:
        self.handlers[type(message)](now_ns, source, message)

    def _on_output_away(self, now_ns: int, source: Address, message: OutputAway) -> None:
        if self.output is not None:
            self.output.on_output_away(message)

    def _on_kill(self, now_ns: int, source: Address, message: KillActor) -> None:
        self.lives.kill(message.actor_id, message.no_restart)

    # --- the actors of this node, as others see them -----------------------------------------------

    def changed(self, entry: ActorEntry) -> ActorRow | None:
        """An actor of this node has another state: calls to a life that is over are dropped first.

        Returns:
            its row of the actor table, unless nobody else could ask for it yet.
        """
        if entry.state.state == ACTOR_PENDING and not self.sharing.active:
            return None
        if entry.state.state != ACTOR_ALIVE:
            self.relay.life_over(entry.actor_id)
        if entry.watching_nodes:
            at = self._at(entry)
            for node in entry.watching_nodes:
                self.couriers.post(node, at)
        return None if self.succession.changed(entry) else self._row_of(entry)

    def _row_of(self, entry: ActorEntry) -> ActorRow:
        at, state = self._at(entry), entry.state
        return ActorRow(
            entry.actor_id,
            state.state,
            self.node_id,
            at.host,
            at.life,
            state.address,
            entry.name,
            state.cause,
        )

    def _at(self, entry: ActorEntry) -> ActorAt:
        state = entry.state
        host = (entry.host or self.node_id) if state.state == ACTOR_ALIVE else b""
        return ActorAt(entry.actor_id, state.state, entry.restarts, host, state.cause)

    def _on_watch_from(self, now_ns: int, source: Address, message: WatchFrom) -> None:
        entry = self.actors.entries.get(message.actor_id)
        if entry is None:
            reason = "its node does not know it any more"
            gone = faults.fault_value(faults.ACTOR_DIED, short(message.actor_id), reason)
            self.couriers.post(source, ActorAt(message.actor_id, ACTOR_DEAD, cause=gone))
            return
        if entry.state.state != ACTOR_DEAD:
            entry.watching_nodes[source] = None
        self.couriers.post(source, self._at(entry))

    # --- detached actors, which outlive their home -------------------------------------------------

    def acknowledges_later(self, worker: Worker | None, token: int) -> bool:
        """Whether another node must first have what the worker of an actor said before."""
        later = self.hosted.acknowledges_later(worker, token)
        return later or self.succession.acknowledges_later(worker, token)

    def _on_past_kept(self, now_ns: int, source: Address, message: PastKept) -> None:
        self.hosted.on_past_kept(source, message)
        self.succession.on_past_kept(source, message)

    def _on_durable(self, row: ActorRow) -> None:
        if not self.wills.on_durable(row):
            self.succession.on_durable(row)

    def _on_other_deed(self, row: ActorRow, value: bytes) -> None:
        """The deed that this node wanted to write is another's."""
        actor_id = row.actor_id
        if self.wills.waits_for(actor_id):
            self.deeds.forget(actor_id)
            self.wills.decide(actor_id, row, value)
        elif actor_id not in self.actors.entries or self.deeds.is_held(actor_id):
            return  # this node was declared dead, and will hear so
        elif any(node == self.node_id or node in self.alive for node in (row.home, row.successor)):
            self._disown(actor_id, row.home)
        else:
            self.deeds.again_later(actor_id)

    def _disown(self, actor_id: bytes, home: Address) -> None:
        """An actor that was submitted here was made before and lives: its callers find it where it is."""
        self.deeds.forget(actor_id)
        self.succession.forget(actor_id)
        for client in self.lives.disown(actor_id, home):
            self.views.watch(client, actor_id)

    def _on_inherited(self, held: HeldWill, row: ActorRow, goes_on: HostedActor | None) -> None:
        """This node is the home of an actor: whoever watched it here watches it still."""
        actor_id = row.actor_id
        if actor_id in self.actors.entries:
            self._disown(actor_id, held.home)
        entry = self.lives.inherit(held, row.life)
        entry.watchers.update(self.views.now_at_home(actor_id))
        if goes_on is None:
            self.succession.inherited(entry, (), goes_on=False)
            self.lives.resume(entry, held)
            self._say_unsaid()
            return
        entry.worker, entry.leaving = goes_on.worker, goes_on.leaving
        tokens = self.hosted.go_home(goes_on)
        entry.state = alive_state(entry)
        for client in entry.watchers:
            self.actors.out.append((client, entry.state))
        self.succession.inherited(entry, tokens, goes_on=True)
        self._say_unsaid()

    def _say_unsaid(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for message in unsaid:
            self.lives.kill(message.actor_id, message.no_restart)

    # --- the control store -------------------------------------------------------------------------

    def on_table_reply(self, message: TableReply) -> None:
        """A shard answers a look-up of one of these machines."""
        if message.token > deeds.FIRST_TOKEN:
            self.deeds.on_table_reply(message)
        elif message.token > name_sweeper.FIRST_TOKEN:
            self.sweeper.on_table_reply(self.alive, message)
        else:
            self.views.on_table_reply(message)

    def shard_is_back(self, shard: Address) -> None:
        """A shard greets: it may have missed, or forgotten, anything."""
        self.views.ask_again(shard)
        self.deeds.shard_is_back(shard)
        self.sweeper.shard_is_back(shard)

    def client_gone(self, client: Address) -> None:
        """A process of this node is gone: it watches nothing."""
        self.actors.client_gone(client)
        self.views.client_gone(client)
        self.relay.client_gone(client)

    # --- other nodes, and time ---------------------------------------------------------------------

    def peers_changed(self, alive: dict[Address, str]) -> None:
        """Other nodes are alive than before."""
        self.alive = alive
        self.views.peers_changed(alive)
        self.succession.peers_changed(alive)

    def node_dead(self, node: Address) -> None:
        """A node died: its posts first, so that nothing is said to it."""
        self.couriers.node_dead(node, self.dead_max)
        if self.output is not None:
            self.output.node_dead(node)
        self.hosted.node_dead(node)
        self.views.node_dead(node)
        self.lives.node_dead(node)
        self.succession.node_dead(node)
        self.wills.node_dead(node)
        self.relay.node_dead(node)
        self.sweeper.node_dead(self.alive)

    @property
    def wake_at_ns(self) -> int | None:
        """The earliest wish of any of them."""
        wishes = (
            self.couriers.wake_at_ns, self.views.wake_at_ns, self.deeds.wake_at_ns, self.wills.wake_at_ns
        )  # fmt: skip
        return min((wish for wish in wishes if wish is not None), default=None)

    def on_tick(self, now_ns: int) -> None:
        """Every one looks at its own deadlines."""
        self.couriers.on_tick(now_ns, self.alive)
        self.views.on_tick(now_ns)
        self.deeds.on_tick(now_ns)
        self.wills.on_tick(now_ns)

    def flush(self, now_ns: int) -> None:
        """Once per batch, before the gate is looked at."""
        self.views.now_ns = self.deeds.now_ns = self.wills.now_ns = now_ns
        self.lives.checkpoints.flush()
        self.wills.flush()
        self.couriers.flush(now_ns)

    def check(self) -> None:
        """Every invariant of every machine."""
        for machine in (
            self.couriers, self.hosted, self.views, self.relay, self.sweeper, self.deeds, self.succession,
            self.wills,
        ):  # fmt: skip
            machine.check()
