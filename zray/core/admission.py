"""What a task waits for before it is queued, and whether it is queued here at all (paper, section 4.2.2).

A task is looked at once every input has a value *somewhere*. Only then it is decided whether it stays: so a
task that goes to another node is placed before anything is copied, with the sizes and holders of its inputs,
and the node that is chosen pulls what it lacks. What stays waits for copies of the rest.

A task is in one of these states; ``unmet`` counts the entries in whose ``dependents`` it is:

- waiting: ``unmet`` inputs have no value anywhere;
- ``forwarded``, or away: it waits for nothing here;
- fetching: it ``stays``, and ``unmet`` inputs are not in this store yet;
- held: the next life of a detached actor, until its deed knows of it (``succession.py``);
- admitted: in its class's queue, or beyond.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from zray.core.machine import TRANSFER, Address, invariant
from zray.core.node_store import SEALED, ObjectEntry
from zray.core.placement import FITS, MISFIT, PINNED, SECOND_BEST, Inputs, fit_of, is_better_elsewhere
from zray.core.worker_pool import TaskClass, TaskEntry
from zray.ids import short
from zray.protocol.messages import ACTOR, ERROR, FAULT, TASK_FAILED, Forward, Place, Withdraw
from zray.protocol.user_messages import VALUES

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler


class TaskAdmission:
    """Tasks between their submission and their class's queue. Pure; a room of the ``LocalScheduler``."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self.scheduler = scheduler
        self.store = scheduler.store
        self.woken: deque[TaskEntry] = deque()  # what they waited for came in this batch
        self.forwarded: dict[bytes, TaskEntry] = {}
        self.parked_since: dict[bytes, int] = {}  # those of them that no node can run, as far as was told
        self.held: dict[bytes, None] = {}  # lives of detached actors that the deed does not know yet

    # --- waiting -----------------------------------------------------------------------------------

    def take_in(self, now_ns: int, task: TaskEntry) -> None:
        """A new task: keep what it needs, and decide once all of it is made."""
        for object_id in task.spec.borrowed:
            self._need(now_ns, object_id)
        for object_id in task.spec.deps:
            entry = self._need(now_ns, object_id)
            if not _is_made(entry):
                _wait_for(entry, task)
        if not task.unmet:
            self.decide(task)

    def _need(self, now_ns: int, object_id: bytes) -> ObjectEntry:
        entry = self.store.entry(object_id)
        if entry.state != SEALED:
            self.store.watch_stranger(now_ns, entry)
        entry.pins += 1
        return entry

    def sealed(self, tasks: list[TaskEntry]) -> None:
        """An object has its value here that these tasks waited for (once per dependency).

        They are looked at in ``wake``: at once, an error would run down a long chain of tasks in as many
        nested calls.
        """
        for task in tasks:
            task.unmet -= 1
            if not task.unmet:
                self.woken.append(task)
                task.task_class.fetching -= task.stays

    def found(self, tasks: list[TaskEntry]) -> list[TaskEntry]:
        """An object has its value on another node; returns those of its tasks that need it here."""
        alive = self.scheduler.tasks
        fetching = [task for task in tasks if task.stays and alive.get(task.spec.task_id) is task]
        self.sealed([task for task in tasks if not task.stays])
        return fetching

    def wake(self) -> None:
        """Look at the tasks whose last wait is over, unless they were dropped meanwhile."""
        woken, tasks = self.woken, self.scheduler.tasks
        while woken:
            task = woken.popleft()
            if tasks.get(task.spec.task_id) is task:
                self.decide(task)

    def dropped(self, task: TaskEntry) -> None:
        """A task ends while it waits; what it waits for finds it gone, and does not count it once more."""
        task.task_class.fetching -= task.stays
        task.stays = False

    # --- deciding ----------------------------------------------------------------------------------

    def decide(self, task: TaskEntry) -> None:
        """All inputs exist: queue the task, fetch what it lacks, send it away, or end it with its error."""
        objects, is_here = self.store.objects, True
        for object_id in task.spec.deps:
            entry = objects[object_id]
            if entry.state == SEALED:
                value = entry.value
                if value is not None and value.kind in (ERROR, FAULT):
                    self.scheduler.finish_all(task, value, TASK_FAILED)
                    return
            else:
                is_here = False
        if self.held and task.spec.task_id in self.held:
            return
        if task.stays:
            leaves = False
        elif (not is_here and self._waits_again(task)) or (
            task.task_class.descriptor.strategy is not None and not self._may_run(task)
        ):
            return
        else:
            leaves = self._leaves(task, is_here)
        if leaves:
            self.forward(task)
        else:
            if not task.hops and not task.stays:  # otherwise the global scheduler placed it, and knows
                task.task_class.kept += 1
            if is_here:
                task.stays = True
                self.scheduler.queue(task)
            else:
                self._fetch(task)

    def _waits_again(self, task: TaskEntry) -> bool:
        """Whether an input was lost since it was made: it is found, or made, once more."""
        objects = self.store.objects
        for object_id in task.spec.deps:
            if not _is_made(objects[object_id]):
                _wait_for(objects[object_id], task)
        return bool(task.unmet)

    def _fetch(self, task: TaskEntry) -> None:
        """The task runs here, and is queued once copies of all that it takes are here."""
        task.stays = True
        objects = self.store.objects
        for object_id in task.spec.deps:
            entry = objects[object_id]
            if entry.state != SEALED:
                _wait_for(entry, task)
                self.store.want_copy(entry)
        task.task_class.fetching += 1

    def _leaves(self, task: TaskEntry, is_here: bool) -> bool:
        """Whether a global scheduler is to choose a node for a task."""
        scheduler, task_class = self.scheduler, task.task_class
        if not scheduler.pool.resources.feasible(task_class.demand):
            return True
        fit = self._fit(task)
        if fit == MISFIT:
            return True
        if not scheduler.peers or task.hops or fit == PINNED or self.is_bound(task):
            return False
        if fit == SECOND_BEST:
            return True
        if task_class.descriptor.kind == ACTOR:  # it stays if it fits, see ``ActorLives.forward_unfit``
            return task_class.descriptor.spread
        if self._overloaded(task):
            return True
        return not is_here and is_better_elsewhere(scheduler.node_id, self._inputs(task))

    def _fit(self, task: TaskEntry) -> int:
        """What the strategy of a task says of this node; one that was placed here once is here for good."""
        strategy = task.task_class.descriptor.strategy
        if strategy is None or task.hops:
            return FITS
        return fit_of(strategy, self.scheduler.node_id, self.scheduler.labels)

    def _may_run(self, task: TaskEntry) -> bool:
        """Whether a task can be anywhere where its strategy allows it to be; if not, it ends."""
        if self._fit(task) != MISFIT or not self.is_bound(task):
            return True
        reason = "it is to run on another node, and what it is or takes ties it to that of its submitter"
        self.scheduler.unschedulable(task, reason)
        return False

    def is_bound(self, task: TaskEntry) -> bool:
        """Whether a task can run on the node of its submitter only."""
        return task.task_class.descriptor.returns != VALUES

    def _overloaded(self, task: TaskEntry) -> bool:
        """Whether a task is to spread, or the backlog above the threshold and worth a placement."""
        task_class, scheduler = task.task_class, self.scheduler
        backlog_max = scheduler.config.backlog_per_slot_max * max(1, len(scheduler.pool.workers))
        backlog = len(task_class.ready) + task_class.fetching
        if task_class.descriptor.spread or backlog <= backlog_max:
            return task_class.descriptor.spread
        return task_class.fetching > backlog_max or not self._keeps(task_class)

    def _keeps(self, task_class: TaskClass) -> bool:
        """Whether a long queue of a class stays: its tasks are brief, and end one after the other.

        Not where the threshold is 0 or less, which is to spread every task that would wait, and not where
        nobody would ask for the queue if it turns out unfair.
        """
        config = self.scheduler.config
        may_keep = config.backlog_per_slot_max > 0 and config.offload_patience_ns >= 0
        return may_keep and task_class.is_brief and not self._stands(task_class)

    def _stands(self, task_class: TaskClass) -> bool:
        """Whether a queue is not worked off: others have the workers, or one task runs long."""
        return 0 <= self.scheduler.config.offload_patience_ns < self._still_ns(task_class)

    def _still_ns(self, task_class: TaskClass) -> int:
        """How long none of a class had ended when this node last looked; it may have been held up since."""
        return self.scheduler.decided_ns - task_class.progress_ns

    def backlog_to_share(self) -> int:
        """Tasks that are ready and not dispatched, and would be better off on a node with less to do."""
        classes = self.scheduler.ready.values()
        return sum(len(each.ready) for each in classes if not self._keeps(each))

    def standing_ns(self) -> int:
        """For how long none has ended of brief tasks that wait; 0: they do not stand."""
        classes = self.scheduler.ready.values()
        return max(
            (self._still_ns(each) for each in classes if each.is_brief and self._stands(each)), default=0
        )

    # --- forwarding --------------------------------------------------------------------------------

    def forward(self, task: TaskEntry) -> None:
        """Ask the global scheduler for a node."""
        self.forwarded[task.spec.task_id] = task
        self._send(task, 0)

    def _send(self, task: TaskEntry, parked_ns: int) -> None:
        task_class = task.task_class
        forward = Forward(
            task.spec, task_class.descriptor, task.hops, self._inputs(task), run_ns=task_class.typical_ns,
            parked_ns=parked_ns, kept=task_class.kept,
        )  # fmt: skip
        self.scheduler.out.append((self.scheduler.global_scheduler, forward))

    def leave(self, task_id: bytes) -> TaskEntry | None:
        """A task waits for no global scheduler any more; ``None``: it did not."""
        if self.parked_since:
            self.parked_since.pop(task_id, None)
        return self.forwarded.pop(task_id, None)

    def parked(self, now_ns: int, task_id: bytes) -> None:
        """The global scheduler says, after its grace, that no node can run a task that it has of this one."""
        self.parked_since.setdefault(task_id, now_ns - self.scheduler.config.infeasible_grace_ns)

    def _inputs(self, task: TaskEntry) -> Inputs:
        """Where the inputs of a task are, as far as this node knows."""
        return tuple([self._whereabouts(object_id) for object_id in task.spec.deps])

    def _whereabouts(self, object_id: bytes) -> tuple[bytes, int, tuple[bytes, ...]]:
        entry, shared = self.store.objects[object_id], self.store.shared.get(object_id)
        nodes = () if shared is None else shared.nodes
        if entry.state == SEALED:
            nodes = (self.scheduler.node_id, *nodes)
        return object_id, entry.size, nodes

    def place(self, message: Place) -> bool:
        """A global scheduler chose this node; False if the task is not ours (any more)."""
        task = self.leave(message.spec.task_id)
        if task is None:
            return False
        task.hops, task.stays = message.hops, True
        self.decide(task)
        return True

    def come_back(self, task: TaskEntry) -> None:
        """A host gave a task back unstarted: it runs here if it fits, or is placed once more."""
        task.hops += 1
        if self.scheduler.pool.resources.fits(task.task_class.demand) and not self._overloaded(task):
            self.decide(task)
        else:
            self.forward(task)

    def resend(self) -> None:
        """The global scheduler is new or was away: tell it again what waits for it, and since when."""
        now_ns = self.scheduler.now_ns
        for task_id, task in self.forwarded.items():
            self._send(task, max(0, now_ns - self.parked_since.get(task_id, now_ns)))

    def move(self, former: Address) -> None:
        """Another global scheduler is to have what waits for one. What both place is granted once."""
        scheduler = self.scheduler
        if former != scheduler.global_scheduler:
            scheduler.out.extend((former, Withdraw(task_id)) for task_id in self.forwarded)
        self.resend()

    def check(self) -> None:
        """Every task waits in as many entries as it counts (I6), and classes know who fetches."""
        invariant(self.parked_since.keys() <= self.forwarded.keys(), "parked and not forwarded")
        waits: dict[bytes, int] = {}
        for entry in self.store.objects.values():
            for task in entry.dependents or ():
                task_id = task.spec.task_id
                if self.scheduler.tasks.get(task_id) is task:
                    waits[task_id] = waits.get(task_id, 0) + 1
        fetching: dict[int, int] = {}
        classes = {}
        for task_id, task in self.scheduler.tasks.items():
            found = waits.get(task_id, 0)
            invariant(found == task.unmet, "I6: unmet of", short(task_id), task.unmet, found)
            number = task.task_class.number
            classes[number] = task.task_class
            fetching[number] = fetching.get(number, 0) + bool(task.stays and task.unmet)
        for number, task_class in classes.items():
            invariant(task_class.fetching == fetching[number], "tasks that fetch:", task_class.fetching)


def _is_made(entry: ObjectEntry) -> bool:
    """Whether an object has a value, here, elsewhere, or on its way here."""
    return entry.state >= SEALED or entry.creator == TRANSFER


def _wait_for(entry: ObjectEntry, task: TaskEntry) -> None:
    task.unmet += 1
    if entry.dependents is None:
        entry.dependents = [task]
    else:
        entry.dependents.append(task)
