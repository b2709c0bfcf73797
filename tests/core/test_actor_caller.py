"""What calls keep alive: their actor's handle and their arguments, until the last reply and no longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray import ids
from zray.core.actor_caller import ActorCaller
from zray.core.actor_calls import ActorCalls
from zray.core.client_objects import ClientObjects
from zray.core.machine import Effect
from zray.protocol.faults import ACTOR_DIED, fault_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    INLINE,
    ActorState,
    Call,
    Reply,
    Value,
)

NODE, ADDRESS = b"node", b"worker+"
ACTOR_ID = ids.task_id(b"actors__", 1)
HANDLE = ids.first_return_id(ACTOR_ID)
ARGUMENTS = (ids.put_id(b"caller__", 1), ids.put_id(b"caller__", 2))
VALUE = Value(INLINE, b"v")
CAUSE = fault_value(ACTOR_DIED, "a", "signal 9")


class Caller:
    """One process that holds a handle and two arguments, each once."""

    def __init__(self) -> None:
        out: list[Effect] = []
        self.objects = ClientObjects(out, node=NODE)
        self.calls = ActorCalls(out, node=NODE)
        self.machine = ActorCaller(self.calls, self.objects)
        self.made = 0
        for object_id in (HANDLE, *ARGUMENTS):
            self.objects.borrow(object_id)

    def call(self, arguments: tuple[bytes, ...] = ()) -> Call:
        self.made += 1
        task_id = ids.task_id(b"caller__", self.made)
        call = Call(task_id, ACTOR_ID, self.calls.next_sequence(ACTOR_ID), "m", 1, b"", arguments)
        self.machine.call(call, ids.return_ids(task_id, 1), arguments)
        return call

    def state(self, state: int) -> None:
        self.machine.on_state(ActorState(ACTOR_ID, state, ADDRESS, "ipc://w", CAUSE))

    def refs(self, *object_ids: bytes) -> list[int]:
        objects = self.objects.objects
        return [objects[object_id].refs if object_id in objects else 0 for object_id in object_ids]


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_a_dropped_handle_is_held_until_the_last_reply(caller: Caller) -> None:
    first, second = caller.call(), caller.call(ARGUMENTS)
    caller.state(ACTOR_ALIVE)
    for object_id in (HANDLE, *ARGUMENTS):
        caller.objects.drop(object_id)
    caller.machine.check()
    assert caller.refs(HANDLE, *ARGUMENTS) == [1, 1, 1]
    caller.machine.on_reply(Reply(second.task_id, (VALUE,)))
    assert caller.refs(HANDLE, *ARGUMENTS) == [1, 0, 0]
    caller.machine.on_reply(Reply(first.task_id, (VALUE,)))
    caller.machine.on_reply(Reply(first.task_id, (VALUE,)))
    assert caller.refs(HANDLE) == [0]
    assert caller.objects.is_ready(ids.first_return_id(first.task_id))


def test_a_call_to_a_dead_actor_ends_at_once(caller: Caller) -> None:
    waiting = caller.call(ARGUMENTS)
    caller.state(ACTOR_DEAD)
    late = caller.call(ARGUMENTS)
    for call in (waiting, late):
        assert caller.objects.take(ids.first_return_id(call.task_id)) == CAUSE
    assert caller.refs(HANDLE, *ARGUMENTS) == [1, 1, 1]
    caller.machine.check()


def test_a_call_that_is_taken_back_lets_go(caller: Caller) -> None:
    call = caller.call(ARGUMENTS)
    caller.machine.cancel(call.task_id, recursive=False)
    assert caller.objects.is_ready(ids.first_return_id(call.task_id))
    assert caller.refs(HANDLE, *ARGUMENTS) == [1, 1, 1]


@given(st.lists(st.sampled_from(["call", "call with", "reply", "cancel", "pending", "alive", "dead"])))
def test_whatever_happens_nothing_is_held_without_a_call(steps: list[str]) -> None:
    caller = Caller()
    open_calls: list[Call] = []
    for step in steps:
        if step.startswith("call"):
            open_calls.append(caller.call(ARGUMENTS if step == "call with" else ()))
        elif step == "reply" and open_calls:
            caller.machine.on_reply(Reply(open_calls.pop(0).task_id, (VALUE,)))
        elif step == "cancel" and open_calls and open_calls[-1].task_id in caller.calls.actor_of_call:
            caller.machine.cancel(open_calls[-1].task_id, recursive=True)
        elif step in ("pending", "alive", "dead"):
            caller.state({"pending": ACTOR_PENDING, "alive": ACTOR_ALIVE, "dead": ACTOR_DEAD}[step])
        caller.machine.check()
        unanswered = caller.calls.pending(ACTOR_ID)
        assert caller.refs(HANDLE) == [2 if unanswered else 1]
    caller.state(ACTOR_DEAD)
    caller.machine.check()
    assert caller.refs(HANDLE, *ARGUMENTS) == [1, 1, 1]


def test_a_call_that_is_made_again_before_its_reply_is_counted_once() -> None:
    """The task that made it raised, and runs again in the same process."""
    caller = Caller()
    caller.state(ACTOR_ALIVE)
    call = caller.call(ARGUMENTS)
    result = ids.first_return_id(call.task_id)
    caller.machine.call(call, (result,), ARGUMENTS)
    caller.machine.check()
    caller.objects.drop(result)  # the handle of the first run
    caller.machine.on_reply(Reply(call.task_id, (VALUE,)))
    assert caller.refs(*ARGUMENTS, HANDLE, result) == [1, 1, 1, 1]
    caller.machine.check()
