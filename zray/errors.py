"""Every exception that a user or an operator can see. ``zray.exceptions`` adds Ray's names for them.

An expected fault is a message inside the machines and becomes an exception only at the edge of the API,
with fields and a sentence that says what to do next. All of them pickle. ``InvariantError`` is different:
it is a bug of zray, and ends the process with its story.
"""

from __future__ import annotations

from contextlib import suppress
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any


class ZrayError(Exception):
    """Base of every error that zray raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by fields: ``args`` hold the sentence, which no constructor takes."""
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class TaskError(ZrayError):
    """The user's code raised in a task or an actor method.

    ``get`` raises an instance that is also an instance of the cause's class (see :meth:`as_cause`).

    Attributes:
        function_name: str, the remote function or ``Class.method``.
        traceback_text: str, the traceback as it was in the worker.
        cause: the exception itself, or ``None`` when it could not be pickled.
    """

    def __init__(self, function_name: str, traceback_text: str, cause: BaseException | None) -> None:
        super().__init__(function_name, traceback_text)
        self.function_name = function_name
        self.traceback_text = traceback_text
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.function_name}() raised in a worker:\n{self.traceback_text.rstrip()}"

    def as_cause(self) -> TaskError:
        """This error as an instance of both ``TaskError`` and the class of its cause."""
        cause = self.cause
        while isinstance(cause, TaskError):  # it failed because another task did: that one's cause counts
            cause = cause.cause
        if not isinstance(cause, Exception):  # SystemExit of a task must not end the driver without a word
            return self
        dual = _dual_class(type(cause))
        if dual is None:
            return self
        try:
            error = dual.__new__(dual, *cause.args)
        except Exception:  # the class wants something else than its ``args``
            return self
        set_fields(error, cause.args, fields_of(cause))
        error.__dict__.update(self.__dict__)
        error.__cause__ = self.cause
        return error

    def as_instanceof_cause(self) -> TaskError:
        """Ray's name of :meth:`as_cause`."""
        return self.as_cause()

    @property
    def traceback_str(self) -> str:
        """Ray's name of ``traceback_text``."""
        return self.traceback_text

    def __reduce__(self) -> tuple[Any, ...]:
        # The dual class is made on the fly and cannot be imported: travel as a plain TaskError.
        return _rebuild, (
            TaskError,
            (self.function_name, self.traceback_text),
            {"function_name": self.function_name, "traceback_text": self.traceback_text, "cause": self.cause},
        )


_NO_FIELDS = ("args", "obj")  # the latter keeps whatever lacked an attribute


def fields_of(error: BaseException) -> dict[str, Any]:
    """The attributes of an exception, also those outside ``__dict__``, such as ``OSError.errno``."""
    fields = {}
    for cls in type(error).__mro__:
        for name, field in vars(cls).items():
            if isinstance(field, MemberDescriptorType | GetSetDescriptorType) and name not in _NO_FIELDS:
                with suppress(AttributeError, TypeError):
                    if not name.startswith("__"):
                        fields[name] = getattr(error, name)
    return {**fields, **getattr(error, "__dict__", {})}


def set_fields(error: BaseException, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
    """Give an exception that was made without its constructor what :func:`fields_of` took from another."""
    error.args = args
    for name, value in fields.items():
        with suppress(AttributeError, TypeError):  # a field that cannot be set, or not to this
            setattr(error, name, value)


_dual_classes: dict[type[BaseException], type[TaskError] | None] = {}


def _dual_class(cause: type[BaseException]) -> type[TaskError] | None:
    """A class that is a ``TaskError`` and a ``cause``, or ``None`` where the layouts forbid it."""
    if cause not in _dual_classes:
        try:
            made = type(f"TaskError({cause.__name__})", (TaskError, cause), {"__module__": __name__})
            if issubclass(cause, MemoryError):  # whose own ``__new__`` refuses classes of several bases
                made.__new__ = BaseException.__new__  # type: ignore[assignment]
            _dual_classes[cause] = made
        except TypeError:  # such as bool-like final classes or a conflicting layout
            _dual_classes[cause] = None
    return _dual_classes[cause]


class GetTimeoutError(ZrayError, TimeoutError):
    """``get`` did not have every value within its timeout."""

    def __init__(self, missing: int, asked: int, timeout_s: float) -> None:
        super().__init__(
            f"{missing} of {asked} objects were not ready within {timeout_s} s; "
            "`zray list tasks`, `zray why TASK` and `zray stack` say what they wait for"
        )
        self.missing, self.asked, self.timeout_s = missing, asked, timeout_s


class ObjectLostError(ZrayError):
    """An object is gone and nothing can make it again."""

    def __init__(self, object_id: str, reason: str) -> None:
        super().__init__(f"object {object_id} is lost: {reason}")
        self.object_id, self.reason = object_id, reason


class ReconstructionFailedError(ObjectLostError):
    """An object is gone and running its task again did not bring it back."""

    def __init__(self, object_id: str, attempts: int, reason: str) -> None:
        super().__init__(object_id, f"{reason} (after {attempts} attempts)")
        self.attempts = attempts


class ActorError(ZrayError):
    """Base of the errors of actor calls."""


class ActorDiedError(ActorError):
    """The actor is dead, so the call has no result.

    Attributes:
        actor_id: str, hex.
        reason: str, why it died.
        cause: the exception of its constructor, if that is why.
    """

    def __init__(self, actor_id: str, reason: str, cause: BaseException | None = None) -> None:
        super().__init__(f"actor {actor_id} is dead: {reason}")
        self.actor_id, self.reason, self.cause = actor_id, reason, cause
        self.__cause__ = cause


class ActorGroupRemovedError(ActorDiedError):
    """The placement group of the actor was removed, and the actor with it.

    Attributes:
        placement_group_id: str, hex.
    """

    def __init__(self, actor_id: str, placement_group_id: str) -> None:
        super().__init__(actor_id, f"its placement group {placement_group_id} was removed")
        self.placement_group_id = placement_group_id


class ActorUnavailableError(ActorError):
    """The actor is being restarted, and the call has no ``max_task_retries`` left: call again later."""

    def __init__(self, actor_id: str, reason: str) -> None:
        super().__init__(f"actor {actor_id} is unavailable for now: {reason}")
        self.actor_id, self.reason = actor_id, reason


class PendingCallsLimitExceededError(ActorError):
    """The actor has ``max_pending_calls`` calls without a result from this process already."""

    def __init__(self, actor: str, limit: int) -> None:
        super().__init__(
            f"{actor} has {limit} calls without a result; wait for some, or raise max_pending_calls"
        )
        self.actor, self.limit = actor, limit


class TaskCancelledError(ZrayError):
    """The task or call was cancelled with ``zray.cancel``.

    Attributes:
        task_id: str, hex.
    """

    def __init__(self, task_id: str = "") -> None:
        super().__init__(f"task {task_id or 'of this object'} was cancelled")
        self.task_id = task_id


class TaskGroupRemovedError(ZrayError):
    """The placement group of the task was removed before the task had ended.

    Attributes:
        task_name: str.
        placement_group_id: str, hex.
    """

    def __init__(self, task_name: str, placement_group_id: str) -> None:
        super().__init__(
            f"{task_name}() has not ended, and its placement group {placement_group_id} was removed; "
            "submit it again in a group that exists"
        )
        self.task_name, self.placement_group_id = task_name, placement_group_id


class PlacementGroupError(ZrayError, ValueError):
    """The cluster does not make a placement group, or does not know it; the sentence says why."""


class RuntimeEnvSetupError(ZrayError):
    """The runtime environment of a task or actor could not be made; ``reason`` says which part and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the runtime environment cannot be set up: {reason}")
        self.reason = reason


class WorkerCrashedError(ZrayError):
    """The worker process died while it ran the task, and no retry was left."""

    def __init__(self, task_name: str, exit_code: int, attempts: int) -> None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"exited with code {exit_code}"
        super().__init__(
            f"the worker of {task_name}() {how}; {attempts} attempts were made. "
            "Raise max_retries, or look at the worker's log for what ended it"
        )
        self.task_name, self.exit_code, self.attempts = task_name, exit_code, attempts


class TaskUnschedulableError(ZrayError):
    """No node of the cluster will ever run the task or actor.

    Attributes:
        task_name: str.
        reason: str, such as that the node it is bound to is dead.
    """

    def __init__(self, task_name: str, reason: str) -> None:
        super().__init__(f"{task_name} cannot be scheduled: {reason}")
        self.task_name, self.reason = task_name, reason


class ObjectStoreFullError(ZrayError):
    """One object is larger than the whole object store."""

    def __init__(self, need_bytes: int, capacity_bytes: int) -> None:
        super().__init__(
            f"an object of {need_bytes} bytes can never fit an object store of {capacity_bytes} bytes; "
            "start with a larger object_store_memory or split the object"
        )
        self.need_bytes, self.capacity_bytes = need_bytes, capacity_bytes


class OutOfDiskError(ZrayError):
    """The object store is full and the disk that it spills to is full too."""

    def __init__(self, need_bytes: int, detail: str) -> None:
        super().__init__(f"no room for an object of {need_bytes} bytes, in memory or on disk: {detail}")
        self.need_bytes, self.detail = need_bytes, detail


class ClusterUnavailableError(ZrayError, ConnectionError):
    """A process of the cluster does not answer, or is gone."""

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(f"{what} (waited {waited_s:.1f} s)")
        self.what, self.waited_s = what, waited_s


class SerializationError(ZrayError, TypeError):
    """Something cannot be pickled; ``path`` leads to the culprit inside it."""

    def __init__(self, what: str, path: str, detail: str) -> None:
        super().__init__(f"cannot pickle {what}: {path} is the culprit ({detail})")
        self.what, self.path, self.detail = what, path, detail


class NotInitializedError(ZrayError, RuntimeError):
    """The call needs a running zray."""


class ProtocolError(ZrayError):
    """Base of the two below; never raised itself."""


class LocalProtocolError(ProtocolError):
    """This process tried to break the protocol: a bug or a wrong call on this side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow."""


class VersionMismatchError(RemoteProtocolError):
    """The two sides speak different versions of the protocol."""

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(f"protocol version {theirs} met version {ours}; install the same zray on both sides")
        self.ours, self.theirs = ours, theirs


class InvariantError(AssertionError):
    """zray broke a rule of its own: a bug. The process that notices it ends with this story."""
