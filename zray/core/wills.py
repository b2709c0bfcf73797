"""Wills: what this node keeps to become the home of detached actors of other nodes, and when it does.

A will is all that the home of an actor knew to make it again: its creation task, its code, its job, and, in
the same form as at the home, its last checkpoint and the calls since (``checkpoints.py``). What the
constructor takes is copied here, so it is not lost with the home. When the home dies the successor reads
the deed (``deeds.py``): if that names this node, it writes itself in, by compare-and-set, and is the home
from then on. A life that runs here goes on; one that died with its home is made again.

Invariant: a will is kept until its deed says that somebody else is the home, or that the actor is dead. What
a dead home still wrote may otherwise name a node that has thrown the will away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from zray.core.actor_lives import ActorLives
from zray.core.deeds import RETRY_NS, Deeds
from zray.core.hosted_actors import HostedActor, HostedActors
from zray.core.machine import RUNTIME, Address, invariant
from zray.core.node_store import SEALED
from zray.core.worker_pool import Worker
from zray.ids import first_return_id, short
from zray.protocol.actor_messages import ActorRow, PastKept, Will, WillVoid
from zray.protocol.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_RESTARTING, Value

PACKAGE_BYTES = 12
"""Of the id of a package, in hex: how an environment names it."""


class HeldWill:
    """One will; found in ``Wills.wills``."""

    __slots__ = (
        "awaited", "cause", "home", "is_left", "is_spent", "is_taking", "look_at_ns", "will",
    )  # fmt: skip

    def __init__(self, home: Address, will: Will) -> None:
        self.home = home
        self.will = will
        self.awaited: dict[bytes, None] = {}  # copies on their way here, of what the constructor takes
        self.cause: Value | None = None  # it is dead, says its home
        self.is_left = False  # it ended on purpose, on this node
        self.is_spent = will.spec is None  # it is not made again
        self.is_taking = False  # this node has written, or is about to write, that it is the home
        self.look_at_ns = 0  # when to look at its deed again; 0: somebody was asked

    @property
    def needs(self) -> tuple[bytes, ...]:
        """What is pinned here for it: its handle, and what its constructor takes."""
        spec = self.will.spec
        inputs = () if spec is None else (*spec.deps, *spec.borrowed)
        return (first_return_id(self.will.actor_id), *inputs)


class Wills:
    """The wills that one node keeps. Pure; shares its node's outbox.

    Args:
        lives: the actors of this node.
        hosted: lives of other nodes' actors that run here.
        deeds: what the actor table says.
        post: says something to another node.
        on_inherited: called with the will and its row once this node is the home, and with the life that goes
            on here, if one does.
    """

    def __init__(
        self,
        lives: ActorLives,
        hosted: HostedActors,
        *,
        deeds: Deeds,
        post: Callable[[Address, Any], None],
        on_inherited: Callable[[HeldWill, ActorRow, HostedActor | None], None],
    ) -> None:
        self.lives = lives
        self.scheduler = lives.scheduler
        self.hosted = hosted
        self.deeds = deeds
        self.post = post
        self.on_inherited = on_inherited
        self.wills: dict[bytes, HeldWill] = {}
        self.incomplete: dict[bytes, HeldWill] = {}  # those of them that await copies
        self.orphans: dict[bytes, HeldWill] = {}  # those whose home is dead
        self.now_ns = 0
        self.inherited = 0

    # --- keeping -----------------------------------------------------------------------------------

    def on_will(self, now_ns: int, home: Address, message: Will) -> None:
        """This node may become the home of an actor."""
        self.now_ns = now_ns
        former = self.wills.get(message.actor_id)
        if former is not None:
            if former.home == home:
                return
            self._drop(former)
        held = self.wills[message.actor_id] = HeldWill(home, message)
        self.scheduler.references.contain(now_ns, held.needs)
        objects = self.scheduler.store.objects
        for object_id in _copied(message):
            if objects[object_id].state != SEALED:
                held.awaited[object_id] = None
                self.lives.checkpoints.fetch(object_id)
        if held.awaited:
            self.incomplete[message.actor_id] = held
        else:
            self._kept(held)

    def _kept(self, held: HeldWill) -> None:
        will = held.will
        self.post(held.home, PastKept(will.actor_id, will.life, first_return_id(will.actor_id)))

    def flush(self) -> None:
        """Once per batch: take the copies that have come."""
        objects = self.scheduler.store.objects
        for actor_id, held in list(self.incomplete.items()):
            for object_id in [one for one in held.awaited if objects[one].state == SEALED]:
                del held.awaited[object_id]
            if not held.awaited:
                del self.incomplete[actor_id]
                self._kept(held)

    def has(self, home: Address, actor_id: bytes) -> bool:
        """Whether this node may become the home of an actor whose home is ``home``."""
        held = self.wills.get(actor_id)
        return held is not None and held.home == home

    def waits_for(self, actor_id: bytes) -> bool:
        """Whether this node is about to inherit an actor."""
        return actor_id in self.wills and self.wills[actor_id].is_taking

    def may_restart(self, actor_id: bytes) -> bool:
        """Whether the will of an actor is one to make it again."""
        held = self.wills.get(actor_id)
        return held is not None and not held.is_spent

    def on_void(self, home: Address, message: WillVoid) -> None:
        """This node is not the successor any more, or the actor is dead and its deed will say so."""
        held = self.wills.get(message.actor_id)
        if held is None or held.home != home:
            return
        if message.cause is not None:
            held.cause = message.cause
        else:
            self._drop(held)

    def spend(self, actor_id: bytes) -> None:
        """An actor that did too much since its last checkpoint is not made again."""
        held = self.wills.get(actor_id)
        if held is not None:
            held.is_spent = True
            self.lives.checkpoints.forget(actor_id)

    def life_ended(self, worker: Worker, *, leaving: bool) -> None:
        """The process of a life that ran here is gone."""
        held = self.wills.get(worker.actor_id)
        if held is not None:
            held.is_left = held.is_left or leaving
            if held.look_at_ns:
                held.look_at_ns = self.now_ns + 1

    def _drop(self, held: HeldWill) -> None:
        """Nothing is to become of it here."""
        actor_id, objects = held.will.actor_id, self.scheduler.store.objects
        was_orphan = actor_id in self.orphans
        self._remove(held)
        self.lives.checkpoints.forget(actor_id)
        for object_id in held.needs:
            self.scheduler.references.unpin(objects[object_id])
        hosted = self.hosted.actors.get(actor_id)
        if hosted is not None and hosted.home == held.home and was_orphan:
            self.hosted.kill(hosted)

    def _remove(self, held: HeldWill) -> None:
        actor_id = held.will.actor_id
        for each in (self.wills, self.incomplete, self.orphans):
            each.pop(actor_id, None)
        for object_id in held.awaited:
            self.scheduler.store.unsubscribe(RUNTIME, self.scheduler.store.objects[object_id])

    # --- inheriting --------------------------------------------------------------------------------

    def node_dead(self, node: Address) -> None:
        """A home died: find out what its deeds say."""
        for held in list(self.wills.values()):
            if held.home == node:
                self.orphans[held.will.actor_id] = held
                self._look(held)

    def _look(self, held: HeldWill) -> None:
        held.look_at_ns = 0
        actor_id = held.will.actor_id
        self.deeds.read(actor_id, lambda row, value: self.decide(actor_id, row, value))

    def decide(self, actor_id: bytes, row: ActorRow | None, value: bytes) -> None:
        """The deed says this now."""
        held = self.orphans.get(actor_id)
        if held is None:
            return
        me = self.scheduler.node_id
        is_mine = row is not None and row.home == me and held.is_taking
        if row is None or row.state == ACTOR_DEAD or not (is_mine or row.home == held.home):
            self._drop(held)
        elif is_mine:
            self._inherit(held, row)
        elif row.successor == me and not self._is_busy(held, row):
            alive = self._goes_on(held, row) is not None
            state, host = (ACTOR_ALIVE, me) if alive else (ACTOR_RESTARTING, b"")
            held.is_taking = True
            self.deeds.take(value, replace(row, home=me, successor=b"", state=state, host=host))
        else:  # another is the successor, or what the dead home wrote last is still on its way
            held.look_at_ns = self.now_ns + RETRY_NS

    def _goes_on(self, held: HeldWill, row: ActorRow) -> HostedActor | None:
        """The life that runs here, if it is the one that callers know."""
        hosted = self.hosted.actors.get(held.will.actor_id)
        if hosted is None or hosted.home != held.home or hosted.life != row.life or not hosted.is_alive:
            return None
        return hosted if row.state == ACTOR_ALIVE and held.cause is None else None

    def _is_busy(self, held: HeldWill, row: ActorRow) -> bool:
        """Whether a life that nobody is to know is still here: two of one actor cannot be told apart."""
        actor_id = held.will.actor_id
        return self._goes_on(held, row) is None and (
            actor_id in self.hosted.actors or actor_id in self.scheduler.tasks
        )

    def on_durable(self, row: ActorRow) -> bool:
        """The deed says what this node wrote; whether that was as a successor."""
        held = self.wills.get(row.actor_id)
        if held is None or not held.is_taking:
            return False
        self._inherit(held, row)
        return True

    def _inherit(self, held: HeldWill, row: ActorRow) -> None:
        """This node is the home from now on."""
        goes_on = self._goes_on(held, row) if row.host == self.scheduler.node_id else None
        self._remove(held)
        self.inherited += 1
        self.on_inherited(held, row, goes_on)

    # --- time --------------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """When the deed of an actor without a home is to be looked at again."""
        return min((held.look_at_ns for held in self.orphans.values() if held.look_at_ns), default=None)

    def on_tick(self, now_ns: int) -> None:
        """Look again."""
        self.now_ns = now_ns
        for held in list(self.orphans.values()):
            if held.look_at_ns and held.look_at_ns <= now_ns:
                self._look(held)

    def check(self) -> None:
        """What a will needs is pinned here."""
        for actor_id, held in self.wills.items():
            invariant(held.will.actor_id == actor_id, "will of", short(actor_id))
            for object_id in held.needs:
                entry = self.scheduler.store.objects.get(object_id)
                invariant(entry is not None and entry.pins > 0, "a will lacks", short(object_id))


def _copied(will: Will) -> dict[bytes, None]:
    """What may be lost with its home: what the constructor takes, and the packages of its environment."""
    spec, environment = will.spec, will.descriptor.environment
    if spec is None:
        return {}
    packages = [one for one in spec.borrowed if environment and one[:PACKAGE_BYTES].hex() in environment]
    return dict.fromkeys((*spec.deps, *packages))
