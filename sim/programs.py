"""What simulated user code is made of: operations that a generator yields, values, and how they are encoded.

A task is a function of plain values, or a generator that yields operations and is sent their results. It
must be deterministic in its arguments, so that an oracle can run the same code one call after the other.
Refs inside values are counted like handles of the real API: a task lets go of all of its own when it
ends, or earlier with :class:`Forget`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from zray import ids
from zray.errors import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    TaskUnschedulableError,
    WorkerCrashedError,
    ZrayError,
)
from zray.protocol.faults import OUT_OF_DISK, STORE_FULL, fault_error, fault_value
from zray.protocol.messages import ACTOR, ERROR, FAULT, RESOURCE_UNIT, Demand, Describe, Value
from zray.protocol.strategies import Strategy

Program = Generator[Any, Any, Any]
_Ext = msgspec.msgpack.Ext


class Ref:
    """A handle of an object."""

    __slots__ = ("object_id",)

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.object_id == self.object_id

    def __hash__(self) -> int:
        return int.from_bytes(self.object_id, "big")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({ids.short(self.object_id)})"


class ActorRef(Ref):
    """A handle of an actor: the return object of its creation task stands for it."""

    __slots__ = ()

    @property
    def actor_id(self) -> bytes:
        """The creation task."""
        return ids.producer_of(self.object_id)


class Partly(NamedTuple):
    """What a generator with several return objects gave until it raised: the rest holds the error."""

    values: list[Any]
    error: ProgramError


class Blob(NamedTuple):
    """A large value: ``size`` bytes, told from others by ``tag``."""

    size: int
    tag: int


class ProgramError(Exception):
    """An error value, raised where it is got.

    Attributes:
        origin: "user", or the code of the fault it comes from.
        text: what happened.
    """

    def __init__(self, origin: str, text: str) -> None:
        super().__init__(origin, text)
        self.origin, self.text = origin, text
        self.is_final = False  # not worth another attempt


class InterruptError(ProgramError):
    """The task was cancelled while it ran: its code sees an interrupt where it is."""

    def __init__(self) -> None:
        super().__init__("interrupted", "the task was cancelled")


class NoRoomError(ProgramError):
    """The store has no room for a value.

    Attributes:
        refusal: the error that users see.
    """

    def __init__(self, refusal: ObjectStoreFullError | OutOfDiskError) -> None:
        super().__init__("out_of_disk" if isinstance(refusal, OutOfDiskError) else "store_full", str(refusal))
        self.refusal = refusal


# --- operations ----------------------------------------------------------------------------------


class Compute(NamedTuple):
    """Use the processor for a while."""

    duration_ns: int


class Spawn(NamedTuple):
    """Submit a task; the result is its ref, or a list of them if ``returns`` is not 1."""

    function: str
    args: tuple[Any, ...] = ()
    returns: int = 1
    retries: int = -1
    cpus: float = 1.0
    retry_exceptions: bool = False
    strategy: Strategy | None = None


class Fetch(NamedTuple):
    """Get the values of refs, in order; raises :class:`ProgramError` for an error value."""

    refs: Sequence[Ref]


class Await(NamedTuple):
    """Wait until ``needed`` of the refs are ready; the result says of each whether it is."""

    refs: Sequence[Ref]
    needed: int


class Store(NamedTuple):
    """Put a value; the result is its ref."""

    value: Any
    copies: int = 1
    """On how many nodes it is to be kept, as far as there are as many."""


class Forget(NamedTuple):
    """Let go of refs."""

    refs: Sequence[Ref]


class MakeActor(NamedTuple):
    """Create an actor; the result is its handle."""

    actor: str
    args: tuple[Any, ...] = ()
    cpus: float = 0.0
    restarts: int = 0
    checkpoint: int = -1
    """Calls between two checkpoints; -1: it has none, 0: none but the recorded calls."""
    spread: bool = False
    at_once: int = 1
    """How many calls run at once."""


class CallActor(NamedTuple):
    """Call a method; the result is the ref of what it returns, or a list of them if ``returns`` is not 1."""

    actor: ActorRef
    method: str
    args: tuple[Any, ...] = ()
    returns: int = 1
    repeats: int = 0
    """How often it may run again if the actor is made again; -1: without end."""


class Emit(NamedTuple):
    """Make an item of the stream that this task or call makes, and wait until the next one may be made."""

    value: Any
    waits: bool = True
    """Otherwise whoever makes it asks himself whether the next one may be made."""


class EndActor(NamedTuple):
    """Kill an actor."""

    actor: ActorRef


# --- code ----------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {}
ACTORS: dict[str, type[Any]] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])
_ActorClass = TypeVar("_ActorClass", bound=type[Any])


def task(function: _Function) -> _Function:
    """Register a task by its name."""
    FUNCTIONS[function.__name__] = function
    return function


def actor(cls: _ActorClass) -> _ActorClass:
    """Register an actor class by its name. Refs in its ``kept`` live until it lets go of them."""
    ACTORS[cls.__name__] = cls
    return cls


_descriptors: dict[tuple[Any, ...], Describe] = {}


def descriptor_of(
    name: str, kind: int, returns: int, cpus: float, retries: int, again: bool,
    strategy: Strategy | None = None,
) -> Describe:  # fmt: skip
    """The descriptor of tasks that have all this in common."""
    return _descriptor(name, kind, returns, cpus, retries, again, strategy)


def descriptor_of_actor(operation: MakeActor) -> Describe:
    """The descriptor of the creation tasks of such actors."""
    plain = _descriptor(operation.actor, ACTOR, 1, operation.cpus, 0, False)
    special: tuple[int, ...] = operation.restarts, operation.checkpoint, operation.spread
    if operation.at_once > 1:  # apart, so that the ids of the others, and with them seeds, stay what they are
        special = (*special, operation.at_once)
    elif special == (0, -1, False):
        return plain
    return msgspec.structs.replace(
        plain,
        descriptor_id=ids.content_id(plain.descriptor_id + repr(special).encode()),
        max_restarts=operation.restarts,
        checkpoint_interval=operation.checkpoint,
        records_calls=operation.checkpoint >= 0,
        spread=operation.spread,
        max_concurrency=operation.at_once,
    )


def _descriptor(
    name: str, kind: int, returns: int, cpus: float, retries: int, again: bool,
    strategy: Strategy | None = None,
) -> Describe:  # fmt: skip
    key = (name, kind, returns, cpus, retries, again, strategy)
    found = _descriptors.get(key)
    if found is None:
        units = round(cpus * RESOURCE_UNIT)
        demand: Demand = (("CPU", units),) if units else ()
        content = repr(key if strategy is not None else key[:-1]).encode()
        found = _descriptors[key] = Describe(
            ids.content_id(content),
            ids.content_id(name.encode()),
            name,
            returns,
            demand,
            retries,
            kind,
            again,
            strategy=strategy,
        )
    return found


# --- values --------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """An encoded value: its bytes, the size that it stands for, and the refs inside."""

    data: bytes
    total_bytes: int
    contained: tuple[bytes, ...]


class _Input(NamedTuple):
    """Stands for an argument that is the value of a dependency."""

    place: int


_REF, _ACTOR, _BLOB, _INPUT = 1, 2, 3, 4
_NONE = Packed(b"\xc0", 1, ())
_found: list[bytes] = []  # refs that the encoder came across
_blob_bytes = [0]


def _to_wire(value: Any) -> Any:
    if isinstance(value, Ref):
        _found.append(value.object_id)
        return _Ext(_ACTOR if isinstance(value, ActorRef) else _REF, value.object_id)
    raise TypeError(f"a simulated value cannot be a {type(value).__name__}")


def _from_wire(code: int, data: memoryview) -> Any:
    content = bytes(data)
    if code == _INPUT:
        return _Input(int.from_bytes(content, "big"))
    if code == _BLOB:
        size, tag = msgspec.msgpack.decode(content)
        return Blob(size, tag)
    _found.append(content)
    return ActorRef(content) if code == _ACTOR else Ref(content)


_encode = msgspec.msgpack.Encoder(enc_hook=_to_wire).encode
_decode = msgspec.msgpack.Decoder(ext_hook=_from_wire).decode


def _prepared(value: Any) -> Any:
    """The value with blobs and inputs as extensions, which the encoder would take for plain tuples."""
    if isinstance(value, Blob):
        _blob_bytes[0] += value.size
        return _Ext(_BLOB, _encode((value.size, value.tag)))
    if isinstance(value, _Input):
        return _Ext(_INPUT, value.place.to_bytes(4, "big"))
    if isinstance(value, list | tuple):
        return [_prepared(one) for one in value]
    if isinstance(value, dict):
        return {key: _prepared(one) for key, one in value.items()}
    return value


def pack(value: Any) -> Packed:
    """Encode a value."""
    if value is None:
        return _NONE
    _found.clear()
    _blob_bytes[0] = 0
    data = _encode(_prepared(value))
    return Packed(data, len(data) + _blob_bytes[0], tuple(dict.fromkeys(_found)))


def unpack(data: bytes) -> tuple[Any, tuple[bytes, ...]]:
    """Decode a value; also the ids of its refs, once for each handle that was made."""
    if data == b"\xc0":
        return None, ()
    _found.clear()
    value = _decode(data)
    return value, tuple(_found)


def pack_args(args: tuple[Any, ...]) -> tuple[Packed, tuple[bytes, ...]]:
    """Encode arguments; refs at the top level become dependencies, whose ids are returned."""
    deps: dict[bytes, int] = {}
    plain: list[Any] = []
    for arg in args:
        if isinstance(arg, Ref) and not isinstance(arg, ActorRef):
            plain.append(_Input(deps.setdefault(arg.object_id, len(deps))))
        else:
            plain.append(arg)
    return pack(plain), tuple(deps)


def unpack_args(data: bytes, inputs: list[bytes]) -> tuple[list[Any], list[bytes]]:
    """Decode arguments with the encoded values of their dependencies; also the ids of all refs in them."""
    args, contained = unpack(data)
    refs = list(contained)
    for place, arg in enumerate(args):
        if isinstance(arg, _Input):
            args[place], inner = unpack(inputs[arg.place])
            refs.extend(inner)
    return args, refs


def refs_in(value: Any) -> list[bytes]:
    """The ids of all refs inside a value, with repetition."""
    if isinstance(value, Ref):
        return [value.object_id]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [object_id for one in value for object_id in refs_in(one)]
    return []


_encode_error = msgspec.msgpack.Encoder().encode
_decode_error = msgspec.msgpack.Decoder(tuple[str, str]).decode


def pack_error(error: ProgramError) -> bytes:
    """An error as the data of a value."""
    return _encode_error((error.origin, error.text))


def value_of(error: ProgramError) -> Value:
    """An error as a value."""
    if not isinstance(error, NoRoomError):
        return Value(ERROR, pack_error(error))
    refusal = error.refusal
    if isinstance(refusal, OutOfDiskError):
        return fault_value(OUT_OF_DISK, refusal.need_bytes, refusal.detail)
    return fault_value(STORE_FULL, refusal.need_bytes, refusal.capacity_bytes)


def unpack_error(data: bytes) -> ProgramError:
    """The error in the data of a value."""
    return ProgramError(*_decode_error(data))


_ORIGINS: dict[type[ZrayError], str] = {
    WorkerCrashedError: "worker_crashed", ObjectLostError: "object_lost", ActorDiedError: "actor_died",
    TaskUnschedulableError: "unschedulable",
    ActorUnavailableError: "actor_unavailable",
}  # fmt: skip


def error_in(value: Value) -> ProgramError | None:
    """The error that a value stands for, if it does."""
    if value.kind == ERROR:
        return unpack_error(value.data)
    if value.kind == FAULT:
        fault = fault_error(value.data)
        return ProgramError(_ORIGINS.get(type(fault), type(fault).__name__), str(fault))
    return None
