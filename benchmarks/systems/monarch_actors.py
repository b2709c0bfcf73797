"""Monarch: actors, each in a process of its own. It has no tasks: who calls chooses the process."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.systems.base import System, Unsupported


class Monarch(System):
    """An actor of ours is made one of its own by wrapping its methods."""

    def versions(self) -> dict[str, str]:
        importlib.import_module("monarch.actor")
        return {"torchmonarch": importlib.metadata.version("torchmonarch")}

    def start(self, workers: int) -> None:
        from monarch.actor import this_host

        self.host = this_host()
        self.homes: list[tuple[Any, Any]] = []

    def first_result(self) -> None:
        """It has no workers that wait for tasks: a first actor, instead."""
        self.get(self.bind_method(self.make_actor(workload.Tally), "increment")())

    def stop(self) -> None:
        from monarch.actor import shutdown_context

        for _, home in self.homes:
            home.stop().get()
        shutdown_context().get()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        raise Unsupported

    def get(self, ref: Any) -> Any:
        return ref.get()

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        return [ref.get() for ref in refs]

    def make_actor(self, cls: type) -> Any:
        from monarch.actor import Actor, endpoint

        methods = inspect.getmembers(cls, inspect.isfunction)
        wrapped = {name: method if name == "__init__" else endpoint(method) for name, method in methods}
        home = self.host.spawn_procs(per_host={"processes": 1})
        actor = home.spawn(cls.__name__.lower(), type(cls.__name__, (Actor,), wrapped))
        self.homes.append((actor, home))
        return actor

    make_asyncio_actor = make_actor

    def bind_method(self, actor: Any, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(actor, name).call_one
        return call

    def end_actor(self, actor: Any) -> None:
        home = next(home for made, home in self.homes if made is actor)
        self.homes = [pair for pair in self.homes if pair[1] is not home]
        home.stop().get()
