"""Judges: what must hold whatever happens, decided without the code under test.

During a run: one value per object and the oracle's (I1), each submission runs an attempt at most once
(I8, I9), calls of one caller are applied in the order in which they were made and once (I3), what a shard
acknowledged survives its death (I7). After it: every program ended (I5, I6), nothing is held, stored,
mapped or followed any more (I11, I14), and free resources are the total (I4). The memory of large objects
judges itself (``memory.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim.detached import NameJudge
from sim.group_judge import GroupJudge
from sim.oracle import Outcome
from sim.programs import error_in, unpack_error
from zray.core.actor_names import PREFIX
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import Address
from zray.core.object_directory import ObjectDirectory
from zray.core.reconstruction import HEIRS_MAX
from zray.ids import ID_BYTES, producer_of, short
from zray.protocol.messages import (
    ACTOR_ALIVE,
    TABLE_ACTOR,
    TABLE_DESCRIPTOR,
    TABLE_KV,
    Call,
    RecordTasks,
    ReleaseLineage,
    Value,
)

if TYPE_CHECKING:
    from sim.hosts import SimNode, SimShard
    from sim.replicas import SimReplica
    from sim.scenario import FaultsPart

CRASH_ORIGINS = ("worker_crashed", "actor_died", "actor_unavailable", "object_lost")
FULL_ORIGINS = ("store_full", "ObjectStoreFullError")
DISK_ORIGINS = ("out_of_disk", "OutOfDiskError", *FULL_ORIGINS)


def shard_of_replica(address: Address) -> Address:
    """The address of the shard, if that of a replica is given: ``gcs-0001.2`` is one of ``gcs-0001``."""
    return address.partition(b".")[0]


class ViolationError(AssertionError):
    """A judge saw a rule broken."""


def allowed_origins(faults: FaultsPart) -> tuple[str, ...]:
    """Which faults of the system programs may see, given what strikes."""
    allowed: tuple[str, ...] = ()
    if faults.worker_crash or faults.worker_crash_creating or faults.message_death:
        allowed += CRASH_ORIGINS
    if faults.driver_crash or faults.message_death:
        allowed += ("object_lost",)  # by workers whose job is over
    deaths = faults.node_crash or faults.twin_crash or faults.node_freeze or faults.node_silence
    if deaths or faults.keeper_crash or faults.message_death:
        allowed += (*CRASH_ORIGINS, "unschedulable")  # by tasks that are bound to the node
    if faults.spill_failure:
        allowed += DISK_ORIGINS
    return allowed


class Judge:
    """All judges of one run.

    Args:
        faults: what may strike; nothing else may be seen by programs.
        strict: remember everything; otherwise only what costs no memory per task.
        is_over: whether the driver of the job for which a worker works is gone.
    """

    def __init__(self, faults: FaultsPart, *, strict: bool, is_over: Callable[[Address], bool]) -> None:
        self.strict = strict
        self.is_over = is_over
        self.allowed = allowed_origins(faults)
        self.may_be_silent = bool(
            faults.node_freeze or faults.node_silence or faults.partition or faults.clog
        )
        crashes = (
            faults.worker_crash or faults.worker_crash_creating or faults.node_crash or faults.twin_crash
            or faults.keeper_crash or faults.message_death
        )  # fmt: skip
        self.may_retry = bool(crashes or faults.worker_start_hang or self.may_be_silent)
        self.oracle: dict[bytes, Outcome] = {}
        self.values: dict[bytes, Outcome] = {}
        self.submitted: dict[bytes, int] = {}  # task -> times
        self.started: dict[tuple[bytes, int], int] = {}  # attempt -> times
        self.made: dict[tuple[Address, bytes], list[bytes]] = {}  # (caller, actor) -> calls
        self.applied: dict[tuple[Address, bytes], int] = {}
        self.callers_of: dict[bytes, list[Address]] = {}  # call -> who made it; several if a task ran again
        self.attempts: dict[tuple[bytes, int], int] = {}  # attempt of a call -> how often it ran
        self.constructed: dict[bytes, None] = {}
        self.lives: dict[bytes, int] = {}  # actor -> the number of its newest life
        self.killed: dict[bytes, None] = {}  # actors that a program ended
        self.left: dict[bytes, None] = {}  # actors that ended themselves
        self.answered: dict[bytes, bytes] = {}  # calls that ended in themselves -> their actors
        self.cancels = 0  # how many tasks a program took back
        self.gone: dict[bytes, None] = {}  # actors and processes that are no more
        self.unconfirmed: dict[tuple[Address, Address], dict[int, list[tuple[bytes, int]]]] = {}
        self.confirmed: dict[Address, dict[bytes, int]] = {}  # shard -> task -> attempt
        self.faults_seen = 0
        self.kept: dict[str, int] = {}  # what was put, by its short id -> acknowledged copies
        self.may_die_together = bool(
            faults.node_crash or faults.twin_crash or faults.node_freeze or faults.node_silence
            or faults.driver_crash or faults.partition or faults.clog or faults.message_death
        )  # fmt: skip
        ends_jobs = (
            faults.driver_crash or faults.node_crash or faults.node_freeze or faults.node_silence
            or faults.message_death
        )  # fmt: skip
        self.groups = GroupJudge(self.fail, ends_jobs=bool(ends_jobs))
        self.names = NameJudge(self.fail, lambda actor_id: bool(ends_jobs) or actor_id in self.killed)

    def fail(self, text: str) -> None:
        """A rule is broken.

        Raises:
            ViolationError: always.
        """
        raise ViolationError(text)

    # --- values ------------------------------------------------------------------------------------

    def value_seen(self, address: Address, object_id: bytes, value: Value) -> None:
        """A process looks at a value; faults must have a reason."""
        error = error_in(value)
        if error is not None:
            self._error_seen(address, object_id, error.origin, error.text)

    def _error_seen(self, address: Address, object_id: bytes, origin: str, text: str) -> None:
        if origin == "user":
            return
        self.faults_seen += 1
        if origin == "object_lost" and not self.may_die_together:
            kept = [name for name in self.kept if name in text]
            if kept:
                self.fail(f"{kept[0]}, of which {self.kept[kept[0]]} nodes kept a copy, is lost: {text}")
        if origin in ("TaskGroupRemovedError", "ActorGroupRemovedError") and self.groups.explains(text):
            return
        if origin == "TaskCancelledError" and self.cancels:
            return
        if origin == "actor_died" and self.is_over(address):
            return  # who works for an ended job may not have heard of it: its actors end with it
        if origin == "actor_died" and origin not in self.allowed:
            actor_id = self.answered.get(producer_of(object_id), b"")
            if actor_id in self.left:
                self.fail(
                    f"{address.hex()} hears that {short(actor_id)} ended itself, in the place of a reply"
                )
        if origin not in self.allowed and not (origin == "actor_died" and self.killed):
            self.fail(f"{address.hex()} sees a fault that nothing explains in {short(object_id)}: {text}")

    def copies_kept(self, object_id: bytes, copies: int) -> None:
        """A process hears that so many nodes keep a copy of what it put: no death of one node may lose it."""
        self.kept[short(object_id)] = copies

    def data_seen(self, address: Address, object_id: bytes, is_error: bool, data: bytes) -> None:
        """One value per object, and the oracle's."""
        if not self.strict or (is_error and self._is_fault(data)):
            return
        known = self.values.setdefault(object_id, (is_error, data))
        if known != (is_error, data):
            self.fail(f"I1: {short(object_id)} was {known} and is {(is_error, data)} for {address.hex()}")
        expected = self.oracle.get(object_id)
        if expected is not None and expected != known:
            self.fail(f"I1: {short(object_id)} is {known}; in sequence it would be {expected}")

    @staticmethod
    def _is_fault(data: bytes) -> bool:
        try:
            return unpack_error(data).origin != "user"
        except ValueError:  # the data of a fault is of another kind
            return True

    def waited(self, address: Address, ready: int, needed: int) -> None:
        """I13: a wait that returned has what it asked for."""
        if ready < needed:
            self.fail(f"I13: {address.hex()} waited for {needed} objects and has {ready}")

    # --- tasks and calls -----------------------------------------------------------------------------

    def task_submitted(self, task_id: bytes) -> None:
        """A process submits a task, perhaps again because its parent runs again."""
        if self.strict:
            self.submitted[task_id] = self.submitted.get(task_id, 0) + 1

    def attempt_started(self, worker: Address, task_id: bytes, attempt: int) -> None:
        """A worker starts an attempt."""
        if not self.strict:
            return
        if attempt and not self.may_retry:
            self.fail(f"I8: attempt {attempt} of {short(task_id)} starts on {worker.hex()}, and nothing died")
        times = self.started[task_id, attempt] = self.started.get((task_id, attempt), 0) + 1
        if times > self.submitted.get(task_id, 0):
            self.fail(f"I8: attempt {attempt} of {short(task_id)} starts again, on {worker.hex()}")

    def call_made(self, caller: Address, actor_id: bytes, task_id: bytes) -> None:
        """A process calls an actor."""
        if self.strict:
            self.made.setdefault((caller, actor_id), []).append(task_id)
            self.callers_of.setdefault(task_id, []).append(caller)

    def call_applied(self, actor_id: bytes, call: Call, worker: Address) -> None:
        """An actor runs a call: each attempt once, and in each life in the order in which calls were made.

        An actor without restarts has one life, which misses none. Of a call that a task made in each of its
        attempts nobody can say whose it is, nor whether it was the first of them that ran it.
        """
        if not self.strict:
            return
        task_id, callers = call.task_id, self.callers_of[call.task_id]
        times = self.attempts[task_id, call.attempt] = self.attempts.get((task_id, call.attempt), 0) + 1
        if times > len(callers):
            self.fail(f"I8: attempt {call.attempt} of call {short(task_id)} runs again, in {worker.hex()}")
        for caller in dict.fromkeys(callers):
            made, position = self.made[caller, actor_id], self.applied.get((worker, caller), 0)
            number = made.index(task_id, position) if task_id in made[position:] else -1
            skipped = made[position:number] if number > position else []
            may_skip = self.lives.get(actor_id, 0) > 0 or all(
                len(self.callers_of[one]) > 1 for one in skipped
            )
            is_next = number == position or (bool(skipped) and may_skip)
            if not is_next and len(callers) == 1:
                self.fail(
                    f"I3: {short(actor_id)} runs {short(task_id)} as number {position} of {caller.hex()}"
                )
            self.applied[worker, caller] = self.applied[caller, actor_id] = max(position, number + 1)

    def actor_made(self, actor_id: bytes, life: int) -> None:
        """A constructor returned."""
        self.constructed[actor_id] = None
        self.lives[actor_id] = life

    def task_cancelled(self) -> None:
        """A program takes a task back, and maybe those below it."""
        self.cancels += 1

    def actor_killed(self, actor_id: bytes) -> None:
        """A program ends an actor."""
        self.left.pop(actor_id, None)
        self.killed[actor_id] = None

    def actor_left(self, actor_id: bytes) -> None:
        """An actor ends itself, in peace: who called it hears all that it had answered."""
        if actor_id not in self.killed:
            self.left[actor_id] = None
        self.killed[actor_id] = None

    def call_answered(self, call: Call) -> None:
        """A call has ended, with a value or an error of its own."""
        if self.strict:
            self.answered[call.task_id] = call.actor_id

    def worker_gone(self, address: Address, actor_id: bytes) -> None:
        """A worker process is no more."""
        self.gone[address] = None
        if actor_id:
            self.gone[actor_id] = None

    def process_ended(self) -> None:
        """A program ends a worker process: what that explains is explained from now on."""
        self.allowed += CRASH_ORIGINS
        self.may_retry = True

    def never_fits(self) -> None:
        """A program made a value that is larger than the store."""
        self.allowed += FULL_ORIGINS

    # --- nodes ---------------------------------------------------------------------------------------

    def buried_alive(self, node: Address) -> None:
        """A node hears that it was declared dead: something must have kept it from being heard."""
        if not self.may_be_silent:
            self.fail(f"{node.hex()} lives, could be heard all the time, and was declared dead")

    # --- what a shard acknowledged -------------------------------------------------------------------

    def recorded(self, node: Address, shard: Address, message: Any) -> None:
        """A node sends lineage, or releases it."""
        if not self.strict:
            return
        shard = shard_of_replica(shard)
        confirmed = self.confirmed.setdefault(shard, {})
        if type(message) is RecordTasks:
            kept = [(record.task_id, record.attempt) for record in message.records if not record.released]
            self.unconfirmed.setdefault((node, shard), {})[message.sequence] = kept
            for record in message.records:
                if record.released:
                    confirmed.pop(record.task_id, None)
        elif type(message) is ReleaseLineage:
            for task_id in message.task_ids:
                confirmed.pop(task_id, None)
            for batch in self.unconfirmed.get((node, shard), {}).values():
                batch[:] = [pair for pair in batch if pair[0] not in message.task_ids]

    def acknowledged(self, node: Address, shard: Address, sequence: int) -> None:
        """A node hears that its records up to here are durable."""
        shard = shard_of_replica(shard)
        batches = self.unconfirmed.get((node, shard))
        if batches is None:
            return
        for number in [number for number in batches if number <= sequence]:
            self.confirmed[shard].update(batches.pop(number))

    def result_leaves(
        self, node: Address, task_id: bytes, serving: Callable[[bytes], Sequence[SimShard | SimReplica]]
    ) -> None:
        """The values of a task go to another node: the shards must know how to make them again.

        Args:
            serving: those who serve the shard of a key; of a chain all members of the newest epoch.
        """
        if not self.strict:
            return
        for host in serving(task_id):
            record = host.rows.find(host.shard, task_id)
            if record is None:
                self.fail(f"results of {short(task_id)} leave {node.hex()} before its lineage is durable")
                return
            for other in serving(record.descriptor_id):
                if record.descriptor_id not in other.shard.values[TABLE_DESCRIPTOR].entries:
                    self.fail(f"results of {short(task_id)} leave {node.hex()} before its code is durable")

    def recovered(self, shard: SimShard, before: tuple[dict[int, Any], dict[bytes, Any]]) -> None:
        """A shard has read its log: it knows what it knew, and what it acknowledged."""
        tables, records = before
        now = {number: table.entries for number, table in shard.shard.values.items()}
        if now != tables:
            self.fail(f"I7: the tables of shard {shard.number} are not what they were before its crash")
        if shard.rows.file.records_of(shard.shard.tasks) != records:
            self.fail(f"I7: the task table of shard {shard.number} is not what it was before its crash")
        self.check_confirmed(shard)

    def check_confirmed(self, host: SimShard | SimReplica) -> None:
        """Every record that was acknowledged and not released is there."""
        for task_id, attempt in self.confirmed.get(shard_of_replica(host.address), {}).items():
            record = host.rows.find(host.shard, task_id)
            if record is None or record.attempt < attempt:
                name = host.address.decode()
                self.fail(f"I7: {short(task_id)} was acknowledged for {name}, which does not have it")

    def check_chain(self, hosts: list[SimReplica], members: tuple[Address, ...]) -> None:
        """At rest every replica is a member again, and their tables are the same."""
        if len(members) != len(hosts):
            self.fail(f"the chain of {hosts[0].address.decode()} is {members}, not whole")
        for host in hosts:
            self.check_confirmed(host)
            self.check_directory(host)
            self.check_schedulers(host)
            if host.rows.tables_of(host.shard) != hosts[0].rows.tables_of(hosts[0].shard):
                self.fail(f"I7: {host.address.decode()} has other tables than {hosts[0].address.decode()}")

    # --- the end -------------------------------------------------------------------------------------

    def check_calls(self, callers: list[Address]) -> None:
        """Every call of a living caller to a living actor was applied."""
        for (caller, actor_id), made in self.made.items():
            lives = actor_id in self.constructed and actor_id not in self.gone and actor_id not in self.killed
            if lives and caller in callers:
                applied = self.applied.get((caller, actor_id), 0)
                if applied != len(made):
                    self.fail(f"I3: {applied} of {len(made)} calls to {short(actor_id)} were applied")

    def check_names(self, hosts: list[SimShard | SimReplica]) -> None:
        """Every actor is over: no name may be taken, but of one whose node died before it made the actor."""
        made: dict[bytes, None] = {}
        names: dict[bytes, bytes] = {}
        for host in hosts:
            made |= dict.fromkeys(host.shard.values[TABLE_ACTOR].entries)
            names |= host.shard.values[TABLE_KV].entries
        taken = [k for k, handle in names.items() if k.startswith(PREFIX) and handle[:ID_BYTES] in made]
        if taken:
            self.fail(f"I14: names of actors that are over are taken: {taken}")

    def check_directory(self, host: SimShard | SimReplica) -> None:
        """No node holds anything: no row may be left."""
        for machine in host.beside:
            if isinstance(machine, ObjectDirectory) and machine.rows:
                rows = [short(object_id) for object_id in machine.rows]
                self.fail(f"I14: shard {host.number} has rows of {len(rows)} shared objects: {rows[:20]}")

    def check_schedulers(self, host: SimShard | SimReplica) -> None:
        """Nobody waits for anything: whoever had a task without a node for it was told to forget it."""
        for machine in host.beside:
            if isinstance(machine, GlobalScheduler) and machine.parked:
                parked = [short(task_id) for task_id in machine.parked]
                self.fail(f"I14: {host.address.decode()} has parked tasks of nobody: {parked[:20]}")

    def check_jobs(self, nodes: Sequence[SimNode]) -> None:
        """Every driver has left: nodes know no job but heirs, for who may ask for lost objects yet.

        Those of every living node, as their tasks may have run on others.
        """
        heirs = [tuple(host.node.cluster.reconstruction.heirs.values()) for host in nodes]
        if max(map(len, heirs)) > HEIRS_MAX:
            self.fail(f"I15: of {HEIRS_MAX} heirs at most there are {[len(each) for each in heirs]}")
        known = {heir for each in heirs for heir in each}
        for host in nodes:
            left = [short(job_id) for job_id in sorted(host.node.scheduler.jobs.keys() - known)]
            if left:
                self.fail(f"I14: node {host.number} remembers jobs that are over: {left}")

    def check_at_rest(self, host: SimNode) -> None:
        """All programs let go of everything: nothing of it may be left on a node."""
        node = host.node
        node.check()
        left = {
            "objects": [short(object_id) for object_id in node.store.objects],
            "held": {client.hex(): len(held) for client, held in node.references.held.items() if held},
            "handed": node.references.handed,
            "lineage": [short(task_id) for task_id in node.references.lineage],
            "tasks": [short(task_id) for task_id in node.scheduler.tasks],
            "ready": {number: len(c.ready) for number, c in node.scheduler.ready.items() if c.ready},
            "mapped": node.store.mapped,
            "creating": node.store.creating,
            "spills": node.store.spilling,
            "detached": node.store.detached_spills,
            "arena bytes": node.store.extents.used_bytes,
            "spilled bytes": node.store.spilled_bytes,
            "strangers": node.store.strangers,
            "files": list(host.memory.files),
            "views": host.memory.views,
            "actors": [short(a) for a, e in node.actors.entries.items() if e.state.state == ACTOR_ALIVE],
        }
        cluster = node.cluster
        left |= {
            "shared objects": [short(object_id) for object_id in cluster.sharing.shared],
            "departures": [waiting.message for waiting in cluster.sharing.gate],
            "away tasks": [short(task_id) for task_id in cluster.away.tasks],
            "claims": [short(task_id) for task_id in cluster.guests.claims],
            "guests": [short(task_id) for task_id in cluster.guests.guests],
            "untaken guests": [short(task_id) for task_id in cluster.guests.untaken],
            "transfers": [short(object_id) for object_id in cluster.transfers.active],
            "rebuilds": [short(task_id) for task_id in cluster.reconstruction.waiting],
            "hosted actors": [short(actor_id) for actor_id in cluster.actors.hosted.actors],
            "away calls": [short(task_id) for task_id in cluster.actors.relay.away],
            "hosted calls": [short(task_id) for task_id in cluster.actors.relay.here],
            "untaken replies": [short(task_id) for _, task_id, _ in cluster.actors.relay.untaken],
            "posts": [posted for s in cluster.actors.couriers.streams.values() for posted in s.unacked],
            "wills": [short(actor_id) for actor_id in cluster.actors.wills.wills],
            "lines": [short(actor_id) for actor_id in cluster.actors.succession.lines],
            "deeds": [short(actor_id) for actor_id in cluster.actors.deeds.deeds],
            "pasts": [short(actor_id) for actor_id in node.scheduler.lives.checkpoints.pasts],
            "copies": [short(object_id) for object_id in node.store.copies],
        }
        for what, rest in left.items():
            if rest:
                self.fail(f"I14: {what} left on node {host.number} after every program let go: {rest}")
        pool = node.pool.resources
        found = {name: amount + pool.aside.get(name, 0) for name, amount in pool.free.items()}
        if found != pool.total:
            self.fail(f"I4: at rest {found} is free or set aside on node {host.number} of {pool.total}")
