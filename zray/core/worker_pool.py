"""The workers of one node: starting, idle, busy, blocked; how many there should be.

A worker runs tasks of one job only, one at a time, and may hold a few short ones of the same class behind the
running one (run-ahead). It is *found* in ``workers`` for its whole life and in ``idle`` while it has nothing
to do. Its demand is held while it has work, except for the CPUs of a worker that is blocked in ``get``.
"""

from __future__ import annotations

from collections import deque

from zray.config import Config
from zray.core.gpus import Gpus, Shares
from zray.core.group_resources import lent_while_blocked
from zray.core.machine import WORKER_POOL, Address, Effect, invariant
from zray.core.resources import ResourcePool
from zray.protocol.local_messages import KillWorker, StartWorker
from zray.protocol.messages import ACTOR, Demand, Describe, Exit, Submit, TaskRecord, Value
from zray.protocol.user_messages import STREAM, VALUES, Consumed, SeeGpus

STARTING, IDLE, BUSY, DEDICATED, LEASED = 0, 1, 2, 3, 4
NO_JOB = b""
FRESH = (NO_JOB, "")
"""Job and environment of a worker that has run nothing yet: it may take on any."""

TYPICAL_SAMPLES_MIN = 10
"""Tasks of a class that must have ended before its run time is told to others."""

BRIEF_RUN_NS = 100_000
"""Tasks that run for less cost more to place on another node, which takes the time of three processes."""
CUT_RUN_NS = 4 * BRIEF_RUN_NS
CUT_RUN_SAMPLES = 16
"""What longer runs count for, and over how many, when it is asked whether tasks are brief."""


class TaskClass:
    """The tasks of one job with one descriptor: same code, same demand, same expected run time."""

    __slots__ = (
        "cpus", "cut_run_ns", "demand", "descriptor", "ended", "fetching", "job_id", "kept", "leasable",
        "may_run_ahead", "number", "progress_ns", "ready", "run_ns", "samples",
    )  # fmt: skip

    def __init__(self, descriptor: Describe, job_id: bytes, number: int) -> None:
        self.number = number
        self.descriptor = descriptor
        self.job_id = job_id
        self.demand = descriptor.demand
        self.cpus = lent_while_blocked(descriptor.demand, descriptor.in_group)
        self.ready: deque[TaskEntry] = deque()
        self.progress_ns = 0  # when one of them ended here, or was the first in an empty queue
        self.fetching = 0  # tasks that are to be ready once copies of their inputs came
        self.kept = 0  # tasks that stay by a decision of this node, since it reported its load
        self.run_ns = 0  # exponential average; 0: nothing ran yet
        self.cut_run_ns = 0  # the same, slower, and of run times that are cut off at ``CUT_RUN_NS``
        self.samples = 0  # that they were learned from
        self.ended = False  # its job is over: nothing of it runs any more
        # Behind a task that must not run twice nobody queues: if the worker dies, what was not
        # reported might have run.
        self.may_run_ahead = (
            descriptor.kind != ACTOR
            and descriptor.max_retries != 0
            and not descriptor.max_calls
            and descriptor.returns != STREAM
        )
        self.leasable = (
            self.may_run_ahead
            and not descriptor.spread
            and descriptor.strategy is None
            and descriptor.in_group is None
            and descriptor.num_returns == 1
            and descriptor.returns == VALUES
            and not descriptor.retry_exceptions
        )

    @property
    def typical_ns(self) -> int:
        """Run time for others' estimates; 0 while too few tasks have ended: the first may be the shortest."""
        return self.run_ns if self.samples >= TYPICAL_SAMPLES_MIN else 0

    @property
    def is_brief(self) -> bool:
        """Whether to place such a task on another node costs more than to run it, as far as is known.

        One among many that was held up, as by a collection or by other programs, changes nothing.
        """
        return self.samples >= TYPICAL_SAMPLES_MIN and self.cut_run_ns < BRIEF_RUN_NS

    def learn_run_time(self, run_ns: int, alpha: float) -> None:
        """Exponential average of run times (paper, section 4.2.2)."""
        old = self.run_ns
        sample = max(1, run_ns)
        cut = min(sample, CUT_RUN_NS)
        self.samples += 1
        if old:
            sample = int(old + alpha * (sample - old))
            cut = self.cut_run_ns + (cut - self.cut_run_ns) // CUT_RUN_SAMPLES
        self.run_ns = max(1, sample)
        self.cut_run_ns = cut


class TaskEntry:
    """One unfinished task; found in ``LocalScheduler.tasks``."""

    __slots__ = (
        "alone", "attempt", "consumed", "hops", "retries_left", "spec", "stale", "stays", "streamed",
        "submitter", "task_class", "unmet", "verdict",
    )  # fmt: skip

    def __init__(self, spec: Submit, task_class: TaskClass, submitter: Address) -> None:
        self.spec = spec
        self.task_class = task_class
        self.submitter = submitter
        self.attempt = spec.attempt
        retries = task_class.descriptor.max_retries
        self.retries_left = retries if retries < 0 else max(0, retries - spec.attempt)
        self.unmet = 0  # dependencies that it waits for: see core/admission.py
        self.stays = False  # it was decided that it runs here
        self.alone = False  # its worker died: no run-ahead with it, so that blame is exact
        self.hops = 0
        self.verdict: Value | None = None  # what it ends with, whatever becomes of its attempt
        self.streamed = 0  # items of its stream that its submitter was told of, over all attempts
        self.consumed: Consumed | None = None  # the newest that its submitter said of them
        self.stale = -1  # the attempt whose items were for a reader that is gone: another one follows

    def record(self, node_id: bytes, state: int, released: bool) -> TaskRecord:
        """All that is needed to run the task again."""
        spec, job_id = self.spec, self.task_class.job_id
        return TaskRecord(
            spec.task_id, spec.parent_id, spec.descriptor_id, spec.args, spec.deps, node_id, self.attempt,
            state, b"", released, job_id, spec.borrowed,
        )  # fmt: skip


class Worker:
    """One worker process; ``queue`` holds what was sent to it, the running task first."""

    __slots__ = (
        "actor_id",
        "blocked",
        "doomed",
        "endpoint",
        "environment",
        "gpus",
        "held",
        "idle_since_ns",
        "job_id",
        "known",
        "lent",
        "listens",
        "progress_ns",
        "queue",
        "recalled",
        "sees",
        "started_ns",
        "state",
        "task_class",
        "tasks_ended",
        "worker_id",
    )

    def __init__(self, worker_id: Address, now_ns: int) -> None:
        self.worker_id = worker_id
        self.state = STARTING
        self.started_ns = now_ns
        self.idle_since_ns = now_ns
        self.progress_ns = now_ns
        self.queue: dict[bytes, TaskEntry] = {}
        self.held: tuple[tuple[str, int], ...] = ()
        self.gpus: Shares = ()
        self.sees: tuple[int, ...] = ()  # the GPUs that it was told to use
        self.blocked = False  # waits in ``get``
        self.lent: tuple[tuple[str, int], ...] = ()  # CPUs given back while it is blocked
        self.listens = False  # for submitters, so that it can be leased
        self.doomed = False  # it is being killed: nothing new for it
        self.task_class: TaskClass | None = None
        self.recalled = False  # asked to give back its queue; no run-ahead until it makes progress
        self.job_id = NO_JOB
        self.environment = ""  # the runtime environment it has taken on, for good
        self.tasks_ended = 0
        self.actor_id = b""
        self.endpoint = ""
        self.known: dict[bytes, None] = {}  # descriptors, functions and jobs it was told about


class WorkerPool:
    """All workers of a node and the resources they hold. Pure; shares its node's outbox."""

    def __init__(self, out: list[Effect], *, resources: ResourcePool, config: Config, node_id: bytes) -> None:
        self.out = out
        self.resources = resources
        self.gpus = Gpus(resources.as_demand())
        self.config = config
        self.node_id = node_id
        self.workers: dict[Address, Worker] = {}
        self.idle: dict[tuple[bytes, str], dict[Address, Worker]] = {}  # (job, environment) -> oldest first
        self.busy: dict[Address, Worker] = {}
        self.starting = 0
        self.doomed = 0  # being killed and not gone
        self.started = 0  # workers ever started; part of their ids

    def start(self, now_ns: int) -> Worker:
        """Fork one more worker."""
        self.started += 1
        worker = Worker(self.node_id[:12] + self.started.to_bytes(4, "big"), now_ns)
        self.workers[worker.worker_id] = worker
        self.starting += 1
        self.out.append((WORKER_POOL, StartWorker(worker.worker_id)))
        return worker

    def introduced(self, now_ns: int, worker: Worker, endpoint: str) -> None:
        """A forked worker is ready."""
        if worker.state == STARTING and not worker.doomed:
            self.starting -= 1
            worker.endpoint = endpoint
            self._to_idle(now_ns, worker)

    def fits(self, demand: Demand) -> bool:
        """Whether a demand can be held now, its GPUs by number."""
        return self.resources.fits(demand) and (not self.gpus.total or self.gpus.fits(demand))

    def idle_for(self, job_id: bytes, environment: str = "") -> Worker | None:
        """An idle worker for the job and environment: one that ran such tasks before, else a fresh one."""
        for key in ((job_id, environment), FRESH):
            idle = self.idle.get(key)
            if idle:
                # The one that was busy last: its caches are warm, and the others may end.
                _, worker = idle.popitem()
                return worker
        return None

    def occupy(self, now_ns: int, worker: Worker, task_class: TaskClass) -> None:
        """A worker taken from :meth:`idle_for` starts to work for a class; its demand is held."""
        self.resources.take(task_class.demand)
        worker.held = task_class.demand
        if self.gpus.total:
            self._give_gpus(worker, task_class.demand)
        worker.task_class = task_class
        worker.job_id = task_class.job_id
        worker.environment = task_class.descriptor.environment
        worker.state = BUSY
        worker.recalled = False
        worker.progress_ns = now_ns
        self.busy[worker.worker_id] = worker

    def _give_gpus(self, worker: Worker, demand: Demand) -> None:
        worker.gpus = self.gpus.take(demand)
        sees = tuple(number for number, _ in worker.gpus)
        if sees != worker.sees:
            worker.sees = sees
            self.out.append((worker.worker_id, SeeGpus(sees)))

    def dedicate(self, worker: Worker, actor_id: bytes) -> None:
        """A busy worker is an actor from now on and keeps what it holds."""
        del self.busy[worker.worker_id]
        worker.state = DEDICATED
        worker.actor_id = actor_id

    def lease(self, now_ns: int, worker: Worker, task_class: TaskClass) -> bool:
        """An idle worker is for one submitter from now on and holds what its tasks need, if it can."""
        if worker.state != IDLE or worker.doomed or not self.fits(task_class.demand):
            return False
        self._forget_idle(worker)
        self.occupy(now_ns, worker, task_class)
        del self.busy[worker.worker_id]
        worker.state = LEASED
        return True

    def end_lease(self, now_ns: int, worker: Worker) -> None:
        """Take :meth:`lease` back."""
        self._give_back(worker)
        worker.task_class = None
        self._to_idle(now_ns, worker)

    def vacate(self, now_ns: int, worker: Worker) -> None:
        """A worker has nothing left to do."""
        self._give_back(worker)
        worker.task_class = None
        del self.busy[worker.worker_id]
        self._to_idle(now_ns, worker)

    def _to_idle(self, now_ns: int, worker: Worker) -> None:
        worker.state = IDLE
        worker.idle_since_ns = now_ns
        if not worker.doomed:
            self.idle.setdefault((worker.job_id, worker.environment), {})[worker.worker_id] = worker

    def _give_back(self, worker: Worker) -> None:
        if worker.lent:
            kept = tuple(part for part in worker.held if part not in worker.lent)
            self.resources.give(kept)
            worker.lent = ()
        else:
            self.resources.give(worker.held)
        self.gpus.give(worker.gpus)
        worker.held = worker.gpus = ()
        worker.blocked = False

    def lend(self, worker: Worker) -> None:
        """The worker waits in ``get``: its CPUs are free for others (never its GPUs)."""
        if worker.task_class is None or worker.blocked:
            return
        worker.blocked = True
        worker.lent = worker.task_class.cpus
        self.resources.give(worker.lent)

    def take_back(self, worker: Worker) -> None:
        """The worker goes on, at once, even if its CPUs are in use: waiting could block for ever."""
        worker.blocked = False
        if worker.lent:
            self.resources.oversubscribe(worker.lent)
            worker.lent = ()

    def remove(self, worker: Worker) -> None:
        """A worker process is gone."""
        del self.workers[worker.worker_id]
        if worker.doomed:
            self.doomed -= 1
        if worker.state == STARTING:
            self.starting -= 1
        self._forget_idle(worker)
        self.busy.pop(worker.worker_id, None)
        self._give_back(worker)

    def _forget_idle(self, worker: Worker) -> None:
        key = worker.job_id, worker.environment
        idle = self.idle.get(key)
        if idle is not None:
            idle.pop(worker.worker_id, None)
            if not idle:
                del self.idle[key]

    def count_call(self, worker: Worker, calls_max: int) -> None:
        """A task of a function that wears its workers out has ended: the last one lets this worker go."""
        worker.tasks_ended += 1
        if worker.tasks_ended >= calls_max:
            self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        """Let a worker end by itself, with its exit handlers; nothing new for it."""
        if worker.doomed:
            return
        worker.doomed = True
        self.doomed += 1
        self._forget_idle(worker)
        self.out.append((worker.worker_id, Exit("it has run as many tasks as it may")))

    def kill(self, worker: Worker) -> None:
        """End a worker process; its end is reported like any other."""
        if worker.doomed:
            return
        worker.doomed = True
        self.doomed += 1
        self._forget_idle(worker)
        self.out.append((WORKER_POOL, KillWorker(worker.worker_id)))

    def wanted(self, ready: list[TaskClass]) -> int:
        """How many more workers the ready tasks could use now, beyond those that are starting."""
        free = dict(self.resources.free)
        count = 0
        for task_class in ready:
            if self.gpus.total and not self.gpus.fits(task_class.demand):
                continue  # enough in sum, and in pieces
            room = len(task_class.ready)
            for name, amount in task_class.demand:
                room = min(room, max(0, free.get(name, 0)) // amount)
            for name, amount in task_class.demand:
                free[name] = free.get(name, 0) - room * amount
            count += room
        return max(0, count - self.starting)

    def start_up_to(self, now_ns: int, wanted: int) -> None:
        """Fork as many workers as there is room for; a full pool ends idle ones of other jobs first."""
        room = max(0, self.config.workers_max - len(self.workers))
        for _ in range(min(wanted, room)):
            self.start(now_ns)
        if wanted > room:
            self._make_way(wanted - room - self.doomed)

    def _make_way(self, count: int) -> None:
        """End idle workers: none of them may run what is ready."""
        for idle in list(self.idle.values()):
            for worker in list(idle.values()):
                if count <= 0:
                    return
                self.kill(worker)
                count -= 1

    def surplus(self, now_ns: int, keep: int) -> list[Worker]:
        """Idle workers beyond ``keep`` whose time is over, the longest idle first."""
        idle = [worker for group in self.idle.values() for worker in group.values()]
        idle.sort(key=lambda worker: worker.idle_since_ns)
        extra = max(0, len(idle) - keep)
        return [w for w in idle[:extra] if w.idle_since_ns + self.config.worker_idle_ns <= now_ns]

    def overdue(self, now_ns: int) -> list[Worker]:
        """Forked workers that did not introduce themselves in time."""
        if not self.starting:
            return []
        timeout_ns = self.config.worker_start_timeout_ns
        return [
            w for w in self.workers.values() if w.state == STARTING and w.started_ns + timeout_ns <= now_ns
        ]

    def in_doubt(self, keep: int) -> bool:
        """Whether time alone may make a worker superfluous or overdue."""
        return self.starting > 0 or len(self.workers) > keep

    def check(self) -> None:
        """I4, and every worker is where its state says."""
        held = []
        for worker in self.workers.values():
            kept = worker.held
            if worker.lent:
                kept = tuple(part for part in worker.held if part not in worker.lent)
            held.append(kept)
            in_idle = worker.worker_id in self.idle.get((worker.job_id, worker.environment), {})
            invariant(not in_idle or worker.state == IDLE, "idle worker in state", worker.state)
            invariant(worker.state != IDLE or in_idle != worker.doomed, "idle worker is nowhere")
            invariant(worker.state != BUSY or bool(worker.queue), "busy worker without a task")
            invariant((worker.worker_id in self.busy) == (worker.state == BUSY), "busy worker", worker.state)
            invariant(worker.state != IDLE or not worker.queue, "idle worker with a queue")
        self.resources.check(held)
        self.gpus.check(worker.gpus for worker in self.workers.values())
        count = sum(worker.state == STARTING for worker in self.workers.values())
        invariant(count == self.starting, "starting", self.starting, "counted", count)
        count = sum(worker.doomed for worker in self.workers.values())
        invariant(count == self.doomed, "doomed", self.doomed, "counted", count)
        invariant(len(self.workers) <= self.config.workers_max, "I15: workers", len(self.workers))
