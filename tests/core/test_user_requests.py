"""Cancel, restart, detach and stream at a bare node: messages in, effects out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.core.test_local_scheduler import DRIVER_ADDRESS
from tests.core.test_node import NodeBench
from zray import ids
from zray.core import reports
from zray.core.streams import StreamReader, item_id
from zray.protocol import faults
from zray.protocol.local_messages import KillWorker, StartWorker
from zray.protocol.messages import (
    ACTOR,
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    ERROR,
    FAULT,
    INLINE,
    ActorState,
    Blocked,
    Describe,
    Exit,
    Goodbye,
    KillActor,
    Release,
    TaskDone,
    Value,
    WatchActor,
)
from zray.protocol.user_messages import (
    STREAM,
    Cancel,
    Consumed,
    Interrupt,
    Leaving,
    StreamCredit,
    StreamItem,
    Yielded,
)

BOOM = Value(ERROR, b"boom")
ITEM = Value(INLINE, b"item")
CPU = (("CPU", 10_000),)


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


def codes(values: list[Value]) -> list[str]:
    return [type(faults.fault_error(value.data)).__name__ for value in values if value.kind == FAULT]


# --- cancellation --------------------------------------------------------------------------------


def test_a_task_that_waits_ends_here_and_now(bench: NodeBench) -> None:
    worker, first = bench.running(bench.kind())
    (waiting,) = bench.submit(bench.kind(), deps=(ids.first_return_id(first),))
    bench.all()
    bench.say(DRIVER_ADDRESS, Cancel(waiting))
    assert codes(bench.values()) == ["TaskCancelledError"]
    bench.done(worker, first)
    assert waiting not in bench.node.scheduler.tasks
    bench.all()


def test_a_running_task_is_its_workers_to_stop(bench: NodeBench) -> None:
    worker, task = bench.running(bench.describe(max_retries=3, retry_exceptions=True))
    bench.say(DRIVER_ADDRESS, Cancel(task, recursive=False))
    assert bench.take(Interrupt) == [(worker, Interrupt(task, False))]
    bench.done(worker, task, value=BOOM)
    assert codes(bench.values()) == ["TaskCancelledError"]
    assert bench.runs() == []


def test_one_that_was_faster_has_its_value(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind())
    bench.say(DRIVER_ADDRESS, Cancel(task))
    bench.take(Interrupt)
    bench.done(worker, task)
    assert [value.kind for value in bench.values()] == [INLINE]
    bench.say(DRIVER_ADDRESS, Cancel(task), Cancel(b"x" * 16))


def test_by_force_the_worker_ends_and_nothing_is_retried(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind(max_retries=3))
    bench.say(DRIVER_ADDRESS, Cancel(task, force=True))
    assert bench.take(KillWorker) == [(b"@worker-pool", KillWorker(worker))]
    bench.exit(worker, running=task)
    assert codes(bench.values()) == ["TaskCancelledError"]
    bench.take(StartWorker)


# --- actors that are made again ----------------------------------------------------------------------


def made(bench: NodeBench, **fields: object) -> tuple[bytes, bytes]:
    kind = bench.describe(kind=ACTOR, demand=(), max_retries=0, **fields)
    worker, actor_id = bench.running(kind)
    bench.done(worker, actor_id)
    bench.all()
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id))
    assert [state.state for _, state in bench.take(ActorState)] == [ACTOR_ALIVE]
    bench.all()
    return worker, actor_id


def next_worker(bench: NodeBench) -> bytes:
    """The worker that the node has just asked for."""
    bench.effects = bench.take(StartWorker)
    return bench.add_worker()


def states(bench: NodeBench) -> list[int]:
    return [state.state for to, state in bench.take(ActorState) if to == DRIVER_ADDRESS]


def test_a_restart(bench: NodeBench) -> None:
    worker, actor_id = made(bench, max_restarts=1)
    bench.exit(worker)
    assert states(bench) == [ACTOR_RESTARTING]
    assert json.loads(reports.report(bench.node, "actors"))[0]["state"] == "restarting"
    second = next_worker(bench)
    assert bench.runs() == [(second, actor_id, 1)]
    bench.done(second, actor_id, 1)
    assert states(bench) == [ACTOR_ALIVE]
    bench.all()
    bench.exit(second)
    assert states(bench) == [ACTOR_DEAD]
    bench.all()


def test_an_actor_that_leaves_is_not_made_again(bench: NodeBench) -> None:
    worker, _ = made(bench, max_restarts=-1)
    bench.say(worker, Leaving("on purpose"))
    bench.exit(worker, exit_code=0)
    assert states(bench) == [ACTOR_DEAD]
    bench.all()


def test_kill_ends_one_that_is_being_made_again(bench: NodeBench) -> None:
    worker, actor_id = made(bench, max_restarts=-1)
    bench.exit(worker)
    bench.all()
    bench.say(DRIVER_ADDRESS, KillActor(actor_id))
    assert states(bench) == [ACTOR_DEAD]
    assert actor_id not in bench.node.scheduler.tasks
    bench.all()
    bench.say(DRIVER_ADDRESS, KillActor(actor_id))


def test_without_handles_it_is_not_made_again(bench: NodeBench) -> None:
    worker, actor_id = made(bench, max_restarts=-1)
    bench.say(DRIVER_ADDRESS, Release((ids.first_return_id(actor_id),)))
    assert [to for to, _ in bench.take(Exit)] == [worker]
    bench.exit(worker)
    assert states(bench) == [ACTOR_DEAD]
    bench.all()


def test_a_detached_actor_outlives_its_job(bench: NodeBench) -> None:
    worker, actor_id = made(bench, detached=True, actor_name=("ns", "name"))
    bench.say(DRIVER_ADDRESS, Goodbye())
    assert bench.take(KillWorker) == []
    assert bench.node.actors.entries[actor_id].state.state == ACTOR_ALIVE
    bench.all()
    bench.add_driver()
    bench.say(b"other", KillActor(actor_id))
    assert bench.take(KillWorker) == [(b"@worker-pool", KillWorker(worker))]
    bench.exit(worker)
    bench.all()
    assert actor_id not in bench.node.scheduler.jobs


# --- streams -----------------------------------------------------------------------------------------


def test_items_are_told_before_they_are_shown_and_once(bench: NodeBench) -> None:
    worker, task = bench.running(bench.describe(returns=STREAM, max_retries=1))
    bench.say(worker, Yielded(task, 0, 0, ITEM), Yielded(task, 0, 0, ITEM), Yielded(task, 0, 2, ITEM))
    told = [message for to, message in bench.all() if to == DRIVER_ADDRESS]
    assert told[0] == StreamItem(task, 0)
    assert told[1].object_id == item_id(task, 0)
    assert len(told) == 2
    bench.exit(worker, running=task)
    second = next_worker(bench)
    bench.runs()
    bench.say(second, Yielded(task, 0, 1, ITEM), Yielded(task, 1, 0, ITEM), Yielded(task, 1, 1, ITEM))
    assert [item for _, item in bench.take(StreamItem)] == [StreamItem(task, 1)]
    assert [value.data for value in bench.values()] == [b"item"]
    bench.say(second, TaskDone(task, 1, (ITEM,), 1))
    bench.all()


def test_what_a_reader_took_reaches_the_worker_and_the_next_one(bench: NodeBench) -> None:
    worker, task = bench.running(bench.describe(returns=STREAM, max_retries=1, unconsumed_max=1))
    bench.say(DRIVER_ADDRESS, Consumed(task, 3))
    assert bench.take(StreamCredit) == [(worker, StreamCredit(task, 3))]
    bench.exit(worker, running=task)
    second = next_worker(bench)
    assert bench.take(StreamCredit) == [(second, StreamCredit(task, 3))]
    bench.all()
    bench.say(DRIVER_ADDRESS, Consumed(b"x" * 16, 1))


def begun_again(bench: NodeBench) -> tuple[bytes, bytes]:
    """A stream of which an item was told, and whose parent runs again and submits it once more."""
    worker, task = bench.running(bench.describe(returns=STREAM, max_retries=0, unconsumed_max=1))
    spec = bench.node.scheduler.tasks[task].spec
    bench.say(worker, Yielded(task, 0, 0, ITEM))
    bench.all()
    bench.say(DRIVER_ADDRESS, Consumed(task, 1, True), spec)
    assert bench.take(Interrupt) == [(worker, Interrupt(task, False))]
    bench.all()
    bench.say(worker, Yielded(task, 0, 1, ITEM))
    return worker, task


def test_a_stream_that_is_submitted_again_begins_anew_for_its_new_reader(bench: NodeBench) -> None:
    worker, task = begun_again(bench)
    bench.say(worker, TaskDone(task, 0, (BOOM,), 1, True))
    assert bench.runs() == [(worker, task, 1)]
    bench.say(worker, Yielded(task, 1, 0, ITEM), Yielded(task, 1, 1, ITEM))
    assert [item for _, item in bench.take(StreamItem)] == [StreamItem(task, 0), StreamItem(task, 1)]
    bench.all()
    bench.say(worker, TaskDone(task, 1, (ITEM,), 1))
    bench.all()
    assert not bench.node.scheduler.tasks


def test_a_stream_of_a_lost_reader_is_charged_for_no_attempt(bench: NodeBench) -> None:
    worker, task = begun_again(bench)
    bench.exit(worker, running=task)
    second = next_worker(bench)
    assert bench.runs() == [(second, task, 1)]
    bench.say(second, TaskDone(task, 1, (ITEM,), 1))
    bench.all()


def test_who_takes_it_back_meanwhile_has_its_way(bench: NodeBench) -> None:
    worker, task = begun_again(bench)
    bench.say(DRIVER_ADDRESS, Cancel(task))
    bench.all()
    bench.say(worker, TaskDone(task, 0, (ITEM,), 1))
    assert "TaskCancelledError" in codes(bench.values())
    assert not bench.node.scheduler.tasks


@pytest.mark.parametrize("waits", [True, False])
def test_nobody_waits_for_a_reader_that_died(bench: NodeBench, waits: bool) -> None:
    """Whether its maker waits for it then, or makes the next item."""
    parent, other = bench.submit(bench.kind(max_retries=0), count=2)
    reader = bench.add_worker()
    worker = bench.add_worker()
    assert bench.runs() == [(reader, parent, 0), (worker, other, 0)]
    kind = Describe(ids.content_id(b"s"), b"f" * 16, "s", 1, CPU, 0, returns=STREAM, unconsumed_max=1)
    spec = bench.spec(kind.descriptor_id)
    if waits:
        bench.done(worker, other)
        bench.all()
    bench.say(reader, Blocked(parent), kind, spec)
    bench.all()
    bench.exit(reader, running=parent)
    if not waits:
        bench.all()
        bench.done(worker, other)
        bench.all()
        bench.say(worker, Yielded(spec.task_id, 0, 0, ITEM))
    assert bench.take(StreamCredit) == [(worker, StreamCredit(spec.task_id, 0, True))]
    bench.all()
    bench.say(worker, Yielded(spec.task_id, 0, 1, ITEM))
    assert bench.take(StreamCredit) == []


def test_the_readers_side() -> None:
    reader, task = StreamReader(), ids.task_id(b"p" * 8, 1)
    assert not reader.told(task, 0)  # nobody reads it
    reader.open(task)
    assert reader.take(task) is None
    assert reader.told(task, 0)
    assert not reader.told(task, 0)
    assert reader.told(task, 1)
    assert reader.has_next(task)
    assert reader.take(task) == 0
    reader.check()
    assert reader.close(task) == (item_id(task, 1),)
    assert reader.close(task) == ()


def test_a_generator_of_a_former_run_that_is_closed_late_closes_nothing() -> None:
    reader, task = StreamReader(), ids.task_id(b"p" * 8, 1)
    reader.open(task)
    for index in range(3):
        assert reader.told(task, index)
    assert reader.take(task) == 0
    assert reader.open(task, anew=True) == (item_id(task, 1), item_id(task, 2))
    assert not reader.told(task, 3)
    assert reader.told(task, 0)
    assert reader.close(task) == ()
    assert reader.take(task) == 0
    assert reader.told(task, 1)
    assert reader.close(task) == (item_id(task, 1),)
    assert not reader.streams
