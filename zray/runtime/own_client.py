"""The one connection of this process, for whoever needs it without being handed it.

A driver's is made by ``zray.init`` (``api/session.py``), a worker's by the worker itself. It belongs to the
process that made it: after a fork the child has none. (The fork tells; to ask the system for the process's id
at each call would cost as much as the rest of a call's bookkeeping.)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zray.runtime.client import Client

_client: Client | None = None
_in_worker = False
_forked = False


def use(client: Client | None, *, in_worker: bool = False) -> None:
    """Make ``client`` this process's connection; ``None``: there is none any more."""
    global _client, _in_worker, _forked
    _client, _in_worker, _forked = client, in_worker, False


def get() -> Client | None:
    """The connection, if this very process has one."""
    return None if _forked else _client


def was_forked() -> bool:
    """Whether the process was forked from one that has a connection."""
    return _forked


def in_worker() -> bool:
    """Whether this process is a worker, whose connection ends with it."""
    return _in_worker


def _note_fork() -> None:
    global _forked
    _forked = _client is not None


os.register_at_fork(after_in_child=_note_fork)
