"""Which workers are leased to a submitter, so that its lone tasks need not pass the node.

A client that submits one task, waits for it, and submits the next of the same kind keeps the rest of the
node idle; the two hops through the node are most of what such a task costs. So after a few of them in a
row the node *leases* it the worker: it holds the task's resources for the submitter, which sends the worker
one task at a time, directly (``core/leased_tasks.py``), and tells the node afterwards, in batches. The worker
was told to listen with the task before, so that the submitter hears of the lease and of that task's value at
once, and its next task finds both ends ready.

A lease ends when its submitter returns it, when it was not used for a while, as soon as any other task
waits for a worker, or with either process. Only the worker can end one safely: it answers ``EndLease``
after the task that it runs, and its answer says which task was its last, so that the submitter knows what ran
whatever was on its way. A worker is in ``by_worker`` exactly while its state is ``LEASED``.
"""

from __future__ import annotations

from zray.config import Config
from zray.core.actors import SERVER_SUFFIX
from zray.core.machine import Address, Effect, invariant
from zray.core.worker_pool import LEASED, TaskClass, TaskEntry, Worker, WorkerPool
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import (
    EndLease,
    Lease,
    LeasedDone,
    LeasedReply,
    LeaseEnded,
    LeaseGone,
    PrepareLease,
    ReturnLease,
)

LONE_TASKS_MIN = 3
"""Lone tasks of one kind and submitter, one after the other, before their worker is leased."""


class GrantedLease:
    """One lease; found in ``Leases.by_worker``."""

    __slots__ = ("descriptor_id", "ending", "lease_id", "submitter", "used_ns", "worker")

    def __init__(self, lease_id: int, descriptor_id: bytes, submitter: Address, worker: Worker) -> None:
        self.lease_id = lease_id
        self.descriptor_id = descriptor_id
        self.submitter = submitter
        self.worker = worker
        self.used_ns = 0
        self.ending = False  # the worker was asked to end it


class Leases:
    """The leases of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        pool: its workers.
        config: ``lease_idle_ns``; 0: no leases.
    """

    def __init__(self, out: list[Effect], *, pool: WorkerPool, config: Config) -> None:
        self.out = out
        self.pool = pool
        self.idle_ns = config.lease_idle_ns
        self.run_ns_max = config.run_ahead_ns
        self.by_worker: dict[Address, GrantedLease] = {}
        self.granted = 0  # leases ever granted; the latest id
        self.lone = 0  # lone tasks in a row, all of this kind and submitter:
        self._lone_of: tuple[int, Address] = (0, b"")
        self.look_at_ns: int | None = None

    def lone_task_done(self, now_ns: int, task: TaskEntry, worker: Worker) -> None:
        """A task ended that was the only unfinished one of the node; its worker is idle now."""
        task_class = task.task_class
        whose = task_class.number, task.submitter
        if whose != self._lone_of:
            self._lone_of, self.lone = whose, 0
        self.lone += 1
        if self.lone < LONE_TASKS_MIN or not task_class.leasable or task_class.run_ns > self.run_ns_max:
            return
        if worker.listens and self.pool.lease(now_ns, worker, task_class):
            self._grant(now_ns, task, worker)

    def prepare(self, worker: Worker, task_class: TaskClass) -> None:
        """If the lone task that a worker is sent is followed by one more, the worker is to be leased."""
        if self.idle_ns and task_class.leasable and not worker.listens:
            self.out.append((worker.worker_id, PrepareLease()))

    def _grant(self, now_ns: int, task: TaskEntry, worker: Worker) -> None:
        self.lone = 0
        self.granted += 1
        lease = GrantedLease(self.granted, task.spec.descriptor_id, task.submitter, worker)
        lease.used_ns = now_ns
        self.by_worker[worker.worker_id] = lease
        address = worker.worker_id + SERVER_SUFFIX
        told = Lease(lease.lease_id, lease.descriptor_id, address, worker.endpoint)
        self.out.append((lease.submitter, told))
        if self.look_at_ns is None:
            self.look_at_ns = now_ns + self.idle_ns

    def _of(self, worker: Worker, lease_id: int) -> GrantedLease | None:
        lease = self.by_worker.get(worker.worker_id)
        return lease if lease is not None and lease.lease_id == lease_id else None

    def used(self, now_ns: int, submitter: Address, message: LeasedDone) -> None:
        """A submitter has used a lease."""
        for lease in self.by_worker.values():
            if lease.lease_id == message.lease_id and lease.submitter == submitter:
                lease.used_ns = now_ns

    def submitter_of(self, worker: Worker, message: LeasedDone) -> Address:
        """Whose task a leased worker reports; nobody's if it is not leased like that."""
        lease = self._of(worker, message.lease_id)
        return b"" if lease is None else lease.submitter

    # --- ends ------------------------------------------------------------------------------------

    def revoke(self) -> None:
        """Other tasks wait for a worker: every lease ends after the task that runs."""
        for lease in self.by_worker.values():
            self._end(lease)

    def _end(self, lease: GrantedLease) -> None:
        if not lease.ending:
            lease.ending = True
            self.out.append((lease.worker.worker_id, EndLease(lease.lease_id)))

    def on_ended(self, now_ns: int, worker: Worker, message: LeaseEnded) -> None:
        """The worker is free again."""
        lease = self._of(worker, message.lease_id)
        if lease is not None:
            self._free(now_ns, lease)
            self._tell(lease, message.last, b"")

    def on_return(self, now_ns: int, submitter: Address, message: ReturnLease) -> None:
        """The submitter has nothing under way, so the worker is free. One that ends anyway answers itself."""
        for lease in list(self.by_worker.values()):
            if lease.lease_id == message.lease_id and lease.submitter == submitter and not lease.ending:
                self._free(now_ns, lease)

    def worker_gone(self, worker: Worker, message: WorkerExited) -> None:
        """The worker is lost: the submitter hears what it ran."""
        lease = self.by_worker.pop(worker.worker_id, None)
        if lease is not None:
            self._tell(lease, None, message.running)

    def _tell(self, lease: GrantedLease, last: LeasedReply | None, running: bytes) -> None:
        self.out.append((lease.submitter, LeaseGone(lease.lease_id, last, running)))

    def submitter_gone(self, submitter: Address) -> None:
        """A client is gone: its leases end after the task that runs, unless its workers end with it."""
        for lease in self.by_worker.values():
            if lease.submitter == submitter:
                self._end(lease)

    def _free(self, now_ns: int, lease: GrantedLease) -> None:
        del self.by_worker[lease.worker.worker_id]
        self.pool.end_lease(now_ns, lease.worker)

    def on_tick(self, now_ns: int) -> None:
        """End the leases that were not used for a while."""
        if self.look_at_ns is None or self.look_at_ns > now_ns:
            return
        for lease in self.by_worker.values():
            if lease.used_ns + self.idle_ns <= now_ns:
                self._end(lease)
        waiting = [lease.used_ns for lease in self.by_worker.values() if not lease.ending]
        self.look_at_ns = min(waiting) + self.idle_ns if waiting else None

    def check(self) -> None:
        """Every leased worker has one lease."""
        for worker_id, lease in self.by_worker.items():
            invariant(self.pool.workers.get(worker_id) is lease.worker, "lease of a worker that is gone")
            invariant(lease.worker.state == LEASED, "lease of a worker in state", lease.worker.state)
        leased = sum(worker.state == LEASED for worker in self.pool.workers.values())
        invariant(leased == len(self.by_worker), "leased workers", leased, "leases", len(self.by_worker))
