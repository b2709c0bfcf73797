"""Messages between a GCS shard and the file that has its flushed rows. They never cross a socket.

Every request that is answered has a number; answers come in the order of the requests.
"""

from __future__ import annotations

from zray.protocol.base import Message
from zray.protocol.messages import TaskRecord


class FlushRows(Message, frozen=True, tag=230):
    """Write these rows, all or none; answered by ``RowsFlushed``."""

    number: int
    rows: tuple[TaskRecord, ...]


class RowsFlushed(Message, frozen=True, tag=231):
    """The rows are in the file; or none of them is, and why."""

    number: int
    error: str = ""


class ReadRows(Message, frozen=True, tag=232):
    """Read these rows, which are in the file; answered by ``RowsRead``."""

    number: int
    task_ids: tuple[bytes, ...]


class ReadRowPage(Message, frozen=True, tag=233):
    """Read up to ``limit`` rows above a key, in the order of keys; answered by ``RowsRead``."""

    number: int
    after: bytes
    limit: int


class RowsRead(Message, frozen=True, tag=234):
    """What was asked for, as it was when all earlier requests had been carried out."""

    number: int
    rows: tuple[TaskRecord, ...]


class DropRows(Message, frozen=True, tag=235):
    """These rows are not needed in the file any more. No answer: a row that stays is only in the way."""

    task_ids: tuple[bytes, ...]


class ClearRows(Message, frozen=True, tag=236):
    """The shard begins anew, and with it the file."""


ToRowFile = FlushRows | ReadRows | ReadRowPage | DropRows | ClearRows
FromRowFile = RowsFlushed | RowsRead
