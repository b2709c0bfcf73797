"""The making of a stream: item after item to its reader, no further ahead of it than allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from zray.core.streams import item_id
from zray.protocol.messages import Value
from zray.protocol.user_messages import ConsumedItems, StreamCredit
from zray.runtime.client import Client
from zray.runtime.results import Results, iterate

SendItem = Callable[[int, Value], None]
"""Puts item ``index`` into the outbox. Lock held."""


class StreamCredits:
    """How far the readers of this process's streams are. Lock of the link held in all of these."""

    def __init__(self) -> None:
        self.consumed: dict[bytes, int] = {}  # of the streams that are being made
        self.freed: dict[bytes, None] = {}  # those that nobody reads: they have no bound any more
        self.watchers: dict[bytes, Callable[[], None]] = {}

    def open(self, task_id: bytes) -> None:
        """A stream is made from now on."""
        self.consumed.setdefault(task_id, 0)

    def close(self, task_id: bytes) -> None:
        """It has ended."""
        self.consumed.pop(task_id, None)
        self.freed.pop(task_id, None)
        self.watchers.pop(task_id, None)

    def on_credit(self, message: StreamCredit | ConsumedItems) -> None:
        """A reader goes on."""
        if message.task_id not in self.consumed:
            return
        self.consumed[message.task_id] = max(self.consumed[message.task_id], message.items)
        if message.done:
            self.freed[message.task_id] = None
        notify = self.watchers.get(message.task_id)
        if notify is not None:
            notify()

    def may_make(self, task_id: bytes, index: int, unconsumed_max: int) -> bool:
        """Whether item ``index`` is within the bound; 0: there is none."""
        if not unconsumed_max or task_id in self.freed:
            return True
        return index - self.consumed.get(task_id, index) < unconsumed_max


class StreamMaker:
    """Makes the streams of one process.

    Args:
        client: its link.
        results: packs items.
        credits: how far readers are.
    """

    def __init__(self, client: Client, results: Results, credits: StreamCredits) -> None:
        self.client = client
        self.results = results
        self.credits = credits

    def run(
        self, task_id: bytes, name: str, result: Any, unconsumed_max: int, send: SendItem, holder: bytes = b""
    ) -> None:
        """Send everything that a generator yields; its exception is the caller's.

        Raises:
            TypeError: if ``result`` is no generator.
        """
        for index, item in enumerate(iterate(result, name)):
            self._send(index, self.results.pack_one(item_id(task_id, index), name, item, holder), send)
            self._wait_for_reader(task_id, index + 1, unconsumed_max)

    def _wait_for_reader(self, task_id: bytes, index: int, unconsumed_max: int) -> None:
        if not self.credits.may_make(task_id, index, unconsumed_max):
            self.client.wait_until(lambda: self.credits.may_make(task_id, index, unconsumed_max), None)

    async def run_async(
        self, task_id: bytes, name: str, result: Any, unconsumed_max: int, send: SendItem, holder: bytes
    ) -> None:
        """The same in an event loop, for generators with or without ``async``."""
        import asyncio  # here and below: there is a loop, so it is loaded already

        index = 0
        async for item in _as_async(result, name):
            object_id = item_id(task_id, index)
            value = await asyncio.to_thread(self.results.pack_one, object_id, name, item, holder)
            self._send(index, value, send)
            index += 1
            while not self.credits.may_make(task_id, index, unconsumed_max):
                await self._news_of_reader(task_id, index, unconsumed_max)

    async def _news_of_reader(self, task_id: bytes, index: int, unconsumed_max: int) -> None:
        import asyncio

        loop, go_on = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(go_on.set)

        with self.client.lock:
            self.credits.watchers[task_id] = notify
            if self.credits.may_make(task_id, index, unconsumed_max):
                return
        await go_on.wait()

    def _send(self, index: int, value: Value, send: SendItem) -> None:
        with self.client.lock:
            send(index, value)
            self.client.after_append()


async def _as_async(result: Any, name: str) -> AsyncIterator[Any]:
    if hasattr(result, "__anext__"):
        async for item in result:
            yield item
        return
    import asyncio

    for item in iterate(result, name):
        yield item
        await asyncio.sleep(0)
