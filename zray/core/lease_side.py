"""Task leases as a node sees them: tasks that did not pass it, and who has which worker.

Handlers of the composite machine in ``core/node.py``, which each pass a message to the room that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.core.machine import Address, Handler
from zray.ids import first_return_id
from zray.protocol.messages import Abort, LeasedDone, LeaseEnded, LeaseReady, ReturnLease, Value

if TYPE_CHECKING:
    from zray.core.node import Node


def on_leased_done(node: Node, now_ns: int, source: Address, message: LeasedDone) -> None:
    """A task that did not pass here ended: its submitter tells, or its worker hands in the value."""
    client = node.known(source)
    if client is None:
        return
    if message.value is not None:
        _on_result(node, now_ns, source, message, message.value)
        return
    task_class = client.classes.get(message.spec.descriptor_id)
    if task_class is not None:
        node.leases.used(now_ns, source, message)
        node.scheduler.leased_done(now_ns, source, task_class, message)


def _on_result(node: Node, now_ns: int, source: Address, message: LeasedDone, value: Value) -> None:
    worker = node.worker(source)
    client = None if worker is None else node.clients.get(node.leases.submitter_of(worker, message))
    task_class = None if client is None else client.classes.get(message.spec.descriptor_id)
    if client is not None and task_class is not None:
        client.promised.pop(first_return_id(message.spec.task_id), None)
        node.scheduler.leased_result(now_ns, client.address, task_class, message, value)
    else:  # nobody waits for it
        node.on_abort(now_ns, source, Abort(first_return_id(message.spec.task_id)))


def on_return_lease(node: Node, now_ns: int, source: Address, message: ReturnLease) -> None:
    """A submitter needs a worker no more."""
    node.leases.on_return(now_ns, source, message)


def on_lease_answer(node: Node, now_ns: int, source: Address, message: LeaseReady | LeaseEnded) -> None:
    """A worker listens for submitters, or is free of its lease."""
    worker = node.worker(source)
    if worker is not None and isinstance(message, LeaseEnded):
        node.leases.on_ended(now_ns, worker, message)
    elif worker is not None:
        worker.listens = True


HANDLERS: dict[type[Any], Handler] = {
    LeasedDone: on_leased_done,
    ReturnLease: on_return_lease,
    LeaseReady: on_lease_answer,
    LeaseEnded: on_lease_answer,
}
