"""The machines that a node has for other nodes, as one: membership, tasks and objects of several nodes.

A node alone in its cluster has them, too, and they do nothing: ``NodeStore.cluster`` is set when the first
peer is there. This file routes messages and decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from zray.core import actor_views
from zray.core.actor_side import ACTOR_MESSAGES, ActorSide
from zray.core.away import Away
from zray.core.guests import Guests
from zray.core.identity import ClientEntry
from zray.core.kept_copies import KeptCopies
from zray.core.local_scheduler import LocalScheduler
from zray.core.machine import RUNTIME, Address, Effect
from zray.core.node_store import ObjectEntry
from zray.core.offloading import Offloading
from zray.core.peers import Peers
from zray.core.reconstruction import Reconstruction
from zray.core.sharing import Sharing
from zray.core.table_writer import TableWriter
from zray.core.transfers import Transfers
from zray.protocol.cluster import (
    AskRawLink,
    ChunkArrived,
    ChunkSent,
    Claim,
    CopiesCounted,
    Declined,
    Deny,
    Ended,
    FreeObjects,
    Grant,
    JobOver,
    KeepCopy,
    Members,
    ObjectFound,
    OfferRawLink,
    Offload,
    Pull,
    PullFailed,
    Rebuild,
    ShareAcked,
    ShareReset,
    Taken,
)
from zray.protocol.messages import Describe, ExportFunction, JobContext, TableChanged, TableReply

CLUSTER_MESSAGES: tuple[type, ...] = (
    ShareAcked, ShareReset, ObjectFound, FreeObjects, Rebuild, Claim, Ended, Grant, Deny, Declined, Taken,
    JobOver, JobContext, Pull, PullFailed, Members, ChunkArrived, ChunkSent, KeepCopy, CopiesCounted,
    AskRawLink, OfferRawLink, TableChanged, Offload, *ACTOR_MESSAGES,
)  # fmt: skip
"""What ``ClusterSide.on_message`` takes."""
RESEND_FORWARDS_NS = 5_000_000_000


class ClusterSide:
    """Everything that a node does with other nodes. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        scheduler, tables: of the same node, with all that they work with.
        shards: the address that serves each shard now, by number; the node puts another one in when the head
            of a chain changes, and calls :meth:`shard_moved`.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        scheduler: LocalScheduler,
        tables: TableWriter,
        shards: Sequence[Address],
        clients: dict[Address, ClientEntry],
    ) -> None:
        node_id, store, references = scheduler.node_id, scheduler.store, scheduler.references
        self.shards = shards
        self.store = store
        self.references = references
        self.scheduler = scheduler
        self.sharing = Sharing(
            out,
            shards=shards,
            store=store,
            references=references,
            lineage=scheduler.lineage,
            tables=tables,
            record_pending=scheduler.record_pending,
            remind=lambda shard: self.peers.remind(shard),
        )
        self.away = Away(out, node_id=node_id, scheduler=scheduler, sharing=self.sharing)
        self.guests = Guests(out, node_id=node_id, scheduler=scheduler, sharing=self.sharing)
        scheduler.meet(self.away, self.guests)
        self.offloading = Offloading(scheduler, self.guests)
        self.transfers = Transfers(
            out,
            config=scheduler.config,
            store=store,
            references=references,
            sharing=self.sharing,
            is_peer=lambda node: node in self.peers.alive,
        )
        self.kept = KeptCopies(
            out,
            config=scheduler.config,
            store=store,
            references=references,
            sharing=self.sharing,
            is_client=clients.__contains__,
        )
        self.reconstruction = Reconstruction(
            out,
            shards=shards,
            scheduler=scheduler,
            sharing=self.sharing,
            over=self.guests.over,
            clients=clients,
            is_peer=lambda node: node in self.peers.alive,
            write=tables.put,
        )
        self.peers = Peers(
            out, node_id=node_id, shards=shards, on_change=self._peers_changed, on_dead=self._node_dead
        )
        self.actors = ActorSide(out, cluster=self, clients=clients)
        self.now_ns = 0
        self.resend_at_ns: int | None = None
        self.handlers = self._handlers()

    def _handlers(self) -> dict[type, Callable[[int, Address, Any], None]]:
        return {
            ShareAcked: self.sharing.on_share_acked,
            ShareReset: self.sharing.on_share_reset,
            ObjectFound: self.sharing.on_object_found,
            FreeObjects: self.sharing.on_free_objects,
            Rebuild: self.reconstruction.on_rebuild,
            Claim: self.away.on_claim,
            Ended: self.away.on_ended,
            Grant: self.guests.on_grant,
            Deny: self.guests.on_deny,
            Declined: self.away.on_declined,
            Taken: self.guests.on_taken,
            Offload: self._on_offload,
            JobOver: self.on_job_over,
            JobContext: self.guests.on_job_context,
            TableChanged: self._on_table_changed,
            Members: self.peers.on_members,
            ChunkArrived: self.transfers.on_chunk_arrived,
            ChunkSent: self.transfers.on_chunk_sent,
            AskRawLink: self.peers.on_ask_raw_link,
            OfferRawLink: self.peers.on_offer_raw_link,
            Pull: self.transfers.on_pull,
            PullFailed: self.transfers.on_pull_failed,
            KeepCopy: self.kept.on_keep_copy,
            CopiesCounted: self.kept.on_copies_counted,
            **dict.fromkeys(ACTOR_MESSAGES, self.actors.on_message),
        }

    # --- what the store asks -----------------------------------------------------------------------

    def foreign(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.sharing.foreign(entry)

    def announced(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.sharing.announced(entry)

    def sealed(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.sharing.sealed(entry)
        self.kept.sealed(entry)

    def want_copy(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.transfers.want(entry)

    def made_here(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.transfers.call_off(entry.object_id)
        self.reconstruction.expect(entry)

    def has_room(self, entry: ObjectEntry, kind: int) -> None:
        """See :class:`ClusterStore`."""
        self.transfers.has_room(entry, kind)

    def evicted(self, entry: ObjectEntry) -> None:
        """See :class:`ClusterStore`."""
        self.sharing.evicted(entry)

    # --- messages ----------------------------------------------------------------------------------

    def on_message(self, now_ns: int, source: Address, message: Any) -> None:
        """Another node, a directory or this process speaks; strangers and the dead change nothing (I9)."""
        self.now_ns = self.scheduler.now_ns = now_ns
        if source in self.peers.alive or source in self.shards or source == RUNTIME:
            self.handlers[type(message)](now_ns, source, message)

    def on_table_reply(self, now_ns: int, message: TableReply) -> None:
        """A shard answers a look-up of one of these machines."""
        self.now_ns = self.scheduler.now_ns = now_ns
        if message.token > actor_views.FIRST_TOKEN:
            self.actors.on_table_reply(message)
        else:
            self.reconstruction.on_table_reply(now_ns, message)

    def _on_table_changed(self, now_ns: int, source: Address, message: TableChanged) -> None:
        self.reconstruction.on_table_changed(now_ns, source, message)
        if source in self.shards:
            self.actors.views.on_table_changed(message)

    def _on_offload(self, now_ns: int, source: Address, message: Offload) -> None:
        # All global schedulers know the same loads and ask for the same: one of them is heard.
        if source == self.scheduler.global_scheduler:
            self.offloading.on_offload(now_ns, source, message)

    def introduces(self, source: Address, message: Describe | ExportFunction) -> bool:
        """Whether another node says what its tasks have in common, which is kept then."""
        if source not in self.peers.alive:
            return False
        if isinstance(message, Describe):
            self.guests.on_describe(source, message)
        else:
            self.scheduler.functions.setdefault(message.function_id, message.code)
        return True

    # --- other nodes -------------------------------------------------------------------------------

    def _peers_changed(self) -> None:
        self.scheduler.peers = len(self.peers.alive)
        self.away.peers = self.peers.alive
        if self.peers.alive and not self.sharing.active:
            self._begin_sharing()
        self.guests.peers_changed(self.now_ns, self.peers.alive)
        self.actors.peers_changed(self.peers.alive)

    def _begin_sharing(self) -> None:
        self.sharing.active = True
        self.store.cluster = self
        self.references.on_unneeded = self.sharing.unneeded
        strangers, self.store.strangers = self.store.strangers, OrderedDict()
        for object_id in strangers:
            if object_id in self.store.objects:
                self.sharing.foreign(self.store.objects[object_id])
        self.kept.begin()
        self.scheduler.actors.tell_pending()
        self.resend_at_ns = self.now_ns + RESEND_FORWARDS_NS

    def _node_dead(self, node: Address) -> None:
        self.transfers.node_dead(node)
        self.sharing.node_dead(node)
        for job in [job for job in self.scheduler.jobs.values() if job.home == node]:
            if not job.context.detached:  # else its next home says when it is over
                self.end_job(self.now_ns, job.job_id)
        self.guests.node_dead(node)
        self.actors.node_dead(node)
        self.away.node_dead(self.now_ns, node)
        self.scheduler.admission.resend()

    def shard_moved(self, number: int, address: Address) -> None:
        """A shard is served by another of its replicas from now on; that one will greet."""
        self.sharing.shard_moved(number, address)

    def on_job_over(self, now_ns: int, source: Address, message: JobOver) -> None:
        """The job of some guests has ended at their origin."""
        self.end_job(now_ns, message.job_id)

    def job_over_everywhere(self, job_id: bytes) -> None:
        """A detached actor died with its home and its successor: nobody else says that its job is over."""
        for node in self.peers.alive:
            self.sharing.depart(node, JobOver(job_id))
        self.end_job(self.now_ns, job_id)

    def end_job(self, now_ns: int, job_id: bytes) -> None:
        """A job has ended, here or elsewhere."""
        self.guests.end_job(now_ns, job_id)
        self.reconstruction.end_job(job_id)

    def shard_is_back(self, shard: Address) -> None:
        """A shard greets: it may have missed, or forgotten, anything."""
        self.peers.remind(shard)
        self.sharing.restate(shard)
        self.reconstruction.ask_again(shard)
        self.actors.shard_is_back(shard)

    # --- time --------------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """The earliest wish of any of them; none in a cluster of one node."""
        if not self.sharing.active:
            return None
        wishes = (
            self.sharing.wake_at_ns, self.transfers.wake_at_ns, self.guests.repeat_at_ns, self.resend_at_ns,
            self.actors.wake_at_ns, self.kept.wake_at_ns,
        )  # fmt: skip
        return min((wish for wish in wishes if wish is not None), default=None)

    def on_tick(self, now_ns: int) -> None:
        """Every one looks at its own deadlines."""
        if not self.sharing.active:
            return
        self.now_ns = now_ns
        self.sharing.on_tick(now_ns)
        self.transfers.on_tick(now_ns)
        self.guests.on_tick(now_ns)
        self.actors.on_tick(now_ns)
        self.kept.on_tick(now_ns)
        if self.resend_at_ns is not None and self.resend_at_ns <= now_ns:
            self.resend_at_ns = now_ns + RESEND_FORWARDS_NS
            self.scheduler.admission.resend()

    def flush(self, now_ns: int) -> None:
        """Once per batch, after tasks were dispatched."""
        self.actors.flush(now_ns)
        self.transfers.flush(now_ns)
        self.sharing.flush(now_ns)
        self.transfers.sweep()

    def check(self) -> None:
        """Every invariant of every machine."""
        for machine in (
            self.peers, self.sharing, self.away, self.guests, self.transfers, self.reconstruction,
            self.actors, self.kept,
        ):  # fmt: skip
            machine.check()
