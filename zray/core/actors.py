"""Where the actors of one node are and who wants to know.

An actor is the worker that ran its creation task; its id is that task's id, and the return object of that
task stands for the handle: when nobody holds it, the actor ends after the calls it already has. Calls do not
pass here, they go from the caller to the worker (paper, section 4.1). An actor moves
``PENDING -> ALIVE -> DEAD`` or ``PENDING -> DEAD``; one that is made again goes through ``RESTARTING``
instead of ``DEAD``. Everybody who watches is told.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.core.machine import Address, Effect, invariant
from zray.core.worker_pool import TaskEntry, Worker
from zray.ids import short
from zray.protocol import faults
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    ACTOR_RESTARTING,
    ActorState,
    Describe,
    Exit,
    Value,
)
from zray.protocol.user_messages import ReaderGone

SERVER_SUFFIX = b"+"
"""The routing id of a worker's bound socket is the worker's id and this."""


def _nobody_lives_there(entry: ActorEntry) -> None:
    pass


def _nothing_is_missing(entry: ActorEntry) -> bool:
    return False


def alive_state(entry: ActorEntry) -> ActorState:
    """How an actor is whose constructor has returned: with the socket of its worker if it lives here."""
    if entry.worker is None:
        return ActorState(entry.actor_id, ACTOR_ALIVE)
    worker = entry.worker
    return ActorState(entry.actor_id, ACTOR_ALIVE, worker.worker_id + SERVER_SUFFIX, worker.endpoint)


class ActorEntry:
    """One actor; found in ``Actors.entries``."""

    __slots__ = (
        "actor_id", "creation", "descriptor", "host", "job_id", "leaving", "name", "released", "restarts",
        "state", "watchers", "watching_nodes", "worker",
    )  # fmt: skip

    def __init__(self, actor_id: bytes, job_id: bytes, name: str) -> None:
        self.actor_id = actor_id
        self.job_id = job_id
        self.name = name
        self.creation: TaskEntry | None = None  # kept to make it again
        self.descriptor: Describe | None = None
        self.restarts = 0  # how often it was made again
        self.leaving = False  # it ends on purpose
        self.worker: Worker | None = None  # from the start of the constructor until it is dead
        self.host: Address = b""  # the node where it lives, if that is another
        self.state = ActorState(actor_id, ACTOR_PENDING)
        self.watchers: dict[Address, None] = {}
        self.watching_nodes: dict[Address, None] = {}
        self.released = False


class Actors:
    """The actors of a node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        dead_max: dead actors remembered, so that a late caller hears the cause.
        on_change: called with every new state of an actor, before its watchers are told.
    """

    def __init__(self, out: list[Effect], *, dead_max: int, on_change: Callable[[ActorState], None]) -> None:
        self.out = out
        self.on_change = on_change
        self.end_away: Callable[[ActorEntry], None] = _nobody_lives_there  # set in a node with peers
        self.shown_later: Callable[[ActorEntry], bool] = _nothing_is_missing  # the same
        self.dead_max = dead_max
        self.entries: dict[bytes, ActorEntry] = {}
        self.dead: dict[bytes, None] = {}  # oldest first

    def submitted(self, actor_id: bytes, job_id: bytes, name: str) -> None:
        """A creation task was submitted; perhaps again, by a parent that ran again after the actor ended."""
        former = self.entries.get(actor_id)
        if former is None or former.state.state != ACTOR_PENDING:
            if former is not None:
                reason = "its creator ran again and makes it anew"
                self.died(actor_id, faults.fault_value(faults.ACTOR_DIED, short(actor_id), reason))
                self.dead.pop(actor_id, None)
            entry = self.entries[actor_id] = ActorEntry(actor_id, job_id, name)
            self.on_change(entry.state)

    def tell_pending(self) -> None:
        """There are other nodes from now on, which may ask for actors that are still to be made."""
        for entry in self.entries.values():
            if entry.state.state == ACTOR_PENDING:
                self.on_change(entry.state)

    def dispatched(self, actor_id: bytes, worker: Worker) -> None:
        """A worker starts to run the constructor."""
        self.entries[actor_id].worker = worker

    def alive(self, actor_id: bytes, worker: Worker) -> None:
        """The constructor returned; of no interest if the actor was ended meanwhile."""
        entry = self.entries.get(actor_id)
        if entry is not None and entry.worker is worker:
            self._show(entry)

    def alive_at(self, actor_id: bytes, host: Address) -> None:
        """The constructor returned on another node: processes of this one call through it."""
        entry = self.entries.get(actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            return
        entry.host = host
        self._show(entry)

    def _show(self, entry: ActorEntry) -> None:
        if not self.shown_later(entry):
            self.show(entry)

    def show(self, entry: ActorEntry) -> None:
        """Everybody may know where it is."""
        self._change(entry, alive_state(entry))
        if entry.released:
            self._end(entry)

    def adopt(self, actor_id: bytes, name: str, restarts: int) -> ActorEntry:
        """This node becomes the home of a detached actor that was made on another."""
        self.dead.pop(actor_id, None)
        entry = self.entries[actor_id] = ActorEntry(actor_id, actor_id, name)
        entry.restarts = restarts
        return entry

    def disown(self, actor_id: bytes) -> dict[Address, None]:
        """An actor that was submitted here is of another node; returns who watched it."""
        return self.entries.pop(actor_id).watchers

    def restarting(self, actor_id: bytes, cause: Value) -> None:
        """The process is gone and the actor is made again; ``cause`` ends calls that are not repeated.

        Whoever called it through this node watches anew: a call from before is not taken for one of after.
        """
        entry = self.entries[actor_id]
        was_away = bool(entry.host) and entry.state.state == ACTOR_ALIVE  # else nobody called it there
        entry.worker, entry.host = None, b""
        entry.restarts += 1
        self._change(entry, ActorState(actor_id, ACTOR_RESTARTING, entry.state.address, cause=cause))
        if was_away:
            entry.watchers.clear()

    def died(self, actor_id: bytes, cause: Value) -> None:
        """The constructor failed, or the process is gone for good. The first cause counts."""
        entry = self.entries.get(actor_id)
        if entry is None or entry.state.state == ACTOR_DEAD:
            return
        entry.worker, entry.host = None, b""
        self._change(entry, ActorState(actor_id, ACTOR_DEAD, entry.state.address, cause=cause))
        self.dead[actor_id] = None
        if len(self.dead) > self.dead_max:
            oldest = next(iter(self.dead))
            del self.dead[oldest], self.entries[oldest]

    def released(self, actor_id: bytes) -> None:
        """Nobody holds a handle any more: it ends once the calls that it has are done."""
        entry = self.entries.get(actor_id)
        if entry is not None:
            entry.released = True
            if entry.state.state == ACTOR_ALIVE:
                self._end(entry)

    def _end(self, entry: ActorEntry) -> None:
        if entry.host:
            self.end_away(entry)
            return
        assert entry.worker is not None
        self.out.append((entry.worker.worker_id, Exit("no handle of the actor is left")))

    def watch(self, client: Address, actor_id: bytes) -> None:
        """Tell ``client`` now and at every change."""
        entry = self.entries.get(actor_id)
        if entry is None:
            gone = faults.fault_value(faults.ACTOR_DIED, short(actor_id), "this node does not know it")
            self.out.append((client, ActorState(actor_id, ACTOR_DEAD, cause=gone)))
            return
        if entry.state.state != ACTOR_DEAD:
            entry.watchers[client] = None
        self.out.append((client, entry.state))

    def _change(self, entry: ActorEntry, state: ActorState) -> None:
        entry.state = state
        self.on_change(state)
        self.out.extend((client, state) for client in entry.watchers)
        if state.state == ACTOR_DEAD:
            entry.watchers.clear()
            entry.watching_nodes.clear()

    def client_gone(self, client: Address) -> None:
        """A process is gone: it watches nothing, and reads no stream of those that it called."""
        for entry in self.entries.values():
            if entry.watchers.pop(client, self) is None and entry.worker is not None:
                self.out.append((entry.worker.worker_id, ReaderGone(client)))

    def check(self) -> None:
        """States and owners agree."""
        for actor_id, entry in self.entries.items():
            state = entry.state.state
            at_home = entry.worker is not None
            invariant(state != ACTOR_ALIVE or at_home or bool(entry.host), "no worker of", short(actor_id))
            invariant(not (at_home and entry.host), "in two places:", short(actor_id))
            invariant(state != ACTOR_DEAD or entry.worker is None, "worker of dead actor", short(actor_id))
            invariant((state == ACTOR_DEAD) == (actor_id in self.dead), "dead", short(actor_id))
        invariant(len(self.dead) <= self.dead_max, "I15: dead actors")
