"""``Queue``: a first-in-first-out queue that tasks and actors share; it lives in an async actor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from queue import Empty, Full
from typing import Any

from zray.api.actor import kill
from zray.api.objects import get
from zray.api.remote import remote

__all__ = ["Empty", "Full", "Queue"]


class QueueActor:
    """The queue itself. Waiting callers are coroutines, so any number may wait.

    Args:
        maxsize: items it holds at most; 0: no bound.
    """

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def size(self) -> int:
        """How many items it has."""
        return self._queue.qsize()

    async def put(self, item: Any, timeout_s: float | None) -> bool:
        """Add an item; false if there was no room in time."""
        try:
            await asyncio.wait_for(self._queue.put(item), timeout_s)
        except TimeoutError:
            return False
        return True

    async def put_batch(self, items: list[Any]) -> bool:
        """Add all items at once, or none: false if there is not enough room."""
        room = self._queue.maxsize - self._queue.qsize()
        if self._queue.maxsize and len(items) > room:
            return False
        for item in items:
            self._queue.put_nowait(item)
        return True

    async def get(self, timeout_s: float | None) -> tuple[bool, Any]:
        """``(True, item)``, or ``(False, None)`` if none came in time."""
        try:
            return True, await asyncio.wait_for(self._queue.get(), timeout_s)
        except TimeoutError:
            return False, None

    async def get_batch(self, count: int) -> list[Any] | None:
        """``count`` items at once, or ``None`` if there are fewer."""
        if self._queue.qsize() < count:
            return None
        return [self._queue.get_nowait() for _ in range(count)]


class Queue:
    """A queue in an actor of its own; may be passed to tasks and actors.

    Args:
        maxsize: items it holds at most; 0: no bound.
        actor_options: options of its actor.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor = remote(QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.qsize()

    def size(self) -> int:
        """How many items it has."""
        return self.qsize()

    def qsize(self) -> int:
        """How many items it has."""
        return int(get(self.actor.size.remote()))

    def empty(self) -> bool:
        """Whether it has none."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it has no room."""
        return 0 < self.maxsize <= self.qsize()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item, waiting for room.

        Raises:
            Full: if there is none in time, or at once without ``block``.
            ValueError: for a negative timeout.
        """
        if not get(self.actor.put.remote(item, _timeout_of(block, timeout))):
            raise Full

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """The same for a coroutine."""
        if not await self.actor.put.remote(item, _timeout_of(block, timeout)):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item, waiting for one.

        Raises:
            Empty: if there is none in time, or at once without ``block``.
            ValueError: for a negative timeout.
        """
        found, item = get(self.actor.get.remote(_timeout_of(block, timeout)))
        if not found:
            raise Empty
        return item

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """The same for a coroutine."""
        found, item = await self.actor.get.remote(_timeout_of(block, timeout))
        if not found:
            raise Empty
        return item

    def put_nowait(self, item: Any) -> None:
        """:meth:`put` without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """:meth:`get` without waiting."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items at once.

        Raises:
            Full: if there is not room for all; none is added then.
            TypeError: for something that cannot be iterated.
        """
        if not get(self.actor.put_batch.remote(list(items))):
            raise Full

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take several items at once.

        Raises:
            Empty: if there are fewer; none is taken then.
            ValueError: for a negative number.
        """
        if num_items < 0:
            raise ValueError(f"num_items is not negative: {num_items}")
        items = get(self.actor.get_batch.remote(num_items))
        if items is None:
            raise Empty
        return list(items)

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """End the queue: whoever waits for it gets ``ActorDiedError``.

        Args:
            force, grace_period_s: taken for Ray's sake; the end is always at once.
        """
        kill(self.actor)


def _timeout_of(block: bool, timeout: float | None) -> float | None:
    """Seconds to wait; 0 does not wait."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is not negative: {timeout}")
    return timeout if block else 0
