"""Placement groups: who has one, where its bundles are, and how they got there, all or none.

One place decides, beside the global scheduler. A group is placed in two phases: every node of a plan
*prepares* its bundles, which takes the resources and lets nobody use them; when all have, the decision is
written to the control store; only then they are told to *commit*. A node that has no room, or dies, before
that is the end of the attempt, and what the others prepared is let go. A node that dies later leaves its
bundles to be placed anew.

What a node should hold of a group is a *wish* here, sent until the node says that it is so; messages that
are lost, repeated or late change nothing. The table has all that must outlive this process; a new life of
it asks every node what it holds, and lets go of what the table does not know.

Invariants: a bundle is committed on a node only if the table says so; every wish that is not fulfilled is
sent again; a group is waiting, under way, created or being removed, and only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from zray.config import Config
from zray.core import group_plans
from zray.core.bundle_wishes import BundleWishes
from zray.core.checks import problem_of_group, problem_of_report, speaks_for_itself
from zray.core.group_book import CREATED, PREPARING, RECORDING, REMOVING, WAITING, Group, GroupBook
from zray.core.group_table import GroupTable
from zray.core.machine import Address, Effect, Handler, invariant
from zray.core.membership import LIFE_SHIFT
from zray.core.resources import ResourcePool
from zray.ids import short
from zray.protocol.cluster import Members
from zray.protocol.documents import encode_report, encode_value
from zray.protocol.group_messages import (
    BundlesHeld,
    BundlesListed,
    CreateGroup,
    EndGroups,
    FindGroup,
    GroupAnswer,
    GroupGone,
    GroupWaits,
    ListGroups,
    RemoveGroup,
)
from zray.protocol.messages import Forward, NodeReport, TablePage, TableReply

RETRY_NS = 1_000_000_000
EARLY_MAX = 10_000
"""Requests that came before the table was read and the living were known; what does not fit is repeated."""

POOLS_MAX = 10_000
"""Nodes whose reports are kept."""

Request = CreateGroup | RemoveGroup | FindGroup | ListGroups | EndGroups


class PlacementGroups:
    """The coordinator of all placement groups. Pure.

    Args:
        store: the address of the shard beside it, which keeps the table.
        life: the number of that shard's life.
        config: the grace before a group that cannot be placed is told of.
    """

    def __init__(self, *, store: Address, life: Callable[[], int], config: Config) -> None:
        self.out: list[Effect] = []
        self.config = config
        self.life = life
        self.table = GroupTable(self.out, store=store, life=life)
        self.wishes = BundleWishes(self.out, life=life)
        self.book = GroupBook()
        self.epoch = 0  # of the newest table of the living
        self.alive: dict[bytes, None] = {}
        self.pools: dict[bytes, ResourcePool] = {}  # by node, less what was planned since its last report
        self.full: dict[bytes, None] = {}  # nodes that had less than they reported: not before the next one
        self.early: list[tuple[Address, Request]] = []
        self.ready = False  # whether the table was read and the living are known
        self.changed = False  # whether a plan may be found where there was none
        self.look_at_ns: int | None = 0

    @property
    def wake_at_ns(self) -> int | None:
        """When something is to be repeated, or told."""
        return self.look_at_ns

    def on_tick(self, now_ns: int) -> None:
        """Ask and tell again what was not answered; tell who waits in vain."""
        if self.look_at_ns is None or self.look_at_ns > now_ns:
            return
        self.table.repeat()
        self.wishes.repeat()
        for group in self.book.waiting.values():
            self._tell(now_ns, group)
        self.look_at_ns = None if self._is_idle() else now_ns + RETRY_NS

    def _is_idle(self) -> bool:
        return self.ready and self.table.is_idle and self.wishes.is_idle and not self.book.waiting

    def flush(self, now_ns: int) -> None:
        """Once per batch: place what waits, if that may succeed now."""
        if not self.ready and self.table.opened and self.epoch:
            self._begin(now_ns)
        if self.changed and self.ready:
            self.changed = False
            for group in list(self.book.waiting.values()):
                self._place(now_ns, group)
        if self.look_at_ns is None and not self._is_idle():
            self.look_at_ns = now_ns + RETRY_NS

    # --- requests ----------------------------------------------------------------------------------

    def on_request(self, now_ns: int, source: Address, message: Request) -> None:
        """A node asks for something, for one of its processes or for itself."""
        home = message.spec.home if isinstance(message, CreateGroup) else source
        if (
            not self.ready or source not in self.alive or home not in self.alive
        ):  # the table of the living that has its node is on its way
            if len(self.early) < EARLY_MAX:
                self.early.append((source, message))
            return
        _REQUESTS[type(message)](self, now_ns, source, message)

    def _create(self, now_ns: int, source: Address, message: CreateGroup) -> None:
        spec = message.spec
        problem = problem_of_group(spec) or self.book.problem_of(spec)
        if problem:
            self.out.append((source, GroupAnswer(message.token, False, detail=problem)))
            return
        group = self.book.groups.get(spec.group_id)
        if group is None:
            group = self.book.add(spec)
            group.tell_at_ns = now_ns + self.config.infeasible_grace_ns
            self.table.write(group.row())
        elif group.state == REMOVING:  # its maker runs again: that is repeated when this one is gone
            return
        group.askers[source, message.token] = None
        if self.table.has(spec.group_id):
            self._answer(group, True)

    def _remove(self, now_ns: int, source: Address, message: RemoveGroup) -> None:
        group = self.book.groups.get(message.group_id)
        if group is None:
            self.out.append((source, GroupAnswer(message.token, True)))
            return
        self._end(group)
        group.askers[source, message.token] = None

    def _find(self, now_ns: int, source: Address, message: FindGroup) -> None:
        group = self.book.called(message.namespace, message.name)
        body = b"" if group is None else encode_value(group.spec)
        self.out.append((source, GroupAnswer(message.token, group is not None, body)))

    def _list(self, now_ns: int, source: Address, message: ListGroups) -> None:
        rows = self.book.report(message.group_id)
        for row in rows:
            row["waits_for"] = self._why(row.pop("group"))
        self.out.append((source, GroupAnswer(message.token, True, encode_report(rows))))

    def _end_job(self, now_ns: int, source: Address, message: EndGroups) -> None:
        """A job is over: no group of it is made any more, and those that it has go."""
        for group in self.book.end_job(message.job_id):
            self._end(group)
        if self.book.has_any_of(message.job_id):
            self.book.endings[source, message.token] = message.job_id
        else:
            self.out.append((source, GroupAnswer(message.token, True)))

    def _answer(self, group: Group, ok: bool, detail: str = "") -> None:
        for source, token in group.askers:
            self.out.append((source, GroupAnswer(token, ok, detail=detail)))
        group.askers.clear()

    def on_forward(self, now_ns: int, source: Address, message: Forward) -> None:
        """A task is to be placed: if it is one of a group that is gone, its node is told so."""
        in_group = message.descriptor.in_group
        if in_group is not None and self.ready and in_group.group_id not in self.book.groups:
            for node in dict.fromkeys((source, message.origin or source)):
                self.out.append((node, GroupGone(in_group.group_id)))

    # --- placing -----------------------------------------------------------------------------------

    def _place(self, now_ns: int, group: Group) -> None:
        """Try a plan: every node of it is asked to prepare its part."""
        free = {
            node_id: pool.free
            for node_id, pool in self.pools.items()
            if node_id in self.alive and node_id not in self.full
        }
        found = group_plans.plan(group.spec, group.places, free)
        if found is None:
            return
        group.planned = found
        self.book.set_state(group, PREPARING)
        for index, node_id in found.items():
            self.pools[node_id].take(group.spec.bundles[index])
        self._wish(group, found.values())
        self._see_whether_prepared(group)

    def _wish(self, group: Group, nodes: Iterable[bytes]) -> None:
        """Tell nodes what they should hold of a group now."""
        for node_id in dict.fromkeys(nodes):
            self.wishes.set(node_id, group.spec.group_id, group.bundles_on(node_id))

    def on_bundles_held(self, now_ns: int, source: Address, message: BundlesHeld) -> None:
        """A node holds what it should of a group, or cannot."""
        wish = self.wishes.answered(source, message)
        if wish is None:
            return
        group = self.book.groups.get(message.group_id)
        if group is None:
            return
        if message.ok:
            self._see_whether_prepared(group)
        elif source in group.places.values():  # it lost what it had promised to hold
            self._lose(now_ns, group, source)
        elif source in group.planned.values():
            self.full[source] = None
            self._call_off(group)

    def _see_whether_prepared(self, group: Group) -> None:
        if group.state != PREPARING:
            return
        group_id = group.spec.group_id
        if all(self.wishes.is_fulfilled(node_id, group_id) for node_id in group.planned.values()):
            self.book.set_state(group, RECORDING)
            self.table.write(group.row())

    def _call_off(self, group: Group) -> None:
        """End an attempt: what was prepared for it is let go, and what was written is taken back."""
        planned, group.planned = group.planned, {}
        if group.state == RECORDING:
            self.table.write(group.row())
        self.book.set_state(group, WAITING)
        self._wish(group, [node_id for node_id in planned.values() if node_id in self.alive])
        self.changed = True

    def _lose(self, now_ns: int, group: Group, node_id: bytes) -> None:
        """Bundles that were committed are gone with their node: they are placed anew, the others stay."""
        if group.state == REMOVING:
            return
        for index in [index for index, place in group.places.items() if place == node_id]:
            del group.places[index]
        if group.planned:
            self._call_off(group)
        if group.state == CREATED:
            group.tell_at_ns = now_ns + self.config.infeasible_grace_ns
            self.book.set_state(group, WAITING)
        if node_id in self.alive:
            self._wish(group, (node_id,))
        self.changed = True

    # --- the table ---------------------------------------------------------------------------------

    def on_table_reply(self, now_ns: int, source: Address, message: TableReply) -> None:
        """A wish, a decision or an end is durable, or the table has no room."""
        group_id = self.table.replied(source, message)
        group = self.book.groups.get(group_id)
        if group is None:
            return
        if group.state == REMOVING:
            self._removed(group)
        elif not message.ok:
            self.book.drop(group)
            self.wishes.release_all(group_id)
            self._answer(group, False, "the control store is full; remove groups that are not needed")
        else:
            self._recorded(group)

    def _recorded(self, group: Group) -> None:
        self._answer(group, True)
        if group.state == RECORDING:
            group.places.update(group.planned)
            nodes, group.planned = list(group.planned.values()), {}
            self.book.set_state(group, CREATED)
            self._wish(group, nodes)
        elif group.state == WAITING:
            self.changed = True

    def _end(self, group: Group) -> None:
        """Remove a group: first from the table, then from the nodes."""
        if group.state == REMOVING:
            return
        self.book.set_state(group, REMOVING)
        self.table.delete(group.spec.group_id)

    def _removed(self, group: Group) -> None:
        group_id = group.spec.group_id
        group.places, group.planned = {}, {}
        self.book.drop(group)
        self.wishes.release_all(group_id)
        self.out.extend((node_id, GroupGone(group_id)) for node_id in self.alive)
        self._answer(group, True)
        for asker, job_id in list(self.book.endings.items()):
            if not self.book.has_any_of(job_id):
                del self.book.endings[asker]
                self.out.append((asker[0], GroupAnswer(asker[1], True)))
        self.changed = True

    def on_table_page(self, now_ns: int, source: Address, message: TablePage) -> None:
        """What former lives left."""
        for row in self.table.read(source, message):
            group = self.book.add(row.spec)
            group.places = {index: node_id for index, node_id in enumerate(row.places) if node_id}
            self.book.set_state(group, CREATED if group.places else WAITING)

    def _begin(self, now_ns: int) -> None:
        """The table was read and the living are known: what it says is wished for, but for the dead."""
        self.ready = self.changed = True
        for group in list(self.book.groups.values()):
            group.tell_at_ns = now_ns + self.config.infeasible_grace_ns
            self._wish(group, [node_id for node_id in group.places.values() if node_id in self.alive])
            for node_id in dict.fromkeys([*group.places.values(), group.spec.home]):
                if node_id not in self.alive:
                    self._survive(now_ns, group, node_id)
        for node_id in self.alive:
            self.wishes.ask(node_id)
        self._hear_early(now_ns)

    # --- nodes -------------------------------------------------------------------------------------

    def on_bundles_listed(self, now_ns: int, source: Address, message: BundlesListed) -> None:
        """A node says of which groups it holds bundles; those that nobody wishes for are let go."""
        self.wishes.listed(source, message)

    def on_node_report(self, now_ns: int, source: Address, report: NodeReport) -> None:
        """What a node has free, which counts from the next plan on."""
        pool = self.pools.get(source)
        if source != report.node_id or problem_of_report(report):
            return
        if pool is None and len(self.pools) >= POOLS_MAX:
            return
        self.changed |= bool(self.book.waiting)
        self.full.pop(source, None)
        if pool is None or dict(report.total) != pool.total:
            self.pools[source] = ResourcePool(report.total, report.free)
        else:
            pool.set_free(report.free)

    def on_members(self, now_ns: int, source: Address, message: Members) -> None:
        """A node passes on who is alive: whoever was and is not any more holds nothing.

        A table of a former life may lack who came later, so it says nothing of the dead.
        """
        known = max(self.epoch, self.life() << LIFE_SHIFT)
        if message.epoch <= known or not speaks_for_itself(source, message):
            return
        self.epoch = message.epoch
        alive = {node_id: None for node_id, _ in message.nodes}
        dead = [node_id for node_id in self.alive if node_id not in alive]
        born = [node_id for node_id in alive if node_id not in self.alive]
        self.alive = alive
        for node_id in dead:
            self.pools.pop(node_id, None)
            self.full.pop(node_id, None)
            self.wishes.node_dead(node_id)
            for group in list(self.book.groups.values()):
                self._survive(now_ns, group, node_id)
        if self.ready:
            for node_id in born:
                self.wishes.ask(node_id)
            self.changed = True
            self._hear_early(now_ns)

    def _survive(self, now_ns: int, group: Group, node_id: bytes) -> None:
        """A node is dead that a group may depend on."""
        if group.spec.home == node_id and not group.spec.detached:
            self._end(group)
        elif node_id in group.places.values():
            self._lose(now_ns, group, node_id)
        elif node_id in group.planned.values() and group.state != REMOVING:
            self._call_off(group)

    def _hear_early(self, now_ns: int) -> None:
        early, self.early = self.early, []
        for source, message in early:
            if source in self.alive:
                self.on_request(now_ns, source, message)

    # --- people ------------------------------------------------------------------------------------

    def _why(self, group: Group | None) -> str:
        """What a group waits for; empty if it does not."""
        if group is None or group.state != WAITING:
            return ""
        alive = {node_id: pool for node_id, pool in self.pools.items() if node_id in self.alive}
        totals = {node_id: dict(pool.total) for node_id, pool in alive.items()}
        if group_plans.plan(group.spec, group.places, totals) is None:
            return group_plans.obstacle(group.spec, group.places, totals)
        free = {node_id: pool.free for node_id, pool in alive.items()}
        return f"busy now: {group_plans.obstacle(group.spec, group.places, free)}"

    def _tell(self, now_ns: int, group: Group) -> None:
        """Tell the driver, once, of a group that no cluster like this can hold."""
        if group.tell_at_ns is None or group.tell_at_ns > now_ns or group.spec.home not in self.alive:
            return
        why = self._why(group)
        if why and not why.startswith("busy"):
            group.tell_at_ns = None
            text = f"{group_plans.name_of(group.spec)} cannot be placed; it stays pending until it can. {why}"
            self.out.append((group.spec.home, GroupWaits(group.spec.job_id, text)))

    def check(self) -> None:
        """Raise ``InvariantError`` unless the state is consistent; between batches."""
        self.book.check()
        self.table.check()
        self.wishes.check(self.alive if self.epoch else None)
        for group in self.book.groups.values():
            name = short(group.spec.group_id)
            if self.ready and group.state != REMOVING:
                for node_id in (*group.places.values(), *group.planned.values()):
                    invariant(node_id in self.alive, "group", name, "is on a dead node")
        invariant(self._is_idle() or self.look_at_ns is not None, "I6: nobody looks after groups")

    HANDLERS: ClassVar[dict[type, Handler]] = {
        CreateGroup: on_request,
        RemoveGroup: on_request,
        FindGroup: on_request,
        ListGroups: on_request,
        EndGroups: on_request,
        Forward: on_forward,
        BundlesHeld: on_bundles_held,
        BundlesListed: on_bundles_listed,
        NodeReport: on_node_report,
        Members: on_members,
        TableReply: on_table_reply,
        TablePage: on_table_page,
    }


_REQUESTS: dict[type, Callable[..., None]] = {
    CreateGroup: PlacementGroups._create,
    RemoveGroup: PlacementGroups._remove,
    FindGroup: PlacementGroups._find,
    ListGroups: PlacementGroups._list,
    EndGroups: PlacementGroups._end_job,
}
