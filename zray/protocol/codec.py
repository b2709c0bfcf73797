"""Bytes on the wire: one frame is one batch, a msgpack array of tagged arrays.

One frame per batch, never one per message: batching inside a frame costs a fifth of a frame each
(``docs/decisions/0003``). A frame that does not decode raises ``RemoteProtocolError`` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zray.errors import RemoteProtocolError
from zray.protocol import actor_messages, cluster, group_messages, messages

BATCH_MESSAGES_MAX = 1024
"""Messages a sender puts in one frame; a receiver takes any number that fits the frame limit."""

_encoder = msgspec.msgpack.Encoder()

encode_batch: Callable[[Sequence[Any]], bytes] = _encoder.encode
"""Messages -> one frame."""


def batch_decoder(accepted: Any) -> Callable[[bytes], list[Any]]:
    """A function from one frame to its messages, which must all be of the union ``accepted``.

    Raises:
        RemoteProtocolError: if the frame is not such a batch.
    """
    decode = msgspec.msgpack.Decoder(list[accepted]).decode

    def decode_batch(frame: bytes) -> list[Any]:
        try:
            return decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"not a batch of this link ({error}); {len(frame)} bytes") from None

    return decode_batch


decode_for_node = batch_decoder(
    messages.ToNode | cluster.ToClusterNode | actor_messages.ToActorNode | group_messages.ToGroupNode
)
decode_for_gcs = batch_decoder(
    messages.ToGcs | cluster.ToDirectory | cluster.ToScheduler | group_messages.ToCoordinator
)
decode_for_process = batch_decoder(messages.ToProcess | group_messages.GroupAnswer)
