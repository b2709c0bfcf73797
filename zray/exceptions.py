"""The errors of zray under the names that Ray's users import."""

from zray.errors import (
    ActorDiedError,
    ActorError,
    ClusterUnavailableError,
    GetTimeoutError,
    InfeasibleTaskError,
    NotInitializedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    ReconstructionFailedError,
    SerializationError,
    TaskError,
    VersionMismatchError,
    WorkerCrashedError,
    ZrayError,
)

RayError = ZrayError
RayTaskError = TaskError
RayActorError = ActorError
TaskUnschedulableError = InfeasibleTaskError
ObjectReconstructionFailedError = ReconstructionFailedError

__all__ = [
    "ActorDiedError",
    "ActorError",
    "ClusterUnavailableError",
    "GetTimeoutError",
    "InfeasibleTaskError",
    "NotInitializedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "RayActorError",
    "RayError",
    "RayTaskError",
    "ReconstructionFailedError",
    "SerializationError",
    "TaskError",
    "TaskUnschedulableError",
    "VersionMismatchError",
    "WorkerCrashedError",
    "ZrayError",
]
