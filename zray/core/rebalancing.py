"""Which nodes give queued tasks away because others have nothing to do.

A placement is an estimate (paper, section 4.2.2): run times differ, and reports are a heartbeat old. So a
queue that was fair when it was filled may outlive those of other nodes by far. While nodes are idle, the
global scheduler therefore asks those whose queues are longer than they can work off in a moment to give a
part of them back, and places these tasks once more.

Plain functions of what is known of the nodes; they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from zray.core.placement import NodeLoad
from zray.protocol.messages import RESOURCE_UNIT


class Share(NamedTuple):
    """What one node is to give away."""

    node: NodeLoad
    tasks: int
    """At least 1."""


def idle_slots(node: NodeLoad) -> int:
    """How many ordinary tasks could start on a node now, as far as is known: none where some wait."""
    if node.backlog:
        return 0
    return max(0, node.pool.free.get("CPU", 0)) // RESOURCE_UNIT


def excess(node: NodeLoad, patience_ns: int) -> int:
    """How many of the tasks on a node still wait when ``patience_ns`` have passed; -1: none counts."""
    if patience_ns < 0:
        return 0
    soon = node.slots * (patience_ns // max(1, node.run_ns))
    return max(0, node.backlog - soon)


def shares(overloaded: Iterable[NodeLoad], idle: Iterable[NodeLoad], patience_ns: int) -> list[Share]:
    """What each overloaded node is to give so that all of these nodes have equally much to do per slot.

    Args:
        overloaded: nodes, in any order.
        idle: nodes that would take it.
        patience_ns: how long a task may wait that is not worth moving, in nanoseconds.
    Cost: O(nodes given, sorted).
    """
    slots = sum(idle_slots(node) for node in idle)
    if not slots:
        return []
    given, found = 0, []
    for node in sorted(overloaded, key=lambda node: (-node.queued_ns // node.slots, node.node_id)):
        fair = -(-(node.backlog * slots - given * node.slots) // (slots + node.slots))
        tasks = min(fair, excess(node, patience_ns))
        if tasks > 0:
            given += tasks
            found.append(Share(node, tasks))
    return found
