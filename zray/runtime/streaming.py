"""The making of a stream: item after item to its reader, no further ahead of it than allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from zray.core.stream_credits import StreamCredits
from zray.core.streams import item_id
from zray.protocol.messages import Value
from zray.runtime.client import Client
from zray.runtime.results import Results, iterate

SendItem = Callable[[int, Value], None]
"""Puts item ``index`` into the outbox. Lock held."""


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
