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


class AuthenticationError(ZrayError):
    """Never raised: who has not the key of the cluster gets a ``ClusterUnavailableError``."""


class OufOfBandObjectRefSerializationException(ZrayError):
    """Never raised: a pickled ref that nobody holds is an ``ObjectLostError`` when it is read."""


class PlasmaObjectNotAvailable(ZrayError):
    """Never raised: a read waits for its object, or ends with ``ObjectLostError``."""


class RpcError(ZrayError):
    """Never raised: links are made again, or end with ``ClusterUnavailableError``."""


class StreamingGeneratorReplayInconsistentError(ZrayError):
    """Never raised: of an item that was made twice the first one stays."""


class RayChannelError(ZrayError):
    """Never raised: there are no channels of compiled graphs."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """Never raised: there are no channels of compiled graphs."""


class RayCgraphCapacityExceeded(ZrayError):
    """Never raised: there are no compiled graphs."""


class RayDirectTransportError(ZrayError):
    """Never raised: values travel through the object store."""


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
    "AuthenticationError",
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
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PendingCallsLimitExceededError",
    "PlacementGroupError",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReconstructionFailedError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "SerializationError",
    "StreamingGeneratorReplayInconsistentError",
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
