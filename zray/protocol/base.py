"""What every message of zray is."""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of every wire message. Fields are appended, never removed, reordered or reused."""
