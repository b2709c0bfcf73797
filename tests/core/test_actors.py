"""Where actors are and who is told: pending, alive, dead, in any order of events."""

from __future__ import annotations

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.core.actors import SERVER_SUFFIX, Actors
from zray.core.worker_pool import Worker
from zray.errors import InvariantError
from zray.protocol.faults import ACTOR_DIED, fault_value
from zray.protocol.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, ActorState, Exit
from zray.protocol.user_messages import ReaderGone

ANN, BOB = b"ann", b"bob"
JOB = b"job"
DEAD_MAX = 2
CAUSE = fault_value(ACTOR_DIED, "a", "a reason")
EXIT = Exit("no handle of the actor is left")


def actor(number: int) -> bytes:
    return ids.task_id(b"prefix__", number)


A = actor(1)
PENDING = ActorState(A, ACTOR_PENDING)


def worker(name: bytes = b"worker") -> Worker:
    made = Worker(name, 0)
    made.endpoint = "ipc://" + name.decode()
    return made


def alive(on: Worker) -> ActorState:
    return ActorState(A, ACTOR_ALIVE, on.worker_id + SERVER_SUFFIX, on.endpoint)


@pytest.fixture
def actors(out: Outbox) -> Actors:
    machine = Actors(out, dead_max=DEAD_MAX, on_change=lambda state: None)
    machine.submitted(A, JOB, "Counter")
    return machine


def test_who_watches_hears_every_change_once(actors: Actors, out: Outbox) -> None:
    actors.watch(ANN, A)
    actors.watch(ANN, A)
    assert out.take() == [(ANN, PENDING)] * 2
    host = worker()
    actors.dispatched(A, host)
    actors.alive(A, host)
    assert out.take() == [(ANN, alive(host))]
    actors.watch(BOB, A)
    assert out.take() == [(BOB, alive(host))]
    actors.died(A, CAUSE)
    dead = ActorState(A, ACTOR_DEAD, alive(host).address, cause=CAUSE)
    assert out.take() == [(ANN, dead), (BOB, dead)]
    actors.watch(BOB, A)
    assert out.take() == [(BOB, dead)]
    actors.check()


def test_the_first_cause_of_death_counts(actors: Actors, out: Outbox) -> None:
    actors.died(A, CAUSE)
    actors.died(A, fault_value(ACTOR_DIED, "a", "another reason"))
    assert actors.entries[A].state.cause == CAUSE
    actors.check()


def test_who_is_gone_is_told_nothing(actors: Actors, out: Outbox) -> None:
    actors.watch(ANN, A)
    assert out.take()
    actors.client_gone(ANN)
    actors.died(A, CAUSE)


def test_an_actor_hears_that_who_may_read_its_streams_is_dead(actors: Actors, out: Outbox) -> None:
    actors.watch(ANN, A)
    actors.dispatched(A, worker())
    out.take()
    actors.client_gone(BOB)
    assert out.take() == []
    actors.client_gone(ANN)
    assert out.take() == [(b"worker", ReaderGone(ANN))]
    actors.client_gone(ANN)
    assert out.take() == []


def test_every_state_is_reported(out: Outbox) -> None:
    states: list[ActorState] = []
    machine = Actors(out, dead_max=DEAD_MAX, on_change=states.append)
    machine.submitted(A, JOB, "Counter")
    host = worker()
    machine.dispatched(A, host)
    machine.alive(A, host)
    machine.died(A, CAUSE)
    machine.died(A, CAUSE)
    assert [state.state for state in states] == [ACTOR_PENDING, ACTOR_ALIVE, ACTOR_DEAD]


def test_an_unknown_actor_is_dead(actors: Actors, out: Outbox) -> None:
    actors.watch(ANN, actor(2))
    gone = fault_value(ACTOR_DIED, ids.short(actor(2)), "this node does not know it")
    assert out.take() == [(ANN, ActorState(actor(2), ACTOR_DEAD, cause=gone))]
    actors.released(actor(2))
    actors.died(actor(2), CAUSE)
    assert actor(2) not in actors.entries


def test_without_handles_it_ends_when_it_is_alive(actors: Actors, out: Outbox) -> None:
    host = worker()
    actors.dispatched(A, host)
    actors.released(A)
    assert not out, "its constructor still runs"
    actors.alive(A, host)
    assert out.take() == [(b"worker", EXIT)]
    actors.check()


def test_released_after_it_came_alive_it_ends_at_once(actors: Actors, out: Outbox) -> None:
    host = worker()
    actors.dispatched(A, host)
    actors.alive(A, host)
    actors.released(A)
    assert out.take() == [(b"worker", EXIT)]


def test_killed_while_its_constructor_runs_it_stays_dead(actors: Actors, out: Outbox) -> None:
    host = worker()
    actors.dispatched(A, host)
    actors.died(A, CAUSE)
    actors.alive(A, host)
    assert actors.entries[A].state.state == ACTOR_DEAD
    actors.check()


def test_a_creator_that_runs_again_makes_it_anew(actors: Actors, out: Outbox) -> None:
    first, second = worker(b"first"), worker(b"second")
    actors.dispatched(A, first)
    actors.alive(A, first)
    actors.released(A)
    actors.watch(ANN, A)
    assert out.take() == [(b"first", EXIT), (ANN, alive(first))]
    actors.submitted(A, JOB, "Counter")
    [(to, message)] = out.take()
    assert (to, message.state) == (ANN, ACTOR_DEAD)
    actors.dispatched(A, second)
    actors.alive(A, first)  # what the former one still says is of no interest
    assert actors.entries[A].state == PENDING
    actors.alive(A, second)
    assert actors.entries[A].state == alive(second)
    actors.check()


def test_a_submission_that_is_repeated_changes_nothing(actors: Actors, out: Outbox) -> None:
    entry = actors.entries[A]
    actors.submitted(A, JOB, "Counter")
    assert actors.entries[A] is entry


def test_only_so_many_dead_are_remembered(actors: Actors, out: Outbox) -> None:
    for number in range(2, 6):
        actors.submitted(actor(number), JOB, "Counter")
        actors.died(actor(number), CAUSE)
        actors.check()
    assert list(actors.entries) == [A, actor(4), actor(5)]


def test_check_notices_an_actor_without_a_worker(actors: Actors, out: Outbox) -> None:
    actors.entries[A].state = alive(worker())
    with pytest.raises(InvariantError, match="no worker"):
        actors.check()
