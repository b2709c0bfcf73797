"""The submitter's side of leases: lone tasks sent straight to a worker, and told to the node afterwards.

A task goes this way if the node has leased a worker for its kind, the lease has none under way, nothing
else waits to be sent, and the task needs no objects. Its value lives in this process until a ref to it
leaves, like the value of an actor call. The node learns of the task in a batch, always before it learns of
its value, so that lineage comes before visibility.

A task is in one place: ``ClientLease.spec`` until it is answered, then ``ended`` until the node was told.
A lease that is lost hands its task back to the node as an ordinary submission, with the attempt that it may
have used counted.
"""

from __future__ import annotations

from msgspec.structs import replace

from zray.core.cancellation import cancelled_value
from zray.core.client_objects import ClientObjects
from zray.core.machine import Address, Effect, invariant
from zray.ids import first_return_id, short
from zray.protocol.messages import (
    Lease,
    LeasedDone,
    LeasedReply,
    LeasedRun,
    LeaseGone,
    ReturnLease,
    Submit,
)
from zray.protocol.user_messages import CancelCall

ENDED_MAX = 64
"""Ended tasks that wait to be told to the node; with one more it is told."""


class ClientLease:
    """One lease as its submitter sees it."""

    __slots__ = ("address", "descriptor_id", "lease_id", "spec")

    def __init__(self, message: Lease) -> None:
        self.lease_id = message.lease_id
        self.descriptor_id = message.descriptor_id
        self.address = message.address
        self.spec: Submit | None = None  # the task under way


class LeasedTasks:
    """The leases of one process. Pure; shares its outbox.

    Args:
        out: the process's outbox.
        node: the address of its node.
        objects: what the process refers to.
    """

    def __init__(self, out: list[Effect], *, node: Address, objects: ClientObjects) -> None:
        self.out = out
        self.node = node
        self.objects = objects
        self.leases: dict[bytes, ClientLease] = {}  # by descriptor
        self.by_id: dict[int, ClientLease] = {}
        self.under_way: dict[bytes, ClientLease] = {}  # by return object
        self.ended: list[LeasedDone] = []
        self.cancelled: dict[bytes, None] = {}  # tasks under way that were taken back

    def free_for(self, descriptor_id: bytes) -> ClientLease | None:
        """A lease that takes a lone task of this kind now."""
        lease = self.leases.get(descriptor_id)
        return lease if lease is not None and lease.spec is None and not self.out else None

    def run(self, lease: ClientLease, spec: Submit) -> None:
        """Send a task to the worker; the call needs the return object until it ends."""
        return_id = first_return_id(spec.task_id)
        self.objects.expect_reply((return_id,))
        lease.spec = spec
        self.under_way[return_id] = lease
        self.out.append((lease.address, LeasedRun(lease.lease_id, spec)))

    def cancel(self, task_id: bytes, recursive: bool) -> int:
        """Take a task back; its worker interrupts it. Returns the lease that it runs on; 0: none."""
        lease = self.under_way.get(first_return_id(task_id))
        if lease is None:
            return 0
        self.cancelled[task_id] = None
        self.out.append((lease.address, CancelCall(task_id, recursive)))
        return lease.lease_id

    def cancel_children(self, task_id: bytes) -> None:
        """Take back what a task of this process submitted and the node does not know of."""
        for lease in list(self.under_way.values()):
            if lease.spec is not None and lease.spec.parent_id == task_id:
                self.cancel(lease.spec.task_id, True)

    # --- what arrives ----------------------------------------------------------------------------

    def on_lease(self, message: Lease) -> None:
        """The node has leased a worker to this process. A former lease of its kind is left to end."""
        lease = ClientLease(message)
        self.leases[message.descriptor_id] = self.by_id[message.lease_id] = lease

    def on_reply(self, message: LeasedReply) -> None:
        """A worker answers; late and unknown answers change nothing."""
        lease = self.by_id.get(message.lease_id)
        if lease is None or lease.spec is None or lease.spec.task_id != message.task_id:
            return
        spec, lease.spec = lease.spec, None
        self.cancelled.pop(spec.task_id, None)
        return_id = first_return_id(spec.task_id)
        del self.under_way[return_id]
        self.ended.append(LeasedDone(lease.lease_id, spec, message.run_ns, message.failed))
        if self.objects.is_shared(return_id):  # the value leaves at once: its record goes first
            self.settle()
        self.objects.on_reply(return_id, message.value)

    def on_value_at_node(self, object_id: bytes) -> None:
        """The node, not the worker, has announced a return object: it was told of the task by the worker."""
        lease = self.under_way.pop(object_id, None)
        if lease is not None and lease.spec is not None:
            self.cancelled.pop(lease.spec.task_id, None)
            lease.spec = None
            self.objects.node_holds(object_id)

    def on_gone(self, message: LeaseGone) -> Address | None:
        """A lease is over; returns the address to disconnect from."""
        lease = self.by_id.get(message.lease_id)
        if lease is None:
            return None
        if message.last is not None:
            self.on_reply(message.last)
        self._forget(lease)
        spec = lease.spec
        if spec is not None:
            return_id = first_return_id(spec.task_id)
            del self.under_way[return_id]
            if spec.task_id in self.cancelled:
                del self.cancelled[spec.task_id]
                self.objects.on_reply(return_id, cancelled_value(spec.task_id))
                return lease.address
            if message.running == spec.task_id:
                spec = replace(spec, attempt=spec.attempt + 1)
            self.out.append((self.node, spec))
            self.objects.node_holds(return_id)
        return lease.address

    # --- what the node is told -------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether enough has gathered to tell the node."""
        return len(self.ended) >= ENDED_MAX

    def settle(self) -> None:
        """Tell the node of all tasks that ended; values that are still referred to follow."""
        ended, self.ended = self.ended, []
        for done in ended:
            return_id = first_return_id(done.spec.task_id)
            if self.objects.refers_to(return_id):
                self.out.append((self.node, done))
                self.objects.share((return_id,))
            else:
                self.out.append((self.node, replace(done, kept=False)))

    def return_idle(self) -> list[Address]:
        """Give back every lease that has no task under way; returns the addresses to disconnect from."""
        idle = [lease for lease in self.by_id.values() if lease.spec is None]
        for lease in idle:
            self._forget(lease)
            self.out.append((self.node, ReturnLease(lease.lease_id)))
        return [lease.address for lease in idle]

    def _forget(self, lease: ClientLease) -> None:
        del self.by_id[lease.lease_id]
        if self.leases.get(lease.descriptor_id) is lease:
            del self.leases[lease.descriptor_id]

    def check(self) -> None:
        """Every task under way is that of a known lease."""
        for object_id, lease in self.under_way.items():
            invariant(self.by_id.get(lease.lease_id) is lease, "task of no lease:", short(object_id))
            invariant(
                lease.spec is not None and first_return_id(lease.spec.task_id) == object_id, "under way"
            )
        count = sum(lease.spec is not None for lease in self.by_id.values())
        invariant(count == len(self.under_way), "under way", len(self.under_way), "leases with a task", count)
