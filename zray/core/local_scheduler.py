"""Keep, park, dispatch or forward each task of one node (paper, section 4.2.2).

A submitted task waits for its inputs, is dispatched when its demand fits and a worker is free, or is
forwarded to a global scheduler when this node can never run it or, in a cluster of several nodes, is
overloaded. Short tasks run ahead: a worker holds a few behind the running one, as many as the exponential
average of their class says fit a few milliseconds; a worker that blocks or stalls gives them back.

Invariants: I4 (free + held = total), I6 (a task whose inputs are sealed is ready), and every task is
in exactly one place: waiting for inputs, in its class's ``ready`` queue, in one worker's ``queue``, or
``forwarded``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.config import Config
from zray.core import task_places
from zray.core.actor_lives import ActorLives
from zray.core.actors import Actors
from zray.core.admission import TaskAdmission
from zray.core.cancellation import Cancellation
from zray.core.jobs import Job
from zray.core.leases import LONE_TASKS_MIN, Leases
from zray.core.lineage import Lineage
from zray.core.machine import Address, Effect
from zray.core.node_store import SEALED, NodeStore, ObjectEntry
from zray.core.references import References
from zray.core.results_together import seal_together
from zray.core.streams import Streams, credit_of
from zray.core.worker_pool import DEDICATED, TaskClass, TaskEntry, Worker, WorkerPool
from zray.ids import first_return_id, producer_of, return_ids, short
from zray.protocol import faults
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import (
    ACTOR,
    RESOURCE_UNIT,
    TASK_FAILED,
    TASK_FINISHED,
    TASK_PENDING,
    Describe,
    ExportFunction,
    JobContext,
    LeasedDone,
    Recall,
    Returned,
    Run,
    Submit,
    TaskDone,
    Value,
    Withdraw,
)
from zray.protocol.strategies import Labels

if TYPE_CHECKING:
    from zray.core.away import Away
    from zray.core.guests import Guests


class LocalScheduler:
    """Tasks of one node, from submission to their sealed values. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id, labels: of this node.
        global_scheduler: where tasks are forwarded now.
        config: limits.
        store, references, pool, actors, lineage, leases: the machines of the same node.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        labels: Labels,
        global_scheduler: Address,
        config: Config,
        store: NodeStore,
        references: References,
        pool: WorkerPool,
        actors: Actors,
        lineage: Lineage,
        leases: Leases,
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.labels = labels
        self.global_scheduler = global_scheduler
        self.config = config
        self.store = store
        self.references = references
        self.pool = pool
        self.actors = actors
        self.lineage = lineage
        self.leases = leases
        self.lives = ActorLives(self)
        self.cancellation = Cancellation(self)
        self.admission = TaskAdmission(self)
        self.forwarded = self.admission.forwarded
        self.streams: Streams | None = None  # set by the node, which can seal
        self.tasks: dict[bytes, TaskEntry] = {}
        self.ready: dict[int, TaskClass] = {}  # classes with ready tasks, by number
        self.classes: dict[tuple[bytes, bytes], TaskClass] = {}  # (job, descriptor)
        self.classes_made = 0
        self.functions: dict[bytes, bytes] = {}
        self.jobs: dict[bytes, Job] = {}
        self.peers = 0  # other nodes of the cluster
        self.stall_check_at_ns: int | None = None
        self.reap_at_ns: int | None = None
        self.now_ns = 0
        self.decided_ns = 0  # when the last batch before this one came
        self.finished = 0
        self.retried = 0
        self.away: Away | None = None  # of a node that has, or may get, peers
        self.guests: dict[bytes, Any] = {}  # tasks of other nodes that run here
        self.guest_tasks: Guests | None = None
        self.on_job_over: Callable[[int, bytes], None] | None = None  # called on the node of its driver

    def meet(self, away: Away, guests: Guests) -> None:
        """Get to know the machines that exchange tasks with other nodes."""
        self.away, self.guest_tasks, self.guests = away, guests, guests.guests

    @property
    def wake_at_ns(self) -> int | None:
        """When stalled workers or idle ones are to be looked at."""
        if self.stall_check_at_ns is None:
            return self.reap_at_ns
        if self.reap_at_ns is None:
            return self.stall_check_at_ns
        return min(self.stall_check_at_ns, self.reap_at_ns)

    # --- what tasks have in common ---------------------------------------------------------------

    def knows(self, descriptor_id: bytes) -> bool:
        """Whether any job of this node has tasks with this descriptor."""
        return any(descriptor_id == known for _, known in self.classes)

    def describe(self, job_id: bytes, message: Describe) -> TaskClass:
        """The class of a descriptor within a job."""
        key = (job_id, message.descriptor_id)
        task_class = self.classes.get(key)
        if task_class is None:
            self.classes_made += 1
            task_class = TaskClass(message, job_id, self.classes_made)
            job = self.jobs.get(job_id)
            if job is not None and job.ended:
                task_class.ended = True
            else:
                self.classes[key] = task_class
        return task_class

    # --- submission ------------------------------------------------------------------------------

    def submit(self, now_ns: int, source: Address, spec: Submit, task_class: TaskClass) -> None:
        """Take a task; ``source`` holds its return objects from now on.

        A task that is known already (its parent ran again) is not run twice: the submitter holds the
        same objects and hears of them like the first time. A job that is over submits nothing.
        """
        if task_class.ended:
            return
        self.now_ns = now_ns
        returns = self._expect_returns(source, spec, task_class)
        known = self.tasks.get(spec.task_id)
        if known is not None:
            self._disown(known, returns)
            if self.streams is not None:
                self.streams.submitted_again(known, source)
            return
        if returns and returns[0].state >= SEALED and all(entry.state >= SEALED for entry in returns):
            return
        task = TaskEntry(spec, task_class, source)
        if self.tasks:
            self.leases.lone = 0
        self.tasks[spec.task_id] = task
        if task_class.descriptor.kind == ACTOR:
            returns[0].is_actor = True
            self.lives.submitted(task)
        self.admission.take_in(now_ns, task)

    def admit(self, now_ns: int, task: TaskEntry) -> None:
        """Take a task of another node, whose return objects are announced here."""
        self.now_ns = now_ns
        self.tasks[task.spec.task_id] = task
        self.admission.take_in(now_ns, task)

    def _disown(self, known: TaskEntry, returns: list[ObjectEntry]) -> None:
        """A parent that ran again submitted something else under a known id: what is not to come is lost."""
        for entry in returns[known.task_class.descriptor.num_returns :]:
            reason = "the task that submitted its maker did something else when it ran again"
            self.store.seal(entry, faults.fault_value(faults.OBJECT_LOST, short(entry.object_id), reason))

    def _expect_returns(self, source: Address, spec: Submit, task_class: TaskClass) -> list[ObjectEntry]:
        count = task_class.descriptor.num_returns
        if count == 1:
            return [self.references.expect(source, first_return_id(spec.task_id))]
        return self.references.expect_all(source, return_ids(spec.task_id, count))

    def dependencies_sealed(self, tasks: list[TaskEntry]) -> None:
        """An object was sealed that these tasks waited for (once per dependency)."""
        self.admission.sealed(tasks)

    def queue(self, task: TaskEntry, *, first: bool = False) -> None:
        """Put a task into its class's queue, unless its job is over."""
        task_class = task.task_class
        if task_class.ended:
            self._drop(task, self._job_over(task_class.job_id))
            return
        if task.verdict is not None:
            self._drop(task, task.verdict)
            return
        if not task_class.ready:
            task_class.progress_ns = self.now_ns
        if first:
            task_class.ready.appendleft(task)
        else:
            task_class.ready.append(task)
        if task_class.number not in self.ready:
            self.ready[task_class.number] = task_class

    # --- dispatch --------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Dispatch what fits, once per batch."""
        self.now_ns = self.decided_ns = now_ns
        if self.admission.woken:
            self.admission.wake()
        if self.ready:
            self._dispatch(now_ns)

    def _dispatch(self, now_ns: int) -> None:
        pool = self.pool
        for number, task_class in list(self.ready.items()):
            ready = task_class.ready
            while ready and pool.fits(task_class.demand):
                worker = pool.idle_for(task_class.job_id, task_class.descriptor.environment)
                if worker is None:
                    break
                pool.occupy(now_ns, worker, task_class)
                self._send(now_ns, worker, ready.popleft())
            if ready and task_class.run_ns and task_class.may_run_ahead:
                self._run_ahead(now_ns, task_class)
            elif ready and self.peers and task_class.descriptor.kind == ACTOR:
                self.lives.forward_unfit(task_class)
            if not task_class.ready:
                del self.ready[number]
        if self.ready:
            self.leases.revoke()
            self._start_workers(now_ns)

    def _run_ahead(self, now_ns: int, task_class: TaskClass) -> None:
        """Queue short tasks behind running ones of their class, evenly."""
        config = self.config
        depth = min(config.run_ahead_tasks_max, config.run_ahead_ns // task_class.run_ns)
        if not depth:
            return
        stalled_before_ns = now_ns - config.run_stall_ns
        takers = [
            worker
            for worker in self.pool.busy.values()
            if worker.task_class is task_class
            and not worker.blocked
            and not worker.recalled
            and len(worker.queue) <= depth
            and not next(iter(worker.queue.values())).alone
            and worker.progress_ns > stalled_before_ns
        ]
        if takers and self.stall_check_at_ns is None:
            self.stall_check_at_ns = now_ns + config.run_stall_ns
        ready = task_class.ready
        for left, worker in zip(range(len(takers), 0, -1), takers, strict=True):
            share = min(-(-len(ready) // left), depth + 1 - len(worker.queue))
            for _ in range(share):
                if ready[0].alone:
                    return
                self._send(now_ns, worker, ready.popleft())
            if not ready:
                break

    def _send(self, now_ns: int, worker: Worker, task: TaskEntry) -> None:
        """Dispatch a task, after what the worker must know to run it."""
        spec, descriptor = task.spec, task.task_class.descriptor
        if descriptor.descriptor_id not in worker.known:
            self._introduce(worker, task.task_class)
        deps = self.store.inputs(worker.worker_id, spec.deps) if spec.deps else ()
        if not worker.queue:
            worker.progress_ns = now_ns
        worker.queue[spec.task_id] = task
        if self.leases.lone >= LONE_TASKS_MIN - 1:
            self.leases.prepare(worker, task.task_class)
        run = Run(spec.task_id, task.attempt, spec.descriptor_id, spec.args, deps, task.task_class.job_id)
        self.out.append((worker.worker_id, run))
        if task.consumed is not None:
            self.out.append((worker.worker_id, credit_of(task.consumed)))
        if descriptor.kind == ACTOR:
            self.pool.dedicate(worker, spec.task_id)
            self.lives.dispatched(spec.task_id, worker)

    def _introduce(self, worker: Worker, task_class: TaskClass) -> None:
        known, descriptor = worker.known, task_class.descriptor
        job = self.jobs.get(task_class.job_id)
        if job is not None and job.job_id not in known:
            known[job.job_id] = None
            self.out.append((worker.worker_id, job.context))
        if descriptor.function_id not in known:
            known[descriptor.function_id] = None
            code = ExportFunction(descriptor.function_id, self.functions.get(descriptor.function_id, b""))
            self.out.append((worker.worker_id, code))
        known[descriptor.descriptor_id] = None
        self.out.append((worker.worker_id, descriptor))

    def _start_workers(self, now_ns: int) -> None:
        wanted = self.pool.wanted(list(self.ready.values()))
        if wanted:
            self.pool.start_up_to(now_ns, wanted)
        if self.reap_at_ns is None and self.pool.in_doubt(self._cpus()):
            self.reap_at_ns = now_ns + self.config.worker_idle_ns

    # --- what workers report ---------------------------------------------------------------------

    def task_done(self, now_ns: int, worker: Worker, message: TaskDone) -> None:
        """An attempt ended; late or unknown ones are ignored."""
        task = worker.queue.get(message.task_id)
        if task is None or task.attempt != message.attempt:
            return
        del worker.queue[message.task_id]
        worker.progress_ns = task.task_class.progress_ns = now_ns
        worker.recalled = False
        task.task_class.learn_run_time(message.run_ns, self.config.run_average_alpha)
        descriptor = task.task_class.descriptor
        is_stale = task.stale == task.attempt
        if task.verdict is not None and (message.failed or is_stale):
            self.finish_all(task, task.verdict, TASK_FAILED)
        elif is_stale:
            self._run_anew(task)
        elif message.failed and self._is_worth_more(task, message):
            self.try_again(task)
        elif len(message.values) != descriptor.num_returns:
            reason = f"its worker gave {len(message.values)} values, not {descriptor.num_returns}"
            lost = faults.fault_value(faults.OBJECT_LOST, short(task.spec.task_id), reason)
            self.finish_all(task, lost, TASK_FAILED)
        else:
            self.finish(task, message.values, TASK_FAILED if message.failed else TASK_FINISHED)
        if worker.state == DEDICATED:
            self.lives.created(worker, task, message)
        elif not worker.queue:
            if descriptor.max_calls:
                self.pool.count_call(worker, descriptor.max_calls)
            self.pool.vacate(now_ns, worker)
            if not self.tasks and self.store.is_alive(task.submitter):  # a process, not another node
                self.leases.lone_task_done(now_ns, task, worker)

    def leased_done(self, now_ns: int, source: Address, task_class: TaskClass, message: LeasedDone) -> None:
        """A submitter tells of a task that it ran on a leased worker; its value is with the submitter."""
        if task_class.ended:
            return
        self.now_ns = now_ns
        self.finished += 1
        task_class.learn_run_time(message.run_ns, self.config.run_average_alpha)
        state = TASK_FAILED if message.failed else TASK_FINISHED
        self._record(TaskEntry(message.spec, task_class, source), state, int(message.kept), False)

    def leased_result(
        self, now_ns: int, submitter: Address, task_class: TaskClass, message: LeasedDone, value: Value
    ) -> None:
        """A leased worker hands in a value that is for the node to keep: it is large or contains refs."""
        if task_class.ended:
            return
        self.now_ns = now_ns
        task_class.learn_run_time(message.run_ns, self.config.run_average_alpha)
        task = TaskEntry(message.spec, task_class, submitter)
        self._expect_returns(submitter, message.spec, task_class)
        self.tasks[message.spec.task_id] = task
        self.finish(task, (value,), TASK_FAILED if message.failed else TASK_FINISHED)

    def _is_worth_more(self, task: TaskEntry, message: TaskDone) -> bool:
        """Whether the user's error is one that another attempt is for."""
        descriptor = task.task_class.descriptor
        if not descriptor.retry_exceptions or message.is_final:
            return False
        return bool(task.retries_left) and descriptor.kind != ACTOR

    def returned(self, worker: Worker, message: Returned) -> None:
        """A blocked or stalled worker gives back what it has not started."""
        for task_id in reversed(message.task_ids):
            task = worker.queue.pop(task_id, None)
            if task is not None:
                self.queue(task, first=True)
        if not worker.queue and worker.worker_id in self.pool.busy:
            self.pool.vacate(self.now_ns, worker)

    def on_tick(self, now_ns: int) -> None:
        """Recall from stalled workers; end idle and overdue ones."""
        self.now_ns = now_ns
        if self.stall_check_at_ns is not None and self.stall_check_at_ns <= now_ns:
            self._recall_stalled(now_ns)
        if self.reap_at_ns is not None and self.reap_at_ns <= now_ns:
            self._reap(now_ns)

    def _recall_stalled(self, now_ns: int) -> None:
        running_ahead = False
        for worker in self.pool.busy.values():
            if len(worker.queue) < 2 or worker.recalled:
                continue
            running_ahead = True
            if worker.progress_ns + self.config.run_stall_ns <= now_ns:
                worker.recalled = True
                self.out.append((worker.worker_id, Recall()))
        self.stall_check_at_ns = now_ns + self.config.run_stall_ns if running_ahead else None

    def _reap(self, now_ns: int) -> None:
        cpus = self._cpus()
        for worker in self.pool.surplus(now_ns, keep=max(1, cpus)) + self.pool.overdue(now_ns):
            self.pool.kill(worker)
        self.reap_at_ns = now_ns + self.config.worker_idle_ns if self.pool.in_doubt(cpus) else None

    def _cpus(self) -> int:
        return self.pool.resources.total.get("CPU", 0) // RESOURCE_UNIT

    # --- ends ------------------------------------------------------------------------------------

    def finish(
        self, task: TaskEntry, values: tuple[Value, ...], state: int, *, recorded: bool = False
    ) -> None:
        """Seal the return values and let go of what the task needed; ``recorded`` on the node that ran it."""
        spec = task.spec
        del self.tasks[spec.task_id]
        if task.unmet:
            self.admission.dropped(task)
        self.finished += 1
        objects, references = self.store.objects, self.references
        ids = (first_return_id(spec.task_id),) if len(values) == 1 else return_ids(spec.task_id, len(values))
        made = []
        for object_id, value in zip(ids, values, strict=True):
            entry = objects.get(object_id)
            # What is sealed, or was sealed and freed, is left of a former run of the same task.
            if entry is not None and entry.state != SEALED:
                made.append((entry, value))
        outputs = [entry for entry, _ in made]
        if task.streamed and self.streams is not None:
            outputs += self.streams.living_items(task)
        is_guest = bool(self.guests) and spec.task_id in self.guests
        # The lineage of a guest is followed at its origin.
        self._record(task, state, len(outputs) if is_guest else references.newly_made(outputs), recorded)
        together = len(made) > 1 and len(made) == len(values)
        if together and seal_together(self.store, spec.task_id, made):
            made = []
        for entry, value in made:
            if value.contained:
                references.contain(self.now_ns, value.contained)
            self.store.seal(entry, value)
            if not entry.holders:
                references.free_if_unneeded(entry)
        for object_id in spec.deps:
            references.unpin(objects[object_id])
        for object_id in spec.borrowed:
            references.unpin(objects[object_id])
        if self.guests and spec.task_id in self.guests:
            assert self.guest_tasks is not None
            self.guest_tasks.finished(task, failed=state == TASK_FAILED)

    def finish_all(self, task: TaskEntry, value: Value, state: int) -> None:
        """End a task whose every return object has the same value: a fault, or an input's error."""
        self.finish(task, (value,) * task.task_class.descriptor.num_returns, state)
        if task.task_class.descriptor.kind == ACTOR:
            self.lives.died(task.spec.task_id, value)

    def _record(self, task: TaskEntry, state: int, new_outputs: int, recorded: bool) -> None:
        spec = task.spec
        is_guest = bool(self.guests) and spec.task_id in self.guests
        if new_outputs and not is_guest:
            self.references.follow_lineage(spec.task_id, new_outputs, spec.deps)
        released = not (new_outputs or is_guest) and spec.task_id not in self.references.lineage
        if not recorded:
            self.lineage.record(self.now_ns, task.record(self.node_id, state, released))
        elif released:
            self.lineage.release(self.now_ns, spec.task_id)

    def record_pending(self, object_id: bytes) -> None:
        """A reference to an object leaves before its task has ended: others may have to run it again."""
        task = self.tasks.get(producer_of(object_id))
        if task is not None:
            self.lineage.record(self.now_ns, task.record(self.node_id, TASK_PENDING, False))

    def try_again(self, task: TaskEntry) -> None:
        """One more attempt, charged to the task's retries."""
        if task.retries_left > 0:
            task.retries_left -= 1
        self._run_anew(task)

    def give_up(self, task: TaskEntry, exit_code: int) -> None:
        """An attempt of a guest is lost: this node is done with it."""
        if task.task_class.ended:
            self.finish_all(task, self._job_over(task.task_class.job_id), TASK_FAILED)
            return
        assert self.guest_tasks is not None
        self.guest_tasks.crashed(task, exit_code)

    def _run_anew(self, task: TaskEntry) -> None:
        if task.spec.task_id in self.guests:
            self.give_up(task, 0)
            return
        task.attempt += 1
        task.alone = True
        self.retried += 1
        self.admission.decide(task)

    def worker_exited(self, now_ns: int, worker: Worker, message: WorkerExited) -> None:
        """A worker process is gone: run what it had somewhere else, or say why not.

        Its progress cell names the running task. Those before it in the queue ran and were not reported:
        they run again, uncharged. Those behind it never started.
        """
        self.now_ns = now_ns
        self.leases.worker_gone(worker, message)
        self.pool.remove(worker)
        queue = list(worker.queue.values())
        worker.queue.clear()
        if worker.state == DEDICATED:
            self.lives.exited(worker, queue, message)
        elif queue:
            self._rescue(queue, message)
        self._forget_job(worker.job_id)

    def _rescue(self, queue: list[TaskEntry], message: WorkerExited) -> None:
        """Run the tasks of a lost worker again, or say why not."""
        running = next((i for i, task in enumerate(queue) if task.spec.task_id == message.running), 0)
        for task in reversed(queue[running + 1 :]):
            self.queue(task, first=True)
        for task in queue[:running]:
            self._run_anew(task)
        task = queue[running]
        if task.verdict is not None:
            self.finish_all(task, task.verdict, TASK_FAILED)
        elif task.spec.task_id in self.guests:
            self.give_up(task, message.exit_code)
        elif task.stale == task.attempt:
            self._run_anew(task)
        elif task.retries_left and not task.task_class.ended:
            self.try_again(task)
        else:
            self.finish_all(task, self.crash(task, message), TASK_FAILED)

    def crash(self, task: TaskEntry, message: WorkerExited) -> Value:
        name = task.task_class.descriptor.name
        return faults.fault_value(faults.WORKER_CRASHED, name, message.exit_code, task.attempt + 1)

    def withdraw(self, task: TaskEntry, value: Value) -> None:
        """End a task that no worker has."""
        if task in task.task_class.ready:
            task.task_class.ready.remove(task)
        self._drop(task, value)

    def end_task(self, task: TaskEntry, value: Value) -> None:
        """End a task that its worker took along."""
        self.finish_all(task, value, TASK_FAILED)

    def run_again(self, task: TaskEntry) -> None:
        """Queue a creation task whose process is gone."""
        task.alone = True
        self.retried += 1
        task.stays = False
        self.admission.decide(task)

    def add_job(self, context: JobContext) -> None:
        """A job begins."""
        if context.job_id not in self.jobs:
            self.jobs[context.job_id] = Job(context)

    def _drop(self, task: TaskEntry, value: Value) -> None:
        """End a task that is in no queue; inputs that are still to come find it gone."""
        if self.admission.leave(task.spec.task_id) is not None:
            self.out.append((self.global_scheduler, Withdraw(task.spec.task_id)))
        elif self.away is not None:
            self.away.drop(task.spec.task_id)
        self.finish_all(task, value, TASK_FAILED)

    def end_job(self, now_ns: int, job_id: bytes) -> None:
        """The driver is gone: its tasks and actors go with it."""
        self.now_ns = now_ns
        job = self.jobs.get(job_id)
        if job is None:
            return
        job.ended = True
        for key in [key for key in self.classes if key[0] == job_id]:
            task_class = self.classes.pop(key)
            task_class.ended = True
            task_class.ready.clear()
            self.ready.pop(task_class.number, None)
        workers = [worker for worker in self.pool.workers.values() if worker.job_id == job_id]
        running = {task_id: None for worker in workers for task_id in worker.queue}
        lost = self._job_over(job_id)
        for task_id, task in list(self.tasks.items()):
            if task.task_class.job_id == job_id and task_id not in running:
                self._drop(task, lost)
        for worker in workers:
            self.pool.kill(worker)
        self.lives.job_over(job_id)
        if self.away is not None:
            self.away.job_over(job)
        if self.on_job_over is not None and not job.home:
            self.on_job_over(now_ns, job_id)
        self._forget_job(job_id)

    def unschedulable(self, task: TaskEntry, reason: str) -> None:
        """End a task that no node will ever run."""
        name = task.task_class.descriptor.name
        self.admission.leave(task.spec.task_id)
        self.finish_all(task, faults.fault_value(faults.UNSCHEDULABLE, name, reason), TASK_FAILED)

    def _job_over(self, job_id: bytes) -> Value:
        return faults.fault_value(faults.OBJECT_LOST, short(job_id), "its job has ended")

    def _forget_job(self, job_id: bytes) -> None:
        """Forget a job that has ended once its last worker is gone."""
        job = self.jobs.get(job_id)
        if job is None or not job.ended:
            return
        if all(worker.job_id != job_id for worker in self.pool.workers.values()):
            del self.jobs[job_id]

    def backlog(self) -> int:
        """Tasks that are ready and not dispatched."""
        return sum(len(task_class.ready) for task_class in self.ready.values())

    def reported(self) -> None:
        """The load of this node is known, with all that it has kept."""
        for task_class in self.classes.values():
            task_class.kept = 0

    def check(self) -> None:
        """Every task is in exactly one place."""
        task_places.check(self)
