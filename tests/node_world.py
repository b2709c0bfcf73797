"""A small world around one ``Node``: drivers, workers, a disk, an arena and a shard, all played by the test.

Every process has an inbox and an outbox that keep the order of their link; the test decides who moves next,
so any interleaving between links can happen. After every step the world judges what the node did:

- the node's own ``check()``, and pins counted from outside;
- no object vanishes while a living process refers to it (acquire before release);
- memory that somebody looks at, or that is being written to a file, never changes hands (I10, I11);
- no attempt starts twice (I8, I9); one process sees one value per object (I1).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from zray import ids
from zray.config import Config
from zray.core.identity import NodeIdentity
from zray.core.machine import DISK, RUNTIME, WORKER_POOL, pump
from zray.core.node import Node
from zray.protocol.local_messages import (
    DeleteFile,
    KillWorker,
    Spilled,
    SpillFailed,
    StartWorker,
    WorkerExited,
)
from zray.protocol.messages import (
    ACTOR,
    ACTOR_ALIVE,
    AT_NODE,
    DRIVER,
    ERROR,
    EXTENT,
    FAULT,
    FILE,
    INLINE,
    PROTOCOL_VERSION,
    TASK,
    WORKER,
    Acked,
    Acquire,
    ActorState,
    Blocked,
    Create,
    Created,
    CreateFailed,
    Credit,
    Demand,
    Describe,
    Exit,
    ExportFunction,
    Forward,
    Get,
    Goodbye,
    Hello,
    HoldFor,
    JobContext,
    ObjectReady,
    Place,
    Promise,
    Publish,
    Recall,
    Recorded,
    RecordTasks,
    Release,
    Returned,
    Run,
    Seal,
    Submit,
    TaskDone,
    Unblocked,
    Unpin,
    Value,
    Warn,
    Welcome,
    Withdraw,
)
from zray.protocol.user_messages import ReaderGone, ResultsReady, SeeGpus

MS = 1_000_000
S = 1_000_000_000
GRANULE = 64
NODE_ID = b"N" * 16
SHARD = b"shard"
FUNCTION = b"F" * 16
CPU: Demand = (("CPU", 10_000),)
HALF: Demand = (("CPU", 5_000),)
CPU_AND_GPU: Demand = (("CPU", 10_000), ("GPU", 10_000))
TOO_MUCH: Demand = (("CPU", 990_000),)


def describe(
    name: str, demand: Demand = CPU, *, returns: int = 1, retries: int = 0, kind: int = TASK,
    retry_exceptions: bool = False,
) -> Describe:  # fmt: skip
    """A descriptor whose id follows from its name."""
    return Describe(
        name.encode().ljust(16, b"-"), FUNCTION, name, returns, demand, retries, kind, retry_exceptions
    )


KINDS = (
    describe("plain", retries=3),
    describe("half", HALF, retries=3),
    describe("once", retries=0),
    describe("gpu", CPU_AND_GPU, retries=1, retry_exceptions=True),
    describe("free", (), returns=2, retries=3),
    describe("silent", HALF, returns=0, retries=1),
    describe("actor", (), kind=ACTOR),
    describe("impossible", TOO_MUCH),
)
INFEASIBLE = KINDS.index(KINDS[-1])
ACTOR_KIND = INFEASIBLE - 1


class Process:
    """A driver or a worker as the node sees it."""

    def __init__(self, world: World, address: bytes, root: bytes) -> None:
        self.world = world
        self.address = address
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Any] = deque()
        self.alive = True
        self.held: dict[bytes, None] = {}  # in the order of its own program
        self.refs: dict[bytes, None] = {}  # the held ones that the node must not free
        self.described: dict[bytes, Describe] = {}
        self.announced: dict[bytes, Describe] = {}
        self.functions: dict[bytes, bytes] = {}
        self.creating: dict[bytes, tuple[int, tuple[bytes, ...]]] = {}
        self.created: dict[bytes, None] = {}  # of them: finished or refused
        self.views: list[tuple[bytes, int, int]] = []
        self.asked: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self.submitted: dict[bytes, None] = {}  # told of small values without asking
        self.stale: dict[bytes, None] = {}  # an answer may come that is not counted in ``asked``
        self.values: dict[bytes, tuple[int, bytes]] = {}
        self.promised: dict[bytes, None] = {}
        self.handing: dict[int, tuple[bytes, bytes]] = {}  # token -> receiver, object
        self.token = 0
        self.counter = 0
        self.prefix = ids.child_prefix(root)
        self.root = root
        self.actors: dict[bytes, int] = {}

    # --- what it says ------------------------------------------------------------------------------

    def say(self, message: Any) -> None:
        self.outbox.append(message)

    def new_task_id(self) -> bytes:
        self.counter += 1
        return ids.task_id(self.prefix, self.counter)

    def new_put_id(self) -> bytes:
        self.counter += 1
        return ids.put_id(self.prefix, self.counter)

    def submit(
        self, kind: Describe, deps: tuple[bytes, ...] = (), borrowed: tuple[bytes, ...] = ()
    ) -> tuple[bytes, ...]:
        if kind.descriptor_id not in self.announced:
            self.announced[kind.descriptor_id] = self.described[kind.descriptor_id] = kind
            self.functions[FUNCTION] = b"code"
            self.say(ExportFunction(FUNCTION, b"code"))
            self.say(kind)
        task_id = self.new_task_id()
        returns = ids.return_ids(task_id, kind.num_returns)
        self.held.update(dict.fromkeys(returns))
        self.submitted.update(dict.fromkeys(returns))
        spec = self.world.specs[task_id] = Submit(task_id, self.root, kind.descriptor_id, b"", deps, borrowed)
        self.say(spec)
        return returns

    def publish(self, contained: tuple[bytes, ...] = ()) -> bytes:
        object_id = self.new_put_id()
        self.held[object_id] = None
        self.world.contents[object_id] = contained
        self.say(Publish(object_id, Value(INLINE, object_id, 0, 0, contained)))
        return object_id

    def promise(self) -> bytes:
        object_id = ids.first_return_id(self.new_task_id())
        self.held[object_id] = self.promised[object_id] = None
        self.say(Promise((object_id,)))
        return object_id

    def keep_promise(self) -> None:
        object_id = next(iter(self.promised))
        del self.promised[object_id]
        self.say(Publish(object_id, Value(INLINE, object_id)))

    def create(self, object_id: bytes, size: int, contained: tuple[bytes, ...] = ()) -> None:
        self.creating[object_id] = size, contained
        self.world.contents[object_id] = contained
        self.say(Create(object_id, size))

    def get(self, object_id: bytes, *, fetch: bool = True) -> None:
        if fetch:
            self.asked[object_id] += 1
        else:
            self.stale[object_id] = None  # a small value comes as an announcement, too
        self.say(Get((object_id,), fetch))

    def acquire(self, object_id: bytes) -> None:
        if object_id not in self.held:
            self.held[object_id] = self.refs[object_id] = None
            self.say(Acquire((object_id,)))

    def release(self, object_id: bytes) -> None:
        del self.held[object_id]
        self.refs.pop(object_id, None)
        # The node drops what was asked and not answered yet, unless the answer is under way.
        if self.asked.pop(object_id, 0) != self.answered[object_id] or object_id in self.submitted:
            self.stale[object_id] = None
        self.submitted.pop(object_id, None)
        self.answered.pop(object_id, None)
        self.values.pop(object_id, None)
        self.say(Release((object_id,)))

    def hand(self, receiver: bytes, object_id: bytes) -> None:
        self.token += 1
        self.handing[self.token] = receiver, object_id
        self.say(HoldFor(receiver, (object_id,), self.token))

    def unpin(self) -> None:
        """Look away from everything."""
        for object_id, offset, size in self.views:
            self.world.look(object_id, offset, size)
        if self.views:
            self.say(Unpin(tuple(object_id for object_id, _, _ in self.views)))
        self.views.clear()

    def release_all(self) -> None:
        self.unpin()
        for object_id in list(self.held):
            if object_id not in self.promised and object_id not in self.creating:
                self.release(object_id)

    # --- what it hears -----------------------------------------------------------------------------

    def hear(self) -> None:
        """Handle the next message of the inbox."""
        message = self.inbox.popleft()
        handler: Callable[[Any], None] = getattr(self, "on_" + type(message).__name__.lower())
        handler(message)

    def on_objectready(self, message: ObjectReady) -> None:
        object_id, value = message.object_id, message.value
        self.view(message)
        if object_id not in self.held:
            return
        if value.kind != AT_NODE:
            self.answered[object_id] += 1
            seen = value.kind, value.data
            if value.kind in (EXTENT, FILE):
                seen = EXTENT, b""
            assert self.values.setdefault(object_id, seen) == seen, "I1"
        for inner in value.contained:
            self.acquire(inner)

    def on_resultsready(self, message: ResultsReady) -> None:
        assert len(message.values) > 1
        object_ids = ids.return_ids(message.task_id, len(message.values))
        for object_id, value in zip(object_ids, message.values, strict=True):
            assert value.kind not in (EXTENT, FILE)
            self.on_objectready(ObjectReady(object_id, value))

    def view(self, message: ObjectReady) -> None:
        object_id, value = message.object_id, message.value
        if value.kind == EXTENT:
            self.world.look(object_id, value.offset, value.size)
            self.views.append((object_id, value.offset, value.size))
        elif value.kind == FILE and object_id in self.held:
            assert self.world.files.get(object_id) == object_id, "a file that is shown is complete"

    def on_created(self, message: Created) -> None:
        object_id = message.object_id
        size, contained = self.creating[object_id]
        assert object_id not in self.created, "one answer"
        self.created[object_id] = None
        if message.kind == EXTENT:
            self.world.write(object_id, message.offset, size)
        else:
            self.world.files[object_id] = object_id
        if ids.is_put(object_id):
            del self.creating[object_id], self.created[object_id]
            self.held[object_id] = self.refs[object_id] = None
            self.say(Seal(object_id, contained))

    def on_createfailed(self, message: CreateFailed) -> None:
        object_id = message.object_id
        self.created[object_id] = None
        if ids.is_put(object_id):
            del self.creating[object_id], self.created[object_id]
            if not message.capacity_bytes:  # it was made before
                self.held[object_id] = self.refs[object_id] = None

    def on_acked(self, message: Acked) -> None:
        receiver, object_id = self.handing.pop(message.token)
        self.world.parcels.append((receiver, object_id))

    def on_actorstate(self, message: ActorState) -> None:
        assert message.state >= self.actors.get(message.actor_id, 0), "an actor does not come back"
        self.actors[message.actor_id] = message.state
        assert (message.state == ACTOR_ALIVE) <= bool(message.address)

    def ignore(self, message: Any) -> None:
        """Of no interest to the world."""

    on_welcome: Callable[[Welcome], None] = ignore
    on_credit: Callable[[Credit], None] = ignore
    on_warn: Callable[[Warn], None] = ignore


class PlayedWorker(Process):
    """A worker: one task at a time, deeds chosen by the test."""

    def __init__(self, world: World, address: bytes) -> None:
        super().__init__(world, address, ids.NIL_ID)
        self.introduced = False
        self.doomed = False
        self.leaving = False
        self.job = b""
        self.cell = b""
        self.sees: tuple[int, ...] = ()
        self.runs: deque[Run] = deque()
        self.running: Run | None = None
        self.children: list[bytes] = []
        self.waits_for: bytes | None = None
        self.finishing: list[bytes] | None = None  # large return objects that it creates
        self.actor = b""

    def on_run(self, run: Run) -> None:
        assert self.job in (b"", run.job_id)
        assert run.job_id in self.world.told_jobs[self.address]
        assert self.functions[FUNCTION] == b"code"
        self.job = run.job_id
        assert not self.runs or self.runs[-1].descriptor_id == run.descriptor_id, "one class at a time"
        self.runs.append(run)
        wants_gpu = "GPU" in dict(self.described[run.descriptor_id].demand)
        assert self.sees == ((0,) if wants_gpu else ()), "it sees what it was given"
        for ready in run.deps:
            assert ready.value.kind not in (ERROR, FAULT, AT_NODE)
            self.view_input(ready)

    def view_input(self, ready: ObjectReady) -> None:
        value = ready.value
        if value.kind == EXTENT:
            self.world.look(ready.object_id, value.offset, value.size)
            self.views.append((ready.object_id, value.offset, value.size))
        elif value.kind == FILE:
            assert self.world.files.get(ready.object_id) == ready.object_id

    def on_describe(self, message: Describe) -> None:
        self.described[message.descriptor_id] = message

    def on_exportfunction(self, message: ExportFunction) -> None:
        self.functions[message.function_id] = message.code

    def on_jobcontext(self, message: JobContext) -> None:
        self.world.told_jobs[self.address][message.job_id] = None

    def on_readergone(self, message: ReaderGone) -> None:
        """It makes no stream for that reader."""

    def on_seegpus(self, message: SeeGpus) -> None:
        self.sees = message.numbers

    def on_recall(self, message: Recall) -> None:
        self.give_back()

    def on_exit(self, message: Exit) -> None:
        self.leaving = True

    def on_objectready(self, message: ObjectReady) -> None:
        super().on_objectready(message)
        if message.object_id == self.waits_for and message.value.kind != AT_NODE:
            self.waits_for = None
            assert self.running is not None
            self.say(Unblocked(self.running.task_id))

    def give_back(self) -> None:
        """Return what is queued; its inputs are not looked at."""
        if not self.runs:
            return
        for run in self.runs:
            for ready in run.deps:
                if ready.value.kind == EXTENT:
                    view = ready.object_id, ready.value.offset, ready.value.size
                    self.views.remove(view)
                    self.say(Unpin((ready.object_id,)))
        self.say(Returned(tuple(run.task_id for run in self.runs)))
        self.runs.clear()

    # --- deeds -------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self.running is not None and self.waits_for is None and self.finishing is None

    def start(self) -> None:
        run = self.running = self.runs.popleft()
        self.cell = run.task_id
        assert run.attempt not in self.world.started[run.task_id], "an attempt ran twice"
        self.world.started[run.task_id].append(run.attempt)
        self.root, self.prefix, self.counter = run.task_id, ids.child_prefix(run.task_id), 0
        self.children = []
        for object_id in self.world.specs[run.task_id].borrowed:
            self.acquire(object_id)
        for ready in run.deps:
            for inner in ready.value.contained:
                self.acquire(inner)

    def block_on(self, object_id: bytes) -> None:
        assert self.running is not None
        self.waits_for = object_id
        self.give_back()
        self.say(Blocked(self.running.task_id))
        self.get(object_id)

    def finish(self, *, failed: bool = False, contained: tuple[bytes, ...] = ()) -> None:
        assert self.running is not None
        kind = self.described[self.running.descriptor_id]
        code = ERROR if failed else INLINE
        for object_id in ids.return_ids(self.running.task_id, kind.num_returns):
            self.world.contents[object_id] = contained
        values = tuple(
            Value(code, object_id, 0, 0, () if failed else contained)
            for object_id in ids.return_ids(self.running.task_id, kind.num_returns)
        )
        self.report(values, failed)
        if kind.kind == ACTOR and not failed:
            self.actor = self.cell

    def finish_large(self, size: int) -> None:
        assert self.running is not None
        kind = self.described[self.running.descriptor_id]
        self.finishing = list(ids.return_ids(self.running.task_id, kind.num_returns))
        for object_id in self.finishing:
            self.create(object_id, size)

    def finish_created(self) -> None:
        """Report large results once they are all written."""
        assert self.finishing is not None
        if not all(object_id in self.created for object_id in self.finishing):
            return
        values = []
        for object_id in self.finishing:
            values.append(Value(EXTENT, b"", 0, self.creating.pop(object_id)[0]))
            del self.created[object_id]
        self.finishing = None
        self.report(tuple(values), False)

    def report(self, values: tuple[Value, ...], failed: bool) -> None:
        run = self.running
        assert run is not None
        self.running = None
        self.say(TaskDone(run.task_id, run.attempt, values, 1 * MS, failed))
        queued = {(ready.object_id, ready.value.offset) for queued in self.runs for ready in queued.deps}
        for view in [view for view in self.views if view[:2] not in queued]:
            self.world.look(*view)
            self.views.remove(view)
            self.say(Unpin((view[0],)))


class World:
    """One node and everybody around it."""

    def __init__(self) -> None:
        config = Config(run_ahead_tasks_max=3, workers_max=40, lineage_batch_max=4, submit_batch_max=8)
        total = (("CPU", 20_000), ("GPU", 10_000))
        identity = NodeIdentity(node_id=NODE_ID, arena_bytes=16 * GRANULE)
        self.node = Node(identity, total=total, shards=(SHARD,), config=config)
        self.now_ns = 1 * S
        self.processes: dict[bytes, Process] = {}
        self.gone: dict[bytes, None] = {}
        self.disk: deque[Any] = deque()
        self.runtime: deque[Any] = deque()
        self.shard: deque[Any] = deque()
        self.forwards: dict[bytes, Forward] = {}
        self.parcels: deque[tuple[bytes, bytes]] = deque()  # references on their way between processes
        self.memory: dict[int, bytes] = {}
        self.files: dict[bytes, bytes] = {}
        self.specs: dict[bytes, Submit] = {}
        self.contents: dict[bytes, tuple[bytes, ...]] = {}  # object -> what it contains
        self.started: dict[bytes, list[int]] = defaultdict(list)  # unfinished task -> attempts
        self.told_jobs: dict[bytes, dict[bytes, None]] = {}
        self.lost = 0
        self.pump([])

    # --- memory ------------------------------------------------------------------------------------

    def write(self, object_id: bytes, offset: int, size: int) -> None:
        for granule in range(offset, offset + size, GRANULE):
            self.memory[granule] = object_id

    def ancestry(self, object_id: bytes) -> dict[bytes, None]:
        """Every task that the value of an object needs or contains: nobody may wait for itself."""
        found: dict[bytes, None] = {}
        open_ids = [object_id]
        while open_ids:
            task_id = ids.producer_of(object_id := open_ids.pop())
            if object_id in found:
                continue
            found[object_id] = found[task_id] = None
            if task_id in self.specs:
                open_ids += [*self.specs[task_id].deps, *self.specs[task_id].borrowed]
            open_ids += self.contents.get(object_id, ())
        return found

    def look(self, object_id: bytes, offset: int, size: int) -> None:
        for granule in range(offset, offset + size, GRANULE):
            assert self.memory.get(granule) == object_id, "memory that is looked at has changed hands"

    def do_disk(self, *, works: bool = True) -> None:
        message = self.disk.popleft()
        if isinstance(message, DeleteFile):
            self.files.pop(message.object_id, None)
        elif works:
            self.look(message.object_id, message.offset, message.size)
            self.files[message.object_id] = message.object_id
            self.runtime.append(Spilled(message.object_id))
        else:
            self.runtime.append(SpillFailed(message.object_id, "no space"))

    # --- the node ----------------------------------------------------------------------------------

    def pump(self, batch: list[tuple[bytes, Any]]) -> None:
        """Feed the node, judge it, and pass on what it says."""
        for source, message in batch:
            self._note_sent(self.processes.get(source), message)
        before, tasks = list(self.node.store.objects), list(self.node.scheduler.tasks)
        pump(self.node, batch, self.now_ns)
        self.node.check()
        self._judge(before)
        for task_id in tasks:
            if task_id not in self.node.scheduler.tasks:
                self.started.pop(task_id, None)  # a parent that runs again may make it anew
        out, self.node.out[:] = list(self.node.out), []
        for destination, message in out:
            self._pass_on(destination, message)

    def _note_sent(self, process: Process | None, message: Any) -> None:
        """From here on the node knows of these references."""
        named: tuple[bytes, ...] = ()
        if process is None:
            return
        if isinstance(message, Submit):
            kind = process.described[message.descriptor_id]
            named = ids.return_ids(message.task_id, kind.num_returns)
        elif isinstance(message, Publish):
            named = (message.object_id,)
        elif isinstance(message, Promise):
            named = message.object_ids
        process.refs.update({object_id: None for object_id in named if object_id in process.held})

    def _judge(self, before: list[bytes]) -> None:
        objects = self.node.store.objects
        for object_id in before:
            if object_id not in objects:
                users = [p.address for p in self.processes.values() if p.alive and object_id in p.refs]
                assert not users, f"{object_id.hex()} was freed while {users} refer to it"
        pins: Counter[bytes] = Counter()
        for task in self.node.scheduler.tasks.values():
            pins.update(task.spec.deps)
            pins.update(task.spec.borrowed)
        for entry in objects.values():
            if entry.value is not None:
                pins.update(entry.value.contained)
        for givers in self.node.references.handed.values():
            for handed in givers.values():
                pins.update(handed)
        assert {key: entry.pins for key, entry in objects.items() if entry.pins} == dict(pins)

    def _pass_on(self, destination: bytes, message: Any) -> None:
        if destination == DISK:
            self.disk.append(message)
        elif destination == SHARD:
            self.shard.append(message)
        elif isinstance(message, StartWorker):
            assert message.worker_id not in self.processes
            self.processes[message.worker_id] = PlayedWorker(self, message.worker_id)
            self.told_jobs[message.worker_id] = {}
        elif isinstance(message, KillWorker):
            worker = self.processes.get(message.worker_id)
            if isinstance(worker, PlayedWorker):
                worker.doomed = True
        elif destination not in (RUNTIME, WORKER_POOL):
            process = self.processes.get(destination)
            if process is None:
                assert destination in self.gone, f"{message} for a stranger"
            else:
                process.inbox.append(message)

    def deliver(self, process: Process, count: int) -> None:
        """The node gets up to ``count`` messages of one process."""
        batch = [(process.address, process.outbox.popleft()) for _ in range(min(count, len(process.outbox)))]
        self.pump(batch)

    def do_runtime(self) -> None:
        self.pump([(RUNTIME, self.runtime.popleft())])

    def do_shard(self) -> None:
        message = self.shard.popleft()
        if isinstance(message, RecordTasks):
            self.pump([(SHARD, Recorded(message.sequence))])
        elif isinstance(message, Forward):
            self.forwards[message.spec.task_id] = message
        elif isinstance(message, Withdraw):
            self.forwards.pop(message.task_id, None)

    def place(self, task_id: bytes) -> None:
        forward = self.forwards.pop(task_id)
        self.pump([(SHARD, Place(forward.spec, forward.descriptor, forward.hops + 1))])

    def pass_parcel(self) -> None:
        """A reference that one process handed to another arrives."""
        receiver, object_id = self.parcels.popleft()
        process = self.processes.get(receiver)
        if process is not None and process.alive:
            process.held[object_id] = process.refs[object_id] = None
            process.say(HoldFor(b"", (object_id,), 0))

    # --- processes come and go ---------------------------------------------------------------------

    def add_driver(self, number: int) -> Process:
        root = bytes([number]) * 8 + bytes(8)
        driver = self.processes[b"driver-%d" % number] = Process(self, b"driver-%d" % number, root)
        driver.say(Hello(PROTOCOL_VERSION, DRIVER, number, root))
        return driver

    def introduce(self, worker: PlayedWorker) -> None:
        worker.introduced = True
        worker.say(Hello(PROTOCOL_VERSION, WORKER, 1, ids.NIL_ID, "ipc://" + worker.address.hex()))

    def end(self, worker: PlayedWorker, exit_code: int, *, delivered: int) -> None:
        """A worker process is gone; the last ``delivered`` messages it sent arrive before its end."""
        worker.alive = False
        for view in worker.views:
            self.look(*view)
        self.deliver(worker, delivered)
        self.pump([(RUNTIME, WorkerExited(worker.address, exit_code, worker.cell))])
        late = list(worker.outbox)
        self._forget(worker)
        self.pump([(worker.address, message) for message in late])

    def leave(self, driver: Process) -> None:
        """A driver says goodbye."""
        driver.say(Goodbye())
        driver.alive = False
        self.deliver(driver, len(driver.outbox))
        self._forget(driver)

    def _forget(self, process: Process) -> None:
        del self.processes[process.address]
        self.gone[process.address] = None

    @property
    def drivers(self) -> list[Process]:
        return [p for p in self.processes.values() if not isinstance(p, PlayedWorker)]

    @property
    def workers(self) -> list[PlayedWorker]:
        return [p for p in self.processes.values() if isinstance(p, PlayedWorker)]
