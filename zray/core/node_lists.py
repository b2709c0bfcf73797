"""What a node answers to "which nodes are there?": itself, and what the control store knows of the others.

A question is repeated until the control store answers, for ``PATIENCE_NS``. Then a node without peers
answers for itself, and one with peers says that it does not know. Questions are bounded (I15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.core import reports
from zray.core.machine import Address, invariant
from zray.core.resources import amounts_of
from zray.protocol.cluster import ListNodes, NodeList, NodeRow
from zray.protocol.documents import encode_report
from zray.protocol.messages import Answer, Query

if TYPE_CHECKING:
    from zray.core.node import Node

PATIENCE_NS = 5_000_000_000
REPEAT_NS = 500_000_000
QUESTIONS_MAX = 1_000


class _NodesQuestion:
    """Somebody who waits for the list."""

    __slots__ = ("asker", "deadline_ns", "token")

    def __init__(self, asker: Address, token: int, deadline_ns: int) -> None:
        self.asker, self.token, self.deadline_ns = asker, token, deadline_ns


class NodeLists:
    """Open questions for the nodes of the cluster. Pure; a room of the ``Node``."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.open: dict[int, _NodesQuestion] = {}  # by our own token, oldest first
        self.asked = 0
        self.repeat_at_ns: int | None = None

    @property
    def wake_at_ns(self) -> int | None:
        """When the questions are asked again."""
        return self.repeat_at_ns

    def ask(self, now_ns: int, asker: Address, message: Query) -> None:
        """A process wants to know which nodes there are."""
        if not self.node.shards:
            self._answer(_NodesQuestion(asker, message.token, 0), (), 0)
        elif len(self.open) >= QUESTIONS_MAX:
            self._fail(_NodesQuestion(asker, message.token, 0), f"{QUESTIONS_MAX} such questions are open")
        else:
            self.asked += 1
            self.open[self.asked] = _NodesQuestion(asker, message.token, now_ns + PATIENCE_NS)
            self._send(self.asked)
            if self.repeat_at_ns is None:
                self.repeat_at_ns = now_ns + REPEAT_NS

    def _send(self, token: int) -> None:
        self.node.out.append((self.node.shards[0], ListNodes(token)))

    def on_list(self, source: Address, message: NodeList) -> None:
        """The control store answers."""
        question = self.open.pop(message.token, None) if source in self.node.shards else None
        if question is not None:
            self._answer(question, message.rows, message.left_out)

    def on_tick(self, now_ns: int) -> None:
        """Ask again what was not answered, and give up what was asked for too long."""
        if self.repeat_at_ns is None or self.repeat_at_ns > now_ns:
            return
        for token, question in list(self.open.items()):
            if question.deadline_ns > now_ns:
                self._send(token)
                continue
            del self.open[token]
            if self.node.cluster.peers.alive:
                self._fail(question, "the control store of the cluster does not answer")
            else:
                self._answer(question, (), 0)
        self.repeat_at_ns = now_ns + REPEAT_NS if self.open else None

    def client_gone(self, address: Address) -> None:
        """A process is gone: it wants no answer."""
        self.open = {token: question for token, question in self.open.items() if question.asker != address}

    def _answer(self, question: _NodesQuestion, rows: tuple[NodeRow, ...], left_out: int) -> None:
        body = nodes_report(self.node, rows, left_out)
        self.node.out.append((question.asker, Answer(question.token, body)))

    def _fail(self, question: _NodesQuestion, reason: str) -> None:
        body = encode_report({"own": reports.node_report(self.node), "unavailable": reason})
        self.node.out.append((question.asker, Answer(question.token, body)))

    def check(self) -> None:
        """Whoever waits lives, and is asked for again."""
        invariant(len(self.open) <= QUESTIONS_MAX, "I15: questions for nodes", len(self.open))
        for question in self.open.values():
            invariant(question.asker in self.node.clients, "an answer for nobody")
        invariant(not self.open or self.repeat_at_ns is not None, "I6: nobody asks again")


def nodes_report(node: Node, rows: tuple[NodeRow, ...], left_out: int) -> bytes:
    """The nodes of a cluster as JSON: of ``node`` what it knows of itself, of the others their rows."""
    own_id = node.identity.node_id
    others = [_document(row) for row in rows if row.node_id != own_id]
    return encode_report({"own": reports.node_report(node), "nodes": others, "left_out": left_out})


def _document(row: NodeRow) -> dict[str, Any]:
    """A row as JSON, with the keys that a node's report of itself has."""
    return {
        "node_id": row.node_id.hex(),
        "host": row.host,
        "pid": row.pid,
        "endpoint": row.endpoint,
        "labels": dict(row.labels),
        "alive": row.alive,
        "total": amounts_of(row.total),
        "available": amounts_of(row.free),
        "backlog": row.backlog,
    }
