"""In the process of an actor: what is queued, answered, taken back and left behind."""

from __future__ import annotations

import pytest

from zray import ids
from zray.config import Config
from zray.core.cancellation import cancelled_value
from zray.core.client import ClientMachine
from zray.core.own_calls import OwnCalls
from zray.core.stream_credits import GONE_MAX, StreamCredits
from zray.protocol.faults import fault_error
from zray.protocol.messages import ACTOR, INLINE, Call, Describe, Reply, Value
from zray.protocol.user_messages import STREAM, CancelCall, ConsumedItems, Leaving, ReplyItem

NODE, CALLER = b"node", b"caller"
ACTOR_ID = b"a" * 16
ONE = Value(INLINE, b"1")


@pytest.fixture
def own() -> OwnCalls:
    kind = Describe(ids.content_id(b"kind"), ids.content_id(b"code"), "Camera", 1, (), 0, ACTOR)
    return OwnCalls(ClientMachine(node=NODE, config=Config()), StreamCredits(), kind, {})


def arrive(own: OwnCalls, number: int, *, returns: int = 0, group: str = "") -> Call:
    call = Call(ids.task_id(b"caller__", number), ACTOR_ID, number, "m", 1, b"", (), returns, group, 1)
    assert own.arrived(CALLER, call) == (not group)
    own.check()
    return call


def test_a_call_is_named_after_its_class_and_answered_once(own: OwnCalls) -> None:
    call = arrive(own, 1)
    assert own.start() == (CALLER, call)
    assert own.contexts[call.task_id].name == "Camera.m"
    assert own.start() is None
    assert not own.is_idle
    own.ended(CALLER, call, (ONE,))
    assert own.out == [(CALLER, Reply(call.task_id, (ONE,)))]
    assert own.is_idle
    assert not own.contexts
    own.check()


def test_a_group_that_does_not_exist_is_for_the_host_to_refuse(own: OwnCalls) -> None:
    arrive(own, 1, group="gpu")
    assert own.start() is None


@pytest.mark.parametrize("begins_before", [False, True])
def test_a_reader_that_goes_away_is_heard_whether_its_call_runs_or_not(
    own: OwnCalls, begins_before: bool
) -> None:
    call = arrive(own, 1, returns=STREAM)
    if begins_before:
        own.start()
    own.credits.on_credit(ConsumedItems(call.task_id, 0, True))
    if not begins_before:
        own.start()
    own.yielded(CALLER, call, 0, ONE)
    assert own.out == [(CALLER, ReplyItem(call.task_id, 0, ONE))]
    assert own.credits.may_make(call.task_id, 7, 1)
    own.ended(CALLER, call, (ONE,))
    assert not own.credits.consumed
    assert not own.credits.freed


@pytest.mark.parametrize("comes_late", [False, True])
def test_nobody_waits_for_a_caller_that_died(own: OwnCalls, comes_late: bool) -> None:
    if comes_late:
        own.credits.reader_gone(CALLER)
    call = arrive(own, 1, returns=STREAM)
    if not comes_late:
        assert not own.credits.may_make(call.task_id, 7, 1)
        own.credits.reader_gone(b"somebody else")
        assert not own.credits.may_make(call.task_id, 7, 1)
        own.credits.reader_gone(CALLER)
    assert own.credits.may_make(call.task_id, 7, 1)
    own.start()
    own.ended(CALLER, call, (ONE,))
    assert not own.credits.readers
    for number in range(2 * GONE_MAX):
        own.credits.reader_gone(b"%d" % number)
    assert len(own.credits.gone) == GONE_MAX


def test_a_stream_that_is_made_again_waits_for_its_former_run_which_nobody_reads(own: OwnCalls) -> None:
    call = arrive(own, 1, returns=STREAM)
    own.start()
    assert own.arrived(b"caller again", call)
    assert own.start() is None
    assert own.credits.may_make(call.task_id, 7, 1)
    own.ended(CALLER, call, (ONE,))
    assert own.start() == (b"caller again", call)
    assert not own.credits.may_make(call.task_id, 7, 1)
    own.credits.reader_gone(b"caller again")
    assert own.credits.may_make(call.task_id, 7, 1)


def test_a_queued_call_is_taken_back_and_a_running_one_marked(own: OwnCalls) -> None:
    running, queued = arrive(own, 1), arrive(own, 2, returns=STREAM)
    own.start()
    assert own.cancel(CancelCall(queued.task_id, False)) is None
    assert own.out == [(CALLER, Reply(queued.task_id, (cancelled_value(queued.task_id),)))]
    assert not own.credits.consumed
    context = own.cancel(CancelCall(running.task_id, False))
    assert context is own.contexts[running.task_id]
    assert context.is_cancelled
    assert own.cancel(CancelCall(ids.task_id(b"caller__", 9), False)) is None


def test_who_leaves_takes_no_call_any_more(own: OwnCalls) -> None:
    leaving, queued = arrive(own, 1), arrive(own, 2, returns=STREAM)
    own.start()
    (cause,) = own.leave(leaving)
    assert "exit_actor" in str(fault_error(cause.data))
    assert own.out == [(NODE, Leaving("exit_actor() or sys.exit()"))]
    arrive(own, 3)
    own.ended(CALLER, leaving, (cause,))
    assert own.start() is None
    assert own.is_idle
    assert queued.task_id not in own.credits.consumed
