"""What one node asks all nodes of the cluster, or one of them, because a person asked it.

Every node that is alive is asked once, this one included, and answers once. Whoever asked gets the answers
when all are there, or after ``PATIENCE_NS`` with the silent nodes named: a node that died meanwhile, is
stopped or cut off holds nobody up. What the answers say is not looked at. Questions and answers are bounded
(I15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.core.inquiries import PATIENCE_NS as PROCESS_PATIENCE_NS
from zray.core.machine import Address, Effect, invariant
from zray.core.peers import Peers
from zray.protocol.cluster import AskPeer, PeerAnswer
from zray.protocol.documents import encode_report
from zray.protocol.messages import Answer

PREFIX = "everywhere/"
"""In front of what ``Query`` asks for: of every node."""
AT = "at/"
"""In front of the id of a node in hex, a slash, and what ``Query`` asks of that node alone."""
PATIENCE_NS = PROCESS_PATIENCE_NS + 1_000_000_000
"""Longer than a node waits for its own processes."""
QUESTIONS_MAX = 100
BODY_BYTES_MAX = 32 << 20

Answerer = Callable[[bytes], None]
AnswerHere = Callable[[int, str, Address, Answerer], None]


class _Question:
    """One question and the answers so far."""

    __slots__ = ("answers", "asker", "deadline_ns", "token", "waiting")

    def __init__(self, asker: Address, token: int, deadline_ns: int) -> None:
        self.asker = asker
        self.token = token
        self.deadline_ns = deadline_ns
        self.waiting: dict[Address, None] = {}
        self.answers: list[dict[str, Any]] = []


class Everywhere:
    """The open questions of a node to all nodes. Pure; shares its outbox.

    Args:
        out: the node's outbox.
        peers: who is alive.
        answer_here: ``(now_ns, what, asker, answer)``: calls ``answer`` with what this node says, now or
            later.
    """

    def __init__(self, out: list[Effect], *, peers: Peers, answer_here: AnswerHere) -> None:
        self.out = out
        self.peers = peers
        self.answer_here = answer_here
        self.open: dict[int, _Question] = {}
        self.asked = 0

    @property
    def wake_at_ns(self) -> int | None:
        """When the first question ends, whoever is silent."""
        if not self.open:  # as a rule; asked with every batch
            return None
        return min(question.deadline_ns for question in self.open.values())

    def ask(self, now_ns: int, asker: Address, token: int, what: str) -> None:
        """A process of this node wants to know something of every node, or of one."""
        own = self.peers.node_id
        nodes, error = [own, *self.peers.alive], ""
        if what.startswith(AT):
            node_id, _, what = what.removeprefix(AT).partition("/")
            nodes = [node for node in nodes if node.hex() == node_id]
            error = "" if nodes else f"no living node is {node_id[:40]}"
        elif what.startswith(PREFIX):
            what = what.removeprefix(PREFIX)
        if len(self.open) >= QUESTIONS_MAX:
            error = f"{QUESTIONS_MAX} questions are open already; ask again in a moment"
        if error:
            self.out.append((asker, Answer(token, encode_report({"error": error}))))
            return
        self.asked += 1
        number = self.asked
        question = self.open[number] = _Question(asker, token, now_ns + PATIENCE_NS)
        question.waiting = dict.fromkeys(nodes)
        self.out.extend((node, AskPeer(number, what)) for node in nodes if node != own)
        if own in question.waiting:
            self.answer_here(
                now_ns, what, own, lambda body: self.on_peer_answer(own, PeerAnswer(number, body))
            )

    def on_ask_peer(self, now_ns: int, source: Address, message: AskPeer) -> None:
        """Another node wants to know something of this one."""
        if source in self.peers.alive:
            number = message.number
            self.answer_here(
                now_ns, message.what, source, lambda body: self.out.append((source, PeerAnswer(number, body)))
            )

    def on_peer_answer(self, source: Address, message: PeerAnswer) -> None:
        """A node says what it was asked."""
        question = self.open.get(message.number)
        if question is None or source not in question.waiting:
            return
        del question.waiting[source]
        text = message.body.decode(errors="replace") if len(message.body) <= BODY_BYTES_MAX else "{}"
        question.answers.append({"node_id": source.hex(), "body": text})
        if not question.waiting:
            self._end(message.number, question)

    def client_gone(self, address: Address) -> None:
        """A process is gone: it wants no answer."""
        for number in [number for number, question in self.open.items() if question.asker == address]:
            del self.open[number]

    def on_tick(self, now_ns: int) -> None:
        """Time has passed: who has not answered is named."""
        for number, question in list(self.open.items()):
            if question.deadline_ns <= now_ns:
                self._end(number, question)

    def _end(self, number: int, question: _Question) -> None:
        del self.open[number]
        found = {"nodes": question.answers, "silent": [node.hex() for node in question.waiting]}
        self.out.append((question.asker, Answer(question.token, encode_report(found))))

    def check(self) -> None:
        """Everything that is open waits for somebody, and there is a bound to it."""
        idle = [number for number, question in self.open.items() if not question.waiting]
        invariant(not idle, "questions that wait for nobody", idle)
        invariant(len(self.open) <= QUESTIONS_MAX, "I15: questions", len(self.open))
