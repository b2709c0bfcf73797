"""The file of a recorded process: every batch that its machines were pumped with, and what came out.

Layout: eight bytes of magic, then records. All numbers are little endian::

    | u32: payload bytes | u32: CRC-32 of the payload | u32: CRC-32 of the 8 bytes before | payload |

A payload is one msgpack array of :data:`Record`. The first record is a :class:`TraceStart`, which has all
that is needed to build the same machines again; what follows is in the order in which it happened. A trace
that ends in the midst of a record is *torn*: its process was killed, and what is whole counts. Damage
anywhere else is an error, because a replay of the rest would mean nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any
from zlib import crc32

import msgspec

from zray.errors import ZrayError
from zray.protocol.messages import Demand
from zray.protocol.strategies import Labels

MAGIC = b"zraytrc1"
DIGEST_BYTES = 16
RECORD_BYTES_MAX = 1 << 30

_HEADER = struct.Struct("<III")
_NUMBERS = struct.Struct("<II")

Batch = Sequence[tuple[bytes, Any]]


class TraceError(ZrayError):
    """A trace cannot be used: which file, what is wrong with it, and what to do."""


class TraceDamagedError(TraceError):
    """Bytes in the midst of a trace are not what was written."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(f"damaged at byte {offset}: {detail}; record the run again")
        self.offset, self.detail = offset, detail


class _Record(msgspec.Struct, frozen=True, array_like=True):
    pass


class NodeStart(_Record, frozen=True, tag="node"):
    """The arguments of a ``Node``."""

    node_id: bytes
    incarnation: int
    arena_bytes: int
    pid: int
    host: str
    endpoint: str
    arena_path: str
    spill_dir: str
    total: Demand
    shards: tuple[bytes, ...]
    replicas: tuple[tuple[bytes, ...], ...] = ()
    labels: Labels = ()


class ShardStart(_Record, frozen=True, tag="shard"):
    """The arguments of a ``ControlShard``; ``restored`` is the log that it was recovered from, as a batch."""

    cluster_id: bytes
    shard: int
    shard_count: int
    restored: msgspec.Raw


class GlobalStart(_Record, frozen=True, tag="global"):
    """The arguments of a ``GlobalScheduler``."""

    policy: str
    seed: int
    returning: bool = False


class DirectoryStart(_Record, frozen=True, tag="directory"):
    """An ``ObjectDirectory`` beside the shard before it."""


class MembershipStart(_Record, frozen=True, tag="membership"):
    """A ``Membership`` beside the shard before it, which has the address ``store``."""

    store: bytes


class GroupsStart(_Record, frozen=True, tag="groups"):
    """A ``PlacementGroups`` beside the shard before it, which has the address ``store``."""

    store: bytes


MachineStart = NodeStart | ShardStart | GlobalStart | DirectoryStart | MembershipStart | GroupsStart


class TraceStart(_Record, frozen=True, tag="start"):
    """What is needed to make the machines of the process again, and where they ran."""

    zray: str
    protocol: int
    code: str
    commit: str
    host: str
    pid: int
    started: str  # time of day, UTC
    config: dict[str, Any]
    machines: tuple[MachineStart, ...]


class Booted(_Record, frozen=True, tag="boot"):
    """A node introduced itself and asked for its first workers, before the first pump."""

    now_ns: int
    workers: int


class Pumped(_Record, frozen=True, tag="pump"):
    """One pump of one machine: what went in, how many effects came out, and their digest."""

    machine: int
    now_ns: int
    batch: msgspec.Raw
    effects: int
    digest: bytes


class TraceEnd(_Record, frozen=True, tag="end"):
    """The recording ended, which says nothing about its process."""

    reason: str


Record = TraceStart | Booted | Pumped | TraceEnd

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def digest_of(effects: Batch) -> bytes:
    """What a machine put into its outbox, in order, in 16 bytes."""
    return blake2b(encode(effects), digest_size=DIGEST_BYTES).digest()


def frame(record: _Record) -> bytes:
    """A record as it is written."""
    payload = encode(record)
    numbers = _NUMBERS.pack(len(payload), crc32(payload))
    return b"".join((numbers, crc32(numbers).to_bytes(4, "little"), payload))


def batch_decoder_of(handlers: dict[type, Any]) -> Callable[[msgspec.Raw], list[tuple[bytes, Any]]]:
    """A function from the batch of a record to ``(source, message)`` pairs of the types in ``handlers``."""
    accepted: Any = None
    for kind in handlers:
        accepted = kind if accepted is None else accepted | kind
    return msgspec.msgpack.Decoder(list[tuple[bytes, accepted]]).decode


class TraceReader:
    """The records of a trace.

    Attributes:
        torn_bytes: how much of an unfinished record was at the end; known after the last record.
    Args:
        content: the whole file.
    Raises:
        TraceError: if it is not a trace.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self.torn_bytes = 0
        if bytes(self._content[: len(MAGIC)]) != MAGIC:
            raise TraceError(
                "this is not a trace of zray; record one with zray.init(trace=...) or zray-node --trace"
            )

    def __iter__(self) -> Iterator[Record]:
        """Every whole record, in order.

        Raises:
            TraceDamagedError: if one is not what was written.
        """
        content, offset = self._content, len(MAGIC)
        while offset < len(content):
            payload = self._payload(offset)
            if payload is None:
                self.torn_bytes = len(content) - offset
                return
            try:
                record = _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TraceDamagedError(offset, f"not a record of this version ({error})") from None
            yield record
            offset += _HEADER.size + len(payload)

    def _payload(self, offset: int) -> memoryview | None:
        """The payload of the record at ``offset``; ``None``: it was not written to its end."""
        content = self._content
        if offset + _HEADER.size > len(content):
            return None
        length, check, header_check = _HEADER.unpack_from(content, offset)
        if crc32(content[offset : offset + _NUMBERS.size]) != header_check:
            if not any(content[offset:]):  # a file system may leave zeros where nothing was written
                return None
            raise TraceDamagedError(offset, "no record starts here")
        payload = content[offset + _HEADER.size : offset + _HEADER.size + length]
        if len(payload) < length:
            return None
        if crc32(payload) != check:
            raise TraceDamagedError(offset, "the checksum of a record does not match")
        return payload
