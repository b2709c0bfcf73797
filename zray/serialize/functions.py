"""Calls as bytes: the code of a function, once, and the arguments of each call.

Code is pickled once per process, named by its content, and unpickled once per worker. One function has the
same content in every process of a node (``canonical.py``), and on every node unless there is a set in it,
whose order is the zygote's own. Cloudpickle decides what goes by value (``__main__``, lambdas, closures, what
a module does not offer under its own name) and what by reference. A function is pickled as it is when it is
first used; a change of its globals or of its closure after that does not reach the workers.

Arguments that are refs are no part of the pickle: the scheduler sees them as dependencies, and the task gets
their values.

Source: Moritz et al., "Ray", OSDI 2018, section 4.3 and figure 7a, step 0: a remote function is registered
and distributed to every worker before its first task.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pickle import PickleBuffer, dumps
from typing import Any, NamedTuple

from zray.errors import RemoteProtocolError, SerializationError, ZrayError
from zray.ids import content_id, short
from zray.serialize.canonical import canonical_pickle
from zray.serialize.culprit import describe
from zray.serialize.values import (
    PLAIN_ATOMS,
    PLAIN_DEPTH_MAX,
    PLAIN_TEXT_BYTES_MAX,
    BytesLike,
    DeserializationError,
    Serialized,
    assemble,
    dump,
    is_plain,
    load,
    locate_culprit,
    pickle_value,
    why_not,
)

Code = tuple[bytes, bytes]
"""``(function_id, code)``."""


class _Export(NamedTuple):
    alive: Callable[[], Any]  # the callable, or None once it is gone
    code: Code
    captured: tuple[bytes, ...]


_exports: dict[int, _Export] = {}  # by id() of a callable that is alive


def export(function: Callable[..., Any]) -> Code:
    """The code of a function or class, and its id: the digest of the code.

    Raises:
        SerializationError: naming the variable that cannot be pickled.
    Cost: 0.1 us for a callable exported before.
    """
    known = _exports.get(id(function))
    if known is not None and known.alive() is function:
        return known.code
    return _export(function).code


def captured_refs(function: Callable[..., Any]) -> tuple[bytes, ...]:
    """Ids of the objects whose refs ``function`` holds in its closure, defaults or globals."""
    known = _exports.get(id(function))
    if known is not None and known.alive() is function:
        return known.captured
    return _export(function).captured


def _export(function: Callable[..., Any]) -> _Export:
    name = getattr(function, "__name__", type(function).__name__)
    serialized = _same_everywhere(dump(function, f"{_kind_of(function)} {name}", name))
    code = serialized.to_bytes()
    key = id(function)

    def forget(_dead: object) -> None:
        _exports.pop(key, None)

    try:
        weak = weakref.ref(function, forget)
    except TypeError:  # a callable without room for weak references: pickled anew each time
        return _Export(_nothing, (content_id(code), code), serialized.contained)
    made = _exports[key] = _Export(weak, (content_id(code), code), serialized.contained)
    return made


def _same_everywhere(code: Serialized) -> Serialized:
    """Code by which a parent that runs again, perhaps in another worker, submits the very same children."""
    stream = canonical_pickle(b"".join(code.stream))
    buffers = [PickleBuffer(buffer) for buffer in code.buffers]
    return assemble((stream,), buffers, code.contained)


def _kind_of(function: object) -> str:
    return "class" if isinstance(function, type) else "function"


def _nothing() -> None:
    return None


class FunctionTable:
    """The functions that a worker was sent, each unpickled when it is first needed.

    One that cannot be unpickled fails each task that uses it, and nothing else.
    """

    __slots__ = ("_callables", "_codes", "_failures")

    def __init__(self) -> None:
        self._codes: dict[bytes, bytes] = {}  # not unpickled yet
        self._callables: dict[bytes, Callable[..., Any]] = {}
        self._failures: dict[bytes, Exception] = {}

    def add(self, function_id: bytes, code: bytes) -> None:
        """Keep the code of a function; one that is known already changes nothing.

        Raises:
            RemoteProtocolError: if the code is not the one that the id names.
        """
        if function_id in self:
            return
        if content_id(code) != function_id:
            raise RemoteProtocolError(f"the code of function {short(function_id)} was changed on its way")
        self._codes[function_id] = code

    def __contains__(self, function_id: bytes) -> bool:
        return function_id in self._callables or function_id in self._codes or function_id in self._failures

    def get(self, function_id: bytes, name: str = "") -> Callable[..., Any]:
        """The callable; ``name`` is what an error calls it.

        Raises:
            DeserializationError: if it cannot be unpickled in this process.
            RemoteProtocolError: if it was never added.
        """
        found = self._callables.get(function_id)
        return found if found is not None else self._unpickled(function_id, name or short(function_id))

    def _unpickled(self, function_id: bytes, name: str) -> Callable[..., Any]:
        failure = self._failures.get(function_id)
        if failure is None:
            code = self._codes.get(function_id)
            if code is None:
                raise RemoteProtocolError(f"function {name} was used before it was sent")
            try:
                loaded: Callable[..., Any] = load(code)
            except Exception as error:
                failure = self._failures[function_id] = error
            else:
                self._callables[function_id] = loaded
            self._codes.pop(function_id, None)
            if failure is None:
                return loaded
        # A new error each time: one that is raised again collects the tracebacks of all its tasks.
        raise DeserializationError(f"function {name}", _explain(failure)) from failure


def _explain(failure: Exception) -> str:
    reason = failure.__cause__ or failure
    if isinstance(reason, ImportError) and reason.name:
        return (
            f"the module {reason.name!r} cannot be imported in the worker ({reason}); its sys.path is "
            f"{sys.path}. Install the module on every node, or start the driver where it can be found"
        )
    return str(failure)


# --- arguments ----------------------------------------------------------------------------------

NO_ARGS: tuple[Serialized | bytes, tuple[bytes, ...]] = (b"", ())
"""What :func:`dump_args` makes of a call without arguments."""


def dump_args(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    ref_class: type[Any],
    function: Callable[..., Any] | str = "the function",
) -> tuple[Serialized | bytes, tuple[bytes, ...]]:
    """Pickle the arguments of a call. Refs among them are taken out: the task gets their values.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        ref_class: the exact class of refs; their ``id`` is the object id. Refs deeper inside an argument stay
            in the pickle (``contained``).
        function: what is called, or its name; looked at only for an error.
    Returns:
        ``(blob, deps)``. ``deps`` are the ids of the refs in the order in which :func:`load_args` wants
        their values, repeated where the call repeats them. The blob is ``b""`` if there is nothing
        but refs by position, or nothing at all.
    Raises:
        SerializationError: naming the argument and the piece of it that cannot be pickled.
    """
    if not kwargs:
        if not args:
            return NO_ARGS
        for arg in args:
            kind = type(arg)
            if kind in PLAIN_ATOMS or ((kind is str or kind is bytes) and len(arg) < PLAIN_TEXT_BYTES_MAX):
                continue
            break
        else:
            data = dumps(args, 5)
            return Serialized((data,), len(data)), ()
    return _dump_mixed_args(args, kwargs, ref_class, function)


def _dump_mixed_args(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], ref_class: type[Any], function: Callable[..., Any] | str
) -> tuple[Serialized | bytes, tuple[bytes, ...]]:
    """Arguments with refs or keywords are pickled as ``[rest, keywords, runs, names]``.

    ``rest`` are the positional arguments that are no refs; ``runs`` is a flat list of start and stop
    positions of the refs between them; ``keywords`` hold ``None`` for the refs, which ``names`` lists.
    """
    deps: list[bytes] = []
    rest: list[Any] = []
    runs: list[int] = []
    for position, arg in enumerate(args):
        if type(arg) is not ref_class:
            rest.append(arg)
            continue
        deps.append(arg.id)
        if runs and runs[-1] == position:
            runs[-1] += 1
        else:
            runs += (position, position + 1)
    if not kwargs:
        if not rest:
            return b"", tuple(deps)
        packed: Any = [rest, {}, runs, []] if deps else tuple(args)
    else:
        names = [name for name, arg in kwargs.items() if type(arg) is ref_class]
        deps += [kwargs[name].id for name in names]
        packed = [rest, {**kwargs, **dict.fromkeys(names)}, runs, names]
    return _dump_packed_args(packed, args, kwargs, function), tuple(deps)


def _dump_packed_args(
    packed: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[..., Any] | str
) -> Serialized:
    # Two levels more than a value: the packing itself must not push small arguments off the fast path.
    if is_plain(packed, PLAIN_DEPTH_MAX + 2):
        data = dumps(packed, 5)
        return Serialized((data,), len(data))
    try:
        return pickle_value(packed)
    except ZrayError:
        raise
    except Exception as error:
        raise _argument_error(args, kwargs, function, error) from error


def _argument_error(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[..., Any] | str, error: Exception
) -> SerializationError:
    name, parameters = _signature_of(function)
    labels = [parameters[i] if i < len(parameters) else f"#{i}" for i in range(len(args))]
    for label, arg in [*zip(labels, args, strict=True), *kwargs.items()]:
        reason = why_not(arg)
        if reason is not None:
            return SerializationError(f"argument {label!r} of {name}()", *locate_culprit(arg, label, reason))
    return SerializationError(f"the arguments of {name}()", "args", describe(error))


def _signature_of(function: Callable[..., Any] | str) -> tuple[str, list[str]]:
    """The name, and the names of the parameters that take positional arguments."""
    import inspect  # takes 5 ms, and only an error needs it

    if isinstance(function, str):
        return function, []
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return name, []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # A method of an actor is known by its plain function, and called without the instance.
    return name, positional[1:] if positional[:1] == ["self"] else positional


def load_args(blob: BytesLike, dep_values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, as ``(args, kwargs)``.

    Args:
        blob: the flat layout of what :func:`dump_args` made, or ``b""``.
        dep_values: one value per dependency, in order.
    Raises:
        RemoteProtocolError: if the blob does not load, or wants another number of values.
    """
    if not blob:
        return tuple(dep_values), {}
    packed = load(blob, "the arguments of a task")
    if type(packed) is not tuple:
        return _merge_args(packed, dep_values)
    if dep_values:
        raise RemoteProtocolError(f"the arguments take no dependency, {len(dep_values)} came")
    return packed, {}


def _merge_args(packed: Any, dep_values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        rest, kwargs, runs, names = packed
        args: list[Any] = []
        taken = used = 0
        for start, stop in zip(runs[::2], runs[1::2], strict=True):
            before = start - len(args)
            args += rest[taken : taken + before]
            args += dep_values[used : used + stop - start]
            taken, used = taken + before, used + stop - start
        args += rest[taken:]
        if used + len(names) != len(dep_values):
            raise ValueError(f"{used + len(names)} dependencies wanted, {len(dep_values)} came")
        kwargs.update(zip(names, dep_values[used:], strict=True))
        return tuple(args), kwargs
    except (TypeError, ValueError, AttributeError) as error:
        raise RemoteProtocolError(f"the arguments of a task do not fit its dependencies: {error}") from error
