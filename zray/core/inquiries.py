"""What a node asks all of its processes, because somebody asked it: stacks, spans, metrics.

Every process is told once and answers once. Whoever asked gets the answers when all are there, when those
that are missing have died, or after ``PATIENCE_NS`` with the silent ones named. A process that ends on
purpose says unasked what it had, which is kept for later. What the answers say is not looked at here.
Inquiries, answers and what is kept are bounded (I15).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zray.core.identity import ClientEntry
from zray.core.machine import Address, Effect, invariant
from zray.protocol.documents import encode_report
from zray.protocol.messages import DRIVER
from zray.protocol.user_messages import Tell, Told

TOPICS = ("metrics", "spans", "stacks")
PATIENCE_NS = 2_000_000_000
"""A process whose code holds the interpreter, or that is stopped, is not waited for any longer."""
INQUIRIES_MAX = 100
BODY_BYTES_MAX = 4 << 20
KEPT_BYTES_MAX = 64 << 20


class _Inquiry:
    """One question and the answers so far."""

    __slots__ = ("answer", "answers", "asker", "deadline_ns", "waiting", "what")

    def __init__(self, asker: Address, what: str, answer: Callable[[bytes], None], deadline_ns: int) -> None:
        self.asker = asker
        self.what = what
        self.answer = answer
        self.deadline_ns = deadline_ns
        self.waiting: dict[Address, int] = {}  # process -> its id in the system
        self.answers: list[dict[str, Any]] = []


class Inquiries:
    """The open inquiries of a node. Pure; shares its outbox.

    Args:
        out: the node's outbox.
        clients: the living processes of the node.
    """

    def __init__(self, out: list[Effect], clients: dict[Address, ClientEntry]) -> None:
        self.out = out
        self.clients = clients
        self.open: dict[int, _Inquiry] = {}
        self.asked = 0
        self.kept: deque[dict[str, Any]] = deque()  # of processes that have ended, oldest first
        self.kept_bytes = 0

    @property
    def wake_at_ns(self) -> int | None:
        """When the first inquiry ends, whoever is silent."""
        if not self.open:  # as a rule; asked with every batch
            return None
        return min(inquiry.deadline_ns for inquiry in self.open.values())

    def ask(self, now_ns: int, asker: Address, what: str, answer: Callable[[bytes], None]) -> None:
        """Somebody wants to know something of every process.

        Args:
            now_ns: the time.
            asker: a process of this node, which may end; or a node.
            what: one of ``TOPICS``.
            answer: called with the JSON document, now or later.
        """
        if len(self.open) >= INQUIRIES_MAX:
            error = f"{INQUIRIES_MAX} inquiries are open already; ask again in a moment"
            answer(encode_report({"error": error}))
            return
        self.asked += 1
        inquiry = self.open[self.asked] = _Inquiry(asker, what, answer, now_ns + PATIENCE_NS)
        for address, client in self.clients.items():
            inquiry.waiting[address] = client.pid
            self.out.append((address, Tell(self.asked, what)))
        self._end_if_complete(self.asked, inquiry)

    def told(self, source: Address, message: Told) -> None:
        """A process answers; or says what it had, before it ends."""
        client = self.clients.get(source)
        if client is None:
            return
        if not message.token:
            self._keep(client, message.body)
            return
        inquiry = self.open.get(message.token)
        if inquiry is not None and inquiry.waiting.pop(source, None) is not None:
            inquiry.answers.append(_row(client, message.body))
            self._end_if_complete(message.token, inquiry)

    def _keep(self, client: ClientEntry, body: bytes) -> None:
        row = _row(client, body)
        self.kept.append(row)
        self.kept_bytes += len(row["body"])
        while self.kept_bytes > KEPT_BYTES_MAX:
            self.kept_bytes -= len(self.kept.popleft()["body"])

    def client_gone(self, address: Address) -> None:
        """A process is gone: it answers nothing, and wants no answer."""
        for number, inquiry in list(self.open.items()):
            if inquiry.asker == address:
                del self.open[number]
            elif inquiry.waiting.pop(address, None) is not None:
                self._end_if_complete(number, inquiry)

    def on_tick(self, now_ns: int) -> None:
        """Time has passed: who has not answered is named."""
        for number, inquiry in list(self.open.items()):
            if inquiry.deadline_ns <= now_ns:
                self._end(number, inquiry)

    def _end_if_complete(self, number: int, inquiry: _Inquiry) -> None:
        if not inquiry.waiting:
            self._end(number, inquiry)

    def _end(self, number: int, inquiry: _Inquiry) -> None:
        del self.open[number]
        found = {
            "processes": inquiry.answers,
            "former": list(self.kept) if inquiry.what != "stacks" else [],
            "silent": list(inquiry.waiting.values()),
        }
        inquiry.answer(encode_report(found))

    def check(self) -> None:
        """Everybody who is waited for lives, and there is a bound to everything."""
        for number, inquiry in self.open.items():
            gone = [address for address in inquiry.waiting if address not in self.clients]
            invariant(not gone, "inquiry", number, "waits for", gone)
        invariant(len(self.open) <= INQUIRIES_MAX, "I15: inquiries", len(self.open))
        invariant(self.kept_bytes == sum(len(row["body"]) for row in self.kept), "bytes kept")


def _row(client: ClientEntry, body: bytes) -> dict[str, Any]:
    """One answer: a JSON document as text, which the node does not read; one that is too long is left out."""
    text = body.decode(errors="replace") if len(body) <= BODY_BYTES_MAX else ""
    role = "driver" if client.role == DRIVER else "worker"
    return {"pid": client.pid, "role": role, "body": text}
