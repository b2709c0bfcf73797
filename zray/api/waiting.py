"""Values for who does not wait in a thread of their own: ``await ref`` and ``ref.future()``."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from zray.errors import ObjectLostError
from zray.ids import short
from zray.runtime import own_client

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zray.api.refs import ObjectRef
    from zray.runtime.client import Client

_resolver: _Resolver | None = None
_lock = threading.Lock()


def _get(ref: ObjectRef[Any]) -> Any:
    from zray.api.objects import get_many

    return get_many(_client_of(ref), (ref,), None)[0]  # get() would start a cluster if it is gone


def _client_of(ref: ObjectRef[Any]) -> Client:
    client = own_client.get()
    if client is None or ref._of is not client.weak:
        raise _session_ended(ref)
    return client


def _session_ended(ref: ObjectRef[Any]) -> ObjectLostError:
    return ObjectLostError(short(ref.id), "its session has ended")


async def value_of(ref: ObjectRef[Any]) -> Any:
    """The value of a ref, or its error; the event loop goes on meanwhile."""
    import asyncio

    loop = asyncio.get_running_loop()
    is_ready = asyncio.Event()
    client = _client_of(ref)

    def notify() -> None:
        loop.call_soon_threadsafe(is_ready.set)

    want = client.when_ready(ref.id, notify)
    try:
        await is_ready.wait()
    finally:
        client.forget_want(want)
    return _get(ref)


def future_of(ref: ObjectRef[Any]) -> Future[Any]:
    """A future of the value. To cancel it does not cancel the task."""
    from concurrent.futures import Future

    client = _client_of(ref)
    refuse = getattr(client, "future_of", None)
    if refuse is not None:  # in a simulation
        return refuse(ref)
    resolver = _current_resolver()
    future: Future[Any] = Future()
    client.when_ready(ref.id, lambda: resolver.add(ref, future))
    return future


def end_futures(timeout_s: float) -> None:
    """The session has ended, and with it every value: resolve what is left, then end the thread for it.

    Args:
        timeout_s: how long to wait for callbacks of users that still run.
    """
    global _resolver
    with _lock:
        resolver, _resolver = _resolver, None
    if resolver is not None:
        resolver.end(timeout_s)


def _current_resolver() -> _Resolver:
    global _resolver
    with _lock:
        if _resolver is None:
            _resolver = _Resolver()
        return _resolver


class _Resolver:
    """Gives futures their values in a thread of its own, where loading them disturbs nobody."""

    def __init__(self) -> None:
        self._ready: SimpleQueue[tuple[Any, Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="zray-futures", daemon=True)
        self._thread.start()

    def add(self, ref: ObjectRef[Any], future: Future[Any]) -> None:
        """The value of ``ref`` can be fetched at once, or its session has ended."""
        with self._lock:
            if not self._has_ended:
                self._ready.put((ref, future))
                return
        if future.set_running_or_notify_cancel():
            future.set_exception(_session_ended(ref))

    def end(self, timeout_s: float) -> None:
        """End the thread once it has done what is there."""
        with self._lock:
            self._has_ended = True
            self._ready.put(None)
        if threading.current_thread() is not self._thread:  # a callback of a future may end the session
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            item = self._ready.get()
            if item is None:
                return
            ref, future = item
            if future.set_running_or_notify_cancel():
                try:
                    value = _get(ref)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            del item, ref, future  # nothing is kept alive until the next one comes


def _after_fork_in_child() -> None:
    global _resolver, _lock
    _resolver = None  # its thread is the parent's
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)
