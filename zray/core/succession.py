"""Who becomes the home of a detached actor of this node, if this node dies.

The home of an actor that is to outlive its job chooses a *successor* among the other nodes: the host of its
life, if that is another node, so that the life goes on; else any. The successor is told everything that it
takes to make the actor again (``wills.py``), then the deed names it (``deeds.py``), and only then is the
actor shown to anybody. What a life records from then on counts once the successor has it, too (paper,
section 4.2.3). No life begins before the deed has its number, so no number is used by two homes.

Invariant: while other nodes live, the deed of an actor that is shown names a node that has its whole past,
or nothing that its worker recorded is acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from zray.core.actor_lives import ActorLives
from zray.core.actors import ActorEntry
from zray.core.checkpoints import without_large_values
from zray.core.deeds import Deeds
from zray.core.machine import Address, invariant
from zray.core.sharing import Sharing
from zray.core.worker_pool import Worker
from zray.ids import first_return_id, short
from zray.protocol.actor_messages import ActorRow, PastKept, ToPast, Will, WillVoid
from zray.protocol.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, Acked
from zray.protocol.user_messages import RecordCall, SaveCheckpoint


class Bequest:
    """What one node is told, and has not kept yet: pinned here until then; found in ``Line.told``."""

    __slots__ = ("calls", "checkpoints", "has_will", "is_whole")

    def __init__(self) -> None:
        self.calls: deque[tuple[bytes, ...]] = deque()  # what recorded calls take
        self.checkpoints: dict[bytes, None] = {}
        self.has_will = False
        self.is_whole = False  # it had kept all of it once

    @property
    def has_all(self) -> bool:
        return self.has_will and not (self.calls or self.checkpoints)


class Line:
    """The succession of one actor of this node; found in ``Succession.lines``."""

    __slots__ = ("actor_id", "is_ready", "named", "owes", "successor", "tokens", "told")

    def __init__(self, actor_id: bytes) -> None:
        self.actor_id = actor_id
        self.successor: Address = b""  # chosen
        self.named: Address = b""  # by the deed, as far as that is acknowledged
        self.told: dict[Address, Bequest] = {}  # who was sent a will
        self.is_ready = False  # the constructor of the present life has returned
        self.owes = False  # something was recorded that may not be acknowledged yet
        self.tokens: list[tuple[Address, int]] = []  # of the worker, acknowledged then


class Succession:
    """The successors of the detached actors of one node. Pure; shares its node's outbox.

    Args:
        lives: the actors of this node.
        deeds: their rows.
        sharing: of this node.
        post: says something to another node.
        row_of: the row of an actor, without its successor.
    """

    def __init__(
        self,
        lives: ActorLives,
        *,
        deeds: Deeds,
        sharing: Sharing,
        post: Callable[[Address, Any], None],
        row_of: Callable[[ActorEntry], ActorRow],
    ) -> None:
        self.lives = lives
        self.scheduler = lives.scheduler
        self.actors = lives.actors
        self.deeds = deeds
        self.sharing = sharing
        self.post = post
        self.row_of = row_of
        self.lines: dict[bytes, Line] = {}
        self.alive: dict[Address, str] = {}

    # --- beginnings --------------------------------------------------------------------------------

    def expect(self, actor_id: bytes) -> None:
        """An actor is about to be submitted here: its row is a deed from the first word on."""
        self.lines[actor_id] = Line(actor_id)

    def begins(self, entry: ActorEntry) -> None:
        """A life is about to begin: not before the deed says so, if anybody else could begin it."""
        line = self.lines[entry.actor_id]
        line.is_ready = False
        line.tokens.clear()
        self._write(entry, line)
        if self.sharing.active and not self.deeds.says(self._deed_of(entry, line)):
            self.scheduler.admission.held[entry.actor_id] = None

    def constructed(self, entry: ActorEntry) -> bool:
        """The constructor has returned; whether the actor is shown later, once its successor is named."""
        line = self.lines.get(entry.actor_id)
        if line is None or not self.sharing.active:
            return False
        line.is_ready = True
        self._advance(entry, line)
        return True

    def inherited(self, entry: ActorEntry, tokens: Iterable[tuple[Address, int]], *, goes_on: bool) -> None:
        """This node has become the home of an actor, whose life goes on here or is over."""
        line = self.lines[entry.actor_id] = Line(entry.actor_id)
        if goes_on:
            line.is_ready = line.owes = True
            line.tokens += tokens
            self._advance(entry, line)

    def forget(self, actor_id: bytes) -> None:
        """The actor is of another node."""
        self.lines.pop(actor_id, None)

    # --- the deed ----------------------------------------------------------------------------------

    def changed(self, entry: ActorEntry) -> bool:
        """An actor of this node has another state; whether it is one that has a deed."""
        line = self.lines.get(entry.actor_id)
        if line is None:
            return False
        if entry.state.state != ACTOR_ALIVE:
            line.is_ready = False
            line.tokens.clear()
        if entry.state.state == ACTOR_DEAD:
            self.scheduler.admission.held.pop(entry.actor_id, None)
            for node in line.told:
                self.post(node, WillVoid(entry.actor_id, entry.state.cause))
        self._write(entry, line)
        return True

    def _write(self, entry: ActorEntry, line: Line) -> None:
        self.deeds.write(self._deed_of(entry, line))

    def _deed_of(self, entry: ActorEntry, line: Line) -> ActorRow:
        """The row as it should be; it names a successor only if that has a whole will."""
        row = self.row_of(entry)
        successors = (line.successor, line.named)
        successor = next((node for node in successors if node in line.told and line.told[node].is_whole), b"")
        if line.is_ready:
            row = replace(row, state=ACTOR_ALIVE, host=entry.host or row.home)
        return replace(row, address=b"", successor=successor, detached=True)

    def on_durable(self, row: ActorRow) -> None:
        """The deed says what this node wrote."""
        entry, line = self.actors.entries.get(row.actor_id), self.lines.get(row.actor_id)
        if entry is None or line is None:
            return
        line.named = row.successor
        if row.state == ACTOR_DEAD:
            self._over(entry, line)
            return
        if row.life == entry.restarts and row.actor_id in self.scheduler.admission.held:
            del self.scheduler.admission.held[row.actor_id]
            task = self.scheduler.tasks.get(row.actor_id)
            if task is not None and not task.unmet:
                self.scheduler.admission.decide(task)
        self._advance(entry, line)

    def _over(self, entry: ActorEntry, line: Line) -> None:
        """The actor is dead, and nobody makes it again: only now is its name free."""
        del self.lines[entry.actor_id]
        for node in list(line.told):
            self._untell(line, node)
            self.post(node, WillVoid(entry.actor_id))
        if entry.descriptor is not None:
            self.lives.on_gone(entry.actor_id, entry.descriptor)

    # --- the successor ----------------------------------------------------------------------------------

    def _advance(self, entry: ActorEntry, line: Line) -> None:
        """Choose a successor, tell it all, name it, show the actor: whichever is next."""
        if entry.state.state == ACTOR_DEAD or not self.sharing.active:
            return
        if line.is_ready or entry.state.state != ACTOR_PENDING:
            self._choose(entry, line)
        row = self._deed_of(entry, line)
        if row.successor != line.successor:
            return  # it has not kept all yet
        if not self.deeds.says(row):
            self.deeds.write(row)
        elif not line.successor or line.told[line.successor].has_all:
            self._settled(entry, line)

    def _choose(self, entry: ActorEntry, line: Line) -> None:
        """The host of a life elsewhere, so that it goes on; else whoever is told already, or any node."""
        if entry.host:
            successor = entry.host if entry.host in self.alive else line.successor
        elif line.successor in self.alive:
            successor = line.successor
        else:
            others = list(self.alive)
            successor = others[int.from_bytes(entry.actor_id[-4:]) % len(others)] if others else b""
        line.successor = successor
        if successor and successor not in line.told:
            self._tell_all(entry, line, successor)

    def _tell_all(self, entry: ActorEntry, line: Line, successor: Address) -> None:
        """Make a will, and say all that a new life of the actor is told of the former ones."""
        scheduler, descriptor, creation = self.scheduler, entry.descriptor, entry.creation
        assert descriptor is not None
        spec = None if creation is None else creation.spec
        self.sharing.expose((first_return_id(entry.actor_id),))
        if spec is not None:
            self.sharing.expose((*spec.deps, *spec.borrowed))
        code = scheduler.functions.get(descriptor.function_id, b"")
        context = scheduler.jobs[entry.actor_id].context
        self.post(successor, Will(entry.actor_id, entry.restarts, descriptor, context, code, spec))
        line.told[successor] = Bequest()
        for said in self.lives.checkpoints.memory_of(entry.actor_id):
            self._pass_on(entry, line, successor, said)

    def recorded(self, entry: ActorEntry, said: RecordCall | SaveCheckpoint) -> None:
        """The worker of a life says what the next one must know. A host that inherits keeps it itself."""
        line = self.lines.get(entry.actor_id)
        if line is None:
            return
        for node in line.told:
            if node != entry.host:
                self._pass_on(entry, line, node, said)
        line.owes = not entry.host and self.sharing.active

    def _pass_on(
        self, entry: ActorEntry, line: Line, node: Address, said: RecordCall | SaveCheckpoint
    ) -> None:
        told = line.told[node]
        needs: tuple[bytes, ...]
        if isinstance(said, RecordCall):
            said = without_large_values(said)
            needs = (*said.call.deps, *said.call.borrowed)
            told.calls.append(needs)
        else:
            needs = (said.object_id,)
            told.checkpoints[said.object_id] = None
        for object_id in needs:
            self.scheduler.references.pin(self.scheduler.store.objects[object_id])
        self.sharing.expose(needs)
        self.post(node, ToPast(entry.actor_id, entry.restarts, said))

    def on_past_kept(self, source: Address, message: PastKept) -> None:
        """A successor has something that it was told."""
        entry, line = self.actors.entries.get(message.actor_id), self.lines.get(message.actor_id)
        if entry is None or line is None or source not in line.told:
            return
        told = line.told[source]
        if message.object_id == first_return_id(message.actor_id):
            told.has_will = True
        elif message.object_id in told.checkpoints:
            del told.checkpoints[message.object_id]
            self._unpin((message.object_id,))
        elif told.calls and not message.object_id:
            self._unpin(told.calls.popleft())
        if told.has_all:
            told.is_whole = True
            self._advance(entry, line)

    def _untell(self, line: Line, node: Address) -> bool:
        """Nothing more is to be heard of a node; whether it was told anything."""
        told = line.told.pop(node, None)
        if told is None:
            return False
        for needs in (*told.calls, tuple(told.checkpoints)):
            self._unpin(needs)
        return True

    def _unpin(self, object_ids: Iterable[bytes]) -> None:
        for object_id in object_ids:
            self.scheduler.references.unpin(self.scheduler.store.objects[object_id])

    def acknowledges_later(self, worker: Worker | None, token: int) -> bool:
        """Whether the successor must first have what the worker of an actor here said before."""
        line = None if worker is None else self.lines.get(worker.actor_id)
        if worker is None or line is None or not line.owes:
            return False
        entry = self.actors.entries[line.actor_id]
        if entry.worker is not worker:
            return False
        line.tokens.append((worker.worker_id, token))
        return True

    def _settled(self, entry: ActorEntry, line: Line) -> None:
        """The deed names the successor, which has everything."""
        for node in [node for node in line.told if node != line.named]:
            self._untell(line, node)
            self.post(node, WillVoid(entry.actor_id))
        line.owes = False
        tokens, line.tokens = line.tokens, []
        self.scheduler.out.extend((worker, Acked(token)) for worker, token in tokens)
        if line.is_ready and entry.state.state != ACTOR_ALIVE:
            self.actors.show(entry)
            if not entry.restarts and entry.descriptor is not None:
                self.lives.on_shown(entry.actor_id, entry.descriptor)

    def waits_for(self, actor_id: bytes) -> str:
        """Why an actor that could begin, or be shown, is not; for people. Empty: for no such reason."""
        line = self.lines.get(actor_id)
        if actor_id in self.scheduler.admission.held:
            return "the control store, which is to know of its next life first"
        if line is None or not line.is_ready or self.actors.entries[actor_id].state.state == ACTOR_ALIVE:
            return ""
        if line.successor and not line.told[line.successor].has_all:
            return f"node {short(line.successor)}, which is to have all that it takes to make it again"
        return "the control store, which is to know its successor first"

    def successor_of(self, actor_id: bytes) -> Address:
        """The node that becomes the home of an actor if this one dies; empty: none."""
        line = self.lines.get(actor_id)
        return b"" if line is None else line.named

    # --- other nodes -------------------------------------------------------------------------------

    def peers_changed(self, alive: dict[Address, str]) -> None:
        """Other nodes are alive than before: an actor that had no successor may have one."""
        self.alive = alive
        for line in list(self.lines.values()):
            entry = self.actors.entries[line.actor_id]
            if entry.state.state == ACTOR_ALIVE:
                line.is_ready = True  # also if it was shown when there was no other node
            if not line.successor:
                self._advance(entry, line)

    def node_dead(self, node: Address) -> None:
        """A node died: it is nobody's successor any more."""
        for line in list(self.lines.values()):
            if node == line.successor:
                line.successor = b""
            if self._untell(line, node):
                self._advance(self.actors.entries[line.actor_id], line)

    def check(self) -> None:
        """Lines are of actors of this node; an actor that is shown while others live has a successor."""
        for actor_id, line in self.lines.items():
            entry = self.actors.entries.get(actor_id)
            invariant(entry is not None, "a line without an actor:", short(actor_id))
            invariant(not line.tokens or line.owes, "tokens without need:", short(actor_id))
