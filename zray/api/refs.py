"""``ObjectRef``: the user's handle of a value that may not exist yet."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zray.api import waiting
from zray.ids import producer_of
from zray.protocol.base import Leaf
from zray.serialize.values import note_contained

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future
    from weakref import ReferenceType

    from zray.runtime.client import Client

T = TypeVar("T")


class ObjectRef(Leaf, Generic[T]):
    """A future and immutable value, named by ``id`` (16 bytes).

    Made by ``remote()`` and ``put``; passed to tasks and actors it becomes the value, nested inside other
    values it stays a ref. The value lives as long as any ref to it, in any process.

    A program may hold millions of refs, and its garbage collector would go through all of them again and
    again: so it does not look at them, and a ref does not keep the connection alive that it belongs to.
    """

    id: bytes
    _of: ReferenceType[Client]  # the ``weak`` of the connection that it belongs to

    def hex(self) -> str:
        """The id in hexadecimal."""
        return self.id.hex()

    def binary(self) -> bytes:
        """The id."""
        return self.id

    def future(self) -> Future[T]:
        """A ``concurrent.futures.Future`` of the value; a thread of its own sets its result."""
        return waiting.future_of(self)

    def as_future(self) -> asyncio.Future[T]:
        """An ``asyncio.Future`` of the value, for the event loop that runs."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def __await__(self) -> Generator[Any, None, T]:
        return waiting.value_of(self).__await__()

    def task_id(self) -> bytes:
        """The id of the task or call that makes the value."""
        return producer_of(self.id)

    def __repr__(self) -> str:
        return f"ObjectRef({self.id.hex()})"

    def __eq__(self, other: object) -> bool:
        return type(other) is ObjectRef and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        note_contained(self.id)
        return _unpickled_ref, (self.id,)

    def __copy__(self) -> ObjectRef[T]:
        return _unpickled_ref(self.id)  # each is counted

    def __del__(self) -> None:
        try:
            client = self._of()
        except AttributeError:  # it was never made: its constructor was given the wrong arguments
            return
        if client is not None:
            client.note_dropped(self.id)


ObjectID = ObjectRef


def _unpickled_ref(object_id: bytes) -> ObjectRef[Any]:
    """A ref that came with a value: this process holds the object from now on."""
    from zray.api import session

    client = session.current()
    with client.lock:
        client.objects.borrow(object_id)
    return ObjectRef(object_id, client.weak)
