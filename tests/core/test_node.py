"""The machines of a node together, where one message touches several: ends, crossings and second tries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.test_local_scheduler import CONFIG, DRIVER_ADDRESS, GLOBAL, JOB, MS, NOTHING, Bench
from zray import ids
from zray.core.machine import DISK, RUNTIME, WORKER_POOL, pump
from zray.protocol.faults import OBJECT_LOST, fault_value
from zray.protocol.local_messages import ClientGone, KillWorker, Spill, SpillFailed, StartWorker, WorkerExited
from zray.protocol.messages import (
    ACTOR,
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    AT_NODE,
    DRIVER,
    ERROR,
    EXTENT,
    FAULT,
    INLINE,
    PROTOCOL_VERSION,
    Abort,
    Acked,
    Acquire,
    ActorState,
    Blocked,
    Create,
    Created,
    CreateFailed,
    Describe,
    Exit,
    ExportFunction,
    Forward,
    Get,
    Goodbye,
    Hello,
    HoldFor,
    KillActor,
    ObjectReady,
    Place,
    Promise,
    Publish,
    Release,
    Seal,
    Submit,
    TaskDone,
    Value,
    WatchActor,
    Withdraw,
)

OTHER = b"other"
OTHER_JOB = b"o" * 8 + bytes(8)
CAPACITY = 1 << 20
HALF = CAPACITY // 2
BOOM = Value(ERROR, b"boom")
PUT = ids.put_id(ids.child_prefix(JOB), 1000)
CALL = ids.first_return_id(ids.task_id(ids.child_prefix(JOB), 2000))


class NodeBench(Bench):
    """A bench with a second driver, actors and things that go wrong."""

    def add_driver(self) -> None:
        self.say(OTHER, Hello(PROTOCOL_VERSION, DRIVER, 2, OTHER_JOB))
        self.effects.clear()

    def all(self) -> list[tuple[bytes, Any]]:
        """Every effect, claimed."""
        found, self.effects = self.effects, []
        return found

    def values(self, of: bytes = DRIVER_ADDRESS) -> list[Value]:
        """The values that a process was told."""
        return [ready.value for to, ready in self.take(ObjectReady) if to == of]

    def describe(self, **fields: Any) -> bytes:
        """A descriptor with fields that ``kind`` does not know; every field set has its own id."""
        descriptor_id = ids.content_id(repr(sorted(fields.items())).encode())
        known = {"name": "f", "num_returns": 1, "demand": (("CPU", 10_000),), "max_retries": 3}
        self.say(DRIVER_ADDRESS, Describe(descriptor_id, b"f" * 16, **{**known, **fields}))
        return descriptor_id

    def running(self, kind: bytes) -> tuple[bytes, bytes]:
        """A fresh worker that runs one task of a kind."""
        (task,) = self.submit(kind)
        worker = self.add_worker()
        assert self.runs() == [(worker, task, 0)]
        return worker, task

    def actor(self, *, alive: bool = True) -> tuple[bytes, bytes]:
        """An actor, and its worker."""
        worker, actor_id = self.running(self.describe(kind=ACTOR, demand=(), max_retries=0))
        if alive:
            self.done(worker, actor_id)
            self.take(ObjectReady)
        return worker, actor_id

    def exit(self, worker: bytes, exit_code: int = -9, running: bytes = b"") -> None:
        self.say(RUNTIME, WorkerExited(worker, exit_code, running))

    def say_more(self, source: bytes, *messages: Any) -> None:
        """Say something before the effects of the last message were looked at."""
        before = self.all()
        self.say(source, *messages)
        self.effects = before + self.effects

    @property
    def objects(self) -> list[bytes]:
        return list(self.node.store.objects)

    def kind_of(self, key: bytes) -> int | None:
        value = self.node.store.objects[key].value
        return None if value is None else value.kind


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


# --- tasks ---------------------------------------------------------------------------------------


def test_a_task_without_results_runs(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind(num_returns=0))
    bench.say(worker, TaskDone(task, 0, (), MS))
    assert not bench.node.scheduler.tasks


def test_an_error_runs_down_a_long_chain_without_recursion(bench: NodeBench) -> None:
    kind = bench.kind()
    worker, task = bench.running(kind)
    specs = [bench.spec(kind, deps=(ids.first_return_id(task),))]
    for _ in range(999):
        specs.append(bench.spec(kind, deps=(ids.first_return_id(specs[-1].task_id),)))
    bench.say(DRIVER_ADDRESS, *specs)
    bench.done(worker, task, value=BOOM)
    assert bench.values() == [BOOM] * 1001
    assert not bench.node.scheduler.tasks


def test_an_error_that_nobody_holds_ends_who_waits_for_it_and_is_freed_once(bench: NodeBench) -> None:
    bench.say(DRIVER_ADDRESS, Promise((CALL,)))
    bench.submit(bench.kind(), deps=(CALL,))
    bench.say(DRIVER_ADDRESS, Release((CALL,)), Publish(CALL, BOOM))
    assert bench.values() == [BOOM]
    assert CALL not in bench.objects


def test_a_user_error_is_tried_again_as_often_as_allowed(bench: NodeBench) -> None:
    worker, task = bench.running(bench.describe(retry_exceptions=True, max_retries=2))
    for attempt in (0, 1):
        bench.done(worker, task, attempt, value=BOOM)
        assert bench.runs() == [(worker, task, attempt + 1)]
    bench.done(worker, task, 2, value=BOOM)
    assert bench.values() == [BOOM]


def test_without_leave_a_user_error_is_the_result(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind(max_retries=3))
    bench.done(worker, task, value=BOOM)
    assert bench.values() == [BOOM]


@pytest.mark.parametrize("given", [0, 1, 3])
def test_a_worker_that_gives_the_wrong_number_of_values_loses_them(bench: NodeBench, given: int) -> None:
    worker, task = bench.running(bench.kind(num_returns=2))
    bench.say(worker, TaskDone(task, 0, (NOTHING,) * given, MS))
    reason = f"its worker gave {given} values, not 2"
    assert bench.values() == [fault_value(OBJECT_LOST, ids.short(task), reason)] * 2


def test_a_parent_that_runs_again_differently_waits_for_nothing_for_ever(bench: NodeBench) -> None:
    one, two = bench.kind("one"), bench.kind("two", num_returns=2)
    spec = bench.spec(one)
    again = Submit(spec.task_id, JOB, two, b"")
    bench.say(DRIVER_ADDRESS, spec, again)
    assert [value.kind for value in bench.values()] == [FAULT]
    worker = bench.add_worker()
    assert bench.runs() == [(worker, spec.task_id, 0)]
    bench.done(worker, spec.task_id)
    assert bench.values() == [NOTHING]


def test_a_task_that_is_made_again_makes_only_what_is_missing(bench: NodeBench) -> None:
    spec = bench.spec(bench.kind(num_returns=2))
    first, second = ids.return_ids(spec.task_id, 2)
    values = Value(INLINE, b"1"), Value(INLINE, b"2")
    bench.say(DRIVER_ADDRESS, spec)
    worker = bench.add_worker()
    bench.runs()
    bench.say(worker, TaskDone(spec.task_id, 0, values, MS))
    assert bench.values() == list(values)
    bench.say(DRIVER_ADDRESS, Release((second,)), spec)
    assert bench.values() == [values[0]]
    assert bench.runs() == [(worker, spec.task_id, 0)]
    bench.say(DRIVER_ADDRESS, Release((first,)))
    bench.say(worker, TaskDone(spec.task_id, 0, (BOOM, values[1]), MS))
    assert bench.values() == [values[1]]
    assert bench.objects == [second]
    bench.say(DRIVER_ADDRESS, Release((second,)))
    assert not bench.node.references.lineage


def test_a_task_is_tried_again_alone() -> None:
    bench = NodeBench(cpus=1)
    kind = bench.kind()
    worker = bench.busy_worker(kind, MS)
    first, second = bench.submit(kind, 2)
    bench.runs()
    bench.exit(worker, running=first)
    other = bench.add_worker()
    assert bench.runs() == [(other, second, 0)], "behind it nobody queues who must be alone"
    bench.done(other, second, run_ns=MS)
    bench.take(ObjectReady)
    assert bench.runs() == [(other, first, 1)]
    bench.submit(kind)
    assert bench.runs() == [], "and nobody queues behind it"


def test_a_placed_task_runs_here(bench: NodeBench) -> None:
    kind = bench.kind("big", CPU=8)
    spec = bench.spec(kind)
    bench.say(DRIVER_ADDRESS, spec)
    ((_, forward),) = bench.take(Forward)
    bench.say(GLOBAL, Place(spec, forward.descriptor, 1))
    assert not bench.node.scheduler.forwarded
    assert bench.node.scheduler.backlog() == 1


# --- workers -------------------------------------------------------------------------------------


def test_nothing_queues_behind_a_blocked_task_without_cpus() -> None:
    bench = NodeBench(cpus=1)
    kind = bench.describe(demand=())
    worker = bench.busy_worker(kind, MS)
    (parent,) = bench.submit(kind)
    assert bench.runs() == [(worker, parent, 0)]
    bench.say(worker, Blocked(parent))
    (child,) = bench.submit(kind)
    assert bench.runs() == []
    other = bench.add_worker()
    assert bench.runs() == [(other, child, 0)]


def test_a_worker_that_never_comes_is_replaced() -> None:
    bench = NodeBench(cpus=1)
    bench.submit(bench.kind())
    ((_, wish),) = bench.take(StartWorker)
    bench.wait(CONFIG.worker_idle_ns)
    assert not bench.effects
    bench.wait(CONFIG.worker_start_timeout_ns)
    assert bench.all() == [(WORKER_POOL, KillWorker(wish.worker_id))]
    bench.exit(wish.worker_id)
    assert len(bench.take(StartWorker)) == 1


def test_a_worker_that_says_goodbye_is_gone_when_its_process_is(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind())
    bench.say(worker, Goodbye())
    bench.done(worker, task)
    assert bench.values() == [NOTHING]


def test_a_worker_that_finishes_while_it_is_killed_is_not_used_again(bench: NodeBench) -> None:
    bench.add_driver()
    worker, task = bench.running(bench.kind())
    bench.say(RUNTIME, ClientGone(DRIVER_ADDRESS))
    assert bench.take(KillWorker) == [(WORKER_POOL, KillWorker(worker))]
    bench.take(ClientGone)
    bench.done(worker, task)
    bench.say(OTHER, ExportFunction(b"f" * 16, b""), Describe(b"d" * 16, b"f" * 16, "g", 1, (), 0))
    bench.say(OTHER, Submit(ids.task_id(b"other___", 1), OTHER_JOB, b"d" * 16, b""))
    assert len(bench.take(StartWorker)) == 1


# --- the end of a job ----------------------------------------------------------------------------


def test_with_its_driver_a_job_ends(bench: NodeBench) -> None:
    kind = bench.kind(CPU=2)
    worker, running = bench.running(kind)
    queued = bench.submit(kind, 3)
    (waiting,) = bench.submit(kind, deps=(ids.first_return_id(running),))
    (forwarded,) = bench.submit(bench.kind("big", CPU=8))
    bench.take(Forward)
    assert len(bench.node.scheduler.tasks) == len((running, *queued, waiting, forwarded))
    pump(bench.node, [(DRIVER_ADDRESS, Goodbye())], 0)
    bench.node.check()
    assert (GLOBAL, Withdraw(forwarded)) in bench.node.out
    assert (WORKER_POOL, KillWorker(worker)) in bench.node.out
    assert not any(to == DRIVER_ADDRESS for to, _ in bench.node.out), "the dead are told nothing"
    bench.node.out.clear()
    assert list(bench.node.scheduler.tasks) == [running]
    assert list(bench.node.scheduler.jobs) == [JOB]
    bench.exit(worker, running=running)
    assert not bench.effects
    assert not bench.node.scheduler.tasks
    assert not bench.node.scheduler.jobs
    assert not bench.node.scheduler.classes
    assert not bench.objects


def test_what_the_workers_of_an_ended_job_still_say_starts_nothing(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind())
    describe = Describe(b"d" * 16, b"f" * 16, "child", 1, (), 0)
    bench.say(worker, describe)
    bench.say(DRIVER_ADDRESS, Goodbye())
    bench.all()
    bench.say(worker, Submit(ids.task_id(b"child___", 1), task, b"d" * 16, b""))
    bench.say(worker, Describe(b"e" * 16, b"f" * 16, "late", 1, (), 0))
    bench.say(worker, Submit(ids.task_id(b"child___", 2), task, b"e" * 16, b""))
    assert not bench.effects
    assert list(bench.node.scheduler.tasks) == [task]
    assert not bench.node.scheduler.classes


def test_a_large_backlog_ends_in_a_moment(bench: NodeBench) -> None:
    ready, waiting = bench.kind("ready", CPU=2), bench.kind("waiting")
    bench.submit(ready, 5_000)
    bench.all()
    bench.submit(waiting, 1_000, deps=(CALL,))
    bench.all()
    bench.say(DRIVER_ADDRESS, Goodbye())
    bench.take(ClientGone)
    assert not bench.node.scheduler.tasks
    bench.wait(CONFIG.stranger_patience_ns)
    assert not bench.objects, "also the input that nobody ever announced"


# --- creating objects ----------------------------------------------------------------------------


def test_a_put_is_held_by_its_maker_and_freed_with_it(bench: NodeBench) -> None:
    bench.say(DRIVER_ADDRESS, Create(PUT, HALF))
    assert bench.all() == [(DRIVER_ADDRESS, Created(PUT, EXTENT, 0))]
    bench.say(DRIVER_ADDRESS, Seal(PUT), Get((PUT,)))
    assert bench.values() == [Value(EXTENT, b"", 0, HALF)]
    bench.say(DRIVER_ADDRESS, Goodbye())
    bench.take(ClientGone)
    assert not bench.objects
    assert bench.node.store.extents.used_bytes == 0


@pytest.mark.parametrize("end", [Abort(PUT), Goodbye()])
def test_a_put_that_is_given_up_leaves_nothing(bench: NodeBench, end: Any) -> None:
    bench.say(DRIVER_ADDRESS, Create(PUT, HALF), end)
    bench.all()
    assert not bench.objects
    assert not bench.node.store.strangers
    assert not bench.node.references.held.get(DRIVER_ADDRESS)
    assert bench.node.store.extents.used_bytes == 0


def test_a_put_without_room_leaves_nothing(bench: NodeBench) -> None:
    others = [ids.put_id(b"puts____", number) for number in (1, 2)]
    for key in others:
        bench.say(DRIVER_ADDRESS, Create(key, HALF), Seal(key))
        bench.all()
    bench.say(DRIVER_ADDRESS, Create(PUT, HALF), Create(CALL, CAPACITY + 1))
    assert bench.all() == [
        (DISK, Spill(others[0], 0, HALF)),
        (DRIVER_ADDRESS, CreateFailed(CALL, CAPACITY + 1, CAPACITY)),
    ]
    bench.say(RUNTIME, SpillFailed(others[0], "disk full"))
    assert bench.all() == [(DRIVER_ADDRESS, CreateFailed(PUT, HALF, CAPACITY, "disk full"))]
    assert bench.objects == others


def test_a_put_that_is_made_again_is_held_by_both_makers(bench: NodeBench) -> None:
    bench.add_driver()
    bench.say(DRIVER_ADDRESS, Create(PUT, HALF), Seal(PUT))
    bench.all()
    bench.say(OTHER, Create(PUT, HALF))
    assert bench.all() == [(OTHER, CreateFailed(PUT, HALF, 0, "the object already has a value"))]
    bench.say(DRIVER_ADDRESS, Release((PUT,)))
    assert bench.objects == [PUT]
    bench.say(OTHER, Release((PUT,)))
    assert not bench.objects


def test_a_large_result_is_held_by_its_submitter_alone(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind())
    key = ids.first_return_id(task)
    bench.say(worker, Create(key, HALF))
    assert bench.all() == [(worker, Created(key, EXTENT, 0))]
    bench.say(worker, TaskDone(task, 0, (Value(EXTENT, b"", 0, HALF),), MS))
    assert bench.values() == [Value(AT_NODE, b"", 0, HALF)]
    bench.say(DRIVER_ADDRESS, Release((key,)))
    assert not bench.objects


def test_a_worker_that_dies_while_it_writes_is_followed_by_another(bench: NodeBench) -> None:
    worker, task = bench.running(bench.kind())
    key = ids.first_return_id(task)
    bench.say(worker, Create(key, HALF))
    bench.all()
    bench.exit(worker, running=task)
    assert bench.node.store.extents.used_bytes == 0
    other = bench.add_worker()
    assert bench.runs() == [(other, task, 1)]
    bench.say(other, Create(key, HALF))
    assert bench.all() == [(other, Created(key, EXTENT, 0))]


def test_an_actor_that_dies_while_it_writes_leaves_nothing_to_its_caller(bench: NodeBench) -> None:
    worker, _ = bench.actor()
    bench.say(worker, Create(CALL, HALF, DRIVER_ADDRESS))
    bench.all()
    assert CALL in bench.node.references.held[DRIVER_ADDRESS]
    bench.exit(worker)
    assert CALL not in bench.objects
    assert CALL not in bench.node.references.held[DRIVER_ADDRESS]
    assert not bench.node.store.strangers


# --- promises ------------------------------------------------------------------------------------


def test_a_promise_is_kept_by_publishing(bench: NodeBench) -> None:
    bench.add_driver()
    bench.say(DRIVER_ADDRESS, Promise((CALL,)))
    bench.say(OTHER, Acquire((CALL,)), Get((CALL,)))
    bench.wait(2 * CONFIG.stranger_patience_ns)
    bench.say(DRIVER_ADDRESS, Publish(CALL, NOTHING), Release((CALL,)))
    assert bench.values(OTHER) == [NOTHING]
    bench.say(OTHER, Release((CALL,)))
    assert not bench.objects


def test_a_promise_is_broken_by_death(bench: NodeBench) -> None:
    bench.add_driver()
    bench.say(DRIVER_ADDRESS, Promise((CALL,)))
    bench.say(OTHER, Acquire((CALL,)), Get((CALL,)))
    bench.say(DRIVER_ADDRESS, Goodbye())
    assert [value.kind for value in bench.values(OTHER)] == [FAULT]
    bench.take(ClientGone)
    bench.say(OTHER, Release((CALL,)))
    assert not bench.objects


def test_what_was_released_before_it_was_published_is_freed(bench: NodeBench) -> None:
    bench.say(DRIVER_ADDRESS, Promise((CALL,)), Release((CALL,)))
    assert bench.objects == [CALL]
    bench.say(DRIVER_ADDRESS, Publish(CALL, NOTHING))
    assert not bench.objects


@pytest.mark.parametrize("promised_first", [True, False])
def test_an_actor_keeps_the_promise_of_its_caller_with_a_large_value(
    bench: NodeBench, promised_first: bool
) -> None:
    worker, _ = bench.actor()
    steps = [
        (DRIVER_ADDRESS, Promise((CALL,))),
        (worker, Create(CALL, HALF, DRIVER_ADDRESS)),
        (worker, Seal(CALL)),
    ]
    if not promised_first:
        steps.append(steps.pop(0))
    for source, message in steps:
        bench.say(source, message)
        bench.all()
    assert not bench.node.clients[DRIVER_ADDRESS].promised
    bench.say(DRIVER_ADDRESS, Release((CALL,)))
    assert CALL not in bench.objects


def test_memory_that_an_actor_writes_is_not_given_away_when_its_caller_dies(bench: NodeBench) -> None:
    bench.add_driver()
    worker, _ = bench.actor()
    bench.say(OTHER, Promise((CALL,)))
    bench.say(worker, Create(CALL, HALF, OTHER))
    bench.all()
    bench.say(DRIVER_ADDRESS, Acquire((CALL,)))
    bench.say(OTHER, Goodbye())
    bench.all()
    assert bench.node.store.extents.used_bytes == HALF
    bench.say(worker, Seal(CALL))
    assert bench.kind_of(CALL) == EXTENT
    bench.say(DRIVER_ADDRESS, Release((CALL,)))
    assert bench.node.store.extents.used_bytes == 0


def test_a_broken_promise_that_the_actor_does_not_keep_either_is_lost(bench: NodeBench) -> None:
    bench.add_driver()
    worker, _ = bench.actor()
    bench.say(OTHER, Promise((CALL,)))
    bench.say(worker, Create(CALL, HALF, OTHER))
    bench.say_more(DRIVER_ADDRESS, Acquire((CALL,)), Get((CALL,)))
    bench.say_more(OTHER, Goodbye())
    bench.all()
    bench.exit(worker)
    assert bench.all() == []
    bench.wait(CONFIG.stranger_patience_ns)
    assert [value.kind for value in bench.values()] == [FAULT]


@pytest.mark.parametrize("kind", [EXTENT, AT_NODE])
def test_only_values_in_the_message_can_be_published(bench: NodeBench, kind: int) -> None:
    bench.say(DRIVER_ADDRESS, Publish(PUT, Value(kind, b"", 0, 64)))
    assert not bench.objects


# --- passing references on -----------------------------------------------------------------------


def test_what_is_handed_over_is_kept_until_it_is_taken(bench: NodeBench) -> None:
    bench.add_driver()
    bench.say(DRIVER_ADDRESS, Publish(PUT, NOTHING), HoldFor(OTHER, (PUT,), 7), Release((PUT,)))
    assert bench.all() == [(DRIVER_ADDRESS, Acked(7))]
    assert bench.objects == [PUT]
    bench.say(OTHER, HoldFor(b"", (PUT,), 0))
    assert bench.objects == [PUT]
    bench.say(OTHER, Release((PUT,)))
    assert not bench.objects


def test_a_gift_to_nobody_is_acknowledged_and_forgotten(bench: NodeBench) -> None:
    bench.say(DRIVER_ADDRESS, Publish(PUT, NOTHING), HoldFor(OTHER, (PUT,), 7), Release((PUT,)))
    assert bench.all() == [(DRIVER_ADDRESS, Acked(7))]
    assert not bench.objects


def test_an_object_that_nobody_announces_is_lost_and_forgotten(bench: NodeBench) -> None:
    bench.say(DRIVER_ADDRESS, Get((PUT,)))
    bench.wait(CONFIG.stranger_patience_ns - 1)
    assert not bench.effects
    bench.wait(1)
    assert [value.kind for value in bench.values()] == [FAULT]
    assert not bench.objects


# --- actors --------------------------------------------------------------------------------------


def states(bench: NodeBench) -> list[int]:
    return [state.state for _, state in bench.take(ActorState)]


def test_an_actor_ends_when_its_last_handle_goes(bench: NodeBench) -> None:
    worker, actor_id = bench.actor()
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id), Release((ids.first_return_id(actor_id),)))
    assert states(bench) == [ACTOR_ALIVE]
    assert bench.all() == [(worker, Exit("no handle of the actor is left"))]
    bench.exit(worker, 0)
    assert states(bench) == [ACTOR_DEAD]


def test_an_actor_that_is_killed_while_it_waits_for_room_never_starts() -> None:
    bench = NodeBench(cpus=1)
    bench.running(bench.kind())
    (actor_id,) = bench.submit(bench.describe(kind=ACTOR, max_retries=0))
    bench.say(DRIVER_ADDRESS, KillActor(actor_id))
    assert [value.kind for value in bench.values()] == [FAULT]
    assert actor_id not in bench.node.scheduler.tasks
    assert bench.node.scheduler.backlog() == 0


def test_an_actor_that_is_killed_while_it_is_forwarded_is_withdrawn() -> None:
    bench = NodeBench(cpus=1)
    (actor_id,) = bench.submit(bench.describe(kind=ACTOR, demand=(("CPU", 990_000),)))
    bench.take(Forward)
    pump(bench.node, [(DRIVER_ADDRESS, KillActor(actor_id))], 0)
    assert (GLOBAL, Withdraw(actor_id)) in bench.node.out


def test_an_actor_that_is_killed_in_its_constructor_stays_dead(bench: NodeBench) -> None:
    worker, actor_id = bench.actor(alive=False)
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id), KillActor(actor_id), KillActor(actor_id))
    assert states(bench) == [ACTOR_PENDING, ACTOR_DEAD]
    assert bench.take(KillWorker) == [(WORKER_POOL, KillWorker(worker))]
    bench.done(worker, actor_id)
    assert bench.values() == [NOTHING], "the constructor did end"
    bench.exit(worker)
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id))
    assert states(bench) == [ACTOR_DEAD]
    assert not bench.node.pool.workers


def test_the_death_of_a_constructor_is_the_end_of_the_actor(bench: NodeBench) -> None:
    worker, actor_id = bench.actor(alive=False)
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id))
    bench.take(ActorState)
    bench.exit(worker, 1, running=actor_id)
    ((_, state),) = bench.take(ActorState)
    assert bench.values() == [state.cause]


def test_a_constructor_that_raises_ends_its_worker(bench: NodeBench) -> None:
    worker, actor_id = bench.actor(alive=False)
    bench.done(worker, actor_id, value=BOOM)
    assert bench.values() == [BOOM]
    assert bench.all() == [(WORKER_POOL, KillWorker(worker))]
    bench.say(DRIVER_ADDRESS, WatchActor(actor_id))
    ((_, state),) = bench.take(ActorState)
    assert (state.state, state.cause) == (ACTOR_DEAD, BOOM)


def test_an_actor_that_is_made_anew_survives_the_end_of_its_former_life(bench: NodeBench) -> None:
    kind = bench.describe(kind=ACTOR, demand=(), max_retries=0)
    spec = bench.spec(kind)
    bench.say(DRIVER_ADDRESS, spec)
    former = bench.add_worker()
    bench.runs()
    bench.done(former, spec.task_id)
    bench.say_more(DRIVER_ADDRESS, Release((ids.first_return_id(spec.task_id),)), spec)
    bench.take(ObjectReady)
    bench.take(Exit)
    later = bench.add_worker()
    assert bench.runs() == [(later, spec.task_id, 0)]
    bench.exit(former, 0)
    bench.done(later, spec.task_id)
    bench.take(ObjectReady)
    bench.say(DRIVER_ADDRESS, WatchActor(spec.task_id))
    assert states(bench) == [ACTOR_ALIVE]
