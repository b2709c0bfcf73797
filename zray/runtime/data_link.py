"""The bytes of large objects between nodes, on a socket of their own: they never delay a control message.

The service behind ``TRANSFER``. What it reads and where it writes was decided by ``core/transfers.py``; it
copies in the loop's thread, before anything else happens to the memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from zray.core.machine import Address
from zray.protocol.cluster import Chunk, ChunkArrived, ReceiveInto, SendChunk
from zray.protocol.messages import FILE
from zray.runtime.chunk_transport import ChunkTransport
from zray.runtime.endpoints import beside
from zray.store.arena import ArenaView
from zray.store.spill import SpillDirectory, SpillFile

DATA_SUFFIX = b"~"
"""The routing id of a node's data socket is the node's and this."""


class _Room:
    """Where the chunks of one object belong, and how many bytes are still to come."""

    __slots__ = ("file", "left", "offset", "size")

    def __init__(self, offset: int, size: int, file: SpillFile | None) -> None:
        self.offset, self.size, self.left, self.file = offset, size, size, file


class DataLink:
    """Send and receive chunks.

    Args:
        node_id: of this node.
        transport: a socket of its own, bound at :func:`beside`.
        view, files: the memory and the spill directory of this node.
        post: told of every chunk that is written.
    """

    def __init__(
        self,
        node_id: bytes,
        transport: ChunkTransport,
        view: ArenaView,
        files: SpillDirectory,
        post: Callable[[ChunkArrived], None],
    ) -> None:
        self.node_id = node_id
        self.transport = transport
        self.view = view
        self.files = files
        self.post = post
        self.rooms: dict[bytes, _Room] = {}

    def link(self, node_id: Address, endpoint: str) -> None:
        """Reach another node. One of two connects, and both can send."""
        if self.node_id < node_id:
            self.transport.connect(node_id + DATA_SUFFIX, beside(endpoint))

    def unlink(self, node_id: Address) -> None:
        """A node is dead."""
        self.transport.disconnect(node_id + DATA_SUFFIX)

    def serve(self, messages: list[Any]) -> None:
        """Carry out what the machine asks for."""
        for message in messages:
            if isinstance(message, SendChunk):
                chunk = Chunk(message.object_id, message.start)
                self.transport.send_chunk(message.node_id + DATA_SUFFIX, chunk, self._read(message))
            elif isinstance(message, ReceiveInto):
                self._prepare(message)
        self.drain()  # a send may have swallowed the signal that something can be read

    def _read(self, chunk: SendChunk) -> memoryview | bytes:
        if chunk.kind != FILE:
            return self.view.read(chunk.offset + chunk.start, chunk.size, _nothing)
        fd = os.open(self.files.path_of(chunk.object_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, chunk.size, chunk.start)
        finally:
            os.close(fd)

    def _prepare(self, room: ReceiveInto) -> None:
        former = self.rooms.pop(room.object_id, None)
        if former is not None and former.file is not None:
            former.file.abort()  # does nothing to a file that is complete
        if room.size:
            file = self.files.create(room.object_id, room.size) if room.kind == FILE else None
            self.rooms[room.object_id] = _Room(room.offset, room.size, file)

    def drain(self) -> None:
        """Write the chunks that have come where they belong; those that nobody waits for go nowhere."""
        while (found := self.transport.receive_chunk()) is not None:
            _, chunk, data = found
            room = self.rooms.get(chunk.object_id)
            if room is not None and 0 <= chunk.start <= chunk.start + len(data) <= room.size:
                self._write(room, chunk, data)

    def _write(self, room: _Room, chunk: Chunk, data: memoryview) -> None:
        if room.file is None:
            extent = (room.offset, room.offset + room.size)
            self.view.copy_in(room.offset + chunk.start, data, extent)
        else:
            room.file.copy_in(chunk.start, data)
        room.left -= len(data)
        if room.left <= 0 and room.file is not None:
            room.file.seal()
        self.post(ChunkArrived(chunk.object_id, chunk.start, len(data)))


def _nothing() -> None:
    pass
