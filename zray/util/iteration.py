"""Values in the order in which they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from zray.api.objects import get, wait
from zray.api.refs import ObjectRef

T = TypeVar("T")


def as_completed(
    refs: Sequence[ObjectRef[T]], *, chunk_size: int = 10, yield_obj_refs: bool = False
) -> Iterator[Any]:
    """The values of refs, or the refs themselves, as soon as they are ready.

    Args:
        refs: without repetition.
        chunk_size: how many to look at in one call, if so many are ready.
        yield_obj_refs: yield the refs and not their values.
    Raises:
        ValueError: for a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is at least 1, not {chunk_size}")
    left = list(refs)
    while left:
        first, left = wait(left, num_returns=1)
        more: list[ObjectRef[T]] = []
        if left and chunk_size > 1:
            more, left = wait(left, num_returns=min(chunk_size - 1, len(left)), timeout=0)
        ready = [*first, *more]
        yield from ready if yield_obj_refs else get(ready)


def map_unordered(
    function: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """Call a remote function or method for each item; the results as they are ready.

    Args:
        function: something with ``remote``.
        items: one argument for each call; taken as there is room.
        backpressure_size: the most calls under way; ``None``: no bound.
        chunk_size, yield_obj_refs: as for :func:`as_completed`.
    Raises:
        ValueError: for sizes that make no sense.
    """
    if backpressure_size is None:
        backpressure_size = 1 << 62
    if chunk_size < 1 or backpressure_size < chunk_size:
        raise ValueError(
            f"chunk_size is at least 1 and at most backpressure_size, not {chunk_size} of {backpressure_size}"
        )
    submit: Callable[[Any], ObjectRef[Any]] = function.remote
    under_way: list[ObjectRef[Any]] = []
    for item in items:
        under_way.append(submit(item))
        if len(under_way) >= backpressure_size:
            ready, under_way = wait(under_way, num_returns=1)
            yield from ready if yield_obj_refs else get(ready)
    yield from as_completed(under_way, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs)
