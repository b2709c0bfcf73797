"""A placement policy that believes reports and nothing else: what herds.

The global scheduler debits a node for what it placed there since its last report. This policy undoes that, by
looking only at what each node was when its report came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from zray.core.placement import POLICIES, SCHEDULING, NodeLoad, Scheduling
from zray.protocol.messages import Forward

NAME = "reports_only"


class ReportedWait(NamedTuple):
    """What a node was when its report came."""

    heard_ns: int
    free: int
    """CPUs, in units of demand."""
    queue_ns: int


class ReportsOnly:
    """Least queue by reports alone. One per run: it remembers reports."""

    def __init__(self) -> None:
        self.reported: dict[bytes, ReportedWait] = {}

    def __call__(self, nodes: Sequence[NodeLoad], task: Forward, random: Random | None = None) -> NodeLoad:
        """The node that looked best, whatever was placed there since; the first of equals."""
        return min(nodes, key=lambda node: self._wait_ns(node, task))

    def _wait_ns(self, node: NodeLoad, task: Forward) -> int:
        known = self.reported.get(node.node_id)
        if known is None or known.heard_ns != node.heard_ns:  # nothing was debited yet
            known = ReportedWait(node.heard_ns, node.pool.free.get("CPU", 0), node.queue_ns)
            self.reported[node.node_id] = known
        needed = dict(task.descriptor.demand).get("CPU", 0)
        return 0 if known.free >= needed else known.queue_ns


@contextmanager
def registered() -> Iterator[str]:
    """The policy by its name, while the block lasts."""
    POLICIES[NAME], SCHEDULING[NAME] = ReportsOnly(), Scheduling(NAME)
    try:
        yield NAME
    finally:
        del POLICIES[NAME], SCHEDULING[NAME]
