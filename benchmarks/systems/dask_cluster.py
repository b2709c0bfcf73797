"""Dask: a LocalCluster of single-threaded worker processes."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.systems.base import System


def _submit_and_count(count: int) -> int:
    from distributed import worker_client

    with worker_client() as client:  # gives this task's thread back while it waits
        return len(client.gather(client.map(workload.noop, range(count), pure=False)))


class Dask(System):
    """``pure=False`` throughout: otherwise equal calls would run once."""

    def versions(self) -> dict[str, str]:
        return {name: importlib.import_module(name).__version__ for name in ("dask", "distributed")}

    def start(self, workers: int) -> None:
        from distributed import Client, LocalCluster

        logging.getLogger("distributed").setLevel(logging.ERROR)
        self.cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None,
            silence_logs=logging.ERROR,
        )  # fmt: skip
        self.client = Client(self.cluster)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(self.client.submit, function, pure=False)

    bind_dependent = bind_retried = bind

    def submit_many(self, function: Callable[..., Any], count: int) -> list[Any]:
        futures: list[Any] = self.client.map(function, range(count), pure=False)
        return futures

    def get(self, ref: Any) -> Any:
        return ref.result()

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        values: list[Any] = self.client.gather(list(refs))
        return values

    def wait_any(self, refs: list[Any]) -> tuple[Any, Any]:
        from distributed import wait

        finished, pending = wait(refs, return_when="FIRST_COMPLETED")
        return finished, pending

    def submit_nested(self, count: int) -> Any:
        return self.client.submit(_submit_and_count, count, pure=False)

    def put(self, value: Any) -> Any:
        # In a list, because scatter takes a bare list or dict as many objects; without hashing, because
        # equal values would otherwise become one object.
        return self.client.scatter([value], hash=False)[0]

    def put_many(self, values: list[Any]) -> list[Any]:
        refs: list[Any] = self.client.scatter(values, hash=False)
        return refs

    def make_actor(self, cls: type) -> Any:
        return self.client.submit(cls, actor=True, pure=False)

    make_asyncio_actor = make_actor

    def bind_method(self, actor: Any, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(actor.result(), name)
        return call

    def get_calls(self, refs: Sequence[Any]) -> list[Any]:
        return [ref.result() for ref in refs]

    def end_actor(self, actor: Any) -> None:
        actor.release()
