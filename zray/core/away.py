"""Tasks that were submitted here and run on other nodes (paper, section 4.2.2).

The global scheduler only finds a match: the node it chose *claims* the task, and this one, the task's
*origin*, *grants* every attempt to one claimer. So an attempt runs once however often a forward or a
placement is repeated (I8), and the origin knows whom to ask when a node dies. It keeps what the task takes
and borrows until the host says that it has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from zray.core.jobs import Job
from zray.core.machine import Address, Effect, invariant
from zray.core.node_store import REMOTE, SEALED, ObjectEntry
from zray.core.sharing import Sharing
from zray.core.worker_pool import TaskEntry
from zray.ids import return_ids, short
from zray.protocol import faults
from zray.protocol.actor_messages import EndLife
from zray.protocol.cluster import Claim, Declined, Deny, Ended, Grant, Input, JobOver, Taken
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import (
    ACTOR,
    AT_NODE,
    EXTENT,
    FILE,
    TASK_FAILED,
    TASK_FINISHED,
    ExportFunction,
    Value,
)
from zray.protocol.user_messages import Cancel

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler


class Away:
    """Granted tasks, and what each other node was told. Pure; shares its node's outbox."""

    def __init__(
        self, out: list[Effect], *, node_id: bytes, scheduler: LocalScheduler, sharing: Sharing
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.scheduler = scheduler
        self.sharing = sharing
        self.tasks: dict[bytes, tuple[TaskEntry, Address]] = {}  # granted, and to whom
        self.numbers: dict[bytes, int] = {}  # of their grants
        self.grants = 0
        self.at_gate: dict[bytes, int] = {}  # the numbers of these tasks' grants there
        # ends that were taken, whose word may wait at the gate, and its number there; the oldest first
        self.takings: OrderedDict[tuple[Address, bytes, int], int] = OrderedDict()
        self.peers: dict[Address, str] = {}  # other nodes that are alive
        self.known: dict[Address, dict[bytes, None]] = {}  # jobs, functions and descriptors nodes were told

    # --- granting ----------------------------------------------------------------------------------

    def on_claim(self, now_ns: int, source: Address, message: Claim) -> None:
        """A node that a task was placed on asks for it."""
        task, host = self.tasks.get(message.task_id, (None, b""))
        if host == source:  # a repeated claim
            if not self.sharing.has_left(self.at_gate[message.task_id]):
                return
            self.known.pop(host, None)  # the grant, or what introduces it, was lost
        if task is None:
            task = self.scheduler.admission.leave(message.task_id)
            if task is not None:
                self.tasks[message.task_id] = task, source
                self.grants += 1
                self.numbers[message.task_id] = self.grants
                host = source
        if task is None or host != source:
            self.out.append((source, Deny(message.task_id)))
            return
        self._grant(task, source)

    def _grant(self, task: TaskEntry, host: Address) -> None:
        spec, task_class = task.spec, task.task_class
        self.sharing.expose(spec.borrowed)
        inputs = tuple([given for object_id in spec.deps if (given := self.input(object_id))])
        self._introduce(task, host)
        job = self.scheduler.jobs.get(task_class.job_id)
        home = job.home if job is not None and job.home else self.node_id
        number = self.numbers[spec.task_id]
        grant = Grant(spec, task.attempt, task_class.job_id, inputs, home, number, task.hops)
        self.at_gate[spec.task_id] = self.sharing.depart(host, grant)

    def input(self, object_id: bytes) -> Input | None:
        """What the host is told of an input: a small one itself, of a large one where it is.

        One that was lost meanwhile it looks for itself; this node goes on holding it until the task ends.
        """
        entry = self.scheduler.store.objects[object_id]
        value = entry.value
        if entry.state < SEALED:
            self.sharing.expose((object_id,))
            return None
        if entry.state == REMOTE:
            shared = self.sharing.shared[object_id]
            return Input(object_id, Value(AT_NODE, b"", 0, entry.size, shared.contained), shared.nodes)
        assert value is not None
        if value.kind in (EXTENT, FILE):
            self.sharing.expose((object_id,))
            return Input(object_id, Value(AT_NODE, b"", 0, entry.size, value.contained), (self.node_id,))
        self.sharing.expose(value.contained)
        return Input(object_id, value)

    def _introduce(self, task: TaskEntry, host: Address) -> None:
        """Tell the host, once, what it must know of the job and the function."""
        known = self.known.setdefault(host, {})
        task_class = task.task_class
        descriptor = task_class.descriptor
        job = self.scheduler.jobs.get(task_class.job_id)
        if job is not None and job.job_id not in known:
            known[job.job_id] = None
            self.sharing.depart(host, job.context)
        if descriptor.function_id not in known:
            known[descriptor.function_id] = None
            code = self.scheduler.functions.get(descriptor.function_id, b"")
            self.sharing.depart(host, ExportFunction(descriptor.function_id, code))
        if descriptor.descriptor_id not in known:
            known[descriptor.descriptor_id] = None
            self.sharing.depart(host, descriptor)

    def on_declined(self, now_ns: int, source: Address, message: Declined) -> None:
        """The host has the task from elsewhere, or had it, or has no room for an actor: place it anew."""
        task, host = self.tasks.get(message.task_id, (None, b""))
        if task is not None and host == source and self.numbers[message.task_id] == message.number:
            self.forget(message.task_id)
            if task.task_class.descriptor.kind == ACTOR:
                task.hops += 1
                self.scheduler.lives.look_elsewhere(task)
            else:
                self.scheduler.forwarded[message.task_id] = task

    def taken_back(self, task_id: bytes, host: Address) -> TaskEntry | None:
        """The task that a node has of ours, which it has lost."""
        task, its_host = self.tasks.get(task_id, (None, b""))
        if task is None or its_host != host:
            return None
        self.forget(task_id)
        return task

    def cancel(self, message: Cancel, task_id: bytes) -> None:
        """A task is taken back: so is its attempt on another node, unless this is lost."""
        task, host = self.tasks.get(task_id, (None, b""))
        if task is not None:
            self.sharing.depart(host, Cancel(task_id, message.force, message.recursive))

    def drop(self, task_id: bytes) -> None:
        """A task is not wanted any more. Its host may run it to its end; an actor would go on."""
        task, host = self.tasks.get(task_id, (None, b""))
        if task is not None and task.task_class.descriptor.kind == ACTOR:
            self.scheduler.lives.post(host, EndLife(task_id, task.attempt))
        self.forget(task_id)

    def forget(self, task_id: bytes) -> None:
        """A task is not away (any more)."""
        self.tasks.pop(task_id, None)
        self.numbers.pop(task_id, None)
        self.at_gate.pop(task_id, None)

    # --- ends --------------------------------------------------------------------------------------

    def on_ended(self, now_ns: int, source: Address, message: Ended) -> None:
        """An attempt is over; one that is not under way (any more) is only acknowledged."""
        task, host = self.tasks.get(message.task_id, (None, b""))
        if task is not None and host == source and task.attempt == message.attempt:
            self.forget(message.task_id)
            self._end(now_ns, source, task, message)
        self._say_taken(source, Taken(message.task_id, message.attempt))

    def _say_taken(self, host: Address, message: Taken) -> None:
        """Tell a host that it has been heard, unless that waits at the gate: it repeats itself until then."""
        takings, taking = self.takings, (host, message.task_id, message.attempt)
        while takings and self.sharing.has_left(next(iter(takings.values()))):
            takings.popitem(last=False)
        if taking not in takings:
            takings[taking] = self.sharing.depart(host, message)

    def _end(self, now_ns: int, host: Address, task: TaskEntry, message: Ended) -> None:
        scheduler, descriptor = self.scheduler, task.task_class.descriptor
        scheduler.now_ns = now_ns
        if message.offloaded:
            scheduler.admission.come_back(task)
        elif message.crashed and descriptor.kind == ACTOR:
            scheduler.lives.lost_away(task, f"its process ended in the constructor, on node {short(host)}")
        elif message.crashed:
            self._lost(task, WorkerExited(b"", message.exit_code))
        elif message.failed and descriptor.retry_exceptions and task.retries_left:
            scheduler.try_again(task)
        else:
            if message.run_ns:
                task.task_class.learn_run_time(message.run_ns, scheduler.config.run_average_alpha)
            values = tuple(
                self._taken(host, object_id, value)
                for object_id, value in zip(
                    return_ids(task.spec.task_id, len(message.values)), message.values, strict=True
                )
            )
            scheduler.finish(task, values, TASK_FAILED if message.failed else TASK_FINISHED, recorded=True)
            if descriptor.kind == ACTOR:
                scheduler.lives.created_away(task, host, values, message.failed)

    def _taken(self, host: Address, object_id: bytes, value: Value) -> Value:
        """A value as this node keeps it; of a large one, where it is."""
        if value.kind != AT_NODE:
            return value
        entry = self.scheduler.store.objects.get(object_id)
        if entry is not None:
            self.sharing.adopt(entry, value, (host,), is_home=True)
        return Value(AT_NODE, b"", 0, value.size)

    def _lost(self, task: TaskEntry, exited: WorkerExited) -> None:
        """The attempt may have run and will not answer: once more, if that is allowed."""
        if task.retries_left and not task.task_class.ended:
            self.scheduler.try_again(task)
        else:
            self.scheduler.finish_all(task, self.scheduler.crash(task, exited), TASK_FAILED)

    # --- nodes and jobs ----------------------------------------------------------------------------

    def node_dead(self, now_ns: int, node: Address) -> None:
        """Whatever a dead node had of ours runs again."""
        self.scheduler.now_ns = now_ns
        self.known.pop(node, None)
        for task_id, (task, host) in list(self.tasks.items()):
            if host == node:
                self.forget(task_id)
                if task.task_class.descriptor.kind == ACTOR:
                    reason = f"node {short(node)}, where its constructor ran, died"
                    self.scheduler.lives.lost_away(task, reason)
                elif task.retries_left and not task.task_class.ended:
                    self.scheduler.try_again(task)
                else:
                    name, reason = task.task_class.descriptor.name, f"node {short(node)}, which ran it, died"
                    fault = faults.fault_value(faults.OBJECT_LOST, name, reason)
                    self.scheduler.finish_all(task, fault, TASK_FAILED)

    def job_over(self, job: Job) -> None:
        """A job has ended: its home tells every node, others tell those that they told of it."""
        for node in self.peers if not job.home else ():
            self.known.setdefault(node, {})[job.job_id] = None
        for node, known in self.known.items():
            if known.pop(job.job_id, self) is None:
                self.sharing.depart(node, JobOver(job.job_id))

    def check(self) -> None:
        """Granted tasks are unfinished ones."""
        invariant(self.numbers.keys() == self.tasks.keys(), "grants without a number")
        invariant(self.at_gate.keys() == self.tasks.keys(), "grants that never came to the gate")
        for task_id, (task, _) in self.tasks.items():
            invariant(self.scheduler.tasks.get(task_id) is task, "an unknown task is away:", short(task_id))


def as_sent(entry: ObjectEntry, sharing: Sharing) -> Value:
    """The value of a return object as its origin is told of it; refs inside it are exposed."""
    value = entry.value
    if value is None:  # a copy of a former attempt, on another node
        return Value(AT_NODE, b"", 0, entry.size, sharing.shared[entry.object_id].contained)
    if value.kind in (EXTENT, FILE):
        sharing.expose((entry.object_id,))
        return Value(AT_NODE, b"", 0, entry.size, value.contained)
    sharing.expose(value.contained)
    return value
