"""The workers of a node alone: who is idle, what is held, how many there should be."""

from __future__ import annotations

import pytest

from tests.core.conftest import Outbox
from zray.config import Config
from zray.core.machine import WORKER_POOL
from zray.core.resources import ResourcePool, demand_from
from zray.core.worker_pool import BUSY, DEDICATED, IDLE, STARTING, TaskClass, TaskEntry, Worker, WorkerPool
from zray.errors import InvariantError
from zray.protocol.local_messages import KillWorker, StartWorker
from zray.protocol.messages import (
    Describe,
    Submit,
)
from zray.protocol.user_messages import SeeGpus

NODE_ID = b"n" * 16
S = 1_000_000_000
CONFIG = Config(workers_max=3, worker_idle_ns=5 * S, worker_start_timeout_ns=30 * S)


def worker_id(number: int) -> bytes:
    return NODE_ID[:12] + number.to_bytes(4, "big")


def task_class(job: bytes = b"job", **resources: float) -> TaskClass:
    demand = demand_from(resources or {"CPU": 1})
    return TaskClass(Describe(b"d" * 16, b"f" * 16, "f", 1, demand, 3), job, 1)


def task(of: TaskClass) -> TaskEntry:
    return TaskEntry(Submit(b"t" * 16, b"p" * 16, b"d" * 16, b""), of, b"driver")


class Pool:
    """A pool on a node with 2 CPUs and a GPU, checked after every look at what it said."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        resources = ResourcePool(demand_from({"CPU": 2, "GPU": 1}))
        self.machine = WorkerPool(out, resources=resources, config=CONFIG, node_id=NODE_ID)

    def said(self) -> list[object]:
        self.machine.check()
        taken = self.out.take()
        seen = [(to, message.numbers) for to, message in taken if isinstance(message, SeeGpus)]
        assert all(self.machine.workers[to].sees == numbers for to, numbers in seen)
        others = [effect for effect in taken if not isinstance(effect[1], SeeGpus)]
        assert all(destination == WORKER_POOL for destination, _ in others)
        return [message for _, message in others]

    def idle(self, now_ns: int = 0) -> Worker:
        """A worker that was started and introduced itself."""
        worker = self.machine.start(now_ns)
        self.machine.introduced(now_ns, worker, "ipc://w")
        assert self.said() == [StartWorker(worker.worker_id)]
        return worker

    def busy(self, of: TaskClass) -> Worker:
        worker = self.idle()
        assert self.machine.idle_for(of.job_id) is worker
        self.occupy(worker, of)
        return worker

    def occupy(self, worker: Worker, of: TaskClass) -> None:
        self.machine.occupy(0, worker, of)
        worker.queue[b"t" * 16] = task(of)
        assert not self.said()

    def vacate(self, worker: Worker, now_ns: int = 0) -> None:
        worker.queue.clear()
        self.machine.vacate(now_ns, worker)

    @property
    def free(self) -> dict[str, int]:
        return self.machine.resources.free


@pytest.fixture
def pool(out: Outbox) -> Pool:
    return Pool(out)


# --- a worker's life -----------------------------------------------------------------------------


def test_a_worker_starts_works_and_rests(pool: Pool) -> None:
    worker = pool.machine.start(0)
    assert pool.said() == [StartWorker(worker_id(1))]
    assert (worker.state, pool.machine.starting) == (STARTING, 1)
    assert pool.machine.idle_for(b"job") is None
    pool.machine.introduced(0, worker, "ipc://w")
    pool.machine.introduced(0, worker, "ipc://other")
    assert (worker.state, worker.endpoint, pool.machine.starting) == (IDLE, "ipc://w", 0)
    assert pool.machine.idle_for(b"job") is worker
    pool.occupy(worker, task_class(CPU=1.5))
    assert (worker.state, pool.free) == (BUSY, {"CPU": 5_000, "GPU": 10_000})
    pool.vacate(worker)
    assert (worker.state, pool.free) == (IDLE, {"CPU": 20_000, "GPU": 10_000})
    assert not pool.said()


def test_a_worker_belongs_to_its_first_job(pool: Pool) -> None:
    first = pool.busy(task_class(b"one"))
    pool.vacate(first)
    fresh = pool.idle()
    assert pool.machine.idle_for(b"two") is fresh
    assert pool.machine.idle_for(b"two") is None
    assert pool.machine.idle_for(b"one") is first


def test_the_worker_that_was_busy_last_is_taken_first(pool: Pool) -> None:
    kind = task_class()
    workers = [pool.busy(kind), pool.busy(kind)]
    for worker in workers:
        pool.vacate(worker)
    assert pool.machine.idle_for(b"job") is workers[1]


def test_an_actor_keeps_what_it_holds_until_it_is_gone(pool: Pool) -> None:
    worker = pool.busy(task_class(CPU=1, GPU=1))
    pool.machine.dedicate(worker, b"actor")
    assert (worker.state, pool.free) == (DEDICATED, {"CPU": 10_000, "GPU": 0})
    pool.machine.remove(worker)
    assert pool.free == {"CPU": 20_000, "GPU": 10_000}
    assert not pool.said()


# --- blocked workers -----------------------------------------------------------------------------


def test_a_blocked_worker_lends_its_cpus_and_never_its_gpu(pool: Pool) -> None:
    worker = pool.busy(task_class(CPU=1, GPU=1))
    pool.machine.lend(worker)
    pool.machine.lend(worker)
    assert worker.blocked
    assert pool.free == {"CPU": 20_000, "GPU": 0}
    pool.machine.take_back(worker)
    pool.machine.take_back(worker)
    assert not worker.blocked
    assert pool.free == {"CPU": 10_000, "GPU": 0}
    assert not pool.said()


def test_who_wakes_goes_on_at_once_even_without_a_free_cpu(pool: Pool) -> None:
    blocked = pool.busy(task_class(CPU=2))
    pool.machine.lend(blocked)
    other = pool.busy(task_class(CPU=2))
    pool.machine.take_back(blocked)
    assert pool.free["CPU"] == -20_000
    pool.vacate(other)
    assert pool.free["CPU"] == 0
    assert not pool.said()


def test_a_worker_without_cpus_blocks_too(pool: Pool) -> None:
    worker = pool.busy(TaskClass(Describe(b"d" * 16, b"f" * 16, "f", 1, (), 3), b"job", 1))
    pool.machine.lend(worker)
    assert worker.blocked
    pool.vacate(worker)
    assert not worker.blocked
    assert not pool.said()


def test_a_worker_that_dies_blocked_gives_back_the_rest(pool: Pool) -> None:
    worker = pool.busy(task_class(CPU=1, GPU=1))
    pool.machine.lend(worker)
    pool.machine.remove(worker)
    assert pool.free == {"CPU": 20_000, "GPU": 10_000}
    assert not pool.said()


def test_an_idle_worker_lends_nothing(pool: Pool) -> None:
    pool.machine.lend(pool.idle())
    assert pool.free["CPU"] == 20_000
    assert not pool.said()


# --- how many ------------------------------------------------------------------------------------


def test_as_many_workers_are_wanted_as_could_run_now(pool: Pool) -> None:
    half, gpu = task_class(CPU=0.5), task_class(GPU=1)
    for kind, count in ((half, 9), (gpu, 9)):
        kind.ready.extend(task(kind) for _ in range(count))
    assert pool.machine.wanted([half]) == 4
    assert pool.machine.wanted([half, gpu]) == 5
    pool.machine.start(0)
    assert pool.machine.wanted([half, gpu]) == 4
    assert pool.said() == [StartWorker(worker_id(1))]


def test_nothing_is_wanted_for_what_has_no_room(pool: Pool) -> None:
    kind = task_class(CPU=2)
    pool.busy(kind)
    unknown = task_class(magic=1)
    for one in (kind, unknown):
        one.ready.append(task(one))
    assert pool.machine.wanted([kind, unknown]) == 0


def test_the_pool_is_bounded(pool: Pool) -> None:
    pool.machine.start_up_to(0, 9)
    assert pool.said() == [StartWorker(worker_id(number)) for number in (1, 2, 3)]
    pool.machine.start_up_to(0, 1)
    assert not pool.said()


def test_a_full_pool_ends_idle_workers_that_nobody_can_use(pool: Pool) -> None:
    kind = task_class(b"old", CPU=0.5)
    old = [pool.busy(kind) for _ in range(3)]
    for worker in old:
        pool.vacate(worker)
    pool.machine.start_up_to(0, 1)
    assert pool.said() == [KillWorker(old[0].worker_id)]
    pool.machine.start_up_to(0, 1)
    assert not pool.said(), "one is on its way out already"
    pool.machine.remove(old[0])
    pool.machine.start_up_to(0, 1)
    assert pool.said() == [StartWorker(worker_id(4))]


def test_surplus_workers_end_after_a_while_the_longest_idle_first(pool: Pool) -> None:
    workers = [pool.idle(now_ns) for now_ns in (0, 1 * S, 2 * S)]
    assert pool.machine.surplus(5 * S - 1, keep=1) == []
    assert pool.machine.surplus(5 * S, keep=1) == workers[:1]
    assert pool.machine.surplus(9 * S, keep=1) == workers[:2]


def test_a_worker_that_never_says_hello_is_overdue(pool: Pool) -> None:
    assert not pool.machine.in_doubt(keep=2)
    worker = pool.machine.start(0)
    assert pool.machine.in_doubt(keep=2)
    assert pool.machine.overdue(30 * S - 1) == []
    assert pool.machine.overdue(30 * S) == [worker]
    assert pool.said() == [StartWorker(worker.worker_id)]


# --- the doomed ----------------------------------------------------------------------------------


def test_a_doomed_worker_gets_nothing_new(pool: Pool) -> None:
    kind = task_class()
    busy, late = pool.busy(kind), pool.machine.start(0)
    idle = pool.machine.start(0)
    pool.machine.introduced(0, idle, "ipc://w")
    pool.out.clear()
    for worker in (busy, late, idle, idle):
        pool.machine.kill(worker)
    assert pool.said() == [KillWorker(worker.worker_id) for worker in (busy, late, idle)]
    pool.vacate(busy)
    pool.machine.introduced(0, late, "ipc://w")
    assert pool.machine.idle_for(b"job") is None
    for worker in (busy, late, idle):
        pool.machine.remove(worker)
    assert (pool.machine.doomed, pool.machine.starting) == (0, 0)
    assert not pool.said()


def test_check_notices_a_resource_that_went_astray(pool: Pool) -> None:
    pool.free["CPU"] -= 1
    with pytest.raises(InvariantError, match="I4"):
        pool.machine.check()
