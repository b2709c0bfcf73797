"""The caller's side of actor calls: order, where they wait, and what becomes of them."""

from __future__ import annotations

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.core.actor_calls import ActorCalls
from zray.protocol.faults import ACTOR_DIED, fault_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    INLINE,
    ActorState,
    Call,
    LetGo,
    Reply,
    Value,
    WatchActor,
)

NODE = b"node"
A, B = ids.task_id(b"actors__", 1), ids.task_id(b"actors__", 2)
ADDRESS = b"worker+"
ALIVE = ActorState(A, ACTOR_ALIVE, ADDRESS, "ipc://w")
CAUSE = fault_value(ACTOR_DIED, "a", "a reason")
DEAD = ActorState(A, ACTOR_DEAD, ADDRESS, cause=CAUSE)
VALUE = Value(INLINE, b"v")


class Caller:
    """The machine, and calls with rising task ids."""

    def __init__(self, out: Outbox) -> None:
        self.machine = ActorCalls(out, node=NODE)
        self.made = 0

    def call(self, actor_id: bytes = A) -> tuple[Call, Value | None]:
        self.made += 1
        sequence = self.machine.next_sequence(actor_id)
        call = Call(ids.task_id(b"calls___", self.made), actor_id, sequence, "m", 1, b"")
        fault = self.machine.call(call)
        self.machine.check()
        return call, fault

    def state(self, state: ActorState) -> list[tuple[Call, Value]]:
        ended = self.machine.on_state(state)
        self.machine.check()
        return ended


@pytest.fixture
def caller(out: Outbox) -> Caller:
    return Caller(out)


def test_calls_wait_until_the_actor_is_found_and_keep_their_order(caller: Caller, out: Outbox) -> None:
    first, second = caller.call()[0], caller.call()[0]
    assert out.take() == [(NODE, WatchActor(A))]
    assert caller.state(ActorState(A, ACTOR_PENDING)) == []
    third = caller.call()[0]
    assert caller.state(ALIVE) == []
    assert out.take() == [(ADDRESS, call) for call in (first, second, third)]
    fourth = caller.call()[0]
    assert out.take() == [(ADDRESS, fourth)]
    assert [call.sequence for call in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert caller.state(ALIVE) == []
    assert not out, "nothing is sent twice"


def test_a_reply_ends_its_call_once(caller: Caller, out: Outbox) -> None:
    call, _ = caller.call()
    caller.state(ALIVE)
    assert len(out.take()) == 2
    reply = Reply(call.task_id, (VALUE,))
    assert caller.machine.on_reply(reply) == call
    assert caller.machine.on_reply(reply) is None
    caller.machine.check()


def test_when_the_actor_dies_every_open_call_ends_with_its_cause(caller: Caller, out: Outbox) -> None:
    caller.call()
    caller.state(ALIVE)
    answered, open_call = caller.call()[0], caller.call()[0]
    caller.machine.on_reply(Reply(answered.task_id, (VALUE,)))
    out.take()
    ended = caller.state(DEAD)
    assert [call.sequence for call, _ in ended] == [1, 3]
    assert all(cause == CAUSE for _, cause in ended)
    assert out.take() == [(NODE, LetGo(A))]
    assert caller.machine.on_reply(Reply(open_call.task_id, (VALUE,))) is None, "its reply comes too late"
    late, fault = caller.call()
    assert fault == CAUSE
    assert not out
    assert late.task_id not in caller.machine.actor_of_call
    assert caller.state(ALIVE) == [], "the dead do not come back"


def test_calls_that_wait_for_a_constructor_end_with_its_fault(caller: Caller, out: Outbox) -> None:
    call, _ = caller.call()
    assert caller.state(DEAD) == [(call, CAUSE)]
    assert out.take() == [(NODE, WatchActor(A)), (NODE, LetGo(A))]


def test_actors_do_not_disturb_each_other(caller: Caller, out: Outbox) -> None:
    caller.call(A)
    other, _ = caller.call(B)
    caller.state(DEAD)
    out.take()
    caller.state(ActorState(B, ACTOR_ALIVE, b"other+", "ipc://o"))
    assert out.take() == [(b"other+", other)]
    assert other.sequence == 1


def test_an_actor_with_open_calls_is_not_forgotten(caller: Caller, out: Outbox) -> None:
    call, _ = caller.call()
    assert caller.machine.forget(A) is None
    caller.state(ALIVE)
    assert caller.machine.forget(A) is None
    caller.machine.on_reply(Reply(call.task_id, (VALUE,)))
    assert caller.machine.forget(A) == ADDRESS
    assert caller.machine.forget(A) is None
    assert caller.state(ALIVE) == []
    out.take()


def test_sequence_numbers_go_on_after_an_actor_was_forgotten(caller: Caller, out: Outbox) -> None:
    """The actor still knows this caller: a sequence that starts again would look like old calls."""
    call, _ = caller.call()
    caller.state(ALIVE)
    caller.machine.on_reply(Reply(call.task_id, (VALUE,)))
    caller.machine.forget(A)
    out.take()
    again, _ = caller.call()
    assert again.sequence == 2
    assert out.take() == [(NODE, WatchActor(A))]
    caller.state(ALIVE)
    assert out.take() == [(ADDRESS, again)]


def test_nothing_is_kept_of_a_forgotten_actor_that_died(caller: Caller, out: Outbox) -> None:
    call, _ = caller.call()
    caller.state(ALIVE)
    caller.machine.on_reply(Reply(call.task_id, (VALUE,)))
    caller.machine.forget(A)
    assert caller.machine.sequences == {A: 1}
    assert caller.state(DEAD) == []
    assert not caller.machine.sequences
    assert not caller.machine.callees
    out.take()


def test_a_dead_actor_leaves_an_address_to_disconnect_from(caller: Caller, out: Outbox) -> None:
    caller.call()
    caller.state(DEAD)
    assert caller.machine.forget(A) == ADDRESS
    assert not caller.machine.sequences
    out.take()
