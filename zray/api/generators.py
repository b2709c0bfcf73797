"""Generators of refs: streams that are read while their task runs, and results of unknown number."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zray.api.refs import ObjectRef
from zray.core.streams import item_id
from zray.protocol.messages import ERROR, FAULT
from zray.runtime.client import Client

if TYPE_CHECKING:  # 60 ms that a program without a loop need not pay
    import asyncio

T = TypeVar("T")


class ObjectRefGenerator(Generic[T], Iterator[ObjectRef[T]], AsyncIterator[ObjectRef[T]]):
    """The refs of a task or call with ``num_returns="streaming"``, each as soon as its item exists.

    If the generator raised, the last ref holds the error. For one reader; it cannot be passed on.
    """

    def __init__(self, task_id: bytes, end: ObjectRef[Any], client: Client, *, bounded: bool) -> None:
        self._task_id = task_id
        self._end = end  # ready once there are no more items
        self._client = client
        self._bounded = bounded
        self._exhausted = False
        self._closed = False

    def __iter__(self) -> ObjectRefGenerator[T]:
        return self

    def __aiter__(self) -> ObjectRefGenerator[T]:
        return self

    def __next__(self) -> ObjectRef[T]:
        ref = self.next_ref(None)
        if ref is None:
            raise StopIteration
        return ref

    async def __anext__(self) -> ObjectRef[T]:
        import asyncio

        while True:
            with self._client.lock:
                ref = self._take()
                if ref is not None or self._exhausted:
                    break
                news = self._watch(asyncio.get_running_loop())
            await news.wait()
        if ref is None:
            raise StopAsyncIteration
        return ref

    def next_ref(self, timeout_s: float | None) -> ObjectRef[T] | None:
        """The next ref; ``None`` if there is none any more, or none in time."""
        client = self._client
        if not client.wait_until(self.is_ready, timeout_s):
            return None
        with client.lock:
            return self._take()

    def is_ready(self) -> bool:
        """Whether ``next`` returns, or ends the iteration, at once. Lock of the link held."""
        return (
            self._exhausted
            or self._client.streams.has_next(self._task_id)
            or self._client.objects.is_ready(self._end.id)
        )

    def completed(self) -> ObjectRef[Any]:
        """A ref that is ready once the generator has ended."""
        return self._end

    def is_finished(self) -> bool:
        """Whether every ref was read, and there will be no more."""
        client = self._client
        with client.lock:
            if self._exhausted or client.streams.has_next(self._task_id):
                return self._exhausted
            if not client.objects.is_ready(self._end.id):
                return False
            value = client.objects.objects[self._end.id].value
            return value is None or value.kind not in (ERROR, FAULT)  # an error is one ref more

    def next_ready(self) -> bool:
        """Whether ``next`` returns, or ends the iteration, at once."""
        with self._client.lock:
            return self.is_ready()

    def close(self) -> None:
        """Read no more; what was not read is freed."""
        if not self._exhausted:
            self._exhausted = self._closed = True
            self._client.note_closed_stream(self._task_id)

    def _take(self) -> ObjectRef[T] | None:
        """The next ref if there is one now. Lock held."""
        if self._exhausted:
            return None
        client = self._client
        index = client.streams.take(self._task_id)
        if index is not None:
            if self._bounded:
                client.note_consumed(self._task_id, index + 1)
            return ObjectRef(item_id(self._task_id, index), client.weak)
        if not client.objects.is_ready(self._end.id):
            return None
        self._exhausted = True
        value = client.objects.objects[self._end.id].value
        if value is None or value.kind not in (ERROR, FAULT):
            return None
        client.objects.hold(self._end.id)
        return ObjectRef(self._end.id, client.weak)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        """An event for the next item or the end. Lock held."""
        import asyncio

        news, client = asyncio.Event(), self._client
        watchers = client.streams.watchers.setdefault(self._task_id, [])

        def notify() -> None:
            if notify in watchers:
                watchers.remove(notify)
                loop.call_soon_threadsafe(news.set)

        watchers.append(notify)
        client.when_ready(self._end.id, notify)
        return news

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "an ObjectRefGenerator has one reader; pass the refs that it yields, or use num_returns='dynamic'"
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._task_id.hex()})"

    def __del__(self) -> None:
        client = getattr(self, "_client", None)
        if client is not None and not self._closed:
            client.note_closed_stream(self._task_id)


class DynamicObjectRefGenerator(Generic[T]):
    """The refs of a task with ``num_returns="dynamic"``: what ``get`` returns for its one ref.

    A sequence: it has a length, can be read again, and be passed to tasks. If the generator raised, the last
    ref holds the error.
    """

    def __init__(self, refs: Sequence[ObjectRef[T]]) -> None:
        self._refs = list(refs)

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> ObjectRef[T]:
        return self._refs[index]

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({len(self._refs)} refs)"

    def __reduce__(self) -> tuple[Any, ...]:
        return DynamicObjectRefGenerator, (self._refs,)


def from_kept(client: Client, object_ids: Sequence[bytes]) -> DynamicObjectRefGenerator[Any]:
    """The handle of items that this process put, each of them held once."""
    return DynamicObjectRefGenerator([ObjectRef(object_id, client.weak) for object_id in object_ids])
