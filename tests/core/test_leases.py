"""When the node leases a worker, and how a lease ends: messages in, exact outbox out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.test_local_scheduler import CONFIG, DRIVER_ADDRESS, JOB, MS, NOTHING, Bench
from zray import ids
from zray.core.leases import LONE_TASKS_MIN
from zray.protocol.faults import WORKER_CRASHED, fault_value
from zray.protocol.local_messages import WorkerExited
from zray.protocol.messages import (
    EXTENT,
    Create,
    Created,
    EndLease,
    Lease,
    LeasedDone,
    LeasedReply,
    LeaseEnded,
    LeaseGone,
    LeaseReady,
    ObjectReady,
    PrepareLease,
    Publish,
    ReturnLease,
    Run,
    Submit,
    TaskDone,
    Value,
)


class LeaseBench(Bench):
    """A node with a driver that submits one task after the other."""

    def lone_task(self, kind: bytes, worker: bytes = b"", run_ns: int = MS) -> bytes:
        """One task from its submission to its value; returns the worker."""
        (task,) = self.submit(kind)
        worker = worker or self.add_worker()
        if self.take(PrepareLease):
            self.prepared = True
        assert self.runs() == [(worker, task, 0)]
        ready = [LeaseReady()] if self.prepared else []
        self.say(worker, *ready, TaskDone(task, 0, (NOTHING,), run_ns))
        self.take(ObjectReady)
        return worker

    prepared = False

    def lease(self, kind: bytes) -> tuple[bytes, int]:
        """A worker that listens to the driver, and the lease."""
        worker = b""
        for _ in range(LONE_TASKS_MIN):
            assert not self.effects
            worker = self.lone_task(kind, worker)
        ((told, lease),) = self.take(Lease)
        assert (told, lease) == (DRIVER_ADDRESS, Lease(lease.lease_id, kind, worker + b"+", ""))
        return worker, lease.lease_id

    def told(self, worker: bytes, kind: type) -> list[Any]:
        """Messages of a kind to a worker, and no other effect."""
        found = [message for destination, message in self.take(kind) if destination == worker]
        assert not self.effects
        return found


@pytest.fixture
def bench() -> Iterator[LeaseBench]:
    made = LeaseBench()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


def free_cpus(bench: Bench) -> float:
    return bench.node.pool.resources.free["CPU"] / 10_000


def test_a_worker_is_leased_after_a_few_lone_tasks_and_holds_their_resources(bench: LeaseBench) -> None:
    bench.lease(bench.kind())
    assert free_cpus(bench) == 1


@pytest.mark.parametrize(
    ("options", "run_ns"),
    [
        pytest.param({"max_retries": 0}, MS, id="must not run twice"),
        pytest.param({"num_returns": 2}, MS, id="several values"),
        pytest.param({}, CONFIG.run_ahead_ns + 1, id="not short"),
    ],
)
def test_no_lease_for(bench: LeaseBench, options: dict[str, int], run_ns: int) -> None:
    kind = bench.kind(**options)
    worker = b""
    for _ in range(2 * LONE_TASKS_MIN):
        (task,) = bench.submit(kind)
        worker = worker or bench.add_worker()
        bench.runs()
        values = (NOTHING,) * options.get("num_returns", 1)
        bench.effects.clear()
        bench.say(worker, TaskDone(task, 0, values, run_ns))
        bench.take(ObjectReady)


def test_tasks_that_overlap_are_not_lone(bench: LeaseBench) -> None:
    kind = bench.kind(CPU=2)
    worker = b""
    for _ in range(2 * LONE_TASKS_MIN):
        first, second = bench.submit(kind, 2)
        worker = worker or bench.add_worker()
        for task in (first, second):
            bench.take(Run)
            bench.effects.clear()
            bench.done(worker, task)
        bench.take(ObjectReady)


def test_another_kind_begins_anew(bench: LeaseBench) -> None:
    kinds = bench.kind("f"), bench.kind("g")
    worker = b""
    for turn in range(3 * LONE_TASKS_MIN):
        worker = bench.lone_task(kinds[turn % 2], worker)


def test_a_waiting_task_ends_the_lease_and_gets_the_worker(bench: LeaseBench) -> None:
    worker, lease_id = bench.lease(bench.kind())
    (task,) = bench.submit(bench.kind("g", CPU=2))
    assert bench.told(worker, EndLease) == [EndLease(lease_id)]
    last = LeasedReply(lease_id, b"t" * 16, NOTHING, MS)
    bench.say(worker, LeaseEnded(lease_id, last))
    assert bench.take(LeaseGone) == [(DRIVER_ADDRESS, LeaseGone(lease_id, last))]
    assert bench.runs() == [(worker, task, 0)]


def test_a_lease_that_is_not_used_ends(bench: LeaseBench) -> None:
    worker, lease_id = bench.lease(bench.kind())
    bench.wait(CONFIG.lease_idle_ns - 1)
    assert not bench.effects
    bench.wait(1)
    assert bench.told(worker, EndLease) == [EndLease(lease_id)]
    bench.say(worker, LeaseEnded(lease_id))
    assert bench.take(LeaseGone) == [(DRIVER_ADDRESS, LeaseGone(lease_id))]
    assert free_cpus(bench) == 2


def test_what_the_submitter_tells_keeps_the_lease(bench: LeaseBench) -> None:
    kind = bench.kind()
    _, lease_id = bench.lease(kind)
    for _ in range(3):
        bench.wait(CONFIG.lease_idle_ns - 1)
        bench.say(DRIVER_ADDRESS, LeasedDone(lease_id, bench.spec(kind), MS, False, kept=False))
    assert not bench.effects


def test_a_returned_lease_frees_the_worker_at_once(bench: LeaseBench) -> None:
    worker, lease_id = bench.lease(bench.kind())
    bench.say(DRIVER_ADDRESS, ReturnLease(lease_id))
    assert free_cpus(bench) == 2
    bench.say(DRIVER_ADDRESS, ReturnLease(lease_id))  # once more changes nothing
    bench.say(worker, LeaseEnded(lease_id))
    assert free_cpus(bench) == 2


def test_a_return_that_crosses_the_end_is_left_to_the_worker(bench: LeaseBench) -> None:
    """The worker alone knows what it still takes: it must not run two tasks at once."""
    worker, lease_id = bench.lease(bench.kind())
    (task,) = bench.submit(bench.kind("g", CPU=2))
    assert bench.told(worker, EndLease)
    bench.say(DRIVER_ADDRESS, ReturnLease(lease_id))
    assert not bench.effects
    bench.say(worker, LeaseEnded(lease_id))
    bench.take(LeaseGone)
    assert bench.runs() == [(worker, task, 0)]


def test_the_submitter_hears_what_a_lost_worker_ran(bench: LeaseBench) -> None:
    kind = bench.kind()
    worker, lease_id = bench.lease(kind)
    spec = bench.spec(kind)
    bench.say(b"@runtime", WorkerExited(worker, -9, spec.task_id))
    assert bench.take(LeaseGone) == [(DRIVER_ADDRESS, LeaseGone(lease_id, None, spec.task_id))]
    assert free_cpus(bench) == 2


def test_a_task_that_lost_its_lease_has_one_retry_less(bench: LeaseBench) -> None:
    kind = bench.kind(max_retries=1)
    spec = Submit(ids.task_id(ids.child_prefix(JOB), 99), JOB, kind, b"", attempt=1)
    bench.say(DRIVER_ADDRESS, spec)
    worker = bench.add_worker()
    assert bench.runs() == [(worker, spec.task_id, 1)]
    bench.say(b"@runtime", WorkerExited(worker, -9, spec.task_id))
    crashed = fault_value(WORKER_CRASHED, "f", -9, 2)
    value = ObjectReady(ids.first_return_id(spec.task_id), crashed)
    assert bench.take(ObjectReady) == [(DRIVER_ADDRESS, value)]


def test_the_record_comes_before_the_value(bench: LeaseBench) -> None:
    """A kept value is followed like that of any task: its lineage lives until it is released."""
    kind = bench.kind()
    _, lease_id = bench.lease(kind)
    spec = bench.spec(kind)
    value = ids.first_return_id(spec.task_id)
    bench.say(DRIVER_ADDRESS, LeasedDone(lease_id, spec, MS, False), Publish(value, NOTHING))
    assert spec.task_id in bench.node.references.lineage
    assert bench.node.store.objects[value].holders == 1


def test_a_dropped_value_leaves_a_released_record(bench: LeaseBench) -> None:
    kind = bench.kind()
    _, lease_id = bench.lease(kind)
    spec = bench.spec(kind)
    bench.say(DRIVER_ADDRESS, LeasedDone(lease_id, spec, MS, False, kept=False))
    assert spec.task_id not in bench.node.references.lineage
    assert bench.node.lineage.links[0].pending[spec.task_id].released


def test_a_large_value_is_handed_in_by_the_worker(bench: LeaseBench) -> None:
    kind = bench.kind()
    worker, lease_id = bench.lease(kind)
    spec = bench.spec(kind)
    object_id = ids.first_return_id(spec.task_id)
    bench.say(worker, Create(object_id, 1000))
    bench.take(Created)
    bench.say(worker, LeasedDone(lease_id, spec, MS, False, value=Value(EXTENT, b"", 0, 1000)))
    ((reader, ready),) = bench.take(ObjectReady)
    assert (reader, ready.object_id) == (DRIVER_ADDRESS, object_id)
    assert bench.node.store.objects[object_id].holders == 1


def test_a_large_value_for_nobody_leaves_nothing(bench: LeaseBench) -> None:
    """The lease ended, or was never there: room that was made is given back."""
    kind = bench.kind()
    worker, lease_id = bench.lease(kind)
    spec = bench.spec(kind)
    object_id = ids.first_return_id(spec.task_id)
    bench.say(worker, Create(object_id, 1000))
    bench.take(Created)
    bench.say(worker, LeasedDone(lease_id + 1, spec, MS, False, value=Value(EXTENT, b"", 0, 1000)))
    assert bench.node.store.extents.used_bytes == 0


@pytest.mark.parametrize("lease_id", [0, 77, 2**63])
def test_messages_about_unknown_leases_change_nothing(bench: LeaseBench, lease_id: int) -> None:
    kind = bench.kind()
    worker, _ = bench.lease(kind)
    before = free_cpus(bench)
    bench.say(DRIVER_ADDRESS, ReturnLease(lease_id), LeaseReady(), LeaseEnded(lease_id))
    bench.say(worker, LeaseReady(), LeaseEnded(lease_id), ReturnLease(lease_id))
    assert free_cpus(bench) == before
