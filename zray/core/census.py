"""What the control store tells people of the nodes of its cluster: the living, and the newest of the dead.

Kept by the machine that decides who is alive (``membership.py``), beside what it decides. Soft: the node
table, the graves and the next reports rebuild it.
"""

from __future__ import annotations

from zray.protocol.cluster import ListNodes, NodeList, NodeRow
from zray.protocol.messages import Demand, NodeHello, NodeReport

DEAD_SHOWN_MAX = 1_000
"""Dead nodes that are remembered for people; the longest dead go first."""
ROWS_MAX = 10_000
"""Rows of one answer."""


class CensusEntry:
    """One node: how it introduced itself, and its last report."""

    __slots__ = ("backlog", "free", "hello")

    def __init__(self, hello: NodeHello) -> None:
        self.hello = hello
        self.free: Demand = hello.total
        self.backlog = 0

    def row(self, *, alive: bool) -> NodeRow:
        """What is told of it."""
        hello = self.hello
        free = self.free if alive else ()
        return NodeRow(
            hello.node_id, hello.host, hello.pid, hello.endpoint, hello.labels, hello.total, free,
            self.backlog if alive else 0, alive,
        )  # fmt: skip


class Census:
    """Rows of all nodes. Pure; a room of ``Membership``."""

    def __init__(self) -> None:
        self.living: dict[bytes, CensusEntry] = {}
        self.dead: dict[bytes, CensusEntry] = {}

    def introduced(self, hello: NodeHello) -> None:
        """A node says who it is, or the node table does; a known one may have other resources now."""
        entry = self.living.get(hello.node_id)
        if entry is None:
            self.living[hello.node_id] = CensusEntry(hello)
        else:
            entry.hello = hello

    def reported(self, report: NodeReport) -> None:
        """A node says what is free."""
        entry = self.living.get(report.node_id)
        if entry is not None:
            entry.free, entry.backlog = report.free, report.backlog

    def died(self, node_id: bytes) -> None:
        """A node is dead."""
        entry = self.living.pop(node_id, None)
        if entry is not None:
            self.dead[node_id] = entry
            if len(self.dead) > DEAD_SHOWN_MAX:
                del self.dead[next(iter(self.dead))]

    def answer(self, question: ListNodes) -> NodeList:
        """The living, by id, then the dead, the longest dead first, as many as fit."""
        rows = [self.living[node_id].row(alive=True) for node_id in sorted(self.living)]
        rows += [entry.row(alive=False) for entry in self.dead.values()]
        return NodeList(question.token, tuple(rows[:ROWS_MAX]), max(0, len(rows) - ROWS_MAX))
