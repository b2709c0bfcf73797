"""The worker's machine: what waits, what is given back, what is said of what ran."""

from __future__ import annotations

from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.cancellation import cancelled_value
from zray.core.client import ClientMachine
from zray.core.machine import pump
from zray.core.own_checkpoints import OwnCheckpoints
from zray.core.worker import WorkerMachine
from zray.errors import InvariantError
from zray.protocol.messages import (
    ACTOR,
    AT_NODE,
    ERROR,
    EXTENT,
    FAULT,
    INLINE,
    TASK,
    Blocked,
    Call,
    Describe,
    EndLease,
    Exit,
    LeasedDone,
    LeasedReply,
    LeasedRun,
    LeaseEnded,
    LeaseReady,
    ObjectReady,
    PrepareLease,
    Recall,
    Returned,
    Run,
    Submit,
    TaskDone,
    Unblocked,
    Unpin,
    Value,
)
from zray.protocol.user_messages import (
    STREAM,
    CancelCall,
    Interrupt,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
    StreamCredit,
)

NODE, DRIVER = b"node", b"driver"
KIND = Describe(b"kind".ljust(16), b"code".ljust(16), "f", 2, (), 0, TASK)
STREAMING = Describe(b"stream".ljust(16), b"code".ljust(16), "g", 1, (), 0, TASK, returns=STREAM)
SHOWN = b"s" * 16
MS = 1_000_000


class Worker:
    """One worker that knows two kinds of tasks, with what it appended since the last look."""

    def __init__(self, **limits: Any) -> None:
        self.client = ClientMachine(node=NODE, config=Config(**limits))
        self.machine = WorkerMachine(self.client)
        self.hear(KIND, STREAMING)

    def hear(self, *messages: Any, source: bytes = NODE) -> None:
        pump(self.machine, [(source, message) for message in messages], 0)
        self.machine.check()

    def take(self) -> list[tuple[bytes, Any]]:
        self.client.settle()
        taken = list(self.client.out)
        self.client.out.clear()
        return taken


def run(number: int, kind: Describe = KIND) -> Run:
    deps = (ObjectReady(SHOWN, Value(EXTENT, b"", 0, 9)), ObjectReady(b"n" * 16, Value(AT_NODE)))
    return Run(ids.task_id(b"parent__", number), 1, kind.descriptor_id, b"args", deps)


def leased(number: int, lease_id: int) -> LeasedRun:
    return LeasedRun(lease_id, Submit(ids.task_id(b"parent__", number), b"p" * 16, KIND.descriptor_id, b""))


@pytest.fixture
def worker() -> Worker:
    return Worker()


class TestTheQueue:
    def test_what_has_not_started_is_given_back_unseen(self, worker: Worker) -> None:
        worker.hear(run(1), run(2), Recall())
        assert worker.take() == [
            (NODE, Returned((run(1).task_id, run(2).task_id))),
            (NODE, Unpin((SHOWN, SHOWN))),
        ]
        worker.hear(Recall())
        assert worker.take() == []

    def test_who_waits_lends_and_gives_back(self, worker: Worker) -> None:
        worker.machine.current = run(1).task_id
        worker.hear(run(2))
        assert worker.machine.block(run(1).task_id) == [run(2)]
        worker.machine.unblock(run(1).task_id)
        messages = [message for _, message in worker.take()]
        assert messages[:3] == [
            Returned((run(2).task_id,)),
            Blocked(run(1).task_id),
            Unblocked(run(1).task_id),
        ]

    def test_a_task_of_an_unknown_kind_breaks_an_invariant(self, worker: Worker) -> None:
        worker.machine.runs.append(Run(b"t" * 16, 0, b"unknown".ljust(16), b""))
        with pytest.raises(InvariantError, match="not described"):
            worker.machine.check()

    def test_the_end_is_noted(self, worker: Worker) -> None:
        worker.hear(Exit("idle"))
        assert worker.machine.exiting


class TestInputs:
    def test_what_lies_at_the_node_is_fetched(self, worker: Worker) -> None:
        assert worker.machine.inputs_to_fetch(run(1)) == [b"n" * 16]

    def test_the_first_error_among_them_is_the_outcome(self, worker: Worker) -> None:
        value, error, fault = Value(INLINE, b"v"), Value(ERROR, b"e"), Value(FAULT, b"f")
        assert worker.machine.failed_input([value, fault, error]) is fault
        assert worker.machine.failed_input([value]) is None


class TestResults:
    def test_they_gather_while_there_is_more(self) -> None:
        machine = Worker(done_batch_max=3, done_linger_ns=MS).machine
        assert [machine.note_result(0) for _ in range(6)] == [False, False, True, False, False, True]
        machine.note_result(10)
        assert not machine.note_result(MS + 9)
        machine.note_idle()
        assert not machine.note_result(5 * MS)
        assert machine.note_result(6 * MS)

    def test_of_a_task(self, worker: Worker) -> None:
        worker.machine.done(run(1), (Value(INLINE, b"v"),), 7, failed=True, is_final=True)
        done = TaskDone(run(1).task_id, 1, (Value(INLINE, b"v"),), 7, True, True)
        assert worker.take() == [(NODE, done)]


class TestLeases:
    def test_it_is_ready_when_it_is_told_to_be(self, worker: Worker) -> None:
        worker.hear(PrepareLease())
        assert worker.take() == [(NODE, LeaseReady())]

    @pytest.mark.parametrize(
        ("value", "straight"),
        [
            (Value(INLINE, b"v"), True),
            (Value(INLINE, b"v", 0, 0, (SHOWN,)), False),
            (Value(EXTENT, b"", 0, 99), False),
        ],
    )
    def test_only_small_values_without_refs_go_straight_back(
        self, worker: Worker, value: Value, straight: bool
    ) -> None:
        task = leased(1, 5)
        worker.machine.leased_done(DRIVER, task, value, 7, failed=False)
        reply = LeasedReply(5, task.spec.task_id, value, 7)
        told = (DRIVER, reply) if straight else (NODE, LeasedDone(5, task.spec, 7, False, True, value))
        assert worker.take() == [told]
        worker.machine.end_lease(EndLease(5))
        assert worker.take() == [(NODE, LeaseEnded(5, reply if straight else None))]

    def test_the_last_reply_of_another_lease_does_not_go_along(self, worker: Worker) -> None:
        worker.machine.leased_done(DRIVER, leased(1, 5), Value(INLINE, b"v"), 7, failed=False)
        worker.take()
        worker.machine.end_lease(EndLease(6))
        assert worker.take() == [(NODE, LeaseEnded(6))]

    def test_a_task_that_crossed_the_end_of_its_lease_is_not_wanted(self, worker: Worker) -> None:
        worker.hear(leased(1, 5), EndLease(5), source=DRIVER)
        assert len(worker.machine.calls) == 2
        assert worker.machine.is_wanted(leased(1, 5))
        worker.machine.end_lease(EndLease(5))
        assert not worker.machine.is_wanted(leased(1, 5))
        assert worker.machine.is_wanted(leased(1, 6))
        worker.take()


class TestCancellation:
    def test_what_waits_ends_and_what_runs_is_interrupted(self, worker: Worker) -> None:
        worker.hear(run(1), run(2))
        worker.machine.current = worker.machine.runs.popleft().task_id
        assert worker.machine.withdraw(NODE, Interrupt(run(1).task_id))
        assert worker.take() == []
        assert not worker.machine.withdraw(NODE, Interrupt(run(2).task_id))
        values = (cancelled_value(run(2).task_id),) * 2
        assert worker.take()[0] == (NODE, TaskDone(run(2).task_id, 1, values, 1, True))
        assert not worker.machine.runs
        assert not worker.machine.withdraw(NODE, Interrupt(run(3).task_id))

    def test_of_a_leased_task_that_waits(self, worker: Worker) -> None:
        task = leased(1, 5)
        worker.hear(task, source=DRIVER)
        assert not worker.machine.withdraw(DRIVER, CancelCall(task.spec.task_id))
        reply = LeasedReply(5, task.spec.task_id, cancelled_value(task.spec.task_id), 1, True)
        assert worker.take() == [(DRIVER, reply)]
        worker.machine.end_lease(EndLease(5))
        assert worker.take() == [(NODE, LeaseEnded(5, reply))]


def test_a_stream_is_bounded_from_the_moment_its_task_is_here(worker: Worker) -> None:
    task = run(1, STREAMING)
    worker.hear(task)
    assert worker.machine.credits.may_make(task.task_id, 1, 2)
    assert not worker.machine.credits.may_make(task.task_id, 2, 2)
    worker.hear(StreamCredit(task.task_id, 1))
    assert worker.machine.credits.may_make(task.task_id, 2, 2)


# --- the checkpoints of an actor -------------------------------------------------------------------


def call(number: int, returns: int = 0) -> Call:
    return Call(ids.task_id(b"caller__", number), b"a" * 16, number, "m", 1, b"", (), returns)


def checkpoints(worker: Worker, interval: int) -> OwnCheckpoints:
    kind = Describe(
        b"actor".ljust(16), b"code".ljust(16), "A", 1, (), 0, ACTOR,
        checkpoint_interval=interval, records_calls=True,
    )  # fmt: skip
    return OwnCheckpoints(worker.client, kind)


def test_an_actor_is_saved_at_its_interval_or_when_it_wants_to_be(worker: Worker) -> None:
    machine, values = checkpoints(worker, 2), (Value(INLINE, b"v"),)
    assert [machine.note(call(1), values), machine.note(call(2), values)] == [False, True]
    assert machine.note(call(3), values)  # the save failed: the next call tries again
    object_id = b"k" * 12 + bytes(4)
    worker.client.keep(object_id, b"state", ())
    worker.take()
    machine.save(object_id)
    assert worker.take()[-1] == (NODE, SaveCheckpoint(object_id))
    machine.saved()
    assert not machine.note(call(4), values)
    machine.want()
    assert checkpoints(worker, 0).note(call(5), values) is False
    assert machine.note(call(5), values)
    worker.take()


def test_the_items_of_a_stream_are_not_recorded(worker: Worker) -> None:
    checkpoints(worker, 0).note(call(1, STREAM), (Value(INLINE, b"v"),))
    assert worker.take() == [(NODE, RecordCall(call(1, STREAM), ()))]


def test_an_actor_that_is_made_again_repeats_what_its_checkpoint_lacks(worker: Worker) -> None:
    machine, values = checkpoints(worker, 2), (Value(INLINE, b"v"),)
    for message in (RepeatCall(call(1), values, True), RepeatCall(call(2), values), RepeatCall(call(3), ())):
        machine.on_repeat(message)
    assert machine.calls_to_repeat() == [call(2), call(3)]
    assert machine.calls_to_repeat() == []
    assert [machine.take_answer(call(number)) for number in (1, 2, 3, 1)] == [values, values, None, None]
    assert machine.note(call(4), values)  # two calls are not in the checkpoint yet
    worker.take()
