"""Values for who does not wait in a thread of their own: ``await ref`` and ``ref.future()``."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from zray.errors import ObjectLostError
from zray.ids import short

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zray.api.refs import ObjectRef

_ready: SimpleQueue[tuple[Any, Future[Any]]] = SimpleQueue()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def _get(ref: ObjectRef[Any]) -> Any:
    from zray.api.objects import get

    return get(ref)


def _check_session(ref: ObjectRef[Any]) -> None:
    from zray.api import session

    if ref._client is not session.current():
        raise ObjectLostError(short(ref.id), "its session has ended")


async def value_of(ref: ObjectRef[Any]) -> Any:
    """The value of a ref, or its error; the event loop goes on meanwhile."""
    import asyncio

    loop = asyncio.get_running_loop()
    is_ready = asyncio.Event()
    client = ref._client
    _check_session(ref)

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

    _start_thread()
    _check_session(ref)
    future: Future[Any] = Future()
    ref._client.when_ready(ref.id, lambda: _ready.put((ref, future)))
    return future


def _start_thread() -> None:
    global _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_resolve, name="zray-futures", daemon=True)
            _thread.start()


def _resolve() -> None:
    """Look at each value in this thread, where its loading disturbs nobody."""
    while True:
        ref, future = _ready.get()
        if not future.set_running_or_notify_cancel():
            continue
        try:
            value = _get(ref)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)
        del ref, future  # nothing is kept alive until the next one comes
