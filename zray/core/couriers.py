"""Posts between nodes: messages that arrive once and in order, whatever happens to links, while both
nodes live.

A post goes through the gate (``sharing.py``) like all that leaves a node, is numbered per pair of nodes,
and is kept until the other node has acknowledged it. A frame that a broken link took along is sent again,
from the oldest post on; what comes twice or too early is dropped. A node id names one life of a node, so
numbers never begin again (I9).

Invariant: the posts of one node are handled at another in the order in which they were posted, each once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from zray.core.machine import Address, Effect, invariant
from zray.core.sharing import Sharing
from zray.ids import short
from zray.protocol.actor_messages import Posted, PostTaken

RESEND_NS = 1_000_000_000
RESEND_POSTS_MAX = 256
"""Sent again at a time; the rest follows as these are acknowledged."""
STRANGER_PATIENCE_NS = 30_000_000_000
"""A node that was named before the table of the living had it may be in the next; one that is not is dead."""


class _PostStream:
    """The posts to and from one node."""

    __slots__ = ("heard", "numbered", "opened_ns", "owes_ack", "resend_at_ns", "unacked")

    def __init__(self, now_ns: int) -> None:
        self.opened_ns = now_ns
        self.numbered = 0
        self.unacked: deque[Posted] = deque()
        self.resend_at_ns = 0
        self.heard = 0  # every post up to this number was handled
        self.owes_ack = False


class Couriers:
    """The posts of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        sharing: its gate.
        on_post: handles what was posted to this node.
    """

    def __init__(
        self, out: list[Effect], *, sharing: Sharing, on_post: Callable[[int, Address, Any], None]
    ) -> None:
        self.out = out
        self.sharing = sharing
        self.on_post = on_post
        self.streams: dict[Address, _PostStream] = {}
        self.dead: dict[Address, None] = {}  # nodes that died in our time, the longest dead first
        self.now_ns = 0

    def post(self, node: Address, message: Any) -> None:
        """Say something to another node; to a dead one in vain."""
        if node in self.dead:
            return
        stream = self._stream(node)
        stream.numbered += 1
        posted = Posted(stream.numbered, message)
        if not stream.unacked:
            stream.resend_at_ns = self.now_ns + RESEND_NS
        stream.unacked.append(posted)
        self.sharing.depart(node, posted)

    def progress(self, node: Address) -> tuple[int, int]:
        """The numbers of the newest post to a node, and of the newest that it has acknowledged."""
        stream = self.streams.get(node)
        return (0, 0) if stream is None else (stream.numbered, stream.numbered - len(stream.unacked))

    def _stream(self, node: Address) -> _PostStream:
        stream = self.streams.get(node)
        if stream is None:
            stream = self.streams[node] = _PostStream(self.now_ns)
        return stream

    def on_posted(self, now_ns: int, source: Address, message: Posted) -> None:
        """Something was posted to this node; what comes beyond a gap comes again."""
        self.now_ns = now_ns
        stream = self._stream(source)
        stream.owes_ack = True
        if message.number == stream.heard + 1:
            stream.heard += 1
            self.on_post(now_ns, source, message.message)

    def on_post_taken(self, now_ns: int, source: Address, message: PostTaken) -> None:
        """Another node has handled posts of this one."""
        stream = self.streams.get(source)
        if stream is None:
            return
        progress = False
        while stream.unacked and stream.unacked[0].number <= message.number:
            stream.unacked.popleft()
            progress = True
        if progress:
            stream.resend_at_ns = now_ns + RESEND_NS

    def flush(self, now_ns: int) -> None:
        """Once per batch: acknowledge what came."""
        self.now_ns = now_ns
        for node, stream in self.streams.items():
            if stream.owes_ack:
                stream.owes_ack = False
                self.out.append((node, PostTaken(stream.heard)))

    @property
    def wake_at_ns(self) -> int | None:
        """When posts that were not acknowledged are sent again."""
        return min((stream.resend_at_ns for stream in self.streams.values() if stream.unacked), default=None)

    def on_tick(self, now_ns: int, alive: dict[Address, str]) -> None:
        """Repeat what is not acknowledged. While the gate holds anything back, that may be why."""
        self.now_ns = now_ns
        for node, stream in list(self.streams.items()):
            if not stream.unacked or stream.resend_at_ns > now_ns:
                continue
            stream.resend_at_ns = now_ns + RESEND_NS
            if node not in alive and now_ns - stream.opened_ns > STRANGER_PATIENCE_NS:
                del self.streams[node]
            elif not self.sharing.gate:
                self.out.extend((node, posted) for posted in islice(stream.unacked, RESEND_POSTS_MAX))

    def node_dead(self, node: Address, dead_max: int) -> None:
        """Nobody is there any more."""
        self.streams.pop(node, None)
        self.dead[node] = None
        if len(self.dead) > dead_max:
            del self.dead[next(iter(self.dead))]

    def check(self) -> None:
        """What waits is numbered without a gap; the dead are owed nothing."""
        for node, stream in self.streams.items():
            invariant(node not in self.dead, "posts to a dead node", short(node))
            numbers = [posted.number for posted in stream.unacked]
            expected = list(range(stream.numbered - len(numbers) + 1, stream.numbered + 1))
            invariant(numbers == expected, "posts to", short(node), numbers[:10])
