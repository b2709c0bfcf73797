"""What the processes of a node ask of the coordinator of placement groups, and what the node asks for itself.

A question is numbered by the node, sent, and sent again until it is answered; all of them may be repeated
without harm. The node itself asks for one thing: that the groups of a job end with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from zray.core.machine import Address, Effect, invariant
from zray.protocol.group_messages import EndGroups, GroupAnswer, GroupRequest

RESEND_NS = 1_000_000_000


class GroupQuestion:
    """One question without an answer; found in ``GroupRequests.asked``."""

    __slots__ = ("client", "message", "token")

    def __init__(self, client: Address, token: int, message: GroupRequest | EndGroups) -> None:
        self.client = client  # empty: the node itself
        self.token = token  # of the client
        self.message = message  # with the number of the node


class GroupRequests:
    """Questions of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        shards: every GCS shard; the first has the coordinator. The node puts another one in when the
            head of a chain changes.
        questions_max: questions of processes without an answer; more are refused (I15).
    """

    def __init__(self, out: list[Effect], *, shards: Sequence[Address], questions_max: int) -> None:
        self.out = out
        self.shards = shards
        self.questions_max = questions_max
        self.asked: dict[int, GroupQuestion] = {}
        self.tokens = 0
        self.wake_at_ns: int | None = None

    def ask(self, now_ns: int, client: Address, message: GroupRequest) -> None:
        """A process asks."""
        problem = self._problem()
        if problem:
            self.out.append((client, GroupAnswer(message.token, False, detail=problem)))
        else:
            self._send(now_ns, client, message)

    def _problem(self) -> str:
        if not self.shards:
            return "this node has no control store"
        if len(self.asked) >= self.questions_max:
            return f"{self.questions_max} questions about placement groups have no answer; ask again later"
        return ""

    def job_over(self, now_ns: int, job_id: bytes) -> None:
        """A job has ended whose home this node is: so do its groups."""
        if self.shards:
            self._send(now_ns, b"", EndGroups(0, job_id))

    def _send(self, now_ns: int, client: Address, message: GroupRequest | EndGroups) -> None:
        self.tokens += 1
        numbered = replace(message, token=self.tokens)
        self.asked[self.tokens] = GroupQuestion(client, message.token, numbered)
        self.out.append((self.shards[0], numbered))
        if self.wake_at_ns is None:
            self.wake_at_ns = now_ns + RESEND_NS

    def on_answer(self, source: Address, message: GroupAnswer) -> None:
        """The coordinator answers."""
        question = self.asked.pop(message.token, None) if source == self.shards[0] else None
        if question is not None and question.client:
            self.out.append((question.client, replace(message, token=question.token)))
        if not self.asked:
            self.wake_at_ns = None

    def client_gone(self, client: Address) -> None:
        """A process is gone: nobody waits for its answers. What it asked for still happens."""
        for question in self.asked.values():
            if question.client == client:
                question.client = b""

    def repeat(self) -> None:
        """The coordinator is new, or was away."""
        self.out.extend((self.shards[0], question.message) for question in self.asked.values())

    def on_tick(self, now_ns: int) -> None:
        """Ask again."""
        if self.wake_at_ns is not None and self.wake_at_ns <= now_ns:
            self.wake_at_ns = now_ns + RESEND_NS
            self.repeat()

    def check(self) -> None:
        """What has no answer is asked again."""
        invariant(bool(self.asked) == (self.wake_at_ns is not None), "I6: questions without a clock")
