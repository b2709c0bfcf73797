"""Lives of actors of other nodes that run here.

The creation task of an actor comes like any guest (``guests.py``): claimed, granted with the number of
the life, its end told. From then on its *home* decides about it, and this node only reports: that the
process is gone, and what the worker says of checkpoints. A worker may let a reply go once its home has
what was recorded before it, so ``Acked`` waits for that (paper, section 4.2.3). If the home dies, so does
the life, unless it is of a detached actor whose successor this node is (``wills.py``).

Invariant: a life is here from its grant until its process is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.core.actors import SERVER_SUFFIX
from zray.core.cancellation import cancelled_value
from zray.core.machine import Address, invariant
from zray.core.sharing import Sharing
from zray.core.worker_pool import TaskEntry, Worker
from zray.ids import short
from zray.protocol.actor_messages import EndLife, FromPast, LifeEnded, PastKept, ToPast
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import ACTOR_ALIVE, Acked, ActorState, Exit, TaskDone
from zray.protocol.user_messages import ReaderGone, RecordCall, SaveCheckpoint

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler
    from zray.core.wills import Wills

NO_HANDLE = "no handle of the actor is left"


class HostedActor:
    """One life; found in ``HostedActors.actors``."""

    __slots__ = (
        "actor_id",
        "ending",
        "home",
        "is_alive",
        "kept",
        "leaving",
        "life",
        "tokens",
        "unkept",
        "worker",
    )

    def __init__(self, actor_id: bytes, home: Address, life: int) -> None:
        self.actor_id = actor_id
        self.home = home
        self.life = life
        self.worker: Worker | None = None  # from the start of the constructor
        self.is_alive = False  # the constructor has returned
        self.ending = False  # it ends once it is alive
        self.leaving = False  # it ends on purpose
        self.unkept = 0  # what was told to its home and not answered
        self.tokens: list[int] = []  # of the worker, acknowledged once nothing is unkept
        self.kept: dict[bytes, None] = {}  # checkpoints on their way to its home, each pinned


class HostedActors:
    """The lives that run on one node for others. Pure; a room of ``ActorLives``.

    Args:
        scheduler: of this node.
        sharing: of this node.
        post: says something to another node.
    """

    def __init__(
        self,
        scheduler: LocalScheduler,
        *,
        sharing: Sharing,
        post: Callable[[Address, Any], None],
    ) -> None:
        self.scheduler = scheduler
        self.sharing = sharing
        self.post = post
        self.actors: dict[bytes, HostedActor] = {}
        self.wills: Wills | None = None  # which of their homes this node is the successor of

    def of(self, worker: Worker) -> HostedActor | None:
        """The life that a worker is, if it is one of another node's actor."""
        hosted = self.actors.get(worker.actor_id)
        return hosted if hosted is not None and hosted.worker is worker else None

    def state_of(self, actor_id: bytes, life: int) -> ActorState | None:
        """Where processes of this node call a life that runs here; ``None`` if it is over."""
        hosted = self.actors.get(actor_id)
        if hosted is None or hosted.life != life or not hosted.is_alive or hosted.worker is None:
            return None
        worker = hosted.worker
        return ActorState(actor_id, ACTOR_ALIVE, worker.worker_id + SERVER_SUFFIX, worker.endpoint)

    def reader_gone(self, actor_id: bytes, reader: Address) -> None:
        """A process of this node that may have called a life here is dead."""
        hosted = self.actors.get(actor_id)
        if hosted is not None and hosted.worker is not None:
            self.scheduler.out.append((hosted.worker.worker_id, ReaderGone(reader)))

    # --- beginnings --------------------------------------------------------------------------------

    def granted(self, task: TaskEntry, home: Address) -> None:
        """The home of an actor lets this node run a life."""
        actor_id = task.spec.task_id
        self.actors[actor_id] = HostedActor(actor_id, home, task.attempt)

    def dispatched(self, actor_id: bytes, worker: Worker) -> bool:
        """A worker starts a constructor; whether it is one of ours."""
        hosted = self.actors.get(actor_id)
        if hosted is not None:
            hosted.worker = worker
        return hosted is not None

    def created(self, worker: Worker, message: TaskDone) -> bool:
        """A constructor has ended; whether it was one of ours."""
        hosted = self.of(worker)
        if hosted is None:
            return False
        if message.failed:
            del self.actors[hosted.actor_id]  # its home is told of the end of the task
            self.scheduler.pool.kill(worker)
        else:
            hosted.is_alive = True
            if hosted.ending:
                self._end(hosted)
        return True

    # --- ends --------------------------------------------------------------------------------------

    def exited(self, worker: Worker, queue: list[TaskEntry], message: WorkerExited) -> bool:
        """The process of an actor is gone; whether it was one of ours."""
        hosted = self.of(worker)
        if hosted is None:
            return False
        del self.actors[hosted.actor_id]
        for object_id in hosted.kept:
            self._unpin(object_id)
        for task in queue:  # it died in its constructor
            self.scheduler.give_up(task, message.exit_code)
        if not queue:
            ended = LifeEnded(hosted.actor_id, hosted.life, message.exit_code, hosted.leaving)
            self.post(hosted.home, ended)
        if self.wills is not None:
            self.wills.life_ended(worker, leaving=hosted.leaving)
        return True

    def on_end_life(self, source: Address, message: EndLife) -> None:
        """The home of an actor wants its life to end."""
        hosted = self.actors.get(message.actor_id)
        if hosted is None or hosted.home != source or hosted.life != message.life:
            return
        if message.kill:
            self.kill(hosted)
        else:
            hosted.ending = True
            if hosted.is_alive:
                self._end(hosted)

    def _end(self, hosted: HostedActor) -> None:
        assert hosted.worker is not None
        self.scheduler.out.append((hosted.worker.worker_id, Exit(NO_HANDLE)))

    def kill(self, hosted: HostedActor) -> None:
        """End a life at once."""
        task = self.scheduler.tasks.get(hosted.actor_id)
        if hosted.worker is not None:
            self.scheduler.pool.kill(hosted.worker)
        elif task is not None:
            del self.actors[hosted.actor_id]
            self.scheduler.withdraw(task, cancelled_value(hosted.actor_id))

    def dropped(self, actor_id: bytes) -> None:
        """The creation task of a life ended before a worker had it."""
        hosted = self.actors.get(actor_id)
        if hosted is not None and hosted.worker is None:
            del self.actors[actor_id]

    def leaving(self, worker: Worker) -> bool:
        """An actor says that it ends on purpose; whether it is one of ours."""
        hosted = self.of(worker)
        if hosted is not None:
            hosted.leaving = True
        return hosted is not None

    def node_dead(self, node: Address) -> None:
        """Nobody decides any more about the actors of a dead node, but of those that this one may inherit."""
        for hosted in [hosted for hosted in self.actors.values() if hosted.home == node]:
            has_will = self.wills is not None and self.wills.has(node, hosted.actor_id)
            if not (has_will and hosted.is_alive):
                self.kill(hosted)

    def go_home(self, hosted: HostedActor) -> list[tuple[Address, int]]:
        """This node is the home of a life from now on; returns what its worker waits for."""
        del self.actors[hosted.actor_id]
        for object_id in hosted.kept:
            self._unpin(object_id)
        assert hosted.worker is not None
        return [(hosted.worker.worker_id, token) for token in hosted.tokens]

    # --- checkpoints -------------------------------------------------------------------------------

    def tell_past(self, worker: Worker, message: Any) -> bool:
        """A worker speaks of checkpoints; whether it is one of ours, and its home hears it."""
        hosted = self.of(worker)
        if hosted is None:
            return False
        if isinstance(message, SaveCheckpoint):
            entry = self.scheduler.store.objects.get(message.object_id)
            if entry is None or message.object_id in hosted.kept:
                return True
            entry.pins += 1
            hosted.kept[message.object_id] = None
            self.sharing.expose((message.object_id,))
            hosted.unkept += 1
            self._keep_too(hosted, message)
        elif isinstance(message, RecordCall):
            self.sharing.expose((*message.call.deps, *message.call.borrowed))
            hosted.unkept += 1
            self._keep_too(hosted, message)
        self.post(hosted.home, ToPast(hosted.actor_id, hosted.life, message))
        return True

    def _keep_too(self, hosted: HostedActor, message: SaveCheckpoint | RecordCall) -> None:
        """The successor of an actor that lives here keeps what its worker says, like the home."""
        if self.wills is not None and self.wills.has(hosted.home, hosted.actor_id):
            self.scheduler.lives.checkpoints.keep(hosted.actor_id, message)

    def on_past_kept(self, source: Address, message: PastKept) -> None:
        """The home has something that this node told it."""
        hosted = self.actors.get(message.actor_id)
        if hosted is None or hosted.home != source or hosted.life != message.life or hosted.worker is None:
            return
        hosted.unkept -= 1
        if message.object_id in hosted.kept:
            del hosted.kept[message.object_id]
            self._unpin(message.object_id)
        if not hosted.unkept:
            tokens, hosted.tokens = hosted.tokens, []
            self.scheduler.out.extend((hosted.worker.worker_id, Acked(token)) for token in tokens)

    def on_from_past(self, source: Address, message: FromPast) -> None:
        """The home tells a new life of the former ones."""
        hosted = self.actors.get(message.actor_id)
        if hosted is None or hosted.home != source or hosted.life != message.life or hosted.worker is None:
            return
        self.scheduler.out.append((hosted.worker.worker_id, message.message))

    def acknowledges_later(self, worker: Worker | None, token: int) -> bool:
        """Whether the home of this worker's actor must first have what the worker said before."""
        hosted = None if worker is None else self.of(worker)
        if hosted is None or not hosted.unkept:
            return False
        hosted.tokens.append(token)
        return True

    def _unpin(self, object_id: bytes) -> None:
        self.scheduler.references.unpin(self.scheduler.store.objects[object_id])

    def check(self) -> None:
        """A life without a worker waits as a task."""
        for actor_id, hosted in self.actors.items():
            waits = actor_id in self.scheduler.tasks
            invariant(waits or hosted.worker is not None, "a life without a process:", short(actor_id))
            invariant(not hosted.is_alive or hosted.worker is not None, "life", short(actor_id))
