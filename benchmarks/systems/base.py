"""What a system must offer to be measured; whatever it lacks raises ``Unsupported``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload


class Unsupported(Exception):
    """The system has no such concept: its cell shows a dash."""


class System:
    """One system. ``Ref`` in the comments is whatever the system hands out for a pending value.

    ``bind`` and ``bind_method`` return the system's own submitting callable, so that a loop over it pays
    nothing for this interface.
    """

    def versions(self) -> dict[str, str]:
        """Name to version of the packages that matter. Raises ImportError where the system is missing."""
        raise NotImplementedError

    def start(self, workers: int) -> None:
        """Start with ``workers`` worker processes, one task at a time each."""
        raise NotImplementedError

    def stop(self) -> None:
        """End every process that ``start`` brought up."""
        raise NotImplementedError

    def first_result(self) -> None:
        """What a cold start ends with: the empty task, run and got."""
        self.get(self.bind(workload.noop)())

    # --- tasks ------------------------------------------------------------------------------------

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that submits ``function`` and returns a Ref."""
        raise NotImplementedError

    def submit_many(self, function: Callable[..., Any], count: int) -> list[Any]:
        """Submit ``function`` ``count`` times, in the fastest way the system documents."""
        submit = self.bind(function)
        return [submit() for _ in range(count)]

    def get(self, ref: Any) -> Any:
        """The value of one Ref."""
        raise NotImplementedError

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        """The values of many Refs."""
        raise NotImplementedError

    def wait_any(self, refs: list[Any]) -> tuple[Any, Any]:
        """Block until at least one is finished. Returns (finished, pending), as the system does."""
        raise NotImplementedError

    def bind_dependent(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Like ``bind``, where arguments may be Refs, which arrive as values."""
        raise Unsupported

    def submit_returning(self, function: Callable[..., Any], count: int) -> list[Any]:
        """One task with ``count`` return values, as that many Refs."""
        raise Unsupported

    def submit_nested(self, count: int) -> Any:
        """Ref of a task that submits ``count`` empty tasks, gets them and returns how many."""
        raise Unsupported

    def make_clients(self, count: int) -> list[Callable[[int], Any]]:
        """That many submitters that work at once: each takes a number of empty tasks, returns a Ref of it."""
        return [self.submit_nested] * count

    def bind_retried(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Like ``bind``, for a task that runs again if the process in which it runs is killed."""
        raise Unsupported

    # --- objects ----------------------------------------------------------------------------------

    def put(self, value: Any) -> Any:
        """Ref of a stored copy of ``value``."""
        raise Unsupported

    def put_many(self, values: list[Any]) -> list[Any]:
        """Store each of ``values``."""
        return [self.put(value) for value in values]

    # --- actors -----------------------------------------------------------------------------------

    def make_actor(self, cls: type) -> Any:
        """Start an actor; need not wait until it is ready."""
        raise Unsupported

    def make_asyncio_actor(self, cls: type) -> Any:
        """The same for a class whose methods are coroutines, many of which run at once."""
        raise Unsupported

    def make_restarting_actor(self, cls: type) -> Any:
        """The same for one that starts again whenever its process is killed; calls wait for it."""
        raise Unsupported

    def bind_method(self, actor: Any, name: str) -> Callable[..., Any]:
        """A callable that calls the method and returns a Ref."""
        raise Unsupported

    def get_calls(self, refs: Sequence[Any]) -> list[Any]:
        """The results of many actor calls."""
        return self.get_many(refs)

    def end_actor(self, actor: Any) -> None:
        """Kill the actor."""
        raise Unsupported
