"""The file of flushed rows as a service of the process of a shard: see ``core/flushing_shard.py``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.machine import ROWS
from zray.runtime.loop import Loop

if TYPE_CHECKING:  # most shards have none, and need not load SQLite
    from zray.runtime.row_file import RowFile

log = logging.getLogger("zray.gcs")

NO_LOG = (
    "a limit of memory for task rows asks for a log, to find them in again: give --data-dir or --storage, "
    "or no limit (--memory-max, ZRAY_GCS_MEMORY_MAX)"
)


def open_file(directory: str, config: Config) -> RowFile:
    """A new file.

    Raises:
        RowFileError: if there can be none.
    """
    from zray.runtime.row_file import RowFile

    row_file = RowFile(directory, config.gcs_flush_bytes_max)
    log.info("task rows beyond %d bytes of memory go to %s", config.gcs_memory_max, row_file.directory)
    return row_file


def service_of(row_file: RowFile, loop: Loop) -> Callable[[list[Any]], None]:
    """The service behind ``ROWS``: what the file answers is heard in the next turn."""

    def carry_out(requests: list[Any]) -> None:
        for request in requests:
            answer = row_file.carry_out(request)
            if answer is not None:
                loop.post(ROWS, answer)

    return carry_out


def settle(shard: ControlShard, row_file: RowFile | None) -> None:
    """Let a shard that is being recovered flush, and read what it waits for; other effects are dropped."""
    while True:
        shard.flush(0)
        requests = [message for destination, message in shard.out if destination == ROWS]
        shard.out.clear()
        if row_file is None or not requests:
            return
        for request in requests:
            answer = row_file.carry_out(request)
            if answer is not None:
                shard.HANDLERS[type(answer)](shard, 0, ROWS, answer)
