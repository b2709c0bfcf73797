"""Which other nodes are alive, as one node sees it.

It decides nothing: one machine at the control store does (``membership.py``), and a node believes its newest
word. A node id names one life of a node, so the dead do not come back: their late words are dropped by id
(I9). A node that finds itself among the dead tells its process to begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zray.core.machine import RUNTIME, TRANSFER, Address, Effect, invariant
from zray.protocol.cluster import AskRawLink, BuriedAlive, LinkPeer, Members, OfferRawLink, UnlinkPeer


class Peers:
    """The other nodes. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node.
        shards: the address that serves each shard now; the first says who is alive, all of them are told.
        on_change: called once the other nodes are other than before.
        on_dead: called with each node that died.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        shards: Sequence[Address],
        on_change: Callable[[], None],
        on_dead: Callable[[Address], None],
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.shards = shards
        self.on_change = on_change
        self.on_dead = on_dead
        self.epoch = 0
        self.alive: dict[Address, str] = {}  # other nodes -> where they listen
        self.newest: Members | None = None
        self.buried = False

    def on_members(self, now_ns: int, source: Address, message: Members) -> None:
        """The control store says who is alive."""
        if source != self.shards[0] or message.epoch <= self.epoch or self.buried:
            return
        self.epoch = message.epoch
        alive = dict(message.nodes)
        if alive.pop(self.node_id, None) is None:
            self.buried = True
            self.out.append((RUNTIME, BuriedAlive()))
            return
        self.newest = message
        # The shards first: what is asked of them next presupposes that they know.
        self.out.extend((shard, message) for shard in self.shards)
        dead = [node for node in self.alive if node not in alive]
        born = [(node, endpoint) for node, endpoint in alive.items() if node not in self.alive]
        self.alive = alive
        self.out.extend((RUNTIME, LinkPeer(node, endpoint)) for node, endpoint in born)
        self.on_change()
        for node in dead:
            self.out.append((RUNTIME, UnlinkPeer(node)))
            self.on_dead(node)

    def remind(self, shard: Address) -> None:
        """A shard began a new life: it does not know who is alive."""
        if self.newest is not None:
            self.out.append((shard, self.newest))

    def on_ask_raw_link(self, now_ns: int, source: Address, message: AskRawLink) -> None:
        """The processes of two nodes arrange a connection: each hears what the other one says."""
        if source in self.alive:
            self.out.append((TRANSFER, AskRawLink(source)))
        elif source == RUNTIME and message.node_id in self.alive:
            self.out.append((message.node_id, AskRawLink(self.node_id)))

    def on_offer_raw_link(self, now_ns: int, source: Address, message: OfferRawLink) -> None:
        """The other half of it."""
        what = message.endpoint, message.ticket, message.receipt
        if source in self.alive:
            self.out.append((TRANSFER, OfferRawLink(source, *what)))
        elif source == RUNTIME and message.node_id in self.alive:
            self.out.append((message.node_id, OfferRawLink(self.node_id, *what)))

    def check(self) -> None:
        """A node is not its own peer."""
        invariant(self.node_id not in self.alive, "a node among its own peers")
