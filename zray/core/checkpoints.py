"""What a node keeps of an actor that can be saved: its last checkpoint, and the calls that it ran since.

The checkpoint is an object, pinned here, and so are the inputs of the calls that may have to be repeated
(paper, section 4.2.3: an actor is reconstructed from a checkpoint and the calls after it). Of those
before it only the latest answers are kept, for callers whose reply was lost with the process. If the
actor lives on another node a checkpoint counts once a copy of its bytes is here, and a large value in a
recorded answer is lost with that node, which the caller is told if it needs that answer. The successor of a
detached actor keeps the same (``wills.py``).

Invariant: what is kept belongs to an actor that may be made again. Both logs are bounded (I15); an actor that
does more between two checkpoints than there is room for is not made again when it dies.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zray.core.machine import RUNTIME, Address, invariant
from zray.core.node_store import SEALED
from zray.core.worker_pool import Worker
from zray.ids import short
from zray.protocol import faults
from zray.protocol.actor_messages import FromPast, PastKept, ToPast
from zray.protocol.messages import EXTENT, FAULT, Warn
from zray.protocol.user_messages import (
    CheckpointFound,
    FindCheckpoint,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
)

if TYPE_CHECKING:
    from zray.core.actors import ActorEntry
    from zray.core.local_scheduler import LocalScheduler
    from zray.core.wills import Wills

CALLS_MAX = 10_000
CALLS_BYTES_MAX = 256 << 20
"""Of one actor since its last checkpoint; arguments and values that travel inside messages."""
ANSWERS_KEPT = 100
"""Of calls that a checkpoint covers: more are never on their way to callers at once."""


class _ActorPast:
    """What one actor is made of again."""

    __slots__ = ("answers", "arriving", "arriving_covers", "calls", "calls_bytes", "object_id")

    def __init__(self) -> None:
        self.object_id = b""
        self.arriving = b""  # a checkpoint whose bytes are on their way here, pinned
        self.arriving_covers = 0  # of ``calls``
        self.calls: list[RecordCall] = []
        self.calls_bytes = 0
        self.answers: deque[RecordCall] = deque(maxlen=ANSWERS_KEPT)


class ActorPasts:
    """The checkpoints of the actors of one node. Pure; a room of :class:`ActorLives`."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self.scheduler = scheduler
        self.pasts: dict[bytes, _ActorPast] = {}
        self.arriving: dict[bytes, tuple[Address, ToPast]] = {}  # actors whose checkpoint is on its way
        self.wills: Wills | None = None  # of actors that this node may inherit; set in a node with peers

    def _past_of(self, worker: Worker) -> _ActorPast | None:
        """What is kept of the actor of a worker; nothing for one that is not made again."""
        entry = self.scheduler.actors.entries.get(worker.actor_id)
        return None if entry is None or entry.worker is not worker else self._past(entry)

    def _past_away(self, host: Address, message: ToPast) -> _ActorPast | None:
        """The same of a life on another node, which may not be known to be alive yet."""
        entry = self.scheduler.actors.entries.get(message.actor_id)
        if entry is None and self.wills is not None and self.wills.has(host, message.actor_id):
            return self._past_in_will(message.actor_id)
        if entry is None or entry.restarts != message.life:
            return None
        away = self.scheduler.away
        begins = away is not None and away.tasks.get(entry.actor_id, (None, b""))[1] == host
        return self._past(entry) if entry.host == host or begins else None

    def _past(self, entry: ActorEntry) -> _ActorPast | None:
        return None if entry.creation is None else self._begun(entry.actor_id)

    def _past_in_will(self, actor_id: bytes) -> _ActorPast | None:
        may_restart = self.wills is not None and self.wills.may_restart(actor_id)
        return self._begun(actor_id) if may_restart else None

    def _begun(self, actor_id: bytes) -> _ActorPast:
        past = self.pasts.get(actor_id)
        if past is None:
            past = self.pasts[actor_id] = _ActorPast()
        return past

    # --- of actors that live here ------------------------------------------------------------------

    def hear(self, worker: Worker, message: SaveCheckpoint | RecordCall | FindCheckpoint) -> None:
        """The worker of an actor says what it became, or asks what it was."""
        if isinstance(message, SaveCheckpoint):
            self._saved(worker, message)
        elif isinstance(message, RecordCall):
            self._recorded(worker, message)
        else:
            self._find(worker, message)

    def _saved(self, worker: Worker, message: SaveCheckpoint) -> None:
        """An object is the state of an actor: it replaces the one before and the calls since then."""
        past = self._past_of(worker)
        if past is not None and self._save(past, message):
            self._tell_successor(worker.actor_id, message)

    def _save(self, past: _ActorPast, message: SaveCheckpoint) -> bool:
        objects = self.scheduler.store.objects
        if message.object_id not in objects or message.object_id == past.object_id:
            return False
        self._give_up_on(past)
        self.scheduler.references.pin(objects[message.object_id])
        self._replace(past, message.object_id, len(past.calls))
        return True

    def _recorded(self, worker: Worker, message: RecordCall) -> None:
        """An actor ran a call, whose caller keeps its inputs until the reply, which follows this."""
        past = self._past_of(worker)
        if past is not None:
            self._record(worker.actor_id, past, message)
            self._tell_successor(worker.actor_id, message)

    def _tell_successor(self, actor_id: bytes, message: SaveCheckpoint | RecordCall) -> None:
        entry, succession = self.scheduler.actors.entries.get(actor_id), self.scheduler.lives.succession
        if entry is not None and succession is not None:
            succession.recorded(entry, message)

    def keep(self, actor_id: bytes, message: SaveCheckpoint | RecordCall) -> None:
        """The actor of another node, whose successor this one is, lives here and says this."""
        past = self._past_in_will(actor_id)
        if past is None:
            return
        if isinstance(message, SaveCheckpoint):
            self._save(past, message)
        else:
            self._record(actor_id, past, message)

    def memory_of(self, actor_id: bytes) -> list[RecordCall | SaveCheckpoint]:
        """All that is kept of an actor, as its worker would say it again to another node."""
        past = self.pasts.get(actor_id)
        if past is None:
            return []
        told: list[RecordCall | SaveCheckpoint] = [without_large_values(record) for record in past.answers]
        if past.object_id:
            told.append(SaveCheckpoint(past.object_id))
        return [*told, *(without_large_values(record) for record in past.calls)]

    def _find(self, worker: Worker, message: FindCheckpoint) -> None:
        """Tell a new process of an actor what the former ones did."""
        entry = self.scheduler.actors.entries.get(worker.actor_id)
        past = None if entry is None or entry.worker is not worker else self.pasts.get(entry.actor_id)
        for said in _story(past, message.token):
            self.scheduler.out.append((worker.worker_id, said))

    # --- of actors that live on other nodes ----------------------------------------------------------

    def on_to_past(self, now_ns: int, host: Address, message: ToPast) -> None:
        """The host of a life passes on what its worker says."""
        past, said = self._past_away(host, message), message.message
        if isinstance(said, FindCheckpoint):
            self._find_away(host, message, past, said.token)
        elif isinstance(said, RecordCall):
            if past is not None:
                self.scheduler.references.contain(now_ns, _inputs(said))
                self._record(message.actor_id, past, without_large_values(said))
                self._unpin(_inputs(said))
                self._tell_successor(message.actor_id, said)
            self._answer(host, message, b"")
        elif past is None:
            self._answer(host, message, said.object_id)
        else:
            self._fetch(now_ns, host, message, past, said.object_id)

    def _find_away(self, host: Address, message: ToPast, past: _ActorPast | None, token: int) -> None:
        scheduler = self.scheduler
        if past is not None and past.object_id and scheduler.away is not None:
            scheduler.away.sharing.expose((past.object_id,))
        for record in () if past is None or scheduler.away is None else past.calls:
            assert scheduler.away is not None
            scheduler.away.sharing.expose(_inputs(record))
        for said in _story(past, token):
            if isinstance(said, RepeatCall):
                record = without_large_values(RecordCall(said.call, said.values))
                said = RepeatCall(record.call, record.values, said.covered)
            scheduler.lives.post(host, FromPast(message.actor_id, message.life, said))

    def _fetch(self, now_ns: int, host: Address, message: ToPast, past: _ActorPast, object_id: bytes) -> None:
        """A checkpoint is on its way: it counts once its bytes are here, so that its host may die."""
        self.scheduler.references.contain(now_ns, (object_id,))
        former = self.arriving.get(message.actor_id)
        if (
            former is not None and past.arriving
        ):  # nobody wants it any more, and whoever told of it may let go
            self._answer(*former, past.arriving)
        self._give_up_on(past)
        past.arriving, past.arriving_covers = object_id, len(past.calls)
        self.arriving[message.actor_id] = host, message
        self.fetch(object_id)

    def fetch(self, object_id: bytes) -> None:
        """Have the bytes of an object brought here, which is pinned."""
        store = self.scheduler.store
        entry = store.objects[object_id]
        if entry.state != SEALED:
            entry.waiters = [*(entry.waiters or ()), RUNTIME]  # nobody is told; the bytes come
            store.want_copy(entry)

    def _give_up_on(self, past: _ActorPast) -> None:
        """The checkpoint on its way is not wanted any more, if there is one."""
        object_id, past.arriving = past.arriving, b""
        if object_id:
            self.scheduler.store.unsubscribe(RUNTIME, self.scheduler.store.objects[object_id])
            self._unpin((object_id,))

    def flush(self) -> None:
        """Once per batch: take the checkpoints that have come."""
        for actor_id, (host, message) in list(self.arriving.items()):
            past = self.pasts.get(actor_id)
            if past is None or not past.arriving:
                del self.arriving[actor_id]
                continue
            entry = self.scheduler.store.objects[past.arriving]
            if entry.state != SEALED:
                continue
            del self.arriving[actor_id]
            object_id, past.arriving = past.arriving, b""
            if entry.value is not None and entry.value.kind == FAULT:  # lost with its host
                self._unpin((object_id,))
                continue
            self._replace(past, object_id, past.arriving_covers)
            self._tell_successor(actor_id, SaveCheckpoint(object_id))
            self._answer(host, message, object_id)

    def _answer(self, host: Address, message: ToPast, object_id: bytes) -> None:
        self.scheduler.lives.post(host, PastKept(message.actor_id, message.life, object_id))

    # --- both ----------------------------------------------------------------------------------------

    def _replace(self, past: _ActorPast, object_id: bytes, covers: int) -> None:
        """A pinned object is the checkpoint from now on; it covers that many of the calls so far."""
        former, past.object_id = past.object_id, object_id
        if former:
            self._unpin((former,))
        for record in past.calls[:covers]:
            self._unpin(_inputs(record))
            past.answers.append(_without_arguments(record))
            past.calls_bytes -= _size_of(record)
        del past.calls[:covers]

    def _record(self, actor_id: bytes, past: _ActorPast, message: RecordCall) -> None:
        scheduler = self.scheduler
        past.calls_bytes += _size_of(message)
        if len(past.calls) >= CALLS_MAX or past.calls_bytes > CALLS_BYTES_MAX:
            text = f"actor {short(actor_id)} did too much since its last checkpoint to be repeated"
            scheduler.out.append((RUNTIME, Warn(f"{text}; if it dies it is not made again")))
            scheduler.lives.spend(actor_id)
            return
        for object_id in _inputs(message):
            scheduler.references.pin(scheduler.store.entry(object_id))
        past.calls.append(message)

    def forget(self, actor_id: bytes) -> None:
        """An actor is not made again."""
        past = self.pasts.pop(actor_id, None)
        if past is None:
            return
        self._give_up_on(past)
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
            is_inherited = self.wills is not None and self.wills.may_restart(actor_id)
            may_restart = entry is not None and entry.creation is not None
            invariant(may_restart or is_inherited, "past of", short(actor_id))
            invariant(len(past.calls) <= CALLS_MAX, "I15: calls of", short(actor_id), len(past.calls))


def _story(past: _ActorPast | None, token: int) -> list[RepeatCall | CheckpointFound]:
    """What a new process of an actor is told of the former ones, in this order."""
    if past is None:
        return [CheckpointFound(token)]
    told: list[RepeatCall | CheckpointFound] = []
    told += [RepeatCall(record.call, record.values, True) for record in past.answers]
    told += [RepeatCall(record.call, record.values) for record in past.calls]
    return [*told, CheckpointFound(token, past.object_id)]


def without_large_values(record: RecordCall) -> RecordCall:
    """An answer as another node can give it."""
    if all(value.kind != EXTENT for value in record.values):
        return record
    name, reason = short(record.call.task_id), "its actor has moved to another node since it gave this result"
    lost = faults.fault_value(faults.OBJECT_LOST, name, reason)
    return RecordCall(record.call, tuple(lost if v.kind == EXTENT else v for v in record.values))


def _size_of(record: RecordCall) -> int:
    return len(record.call.args) + sum(len(value.data) for value in record.values)


def _inputs(record: RecordCall) -> tuple[bytes, ...]:
    return (*record.call.deps, *record.call.borrowed)


def _without_arguments(record: RecordCall) -> RecordCall:
    """What is left of a call once it is never repeated."""
    return RecordCall(replace(record.call, args=b"", deps=(), borrowed=()), record.values)
