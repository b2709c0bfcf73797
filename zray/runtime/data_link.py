"""The bytes of large objects between nodes, beside the control link: they never delay a control message.

The service behind ``TRANSFER``. What is read and where it is written was decided by ``core/transfers.py``.
Chunks go over the *raw link* to the other node (``raw_links.py``) where both nodes let them travel in the
clear; otherwise, or while there is none, over a ZeroMQ socket, copied in the loop's thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from zray.core.machine import Address
from zray.errors import OutOfDiskError
from zray.protocol.cluster import (
    AskRawLink,
    Chunk,
    ChunkArrived,
    ChunkSent,
    OfferRawLink,
    ReceiveInto,
    SendChunk,
)
from zray.protocol.messages import FILE
from zray.runtime.chunk_transport import ChunkTransport
from zray.runtime.endpoints import beside
from zray.runtime.raw_links import RawLinks
from zray.runtime.rooms import Rooms
from zray.store.arena import ArenaView
from zray.store.spill import SpillDirectory

log = logging.getLogger("zray.transfer")

DATA_SUFFIX = b"~"
"""The routing id of a node's data socket is the node's and this."""
ASK_AGAIN_S = 1.0
"""How long a node that misses a raw link waits before it asks for it once more."""


class DataLink:
    """Send and receive chunks.

    Args:
        node_id: of this node.
        transport: a socket of its own, bound at :func:`beside`.
        view, files: the memory and the spill directory of this node.
        rooms: where what comes belongs.
        raw_links: ``None`` if chunks must not travel in the clear.
        post: told, in the loop's thread, what the machine has to hear.
    """

    def __init__(
        self,
        node_id: bytes,
        transport: ChunkTransport,
        view: ArenaView,
        files: SpillDirectory,
        rooms: Rooms,
        raw_links: RawLinks | None,
        post: Callable[[Any], None],
    ) -> None:
        self.node_id = node_id
        self.transport = transport
        self.view = view
        self.files = files
        self.rooms = rooms
        self.raw_links = raw_links
        self.post = post
        self._asked: dict[Address, float] = {}  # for a raw link -> when; who declined is never asked again

    def link(self, node_id: Address, endpoint: str) -> None:
        """Reach another node. One of two connects, and both can send."""
        if self.node_id < node_id:
            self.transport.connect(node_id + DATA_SUFFIX, beside(endpoint))
            self._miss_link(node_id)

    def unlink(self, node_id: Address) -> None:
        """A node is dead."""
        self.transport.disconnect(node_id + DATA_SUFFIX)
        self._asked.pop(node_id, None)
        if self.raw_links is not None:
            self.raw_links.drop(node_id)

    def close(self) -> None:
        """End what has a thread."""
        if self.raw_links is not None:
            self.raw_links.close()

    def serve(self, messages: list[Any]) -> None:
        """Carry out what the machine asks for."""
        for message in messages:
            if isinstance(message, SendChunk):
                self._send(message)
            elif isinstance(message, ReceiveInto):
                self._prepare(message)
            elif isinstance(message, AskRawLink):
                self.post(self._offer(message.node_id))
            elif isinstance(message, OfferRawLink):
                self._take(message)
        self.drain()  # a send may have swallowed the signal that something can be read

    # --- raw links -----------------------------------------------------------------------------------

    def _miss_link(self, peer: Address) -> None:
        """There is no raw link to another node (any more). One of two asks for it."""
        if self.raw_links is None or self.node_id > peer:
            return
        now = time.monotonic()
        if self._asked.get(peer, now) <= now:
            self._asked[peer] = now + ASK_AGAIN_S
            self.post(AskRawLink(peer))

    def _offer(self, peer: Address) -> OfferRawLink:
        if self.raw_links is not None:
            try:
                return self.raw_links.offer(peer)
            except OSError as error:
                log.warning("nobody can connect for chunks: %s", error)
        return OfferRawLink(peer, "", b"", b"")

    def _take(self, offer: OfferRawLink) -> None:
        if not offer.endpoint:
            self._asked[offer.node_id] = float("inf")
        elif self.raw_links is not None and self.node_id < offer.node_id:
            self.raw_links.dial(offer)

    # --- going -------------------------------------------------------------------------------------

    def _send(self, chunk: SendChunk) -> None:
        if self.raw_links is not None and self.raw_links.reaches(chunk.node_id):
            self.raw_links.send(chunk)
            return
        self._miss_link(chunk.node_id)
        try:
            data = self._read(chunk)
        except FileNotFoundError:  # deleted since: who asks once more is told
            data = None
        if data is not None:
            head = Chunk(chunk.object_id, chunk.start)
            self.transport.send_chunk(chunk.node_id + DATA_SUFFIX, head, data)
        self.post(ChunkSent(chunk.node_id, chunk.object_id, chunk.start))

    def _read(self, chunk: SendChunk) -> memoryview | bytes:
        if chunk.kind != FILE:
            return self.view.read(chunk.offset + chunk.start, chunk.size, _nothing)
        fd = os.open(self.files.path_of(chunk.object_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, chunk.size, chunk.start)
        finally:
            os.close(fd)

    # --- coming ------------------------------------------------------------------------------------

    def _prepare(self, room: ReceiveInto) -> None:
        if not room.size:
            self.rooms.close(room.object_id)
            return
        try:
            self.rooms.open(room.object_id, room.offset, room.size, in_file=room.kind == FILE)
        except OutOfDiskError as error:  # what comes goes nowhere; the machine says it again
            log.warning("a copy of %s waits: %s", room.object_id.hex(), error)

    def drain(self) -> None:
        """Write the chunks that have come where they belong; those that nobody waits for go nowhere."""
        while (found := self.transport.receive_chunk()) is not None:
            source, chunk, data = found
            self._miss_link(source.removesuffix(DATA_SUFFIX))
            try:
                self._write(chunk, data)
            except OutOfDiskError as error:  # the machine asks for it once more
                log.warning("bytes of %s are lost: %s", chunk.object_id.hex(), error)

    def _write(self, chunk: Chunk, data: memoryview) -> None:
        """
        Raises:
            OutOfDiskError: if memory, or the disk, is used up.
        """
        room, size = self.rooms.find(chunk.object_id), len(data)
        if room is not None and room.holds(chunk.start, size) and room.copy_in(chunk.start, data):
            room.complete(chunk.start, size)
            self.post(ChunkArrived(chunk.object_id, chunk.start, size))


def _nothing() -> None:
    pass
