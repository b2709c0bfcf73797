"""Which driver shows what a worker printed: that of its job, on whichever node it is.

Lines for a driver of another node are posted to it (``couriers.py``): once and in order, and in front of the
result of the task that printed them. What was posted and is not acknowledged is bounded (I15): beyond that
lines are left out and counted, and the next that go out say how many. The worker's own file has everything.
"""

from __future__ import annotations

from collections import deque

from zray.core.couriers import Couriers
from zray.core.identity import ClientEntry
from zray.core.jobs import Job
from zray.core.machine import Address, Effect, invariant
from zray.protocol.actor_messages import OutputAway
from zray.protocol.messages import DRIVER
from zray.protocol.user_messages import STDERR, Output, Printed

UNACKED_CHARACTERS_MAX = 16 << 20
"""Of output on its way to one node."""


class _Outgoing:
    """Output on its way to one node."""

    __slots__ = ("characters", "left_out", "posts")

    def __init__(self) -> None:
        self.posts: deque[tuple[int, int]] = deque()  # number of the post, characters
        self.characters = 0
        self.left_out = 0  # lines


class OutputRelay:
    """The output of the workers of one node, and of other nodes for its drivers. Pure; shares its outbox.

    Args:
        out: the node's outbox.
        ip: what the workers of this node are shown to be at.
        clients: the processes of the node.
        jobs: by id.
        couriers: of the node.
    """

    def __init__(
        self, out: list[Effect], *, ip: str, clients: dict[Address, ClientEntry], jobs: dict[bytes, Job],
        couriers: Couriers,
    ) -> None:  # fmt: skip
        self.out = out
        self.ip = ip
        self.clients = clients
        self.jobs = jobs
        self.couriers = couriers
        self.outgoing: dict[Address, _Outgoing] = {}

    def on_output(self, source: Address, message: Output) -> None:
        """A worker printed: the driver of its job shows it, if it wants to."""
        client = self.clients.get(source)
        if client is None or client.worker is None:
            return
        job_id = client.worker.job_id
        printed = Printed(message.stream, message.name, client.pid, message.text, self.ip)
        job = self.jobs.get(job_id)
        if job is not None and job.home:
            self._post(job.home, job_id, printed)
        else:
            self._show(job_id, printed)

    def on_output_away(self, message: OutputAway) -> None:
        """A worker of another node printed, for a driver of this one."""
        self._show(message.job_id, message.printed)

    def _show(self, job_id: bytes, printed: Printed) -> None:
        for address, other in self.clients.items():
            if other.role == DRIVER and other.job_id == job_id and other.wants_output:
                self.out.append((address, printed))

    def _post(self, home: Address, job_id: bytes, printed: Printed) -> None:
        outgoing = self.outgoing.get(home)
        if outgoing is None:
            outgoing = self.outgoing[home] = _Outgoing()
        taken = self.couriers.progress(home)[1]
        while outgoing.posts and outgoing.posts[0][0] <= taken:
            outgoing.characters -= outgoing.posts.popleft()[1]
        if outgoing.characters > UNACKED_CHARACTERS_MAX:
            outgoing.left_out += printed.text.count("\n") + 1
            return
        if outgoing.left_out:
            text = f"[{outgoing.left_out} lines are left out: see the log files of the node]"
            outgoing.left_out = 0
            notice = Printed(STDERR, printed.name, printed.pid, text, self.ip)
            self.couriers.post(home, OutputAway(job_id, notice))
        self.couriers.post(home, OutputAway(job_id, printed))
        outgoing.posts.append((self.couriers.progress(home)[0], len(printed.text)))
        outgoing.characters += len(printed.text)

    def node_dead(self, node: Address) -> None:
        """Nobody is there any more."""
        self.outgoing.pop(node, None)

    def check(self) -> None:
        """What is on its way is counted."""
        for outgoing in self.outgoing.values():
            characters = sum(count for _, count in outgoing.posts)
            invariant(characters == outgoing.characters, "characters on their way", characters)
