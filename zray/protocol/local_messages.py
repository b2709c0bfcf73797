"""Messages between a machine and the process that hosts it. They never cross a socket."""

from __future__ import annotations

from zray.protocol.base import Message


class StartWorker(Message, frozen=True, tag=220):
    """Fork a worker that will introduce itself as ``worker_id``."""

    worker_id: bytes


class KillWorker(Message, frozen=True, tag=221):
    """End a worker process at once."""

    worker_id: bytes


class WorkerExited(Message, frozen=True, tag=222):
    """A worker process is gone. Negative: killed by that signal."""

    worker_id: bytes
    exit_code: int
    running: bytes = b""  # the task it was running, as its progress cell says


class ClientGone(Message, frozen=True, tag=223):
    """A driver process is gone, or said goodbye."""

    client: bytes


class Spill(Message, frozen=True, tag=224):
    """Write this extent to the object's file."""

    object_id: bytes
    offset: int
    size: int


class Spilled(Message, frozen=True, tag=225):
    """The file is complete."""

    object_id: bytes


class SpillFailed(Message, frozen=True, tag=226):
    """The file could not be written."""

    object_id: bytes
    detail: str


class DeleteFile(Message, frozen=True, tag=227):
    """The object's file is not needed any more."""

    object_id: bytes


class ClientJoined(Message, frozen=True, tag=228):
    """A driver introduced itself: its process is to be watched, and its end reported."""

    client: bytes
    pid: int


Local = (
    StartWorker | KillWorker | WorkerExited | ClientGone | Spill | Spilled | SpillFailed | DeleteFile
    | ClientJoined
)  # fmt: skip
