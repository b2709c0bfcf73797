"""How the actors of one node begin, are made again, and end; wherever they live.

An actor is its creation task, kept: when its process dies and restarts are left, the same task is queued
once more, and its callers wait (paper, section 4.2.1: the actor table knows where it is). What the
constructor takes is pinned for as long as it may run again. A detached actor is a job of its own, so the
end of the driver that made it means nothing to it, and the node itself holds its handle until somebody
kills it.

Invariant: an actor that may be made again has its inputs; one that is dead for good has nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.core.actors import ActorEntry
from zray.core.checkpoints import ActorPasts
from zray.core.machine import Address, invariant
from zray.core.placement import HOPS_MAX
from zray.core.worker_pool import TaskClass, TaskEntry, Worker
from zray.ids import first_return_id, short
from zray.protocol import faults
from zray.protocol.actor_messages import EndLife, LifeEnded
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import (
    ACTOR_DEAD,
    INLINE,
    TASK_FINISHED,
    Describe,
    JobContext,
    TaskDone,
    Value,
)

if TYPE_CHECKING:
    from zray.core.hosted_actors import HostedActors
    from zray.core.local_scheduler import LocalScheduler
    from zray.core.succession import Succession
    from zray.core.wills import HeldWill


def _nobody_cares(actor_id: bytes, descriptor: Describe) -> None:
    pass


def _nobody_keeps(job: JobContext) -> None:
    pass


def _nobody_inherits(actor_id: bytes) -> None:
    pass


def _nobody_hears(node: Address, message: Any) -> None:
    pass


class ActorLives:
    """Beginnings and ends of actors. Pure; a room of the :class:`LocalScheduler` of its node."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self.scheduler = scheduler
        self.actors = scheduler.actors
        self.checkpoints = ActorPasts(scheduler)
        self.on_gone: Callable[[bytes, Describe], None] = _nobody_cares
        self.on_shown: Callable[[bytes, Describe], None] = _nobody_cares  # of detached actors
        self.on_detached: Callable[[JobContext], None] = _nobody_keeps
        self.on_disowned: Callable[[bytes, Describe], None] = _nobody_cares
        self.hosted: HostedActors | None = None  # lives of other nodes' actors; set in a node with peers
        self.post: Callable[[Address, Any], None] = _nobody_hears
        self.succession: Succession | None = None  # of detached actors; set in a node with peers
        self.spend_will: Callable[[bytes], None] = _nobody_inherits

    # --- beginnings ------------------------------------------------------------------------------

    def submitted(self, task: TaskEntry) -> None:
        """An actor is going to be made."""
        scheduler, spec, descriptor = self.scheduler, task.spec, task.task_class.descriptor
        former = self.actors.entries.get(spec.task_id)
        if former is not None:  # its creator runs again and makes it anew
            self._let_go(former)
            if former.host:
                self.end_away(former, kill=True)
        if descriptor.detached:
            self._detach(task)
            if self.succession is not None:
                self.succession.expect(spec.task_id)
        self.actors.submitted(spec.task_id, task.task_class.job_id, descriptor.name)
        entry = self.actors.entries[spec.task_id]
        entry.descriptor = descriptor
        if descriptor.max_restarts:
            entry.creation = task
            self._pin(task)
        if descriptor.detached:
            scheduler.references.pin(scheduler.store.objects[first_return_id(spec.task_id)])
            if self.succession is not None:
                self.succession.begins(entry)

    def forward_unfit(self, task_class: TaskClass) -> None:
        """An actor waits for nothing that would end soon: what does not fit here now goes elsewhere."""
        scheduler = self.scheduler
        if scheduler.pool.resources.fits(task_class.demand):
            return  # it waits for a worker only
        while task_class.ready:
            task = task_class.ready.popleft()
            if task.spec.task_id not in scheduler.guests:
                self.look_elsewhere(task)
            elif scheduler.guest_tasks is not None:
                scheduler.guest_tasks.decline(task)

    def look_elsewhere(self, task: TaskEntry) -> None:
        """A node that was chosen has no room: look on, and after some nodes in vain only now and then."""
        admission, task.stays = self.scheduler.admission, False
        if task.hops < HOPS_MAX:
            admission.forward(task)
        else:
            task.hops = 0
            admission.forwarded[task.spec.task_id] = task  # and is told with the next ones

    def _detach(self, task: TaskEntry) -> None:
        """The actor is a job from now on, which knows what the job of its creator knew."""
        scheduler, actor_id = self.scheduler, task.spec.task_id
        creator = scheduler.jobs.get(task.task_class.job_id)
        if creator is not None:
            context = creator.context
            job = JobContext(
                actor_id, context.sys_path, context.working_dir, context.namespace, context.environment, True
            )
            scheduler.add_job(job)
            self.on_detached(job)
        task.task_class = scheduler.describe(actor_id, task.task_class.descriptor)

    def dispatched(self, actor_id: bytes, worker: Worker) -> None:
        """A worker starts to run a constructor."""
        if self.hosted is None or not self.hosted.dispatched(actor_id, worker):
            self.actors.dispatched(actor_id, worker)

    def created(self, worker: Worker, task: TaskEntry, message: TaskDone) -> None:
        """The constructor has ended."""
        actor_id = task.spec.task_id
        if self.hosted is not None and self.hosted.created(worker, message):
            return
        entry = self.actors.entries.get(actor_id)
        if message.failed:
            if entry is not None and entry.worker is worker:
                self.died(actor_id, message.values[0])
            self.scheduler.pool.kill(worker)
        else:
            self.actors.alive(actor_id, worker)

    # --- ends ------------------------------------------------------------------------------------

    def created_away(self, task: TaskEntry, host: Address, values: tuple[Value, ...], failed: bool) -> None:
        """The constructor has ended on another node."""
        if failed:
            self.died(task.spec.task_id, values[0])
        else:
            self.actors.alive_at(task.spec.task_id, host)

    def exited(self, worker: Worker, queue: list[TaskEntry], message: WorkerExited) -> None:
        """The process of an actor is gone."""
        if self.hosted is not None and self.hosted.exited(worker, queue, message):
            return
        actor_id = worker.actor_id
        entry = self.actors.entries.get(actor_id)
        reason = self._reason(entry, message.exit_code)
        current = entry is not None and entry.worker is worker  # else it was ended before, or is made anew
        if current and entry is not None and self._may_restart(entry):
            self._restart(entry, queue, reason)
            return
        cause = faults.fault_value(faults.ACTOR_DIED, short(actor_id), reason)
        if current:
            self.died(actor_id, cause)
        for task in queue:  # it died in its constructor
            if entry is not None and entry.state.cause is not None:
                cause = entry.state.cause
            self.scheduler.end_task(task, cause)

    def life_ended(self, source: Address, message: LifeEnded) -> None:
        """The process of a life is gone on another node."""
        entry = self.actors.entries.get(message.actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD or entry.restarts != message.life:
            return
        entry.leaving = entry.leaving or message.leaving
        reason = f"{self._reason(entry, message.exit_code)}, on node {short(source)}"
        if entry.host == source:
            self._over(entry, None, reason)
        elif self.scheduler.away is not None:  # that it had begun was not heard
            task = self.scheduler.away.taken_back(message.actor_id, source)
            if task is not None:
                self._over(entry, task, reason)

    def lost_away(self, task: TaskEntry, reason: str) -> None:
        """The constructor did not end on another node, and will not."""
        entry = self.actors.entries.get(task.spec.task_id)
        if entry is not None and entry.state.state != ACTOR_DEAD:
            self._over(entry, task, reason)
        else:
            cause = faults.fault_value(faults.ACTOR_DIED, short(task.spec.task_id), reason)
            self.scheduler.end_task(task, cause)

    def node_dead(self, node: Address) -> None:
        """The actors of this node that lived on a dead one are made again, or die."""
        for entry in [entry for entry in self.actors.entries.values() if entry.host == node]:
            self._over(entry, None, f"node {short(node)}, where it lived, died")
        for entry in self.actors.entries.values():
            entry.watching_nodes.pop(node, None)

    def _over(self, entry: ActorEntry, task: TaskEntry | None, reason: str) -> None:
        """A life on another node is over, perhaps in its constructor, which ``task`` is then."""
        if self._may_restart(entry):
            self._restart(entry, [] if task is None else [task], reason)
            return
        cause = faults.fault_value(faults.ACTOR_DIED, short(entry.actor_id), reason)
        self.died(entry.actor_id, cause)
        if task is not None:
            self.scheduler.end_task(task, cause)

    def job_over(self, job_id: bytes) -> None:
        """What a job made on other nodes ends with it."""
        for entry in self.actors.entries.values():
            if entry.host and entry.job_id == job_id:
                self.end_away(entry, kill=True)

    def end_away(self, entry: ActorEntry, *, kill: bool = False) -> None:
        """End a life on another node."""
        self.post(entry.host, EndLife(entry.actor_id, entry.restarts, kill))

    def _reason(self, entry: ActorEntry | None, exit_code: int) -> str:
        if entry is not None and entry.leaving:
            return "it ended itself with exit_actor() or sys.exit()"
        if entry is not None and entry.released and exit_code == 0:
            return "no handle of it was left"
        if exit_code < 0:
            return f"its process was killed by signal {-exit_code}"
        return f"its process exited with code {exit_code}"

    def _may_restart(self, entry: ActorEntry) -> bool:
        if entry.creation is None or entry.leaving or entry.released or entry.creation.task_class.ended:
            return False
        restarts_max = entry.creation.task_class.descriptor.max_restarts
        return restarts_max < 0 or entry.restarts < restarts_max

    def _restart(self, entry: ActorEntry, queue: list[TaskEntry], reason: str) -> None:
        """Run the creation task once more; one that had not ended simply runs again."""
        creation = entry.creation
        assert creation is not None
        text = f"{reason}; it is being restarted"
        cause = faults.fault_value(faults.ACTOR_UNAVAILABLE, short(entry.actor_id), text)
        self.actors.restarting(entry.actor_id, cause)
        task = queue[0] if queue else self._again(creation)
        task.attempt, task.hops = entry.restarts, 0
        if self.succession is not None and entry.descriptor is not None and entry.descriptor.detached:
            self.succession.begins(entry)
        self.scheduler.run_again(task)

    def _again(self, former: TaskEntry) -> TaskEntry:
        task = TaskEntry(former.spec, former.task_class, former.submitter)
        self.scheduler.tasks[task.spec.task_id] = task
        self._pin(task)
        return task

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """End an actor at once, whether or not it was created already."""
        entry = self.actors.entries.get(actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            return
        if not no_restart and self._may_restart(entry):
            if entry.worker is not None:
                self.scheduler.pool.kill(entry.worker)
            elif entry.host:
                self.end_away(entry, kill=True)
            return
        self.end(
            actor_id, faults.fault_value(faults.ACTOR_DIED, short(actor_id), "it was ended by zray.kill()")
        )

    def end(self, actor_id: bytes, cause: Value) -> None:
        """End an actor for good, and its process with it; nothing happens to one that is dead."""
        entry = self.actors.entries.get(actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            return
        scheduler, worker = self.scheduler, entry.worker
        task = scheduler.tasks.get(actor_id)
        if entry.host:
            self.end_away(entry, kill=True)
        elif worker is None and task is not None:
            scheduler.withdraw(task, cause)
        self.died(actor_id, cause)
        if worker is not None:
            scheduler.pool.kill(worker)

    def leaving(self, worker: Worker) -> None:
        """An actor says that it ends on purpose."""
        if self.hosted is not None and self.hosted.leaving(worker):
            return
        entry = self.actors.entries.get(worker.actor_id)
        if entry is not None and entry.worker is worker:
            entry.leaving = True

    def died(self, actor_id: bytes, cause: Value) -> None:
        """An actor is dead for good."""
        if self.hosted is not None:
            self.hosted.dropped(actor_id)
        entry = self.actors.entries.get(actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            return
        self.actors.died(actor_id, cause)
        self._let_go(entry)
        has_deed = self.succession is not None and actor_id in self.succession.lines
        if entry.descriptor is not None and not has_deed:  # else its name is free once the deed says so
            self.on_gone(actor_id, entry.descriptor)
        if entry.job_id == actor_id:
            self._end_detached(actor_id)

    def _end_detached(self, actor_id: bytes) -> None:
        """A detached actor takes the tasks that it submitted along, as a driver does."""
        scheduler = self.scheduler
        creation = scheduler.store.objects.get(first_return_id(actor_id))
        if creation is not None:
            scheduler.references.unpin(creation)
        scheduler.end_job(scheduler.now_ns, actor_id)

    def spend(self, actor_id: bytes) -> None:
        """An actor that did too much since its last checkpoint is not made again when it dies."""
        entry = self.actors.entries.get(actor_id)
        if entry is not None:
            self._let_go(entry)
        else:
            self.spend_will(actor_id)

    # --- from one home to the next -----------------------------------------------------------------

    def inherit(self, held: HeldWill, life: int) -> ActorEntry:
        """This node is the home of a detached actor from now on; what it needs is pinned already."""
        scheduler, will = self.scheduler, held.will
        actor_id, descriptor = will.actor_id, will.descriptor
        scheduler.add_job(will.context)
        scheduler.jobs[actor_id].home = b""
        if will.code:
            scheduler.functions.setdefault(descriptor.function_id, will.code)
        entry = self.actors.adopt(actor_id, descriptor.name, life)
        entry.descriptor = descriptor
        task_class = scheduler.describe(actor_id, descriptor)
        if will.spec is not None and not held.is_spent:
            entry.creation = TaskEntry(will.spec, task_class, b"")
        elif will.spec is not None:
            for object_id in (*will.spec.deps, *will.spec.borrowed):
                scheduler.references.unpin(scheduler.store.objects[object_id])
        return entry

    def resume(self, entry: ActorEntry, held: HeldWill) -> None:
        """The life of an inherited actor is over: make it again, or say why not."""
        entry.leaving = held.is_left
        if held.cause is not None:
            self.died(entry.actor_id, held.cause)
        elif held.is_left:
            self._over(entry, None, self._reason(entry, 0))
        else:
            self._over(entry, None, f"node {short(held.home)}, which was its home, died")

    def disown(self, actor_id: bytes, home: Address) -> dict[Address, None]:
        """A detached actor that was submitted here, by a task that ran before elsewhere, has a home.

        Returns:
            who watched it.
        """
        scheduler = self.scheduler
        entry, task = self.actors.entries[actor_id], scheduler.tasks.get(actor_id)
        if entry.descriptor is not None:
            self.on_disowned(actor_id, entry.descriptor)
        self._let_go(entry)
        watchers = self.actors.disown(actor_id)
        scheduler.admission.held.pop(actor_id, None)
        job = scheduler.jobs.get(actor_id)
        if job is not None:
            job.home = home  # which says when it is over
        if task is not None:
            scheduler.finish(task, (Value(INLINE),), TASK_FINISHED)
        scheduler.references.unpin(scheduler.store.objects[first_return_id(actor_id)])
        return watchers

    # --- what a restart needs --------------------------------------------------------------------

    def _pin(self, task: TaskEntry) -> None:
        scheduler = self.scheduler
        for object_id in (*task.spec.deps, *task.spec.borrowed):
            scheduler.references.pin(scheduler.store.entry(object_id))

    def _let_go(self, entry: ActorEntry) -> None:
        self.checkpoints.forget(entry.actor_id)
        creation, entry.creation = entry.creation, None
        if creation is None:
            return
        objects, references = self.scheduler.store.objects, self.scheduler.references
        for object_id in (*creation.spec.deps, *creation.spec.borrowed):
            references.unpin(objects[object_id])

    def check(self) -> None:
        """The dead keep nothing."""
        for actor_id, entry in self.actors.entries.items():
            dead = entry.state.state == ACTOR_DEAD
            invariant(not dead or entry.creation is None, "inputs of a dead actor", short(actor_id))
        self.checkpoints.check()
