"""Objects whose last copy is lost are made again by running their task again (paper, section 4.2.3).

The directory of the object's shard chose this node and an attempt number (I8), and sent the record of the
task. Whatever this node does not know of it, the descriptor, the code or how to import the job's modules, is
looked up in the tables of the shards. Then the task is submitted like any other; inputs that are lost too are
found missing by the same path, one level further up.

A job ends with its driver, or with the node of its driver, and others may hold what it made: its *heir* makes
that again, a job of this node without a driver and with the same modules. If nobody here but processes of the
ended job needed the object, this node refuses, and the directory asks the next holder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from zray.core.identity import ClientEntry
from zray.core.jobs import remember
from zray.core.machine import Address, Effect, invariant
from zray.core.node_store import PENDING, REMOTE, SEALED, ObjectEntry
from zray.core.sharing import Sharing
from zray.core.worker_pool import TaskClass, TaskEntry
from zray.ids import content_id, producer_of, return_ids, shard_of, short
from zray.protocol import faults
from zray.protocol.cluster import Rebuild
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.messages import (
    DRIVER,
    PROTOCOL_VERSION,
    TABLE_DESCRIPTOR,
    TABLE_FUNCTION,
    TABLE_JOB,
    Describe,
    Hello,
    JobContext,
    Submit,
    TableChanged,
    TableReply,
    TableSubscribe,
    TaskRecord,
)

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler

HEIRS_MAX = 1_000
"""Heirs of ended jobs that a node remembers; the oldest go first, and end."""
FIRST_TOKEN = 1 << 41
"""Tokens of look-ups; those of table writes and of questions about names are lower."""


class Reconstruction:
    """Tasks that are to run again here. Pure; shares its node's outbox."""

    def __init__(
        self,
        out: list[Effect],
        *,
        shards: Sequence[Address],
        scheduler: LocalScheduler,
        sharing: Sharing,
        over: Mapping[bytes, None],
        clients: Mapping[Address, ClientEntry],
        is_peer: Callable[[Address], bool],
        write: Callable[[int, int, bytes, bytes], None],
    ) -> None:
        self.out = out
        self.shards = shards
        self.scheduler = scheduler
        self.sharing = sharing
        self.over = over  # jobs that have ended
        self.clients = clients
        self.is_peer = is_peer
        self.write = write  # a row of a table, for others
        self.heirs: dict[bytes, bytes] = {}  # job whose driver is gone -> the one that makes things again
        self.waiting: dict[bytes, Rebuild] = {}  # task -> what was asked, until all is known of it
        self.asked: dict[int, tuple[int, bytes]] = {}  # token -> table and key
        self.descriptors: dict[bytes, Describe] = {}
        self.tokens = FIRST_TOKEN

    def on_rebuild(self, now_ns: int, source: Address, message: Rebuild) -> None:
        """This node was chosen to make a lost object again."""
        record = message.record
        if source not in self.shards or record is None:
            return
        if record.job_id in self.over and not self._is_needed(message.object_id, record.job_id):
            self.sharing.refuse(message.object_id)
            return
        entry = self.scheduler.store.entry(message.object_id)
        if entry.state == SEALED:
            self.sharing.expose((message.object_id,))  # here it is
            self.scheduler.references.free_if_unneeded(entry)  # who asked may have let go of it meanwhile
            return
        self.expect(entry)
        if record.task_id == record.job_id:  # the handle of a detached actor
            self._lose(record, "its home died; only the next one makes the actor again")
        elif record.task_id not in self.scheduler.tasks and record.task_id not in self.waiting:
            self.waiting[record.task_id] = message
            self._go_on(now_ns, message, record)

    def _is_needed(self, object_id: bytes, job_id: bytes) -> bool:
        """Whether anybody here needs an object besides processes of the job, which has ended."""
        entry = self.scheduler.store.objects.get(object_id)
        if entry is None or not entry.holders:
            return entry is not None and entry.pins > 0
        held = self.scheduler.references.held
        holders = [
            self.clients[client] for client in held if object_id in held[client] and client in self.clients
        ]
        jobs = [each.job_id if each.worker is None else each.worker.job_id for each in holders]
        return entry.pins > 0 or any(other != job_id for other in jobs)

    def _has_driver(self, job_id: bytes) -> bool:
        """Whether a job goes on as far as this node knows; one that it does not know of has an heir here."""
        job = self.scheduler.jobs.get(job_id)
        if job is None or job.ended or job_id in self.over:
            return False
        if job.home:
            return self.is_peer(job.home)
        here = any(each.worker is None and each.job_id == job_id for each in self.clients.values())
        return here or job_id in self.heirs.values()

    def _heir_of(self, now_ns: int, job_id: bytes) -> bytes:
        """The job under which things of an ended one are made again here, if enough is known to begin it."""
        heir, job = self.heirs.get(job_id, b""), self.scheduler.jobs.get(job_id)
        if heir or job is None:
            return heir
        context = replace(job.context, job_id=content_id(self.scheduler.node_id + job_id))
        heir = self.heirs[job_id] = context.job_id
        remember(self.scheduler.jobs, context)
        hello = Hello(PROTOCOL_VERSION, DRIVER, 0, heir, "", context.sys_path, context.working_dir)
        self.write(now_ns, TABLE_JOB, heir, encode_value(hello))
        if len(self.heirs) > HEIRS_MAX:
            self.scheduler.end_job(now_ns, self.heirs.pop(next(iter(self.heirs))))
        return heir

    def expect(self, entry: ObjectEntry) -> None:
        """The object is made here, once more."""
        self.scheduler.store.lose(entry)
        if entry.state == PENDING:
            self.sharing.made_again(entry)

    def _go_on(self, now_ns: int, message: Rebuild, record: TaskRecord) -> None:
        """Run the task if all is known of it, else ask for what is missing."""
        if not self._has_driver(record.job_id):
            heir = self._heir_of(now_ns, record.job_id)
            record = record if not heir else replace(record, job_id=heir)
        missing = self._missing(record)
        if not missing:
            del self.waiting[record.task_id]
            self._run(now_ns, message, record)
        for table, key in missing:
            if (table, key) not in self.asked.values():
                self.tokens += 1
                self.asked[self.tokens] = table, key
                shard = self.shards[shard_of(key, len(self.shards))]
                self.out.append((shard, TableSubscribe(self.tokens, table, key)))

    def _missing(self, record: TaskRecord) -> list[tuple[int, bytes]]:
        scheduler = self.scheduler
        missing = []
        task_class = scheduler.classes.get((record.job_id, record.descriptor_id))
        descriptor = self.descriptors.get(record.descriptor_id)
        if task_class is not None:
            descriptor = task_class.descriptor
        if descriptor is None:
            missing.append((TABLE_DESCRIPTOR, record.descriptor_id))
        elif descriptor.function_id not in scheduler.functions:
            missing.append((TABLE_FUNCTION, descriptor.function_id))
        if record.job_id not in scheduler.jobs:
            missing.append((TABLE_JOB, record.job_id))
        return missing

    def on_table_reply(self, now_ns: int, message: TableReply) -> None:
        """An answer to a look-up; without a value it is a promise of ``TableChanged``."""
        place = self.asked.get(message.token)
        if place is not None and message.ok and message.value is not None:
            self._learn(now_ns, *place, message.value)

    def on_table_changed(self, now_ns: int, source: Address, message: TableChanged) -> None:
        """Something that was looked up is known now."""
        if source in self.shards and (message.table, message.key) in self.asked.values():
            self._learn(now_ns, message.table, message.key, message.value)

    def _learn(self, now_ns: int, table: int, key: bytes, value: bytes) -> None:
        for token in [token for token, place in self.asked.items() if place == (table, key)]:
            del self.asked[token]
        if table == TABLE_DESCRIPTOR:
            self.descriptors[key] = decode_value(value, Describe)
        elif table == TABLE_FUNCTION:
            self.scheduler.functions[key] = value
        else:
            hello: Any = decode_value(value, Hello)
            remember(self.scheduler.jobs, JobContext(key, hello.sys_path, hello.working_dir))
        for message in list(self.waiting.values()):
            assert message.record is not None
            self._go_on(now_ns, message, message.record)

    def ask_again(self, shard: Address) -> None:
        """A shard forgot who waits for what."""
        for token, (table, key) in self.asked.items():
            if self.shards[shard_of(key, len(self.shards))] == shard:
                self.out.append((shard, TableSubscribe(token, table, key)))

    def _run(self, now_ns: int, message: Rebuild, record: TaskRecord) -> None:
        scheduler, store = self.scheduler, self.scheduler.store
        key = record.job_id, record.descriptor_id
        task_class = scheduler.classes.get(key)
        if task_class is None:
            task_class = scheduler.describe(record.job_id, self.descriptors[record.descriptor_id])
        self.descriptors.pop(record.descriptor_id, None)
        if record.task_id in scheduler.tasks:
            return
        if not task_class.descriptor.max_retries:
            self._refuse(task_class, record)
            return
        for object_id in return_ids(record.task_id, task_class.descriptor.num_returns):
            lost = store.objects.get(object_id)
            if lost is not None and lost.state == REMOTE:
                self.expect(lost)
        spec = Submit(
            record.task_id, record.parent_id, record.descriptor_id, record.args, record.deps, record.borrowed
        )
        task = TaskEntry(spec, task_class, b"")
        task.attempt, task.alone = message.attempt, True
        scheduler.admit(now_ns, task)
        scheduler.record_pending(message.object_id)

    def _refuse(self, task_class: TaskClass, record: TaskRecord) -> None:
        """A task that must not run twice: what it made is lost."""
        name = task_class.descriptor.name
        self._lose(record, f"its last copy is lost and {name}() may not run again (max_retries=0)")

    def _lose(self, record: TaskRecord, reason: str) -> None:
        """What a task made, as far as this node knows of it, is lost. Cost: O(shared objects)."""
        store = self.scheduler.store
        made = [object_id for object_id in self.sharing.shared if producer_of(object_id) == record.task_id]
        for object_id in made:
            entry = store.objects[object_id]
            if entry.state != SEALED:
                store.lose(entry)
                store.seal(entry, faults.fault_value(faults.OBJECT_LOST, short(object_id), reason))
                self.scheduler.references.free_if_unneeded(entry)

    def end_job(self, job_id: bytes) -> None:
        """A job is over: what was asked for its sake is made by its heir, or by another node."""
        for message in list(self.waiting.values()):
            record = message.record
            if record is None or record.job_id != job_id or self._is_needed(message.object_id, job_id):
                continue
            del self.waiting[record.task_id]
            for object_id in [one for one in self.sharing.shared if producer_of(one) == record.task_id]:
                self.sharing.refuse(object_id)
        if not self.waiting:
            self.asked.clear()

    def check(self) -> None:
        """Whatever waits, waits for something that was asked for."""
        invariant(bool(self.asked) or not self.waiting, "a rebuild that waits for nothing")
