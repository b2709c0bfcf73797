"""The one connection of this process, for whoever needs it without being handed it.

A driver's is made by ``zray.init`` (``api/session.py``), a worker's by the worker itself. It belongs to the
process that made it: after a fork the child has none. (The fork tells; to ask the system for the process's id
at each call would cost as much as the rest of a call's bookkeeping.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zray.runtime.client import Client

_client: Client | None = None
_in_worker = False
_forked = False
_actor: ActorIdentity | None = None
_want_save: Callable[[], None] | None = None


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


class ActorIdentity(NamedTuple):
    """What an actor knows of itself."""

    actor_id: bytes
    name: tuple[str, str]  # namespace and name, empty without one
    restarts: int
    cls: type


def become_actor(identity: ActorIdentity | None) -> None:
    """This worker is an actor from now on; in a simulation, until the next worker goes on."""
    global _actor
    _actor = identity


def actor_identity() -> ActorIdentity | None:
    """The actor that this process is, or ``None``."""
    return _actor if _in_worker else None


def in_actor() -> bytes:
    """Its id; empty if it is none."""
    return _actor.actor_id if _actor is not None and _in_worker else b""


def on_save_wanted(want: Callable[[], None] | None) -> None:
    """This worker is an actor that can be saved; ``want`` asks for a checkpoint after the present call.

    ``None``: in a simulation the next worker that goes on is none.
    """
    global _want_save
    _want_save = want


def want_save() -> bool:
    """Ask for a checkpoint after the present call; False in a process that has none."""
    if _want_save is None or not _in_worker:
        return False
    _want_save()
    return True
