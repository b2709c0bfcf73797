"""``Pool``: the standard library's ``multiprocessing.Pool`` on tasks of the cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError
from typing import Any

from zray.api.cluster import cluster_resources
from zray.api.objects import get, wait
from zray.api.refs import ObjectRef
from zray.api.refused import absent
from zray.api.remote import remote
from zray.api.session import init, is_initialized
from zray.util.iteration import as_completed

__all__ = ["AsyncResult", "Pool", "TimeoutError"]

CHUNKS_PER_PROCESS = 4
"""Chunks of a ``map`` for each process, so that no process ends long before the others."""


def _run_chunk(
    function: Callable[..., Any], chunk: list[tuple[tuple[Any, ...], dict[str, Any]]], setup: tuple[Any, ...]
) -> list[Any]:
    """In a worker: call the function for each entry, after the initializer of the pool, once per process."""
    initializer, initargs, pool_id = setup
    if initializer is not None and pool_id not in _initialized:
        _initialized[pool_id] = None
        initializer(*initargs)
    return [function(*args, **kwargs) for args, kwargs in chunk]


_initialized: dict[int, None] = {}


class AsyncResult:
    """What the ``_async`` methods return: results to come, gathered in a thread of its own.

    Args:
        refs: of the chunks, in order.
        finish: makes the result from the list of values.
        callback: called with the result.
        error_callback: called with the exception if there is one.
    """

    def __init__(
        self,
        refs: list[ObjectRef[Any]],
        finish: Callable[[list[Any]], Any],
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._refs = refs
        self._finish = finish
        self._callbacks = callback, error_callback
        self._ended = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._gather, name="zray-pool", daemon=True).start()

    def _gather(self) -> None:
        callback, error_callback = self._callbacks
        try:
            self._value = self._finish([one for chunk in get(self._refs) for one in chunk])
            if callback is not None:
                callback(self._value)
        except BaseException as error:
            self._error = error
            if error_callback is not None:
                error_callback(error)
        finally:
            self._ended.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until there is a result, or the time is over."""
        self._ended.wait(timeout)

    def ready(self) -> bool:
        """Whether there is a result, or an error."""
        return self._ended.is_set()

    def successful(self) -> bool:
        """Whether there was no error.

        Raises:
            ValueError: if there is no result yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def get(self, timeout: float | None = None) -> Any:
        """The result.

        Raises:
            TimeoutError: if there is none in time.
            Exception: what the function raised.
        """
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value


class Pool:
    """A pool of processes that are workers of the cluster.

    Args:
        processes: how many calls run at once; default: the CPUs of the cluster.
        initializer, initargs: called once in each process before its first call.
        maxtasksperchild: chunks after which a process is replaced.
        context: taken for the standard library's sake.
        ray_address: the cluster to join if this process has none.
        ray_remote_args: options of the tasks.
    Raises:
        ValueError: for fewer than one process.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("a Pool has at least one process")
        if not is_initialized():
            init(address=ray_address)
        self._processes = processes or max(1, int(cluster_resources().get("CPU", 1)))
        self._setup = initializer, tuple(initargs), id(self)
        options = {**(ray_remote_args or {})}
        if maxtasksperchild:
            options["max_calls"] = maxtasksperchild
        self._run = remote(_run_chunk).options(**options)
        self._closed = False
        self._under_way: list[ObjectRef[Any]] = []

    # --- submission ------------------------------------------------------------------------------

    def _submit(self, function: Callable[..., Any], calls: list[Any], chunksize: int | None) -> list[Any]:
        """One task per chunk of ``(args, kwargs)``."""
        if self._closed:
            raise ValueError("Pool not running")
        if chunksize is None:
            chunksize = max(1, -(-len(calls) // (self._processes * CHUNKS_PER_PROCESS)))
        if chunksize < 1:
            raise ValueError(f"chunksize is at least 1, not {chunksize}")
        chunks = [calls[start : start + chunksize] for start in range(0, len(calls), chunksize)]
        refs = []
        for chunk in chunks:
            self._wait_for_room()
            ref = self._run.remote(function, chunk, self._setup)
            self._under_way.append(ref)
            refs.append(ref)
        return refs

    def _wait_for_room(self) -> None:
        while len(self._under_way) >= self._processes:
            _, self._under_way = wait(self._under_way, num_returns=1)

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Any = None) -> Any:
        """Call a function once, and wait for its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Any = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """Call a function once."""
        refs = self._submit(func, [(tuple(args), dict(kwds or {}))], 1)
        return AsyncResult(refs, lambda values: values[0], callback, error_callback)

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> Any:
        """The results for all items, in order."""
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """:meth:`map` without waiting."""
        refs = self._submit(func, [((item,), {}) for item in iterable], chunksize)
        return AsyncResult(refs, list, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> Any:
        """Like :meth:`map` with several arguments for each call."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """:meth:`starmap` without waiting."""
        refs = self._submit(func, [(tuple(args), {}) for args in iterable], chunksize)
        return AsyncResult(refs, list, callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> Iterator[Any]:
        """The results in order, each as soon as it and those before it are there."""
        for ref in self._submit(func, [((item,), {}) for item in iterable], chunksize):
            yield from get(ref)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> Iterator[Any]:
        """The results as they are ready."""
        refs = self._submit(func, [((item,), {}) for item in iterable], chunksize)
        for chunk in as_completed(refs):
            yield from chunk

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True

    def terminate(self) -> None:
        """Take no more calls, and take back those that have not ended."""
        from zray.api.objects import cancel

        self._closed = True
        for ref in self._under_way:
            cancel(ref)

    def join(self) -> None:
        """Wait for the end of all calls.

        Raises:
            ValueError: if the pool was not closed.
        """
        if not self._closed:
            raise ValueError("Pool is still running")
        if self._under_way:
            wait(self._under_way, num_returns=len(self._under_way))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
