"""What the local scheduler does with one message at a time: messages in, exact outbox out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.identity import NodeIdentity
from zray.core.machine import RUNTIME, WORKER_POOL, pump
from zray.core.node import Node
from zray.core.resources import demand_from
from zray.protocol.faults import WORKER_CRASHED, fault_value
from zray.protocol.local_messages import StartWorker, WorkerExited
from zray.protocol.messages import (
    DRIVER,
    ERROR,
    INLINE,
    PROTOCOL_VERSION,
    TASK,
    WORKER,
    Blocked,
    Describe,
    Forward,
    Hello,
    Infeasible,
    ObjectReady,
    Place,
    Recall,
    Returned,
    Run,
    Submit,
    TaskDone,
    Unblocked,
    Value,
    Warn,
)
from zray.protocol.user_messages import ResultsReady

MS = 1_000_000
DRIVER_ADDRESS = b"driver"
JOB = b"j" * 8 + bytes(8)
GLOBAL = b"gcs-0000"
NOTHING = Value(INLINE, b"N.")
CONFIG = Config()


def each_ready(effect: tuple[bytes, Any]) -> list[tuple[bytes, Any]]:
    """The effect, or for ``ResultsReady`` what says the same one by one."""
    to, message = effect
    if not isinstance(message, ResultsReady):
        return [effect]
    object_ids = ids.return_ids(message.task_id, len(message.values))
    return [(to, ObjectReady(*pair)) for pair in zip(object_ids, message.values, strict=True)]


class Bench:
    """A node with one driver; every effect must be taken before the next message goes in."""

    def __init__(self, cpus: float = 2, **resources: float) -> None:
        identity = NodeIdentity(node_id=b"n" * 16, arena_bytes=1 << 20)
        total = demand_from({"CPU": cpus, **resources})
        self.node = Node(identity, total=total, shards=(GLOBAL,), config=CONFIG)
        self.now_ns = 0
        self.counter = 0
        self.effects: list[tuple[bytes, Any]] = []
        self.say(DRIVER_ADDRESS, Hello(PROTOCOL_VERSION, DRIVER, 1, JOB))
        self.effects.clear()

    def say(self, source: bytes, *messages: Any) -> None:
        assert not self.effects, f"effects that no test looked at: {self.effects}"
        pump(self.node, [(source, message) for message in messages], self.now_ns)
        self.node.check()
        quiet = (GLOBAL,)  # lineage and load reports have tests of their own
        self.effects = [e for e in self.node.out if e[0] not in quiet or isinstance(e[1], Forward)]
        self.node.out.clear()

    def take(self, kind: type) -> list[tuple[bytes, Any]]:
        """The effects of one kind, removed from those to look at; results told together count one by one."""
        if kind is ObjectReady:
            self.effects = [one for effect in self.effects for one in each_ready(effect)]
        found = [effect for effect in self.effects if isinstance(effect[1], kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect[1], kind)]
        return found

    def runs(self) -> list[tuple[bytes, bytes, int]]:
        """``(worker, task, attempt)`` of what was dispatched; what workers are told before is dropped."""
        found = [(worker, run.task_id, run.attempt) for worker, run in self.take(Run)]
        workers = {worker for worker, _, _ in found}
        self.effects = [effect for effect in self.effects if effect[0] not in workers]
        return found

    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns
        self.say(RUNTIME)

    def kind(self, name: str = "f", max_retries: int = 3, num_returns: int = 1, **resources: float) -> bytes:
        descriptor_id = ids.content_id(
            repr((name, max_retries, num_returns, sorted(resources.items()))).encode()
        )
        demand = demand_from(resources or {"CPU": 1})
        describe = Describe(descriptor_id, b"f" * 16, name, num_returns, demand, max_retries, TASK)
        self.say(DRIVER_ADDRESS, describe)
        return descriptor_id

    def spec(self, kind: bytes, deps: tuple[bytes, ...] = ()) -> Submit:
        self.counter += 1
        return Submit(ids.task_id(ids.child_prefix(JOB), self.counter), JOB, kind, b"", deps)

    def submit(self, kind: bytes, count: int = 1, deps: tuple[bytes, ...] = ()) -> list[bytes]:
        specs = [self.spec(kind, deps) for _ in range(count)]
        self.say(DRIVER_ADDRESS, *specs)
        return [spec.task_id for spec in specs]

    def add_worker(self) -> bytes:
        """Answer the oldest wish for a worker."""
        asked = next(effect for effect in self.effects if isinstance(effect[1], StartWorker))
        self.effects.remove(asked)
        worker: bytes = asked[1].worker_id
        rest, self.effects = self.effects, []
        self.say(worker, Hello(PROTOCOL_VERSION, WORKER, 2, ids.NIL_ID))
        self.effects = rest + [effect for effect in self.effects if type(effect[1]).__name__ != "Welcome"]
        return worker

    def done(
        self, worker: bytes, task: bytes, attempt: int = 0, run_ns: int = MS, value: Value = NOTHING
    ) -> None:
        self.say(worker, TaskDone(task, attempt, (value,), run_ns, value.kind == ERROR))

    def busy_worker(self, kind: bytes, run_ns: int = 50 * MS) -> bytes:
        """A worker that ran one task of a kind, so that its run time is known."""
        (task,) = self.submit(kind)
        worker = self.add_worker()
        assert self.runs() == [(worker, task, 0)]
        self.done(worker, task, run_ns=run_ns)
        self.take(ObjectReady)
        return worker


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


def test_a_task_starts_a_worker_runs_and_its_submitter_hears(bench: Bench) -> None:
    (task,) = bench.submit(bench.kind())
    worker = bench.add_worker()
    assert bench.runs() == [(worker, task, 0)]
    bench.done(worker, task)
    ready = ObjectReady(ids.first_return_id(task), NOTHING)
    assert bench.take(ObjectReady) == [(DRIVER_ADDRESS, ready)]


def test_fractions_of_a_cpu_run_together(bench: Bench) -> None:
    bench.submit(bench.kind(CPU=0.5), 5)
    for _ in range(4):
        bench.add_worker()
    assert len(bench.runs()) == 4
    assert bench.node.pool.resources.free["CPU"] == 0


def test_a_missing_input_parks_a_task_until_it_is_sealed(bench: Bench) -> None:
    kind = bench.kind()
    (first,) = bench.submit(kind)
    worker = bench.add_worker()
    bench.runs()
    (second,) = bench.submit(kind, deps=(ids.first_return_id(first),))
    assert bench.effects == []
    bench.done(worker, first)
    bench.take(ObjectReady)
    assert bench.runs() == [(worker, second, 0)]


def test_an_input_that_is_an_error_ends_the_task_with_the_same_error(bench: Bench) -> None:
    kind = bench.kind()
    (first,) = bench.submit(kind)
    worker = bench.add_worker()
    bench.runs()
    (second,) = bench.submit(kind, deps=(ids.first_return_id(first),))
    error = Value(ERROR, b"boom")
    bench.done(worker, first, value=error)
    told = [message.value for _, message in bench.take(ObjectReady)]
    assert told == [error, error]
    assert second not in bench.node.scheduler.tasks


def test_a_blocked_worker_lends_its_cpu_and_never_its_gpu() -> None:
    bench = Bench(cpus=1, GPU=1)
    kind = bench.kind(CPU=1, GPU=1)
    (parent,) = bench.submit(kind)
    worker = bench.add_worker()
    bench.runs()
    bench.say(worker, Blocked(parent))
    assert bench.node.pool.resources.free == {"CPU": 10_000, "GPU": 0}
    (child,) = bench.submit(bench.kind("child"))
    other = bench.add_worker()
    assert bench.runs() == [(other, child, 0)]
    bench.say(worker, Unblocked(parent))
    assert bench.node.pool.resources.free == {"CPU": -10_000, "GPU": 0}, "it goes on at once"
    bench.done(other, child)
    bench.take(ObjectReady)
    bench.done(worker, parent)
    bench.take(ObjectReady)
    assert bench.node.pool.resources.free == {"CPU": 10_000, "GPU": 10_000}


def test_short_tasks_run_ahead_and_long_ones_do_not() -> None:
    for run_ns, ahead in ((CONFIG.run_ahead_ns // 3, 3), (2 * CONFIG.run_ahead_ns, 0)):
        bench = Bench(cpus=1)
        kind = bench.kind()
        worker = bench.busy_worker(kind, run_ns)
        tasks = bench.submit(kind, 20)
        assert bench.runs() == [(worker, task, 0) for task in tasks[: ahead + 1]]


def test_behind_a_task_that_must_not_run_twice_nobody_queues() -> None:
    bench = Bench(cpus=1)
    kind = bench.kind(max_retries=0)
    worker = bench.busy_worker(kind, MS)
    tasks = bench.submit(kind, 20)
    assert bench.runs() == [(worker, tasks[0], 0)]


def test_a_stalled_worker_is_asked_for_its_queue_and_others_get_it() -> None:
    bench = Bench(cpus=1)
    kind = bench.kind()
    worker = bench.busy_worker(kind, MS)
    tasks = bench.submit(kind, 3)
    assert len(bench.runs()) == 3
    bench.wait(CONFIG.run_stall_ns)
    assert bench.take(Recall) == [(worker, Recall())]
    bench.say(worker, Returned((tasks[1], tasks[2])))
    assert bench.effects == [], "the only CPU is in use, and the worker made no progress"
    bench.done(worker, tasks[0])
    bench.take(ObjectReady)
    assert bench.runs() == [(worker, tasks[1], 0), (worker, tasks[2], 0)]


def test_a_dead_worker_is_charged_for_the_task_it_ran() -> None:
    """Before it in the queue: ran unreported, again for free. Behind it: never started."""
    bench = Bench(cpus=1)
    kind = bench.kind(max_retries=1)
    worker = bench.busy_worker(kind, MS)
    before, running, behind = bench.submit(kind, 3)
    assert len(bench.runs()) == 3
    bench.say(RUNTIME, WorkerExited(worker, -9, running))
    bench.add_worker()
    bench.runs()
    tasks = bench.node.scheduler.tasks
    assert [(tasks[task].attempt, tasks[task].retries_left) for task in (before, running, behind)] == [
        (1, 1),
        (1, 0),
        (0, 1),
    ]


def test_without_retries_the_death_of_its_worker_is_the_result(bench: Bench) -> None:
    (task,) = bench.submit(bench.kind("fragile", max_retries=0))
    worker = bench.add_worker()
    bench.runs()
    bench.say(RUNTIME, WorkerExited(worker, 7, task))
    fault = fault_value(WORKER_CRASHED, "fragile", 7, 1)
    assert bench.take(ObjectReady) == [(DRIVER_ADDRESS, ObjectReady(ids.first_return_id(task), fault))]


def test_a_late_report_of_an_old_attempt_changes_nothing() -> None:
    bench = Bench(cpus=1)
    (task,) = bench.submit(bench.kind())
    worker = bench.add_worker()
    bench.runs()
    bench.say(RUNTIME, WorkerExited(worker, -9, task))
    second = bench.add_worker()
    assert bench.runs() == [(second, task, 1)]
    bench.done(second, task, attempt=0)
    assert bench.effects == []
    assert task in bench.node.scheduler.tasks
    bench.done(second, task, attempt=1)
    assert len(bench.take(ObjectReady)) == 1


def test_a_task_submitted_twice_runs_once(bench: Bench) -> None:
    spec = bench.spec(bench.kind())
    bench.say(DRIVER_ADDRESS, spec, spec)
    worker = bench.add_worker()
    assert bench.runs() == [(worker, spec.task_id, 0)]


def test_what_never_fits_is_forwarded_warned_about_once_and_kept_when_placed() -> None:
    bench = Bench(cpus=1)
    kind = bench.kind("big", CPU=8)
    spec = bench.spec(kind)
    bench.say(DRIVER_ADDRESS, spec)
    ((to, forward),) = bench.take(Forward)
    assert (to, forward.spec, forward.hops) == (GLOBAL, spec, 0)
    infeasible = Infeasible(spec.task_id, "big", forward.descriptor.demand, ("node n: has 1 of 8 CPU",))
    bench.say(GLOBAL, infeasible, infeasible)
    ((to, warning),) = bench.take(Warn)
    assert to == DRIVER_ADDRESS
    assert "big() asks for 8 CPU" in warning.text
    assert "has 1 of 8 CPU" in warning.text
    bench.say(DRIVER_ADDRESS, Place(spec, forward.descriptor, 1))
    assert spec.task_id in bench.node.scheduler.forwarded, "only a control store may place"


def test_idle_workers_beyond_the_cpus_end_after_a_while() -> None:
    bench = Bench(cpus=1)
    kind = bench.kind(CPU=0.5)
    bench.submit(kind, 2)
    for _ in range(2):
        bench.add_worker()
    for worker, task, _ in bench.runs():
        bench.done(worker, task)
        bench.take(ObjectReady)
    bench.wait(2 * CONFIG.worker_idle_ns)
    assert [to for to, _ in bench.effects] == [WORKER_POOL]
