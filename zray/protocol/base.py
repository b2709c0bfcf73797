"""What every message is made of: the base class and the value of an object."""

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
