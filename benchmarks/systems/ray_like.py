"""zray and Ray: one adapter, because they share their API."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.systems.base import System


@functools.cache
def _remote_noop(module_name: str) -> Any:
    """The empty task as a remote function; made once in each worker, as a global one would be."""
    return importlib.import_module(module_name).remote(workload.noop)


def _submit_and_count(module_name: str, count: int) -> int:
    submit = _remote_noop(module_name).remote
    return len(importlib.import_module(module_name).get([submit() for _ in range(count)]))


class Submitter:
    """An actor that submits, as in Ray's own microbenchmark of many clients."""

    def submit_and_count(self, module_name: str, count: int) -> int:
        return _submit_and_count(module_name, count)


class RayLike(System):
    """Everything but ``start``."""

    module_name: str
    api: Any = None

    def versions(self) -> dict[str, str]:
        module = importlib.import_module(self.module_name)
        return {self.module_name: getattr(module, "__version__", "unknown")}

    def stop(self) -> None:
        self.api.shutdown()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        submit: Callable[..., Any] = self.api.remote(function).remote
        return submit

    bind_dependent = bind

    def get(self, ref: Any) -> Any:
        return self.api.get(ref)

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        values: list[Any] = self.api.get(refs)
        return values

    def wait_any(self, refs: list[Any]) -> tuple[Any, Any]:
        finished, pending = self.api.wait(refs, num_returns=1)
        return finished, pending

    def submit_returning(self, function: Callable[..., Any], count: int) -> list[Any]:
        refs: list[Any] = self.api.remote(function).options(num_returns=count).remote(count)
        return refs

    def submit_nested(self, count: int) -> Any:
        return self._nested.remote(self.module_name, count)

    @functools.cached_property
    def _nested(self) -> Any:
        return self.api.remote(_submit_and_count)

    def make_clients(self, count: int) -> list[Callable[[int], Any]]:
        actors = [self.api.remote(Submitter).options(num_cpus=0).remote() for _ in range(count)]
        return [functools.partial(actor.submit_and_count.remote, self.module_name) for actor in actors]

    bind_retried = bind

    def put(self, value: Any) -> Any:
        return self.api.put(value)

    def make_actor(self, cls: type) -> Any:
        return self.api.remote(cls).remote()

    make_asyncio_actor = make_actor

    def make_restarting_actor(self, cls: type) -> Any:
        return self.api.remote(cls).options(max_restarts=-1, max_task_retries=-1).remote()

    def bind_method(self, actor: Any, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(actor, name).remote
        return call

    def end_actor(self, actor: Any) -> None:
        self.api.kill(actor)


class Zray(RayLike):
    """zray as a user gets it: one node, one GCS shard, on this machine."""

    module_name = "zray"

    def start(self, workers: int) -> None:
        self.api = importlib.import_module("zray")
        self.api.init(num_cpus=workers)


class Ray(RayLike):
    """Ray without its dashboard and log forwarding, which the comparison would count against it."""

    module_name = "ray"

    def start(self, workers: int) -> None:
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.api = importlib.import_module("ray")
        self.api.init(
            num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
