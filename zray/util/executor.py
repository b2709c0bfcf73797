"""``Executor``: the standard library's ``concurrent.futures.Executor`` on the tasks of a cluster.

Whatever takes an executor (``asyncio.loop.run_in_executor``, many libraries) uses every core so, with zray's
scheduling and errors. zray starts by itself if it does not run yet.
"""

from __future__ import annotations

import concurrent.futures as futures
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import zray
from zray.api.refs import ObjectRef

R = TypeVar("R")


class Executor(futures.Executor):
    """Runs calls as tasks.

    Args:
        options: of every task, such as ``num_cpus`` or ``max_retries``.
    """

    def __init__(self, **options: Any) -> None:
        self._call = zray.remote(_call).options(**options)
        self._lock = threading.Lock()
        self._pending: dict[futures.Future[Any], ObjectRef[Any]] = {}
        self._closed = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> futures.Future[R]:
        """Submit ``fn(*args, **kwargs)``.

        Raises:
            RuntimeError: after :meth:`shutdown`.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this executor was shut down; make another one")
            ref: ObjectRef[R] = self._call.remote(fn, args, kwargs)
            future = ref.future()
            self._pending[future] = ref
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: futures.Future[Any]) -> None:
        with self._lock:
            ref = self._pending.pop(future, None)
        if ref is not None and future.cancelled():
            zray.cancel(ref)

    def map(
        self, fn: Callable[..., R], *iterables: Any, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[R]:
        """Like the builtin; ``chunksize`` calls are one task."""
        if chunksize < 1:
            raise ValueError(f"chunksize is at least 1, not {chunksize}")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = list(zip(*iterables, strict=False))
        chunks = [calls[start : start + chunksize] for start in range(0, len(calls), chunksize)]
        submitted = [self.submit(_call_all, fn, chunk) for chunk in chunks]

        def results() -> Iterator[R]:
            try:
                for future in submitted:
                    yield from future.result(None if deadline is None else deadline - time.monotonic())
            finally:
                for future in submitted:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those there are, or take them back. The cluster goes on."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            futures.wait(pending)


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _call_all(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in calls]
