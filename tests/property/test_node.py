"""A whole node under random interleavings: whatever happens, it heals, loses nothing and leaves nothing."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.node_world import ACTOR_KIND, GRANULE, INFEASIBLE, KINDS, MS, PlayedWorker, Process, World
from zray.ids import short
from zray.protocol.messages import ACTOR, EXTENT, KillActor, WatchActor

NUMBER = st.integers(0, 1 << 16)
SIZES = (GRANULE, 3 * GRANULE, 6 * GRANULE, 16 * GRANULE, 17 * GRANULE)

GPU = KINDS[3].descriptor_id
TURNS_MAX = 300


class Chaos:
    """What can happen around a node; each deed picks who and what by three numbers."""

    def __init__(self) -> None:
        self.world = World()
        self.drivers = [self.world.add_driver(1), self.world.add_driver(2)]
        for driver in self.drivers:
            self.world.deliver(driver, 1)
        self.bad: dict[bytes, None] = {}  # results that nobody may wait for: infeasible tasks, handles

    def do(self, deed: str, a: int, b: int, c: int) -> None:
        getattr(self, deed)(a, b, c)

    # --- picking -----------------------------------------------------------------------------------

    def process(self, number: int) -> Process:
        """Mostly a driver, while there are some."""
        processes = list(self.world.processes.values())
        return processes[number % len(processes)]

    def author(self, number: int) -> Process | None:
        """A driver, or a worker that runs a task."""
        authors = [p for p in self.world.processes.values() if not isinstance(p, PlayedWorker) or p.busy]
        return authors[number % len(authors)] if authors else None

    def worker(self, number: int, *, busy: bool = False) -> PlayedWorker | None:
        workers = [worker for worker in self.world.workers if worker.busy or not busy]
        return workers[number % len(workers)] if workers else None

    def some(self, process: Process, number: int) -> tuple[bytes, ...]:
        """None, one or two of the objects that a process refers to."""
        held = [object_id for object_id in process.held if object_id not in process.promised]
        if not held or number % 3 == 0:
            return ()
        return tuple(held[(number // 3 + step) % len(held)] for step in range(1 + number % 2))

    def finite(self, object_ids: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(object_id for object_id in object_ids if object_id not in self.bad)

    # --- what links, disk and time do --------------------------------------------------------------

    def deliver(self, a: int, b: int, c: int) -> None:
        self.world.deliver(self.process(a), 1 + b % 6)

    def hear(self, a: int, b: int, c: int) -> None:
        process = self.process(a)
        for _ in range(min(1 + b % 6, len(process.inbox))):
            process.hear()

    def wait(self, a: int, b: int, c: int) -> None:
        self.world.now_ns += (0, 1, 5, 25)[a % 4] * MS
        self.world.pump([])

    def disk(self, a: int, b: int, c: int) -> None:
        if self.world.disk:
            self.world.do_disk(works=a % 3 != 0)

    def runtime(self, a: int, b: int, c: int) -> None:
        if self.world.runtime:
            self.world.do_runtime()

    def shard(self, a: int, b: int, c: int) -> None:
        if self.world.shard:
            self.world.do_shard()

    def parcel(self, a: int, b: int, c: int) -> None:
        if self.world.parcels:
            self.world.pass_parcel()

    # --- what drivers and tasks do -----------------------------------------------------------------

    def submit(self, a: int, b: int, c: int) -> None:
        process = self.author(a)
        if process is None:
            return
        kind = b % len(KINDS)
        if kind == INFEASIBLE and isinstance(process, PlayedWorker):
            kind = 0
        deps = () if kind >= ACTOR_KIND else self.finite(self.some(process, b // 16))
        returns = process.submit(KINDS[kind], deps, self.some(process, c))
        if kind >= ACTOR_KIND:
            self.bad.update(dict.fromkeys(returns))

    def put(self, a: int, b: int, c: int) -> None:
        process = self.author(a)
        if process is None:
            return
        inner = self.some(process, c)
        if b % 2:
            process.create(process.new_put_id(), SIZES[b // 2 % len(SIZES)], inner)
        else:
            process.publish(inner)

    def get(self, a: int, b: int, c: int) -> None:
        driver = self.drivers[a % 2]
        if driver.alive:
            for object_id in self.finite(self.some(driver, b)):
                driver.get(object_id, fetch=c % 3 != 0)

    def release(self, a: int, b: int, c: int) -> None:
        driver = self.drivers[a % 2]
        if driver.alive and not driver.creating:
            for object_id in dict.fromkeys(self.some(driver, b)):
                driver.release(object_id)

    def unpin(self, a: int, b: int, c: int) -> None:
        if self.drivers[a % 2].alive:
            self.drivers[a % 2].unpin()

    def promise(self, a: int, b: int, c: int) -> None:
        process = self.author(a)
        if process is not None and not process.promised:
            process.promise()
        elif process is not None:
            process.keep_promise()

    def hand(self, a: int, b: int, c: int) -> None:
        process, other = self.process(a), self.process(b)
        for object_id in self.some(process, c)[:1]:
            if object_id in process.refs and other.address in self.world.node.clients:
                process.hand(other.address, object_id)

    def actor(self, a: int, b: int, c: int) -> None:
        driver = self.drivers[a % 2]
        actors = list(self.world.node.actors.entries)
        if actors and driver.alive:
            driver.say((WatchActor, WatchActor, KillActor)[c % 3](actors[b % len(actors)]))

    # --- what workers do ---------------------------------------------------------------------------

    def introduce(self, a: int, b: int, c: int) -> None:
        new = [worker for worker in self.world.workers if not worker.introduced]
        if new:
            self.world.introduce(new[a % len(new)])

    def start(self, a: int, b: int, c: int) -> None:
        ready = [worker for worker in self.world.workers if worker.runs and worker.running is None]
        if ready:
            ready[a % len(ready)].start()

    def finish(self, a: int, b: int, c: int) -> None:
        worker = self.worker(a, busy=True)
        if worker is not None:
            inner = [o for o in self.some(worker, c) if worker.cell not in self.world.ancestry(o)]
            worker.finish(failed=b % 4 == 0, contained=tuple(inner))

    def finish_large(self, a: int, b: int, c: int) -> None:
        worker = self.worker(a, busy=True)
        if worker is None or worker.running is None:
            return
        if worker.described[worker.running.descriptor_id].kind != ACTOR:
            worker.finish_large(SIZES[b % (len(SIZES) - 1)])

    def finish_created(self, a: int, b: int, c: int) -> None:
        writing = [worker for worker in self.world.workers if worker.finishing is not None]
        if writing:
            writing[a % len(writing)].finish_created()

    def block(self, a: int, b: int, c: int) -> None:
        worker = self.worker(a, busy=True)
        if worker is None or worker.running is None or worker.running.descriptor_id == GPU:
            return  # a GPU is never lent: tasks that wait for each other's would wait for ever
        for object_id in self.finite(self.some(worker, b))[:1]:
            if worker.cell not in self.world.ancestry(object_id):
                worker.block_on(object_id)

    def let_go(self, a: int, b: int, c: int) -> None:
        worker = self.worker(a)
        if worker is not None and worker.running is None and not worker.runs:
            worker.release_all()

    def crash(self, a: int, b: int, c: int) -> None:
        worker = self.worker(a)
        if worker is not None and b % 8 == 0:
            self.world.end(worker, -9 if b % 16 else 1, delivered=c % 8)

    def obey(self, a: int, b: int, c: int) -> None:
        ending = [w for w in self.world.workers if w.doomed or (w.leaving and w.running is None)]
        if ending:
            worker = ending[a % len(ending)]
            self.world.end(worker, -9 if worker.doomed else 0, delivered=c % 8)

    def leave(self, a: int, b: int, c: int) -> None:
        if self.drivers[1].alive and a % 64 == 0:
            self.world.leave(self.drivers[1])


LINKS = ("deliver", "hear", "introduce", "start")
DEEDS = (
    *LINKS, *LINKS, *LINKS, "wait", "disk", "runtime", "shard", "parcel", "submit", "submit", "put", "get",
    "get", "release", "unpin", "promise", "hand", "actor", "finish", "finish_large", "finish_created",
    "block", "let_go", "crash", "obey", "leave",
)  # fmt: skip


# --- the end -------------------------------------------------------------------------------------


def heal(world: World) -> None:
    """Nothing fails any more: everything ends, every question is answered, nothing is left."""
    node = world.node
    for _ in range(TURNS_MAX):
        turn(world)
        unfinished = node.scheduler.tasks.keys() - node.scheduler.forwarded.keys()
        open_questions = [p for p in world.processes.values() if +(p.asked - p.answered)]
        if not unfinished and not open_questions and quiet(world):
            break
    else:
        raise AssertionError(f"not healed: {list(node.scheduler.tasks)} {world.processes}")
    for process in world.processes.values():
        for object_id, asked in process.asked.items():
            answered = process.answered[object_id]
            told = object_id in process.submitted and process.values[object_id][0] != EXTENT
            may_be_more = object_id in process.stale
            assert answered == asked + told or (may_be_more and answered >= asked), short(object_id)
    for _ in range(TURNS_MAX):
        for process in world.processes.values():
            process.release_all()
        turn(world)
        if quiet(world) and not any(process.held for process in world.processes.values()):
            break
    assert not node.scheduler.tasks.keys() - node.scheduler.forwarded.keys()
    for driver in world.drivers:
        world.leave(driver)
    for _ in range(10):
        turn(world)
    world.now_ns += world.node.config.stranger_patience_ns  # what a dying worker asked for in vain
    world.pump([])
    assert_empty(world)


def quiet(world: World) -> bool:
    """Whether no message is under way."""
    links = [p.inbox or p.outbox for p in world.processes.values()]
    return not any(links) and not (world.disk or world.runtime or world.shard or world.parcels)


def turn(world: World) -> None:
    """Everybody does what there is to do."""
    world.now_ns += 25 * MS
    world.pump([])
    while world.disk:
        world.do_disk()
    while world.runtime:
        world.do_runtime()
    while world.shard:
        world.do_shard()
    while world.parcels:
        world.pass_parcel()
    for process in list(world.processes.values()):
        while process.promised:
            process.keep_promise()
        if isinstance(process, PlayedWorker):
            finish_work(world, process)
        else:
            process.unpin()
        world.deliver(process, 100)
        while process.inbox:
            process.hear()


def finish_work(world: World, worker: PlayedWorker) -> None:
    """A healthy worker does what it was sent, and ends when it is told."""
    if worker.doomed or (worker.leaving and worker.running is None and not worker.runs):
        world.end(worker, -9 if worker.doomed else 0, delivered=100)
        return
    if not worker.introduced:
        world.introduce(worker)
    if worker.finishing is not None:
        worker.finish_created()
    elif worker.busy:
        worker.finish()
    if worker.running is None and worker.runs:
        worker.start()
    if worker.running is None and not worker.runs:
        worker.release_all()


def assert_empty(world: World) -> None:
    """No trace of any job is left."""
    node = world.node
    assert not node.scheduler.tasks
    assert not node.scheduler.forwarded
    assert not node.scheduler.ready
    assert not node.scheduler.jobs
    assert not node.scheduler.classes
    assert not world.forwards
    assert not node.store.objects
    assert node.store.extents.used_bytes == 0
    assert node.store.spilled_bytes == 0
    assert not world.files
    assert not node.store.mapped
    assert not node.store.creating
    assert not node.store.strangers
    assert not node.store.detached_spills
    assert not node.store.spilling
    assert node.pool.resources.free == node.pool.resources.total
    assert not node.references.lineage
    assert not any(node.references.held.values())
    assert not node.references.handed
    assert not node.lineage.uncommitted


class AnyNode(RuleBasedStateMachine):
    """Drivers, workers, disk, shard and time move at random; then everything is finished and released."""

    @initialize()
    def begin(self) -> None:
        self.chaos = Chaos()

    @rule(deed=st.sampled_from(DEEDS), a=NUMBER, b=NUMBER, c=NUMBER)
    def act(self, deed: str, a: int, b: int, c: int) -> None:
        self.chaos.do(deed, a, b, c)

    def teardown(self) -> None:
        if hasattr(self, "chaos"):
            heal(self.chaos.world)


AnyNode.TestCase.settings = settings(max_examples=25, stateful_step_count=60, deadline=None)
TestAnyNode = AnyNode.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_long_random_walk(seed: int) -> None:
    """Deeper than hypothesis goes: stores fill up, jobs end in mid-flight, workers come and go."""
    walk(seed, 400)


def walk(seed: int, steps: int) -> World:
    """One random walk and its healing; a failing seed replays exactly."""
    random, chaos = Random(seed), Chaos()
    for _ in range(steps):
        chaos.do(random.choice(DEEDS), *(random.randrange(1 << 16) for _ in range(3)))
    heal(chaos.world)
    return chaos.world
