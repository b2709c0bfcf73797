"""What every log of a shard is: checksummed records, acknowledged when they are stored, found again in order.

Layout of a record; all numbers are little endian::

    | u32: payload bytes | u32: CRC-32 of the payload | u32: CRC-32 of the 8 bytes before | payload |
"""

from __future__ import annotations

import errno
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from zlib import crc32

from zray.errors import ZrayError

MAGIC = b"zraylog1"
RECORD_BYTES_MAX = 0xFFFF_FFFF
HEADER = struct.Struct("<III")
NUMBERS = struct.Struct("<II")


class LogError(ZrayError):
    """Base of what can go wrong with a log, with its place: the path of a file, or a server and a key."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path, self.detail = path, detail


class LogUnavailableError(LogError):
    """The place cannot be used: not writable, no room, not there, or another process has it."""


class LogCorruptError(LogError):
    """Intact records follow damaged bytes, or this is not a log at all."""

    def __init__(self, path: str, offset: int, detail: str) -> None:
        super().__init__(path, detail)
        self.offset = offset


class LogWriteError(LogError):
    """A record could not be written; nothing that depends on it may be acknowledged."""


class RecordLog(ABC):
    """The log of one process. Call :meth:`replay` to its end before the first :meth:`append`.

    Args:
        path: its place, for messages.
        compact_bytes: growth since the last snapshot after which :attr:`wants_compaction` is true. It
            never is before the log has doubled, so that rewriting costs at most as much as writing.
    """

    record_bytes_max = RECORD_BYTES_MAX
    """Of one payload."""

    def __init__(self, path: str, compact_bytes: int) -> None:
        self.path = path
        self.compact_bytes = compact_bytes
        self.size_bytes = 0
        self._snapshot_bytes = 0  # unknown: all of it counts as growth until the first compaction

    @property
    def wants_compaction(self) -> bool:
        """Whether the log has grown enough beyond its last snapshot to be rewritten."""
        growth_bytes = self.size_bytes - self._snapshot_bytes
        return growth_bytes >= max(self.compact_bytes, self._snapshot_bytes)

    @abstractmethod
    def replay(self) -> Iterator[bytes | memoryview]:
        """Every payload in order, valid until the next one is asked for.

        Raises:
            LogCorruptError: if an acknowledged record is damaged.
        """

    @abstractmethod
    def append(self, payload: bytes) -> None:
        """Store one record.

        Raises:
            LogWriteError: if it is not stored; the caller must not go on as if it were.
        """

    @abstractmethod
    def compact(self, payloads: Iterable[bytes]) -> bool:
        """Replace the whole log by these records, at once.

        False, logged, and the old log goes on, if that cannot be done now; then the next try is after as
        much growth again.

        Raises:
            LogWriteError: if it is not known which of the two logs is there.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the log."""


def encode_record(payload: bytes) -> bytes:
    """A payload with its header.

    Raises:
        OSError: if it is larger than a record can be.
    """
    if len(payload) > RECORD_BYTES_MAX:
        raise OSError(errno.EFBIG, "larger than a record can be")
    numbers = NUMBERS.pack(len(payload), crc32(payload))
    return b"".join((numbers, crc32(numbers).to_bytes(4, "little"), payload))


def payload_of(record: bytes) -> bytes | None:
    """What :func:`encode_record` was given; ``None`` if the record is damaged."""
    if len(record) < HEADER.size:
        return None
    length, check, header_check = HEADER.unpack_from(record)
    payload = record[HEADER.size :]
    intact = len(payload) == length and crc32(record[: NUMBERS.size]) == header_check
    return payload if intact and crc32(payload) == check else None
