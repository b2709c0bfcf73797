"""Tasks of other nodes that run here (paper, section 4.2.2).

A placed task is *claimed* at its origin, *granted* by it, runs like any other, and its end is told to the
origin until that has *taken* it. Until then its values are kept here. Whether a lost attempt runs again is
decided by the origin alone, so attempts are numbered in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core.away import as_sent
from zray.core.jobs import remember
from zray.core.machine import Address, Effect, invariant
from zray.core.node_store import SEALED, ObjectEntry
from zray.core.placement import HOPS_MAX
from zray.core.sharing import Sharing
from zray.core.worker_pool import TaskEntry
from zray.ids import return_ids, short
from zray.protocol.cluster import Claim, Declined, Deny, Ended, Grant, Input, Taken
from zray.protocol.messages import ACTOR, AT_NODE, Describe, Forward, Infeasible, JobContext, Place
from zray.protocol.user_messages import VALUES, Cancel

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler

RESEND_NS = 1_000_000_000
EARLY_MAX = 1_000
"""Tasks of origins that a node has not heard of yet, which it keeps."""
SPILL_BACK_BACKLOGS = 4
"""A node with this many times the backlog at which tasks are forwarded takes no guests."""


class Guest:
    """One task of another node: in ``Guests.guests`` while it runs, then ``untaken`` until its end was taken.

    Whose end is not taken yet may be submitted here, too, as its parent runs again: that is another task.
    """

    __slots__ = ("at_gate", "ended", "number", "origin", "placed_again", "returns")

    def __init__(self, origin: Address, number: int, returns: tuple[bytes, ...]) -> None:
        self.origin = origin  # empty: it is dead
        self.number = number  # of the grant
        self.returns = returns  # pinned here
        self.ended: Ended | None = None
        self.at_gate = 0  # the number of its end there, when it was told last
        self.placed_again = False  # it has ended, and is to run here once more


class Guests:
    """Placed, running and ended tasks of other nodes. Pure; shares its node's outbox."""

    def __init__(
        self, out: list[Effect], *, node_id: bytes, scheduler: LocalScheduler, sharing: Sharing
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.scheduler = scheduler
        self.sharing = sharing
        self.claims: dict[bytes, Address] = {}  # claimed and not granted -> origin
        self.guests: dict[bytes, Guest] = {}
        self.untaken: dict[bytes, Guest] = {}
        self.descriptors: dict[Address, dict[bytes, Describe]] = {}
        self.over: dict[bytes, None] = {}  # jobs that are known to have ended, oldest first
        self.repeat_at_ns: int | None = None
        # who sent it, and what is placed here, of origins that this node has not heard of
        self.early: dict[bytes, tuple[Address, Place]] = {}

    # --- coming ------------------------------------------------------------------------------------

    def on_place(self, now_ns: int, source: Address, message: Place) -> None:
        """A global scheduler chose this node for a task of another: claim it, or spill it back."""
        task_id, descriptor = message.spec.task_id, message.descriptor
        if descriptor.returns != VALUES:
            reason = "generators run on the node of their submitter, which has not got these"
            refusal = Infeasible(task_id, descriptor.name, descriptor.demand, (reason,))
            self.out.append((message.origin, refusal))
            return
        guest = self.untaken.get(task_id)
        if guest is not None:
            guest.placed_again = True  # its end may be on its way still: it is claimed once that was taken
            return
        if self._has(task_id) or task_id in self.claims:
            return  # its parent ran twice, here and there: the origin asks again later
        if self._is_full() and message.hops < HOPS_MAX:
            forward = Forward(message.spec, message.descriptor, message.hops, (), message.origin)
            self.out.append((source, forward))
            return
        self._claim(now_ns, task_id, message.origin)

    def _claim(self, now_ns: int, task_id: bytes, origin: Address) -> None:
        self.claims[task_id] = origin
        self.out.append((origin, Claim(task_id)))
        self._repeat_later(now_ns)

    def place_early(self, source: Address, message: Place) -> None:
        """A global scheduler knows of an origin sooner than this node: keep its task until the next word.

        What does not fit is placed again when its origin asks again.
        """
        if len(self.early) < EARLY_MAX:
            self.early[message.spec.task_id] = source, message

    def peers_changed(self, now_ns: int, alive: dict[Address, str]) -> None:
        """Take what was placed early, now that more origins may be known."""
        early, self.early = self.early, {}
        for source, message in early.values():
            if message.origin in alive:
                self.on_place(now_ns, source, message)

    def _has(self, task_id: bytes) -> bool:
        """Whether the task, or the actor, is here already, as one of this node or of some origin."""
        scheduler, hosted = self.scheduler, self.scheduler.lives.hosted
        if task_id in scheduler.actors.entries or (hosted is not None and task_id in hosted.actors):
            return True
        return task_id in scheduler.tasks or task_id in self.untaken

    def _is_full(self) -> bool:
        slots = max(1, len(self.scheduler.pool.workers))
        per_slot = max(1, self.scheduler.config.backlog_per_slot_max)  # even if every task is forwarded
        backlog_max = SPILL_BACK_BACKLOGS * per_slot * slots
        return self.scheduler.admission.backlog_to_share() > backlog_max

    def _repeat_later(self, now_ns: int) -> None:
        if self.repeat_at_ns is None:
            self.repeat_at_ns = now_ns + RESEND_NS

    def on_deny(self, now_ns: int, source: Address, message: Deny) -> None:
        """The origin has no use for us."""
        if self.claims.get(message.task_id) == source:
            del self.claims[message.task_id]

    def on_job_context(self, now_ns: int, source: Address, message: JobContext) -> None:
        """An origin says how to import the modules of a job.

        That of a detached actor may begin once more after it was over: its creator ran again.
        """
        if message.detached:
            self.over.pop(message.job_id, None)
        if message.job_id not in self.over:
            remember(self.scheduler.jobs, message)

    def on_describe(self, source: Address, message: Describe) -> None:
        """An origin says what guests to come have in common."""
        self.descriptors.setdefault(source, {})[message.descriptor_id] = message

    def on_grant(self, now_ns: int, source: Address, message: Grant) -> None:
        """The origin lets this node run an attempt."""
        spec = message.spec
        descriptor = self.descriptors.get(source, {}).get(spec.descriptor_id)
        guest = self.guests.get(spec.task_id) or self.untaken.get(spec.task_id)
        if guest is not None and guest.origin == source:
            return  # a repeated one
        if self.claims.get(spec.task_id) != source or self._has(spec.task_id):
            if self.claims.get(spec.task_id) == source:
                del self.claims[spec.task_id]
            self.sharing.depart(source, Declined(spec.task_id, message.number))
            return
        if descriptor is None:  # it was lost with a link: the claim is repeated, and so is that
            return
        del self.claims[spec.task_id]
        if message.job_id in self.over:
            return
        if not self.scheduler.pool.resources.feasible(descriptor.demand):  # its placement group was removed
            self.sharing.depart(source, Declined(spec.task_id, message.number))
            return
        job = self.scheduler.jobs.get(message.job_id)
        if job is not None and message.home != self.node_id:
            job.home = message.home
        task_class = self.scheduler.describe(message.job_id, descriptor)
        if task_class.ended:
            if descriptor.detached:  # its former job is not gone from here yet
                self.sharing.depart(source, Declined(spec.task_id, message.number))
            return
        task = TaskEntry(spec, task_class, source)
        task.attempt, task.hops = message.attempt, message.hops + 1
        task.alone = bool(message.attempt)
        guest = Guest(source, message.number, return_ids(spec.task_id, descriptor.num_returns))
        self.guests[spec.task_id] = guest
        if descriptor.kind == ACTOR and self.scheduler.lives.hosted is not None:
            self.scheduler.lives.hosted.granted(task, source)
        for object_id in guest.returns:
            self.scheduler.store.announce(object_id).pins += 1
        for one in message.inputs:
            self.bring(now_ns, one)
        self.scheduler.admit(now_ns, task)

    def bring(self, now_ns: int, given: Input) -> None:
        """Make an input known here, unless it is."""
        store, references = self.scheduler.store, self.scheduler.references
        entry = store.objects.get(given.object_id)
        if entry is not None and (entry.state >= SEALED or entry.creator is not None):
            return
        if entry is None:
            entry = store.entry(given.object_id)
        entry.pins += 1  # sealing must not find it unneeded
        if given.value.kind == AT_NODE:
            self.sharing.adopt(entry, given.value, given.nodes, is_home=False)
        else:
            references.contain(now_ns, given.value.contained)
            entry.known = True
            store.seal(entry, given.value)
        entry.pins -= 1

    # --- going -------------------------------------------------------------------------------------

    def finished(self, task: TaskEntry, *, failed: bool) -> None:
        """All values of a guest are sealed: tell its origin, and keep them until it has them."""
        guest = self.guests.pop(task.spec.task_id)
        if task.task_class.ended:
            self._unpin(guest)
            return
        objects = self.scheduler.store.objects
        values = tuple([as_sent(objects[object_id], self.sharing) for object_id in guest.returns])
        ended = Ended(task.spec.task_id, task.attempt, values, failed, run_ns=task.task_class.run_ns)
        self._tell(guest, ended)

    def decline(self, task: TaskEntry) -> None:
        """An actor for which there is no room any more goes back to its origin."""
        scheduler, spec = self.scheduler, task.spec
        guest = self.guests.pop(spec.task_id)
        self._let_go(task)
        if scheduler.lives.hosted is not None:
            scheduler.lives.hosted.dropped(spec.task_id)
        self._make_none(guest)
        self._unpin(guest)
        if guest.origin:
            scheduler.lives.post(guest.origin, Declined(spec.task_id, guest.number))

    def on_cancel(self, source: Address, message: Cancel) -> None:
        """The origin of a guest takes it back."""
        guest = self.guests.get(message.task_id)
        if guest is not None and guest.origin == source:
            self.scheduler.cancellation.cancel(source, message)

    def crashed(self, task: TaskEntry, exit_code: int) -> None:
        """The worker of a guest is lost: its origin decides what becomes of the task."""
        task_id = task.spec.task_id
        guest = self.guests.pop(task_id)
        self._let_go(task)
        self._make_none(guest)
        self._tell(guest, Ended(task_id, task.attempt, (), crashed=True, exit_code=exit_code))

    def offload(self, task: TaskEntry) -> None:
        """A queued guest goes back to its origin, which has it placed once more."""
        spec = task.spec
        guest = self.guests.pop(spec.task_id)
        self._let_go(task)
        self._make_none(guest)
        self._tell(guest, Ended(spec.task_id, task.attempt, (), offloaded=True))

    def _let_go(self, task: TaskEntry) -> None:
        """A guest does not run here (any more): what it takes and borrows is not needed for it."""
        scheduler, spec = self.scheduler, task.spec
        del scheduler.tasks[spec.task_id]
        for object_id in (*spec.deps, *spec.borrowed):
            scheduler.references.unpin(scheduler.store.objects[object_id])

    def _make_none(self, guest: Guest) -> None:
        for object_id in guest.returns:
            entry = self.scheduler.store.objects[object_id]
            if entry.state < SEALED:
                self._not_made_here(entry)

    def _not_made_here(self, entry: ObjectEntry) -> None:
        """A value that a guest was to return comes from elsewhere, if it is needed at all."""
        entry.known = False
        if entry.object_id in self.sharing.shared:  # also if nothing needs it: then it can be let go of
            self.sharing.want_again(entry)
        elif entry.pins > 1 or entry.holders:
            self.scheduler.store.watch_stranger(self.scheduler.now_ns, entry)

    def _tell(self, guest: Guest, ended: Ended) -> None:
        if not guest.origin:
            self._unpin(guest)
            return
        guest.ended = ended
        self.untaken[ended.task_id] = guest
        guest.at_gate = self.sharing.depart(guest.origin, ended)
        self._repeat_later(self.scheduler.now_ns)

    def on_taken(self, now_ns: int, source: Address, message: Taken) -> None:
        """The origin holds all that came out of a guest: its values are the origin's business now."""
        guest = self.untaken.get(message.task_id)
        if guest is None or guest.origin != source or guest.ended is None:
            return
        if guest.ended.attempt == message.attempt:
            del self.untaken[message.task_id]
            self._unpin(guest)
            if guest.placed_again and not self._has(message.task_id):
                self._claim(now_ns, message.task_id, source)

    def _unpin(self, guest: Guest) -> None:
        store, references = self.scheduler.store, self.scheduler.references
        for object_id in guest.returns:
            references.unpin(store.objects[object_id])

    def on_tick(self, now_ns: int) -> None:
        """Repeat what was not answered: a claim to its origin, an end to its."""
        if self.repeat_at_ns is None or self.repeat_at_ns > now_ns:
            return
        self.repeat_at_ns = None
        for task_id, origin in self.claims.items():
            self.out.append((origin, Claim(task_id)))
        for guest in self.untaken.values():
            if self.sharing.has_left(guest.at_gate):
                guest.at_gate = self.sharing.depart(guest.origin, guest.ended)
        if self.claims or self.untaken:
            self._repeat_later(now_ns)

    # --- nodes and jobs ----------------------------------------------------------------------------

    def node_dead(self, node: Address) -> None:
        """Nobody waits for the guests of a dead node: those that run may end, and are forgotten then."""
        self.descriptors.pop(node, None)
        for task_id in [task_id for task_id, origin in self.claims.items() if origin == node]:
            del self.claims[task_id]
        for guest in self.guests.values():
            if guest.origin == node:
                guest.origin = b""
        for task_id, guest in list(self.untaken.items()):
            if guest.origin == node:
                del self.untaken[task_id]
                self._unpin(guest)

    def end_job(self, now_ns: int, job_id: bytes) -> None:
        """End the guests of a job, for good: a grant that is still on its way finds it over."""
        self.over[job_id] = None
        if len(self.over) > self.scheduler.config.finished_tasks_max:
            del self.over[next(iter(self.over))]
        self.scheduler.end_job(now_ns, job_id)

    def check(self) -> None:
        """Guests run here until they have ended; their values are pinned until those were taken."""
        for task_id in self.guests:
            invariant(task_id in self.scheduler.tasks, "guest", short(task_id), "does not run")
            invariant(task_id not in self.untaken, "guest", short(task_id), "runs and has ended")
        for guest in (*self.guests.values(), *self.untaken.values()):
            for object_id in guest.returns:
                entry = self.scheduler.store.objects.get(object_id)
                invariant(entry is not None and entry.pins > 0, "value of a guest is gone:", short(object_id))
