"""The errors of zray under the names that Ray's users import.

A name is an alias where zray raises the same thing. The classes defined here are those of conditions that
zray does not have, or has not yet: nothing raises them, and ``except`` clauses that name them keep working.
"""

from zray.errors import (
    ActorDiedError,
    ActorError,
    ActorGroupRemovedError,
    ActorUnavailableError,
    ClusterUnavailableError,
    GetTimeoutError,
    NotInitializedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    PendingCallsLimitExceededError,
    PlacementGroupError,
    ReconstructionFailedError,
    RuntimeEnvSetupError,
    SerializationError,
    TaskCancelledError,
    TaskError,
    TaskGroupRemovedError,
    TaskUnschedulableError,
    VersionMismatchError,
    WorkerCrashedError,
    ZrayError,
)

RayError = ZrayError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = ZrayError
ActorUnschedulableError = TaskUnschedulableError
ObjectReconstructionFailedError = ReconstructionFailedError
ActorPlacementGroupRemoved = ActorGroupRemovedError
TaskPlacementGroupRemoved = TaskGroupRemovedError
PendingCallsLimitExceeded = PendingCallsLimitExceededError
LocalRayletDiedError = ClusterUnavailableError
UserCodeException = TaskError
UnserializableException = SerializationError


class NodeDiedError(ZrayError):
    """Never raised: a node's death loses objects or actors, and those errors say so."""


class OutOfMemoryError(ZrayError):
    """Never raised: a worker that the kernel kills for its memory is a ``WorkerCrashedError``."""


class ObjectFetchTimedOutError(ObjectLostError):
    """Never raised: a transfer is tried until its source is dead."""


class ObjectFreedError(ObjectLostError):
    """Never raised: an object with a ref is not freed."""


class OwnerDiedError(ObjectLostError):
    """Never raised: objects have no owner process that could die."""


class ReferenceCountingAssertionError(ObjectLostError):
    """Never raised: an object with a ref is not freed."""


class ActorAlreadyExistsError(ValueError, ZrayError):
    """The name of an actor is taken in its namespace; ``get_if_exists=True`` takes that actor."""


class ActorHandleNotFoundError(ValueError, ZrayError):
    """No actor of the namespace has the name."""


class AsyncioActorExit(ZrayError):
    """Never raised: ``exit_actor`` ends coroutines like any other call."""


class CrossLanguageError(ZrayError):
    """Never raised: zray runs Python only."""


class ObjectRefStreamEndOfStreamError(ZrayError):
    """Never raised: the end of a stream is ``StopIteration``."""


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorGroupRemovedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "ClusterUnavailableError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "NotInitializedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PendingCallsLimitExceededError",
    "PlacementGroupError",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReconstructionFailedError",
    "ReferenceCountingAssertionError",
    "RuntimeEnvSetupError",
    "SerializationError",
    "TaskCancelledError",
    "TaskError",
    "TaskGroupRemovedError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "VersionMismatchError",
    "WorkerCrashedError",
    "ZrayError",
]
