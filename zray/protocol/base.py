"""What messages are made of: the base class, the value of an object, and a place in a placement group.

And the base class of what processes keep many of, which is no message.
"""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of every wire message. Fields are appended, never removed, reordered or reused."""


class Leaf(Struct, gc=False, eq=False):
    """Base of small mutable records of which a process keeps one for each object.

    The garbage collector does not look at them: as many as a process has, so long would each full collection
    take otherwise. So nothing that one refers to may, by whatever detour, refer back to it.
    """


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
