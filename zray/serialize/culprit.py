"""Find which piece of a value cannot be pickled, and the path that leads to it.

The search descends from a value that failed: of its pieces, in the order pickle would meet them, it
takes the first that also fails by itself, until none does. What is left is the culprit. It runs only after a
failure, and is bounded in depth, in width and in time; when a bound stops it, the path found so far
is still right, only less deep.
"""

from __future__ import annotations

import functools
import itertools
import reprlib
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

DEPTH_MAX = 32
"""Steps of a path."""
WIDTH_MAX = 2_000
"""Pieces of one value that are tried."""
SEARCH_TIME_MAX_NS = 2_000_000_000
"""When the search stops; one try of one piece is not interrupted."""

Piece = tuple[str, Any]
"""How the piece is reached from what holds it, such as ``.lock`` or ``[3]``; and the piece."""

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_SEQUENCES = (list, tuple, set, frozenset, deque)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


def find_culprit(
    value: Any, root: str, error: Exception, why_not: Callable[[Any], Exception | None]
) -> tuple[str, str]:
    """The path to the deepest piece of ``value`` that fails, and what pickle says about it.

    Args:
        value: what could not be pickled.
        root: the name of ``value``, where the path starts.
        error: how pickling ``value`` failed.
        why_not: tries to pickle a piece; the error, or ``None`` if it can be pickled.
    Returns:
        ``(path, detail)``, such as ``("cfg.sessions[3].lock", "cannot pickle '_thread.lock' object")``.
    """
    deadline_ns = time.monotonic_ns() + SEARCH_TIME_MAX_NS
    path, chain = [root], [value]
    while len(path) <= DEPTH_MAX:
        failing = _first_failing(chain, why_not, deadline_ns)
        if failing is None:
            break
        label, piece, error = failing
        path.append(label)
        chain.append(piece)
    return "".join(path), describe(error)


def describe(error: BaseException) -> str:
    """One line about ``error``; the class is named where the sentence alone would not say enough."""
    text = str(error)
    return text if isinstance(error, TypeError) and text else f"{type(error).__name__}: {text}"


def _first_failing(
    chain: list[Any], why_not: Callable[[Any], Exception | None], deadline_ns: int
) -> tuple[str, Any, Exception] | None:
    for label, piece in itertools.islice(_pieces(chain[-1]), WIDTH_MAX):
        if time.monotonic_ns() > deadline_ns:
            return None
        # A piece that holds itself fails for the same reason as its holder: look elsewhere.
        if type(piece) in _ATOMS or any(piece is holder for holder in chain):
            continue
        error = why_not(piece)
        if error is not None:
            return label, piece, error
    return None


def _pieces(value: Any) -> Iterator[Piece]:
    """What pickle would visit inside ``value``; ends early where the value's own code raises."""
    try:
        yield from _pieces_of(value)
    except Exception:
        return


def _pieces_of(value: Any) -> Iterator[Piece]:
    if isinstance(value, types.FunctionType):
        yield from _function_pieces(value)
    elif isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, type):
        yield from _class_pieces(value)
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from _indexed(".args", value.args)
        yield from _items(".keywords", value.keywords.items())
    elif isinstance(value, property):
        yield from ((".fget", value.fget), (".fset", value.fset), (".fdel", value.fdel))
    else:
        yield from _container_pieces(value)
        if type(value) is not dict and type(value) not in _SEQUENCES:
            yield from _reduced_pieces(value)


def _container_pieces(value: Any) -> Iterator[Piece]:
    numpy = sys.modules.get("numpy")
    if isinstance(value, dict):
        yield from _items("", value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", item) for name, item in zip(value._fields, value, strict=False))
    elif isinstance(value, _SEQUENCES):
        yield from _indexed("", value)
    elif numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.hasobject:
        yield from _indexed(".flat", value.flat)


def _indexed(prefix: str, values: Iterable[Any]) -> Iterator[Piece]:
    for index, item in enumerate(values):
        yield f"{prefix}[{index}]", item


def _items(prefix: str, items: Iterable[tuple[Any, Any]]) -> Iterator[Piece]:
    for key, item in items:
        shown = reprlib.repr(key)
        yield f"{prefix}.<key {shown}>", key
        yield f"{prefix}[{shown}]", item


def _function_pieces(function: types.FunctionType) -> Iterator[Piece]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:  # a cell that was never filled
            continue
    for name in _names_used(code):
        if name in function.__globals__:
            yield f".<global> {name}", function.__globals__[name]
    yield from _indexed(".__defaults__", function.__defaults__ or ())
    yield from _items(".__kwdefaults__", (function.__kwdefaults__ or {}).items())
    yield from _attributes(vars(function))


def _names_used(code: types.CodeType) -> dict[str, None]:
    """Names that the code, or a function inside it, may look up as globals; in order."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_names_used(constant))
    return names


def _class_pieces(cls: type) -> Iterator[Piece]:
    for name, item in vars(cls).items():
        made_by_the_class_statement = name.startswith("__") and not callable(item)
        if made_by_the_class_statement or name == "_abc_impl" or isinstance(item, _DESCRIPTORS):
            continue
        inner = item.__func__ if isinstance(item, (staticmethod, classmethod)) else item
        yield f".{name}", inner
    yield from _indexed(".__bases__", cls.__bases__)


def _reduced_pieces(value: Any) -> Iterator[Piece]:
    """The parts of ``value.__reduce_ex__``: what pickle takes of an instance, whatever its class says."""
    reduced = value.__reduce_ex__(5)
    if isinstance(reduced, str):  # the name of a global
        return
    maker, arguments, state, list_items, dict_items = (*reduced, None, None, None)[:5]
    yield from _state_pieces(state)
    yield ".<made by>", maker
    for index, argument in enumerate(arguments):
        yield (".__class__" if argument is type(value) else f".<made from {index}>"), argument
    yield from _indexed("", list_items or ())
    yield from _items("", dict_items or ())


def _state_pieces(state: Any) -> Iterator[Piece]:
    if isinstance(state, tuple) and len(state) == 2 and all(isinstance(half, dict | None) for half in state):
        yield from _attributes(state[0] or {})
        yield from _attributes(state[1] or {})  # the slots
    elif isinstance(state, dict):
        yield from _attributes(state)
    elif state is not None:
        yield ".<state>", state


def _attributes(attributes: dict[Any, Any]) -> Iterator[Piece]:
    for name, item in attributes.items():
        yield f".{name}", item
