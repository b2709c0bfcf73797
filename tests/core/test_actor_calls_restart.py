"""The caller's side while an actor is made again, and when calls are taken back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from zray import ids
from zray.core.actor_calls import ActorCalls
from zray.protocol.faults import ACTOR_DIED, ACTOR_UNAVAILABLE, fault_value
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    ActorState,
    Call,
    LetGo,
    Reply,
    WatchActor,
)
from zray.protocol.user_messages import STREAM, CancelCall, ConsumedItems

NODE, OLD, NEW = b"node", b"old", b"new"
ACTOR_ID = b"a" * 16
UNAVAILABLE = fault_value(ACTOR_UNAVAILABLE, "a", "signal 9")
DIED = fault_value(ACTOR_DIED, "a", "signal 9")


@pytest.fixture
def calls() -> ActorCalls:
    return ActorCalls([], node=NODE)


def make(calls: ActorCalls, number: int, repeats: int = 0) -> Call:
    call = Call(ids.task_id(b"caller__", number), ACTOR_ID, calls.next_sequence(ACTOR_ID), "m", 1, b"")
    assert calls.call(call, repeats) is None
    calls.check()
    return call


def alive(calls: ActorCalls, address: bytes) -> None:
    assert calls.on_state(ActorState(ACTOR_ID, ACTOR_ALIVE, address, "ipc://x")) == []


def restarting(calls: ActorCalls) -> list[bytes]:
    ended = calls.on_state(ActorState(ACTOR_ID, ACTOR_RESTARTING, OLD, cause=UNAVAILABLE))
    calls.check()
    assert all(cause == UNAVAILABLE for _, cause in ended)
    return [call.task_id for call, _ in ended]


def test_what_may_be_repeated_goes_first_and_in_order(calls: ActorCalls) -> None:
    first, second, third = (make(calls, number, repeats=1) for number in (1, 2, 3))
    alive(calls, OLD)
    assert restarting(calls) == []
    fourth = make(calls, 4, repeats=1)
    calls.out.clear()
    alive(calls, NEW)
    again = [replace(call, attempt=1) for call in (first, second, third)]
    assert calls.out == [(NEW, call) for call in [*again, fourth]]


def test_what_may_not_ends(calls: ActorCalls) -> None:
    first, second = make(calls, 1), make(calls, 2, repeats=1)
    alive(calls, OLD)
    waiting_later = restarting(calls)
    assert waiting_later == [first.task_id]
    calls.out.clear()
    alive(calls, NEW)
    assert [message.task_id for _, message in calls.out] == [second.task_id]


def test_a_reply_that_was_under_way_when_its_actor_died_counts(calls: ActorCalls) -> None:
    first, second = make(calls, 1, repeats=1), make(calls, 2, repeats=1)
    alive(calls, OLD)
    assert restarting(calls) == []
    ended = calls.on_reply(Reply(first.task_id, (DIED,)))
    assert ended is not None
    assert ended.task_id == first.task_id
    calls.check()
    calls.out.clear()
    alive(calls, NEW)
    assert calls.out == [(NEW, replace(second, attempt=1))]


def test_repeats_are_counted(calls: ActorCalls) -> None:
    twice, always = make(calls, 1, repeats=2), make(calls, 2, repeats=-1)
    for address in (OLD, NEW):
        alive(calls, address)
        assert restarting(calls) == []
    alive(calls, OLD)
    assert restarting(calls) == [twice.task_id]
    alive(calls, NEW)
    assert calls.on_reply(Reply(always.task_id, ())) is not None
    calls.check()


def test_a_reply_that_comes_after_the_news_of_the_death_counts(calls: ActorCalls) -> None:
    """Both come from different processes: nothing says which is first."""
    answered, unanswered = make(calls, 1, repeats=-1), make(calls, 2, repeats=-1)
    alive(calls, OLD)
    assert restarting(calls) == []
    found = calls.on_reply(Reply(answered.task_id, ()))
    assert found is not None
    assert found.task_id == answered.task_id
    calls.check()
    calls.out.clear()
    alive(calls, NEW)
    assert [message.task_id for _, message in calls.out] == [unanswered.task_id]
    assert calls.on_reply(Reply(answered.task_id, ())) is None
    calls.check()


def test_death_after_a_restart_ends_everything(calls: ActorCalls) -> None:
    call = make(calls, 1, repeats=5)
    alive(calls, OLD)
    restarting(calls)
    ended = calls.on_state(ActorState(ACTOR_ID, ACTOR_DEAD, OLD, cause=DIED))
    assert [(one.task_id, cause) for one, cause in ended] == [(call.task_id, DIED)]
    assert calls.out[-1] == (NODE, LetGo(ACTOR_ID))
    calls.check()


def test_cancel(calls: ActorCalls) -> None:
    waiting = make(calls, 1, repeats=1)
    assert calls.out == [(NODE, WatchActor(ACTOR_ID))]
    assert calls.pending(ACTOR_ID) == 1
    assert calls.cancel(waiting.task_id, True) == waiting
    calls.check()
    sent = make(calls, 2)
    alive(calls, OLD)
    assert calls.cancel(sent.task_id, False) is None
    assert calls.out[-1] == (OLD, CancelCall(sent.task_id, False))
    state = calls.callees[ACTOR_ID].state
    assert state is not None
    assert state.address == OLD
    assert calls.pending(ACTOR_ID) == 1


def test_who_makes_a_stream_hears_of_its_reader_after_the_call_itself(calls: ActorCalls) -> None:
    """Before the call is sent, and again when another process makes the stream."""
    stream = make(calls, 1, repeats=1)
    calls.note_consumed(stream.task_id, 2, False)
    assert calls.out == [(NODE, WatchActor(ACTOR_ID))]
    alive(calls, OLD)
    assert calls.out[1:] == [(OLD, stream), (OLD, ConsumedItems(stream.task_id, 2, False))]
    calls.note_consumed(stream.task_id, 5, False)
    assert calls.out[-1] == (OLD, ConsumedItems(stream.task_id, 5, False))
    calls.note_consumed(stream.task_id, 0, True)  # it went away, having read so far
    restarting(calls)
    calls.out.clear()
    alive(calls, NEW)
    again = replace(stream, attempt=1)
    assert calls.out == [(NEW, again), (NEW, ConsumedItems(stream.task_id, 5, True))]
    calls.on_reply(Reply(stream.task_id, ()))
    assert not calls.consumed
    calls.check()


def stream_made_again(calls: ActorCalls) -> Call:
    """A stream of which its caller makes a new call, as it runs again in this process."""
    stream = replace(make(calls, 1, repeats=1), returns=STREAM)
    alive(calls, OLD)
    calls.out.clear()
    again = replace(stream, sequence=2)
    calls.make_again(again)
    former_ends = [(OLD, ConsumedItems(stream.task_id, 0, True)), (OLD, CancelCall(stream.task_id, False))]
    assert calls.out == former_ends
    calls.out.clear()
    calls.check()
    return again


def test_a_stream_is_made_again_when_its_former_run_has_ended(calls: ActorCalls) -> None:
    again = stream_made_again(calls)
    calls.note_consumed(again.task_id, 0, True)
    calls.out.clear()
    assert calls.on_reply(Reply(again.task_id, ())) is None
    assert calls.out == [(OLD, again), (OLD, ConsumedItems(again.task_id, 0, True))]
    assert calls.on_reply(Reply(again.task_id, ())) == again
    calls.check()


def test_or_with_the_next_life_of_the_actor(calls: ActorCalls) -> None:
    again = stream_made_again(calls)
    restarting(calls)
    assert not calls.again
    alive(calls, NEW)
    (call,) = [message for to, message in calls.out if to == NEW]
    assert (call.task_id, call.attempt) == (again.task_id, 1)
    assert calls.on_reply(Reply(again.task_id, ())) == call
    calls.check()


def test_or_not_if_it_is_taken_back(calls: ActorCalls) -> None:
    again = stream_made_again(calls)
    assert calls.cancel(again.task_id, False) is None
    assert calls.on_reply(Reply(again.task_id, ())) is not None
    calls.check()
