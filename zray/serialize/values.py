"""Python values as bytes, and back without copies: the bytes of every argument, result and ``put``.

A value has one *flat layout*, the same inside a message, in an arena and in a file. Most values are a bare
pickle (protocol 5; its first byte is 0x80). A value with out-of-band buffers is framed::

    | magic 4 | buffer count u32 | pickle bytes u64 | size of each buffer u64 ... | pickle |
    | padding | buffer 0 | padding | buffer 1 | ...       (little endian)

Every buffer starts at a multiple of ``ALIGN_BYTES``, so its place follows from the sizes, and an array
mapped from an aligned extent is aligned. Numpy arrays, and whatever else offers pickle-5 buffers, are
written straight from their memory and come back as read-only views of the bytes they are loaded from: a
sealed object never changes. ``bytes``, ``bytearray`` and ``str`` must be objects of their own once loaded, so
a view would gain nothing: the large ones stay in the pickle, which is kept in pieces that refer to them.

One invariant: nothing of ``__main__`` is pickled by reference, since a worker has another ``__main__``.
Plain pickle is used only for values made of builtins; all else goes through cloudpickle's rules.

Source: Moritz et al., "Ray", OSDI 2018, section 4.2.3 (zero-copy sharing on a node).
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pickle import PickleBuffer, dumps, loads
from struct import Struct, pack, unpack_from
from types import CodeType, FunctionType
from typing import Any

from zray.errors import RemoteProtocolError, SerializationError, TaskError, ZrayError, fields_of, set_fields
from zray.serialize.culprit import describe, find_culprit

ALIGN_BYTES = 64
"""Out-of-band buffers start at multiples of this: a cache line, and what vector loads like best."""
PLAIN_TEXT_BYTES_MAX = 64 * 1024
"""From here on the pickler writes ``bytes`` and ``str`` past its own buffer, and so saves a copy."""
PLAIN_ITEMS_MAX = 32
"""Containers up to this length, ``PLAIN_DEPTH_MAX`` deep, are looked through for a plain pickle."""
PLAIN_DEPTH_MAX = 3
TRACEBACK_TEXT_MAX = 256 * 1024
"""Characters of a traceback; the middle of a longer one is left out."""

_PICKLE_FIRST_BYTE = 0x80
_MAGIC = b"ZRV\x01"
_HEADER = Struct("<4sIQ")
_SIZE_BYTES = 8
_PADDING = bytes(ALIGN_BYTES)

PLAIN_ATOMS = frozenset({type(None), bool, int, float})
"""Types that plain pickle is always right for, and whose values are small."""
_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

BytesLike = bytes | bytearray | memoryview


class DeserializationError(RemoteProtocolError):
    """Bytes that do not load: damaged, or in need of something that is not here (see ``__cause__``)."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"cannot load {what}: {detail}")
        self.what, self.detail = what, detail


class Serialized:
    """A value ready to be written, once, in its flat layout.

    It refers to the memory of the value: write it before the value changes.

    Attributes:
        stream: the pickle, as pieces in order.
        buffers: memoryviews (flat, bytes) of what is out of band.
        contained: ids of the objects whose refs are inside, each once, in order.
        total_bytes: int, the size of the flat layout.
    """

    __slots__ = ("buffers", "contained", "stream", "total_bytes")

    def __init__(
        self,
        stream: Sequence[BytesLike],
        total_bytes: int,
        buffers: Sequence[memoryview] = (),
        contained: tuple[bytes, ...] = (),
    ) -> None:
        self.stream = stream
        self.total_bytes = total_bytes
        self.buffers = buffers
        self.contained = contained

    def to_bytes(self) -> bytes:
        """The flat layout in one piece, for a value that travels inside a message."""
        stream = self.stream
        if len(stream) == 1 and not self.buffers:
            return stream[0]  # type: ignore[return-value]
        return b"".join(self.segments())

    def write_into(self, target: memoryview) -> int:
        """Write the flat layout to the start of ``target`` (writable, flat, bytes); returns its size.

        Raises:
            ValueError: if ``target`` is too small; nothing is written.
        """
        if target.nbytes < self.total_bytes:
            raise ValueError(f"{self.total_bytes} bytes do not fit into {target.nbytes}")
        start = 0
        for segment in self.segments():
            end = start + len(segment)
            target[start:end] = segment
            start = end
        return start

    def segments(self) -> list[BytesLike]:
        """What the flat layout is made of, in order."""
        if not self.buffers:
            return list(self.stream)
        sizes = [len(buffer) for buffer in self.buffers]
        stream_bytes = sum(map(len, self.stream))
        header = _HEADER.pack(_MAGIC, len(sizes), stream_bytes) + pack(f"<{len(sizes)}Q", *sizes)
        segments: list[BytesLike] = [header, *self.stream]
        end = len(header) + stream_bytes
        for buffer, size in zip(self.buffers, sizes, strict=True):
            gap = -end % ALIGN_BYTES
            if gap:
                segments.append(_PADDING[:gap])
            segments.append(buffer)
            end += gap + size
        return segments


# --- values: dump -------------------------------------------------------------------------------


class _DumpContext(threading.local):
    """What the dump in progress in this thread has met; ``None`` outside any dump."""

    found: list[bytes] | None = None


_context = _DumpContext()


def note_contained(object_id: bytes) -> None:
    """A ref to this object is being pickled. Outside of a dump (pickle by hand) nothing is noted."""
    found = _context.found
    if found is not None:
        found.append(object_id)


def dump(value: Any, what: str = "the value", root: str = "value") -> Serialized:
    """Pickle ``value`` without copying its large buffers.

    Args:
        value: anything.
        what: what the value is, for the error: ``"the return value of f()"``.
        root: the name of the value, where the path to a culprit starts.
    Raises:
        SerializationError: naming the piece that cannot be pickled.
    Cost: about 0.4 us for a small plain value, 3 us for an array, 4 us for an instance.
    """
    if value is None:
        return NONE
    if type(value) in PLAIN_ATOMS or is_plain(value, PLAIN_DEPTH_MAX):
        data = dumps(value, 5)
        return Serialized((data,), len(data))
    try:
        return pickle_value(value)
    except ZrayError:
        raise
    except Exception as error:
        raise SerializationError(what, *locate_culprit(value, root, error)) from error


def dump_plain(value: Any) -> bytes | None:
    """The flat layout of a value that plain pickle is right for; ``None`` for any other: use :func:`dump`."""
    if type(value) in PLAIN_ATOMS or is_plain(value, PLAIN_DEPTH_MAX):
        return dumps(value, 5)
    return None


def is_plain(value: Any, depth: int) -> bool:
    """Whether ``value`` is small and made of nothing but builtins: plain pickle is right and fast."""
    kind = type(value)
    if kind in PLAIN_ATOMS:
        return True
    if kind is str or kind is bytes:
        return len(value) < PLAIN_TEXT_BYTES_MAX
    if kind is tuple or kind is list:
        return depth > 0 and len(value) <= PLAIN_ITEMS_MAX and _are_plain(value, depth - 1)
    if kind is dict:
        small = depth > 0 and len(value) <= PLAIN_ITEMS_MAX
        return small and _are_plain(value, depth - 1) and _are_plain(value.values(), depth - 1)
    return False


def _are_plain(items: Any, depth: int) -> bool:
    # A loop, not all(): the generator would cost as much as the scan.
    for item in items:  # noqa: SIM110
        if type(item) not in PLAIN_ATOMS and not is_plain(item, depth):
            return False
    return True


def pickle_value(value: Any) -> Serialized:
    """Pickle anything by cloudpickle's rules; raises whatever the pickler raises."""
    if type(value) is _ndarray() and _is_named_dtype(value.dtype):
        return _pickle_array(value)
    out_of_band: list[PickleBuffer] = []
    stream = _Pieces()
    outer = _context.found
    found: list[bytes] = []
    _context.found = found
    try:
        pickler = _pickler_class()(stream, 5, buffer_callback=out_of_band.append)
        pickler.ndarray = _ndarray()
        pickler.dump(value)
    finally:
        _context.found = outer
    contained = tuple(dict.fromkeys(found)) if found else ()
    return assemble(stream, out_of_band, contained)


def assemble(
    stream: Sequence[BytesLike], out_of_band: list[PickleBuffer], contained: tuple[bytes, ...]
) -> Serialized:
    """The flat layout of a pickle and its buffers."""
    stream_bytes = sum(map(len, stream))
    if not out_of_band:
        return Serialized(stream, stream_bytes, (), contained)
    buffers = [buffer.raw() for buffer in out_of_band]
    total_bytes = _HEADER.size + _SIZE_BYTES * len(buffers) + stream_bytes
    for buffer in buffers:
        total_bytes += -total_bytes % ALIGN_BYTES + len(buffer)
    return Serialized(stream, total_bytes, buffers, contained)


class _Pieces(list[BytesLike]):
    """A file for the pickler that keeps what it is handed: large ``bytes`` arrive as themselves."""

    def write(self, piece: BytesLike) -> None:
        # A memoryview shows a buffer that the pickler frees afterwards (the UTF-8 of a long string).
        self.append(bytes(piece) if type(piece) is memoryview else piece)


_NO_FILENAME = "<dynamic-code>"


@cache
def _pickler_class() -> Any:
    """Made at first use: a process that meets plain values only need not import cloudpickle."""
    import cloudpickle

    class ValuePickler(cloudpickle.Pickler):
        """Cloudpickle's rules (by value what a worker cannot import), and arrays as views."""

        ndarray: Any = None

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is self.ndarray:
                return _reduce_array(obj) if _is_flat_dtype(obj.dtype) else NotImplemented
            if kind is CodeType:
                return _with_filename(obj, self.dispatch_table[CodeType](obj))
            # Most objects are no function, no class and no proxy of one: spare them the long way.
            if kind is not FunctionType and not issubclass(kind, type) and obj.__class__ is kind:
                return NotImplemented
            reduced = super().reducer_override(obj)
            return _with_slots(obj, reduced) if issubclass(kind, type) else reduced

    return ValuePickler


def _with_filename(code: CodeType, reduced: Any) -> Any:
    """Cloudpickle from 3.1.3 on ships code without the name of its file; tracebacks of tasks need it."""
    make, arguments = reduced
    filename = "".join(code.co_filename)  # a new string: one that other code shares would make another pickle
    return make, tuple([filename if each == _NO_FILENAME else each for each in arguments])


def _with_slots(cls: type, reduced: Any) -> Any:
    """Cloudpickle makes a class anew without its ``__slots__``; its instances would load nowhere else."""
    slots = cls.__dict__.get("__slots__")
    if not slots or type(reduced) is not tuple or reduced[0].__name__ != "_make_skeleton_class":
        return reduced
    kind, name, bases, fields, *rest = reduced[1]
    return reduced[0], (kind, name, bases, {**fields, "__slots__": slots}, *rest), *reduced[2:]


def preload() -> None:
    """Import now what a dump may need later; for the process that workers are forked from."""
    _pickler_class()


def locate_culprit(value: Any, root: str, error: Exception) -> tuple[str, str]:
    """The path from ``root`` to the piece that cannot be pickled, and why it cannot."""
    if isinstance(error.__cause__, RecursionError):  # every level of it fails alike
        return root, "it is nested too deeply"
    return find_culprit(value, root, error, why_not)


def why_not(value: Any) -> Exception | None:
    """Why ``value`` cannot be pickled; ``None`` if it can."""
    try:
        pickle_value(value)
    except Exception as error:
        return error
    return None


NONE = Serialized((dumps(None, 5),), len(dumps(None, 5)))
"""The value of every function without a return value."""


# --- values: numpy arrays -----------------------------------------------------------------------


def _ndarray() -> Any:
    """``numpy.ndarray`` if numpy was imported: only then can a value be one."""
    return getattr(sys.modules.get("numpy"), "ndarray", None)


def _is_flat_dtype(dtype: Any) -> bool:
    """Whether the elements are their bytes: no references to objects or to strings elsewhere."""
    return dtype.kind in "biufcmMSUV" and not dtype.hasobject


def _is_named_dtype(dtype: Any) -> bool:
    """Whether ``dtype.str`` says it all: no fields, no metadata, nothing that another package adds."""
    return dtype.kind in "biufcmMSU" and dtype.isbuiltin != 2 and dtype.metadata is None


def _pickle_array(array: Any) -> Serialized:
    out_of_band: list[PickleBuffer] = []
    data = dumps(_ArrayShell(array), 5, buffer_callback=out_of_band.append)
    return assemble((data,), out_of_band, ())


class _ArrayShell:
    """Pickles as the array does, by plain pickle: an array of plain numbers has nothing of ``__main__``."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce_array(self.array)


def _reduce_array(array: Any) -> tuple[Any, ...]:
    """An array as a buffer, a dtype, a shape and an order; only a strided one is copied."""
    order = "C"
    if not array.flags.c_contiguous:
        if array.flags.f_contiguous:
            order = "F"
        else:
            array = array.copy(order="C")
    dtype = array.dtype
    try:
        buffer = PickleBuffer(array)
    except ValueError:  # the buffer protocol has no letter for dates
        buffer = PickleBuffer(array.reshape(-1, order=order).view("u1"))
    return rebuild_array, (buffer, dtype.str if _is_named_dtype(dtype) else dtype, array.shape, order)


def rebuild_array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    """A read-only array that looks at ``buffer`` and keeps it alive."""
    import numpy as np

    if len(buffer) == 0:  # frombuffer refuses elements of no size
        empty = np.ndarray(shape, dtype)
        if empty.nbytes:
            raise ValueError(f"no bytes for an array of shape {shape}")
        empty.flags.writeable = False
        return empty
    flat: Any = np.frombuffer(buffer, dtype)
    return flat if len(shape) == 1 else flat.reshape(shape, order=order)


# --- values: load -------------------------------------------------------------------------------


def load(buffer: BytesLike, what: str = "a value") -> Any:
    """The value in a flat layout. Arrays are read-only views of ``buffer`` and keep it alive.

    Args:
        buffer: the flat layout (flat, bytes); what follows it is ignored.
        what: what is loaded, for the error.
    Raises:
        DeserializationError: a ``RemoteProtocolError``, for anything that cannot be loaded.
        ZrayError: as raised by what is inside (a ref that needs a running zray).
    """
    try:
        if buffer[0] == _PICKLE_FIRST_BYTE:
            return loads(buffer)
        return _load_framed(memoryview(buffer).toreadonly())
    except ZrayError:
        raise
    except Exception as error:
        raise DeserializationError(what, f"{describe(error)} ({len(buffer)} bytes)") from error


def _load_framed(view: memoryview) -> Any:
    magic, count, stream_bytes = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise ValueError("these bytes are no value")
    start = _HEADER.size + _SIZE_BYTES * count
    end = start + stream_bytes
    if end > len(view):
        raise ValueError("the bytes end early")
    if view[start] != _PICKLE_FIRST_BYTE:  # a wrong table must not start the unpickler in the middle
        raise ValueError("there is no pickle behind the table")
    buffers = list(_slices(view, end, unpack_from(f"<{count}Q", view, _HEADER.size)))
    return loads(view[start:end], buffers=buffers)


def _slices(view: memoryview, end: int, sizes: tuple[int, ...]) -> Iterator[memoryview]:
    for size in sizes:
        start = end + -end % ALIGN_BYTES
        end = start + size
        if end > len(view):
            raise ValueError("the bytes end early")
        yield view[start:end]


# --- errors as values ---------------------------------------------------------------------------

# What the cause of an error was packed as.
_NO_CAUSE = 0
_CAUSE = 1  # an exception
_CAUSE_ERROR = 2  # an error value of its own, so that only the innermost piece can get lost


def dump_error(error: BaseException, contained: dict[bytes, None] | None = None) -> bytes:
    """An error as a value. Never fails: what cannot be pickled is left out, and a note says so.

    Args:
        error: what was raised, or stands for that.
        contained: takes the ids of the objects whose refs are inside.
    """
    found = {} if contained is None else contained
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    kind, cause = _NO_CAUSE, b""
    shell = error
    inner = getattr(error, "cause", None) if isinstance(error, ZrayError) else None
    if isinstance(inner, BaseException):
        shell = copy.copy(error)
        shell.cause = None  # type: ignore[attr-defined]
        if isinstance(inner, ZrayError):
            kind, cause = _CAUSE_ERROR, dump_error(inner, found)
        else:
            try:
                kind, cause = _CAUSE, _pickle_exception(inner, found)
            except Exception as why:
                notes.append(f"its cause, a {_class_name(inner)}, could not be pickled: {describe(why)}")
    try:
        body = _pickle_exception(shell, found)
    except Exception as why:
        notes.append(f"a {_class_name(error)} that could not be pickled: {describe(why)}")
        body = b""
    return dumps((body, kind, cause, _class_name(inner), _safe_text(error), notes), 5)


def load_error(data: BytesLike) -> BaseException:
    """The exception that :func:`dump_error` packed; without what this process cannot load.

    Raises:
        RemoteProtocolError: if ``data`` is no error value.
    """
    packed = load(data, "an error")
    try:
        body, kind, cause_data, cause_class, text, notes = packed
        notes = [*notes]
        error = _load_body(body, text, notes)
        if kind != _NO_CAUSE:
            cause = _load_cause(kind, cause_data, cause_class, notes)
            error.cause = cause  # type: ignore[attr-defined]
            error.__cause__ = cause
    except (TypeError, ValueError) as why:
        raise RemoteProtocolError(f"these bytes are no error value: {why}") from why
    if notes:
        error.__notes__ = notes
    return error


def _load_body(body: bytes, text: str, notes: list[str]) -> BaseException:
    if body:
        try:
            return _load_exception(body)
        except ZrayError as why:
            notes.append(f"this error could not be unpickled here: {why}")
    return ZrayError(text)


def _load_cause(kind: int, data: bytes, class_name: str, notes: list[str]) -> BaseException | None:
    try:
        cause = load_error(data) if kind == _CAUSE_ERROR else _load_exception(data)
        return cause.as_cause() if isinstance(cause, TaskError) else cause
    except ZrayError as why:
        notes.append(f"its cause, a {class_name}, could not be unpickled here: {why}")
        return None


def _pickle_exception(error: BaseException, contained: dict[bytes, None]) -> bytes:
    """Pickle an exception so that it loads, even if its constructor does not take its ``args``."""
    if not isinstance(type(error).__init__, FunctionType) or type(error).__reduce__ not in _CALL_CONSTRUCTOR:
        packed = pickle_value(error)
        data = packed.to_bytes()
        with suppress(ZrayError):
            _load_exception(data)
            contained.update(dict.fromkeys(packed.contained))
            return data
    # Its own constructor might take the ``args`` for something else than they are.
    packed = pickle_value(_ByFields(error))
    data = packed.to_bytes()
    _load_exception(data)
    contained.update(dict.fromkeys(packed.contained))
    return data


def _load_exception(data: BytesLike) -> BaseException:
    error = load(data, "an exception")
    if not isinstance(error, BaseException):
        raise DeserializationError("an exception", f"it came out as a {type(error).__name__}")
    return error


_CALL_CONSTRUCTOR = (BaseException.__reduce__, OSError.__reduce__)
"""How exceptions are pickled that say nothing else: as a call of their class with their ``args``."""


class _ByFields:
    """Pickles an exception as its fields, past its constructor."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        return rebuild_exception, (type(error), error.args, fields_of(error))


def rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]
) -> BaseException:
    """An exception with these fields, made without its constructor."""
    error = cls.__new__(cls, *args)
    set_fields(error, args, fields)
    return error


def _class_name(error: BaseException | None) -> str:
    cls = type(error)
    return f"{cls.__module__}.{cls.__qualname__}"


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as why:
        return f"{_class_name(error)}, whose text cannot be shown ({_class_name(why)})"


def format_user_traceback(error: BaseException) -> str:
    """The traceback as text, without zray's own frames.

    Causes come first, as Python prints them, with one exception: a ``TaskError`` ends with the
    traceback of the task that failed, and so with the root cause; what was raised before it is left out.
    """
    import traceback

    formatted = traceback.TracebackException.from_exception(error, compact=True)
    pending: list[tuple[Any, BaseException | None]] = [(formatted, error)]
    while pending:
        part, exception = pending.pop()
        if part is None or exception is None:
            continue
        theirs = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE_DIR)]
        part.stack[:] = theirs or part.stack
        if isinstance(exception, TaskError):
            part.__cause__ = part.__context__ = None
            continue
        pending.append((part.__cause__, exception.__cause__))
        pending.append((part.__context__, exception.__context__))
        inner = getattr(exception, "exceptions", ())
        pending.extend(zip(part.exceptions or (), inner, strict=False))
    return _shortened("".join(formatted.format()))


def _shortened(text: str) -> str:
    if len(text) <= TRACEBACK_TEXT_MAX:
        return text
    half = TRACEBACK_TEXT_MAX // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
