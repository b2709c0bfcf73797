"""The client's machine: what the node must have heard before, when what gathered leaves, how puts end."""

from __future__ import annotations

from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.client import (
    DEAD_ACTORS_MIN,
    HAS_VALUE,
    NO_ROOM,
    ROOM,
    TOO_LARGE,
    ClientMachine,
    MethodCall,
)
from zray.core.machine import bound_handlers, pump
from zray.core.task_context import TaskContext
from zray.protocol.faults import ACTOR_DIED, fault_value
from zray.protocol.messages import (
    ACTOR_DEAD,
    AT_NODE,
    EXTENT,
    INLINE,
    TASK,
    Abort,
    Acked,
    Acquire,
    ActorState,
    Call,
    Create,
    Created,
    CreateFailed,
    Credit,
    Describe,
    ExportFunction,
    Goodbye,
    HoldFor,
    Lease,
    LeasedDone,
    LeasedReply,
    LeasedRun,
    ObjectReady,
    Promise,
    Publish,
    Release,
    ReturnLease,
    Seal,
    Submit,
    Value,
    WatchActor,
)
from zray.protocol.user_messages import (
    STREAM,
    Cancel,
    CancelCall,
    Consumed,
    StreamItem,
)

NODE, WORKER = b"node", b"worker"
KIND = Describe(b"kind".ljust(16), b"code".ljust(16), "f", 1, (), 0, TASK)
STREAMING = Describe(b"stream".ljust(16), b"code".ljust(16), "g", 1, (), 0, TASK, returns=STREAM)
ACTOR_ID = ids.task_id(b"actors__", 1)
HANDLE = ids.first_return_id(ACTOR_ID)
US = 1_000


class Driver:
    """One process, with what it appended since the last look."""

    def __init__(self, **limits: Any) -> None:
        self.machine = ClientMachine(node=NODE, config=Config(**limits))
        self.context = TaskContext(b"root".ljust(16))

    def take(self, to: bytes | None = NODE) -> list[Any]:
        taken = [message for address, message in self.machine.out if to in (None, address)]
        self.machine.out.clear()
        return taken

    def hear(self, *messages: Any, source: bytes = NODE) -> None:
        pump(self.machine, [(source, message) for message in messages], 0)

    def submit(self, deps: tuple[bytes, ...] = (), borrowed: tuple[bytes, ...] = ()) -> bytes:
        _, (object_id,) = self.machine.submit(self.context, KIND, b"args", deps, borrowed)
        return object_id

    def keep(self, contained: tuple[bytes, ...] = ()) -> bytes:
        object_id = self.context.next_put_id()
        self.machine.keep(object_id, b"value", contained)
        return object_id

    def run_leased(self) -> bytes:
        """A lone task that a leased worker has run, and that the node has not heard of."""
        self.hear(Lease(7, KIND.descriptor_id, WORKER, "ipc://w"))
        self.take()
        object_id = self.submit()
        (run,) = self.take(WORKER)
        assert isinstance(run, LeasedRun)
        self.hear(LeasedReply(7, run.spec.task_id, Value(INLINE, b"v"), 5), source=WORKER)
        assert self.take(None) == []
        return object_id


@pytest.fixture
def driver() -> Driver:
    return Driver()


def kinds(messages: list[Any]) -> list[type]:
    return [type(message) for message in messages]


class TestLineageBeforeVisibility:
    """What a leased task returned is told only after the task (Reference: section 4.2.1)."""

    def test_when_a_task_takes_it(self, driver: Driver) -> None:
        object_id = driver.run_leased()
        driver.submit(deps=(object_id,))
        assert kinds(driver.take()) == [LeasedDone, Publish, Submit]

    def test_when_a_call_carries_it(self, driver: Driver) -> None:
        object_id = driver.run_leased()
        driver.machine.objects.borrow(HANDLE)
        driver.take()
        driver.machine.call_actor(driver.context, ACTOR_ID, HANDLE, MethodCall("m"), b"", (), (object_id,))
        assert kinds(driver.take()) == [LeasedDone, Publish, WatchActor]

    def test_even_when_a_call_carries_nothing(self, driver: Driver) -> None:
        driver.machine.objects.borrow(HANDLE)
        driver.run_leased()
        driver.machine.call_actor(driver.context, ACTOR_ID, HANDLE, MethodCall("m"), b"", (), ())
        assert kinds(driver.take()) == [LeasedDone, Publish, WatchActor]

    def test_when_it_is_inside_a_large_value(self, driver: Driver) -> None:
        inner, outer = driver.run_leased(), driver.context.next_put_id()
        driver.machine.stored(outer, (inner,), written=True)
        messages = driver.take()
        assert kinds(messages) == [LeasedDone, Publish, Seal]
        assert messages[-1] == Seal(outer, (inner,))

    def test_when_it_is_inside_a_private_value_that_leaves(self, driver: Driver) -> None:
        inner = driver.run_leased()
        outer = driver.keep((inner,))
        driver.submit(deps=(outer,))
        assert kinds(driver.take()) == [LeasedDone, Publish, Publish, Submit]

    def test_when_another_process_is_to_hold_it(self, driver: Driver) -> None:
        object_id = driver.run_leased()
        driver.machine.ask_hold_for(b"other", (object_id,))
        assert kinds(driver.take()) == [LeasedDone, Publish, HoldFor]

    def test_and_at_the_end(self, driver: Driver) -> None:
        driver.run_leased()
        driver.machine.say_goodbye()
        assert kinds(driver.take()) == [LeasedDone, Publish, Goodbye]

    def test_with_time_it_is_told_anyway(self, driver: Driver) -> None:
        driver.run_leased()
        driver.machine.catch_up()
        assert kinds(driver.take()) == [LeasedDone, Publish]
        driver.machine.catch_up()
        assert driver.take() == []


class TestSubmitting:
    def test_ids_follow_from_the_parent(self, driver: Driver) -> None:
        first, second = driver.submit(), driver.keep()
        again = Driver()
        assert (first, second) == (again.submit(), again.keep())
        assert again.submit() not in (first, second)

    def test_code_and_descriptor_are_told_once_and_hold_what_the_code_refers_to(self, driver: Driver) -> None:
        captured = driver.keep()
        driver.machine.describe(KIND, b"code", (captured,))
        assert driver.take() == [
            Publish(captured, Value(INLINE, b"value")),
            ExportFunction(KIND.function_id, b"code"),
            KIND,
        ]
        driver.machine.objects.drop(captured)
        assert driver.machine.objects.refers_to(captured)
        driver.machine.describe(STREAMING, b"code", (captured,))
        assert driver.take() == [STREAMING]
        assert set(driver.machine.described.values()) == {"f", "g"}

    def test_packages_are_kept_for_the_task_and_do_not_hinder_a_lease(self, driver: Driver) -> None:
        package = ids.package_id(b"package")
        driver.machine.submit(driver.context, KIND, b"", (), (), packages=(package,))
        (spec,) = driver.take()
        assert spec.borrowed == (package,)
        driver.run_leased()
        driver.machine.submit(driver.context, KIND, b"", (), (), packages=(package,))
        assert kinds(driver.take(WORKER)) == [LeasedRun]

    def test_stored_arguments_live_until_the_task_has_them(self, driver: Driver) -> None:
        stored = driver.context.next_put_id()
        driver.machine.stored(stored, (), written=True)
        driver.machine.submit(driver.context, KIND, b"@", (stored,), (), stored)
        driver.machine.settle()
        assert kinds(driver.take()) == [Seal, Submit, Release]

    def test_a_lone_task_leaves_at_once(self, driver: Driver) -> None:
        driver.run_leased()
        driver.machine.sent(0)
        assert not driver.machine.is_due(1)
        driver.submit()
        assert driver.machine.is_due(1)
        driver.machine.sent(1)
        assert not driver.machine.is_due(2)

    def test_a_full_batch_leaves_at_once_and_any_after_a_while(self) -> None:
        driver = Driver(submit_batch_max=3, submit_linger_ns=300 * US)
        driver.machine.sent(0)
        driver.submit()
        driver.submit()
        assert not driver.machine.is_due(300 * US)
        assert driver.machine.is_due(300 * US + 1)
        driver.submit()
        assert driver.machine.is_due(0)

    def test_the_window_is_a_delay_and_never_a_stop(self) -> None:
        driver, batch = Driver(submit_window_max=2, submit_batch_max=3), 3
        machine = driver.machine

        def submitted_freely() -> int:
            count = 0
            while machine.window > machine.window_floor:
                driver.submit()
                count += 1
            return count

        assert submitted_freely() == 2
        machine.go_on()  # the wait is over, and the node has no room
        assert submitted_freely() == batch
        driver.hear(Credit(4))  # which is below what it was ahead by
        assert machine.window == -batch + 4
        machine.go_on()
        assert submitted_freely() == 1

    def test_what_was_cancelled_or_ended_is_not_under_way(self, driver: Driver) -> None:
        driver.machine.describe(KIND, b"code")
        driver.run_leased()
        object_id = driver.submit()
        assert driver.machine.names_under_way() == ["f"]
        driver.take()
        driver.machine.cancel(ids.producer_of(object_id), force=True, recursive=False)
        assert kinds(driver.take(None)) == [CancelCall, Cancel]
        assert driver.machine.names_under_way() == []


class TestCalling:
    def test_refs_inside_arguments_go_along(self, driver: Driver) -> None:
        driver.machine.objects.borrow(HANDLE)
        dep, inner = driver.keep(), driver.keep()
        method = MethodCall("m", 2, repeats=3)
        task_id, returns = driver.machine.call_actor(
            driver.context, ACTOR_ID, HANDLE, method, b"args", (dep,), (inner,)
        )
        assert returns == ids.return_ids(task_id, 2)
        assert kinds(driver.take()) == [Acquire, Publish, Publish, WatchActor]
        (call,) = driver.machine.calls.callees[ACTOR_ID].waiting
        assert call == Call(task_id, ACTOR_ID, 1, "m", 2, b"args", (dep,), borrowed=(inner,))
        assert driver.machine.is_call(task_id)
        assert driver.machine.calls.repeats == {task_id: 3}
        driver.machine.check()

    def test_a_call_is_cancelled_where_it_waits(self, driver: Driver) -> None:
        driver.machine.objects.borrow(HANDLE)
        task_id, (object_id,) = driver.machine.call_actor(
            driver.context, ACTOR_ID, HANDLE, MethodCall("m"), b"", (), ()
        )
        driver.machine.cancel(task_id, force=False, recursive=True)
        assert driver.machine.objects.is_ready(object_id)
        assert not driver.machine.is_call(task_id)


def call_and_lose(driver: Driver, number: int, *, keep_handle: bool = False) -> bytes:
    """Call an actor of its own that then dies; returns the handle."""
    actor_id = ids.task_id(b"actors__", number)
    handle = ids.first_return_id(actor_id)
    driver.machine.objects.borrow(handle)
    driver.machine.call_actor(driver.context, actor_id, handle, MethodCall("m", 0), b"", (), ())
    if not keep_handle:
        driver.machine.objects.drop(handle)
    driver.hear(ActorState(actor_id, ACTOR_DEAD, b"", "", fault_value(ACTOR_DIED, "a", "killed")))
    driver.take()
    return handle


class TestDeadActors:
    def test_one_without_a_handle_is_forgotten_at_once(self, driver: Driver) -> None:
        for number in range(3):
            call_and_lose(driver, number)
        assert not driver.machine.calls.callees

    def test_one_with_a_handle_is_known_to_be_dead(self, driver: Driver) -> None:
        handle = call_and_lose(driver, 1, keep_handle=True)
        _, (object_id,) = driver.machine.call_actor(
            driver.context, ids.producer_of(handle), handle, MethodCall("m"), b"", (), ()
        )
        assert driver.machine.objects.is_ready(object_id)
        assert driver.take() == []

    def test_their_number_is_bounded_by_that_of_handles(self, driver: Driver) -> None:
        kept = [call_and_lose(driver, number, keep_handle=True) for number in range(3 * DEAD_ACTORS_MIN)]
        assert len(driver.machine.calls.callees) == len(kept)
        for handle in kept[1:]:
            driver.machine.objects.drop(handle)
        numbers = range(len(kept), len(kept) + 5 * DEAD_ACTORS_MIN)
        for number in numbers:
            driver.machine.objects.drop(call_and_lose(driver, number, keep_handle=True))
        assert ids.producer_of(kept[0]) in driver.machine.calls.callees
        assert len(driver.machine.calls.callees) <= 2 * DEAD_ACTORS_MIN


class TestPutting:
    @pytest.mark.parametrize(
        ("answer", "verdict"),
        [
            (Created(b"o", EXTENT, 0), ROOM),
            (CreateFailed(b"o", 100, 0), HAS_VALUE),
            (CreateFailed(b"o", 100, 99), TOO_LARGE),
            (CreateFailed(b"o", 100, 100, "disk full"), NO_ROOM),
        ],
    )
    def test_verdicts(self, driver: Driver, answer: Any, verdict: int) -> None:
        assert driver.machine.verdict(answer, 100) == verdict

    def test_a_question_is_known_by_its_object(self, driver: Driver) -> None:
        driver.machine.ask_room(b"o" * 16, 100)
        questions, created = driver.machine.questions, Created(b"o" * 16, EXTENT, 0)
        assert driver.take() == [Create(b"o" * 16, 100)]
        assert not questions.is_answered(b"o" * 16)
        driver.hear(CreateFailed(b"x" * 16, 100, 0), created)
        assert questions.is_answered(b"o" * 16)
        assert questions.take(b"o" * 16) == created
        assert not questions.answers

    def test_what_an_earlier_attempt_put_is_held_and_not_sealed_again(self, driver: Driver) -> None:
        object_id = driver.context.next_put_id()
        driver.machine.hold_former(object_id)
        driver.machine.stored(object_id, (), written=False)
        assert driver.take() == [Acquire((object_id,))]
        assert driver.machine.objects.objects[object_id].value == Value(AT_NODE)

    def test_what_cannot_be_written_is_given_back(self, driver: Driver) -> None:
        driver.machine.abandon(b"o" * 16)
        assert driver.take() == [Abort(b"o" * 16)]

    def test_a_result_is_sealed_by_whoever_gives_it_away(self, driver: Driver) -> None:
        inner = driver.keep()
        value = driver.machine.large_result(b"o" * 16, 100, (inner,), seals=False)
        assert driver.take() == []
        assert value == driver.machine.large_result(b"o" * 16, 100, (inner,), seals=True)
        assert kinds(driver.take()) == [Publish, Seal]


class TestAsking:
    def test_answers_that_nobody_waits_for_change_nothing(self, driver: Driver) -> None:
        token = driver.machine.ask_whether_heard()
        driver.machine.questions.give_up(token)
        driver.hear(Acked(token), Acked(99))
        assert not driver.machine.questions.answers
        assert driver.take() == [Acquire((), token)]

    def test_each_question_has_its_token(self, driver: Driver) -> None:
        tokens = [driver.machine.ask(lambda token: Acquire((), token)) for _ in range(3)]
        assert len(dict.fromkeys(tokens)) == 3
        driver.hear(Acked(tokens[1]))
        assert [driver.machine.questions.is_answered(token) for token in tokens] == [False, True, False]
        driver.take()

    def test_a_lease_that_is_idle_is_given_back_before_the_node_is_asked(self, driver: Driver) -> None:
        driver.run_leased()
        assert driver.machine.return_leases() == [WORKER]
        assert kinds(driver.take()) == [LeasedDone, Publish, ReturnLease]


class TestLooking:
    def test_what_is_here_is_taken_and_the_rest_is_asked_for(self, driver: Driver) -> None:
        here, there = driver.keep(), driver.submit()
        taken: dict[bytes, Value] = {}
        want = driver.machine.objects.take_all((here, there), taken)
        assert want is not None
        assert list(taken) == [here]
        driver.hear(ObjectReady(there, Value(INLINE, b"v")))
        assert want.done
        assert driver.machine.objects.take_all((here, there), taken) is None
        assert list(taken) == [here, there]
        driver.take()

    def test_nothing_is_asked_if_enough_is_there(self, driver: Driver) -> None:
        here, unknown = driver.keep(), b"u" * 16
        driver.machine.objects.borrow(unknown)
        driver.take()
        assert driver.machine.objects.await_ready((here, unknown), 1) is None
        assert driver.take() == []
        want = driver.machine.objects.await_ready((here, unknown), 2)
        assert want is not None
        assert not want.done
        assert len(driver.take()) == 1

    def test_the_first_that_are_ready_are_found_in_the_order_asked(self, driver: Driver) -> None:
        pending, first, second = driver.submit(), driver.keep(), driver.keep()
        objects = driver.machine.objects
        assert objects.first_ready((pending, first, second), 1) == [1]
        assert objects.first_ready((second, pending, first), 2) == [0, 2]
        assert objects.first_ready((pending, second), 2) == [1]
        assert objects.first_ready((pending,), 1) == []
        driver.take()


class TestReadingStreams:
    def test_items_are_held_until_they_are_taken_or_nobody_reads(self, driver: Driver) -> None:
        task_id, (end,) = driver.machine.submit(driver.context, STREAMING, b"", (), ())
        driver.take()
        told: list[int] = []
        driver.machine.streams.watchers[task_id] = [lambda: told.append(1)]
        items = [ids.return_id(task_id, 2 + index) for index in range(3)]
        driver.hear(*[StreamItem(task_id, index) for index in range(3)], StreamItem(task_id, 1))
        assert len(told) == 4
        assert driver.machine.streams.take(task_id) == 0
        driver.machine.streams.let_go(task_id)
        assert driver.take() == [Consumed(task_id, 0, True)]
        assert [driver.machine.objects.refers_to(item) for item in items] == [True, False, False]
        assert driver.machine.objects.refers_to(end)
        driver.hear(StreamItem(task_id, 3))  # too late
        assert not driver.machine.objects.refers_to(ids.return_id(task_id, 5))


def test_a_ref_of_nobody_is_found(driver: Driver) -> None:
    known = driver.keep()
    assert driver.machine.unknown_among((known,)) is None
    assert driver.machine.unknown_among((known, b"x" * 16)) == b"x" * 16


def test_a_value_that_the_caller_waits_for_is_promised(driver: Driver) -> None:
    driver.machine.objects.borrow(HANDLE)
    _, (object_id,) = driver.machine.call_actor(
        driver.context, ACTOR_ID, HANDLE, MethodCall("m"), b"", (), ()
    )
    driver.take()
    driver.submit(deps=(object_id,))
    assert kinds(driver.take()) == [Promise, Submit]


def test_bound_handlers_do_what_pump_does(driver: Driver) -> None:
    bound_handlers(driver.machine)[Credit](0, NODE, Credit(3))
    driver.hear(Credit(4))
    assert driver.machine.window == driver.machine.config.submit_window_max + 7
