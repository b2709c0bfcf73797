"""A transport whose messages are chunks: the bytes of each come in a frame of their own behind its batch.

So they are copied once on either side, into the frame and out of it, and no codec ever looks at them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import zmq

from zray.core.machine import Address
from zray.errors import RemoteProtocolError
from zray.protocol.cluster import Chunk, OnDataLink
from zray.protocol.codec import batch_decoder, encode_batch
from zray.runtime.transport import Transport

_NOBLOCK, _NOBLOCK_AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)

decode_chunks = batch_decoder(OnDataLink)


class _ChunkFrames(NamedTuple):
    """What follows the routing id of a chunk."""

    head: bytes
    data: memoryview | bytes


class ChunkTransport(Transport):
    """Send and receive chunks over one ROUTER socket; otherwise a :class:`Transport`."""

    def send_chunk(self, address: Address, chunk: Chunk, data: memoryview | bytes) -> None:
        """Queue one chunk to a peer; once this returns, ``data`` may change."""
        frames: Any = _ChunkFrames(encode_batch([chunk]), data)
        if self._send_delay_ns or self._backlog.get(address) or not self._try_send(address, frames):
            self._send_frame(address, frames._replace(data=bytes(data)))

    def _write(self, routing_id: bytes, frame: Any) -> None:
        if not isinstance(frame, _ChunkFrames):
            super()._write(routing_id, frame)
            return
        self._socket.send(routing_id, _NOBLOCK_AND_MORE)
        self._socket.send(frame.head, _NOBLOCK_AND_MORE)
        self._socket.send(frame.data, _NOBLOCK)

    def receive_chunk(self) -> tuple[Address, Chunk, memoryview] | None:
        """The next chunk that has come, its sender first; ``None`` if there is none just now.

        What is no chunk is answered by ``Refused``, logged and passed by.
        """
        if self._backlog:
            self.retry_backlog()
        while self.readable():
            try:
                parts: list[Any] = self._socket.recv_multipart(_NOBLOCK, copy=False)
            except zmq.Again:
                break
            source = self._addresses.get(parts[0].bytes, parts[0].bytes)
            try:
                return source, _chunk_of(parts), parts[2].buffer
            except RemoteProtocolError as error:
                self._refuse(source, error)
        return None


def _chunk_of(parts: list[Any]) -> Chunk:
    """
    Raises:
        RemoteProtocolError: if these frames are not a routing id, a batch of one chunk, and its bytes.
    """
    if len(parts) != 3:
        raise RemoteProtocolError(f"{len(parts) - 1} frames where a chunk has two")
    batch = decode_chunks(parts[1].bytes)
    if len(batch) != 1 or not isinstance(batch[0], Chunk):
        raise RemoteProtocolError("a batch that is not one chunk")
    return batch[0]
