"""What messages are made of: the base class, the value of an object, and a place in a placement group."""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of every wire message. Fields are appended, never removed, reordered or reused."""


class Value(Message, frozen=True):
    """A sealed value and where it is; ``contained`` are the object ids pickled inside it."""

    kind: int
    data: bytes = b""
    offset: int = 0
    size: int = 0
    contained: tuple[bytes, ...] = ()


class InGroup(Message, frozen=True):
    """Tasks that run in a placement group, and nowhere else."""

    group_id: bytes
    bundle: int = -1  # -1: any of them
    captures: bool = False  # what such a task submits is in the group, too, unless it says otherwise
