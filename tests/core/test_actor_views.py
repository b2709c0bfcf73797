"""How one node finds the actors of others, whom it tells what, and whose calls it relays."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.core.actor_views import ORPHAN_LOOK_NS, ActorViews
from zray.core.actors import Actors
from zray.core.membership import GRAVES
from zray.protocol.actor_messages import ActorAt, ActorRow, WatchFrom
from zray.protocol.documents import encode_value
from zray.protocol.faults import ACTOR_DIED, fault_error, fault_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    ACTOR_RESTARTING,
    TABLE_ACTOR,
    TABLE_KV,
    ActorState,
    KillActor,
    TableChanged,
    TableGet,
    TableReply,
    TableSubscribe,
)

HERE, HOME, HOST, SHARD = b"here", b"home", b"host", b"shard"
ANN, BOB = b"ann", b"bob"
ACTOR = ids.task_id(b"p" * 8, 1)
PATIENCE_NS = 1_000
CAUSE = fault_value(ACTOR_DIED, "a", "a reason")


class Mail:
    """What is posted, and where the lives of this node are."""

    def __init__(self) -> None:
        self.posted: list[tuple[bytes, Any]] = []
        self.here: ActorState | None = None

    def post(self, node: bytes, message: Any) -> None:
        self.posted.append((node, message))

    def state_of(self, actor_id: bytes, life: int) -> ActorState | None:
        return self.here

    def take(self) -> list[tuple[bytes, Any]]:
        posted, self.posted = self.posted, []
        return posted


@pytest.fixture
def mail() -> Mail:
    return Mail()


@pytest.fixture
def views(out: Outbox, mail: Mail) -> ActorViews:
    actors = Actors(out, dead_max=10, on_change=lambda _: None)
    either: Any = mail
    made = ActorViews(
        out, node_id=HERE, actors=actors, hosted=either, couriers=either, shards=[SHARD],
        patience_ns=PATIENCE_NS, on_over=lambda _: None,
    )  # fmt: skip
    made.peers_changed({HOME: "", HOST: ""})
    return made


def row(state: int = ACTOR_ALIVE, home: bytes = HOME, **more: Any) -> bytes:
    return encode_value(ActorRow(ACTOR, state, home, **more))


def found(views: ActorViews, out: Outbox, mail: Mail, *clients: bytes) -> None:
    """``clients`` watch an actor whose home is known by now."""
    for client in clients:
        views.watch(client, ACTOR)
    ((_, question), *_) = [effect for effect in out.take() if type(effect[1]) is TableSubscribe]
    views.on_table_reply(TableReply(question.token, True, row()))
    assert mail.take() == [(HOME, WatchFrom(ACTOR))]


def alive(life: int = 0, host: bytes = HOST) -> ActorAt:
    return ActorAt(ACTOR, ACTOR_ALIVE, life, host)


def test_it_is_looked_up_once_and_its_home_watched(views: ActorViews, out: Outbox, mail: Mail) -> None:
    found(views, out, mail, ANN, BOB)
    views.on_actor_at(HOME, alive())
    assert out.take() == [(client, ActorState(ACTOR, ACTOR_ALIVE)) for client in (ANN, BOB)]
    assert views.life_for(ANN, ACTOR) == (HOST, 0)
    assert views.life_for(b"a stranger", ACTOR) is None
    views.check()


def test_a_row_that_is_still_to_come_is_waited_for(views: ActorViews, out: Outbox, mail: Mail) -> None:
    views.watch(ANN, ACTOR)
    (_, question), _ = out.take()
    assert question == TableSubscribe(question.token, TABLE_ACTOR, ACTOR)
    views.on_table_changed(TableChanged(TABLE_ACTOR, ACTOR, row(ACTOR_PENDING)))
    assert mail.take() == [(HOME, WatchFrom(ACTOR))]
    assert views.wake_at_ns is None


def test_an_actor_that_nobody_made_known_is_dead_in_the_end(views: ActorViews, out: Outbox) -> None:
    views.watch(ANN, ACTOR)
    out.take()
    views.on_tick(PATIENCE_NS)
    ((_, question),) = out.take()
    assert question == TableGet(question.token, TABLE_ACTOR, ACTOR)
    views.on_table_reply(TableReply(question.token, False))
    ((_, state),) = out.take()
    assert state.state == ACTOR_DEAD
    assert not views.views


def test_a_home_with_a_grave_is_dead_and_one_without_is_waited_for(
    views: ActorViews, out: Outbox, mail: Mail
) -> None:
    views.watch(ANN, ACTOR)
    (_, question), _ = out.take()
    views.on_table_reply(TableReply(question.token, True, row(home=b"unheard")))
    ((_, grave),) = out.take()
    assert grave == TableGet(grave.token, TABLE_KV, GRAVES + b"unheard")
    views.on_table_reply(TableReply(grave.token, False))
    assert ACTOR in views.views
    views.peers_changed({HOME: "", b"unheard": ""})
    assert mail.take() == [(b"unheard", WatchFrom(ACTOR))]
    views.node_dead(b"unheard")
    ((_, state),) = out.take()
    assert "which made it, died" in str(fault_error(state.cause.data))


def test_who_was_told_that_a_life_is_over_watches_anew(views: ActorViews, out: Outbox, mail: Mail) -> None:
    found(views, out, mail, ANN)
    views.on_actor_at(HOME, alive())
    views.on_actor_at(HOME, ActorAt(ACTOR, ACTOR_RESTARTING, 1, cause=CAUSE))
    views.on_actor_at(HOME, alive(1))
    assert [state.state for _, state in out.take()] == [ACTOR_ALIVE, ACTOR_RESTARTING]
    assert views.life_for(ANN, ACTOR) is None, "her call may be from before"
    views.watch(ANN, ACTOR)
    assert out.take() == [(ANN, ActorState(ACTOR, ACTOR_ALIVE))]
    assert views.life_for(ANN, ACTOR) == (HOST, 1)


def test_who_was_told_of_no_life_yet_goes_on_watching(views: ActorViews, out: Outbox, mail: Mail) -> None:
    """Caller and node must agree on who watches anew: a caller does so if the former word was of a life."""
    found(views, out, mail, ANN)
    views.on_actor_at(HOME, ActorAt(ACTOR, ACTOR_RESTARTING, 1, cause=CAUSE))
    views.on_actor_at(HOME, ActorAt(ACTOR, ACTOR_RESTARTING, 2, cause=CAUSE))  # that one never began
    views.on_actor_at(HOME, alive(2))
    assert [state.state for _, state in out.take()] == [ACTOR_RESTARTING, ACTOR_RESTARTING, ACTOR_ALIVE]
    assert views.life_for(ANN, ACTOR) == (HOST, 2)


def test_a_life_on_this_node_is_called_directly(views: ActorViews, out: Outbox, mail: Mail) -> None:
    found(views, out, mail, ANN)
    mail.here = ActorState(ACTOR, ACTOR_ALIVE, b"worker+", "ipc://w")
    views.on_actor_at(HOME, alive(host=HERE))
    assert out.take() == [(ANN, mail.here)]
    assert views.life_for(ANN, ACTOR) is None
    views.on_actor_at(HOME, ActorAt(ACTOR, ACTOR_DEAD, cause=CAUSE))
    assert out.take() == [(ANN, ActorState(ACTOR, ACTOR_DEAD, b"worker+", "", CAUSE))]


def test_what_is_said_of_an_actor_that_is_looked_for_is_said_later(
    views: ActorViews, out: Outbox, mail: Mail
) -> None:
    kill = KillActor(ACTOR)
    views.kill(kill)
    ((_, question),) = out.take()
    assert mail.take() == []
    views.on_table_reply(TableReply(question.token, True, row()))
    assert mail.take() == [(HOME, WatchFrom(ACTOR)), (HOME, kill)]
    views.on_actor_at(b"an impostor", ActorAt(ACTOR, ACTOR_DEAD, cause=CAUSE))
    assert ACTOR in views.views


def test_a_shard_that_forgot_who_waits_is_asked_again(views: ActorViews, out: Outbox) -> None:
    views.watch(ANN, ACTOR)
    (_, first), _ = out.take()
    views.ask_again(SHARD)
    ((_, again),) = out.take()
    assert again == TableGet(again.token, TABLE_ACTOR, ACTOR)
    views.on_table_reply(TableReply(first.token, False))
    assert ACTOR in views.views, "an answer to the former question"


# --- detached actors -----------------------------------------------------------------------------------


def found_detached(views: ActorViews, out: Outbox, mail: Mail, host: bytes) -> None:
    views.watch(ANN, ACTOR)
    (_, question), _ = out.take()
    views.on_table_reply(TableReply(question.token, True, row(detached=True)))
    views.on_actor_at(HOME, alive(host=host))
    mail.take()
    out.take()


def looked_again(views: ActorViews, out: Outbox, **deed: Any) -> None:
    """The row says this when it is looked at once more."""
    views.on_tick(views.now_ns + ORPHAN_LOOK_NS)
    ((_, question),) = out.take()
    assert question == TableGet(question.token, TABLE_ACTOR, ACTOR)
    views.on_table_reply(TableReply(question.token, True, row(detached=True, **deed)))


def test_a_life_that_survives_its_home_is_called_as_before(
    views: ActorViews, out: Outbox, mail: Mail
) -> None:
    found_detached(views, out, mail, HOST)
    views.node_dead(HOME)
    views.peers_changed({HOST: ""})
    assert views.life_for(ANN, ACTOR) == (HOST, 0)
    kill = KillActor(ACTOR)
    views.kill(kill)
    looked_again(views, out)
    assert mail.take() == [], "its row names the dead home still"
    looked_again(views, out, home=HOST)
    assert mail.take() == [(HOST, WatchFrom(ACTOR)), (HOST, kill)]
    views.on_actor_at(HOST, alive())
    assert out.take() == [(ANN, ActorState(ACTOR, ACTOR_ALIVE))]
    assert views.life_for(ANN, ACTOR) == (HOST, 0)


def test_a_life_that_died_with_its_home_is_over_for_its_callers(
    views: ActorViews, out: Outbox, mail: Mail
) -> None:
    found_detached(views, out, mail, HOME)
    views.node_dead(HOME)
    views.peers_changed({HOST: ""})
    ((_, state),) = out.take()
    assert state.state == ACTOR_RESTARTING
    assert "it is being restarted" in str(fault_error(state.cause.data))
    views.watch(ANN, ACTOR)
    out.take()
    looked_again(views, out, home=HOST)
    views.on_actor_at(HOST, ActorAt(ACTOR, ACTOR_RESTARTING, 1, cause=CAUSE))
    views.on_actor_at(HOST, alive(1))
    assert [state.state for _, state in out.take()] == [ACTOR_RESTARTING, ACTOR_ALIVE], "she still watches"
    assert views.life_for(ANN, ACTOR) == (HOST, 1)


def test_a_next_life_that_nobody_announced_ends_the_calls_of_the_one_before(
    views: ActorViews, out: Outbox, mail: Mail
) -> None:
    found_detached(views, out, mail, HOST)
    views.node_dead(HOME)
    views.peers_changed({HOST: ""})
    looked_again(views, out, home=HOST)
    views.on_actor_at(HOST, alive(3))
    assert [state.state for _, state in out.take()] == [ACTOR_RESTARTING]
    assert views.life_for(ANN, ACTOR) is None, "her call may be from before"
    views.watch(ANN, ACTOR)
    assert out.take() == [(ANN, ActorState(ACTOR, ACTOR_ALIVE))]


def test_who_has_another_home_here_is_watched_here(views: ActorViews, out: Outbox, mail: Mail) -> None:
    said: list[Any] = []
    views.on_unsaid = said.append
    found_detached(views, out, mail, HOME)
    views.kill(KillActor(ACTOR))
    views.node_dead(HOME)
    out.take()
    views.watch(ANN, ACTOR)
    out.take()
    assert list(views.now_at_home(ACTOR)) == [ANN]
    assert said == [KillActor(ACTOR)]
    assert not views.views
