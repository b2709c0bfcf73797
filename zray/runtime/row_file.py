"""The file that has the flushed rows of one shard: a SQLite database that nobody else can open.

It is memory that happens to be on a disk, not a record of anything: it has no name, so it ends with its
process however that ends, and nothing waits until the disk has it. What must survive is in the log. Every
row carries a checksum over its key and value, and a row that was asked for and is not there as it was written
ends the process: a shard that starts again builds a new file from its log, and a guess would lose lineage.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec

from zray.errors import ZrayError
from zray.protocol.documents import encode_value
from zray.protocol.flushing import (
    ClearRows,
    DropRows,
    FlushRows,
    ReadRowPage,
    ReadRows,
    RowsFlushed,
    RowsRead,
)
from zray.protocol.messages import TaskRecord

log = logging.getLogger("zray.rows")

CHECK_BYTES = 4
CACHE_KIB = 4096
VACUUM_PAGES = 2_048
"""Pages that are given back to the disk at once: eight megabytes, some ten milliseconds."""
PAGES_MIN = 256
GARBAGE_SHARE = 0.25
"""Unused pages beyond this share of the file, and that many, are given back."""

_decode = msgspec.msgpack.Decoder(TaskRecord).decode

_SETTINGS = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = MEMORY",  # a write that fails half-way is taken back
    "PRAGMA synchronous = OFF",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
)


class RowFileError(ZrayError):
    """Flushed rows cannot be kept in a directory, or cannot be read back."""

    def __init__(self, directory: str, detail: str) -> None:
        super().__init__(f"flushed task rows in {directory}: {detail}")
        self.directory, self.detail = directory, detail

    def __reduce__(self) -> tuple[type[RowFileError], tuple[str, str]]:
        return RowFileError, (self.directory, self.detail)


class RowFile:
    """The rows of one shard. For one thread.

    Args:
        directory: where the file is; made if it is missing, but not what it is in (see ``AppendLog``).
            Empty: where temporary files are.
        bytes_max: the file grows no further; 0: until the disk is full.
    Raises:
        RowFileError: if there can be none.
    """

    def __init__(self, directory: str = "", bytes_max: int = 0) -> None:
        self.directory = directory or tempfile.gettempdir()
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory)
            fd, path = tempfile.mkstemp(".rows", "zray-", self.directory)
            os.close(fd)
        except OSError as error:
            raise RowFileError(self.directory, f"no file can be made: {error.strerror}") from error
        try:
            self._rows = sqlite3.connect(path, isolation_level=None)
            for setting in _SETTINGS:
                self._rows.execute(setting).fetchall()
            if bytes_max:
                pages = max(1, bytes_max // self._number("page_size"))
                self._rows.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        except sqlite3.Error as error:
            raise RowFileError(self.directory, f"no file can be made: {error}") from error
        finally:
            os.unlink(path)

    def _number(self, pragma: str) -> int:
        return int(self._rows.execute(f"PRAGMA {pragma}").fetchone()[0])

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self._number("page_count") * self._number("page_size")

    def close(self) -> None:
        """Let go of the file, and of what is in it."""
        with contextlib.suppress(sqlite3.Error):
            self._rows.close()

    def carry_out(self, request: Any) -> RowsFlushed | RowsRead | None:
        """Do what a shard asks for; its answer, if there is one.

        Raises:
            RowFileError: if rows cannot be read as they were written.
        """
        match request:
            case FlushRows(number, rows):
                return RowsFlushed(number, self._write(rows))
            case ReadRows(number, task_ids):
                return RowsRead(number, tuple(map(self._read, task_ids)))
            case ReadRowPage(number, after, limit):
                return RowsRead(number, tuple(self._page(after, limit)))
            case DropRows(task_ids):
                self._drop("DELETE FROM rows WHERE key = ?", [(task_id,) for task_id in task_ids])
            case ClearRows():
                self._drop("DELETE FROM rows", [()])
            case _:
                raise TypeError(f"a file of rows cannot {request!r}")
        return None

    # --- writing ---------------------------------------------------------------------------------

    def _write(self, rows: tuple[TaskRecord, ...]) -> str:
        """Write all of them or none; why none, if so."""
        values = sorted((row.task_id, _sealed(row.task_id, encode_value(row))) for row in rows)
        try:
            self._in_one("INSERT OR REPLACE INTO rows VALUES (?, ?)", values)
        except sqlite3.Error as error:
            return f"{self.directory}: {error}"
        return ""

    def _in_one(self, statement: str, values: list[Any]) -> None:
        self._rows.execute("BEGIN")
        try:
            self._rows.executemany(statement, values)
            self._rows.execute("COMMIT")
        except BaseException:
            if self._rows.in_transaction:
                self._rows.execute("ROLLBACK")
            raise

    def _drop(self, statement: str, values: list[Any]) -> None:
        """Delete rows, and give back what is mostly garbage; the shard knows better than a row that stays."""
        try:
            self._in_one(statement, values)
            unused = self._number("freelist_count")
            if unused > max(PAGES_MIN, GARBAGE_SHARE * self._number("page_count")):
                self._rows.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")  # execute: one page
        except sqlite3.Error as error:
            log.warning("rows that are not needed any more stay in %s: %s", self.directory, error)

    # --- reading ---------------------------------------------------------------------------------

    def _read(self, key: bytes) -> TaskRecord:
        found = self._select("SELECT key, value FROM rows WHERE key = ?", (key,))
        row = next(found, None)
        if row is None:
            raise self._unreadable(f"the row {key.hex()} is gone")
        return row

    def _page(self, after: bytes, limit: int) -> Iterator[TaskRecord]:
        return self._select("SELECT key, value FROM rows WHERE key > ? ORDER BY key LIMIT ?", (after, limit))

    def all_rows(self) -> Iterator[TaskRecord]:
        """Every row, in the order of keys. Do not write before the last one.

        Raises:
            RowFileError: if one of them cannot be read as it was written.
        """
        return self._select("SELECT key, value FROM rows ORDER BY key", ())

    def _select(self, query: str, values: tuple[Any, ...]) -> Iterator[TaskRecord]:
        try:
            for key, value in self._rows.execute(query, values):
                yield self._opened(key, value)
        except sqlite3.Error as error:
            raise self._unreadable(str(error)) from error

    def _opened(self, key: bytes, value: bytes) -> TaskRecord:
        payload = value[CHECK_BYTES:]
        if value != _sealed(key, payload):
            raise self._unreadable(f"the row {key.hex()} is damaged")
        return _decode(payload)

    def _unreadable(self, detail: str) -> RowFileError:
        return RowFileError(
            self.directory,
            f"{detail}; the disk is at fault. The shard ends, and has all of them again from its log when it "
            "starts",
        )


def _sealed(key: bytes, payload: bytes) -> bytes:
    """The value of a row: a checksum over key and payload, and the payload."""
    return crc32(payload, crc32(key)).to_bytes(CHECK_BYTES, "little") + payload
