"""``ActorPool``: hand work to whichever of several actors is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zray.api.objects import get, wait
from zray.api.refs import ObjectRef

Work = Callable[[Any, Any], ObjectRef[Any]]
"""``lambda actor, value: actor.method.remote(value)``."""


class ActorPool:
    """Actors that take turns. Results come in the order of submission, or as they are ready.

    Args:
        actors: handles; each does one thing at a time.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle = deque(actors)
        self._actor_of: dict[ObjectRef[Any], Any] = {}
        self._refs: dict[int, ObjectRef[Any]] = {}  # by number of submission, not returned yet
        self._waiting: deque[tuple[Work, Any]] = deque()
        self._submitted = 0
        self._next = 0

    def submit(self, fn: Work, value: Any) -> None:
        """Do ``fn(actor, value)`` with an actor that is free, now or as soon as one is."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.popleft()
        ref = fn(actor, value)
        self._actor_of[ref] = actor
        self._refs[self._submitted] = ref
        self._submitted += 1

    def has_next(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._refs) or bool(self._waiting)

    def has_free(self) -> bool:
        """Whether an actor is free and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission.

        Raises:
            StopIteration: if none is to come.
            TimeoutError: if it is not ready within ``timeout`` seconds; it may be asked for again.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        while self._next not in self._refs and self._next < self._submitted:
            self._next += 1  # returned by get_next_unordered
        ref = self._refs[self._next]
        if timeout is not None and not wait([ref], timeout=timeout)[0]:
            return self._give_up(ref, self._next, ignore_if_timedout)
        del self._refs[self._next]
        self._next += 1
        return self._result(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Whichever result is ready first.

        Raises:
            StopIteration: if none is to come.
            TimeoutError: if none is ready within ``timeout`` seconds.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        ready, _ = wait(list(self._refs.values()), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                return None
            raise TimeoutError(f"no result was ready within {timeout} s")
        number = next(number for number, ref in self._refs.items() if ref == ready[0])
        del self._refs[number]
        return self._result(ready[0])

    def _give_up(self, ref: ObjectRef[Any], number: int, ignore: bool) -> None:
        if not ignore:
            raise TimeoutError("the next result was not ready in time")
        del self._refs[number]
        self._next += 1
        self._free(self._actor_of.pop(ref))

    def _result(self, ref: ObjectRef[Any]) -> Any:
        self._free(self._actor_of.pop(ref))  # also if the result is an error
        return get(ref)

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    def map(self, fn: Work, values: Iterable[Any]) -> Iterator[Any]:
        """Results of all values, in their order. Results of an earlier use are dropped."""
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._all(self.get_next)

    def map_unordered(self, fn: Work, values: Iterable[Any]) -> Iterator[Any]:
        """Results of all values, as they are ready. Results of an earlier use are dropped."""
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._all(self.get_next_unordered)

    def _all(self, get_next: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get_next()

    def _drop_results(self) -> None:
        while self.has_next():
            ready, _ = wait(list(self._refs.values()), num_returns=1)
            number = next(number for number, ref in self._refs.items() if ref == ready[0])
            del self._refs[number]
            self._free(self._actor_of.pop(ready[0]))

    def push(self, actor: Any) -> None:
        """Add an actor.

        Raises:
            ValueError: if it is in the pool already.
        """
        if actor in self._idle or actor in self._actor_of.values():
            raise ValueError("the actor belongs to the pool already")
        self._free(actor)

    def pop_idle(self) -> Any:
        """Take out an actor that is free; ``None`` if none is."""
        return self._idle.popleft() if self.has_free() else None
