"""What a node keeps of an actor that can be saved: its last checkpoint, and the calls that it ran since.

The checkpoint is an object, pinned here, and so are the inputs of the calls that may have to be repeated
(paper, section 4.2.3: an actor is reconstructed from a checkpoint and the calls after it). Of those before it
only the latest answers are kept, for callers whose reply was lost with the process.

Invariant: what is kept belongs to an actor that may be made again. Both logs are bounded (I15); an actor that
does more between two checkpoints than there is room for is not made again when it dies.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zray.core.machine import RUNTIME, invariant
from zray.core.worker_pool import Worker
from zray.ids import short
from zray.protocol.messages import Warn
from zray.protocol.user_messages import (
    CheckpointFound,
    FindCheckpoint,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
)

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler

CALLS_MAX = 10_000
CALLS_BYTES_MAX = 256 << 20
"""Of one actor since its last checkpoint; arguments and values that travel inside messages."""
ANSWERS_KEPT = 100
"""Of calls that a checkpoint covers: more are never on their way to callers at once."""


class _ActorPast:
    """What one actor is made of again."""

    __slots__ = ("answers", "calls", "calls_bytes", "object_id")

    def __init__(self) -> None:
        self.object_id = b""
        self.calls: list[RecordCall] = []
        self.calls_bytes = 0
        self.answers: deque[RecordCall] = deque(maxlen=ANSWERS_KEPT)


class ActorPasts:
    """The checkpoints of the actors of one node. Pure; a room of :class:`ActorLives`."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self.scheduler = scheduler
        self.pasts: dict[bytes, _ActorPast] = {}

    def _past_of(self, worker: Worker) -> _ActorPast | None:
        """What is kept of the actor of a worker; nothing for one that is not made again."""
        entry = self.scheduler.actors.entries.get(worker.actor_id)
        if entry is None or entry.worker is not worker or entry.creation is None:
            return None
        past = self.pasts.get(entry.actor_id)
        if past is None:
            past = self.pasts[entry.actor_id] = _ActorPast()
        return past

    def saved(self, worker: Worker, message: SaveCheckpoint) -> None:
        """An object is the state of an actor: it replaces the one before and the calls since then."""
        past = self._past_of(worker)
        objects = self.scheduler.store.objects
        if past is None or message.object_id not in objects or message.object_id == past.object_id:
            return
        self.scheduler.references.pin(objects[message.object_id])
        former, past.object_id = past.object_id, message.object_id
        if former:
            self._unpin((former,))
        for record in past.calls:
            self._unpin(_inputs(record))
            past.answers.append(_without_arguments(record))
        past.calls.clear()
        past.calls_bytes = 0

    def recorded(self, worker: Worker, message: RecordCall) -> None:
        """An actor ran a call, whose caller keeps its inputs until the reply, which follows this."""
        past = self._past_of(worker)
        if past is None:
            return
        scheduler = self.scheduler
        past.calls_bytes += len(message.call.args) + sum(len(value.data) for value in message.values)
        if len(past.calls) >= CALLS_MAX or past.calls_bytes > CALLS_BYTES_MAX:
            text = f"actor {short(worker.actor_id)} did too much since its last checkpoint to be repeated"
            scheduler.out.append((RUNTIME, Warn(f"{text}; if it dies it is not made again")))
            scheduler.lives.spend(worker.actor_id)
            return
        for object_id in _inputs(message):
            scheduler.references.pin(scheduler.store.entry(object_id))
        past.calls.append(message)

    def find(self, worker: Worker, message: FindCheckpoint) -> None:
        """Tell a new process of an actor what the former ones did."""
        entry = self.scheduler.actors.entries.get(worker.actor_id)
        past = None if entry is None or entry.worker is not worker else self.pasts.get(entry.actor_id)
        out = self.scheduler.out
        if past is None:
            out.append((worker.worker_id, CheckpointFound(message.token)))
            return
        for record in past.answers:
            out.append((worker.worker_id, RepeatCall(record.call, record.values, True)))
        for record in past.calls:
            out.append((worker.worker_id, RepeatCall(record.call, record.values)))
        out.append((worker.worker_id, CheckpointFound(message.token, past.object_id)))

    def forget(self, actor_id: bytes) -> None:
        """An actor is not made again."""
        past = self.pasts.pop(actor_id, None)
        if past is None:
            return
        if past.object_id:
            self._unpin((past.object_id,))
        for record in past.calls:
            self._unpin(_inputs(record))

    def _unpin(self, object_ids: tuple[bytes, ...]) -> None:
        for object_id in object_ids:
            self.scheduler.references.unpin(self.scheduler.store.objects[object_id])

    def check(self) -> None:
        """What is kept may be needed, and is bounded."""
        for actor_id, past in self.pasts.items():
            entry = self.scheduler.actors.entries.get(actor_id)
            invariant(entry is not None and entry.creation is not None, "past of", short(actor_id))
            invariant(len(past.calls) <= CALLS_MAX, "I15: calls of", short(actor_id), len(past.calls))


def _inputs(record: RecordCall) -> tuple[bytes, ...]:
    return (*record.call.deps, *record.call.borrowed)


def _without_arguments(record: RecordCall) -> RecordCall:
    """What is left of a call once it is never repeated."""
    return RecordCall(replace(record.call, args=b"", deps=(), borrowed=()), record.values)
