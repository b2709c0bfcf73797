"""Links between simulated processes: ordered and reliable while both ends live, as ZeroMQ's are.

A frame leaves when the link is free, takes its size over the bandwidth and a drawn latency, and never
overtakes an earlier one of the same link. A link can be *clogged* (everything waits), *partitioned* (what
is sent waits, like behind a cable that is out) or *disconnected*: what is in flight is lost; what is sent
meanwhile waits at the side that connects, and is dropped at the side that is bound and has no route
(``ROUTER_MANDATORY``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from sim.kernel import Kernel
from zray.core.machine import Address
from zray.protocol.actor_messages import ToActorNode
from zray.protocol.chain import ToMaster, ToReplica
from zray.protocol.cluster import OnDataLink, ToClusterNode, ToDirectory, ToScheduler
from zray.protocol.codec import BATCH_MESSAGES_MAX, batch_decoder, encode_batch
from zray.protocol.group_messages import ToCoordinator, ToGroupNode
from zray.protocol.messages import ToNode, ToProcess

_decode = batch_decoder(
    ToNode | ToProcess | ToReplica | ToMaster | ToClusterNode | ToActorNode | ToDirectory | ToScheduler
    | OnDataLink
    | ToGroupNode | ToCoordinator
)  # fmt: skip

Receiver = Callable[[Address, list[Any]], None]


class LinkQuality(NamedTuple):
    """How good the links between processes are."""

    latency_ns: int = 30_000
    jitter_ns: int = 20_000
    """Mean of the exponential part of the latency."""
    bandwidth_bytes_per_s: int = 2_000_000_000


class Link:
    """One direction between two addresses."""

    __slots__ = (
        "arrived", "clogged_until_ns", "destination", "flying", "free_ns", "held", "is_open", "is_up",
        "last_ns", "lost_from", "lost_to", "sent", "source", "waits_when_down",
    )  # fmt: skip

    def __init__(self, source: Address, destination: Address) -> None:
        self.source = source
        self.destination = destination
        self.free_ns = 0  # when the last bit of the last frame is on the wire
        self.last_ns = 0  # arrival of the last frame
        self.clogged_until_ns = 0
        self.sent = 0
        self.arrived = 0  # frames that arrived or were lost
        self.lost_from = 1  # frames with these numbers are lost, both ends included
        self.lost_to = 0
        self.is_up = True
        self.is_open = True  # False: partitioned, in this direction
        self.waits_when_down = True
        self.flying: deque[tuple[list[Any], bytes]] = deque()  # in the order in which they arrive
        self.held: deque[list[Any]] = deque()


class Network:
    """All links of a cluster.

    Args:
        kernel: the clock.
        quality: of every link.
        strict: every frame is decoded again, so that no object is shared between processes.
    """

    def __init__(self, kernel: Kernel, quality: LinkQuality, *, strict: bool) -> None:
        self.kernel = kernel
        self.quality = quality
        self.strict = strict
        self.random = kernel.stream("network")
        self.receivers: dict[Address, Receiver] = {}
        self.links: dict[tuple[Address, Address], Link] = {}
        self.links_from: dict[Address, list[Link]] = {}
        self.links_to: dict[Address, list[Link]] = {}
        self.messages = 0
        self.frames = 0
        self.bytes = 0
        self.lost_frames = 0
        self.watch: Callable[[Link, list[Any]], None] | None = None
        """Told of every frame that leaves."""

    def attach(self, address: Address, receiver: Receiver) -> None:
        """A process is there."""
        self.receivers[address] = receiver

    def link(self, source: Address, destination: Address) -> Link:
        """The link from one address to another."""
        link = self.links.get((source, destination))
        if link is None:
            link = self.links[source, destination] = Link(source, destination)
            self.links_from.setdefault(source, []).append(link)
            self.links_to.setdefault(destination, []).append(link)
        return link

    # --- sending -----------------------------------------------------------------------------------

    def send(
        self, source: Address, destination: Address, messages: list[Any], depart_ns: int, weight: int = 0
    ) -> None:
        """Send a batch in order, in as few frames as the real transport does.

        ``weight``: bytes that the frame stands for beyond those that are encoded.
        """
        if weight:
            link = self.link(source, destination)
            link.free_ns = max(link.free_ns, depart_ns)
            link.free_ns += weight * 1_000_000_000 // self.quality.bandwidth_bytes_per_s
            self.bytes += weight
        link = self.links.get((source, destination)) or self.link(source, destination)
        if len(messages) <= BATCH_MESSAGES_MAX:
            self._send_part(link, messages, depart_ns)
            return
        for start in range(0, len(messages), BATCH_MESSAGES_MAX):
            self._send_part(link, messages[start : start + BATCH_MESSAGES_MAX], depart_ns)

    def _send_part(self, link: Link, messages: list[Any], depart_ns: int) -> None:
        if link.is_up and link.is_open:
            self._launch(link, messages, depart_ns)
        elif link.waits_when_down or link.is_up:
            link.held.append(messages)
        else:
            self.lost_frames += 1

    def _launch(self, link: Link, messages: list[Any], depart_ns: int) -> None:
        encoded = encode_batch(messages)
        quality = self.quality
        start_ns = max(depart_ns, link.free_ns, link.clogged_until_ns)
        link.free_ns = start_ns + len(encoded) * 1_000_000_000 // quality.bandwidth_bytes_per_s
        latency_ns = quality.latency_ns
        if quality.jitter_ns:
            latency_ns += int(self.random.expovariate(1.0) * quality.jitter_ns)
        link.last_ns = max(link.last_ns, link.free_ns + latency_ns)
        link.sent += 1
        link.flying.append((messages, encoded))
        self.kernel.at(link.last_ns, self._arrive, link)
        if self.watch is not None:
            self.watch(link, messages)

    def _arrive(self, link: Link) -> None:
        """The first frame of those in flight is there."""
        if link.clogged_until_ns > self.kernel.now_ns:  # clogged while it was on its way
            link.last_ns = max(link.last_ns, link.clogged_until_ns)
            self.kernel.at(link.clogged_until_ns, self._arrive, link)
            return
        messages, encoded = link.flying.popleft()
        link.arrived += 1
        receiver = self.receivers.get(link.destination)
        if receiver is None or link.lost_from <= link.arrived <= link.lost_to:
            self.lost_frames += 1
            return
        self.frames += 1
        self.messages += len(messages)
        self.bytes += len(encoded)
        self.kernel.note_delivery(link.destination, encoded)
        receiver(link.source, _decode(encoded) if self.strict else messages)

    # --- faults ------------------------------------------------------------------------------------

    def clog(self, link: Link, until_ns: int) -> None:
        """Nothing arrives over this link before ``until_ns``."""
        link.clogged_until_ns = max(link.clogged_until_ns, until_ns)

    def partition(self, link: Link) -> None:
        """What is sent from now on waits until :meth:`heal`."""
        link.is_open = False

    def heal(self, link: Link) -> None:
        """Take :meth:`partition` back."""
        link.is_open = True
        self._release(link)

    def disconnect(self, link: Link, *, waits: bool) -> None:
        """What is in flight is lost; what is sent before :meth:`connect` waits, or is lost too."""
        link.is_up = False
        link.waits_when_down = waits
        self._lose(link, link.arrived + 1)

    def connect(self, link: Link) -> None:
        """The two ends have found each other again."""
        link.is_up = True
        self._release(link)

    def _release(self, link: Link) -> None:
        while link.held and link.is_up and link.is_open:
            self._launch(link, link.held.popleft(), self.kernel.now_ns)

    def detach(self, address: Address) -> None:
        """A process is gone for good. Of what it sent last a drawn part was still in its own memory."""
        self.receivers.pop(address, None)
        for link in self.links_from.pop(address, ()):
            if link.sent > link.arrived:
                self._lose(link, self.random.randint(link.arrived + 1, link.sent + 1))
            del self.links[link.source, link.destination]
            others = self.links_to.get(link.destination)
            if others is not None:
                others.remove(link)
        for link in self.links_to.pop(address, ()):
            if self.links.pop((link.source, link.destination), None) is not None:
                self.links_from[link.source].remove(link)

    def cut_off(self, address: Address) -> None:
        """A process is gone and may come back: what was on the way to it or from it is lost."""
        for link in self.links_to.get(address, ()):
            self.disconnect(link, waits=True)
        for link in self.links_from.get(address, ()):
            self.disconnect(link, waits=False)

    def lose_last(self, link: Link) -> None:
        """What was sent last over a link does not arrive, as its sender dies."""
        self._lose(link, link.sent)

    def _lose(self, link: Link, first: int) -> None:
        """The frames from ``first`` on that are in flight do not arrive."""
        link.lost_from, link.lost_to = first, link.sent
