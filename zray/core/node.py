"""All machines of one node as one: what ``zray-node`` and the simulator pump.

The machines of a node share one outbox and call each other directly; between processes there are only
messages. This file knows the processes of the node (``Client``), checks who may say what, and passes each
message to the machine that decides. It decides nothing about tasks or objects itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

from zray.config import Config
from zray.core import checks, group_side, lease_side, promises, reports, scheduler_side, user_requests
from zray.core.actors import Actors
from zray.core.chain_heads import ChainHeads
from zray.core.cluster_side import CLUSTER_MESSAGES, ClusterSide
from zray.core.extents import Extents
from zray.core.identity import ClientEntry, NodeIdentity
from zray.core.jobs import Job
from zray.core.leases import Leases
from zray.core.lineage import Lineage
from zray.core.local_scheduler import LocalScheduler
from zray.core.machine import RUNTIME, Address, Effect, Handler, invariant
from zray.core.node_store import SEALED, NodeStore, ObjectEntry
from zray.core.references import References
from zray.core.resources import ResourcePool
from zray.core.scheduler_choice import SchedulerChoice
from zray.core.table_writer import TableWriter
from zray.core.worker_pool import Worker, WorkerPool
from zray.ids import first_return_id, is_put, producer_of, short
from zray.protocol.cluster import Members
from zray.protocol.documents import encode_value
from zray.protocol.local_messages import ClientGone, ClientJoined, Spilled, SpillFailed, WorkerExited
from zray.protocol.messages import (
    ACTOR_DEAD,
    DRIVER,
    ERROR,
    EXTENT,
    FAULT,
    INLINE,
    PROTOCOL_VERSION,
    TABLE_ACTOR,
    TABLE_DESCRIPTOR,
    TABLE_FUNCTION,
    TABLE_JOB,
    WORKER,
    Abort,
    Acked,
    Acquire,
    ActorState,
    Blocked,
    ChainEpoch,
    Create,
    Credit,
    Demand,
    Describe,
    ExportFunction,
    Get,
    Goodbye,
    Hello,
    HoldFor,
    JobContext,
    LetGo,
    NodeHello,
    NodeReport,
    Promise,
    Publish,
    Recorded,
    Refused,
    Release,
    Returned,
    Seal,
    ShardWelcome,
    Submit,
    TaskDone,
    Unblocked,
    Unpin,
    Value,
    Warn,
)

CREDIT_TASKS_MIN = 1024
"""Submissions absorbed before a client is told; telling each would cost a frame each."""

IDLE_INTERVALS = 10
"""Heartbeat intervals between two reports of an idle node, at the most."""

REPORTS_PER_DEATH = 4
"""Reports of an idle node within the silence that counts as death: some of them may be late or lost."""


class Node:
    """The composite machine of a node.

    Args:
        identity: who this node is.
        total: its resources.
        shards: addresses of the GCS shards, by number; a global scheduler is beside the first, and perhaps
            beside others, which say so.
        config: limits.
        replicas: all addresses of each shard, if they are replicated.
    """

    HANDLERS: ClassVar[dict[type, Handler]]

    def __init__(
        self, identity: NodeIdentity, *, total: Demand, shards: tuple[Address, ...], config: Config,
        replicas: tuple[tuple[Address, ...], ...] = (),
    ) -> None:  # fmt: skip
        self.out: list[Effect] = []
        self.identity = identity
        self.config = config
        self.chains = ChainHeads(shards, replicas, config)
        self.shards = self.chains.heads
        self.clients: dict[Address, ClientEntry] = {}
        self.credited: dict[Address, ClientEntry] = {}
        self.pool = WorkerPool(
            self.out, resources=ResourcePool(total), config=config, node_id=identity.node_id
        )
        self.store = NodeStore(
            self.out,
            config=config,
            extents=Extents(identity.arena_bytes),
            is_alive=self.clients.__contains__,
            on_sealed=lambda tasks: self.scheduler.dependencies_sealed(tasks),
            on_found=lambda tasks: self.scheduler.admission.found(tasks),
        )
        self.lineage = Lineage(self.out, shards=shards, config=config)
        self.tables = TableWriter(self.out, shards=self.shards, unacked_max=config.table_writes_max)
        self.references = References(
            self.store,
            on_lineage_released=self._lineage_released,
            on_actor_released=self._actor_released,
            lineage_max=config.lineage_unacked_max,
        )
        self.actors = Actors(self.out, dead_max=config.finished_tasks_max, on_change=self._actor_changed)
        self.leases = Leases(self.out, pool=self.pool, config=config)
        self.scheduler = LocalScheduler(
            self.out,
            node_id=identity.node_id,
            labels=identity.labels,
            global_scheduler=shards[0] if shards else RUNTIME,
            config=config,
            store=self.store,
            references=self.references,
            pool=self.pool,
            actors=self.actors,
            lineage=self.lineage,
            leases=self.leases,
        )
        self.names, self.streams = user_requests.rooms_of(self)
        self.schedulers = SchedulerChoice(
            self.out, node_id=identity.node_id, shards=self.shards, config=config, on_move=self._forward_anew
        )
        self.cluster = ClusterSide(
            self.out, scheduler=self.scheduler, tables=self.tables, shards=self.shards, clients=self.clients
        )
        self.output = user_requests.output_of(self)
        rooms = user_requests.questions_of(self)
        self.inquiries, self.everywhere, self.node_lists, self.probes, self.logs = rooms
        self.groups = group_side.GroupSide(self)
        self.asked = (self.inquiries, self.everywhere, self.node_lists, self.groups.requests)
        self.now_ns = 0
        self.report_at_ns: int | None = 0
        self.reported: NodeReport | None = None
        self.warned: dict[bytes, None] = {}
        self.welcomed: dict[Address, None] = {}  # shards whose answer to our introduction has come

    @property
    def wake_at_ns(self) -> int | None:
        """The earliest wish of any machine of the node."""
        wishes = (
            self.scheduler.wake_at_ns, self.lineage.wake_at_ns, self.store.wake_at_ns, self.report_at_ns,
            self.tables.wake_at_ns, self.leases.look_at_ns, self.cluster.wake_at_ns,
            *[room.wake_at_ns for room in self.asked],
        )  # fmt: skip
        return min([wish for wish in wishes if wish is not None], default=None)

    def flush(self, now_ns: int) -> None:
        """Decide once per batch."""
        self.now_ns = now_ns
        self.groups.flush(now_ns)
        self.scheduler.flush(now_ns)
        if self.cluster.sharing.active:
            self.cluster.flush(now_ns)
        if self.credited:
            self._send_credit()

    def on_tick(self, now_ns: int) -> None:
        """Time has passed: every machine looks at its own deadlines."""
        self.now_ns = now_ns
        self.scheduler.on_tick(now_ns)
        self.lineage.flush_due(now_ns)
        self.tables.on_tick(now_ns)
        self.leases.on_tick(now_ns)
        for room in self.asked:
            room.on_tick(now_ns)
        self.cluster.on_tick(now_ns)
        if self.store.wake_at_ns is not None and self.store.wake_at_ns <= now_ns:
            for entry in self.store.on_tick(now_ns):
                self.references.free_if_unneeded(entry)
        if self.report_at_ns is not None and self.report_at_ns <= now_ns:
            self._report(now_ns)

    def check(self) -> None:
        """Every invariant of every machine of the node."""
        for machine in (
            self.pool, self.leases, self.store, self.references, self.actors, self.lineage, self.tables,
            self.names, self.output, *self.asked, self.schedulers, self.scheduler.lives, self.scheduler,
            self.cluster,
            self.groups.bundles,
        ):  # fmt: skip
            machine.check()
        for client in self.clients.values():
            invariant(client.role == DRIVER or client.worker is not None, "worker without a pool entry")

    def _lineage_released(self, task_id: bytes) -> None:
        self.lineage.release(self.now_ns, task_id)

    def _actor_released(self, creation_object: bytes) -> None:
        self.actors.released(producer_of(creation_object))

    def _actor_changed(self, state: ActorState) -> None:
        row = self.cluster.actors.changed(self.actors.entries[state.actor_id])
        if row is not None:
            self.tables.put(self.now_ns, TABLE_ACTOR, state.actor_id, encode_value(row))

    # --- processes come and go -------------------------------------------------------------------

    def on_hello(self, now_ns: int, source: Address, message: Hello) -> None:
        """A driver or worker introduces itself."""
        if message.version != PROTOCOL_VERSION:
            detail = f"node speaks protocol version {PROTOCOL_VERSION}, not {message.version}"
            self.out.append((source, Refused("version", detail)))
            self.out.append((RUNTIME, Warn(f"refused process {message.pid}: {detail}")))
            return
        if self.refused(source, checks.problem_of_hello(message)):
            return
        worker = self.pool.workers.get(source) if message.role == WORKER else None
        if message.role == WORKER and worker is None:
            self.out.append((source, Refused("unknown-peer", "this node did not start such a worker")))
            return
        if source not in self.clients:
            self.clients[source] = ClientEntry(source, message.role, message.pid, message.job_id, worker)
            if message.role == DRIVER:
                self.out.append((RUNTIME, ClientJoined(source, message.pid)))
        if message.role == DRIVER and message.job_id not in self.scheduler.jobs:
            context = JobContext(message.job_id, message.sys_path, message.working_dir)
            self.scheduler.jobs[message.job_id] = Job(context)
            self.tables.put(now_ns, TABLE_JOB, message.job_id, encode_value(message))
        welcome = self.identity.welcome(self.config.inline_bytes_max)
        self.out.append((source, welcome))
        if worker is not None:
            self.pool.introduced(now_ns, worker, message.endpoint)

    def on_goodbye(self, now_ns: int, source: Address, message: Goodbye) -> None:
        """A driver leaves on purpose. A worker is gone when its process is."""
        if self.worker(source) is None:
            self._client_gone(now_ns, source)

    def on_client_gone(self, now_ns: int, source: Address, message: ClientGone) -> None:
        """A driver process is gone."""
        if source == RUNTIME:
            self._client_gone(now_ns, message.client)

    def _client_gone(self, now_ns: int, address: Address) -> None:
        client = self.clients.pop(address, None)
        if client is None:
            return
        self.now_ns = now_ns
        self.credited.pop(address, None)
        if client.role == DRIVER:
            self.cluster.end_job(now_ns, client.job_id)
            self.out.append((RUNTIME, ClientGone(address)))
        self.leases.submitter_gone(address)
        self.streams.reader_gone(address)
        promises.break_all(client, self.store, self.references)
        self.cluster.actors.client_gone(address)
        self.cluster.kept.client_gone(address)
        self.names.client_gone(address)
        for room in (*self.asked, self.logs):
            room.client_gone(address)
        for entry in self.store.client_gone(address):
            self._not_created(now_ns, entry)
        self.references.client_gone(address)

    def on_worker_exited(self, now_ns: int, source: Address, message: WorkerExited) -> None:
        """A worker process is gone."""
        worker = self.pool.workers.get(message.worker_id)
        if source != RUNTIME or worker is None:
            return
        self._client_gone(now_ns, message.worker_id)
        self.cluster.actors.relay.worker_gone(message.worker_id)
        self.scheduler.worker_exited(now_ns, worker, message)

    def worker(self, source: Address) -> Worker | None:
        """The worker that sent a message, or ``None`` if the sender is none."""
        client = self.clients.get(source)
        return None if client is None else client.worker

    def known(self, source: Address) -> ClientEntry | None:
        """The sender, or ``None`` after telling it that it must introduce itself."""
        client = self.clients.get(source)
        if client is None:
            self.out.append((source, Refused("unknown-peer", "say Hello first; this process is not known")))
        return client

    def refused(self, source: Address, problem: str) -> bool:
        """Tell the sender of nonsense so; whether it was any."""
        if problem:
            self.out.append((source, Refused("garbage", problem)))
            self.out.append((RUNTIME, Warn(f"refused a message from {source.hex()}: {problem}")))
        return bool(problem)

    def _job_of(self, client: ClientEntry) -> bytes:
        return client.job_id if client.worker is None else client.worker.job_id

    # --- tasks -----------------------------------------------------------------------------------

    def on_describe(self, now_ns: int, source: Address, message: Describe) -> None:
        """A client will submit tasks of this kind."""
        if self.cluster.introduces(source, message):
            return
        client = self.known(source)
        if client is not None and not self.refused(source, checks.problem_of_descriptor(message)):
            if not self.scheduler.knows(message.descriptor_id):
                self.tables.put(now_ns, TABLE_DESCRIPTOR, message.descriptor_id, encode_value(message))
            task_class = self.scheduler.describe(self._job_of(client), message)
            client.classes[message.descriptor_id] = task_class

    def on_export_function(self, now_ns: int, source: Address, message: ExportFunction) -> None:
        """A client ships code; it is kept here and in the function table."""
        if self.cluster.introduces(source, message) or self.known(source) is None:
            return
        if message.function_id not in self.scheduler.functions:
            self.scheduler.functions[message.function_id] = message.code
            self.tables.put(now_ns, TABLE_FUNCTION, message.function_id, message.code)

    def on_submit(self, now_ns: int, source: Address, message: Submit) -> None:
        """A client submits a task."""
        client = self.clients.get(source)
        if client is None:
            self.known(source)
            return
        task_class = client.classes.get(message.descriptor_id)
        if task_class is None:
            detail = f"task {short(message.task_id)} has a descriptor that was never described"
            self.out.append((source, Refused("garbage", detail)))
            return
        if client.promised:  # a lease was lost with the task: now the task itself keeps the promise
            client.promised.pop(first_return_id(message.task_id), None)
        client.absorbed += 1
        if client.absorbed >= CREDIT_TASKS_MIN:
            self.credited[source] = client
        self.scheduler.submit(now_ns, source, message, task_class)

    def _send_credit(self) -> None:
        """Open the submission windows, unless more is ready here than the workers can take for now.

        A client without credit slows down and never stops: what is ready may wait for what it does next.
        """
        room = self.config.ready_backlog_max - self.scheduler.backlog()
        for address, client in list(self.credited.items()):
            if room < CREDIT_TASKS_MIN:
                return
            tasks = min(room, client.absorbed)
            room -= tasks
            client.absorbed -= tasks
            self.out.append((address, Credit(tasks)))
            if client.absorbed < CREDIT_TASKS_MIN:
                del self.credited[address]

    def on_task_done(self, now_ns: int, source: Address, message: TaskDone) -> None:
        """A worker reports the end of an attempt."""
        worker = self.worker(source)
        if worker is not None:
            self.now_ns = self.scheduler.now_ns = now_ns
            self.scheduler.task_done(now_ns, worker, message)

    def on_blocked(self, now_ns: int, source: Address, message: Blocked) -> None:
        """A worker's task waits in ``get``."""
        worker = self.worker(source)
        if worker is not None:
            self.pool.lend(worker)

    def on_unblocked(self, now_ns: int, source: Address, message: Unblocked) -> None:
        """A worker's task goes on."""
        worker = self.worker(source)
        if worker is not None:
            self.pool.take_back(worker)

    def on_returned(self, now_ns: int, source: Address, message: Returned) -> None:
        """A worker gives tasks back that it has not started."""
        worker = self.worker(source)
        if worker is not None:
            self.scheduler.returned(worker, message)

    # --- objects ---------------------------------------------------------------------------------

    def on_get(self, now_ns: int, source: Address, message: Get) -> None:
        """Look up or subscribe."""
        if self.known(source) is not None:
            self.store.on_get(now_ns, source, message)

    def on_acquire(self, now_ns: int, source: Address, message: Acquire) -> None:
        """A process holds objects that it got from another."""
        if self.known(source) is not None:
            self.references.acquire(now_ns, source, message.object_ids)
            actors = self.cluster.actors
            if message.token and not actors.acknowledges_later(self.worker(source), message.token):
                self.out.append((source, Acked(message.token)))

    def on_hold_for(self, now_ns: int, source: Address, message: HoldFor) -> None:
        """A process passes objects on, before it lets go of them; or took over what was passed to it."""
        if self.known(source) is None:
            return
        self.now_ns = now_ns
        if not message.holder:
            self.references.take_over(now_ns, source, message.giver, message.object_ids)
        elif message.holder in self.clients:
            worker = self.worker(source)
            giver = b"" if worker is None else worker.actor_id
            self.references.hand(now_ns, giver, message.holder, message.object_ids)
        if message.token:
            self.out.append((source, Acked(message.token)))

    def on_let_go(self, now_ns: int, source: Address, message: LetGo) -> None:
        """A process has ended all its calls of an actor that it knows to be dead."""
        self.now_ns = now_ns
        entry = self.actors.entries.get(message.actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            self.references.let_go(source, message.actor_id)

    def on_release(self, now_ns: int, source: Address, message: Release) -> None:
        """A process lets go."""
        self.now_ns = now_ns
        self.references.release(source, message.object_ids)

    def on_unpin(self, now_ns: int, source: Address, message: Unpin) -> None:
        """A process looks away from extents."""
        self.store.on_unpin(now_ns, source, message)

    def on_publish(self, now_ns: int, source: Address, message: Publish) -> None:
        """A value that lived in one process is shared from now on; that process holds it."""
        client = self.known(source)
        if client is None or message.value.kind not in (INLINE, ERROR, FAULT):
            return
        self.now_ns = now_ns
        entry = self.store.announce(message.object_id)
        if producer_of(message.object_id) in self.references.lineage:
            entry.counted = True  # when its maker, which ran on a leased worker, was recorded
        # What was promised is held since then, unless it was released meanwhile.
        if message.object_id in client.promised:
            del client.promised[message.object_id]
        else:
            self.references.hold(source, entry)
        self.seal_value(now_ns, entry, message.value)

    def seal_value(self, now_ns: int, entry: ObjectEntry, value: Value) -> None:
        if value.contained and entry.value is None:
            self.references.contain(now_ns, value.contained)
        self.store.seal(entry, value)
        self.references.free_if_unneeded(entry)

    def on_promise(self, now_ns: int, source: Address, message: Promise) -> None:
        """A process waits for actor calls whose results others need too."""
        client = self.known(source)
        if client is not None:
            for object_id in message.object_ids:
                entry = self.store.announce(object_id)
                self.references.hold(source, entry)
                if entry.state != SEALED:  # else the actor was faster: the reply says so
                    client.promised[object_id] = None

    def on_create(self, now_ns: int, source: Address, message: Create) -> None:
        """A process wants room for a large value.

        Whoever it is for holds it from now on, also if it was made before (its maker ran again). What a
        task returns is held by its submitter and needs no other holder.
        """
        if self.known(source) is None or self.refused(source, checks.problem_of_create(message)):
            return
        self.now_ns = now_ns
        self.cluster.actors.relay.creating(source, message.object_id)
        entry = self.store.on_create(now_ns, source, message, makes=self._makes(source, message.object_id))
        if entry is None:
            return
        holder = message.holder or (source if is_put(message.object_id) else b"")
        if holder in self.clients:
            self.references.hold(holder, entry)
            entry.created_for = holder

    def _makes(self, source: Address, object_id: bytes) -> bool:
        """Whether an object is a result of a task that a worker runs."""
        worker = self.worker(source)
        return worker is not None and not is_put(object_id) and producer_of(object_id) in worker.queue

    def on_seal(self, now_ns: int, source: Address, message: Seal) -> None:
        """A large value is written."""
        self.now_ns = now_ns
        entry = self.store.objects.get(message.object_id)
        if entry is None or entry.creator != source or not entry.granted:
            return
        receiver = None if entry.created_for is None else self.clients.get(entry.created_for)
        if receiver is not None:  # if it had promised the object, the promise is kept
            receiver.promised.pop(message.object_id, None)
        self.seal_value(now_ns, entry, Value(EXTENT, contained=message.contained))

    def on_abort(self, now_ns: int, source: Address, message: Abort) -> None:
        """A process gives up on a value that it was to write."""
        self.now_ns = now_ns
        entry = self.store.on_abort(now_ns, source, message)
        if entry is not None:
            self._not_created(now_ns, entry)

    def _not_created(self, now_ns: int, entry: ObjectEntry) -> None:
        """Nobody writes the object any more. Unless a task or a promise makes it, it may be lost."""
        holder, entry.created_for = entry.created_for, None
        if is_put(entry.object_id) and entry.object_id in self.store.shared:
            self.cluster.sharing.want_again(entry)  # another attempt of its maker put it elsewhere
        if entry.known:
            return
        self.store.watch_stranger(now_ns, entry)
        if holder is not None and self.references.holds(holder, entry):
            self.references.release(holder, (entry.object_id,))
        else:
            self.references.free_if_unneeded(entry)

    # --- disk ------------------------------------------------------------------------------------

    def on_spilled(self, now_ns: int, source: Address, message: Spilled) -> None:
        """A spill file is complete."""
        self.store.on_spilled(now_ns, source, message)

    def on_spill_failed(self, now_ns: int, source: Address, message: SpillFailed) -> None:
        """A spill file could not be written."""
        self.now_ns = now_ns
        for entry in self.store.on_spill_failed(now_ns, source, message):
            self._not_created(now_ns, entry)

    # --- GCS and global scheduler ----------------------------------------------------------------

    def introduce(self) -> None:
        """Say hello to every shard; called once the links exist, and again when one was away."""
        hello, known = self._introduction(), self.welcomed
        self.out.extend((shard, hello) for shard in self.chains.everybody() if shard not in known)

    def _introduction(self) -> NodeHello:
        return self.identity.hello(self.pool.resources.own)

    def on_shard_welcome(self, now_ns: int, source: Address, message: ShardWelcome) -> None:
        """A shard knows this node; one that restarted asks for another introduction."""
        if source not in self.shards:
            return
        number = self.shards.index(source)
        self.now_ns = self.scheduler.now_ns = now_ns
        if source not in self.welcomed:
            self.welcomed[source] = None
        else:
            self.out.append((source, self._introduction()))
            del self.welcomed[source]
            self.schedulers.lost(now_ns, number)
        self.lineage.shard_is_back(now_ns, source)
        self.tables.shard_is_back(source)
        self.names.shard_is_back(source)
        self.out.extend(self.chains.check_place(source, message))
        self.cluster.shard_is_back(source)
        if number in self.schedulers.known:
            self.reported = None
            self._report(now_ns)
        if source == self.schedulers.address:
            self.scheduler.admission.resend()
        if number == 0:
            self.groups.requests.repeat()

    def _forward_anew(self, former: Address) -> None:
        """Forward to another global scheduler, or once more to the same; it hears our load first."""
        self.scheduler.global_scheduler = self.schedulers.address
        self.scheduler.reported()
        self.out.append((self.schedulers.address, reports.load_of(self)))
        self.scheduler.admission.move(former)

    def on_chain_epoch(self, now_ns: int, source: Address, message: ChainEpoch) -> None:
        """A chain has other members: speak to its head from now on."""
        if self.chains.learn(source, message):
            self.out.append((RUNTIME, message))  # replicas may have come that no link leads to
            former, head = self.chains.follow(message)
            if head != former:
                self.welcomed.pop(former, None)
                self.lineage.shard_moved(message.shard, head)
                self.cluster.shard_moved(message.shard, head)
                self.now_ns = self.scheduler.now_ns = now_ns
                self.schedulers.lost(now_ns, message.shard)
                self.scheduler.global_scheduler = self.schedulers.address
            if head not in self.welcomed:
                self.out.append((head, self._introduction()))

    def on_recorded(self, now_ns: int, source: Address, message: Recorded) -> None:
        """A shard has our records."""
        self.lineage.on_recorded(now_ns, source, message)

    def on_cluster(self, now_ns: int, source: Address, message: Any) -> None:
        """Another node, or the directory of a shard, says something."""
        self.now_ns = now_ns
        self.cluster.on_message(now_ns, source, message)

    def on_members(self, now_ns: int, source: Address, message: Members) -> None:
        """The control store says who is alive. A node that has company now is missed if it is silent."""
        was_alone = self._is_alone()
        self.on_cluster(now_ns, source, message)
        if was_alone and not self._is_alone():
            self.report_at_ns = now_ns

    def on_refused(self, now_ns: int, source: Address, message: Refused) -> None:
        """A shard does not accept us: the operator must know."""
        if source in self.shards:
            self.out.append((RUNTIME, message))

    def _report(self, now_ns: int) -> None:
        """Tell global schedulers our load: often while it changes, else as often as shows that we live."""
        if not self.shards:
            self.report_at_ns = None
            return
        report = reports.load_of(self)
        changed = report != self.reported
        if not changed and len(self.welcomed) < len(self.shards):
            self.introduce()  # a hello that a shard lost with its life is missed by nobody else
        self.reported = report
        self.scheduler.reported()
        self.out.extend((address, report) for address in self.schedulers.addresses())
        self.schedulers.look(now_ns, waits=bool(self.scheduler.forwarded))
        self.report_at_ns = now_ns + (self.config.heartbeat_interval_ns if changed else self._idle_pause_ns())
        self.out.extend((address, self._introduction()) for address in self.chains.others_due(now_ns))

    def _idle_pause_ns(self) -> int:
        """How often a node reports while nothing changes: some times within the silence that is death.

        Nobody would miss one that is alone, has been heard, and waits for no placement.
        """
        often_ns = self.config.heartbeat_interval_ns
        rarely_ns = IDLE_INTERVALS * often_ns
        if self._is_alone() and not self.scheduler.forwarded and len(self.welcomed) == len(self.shards):
            return rarely_ns
        return max(often_ns, min(rarely_ns, self.config.node_death_ns // REPORTS_PER_DEATH))

    def _is_alone(self) -> bool:
        return not self.cluster.peers.alive


Node.HANDLERS = {
    Hello: Node.on_hello,
    Goodbye: Node.on_goodbye,
    ClientGone: Node.on_client_gone,
    WorkerExited: Node.on_worker_exited,
    Describe: Node.on_describe,
    ExportFunction: Node.on_export_function,
    Submit: Node.on_submit,
    TaskDone: Node.on_task_done,
    Blocked: Node.on_blocked,
    Unblocked: Node.on_unblocked,
    Returned: Node.on_returned,
    Get: Node.on_get,
    Acquire: Node.on_acquire,
    HoldFor: Node.on_hold_for,
    LetGo: Node.on_let_go,
    Release: Node.on_release,
    Unpin: Node.on_unpin,
    Publish: Node.on_publish,
    Promise: Node.on_promise,
    Create: Node.on_create,
    Seal: Node.on_seal,
    Abort: Node.on_abort,
    Spilled: Node.on_spilled,
    SpillFailed: Node.on_spill_failed,
    ShardWelcome: Node.on_shard_welcome,
    Recorded: Node.on_recorded,
    ChainEpoch: Node.on_chain_epoch,
    Refused: Node.on_refused,
    **user_requests.HANDLERS,
    **group_side.HANDLERS,
    **lease_side.HANDLERS,
    **scheduler_side.HANDLERS,
    **dict.fromkeys(CLUSTER_MESSAGES, Node.on_cluster),
    Members: Node.on_members,
}
