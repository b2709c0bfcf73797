"""Global schedulers as a node sees them: which one answers, and what they say of its tasks.

Handlers of the composite machine in ``core/node.py``, which each pass a message to the room that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core import reports
from zray.core.machine import RUNTIME, Address, Handler
from zray.protocol.cluster import LinkLost, SchedulerHere
from zray.protocol.messages import Infeasible, Place, Warn

if TYPE_CHECKING:
    from zray.core.node import Node


def on_scheduler_here(node: Node, now_ns: int, source: Address, message: SchedulerHere) -> None:
    """There is a global scheduler beside a shard, and it answers."""
    node.now_ns = node.scheduler.now_ns = now_ns
    node.schedulers.heard(now_ns, source, message.token)


def on_link_lost(node: Node, now_ns: int, source: Address, message: LinkLost) -> None:
    """The process that serves a shard is gone, or links again soon."""
    if source == RUNTIME and message.peer in node.shards:
        node.now_ns = node.scheduler.now_ns = now_ns
        node.schedulers.lost(now_ns, node.shards.index(message.peer))


def on_place(node: Node, now_ns: int, source: Address, message: Place) -> None:
    """A global scheduler chose this node for a task."""
    if source not in node.shards:
        return
    node.now_ns = node.scheduler.now_ns = now_ns
    if message.origin in (b"", node.identity.node_id):
        node.scheduler.admission.place(message)
    elif message.origin in node.cluster.peers.alive:
        node.cluster.guests.on_place(now_ns, source, message)
    else:
        node.cluster.guests.place_early(source, message)


def on_infeasible(node: Node, now_ns: int, source: Address, message: Infeasible) -> None:
    """No node can run a task: it waits, and its submitter is told why, or it ends.

    A scheduler that has the task no more may not know who could run it.
    """
    task = node.scheduler.forwarded.get(message.task_id)
    if task is None or (source != node.schedulers.address and source not in node.cluster.peers.alive):
        return
    if message.verdict:
        node.now_ns = node.scheduler.now_ns = now_ns
        node.scheduler.unschedulable(task, message.verdict)
        return
    if source == node.schedulers.address:
        node.scheduler.admission.parked(now_ns, message.task_id)
    number = task.task_class.number.to_bytes(8, "big")
    if number not in node.warned:
        node.warned[number] = None
        node.out.append(
            (task.submitter, Warn(reports.infeasible_text(message, task.task_class.descriptor.strategy)))
        )


HANDLERS: dict[type, Handler] = {
    SchedulerHere: on_scheduler_here,
    LinkLost: on_link_lost,
    Place: on_place,
    Infeasible: on_infeasible,
}
