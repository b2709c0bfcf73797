"""The bundles of placement groups that one node holds, and the end of what runs in them.

The coordinator says what the node should hold of a group (``core/placement_groups.py``). A prepared bundle
is set aside: neither free nor usable. A committed one adds resources with names of the group to the node,
which its tasks hold instead of the node's own (``core/group_resources.py``). A bundle that is let go
*leaves*: its tasks and actors end, its names go as fast as nobody holds them any more, and only then its
resources are free again.

Invariants: what is set aside is the sum of all bundles that are held or leave (I4); a version that is not
higher than every one before it changes nothing (I9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core import group_resources
from zray.core.group_plans import total_of
from zray.core.machine import Address, Effect, invariant
from zray.core.worker_pool import TaskEntry
from zray.ids import short
from zray.protocol import faults
from zray.protocol.group_messages import (
    AskBundles,
    Bundle,
    BundlesHeld,
    BundlesListed,
    GroupGone,
    HoldBundles,
)
from zray.protocol.messages import ACTOR, Demand, Describe, Value

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler


class LeavingGroup:
    """Bundles that were let go and of which something is still held; found in ``Bundles.leaving``."""

    __slots__ = ("added", "aside", "coordinator", "version")

    def __init__(self, aside: Demand, added: Demand) -> None:
        self.aside = aside  # of the node's own resources
        self.added = added  # with names of the group, and not gone yet
        self.coordinator: Address = b""
        self.version = 0  # of the newest word that it is to be let go, answered at the end


class Bundles:
    """Reserved resources of one node. Pure; shares its node's outbox.

    Attributes:
        changed: whether the node has other resources than the global scheduler was told.
    """

    def __init__(self, out: list[Effect], *, scheduler: LocalScheduler) -> None:
        self.out = out
        self.scheduler = scheduler
        self.resources = scheduler.pool.resources
        self.held: dict[bytes, dict[int, Bundle]] = {}  # group -> its bundles here, by index
        self.leaving: dict[bytes, LeavingGroup] = {}
        self.heard = 0  # the highest version
        self.changed = False

    # --- what the coordinator says -----------------------------------------------------------------

    def on_hold(self, source: Address, message: HoldBundles) -> None:
        """Hold exactly this of a group."""
        if message.version <= self.heard:
            return
        self.heard = message.version
        group_id = message.group_id
        if not message.bundles:
            self._let_go(source, message)
            return
        ok = group_id not in self.leaving and self._hold(group_id, message.bundles)
        self.out.append((source, BundlesHeld(message.version, group_id, ok)))

    def _hold(self, group_id: bytes, wished: tuple[Bundle, ...]) -> bool:
        """Reserve what is new, all of it or nothing; let go of what was only prepared; commit."""
        held = self.held.get(group_id, {})
        indices = {bundle.index: None for bundle in wished}
        for bundle in [bundle for bundle in held.values() if bundle.index not in indices]:
            invariant(not bundle.committed, "a committed bundle leaves alone, of group", short(group_id))
            del held[bundle.index]
            self.resources.put_back(bundle.demand)
        new = [bundle for bundle in wished if bundle.index not in held]
        if not self.resources.fits(total_of(bundle.demand for bundle in new)):
            self.scheduler.leases.revoke()  # workers that are lent to somebody may hold what is missing
            if not held:
                self.held.pop(group_id, None)
            return False
        for bundle in new:
            self.resources.set_aside(bundle.demand)
        for bundle in wished:
            if bundle.committed and not (bundle.index in held and held[bundle.index].committed):
                self.resources.add(group_resources.added_by(group_id, bundle.index, bundle.demand))
                self.changed = True
            held[bundle.index] = bundle
        self.held[group_id] = held
        return True

    def _let_go(self, source: Address, message: HoldBundles) -> None:
        group_id = message.group_id
        held = self.held.pop(group_id, {})
        committed = [bundle for bundle in held.values() if bundle.committed]
        for bundle in held.values():
            if not bundle.committed:
                self.resources.put_back(bundle.demand)
        if committed:  # else an attempt was called off: what waits for the group waits for the next one
            self.leaving[group_id] = LeavingGroup(
                total_of(bundle.demand for bundle in committed),
                total_of(
                    group_resources.added_by(group_id, bundle.index, bundle.demand) for bundle in committed
                ),
            )
            self.end_tasks(group_id)
        leaving = self.leaving.get(group_id)
        if leaving is None:
            self.out.append((source, BundlesHeld(message.version, group_id, True)))
        else:
            leaving.coordinator, leaving.version = source, message.version

    def on_ask(self, source: Address, message: AskBundles) -> None:
        """A new life of the coordinator asks what is here."""
        group_ids = (*self.held, *self.leaving)
        self.out.append((source, BundlesListed(message.version, group_ids, self.heard)))

    def flush(self) -> None:
        """Before tasks are dispatched: what came back to a bundle that leaves is for nobody."""
        for group_id, leaving in list(self.leaving.items()):
            leaving.added = self.resources.withdraw_free(leaving.added)
            if not leaving.added:
                del self.leaving[group_id]
                self.resources.put_back(leaving.aside)
                self.end_tasks(group_id)  # those that came meanwhile
                self.changed = True
                self.out.append((leaving.coordinator, BundlesHeld(leaving.version, group_id, True)))

    # --- the end of a group ------------------------------------------------------------------------

    def on_gone(self, message: GroupGone) -> None:
        """A group was removed: what waits for it waits in vain, wherever its bundles are."""
        self.end_tasks(message.group_id)

    def end_tasks(self, group_id: bytes) -> None:
        """End the tasks and actors of a group, with the error that says so. Cost: O(unfinished tasks)."""
        scheduler = self.scheduler
        for actor_id, entry in list(scheduler.actors.entries.items()):
            if entry.descriptor is not None and _is_in(entry.descriptor, group_id):
                scheduler.lives.end(actor_id, removed_value(entry.descriptor, actor_id))
        workers = {task_id: worker for worker in scheduler.pool.workers.values() for task_id in worker.queue}
        for task_id, task in list(scheduler.tasks.items()):
            if scheduler.tasks.get(task_id) is task and _is_in(task.task_class.descriptor, group_id):
                self._end(task, workers.get(task_id) is not None)
                if task_id in workers:
                    scheduler.pool.kill(workers[task_id])

        for worker in list(scheduler.pool.workers.values()):  # such as those of actors of other nodes
            if worker.task_class is not None and _is_in(worker.task_class.descriptor, group_id):
                scheduler.pool.kill(worker)

    def _end(self, task: TaskEntry, has_worker: bool) -> None:
        verdict = removed_value(task.task_class.descriptor, task.spec.task_id)
        if has_worker:
            task.verdict = verdict
        else:
            self.scheduler.withdraw(task, verdict)

    def check(self) -> None:
        """I4 of what is set aside."""
        parts = [bundle.demand for held in self.held.values() for bundle in held.values()]
        parts += [leaving.aside for leaving in self.leaving.values()]
        expected = dict(total_of(parts))
        invariant(self.resources.aside == expected, "I4: set aside is", self.resources.aside, "not", expected)
        invariant(all(self.held.values()), "a group without a bundle is held")


def _is_in(descriptor: Describe, group_id: bytes) -> bool:
    return descriptor.in_group is not None and descriptor.in_group.group_id == group_id


def removed_value(descriptor: Describe, task_id: bytes) -> Value:
    """What is left of a task or an actor of a removed group."""
    assert descriptor.in_group is not None
    group = descriptor.in_group.group_id.hex()
    if descriptor.kind == ACTOR:
        return faults.fault_value(faults.ACTOR_GROUP_REMOVED, short(task_id), group)
    return faults.fault_value(faults.TASK_GROUP_REMOVED, descriptor.name, group)
