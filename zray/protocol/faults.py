"""Faults of the system as values: what a machine stores under an object that will never have another.

A user's error is pickled by the worker that caught it; a machine cannot pickle, so it states a code and
plain fields, and the API turns them into the exception of ``zray.errors`` when somebody gets the object.
"""

from __future__ import annotations

import msgspec

from zray.errors import (
    ActorDiedError,
    ActorGroupRemovedError,
    ActorUnavailableError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RemoteProtocolError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskGroupRemovedError,
    TaskUnschedulableError,
    WorkerCrashedError,
    ZrayError,
)
from zray.protocol.messages import FAULT, Value

WORKER_CRASHED = "worker_crashed"  # name, exit_code, attempts
OBJECT_LOST = "object_lost"  # object_id, reason
ACTOR_DIED = "actor_died"  # actor_id, reason
STORE_FULL = "store_full"  # need, capacity
OUT_OF_DISK = "out_of_disk"  # need, detail
CANCELLED = "cancelled"  # task_id
ACTOR_UNAVAILABLE = "actor_unavailable"  # actor_id, reason
ENVIRONMENT = "environment"  # reason
UNSCHEDULABLE = "unschedulable"  # name, reason
TASK_GROUP_REMOVED = "task_group_removed"  # name, placement_group_id
ACTOR_GROUP_REMOVED = "actor_group_removed"  # actor_id, placement_group_id


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A code from above and its fields, in the order given there."""

    code: str
    fields: tuple[str | int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fault).decode

_ERRORS = {
    WORKER_CRASHED: WorkerCrashedError,
    OBJECT_LOST: ObjectLostError,
    ACTOR_DIED: ActorDiedError,
    STORE_FULL: ObjectStoreFullError,
    OUT_OF_DISK: OutOfDiskError,
    CANCELLED: TaskCancelledError,
    ACTOR_UNAVAILABLE: ActorUnavailableError,
    ENVIRONMENT: RuntimeEnvSetupError,
    UNSCHEDULABLE: TaskUnschedulableError,
    TASK_GROUP_REMOVED: TaskGroupRemovedError,
    ACTOR_GROUP_REMOVED: ActorGroupRemovedError,
}


def fault_value(code: str, *fields: str | int) -> Value:
    """The value of an object that failed with ``code``."""
    return Value(FAULT, _encode(Fault(code, fields)))


def fault_error(data: bytes) -> ZrayError:
    """The exception that a fault value stands for.

    Raises:
        RemoteProtocolError: if ``data`` is not a fault of this version.
    """
    try:
        fault = _decode(data)
        error: ZrayError = _ERRORS[fault.code](*fault.fields)
    except (msgspec.DecodeError, KeyError, TypeError) as problem:
        raise RemoteProtocolError(f"not a fault of this version: {problem!r}") from None
    return error
