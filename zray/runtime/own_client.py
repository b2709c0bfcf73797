"""The one connection of this process, for whoever needs it without being handed it.

A driver's is made by ``zray.init`` (``api/session.py``), a worker's by the worker itself. It belongs to the
process that made it: after a fork the child has none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zray.runtime.client import Client

_client: Client | None = None
_in_worker = False


def use(client: Client | None, *, in_worker: bool = False) -> None:
    """Make ``client`` this process's connection; ``None``: there is none any more."""
    global _client, _in_worker
    _client, _in_worker = client, in_worker


def get() -> Client | None:
    """The connection, if this very process has one."""
    return _client if _client is not None and _client.pid == os.getpid() else None


def was_forked() -> bool:
    """Whether the process was forked from one that has a connection."""
    return _client is not None and _client.pid != os.getpid()


def in_worker() -> bool:
    """Whether this process is a worker, whose connection ends with it."""
    return _in_worker
