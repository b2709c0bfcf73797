"""``get``, ``put``, ``wait`` and ``cancel``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from zray.api import session
from zray.api.generators import ObjectRefGenerator
from zray.api.refs import ObjectRef
from zray.core.checks import COPIES_MAX
from zray.errors import GetTimeoutError, ObjectLostError, TaskError
from zray.ids import is_put, producer_of, short
from zray.protocol.messages import ERROR, FAULT, INLINE, Value
from zray.runtime.client import Client, error_of
from zray.serialize.values import dump, load, load_error

log = logging.getLogger("zray.objects")

T = TypeVar("T")


@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or a list of the values of a list of refs, waiting as long as it takes.

    Args:
        refs: an ``ObjectRef`` or a sequence of them.
        timeout: seconds, ``None``: for ever; 0 looks once.
    Raises:
        TaskError: if the task raised; the error is also an instance of what it raised.
        GetTimeoutError: if a value is not there in time.
        ObjectLostError: for a ref of a session that was shut down.
        TypeError: for anything that is not a ref.
    """
    if timeout is not None:
        _check_timeout(timeout)
    client = session.current()
    if type(refs) is ObjectRef:
        _check_refs((refs,), client, "zray.get")
        return _get_one(client, refs.id, timeout)
    if isinstance(refs, str | bytes) or not isinstance(refs, Sequence):
        remedy = "; iterate over it for its refs" if isinstance(refs, ObjectRefGenerator) else ""
        raise TypeError(f"zray.get takes an ObjectRef or a list of them, not {refs!r}{remedy}")
    _check_refs(refs, client, "zray.get")
    return get_many(client, refs, timeout)


def _get_one(client: Client, object_id: bytes, timeout: float | None) -> Any:
    """What :func:`get_many` does, for one ref."""
    values = client.fetch((object_id,), timeout)
    if values is None:
        assert timeout is not None
        raise GetTimeoutError(1, 1, timeout)
    value = values[object_id]
    if value.kind == INLINE:
        return load(value.data)
    if value.kind == ERROR or value.kind == FAULT:
        raise _error_of(value)
    return load(client.view(object_id, value))


def get_many(client: Client, refs: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
    """What :func:`get` does, for refs of one connection."""
    object_ids = [ref.id for ref in refs]
    values = client.fetch(object_ids, timeout)
    if values is None:
        ready = sum(client.objects.is_ready(object_id) for object_id in object_ids)
        assert timeout is not None
        raise GetTimeoutError(len(object_ids) - ready, len(object_ids), timeout)
    only_inline = True
    for object_id in object_ids:
        kind = values[object_id].kind
        if kind != INLINE:
            only_inline = False
            if kind in (ERROR, FAULT):
                client.give_back(values)
                raise _error_of(values[object_id])
    if only_inline and len(values) == len(object_ids):
        return [load(values[object_id].data) for object_id in object_ids]
    loaded = {object_id: _load(client, object_id, value) for object_id, value in values.items()}
    return [loaded[object_id] for object_id in object_ids]


def _error_of(value: Value) -> BaseException:
    # A function of its own: a frame that both raises an error and names it would live until the collector
    # comes by, and so would the refs that its caller was given.
    error = error_of(value, load_error)
    assert error is not None
    return error.as_cause() if isinstance(error, TaskError) else error


def _load(client: Client, object_id: bytes, value: Value) -> Any:
    return load(value.data if value.kind == INLINE else client.view(object_id, value))


def put(value: Any, *, copies: int = 1) -> ObjectRef[Any]:
    """Store a value; returns a ref to it.

    No task can make again what was put: if the only node that has it dies, readers get ``ObjectLostError``.
    With ``copies=2`` this returns once a second node keeps a copy, too, and the death of one node loses
    nothing: another copy is made elsewhere then. If there are too few nodes, or they do not answer within
    ``ZRAY_COPIES_PATIENCE_NS``, a warning says so, and the copies are made as soon as they can be.

    Args:
        value: anything that can be pickled.
        copies: how many nodes keep the value while anybody holds its ref.
    Raises:
        TypeError: for a ref: pass that instead.
        ValueError: if ``copies`` is not between 1 and 64.
        SerializationError: if it cannot be pickled, naming the culprit.
        ObjectStoreFullError: if it is larger than the whole store.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("zray.put takes a value, not an ObjectRef; the ref you have can be passed as it is")
    if isinstance(copies, bool) or not isinstance(copies, int):
        raise TypeError(f"copies is a whole number, not {copies!r}")
    if not 1 <= copies <= COPIES_MAX:
        raise ValueError(f"copies is between 1 and {COPIES_MAX}, not {copies}")
    client = session.current()
    ref: ObjectRef[Any] = ObjectRef(client.put(dump(value, "the value given to zray.put()")), client.weak)
    if copies > 1:
        kept = client.keep_copies(ref.id, copies)
        if kept.copies < copies:
            log.warning("put(copies=%d) has %d so far: %s", copies, kept.copies, kept.reason)
    return ref


def wait(
    refs: Sequence[ObjectRef[Any]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
    progress: bool | Callable[[int, int], None] = False,
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Wait until ``num_returns`` of the refs are ready, or the time is over.

    Args:
        refs: a list of refs without repetition; a generator of refs is ready when its next ref is there.
        num_returns: between 1 and the number of refs; there is nothing to wait for in an empty list.
        timeout: seconds; ``None``: for ever; 0 looks once.
        fetch_local: on one node a value is always local.
        progress: say on standard error how many are ready, or call this with that and ``num_returns``.
    Returns:
        ``(ready, not_ready)``: at most ``num_returns`` refs are ready; both in the order of ``refs``.
    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(refs, ObjectRef) or not isinstance(refs, Sequence):
        raise TypeError(f"zray.wait takes a list of ObjectRefs, not {refs!r}")
    client = session.current()
    refs = list(refs)
    generators = ObjectRefGenerator in map(type, refs)
    plain = [ref for ref in refs if type(ref) is not ObjectRefGenerator] if generators else refs
    _check_refs(plain, client, "zray.wait")
    if generators:
        object_ids = [ref.completed().id if type(ref) is ObjectRefGenerator else ref.id for ref in refs]
    else:
        object_ids = [ref.id for ref in refs]
    if len(frozenset(object_ids)) != len(object_ids):
        raise ValueError("zray.wait takes each ref once; this list repeats some")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns is a whole number, not {num_returns!r}")
    if not refs:
        return [], []
    if not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns is between 1 and the number of refs ({len(refs)}), not {num_returns}")
    _check_timeout(timeout)
    if not generators and not progress:
        return _parted(refs, client.first_ready(object_ids, num_returns, timeout, fetch_local))

    def look(needed: int, timeout_s: float | None) -> list[bool]:
        if generators:
            return _wait_for_items(client, refs, needed, timeout_s)
        return client.wait_ready(object_ids, needed, timeout_s, fetch_local)

    here = _look_telling(look, num_returns, timeout, progress) if progress else look(num_returns, timeout)
    return _parted(refs, [position for position, is_here in enumerate(here) if is_here][:num_returns])


def _parted(refs: list[Any], positions: list[int]) -> tuple[list[Any], list[Any]]:
    """Those at the positions, which ascend, and the rest."""
    rest: list[Any] = []
    start = 0
    for position in positions:
        rest += refs[start:position]
        start = position + 1
    rest += refs[start:]
    return [refs[position] for position in positions], rest


def _look_telling(look: Any, wanted: int, timeout: float | None, progress: Any) -> list[bool]:
    from zray.api.progress import ProgressLine, wait_telling

    if callable(progress):
        return wait_telling(look, wanted, timeout, progress)
    if progress is not True:
        raise TypeError(f"progress is True, False or a function of two numbers, not {progress!r}")
    line = ProgressLine()
    here = wait_telling(look, wanted, timeout, line.tell)
    if sum(here) < wanted:
        line.end()
    return here


def _wait_for_items(client: Client, refs: Sequence[Any], needed: int, timeout: float | None) -> list[bool]:
    """Like ``Client.wait_ready`` for a list with generators."""
    with client.lock:
        object_ids = [ref.id for ref in refs if type(ref) is ObjectRef]
        want = client.objects.want(object_ids, None, False)

    def here() -> list[bool]:
        objects = client.objects
        return [objects.is_ready(ref.id) if type(ref) is ObjectRef else ref.is_ready() for ref in refs]

    try:
        client.wait_until(lambda: sum(here()) >= needed, timeout)
        with client.lock:
            return here()
    finally:
        with client.lock:
            client.objects.end_want(want)


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Take back the task or call that makes the value of a ref; ``get`` raises ``TaskCancelledError`` then.

    A task that waits never starts. One that runs sees ``KeyboardInterrupt``; with ``force`` its worker ends.
    A call of an actor is taken back if it has not started, or if it is a coroutine. What has ended stays.

    Args:
        ref: of the task or call, or the generator that it returned.
        force: end the worker process; for tasks only.
        recursive: take back what the task has submitted too.
    Raises:
        TypeError: for anything else.
        ValueError: for ``force`` with a call of an actor, and for a ref made by ``put``.
    """
    if type(ref) is ObjectRefGenerator:
        ref = ref.completed()
    if type(ref) is not ObjectRef:
        raise TypeError(f"zray.cancel takes the ref of a task, not {ref!r}")
    client = session.current()
    _check_refs((ref,), client, "zray.cancel")
    if is_put(ref.id):
        raise ValueError("no task makes this value: it was made by put()")
    client.cancel(producer_of(ref.id), force=force, recursive=recursive)


def _check_refs(refs: Sequence[Any], client: Client, what: str) -> None:
    own = client.weak
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"{what} takes ObjectRefs; this list has {ref!r}")
        if ref._of is not own:
            raise ObjectLostError(short(ref.id), "its session has ended")


def _check_timeout(timeout: float | None) -> None:
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout is not negative: {timeout}")
