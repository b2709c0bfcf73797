"""What only zray is asked: its parts alone, and how its costs grow; a system with cases of its own.

A case here starts what it needs, a control store, nodes or the simulator, and ends it again; the system that
it is given, and started before, is nothing.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import cases, loopback, processes, systems, workload
from benchmarks.cases import CASES, START, Case, Metric, Scale, Values
from benchmarks.systems.base import System

SYSTEM = "parts"
SETTLED_TASKS = 1_000
"""Run before anything is measured in a cluster: leases are there, and caches warm."""
PENDING = (1_000, 10_000, 100_000, 1_000_000)
PENDING_LEAST = 50_000
"""Tasks of all repetitions together."""
LIVE = (1, 1_000, 10_000, 100_000)
SIMULATED = (1, 4, 16, 64)
PROCESSES = (1, 4, 16)
PER_NODE = 250
"""``Scale.growth_max`` over this are the tasks of each node: 4,000."""
RUNS = 3
"""Of the tasks of all nodes, after one that is not counted: it meets workers and averages that are new."""
PATIENT = {"ZRAY_NODE_DEATH_NS": "20000000000"}
"""Fifty processes share the cores of one machine: a node that waits for its turn is not dead."""
COPIES = 3
"""Of 1 GiB, of which the first is not counted: it meets memory that nobody touched."""
ROUNDS = 5


class Parts(System):
    """Nothing to start."""

    def versions(self) -> dict[str, str]:
        import zray

        return {"zray": zray.__version__}

    def start(self, workers: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def first_result(self) -> None:
        pass


@contextmanager
def _zray(workers: int) -> Iterator[System]:
    """zray as the comparison has it, warm."""
    system = systems.load("zray")
    system.start(workers)
    try:
        system.get_many(system.submit_many(workload.noop, SETTLED_TASKS))
        yield system
    finally:
        system.stop()


# --- without user code ----------------------------------------------------------------------------


def _become_null(seconds: float) -> int:
    """Runs in a worker, which from then on answers every task with ``None`` and looks at none; says which."""
    from zray.runtime.results import NOTHING
    from zray.runtime.worker import WorkerProcess

    def answer(worker: Any, run: Any, descriptor: Any) -> Any:
        return None, NOTHING

    WorkerProcess._execute = answer  # type: ignore[assignment, method-assign]
    time.sleep(seconds)  # so that the others are asked, too
    return os.getpid()


def null_worker(system: System, scale: Scale) -> Values:
    """Tasks whose workers answer at once: no function is looked up, no argument read, no code runs."""
    with _zray(scale.workers) as zray:
        submit = zray.bind(_become_null)
        refs = [submit(0.3) for _ in range(scale.workers)]
        if len(set(zray.get_many(refs))) < scale.workers:
            raise AssertionError("not every worker has become a null worker")
        alone = cases.task_sync(zray, scale)
        return {"p50": alone["p50"], "rate": cases.task_async_many(zray, scale)["rate"]}


# --- parts alone ----------------------------------------------------------------------------------


def shard(system: System, scale: Scale) -> Values:
    """A real shard with a log takes records of tasks, in batches as nodes send them; made before."""
    from paper_experiments.fig10b_gcs_flushing.feeder import BATCH, Feeder, control_store, record_of

    firsts = range(0, scale.records, BATCH)
    batches = [tuple(record_of(number) for number in range(first, first + BATCH)) for first in firsts]
    with control_store(0) as (endpoint, _):
        feeder = Feeder(endpoint)
        try:
            taken_s = cases.seconds_of(lambda: feeder.deliver(batches))
        finally:
            feeder.close()
    return {"rate": len(batches) * BATCH / taken_s}


def write_behind(system: System, scale: Scale) -> Values:
    """A node's machine with a shard, and without one: the difference per task, messages encoded."""
    from benchmarks.instructions import LoneNode, task_path
    from zray.protocol.codec import encode_batch
    from zray.protocol.messages import Recorded, RecordTasks

    class RecordedNode(LoneNode):
        """Its shard confirms what it is told."""

        def say(self, source: bytes, message: object) -> list[tuple[bytes, object]]:
            effects = super().say(source, message)
            records = [told for to, told in effects if to == b"shard"]
            if records:
                encode_batch(records)
            for told in records:
                if isinstance(told, RecordTasks):
                    super().say(b"shard", Recorded(told.sequence))
            return effects

    samples_us: dict[bool, list[float]] = {True: [], False: []}
    count = scale.records // 100
    for _ in range(ROUNDS):
        for has_shard, samples in samples_us.items():
            once = task_path(RecordedNode(shards=(b"shard",) if has_shard else ()))
            for number in range(count // 10):
                once(number)
            started = time.process_time_ns()
            for number in range(count // 10, count):
                once(number)
            samples.append((time.process_time_ns() - started) / 1e3 / (count - count // 10))
    differences = [with_it - without for with_it, without in zip(*samples_us.values(), strict=True)]
    return {"cost": statistics.median(differences)}


def simulator(system: System, scale: Scale) -> Values:
    """Empty tasks in the simulator: events per second of processor time; CPU of a task, so many per node."""
    from benchmarks.bench_sim import measure

    lone, each = measure(scale.simulated_tasks, 1), scale.simulated_tasks // 10
    values = {"rate": lone.events / lone.busy_s}
    for nodes in SIMULATED:
        if nodes <= scale.nodes_max:
            values[f"nodes_{nodes}"] = measure(each * nodes, nodes).busy_s / (each * nodes) * 1e6
    return values


def between_nodes(system: System, scale: Scale) -> Values:
    """A large result is pulled by another node over TCP, beside a copy between two sockets."""
    size = scale.transfer_bytes
    raw_s = loopback.raw_copies_s(size, COPIES)
    plain_s = loopback.pulls_s(size, COPIES, encrypted=False)
    encrypted_s = loopback.pulls_s(size, COPIES, encrypted=True)
    raw, plain, encrypted = (statistics.median(each[1:]) for each in (raw_s, plain_s, encrypted_s))
    gib = size / (1 << 30)
    return {"raw": gib / raw, "pull": gib / plain, "share": 100 * raw / plain, "encrypted": gib / encrypted}


# --- growth ---------------------------------------------------------------------------------------


def pending(system: System, scale: Scale) -> Values:
    """So many tasks submitted as fast as they are taken, then all got: each in a cluster that is new."""
    values: Values = {}
    for count in PENDING:
        if count > scale.growth_max:
            break
        with _zray(scale.workers) as zray:
            rounds = max(1, PENDING_LEAST // count)  # a short one alone would be noise

            run = functools.partial(_submit_and_get, zray, count)
            taken_s = [cases.seconds_of(run) for _ in range(rounds)]
            values[f"tasks_{count}"] = statistics.median(taken_s) / count * 1e6
    return values


def _submit_and_get(system: System, count: int) -> None:
    system.get_many(system.submit_many(workload.noop, count))


def live(system: System, scale: Scale) -> Values:
    """What a task costs, many in flight, while references to the results of so many others are held."""
    values: Values = {}
    with _zray(scale.workers) as zray:
        held: list[Any] = []
        for count in LIVE:
            if count > scale.growth_max:
                break
            held += zray.submit_many(workload.noop, count - len(held))
            zray.get_many(held)
            values[f"objects_{count}"] = 1e6 / cases.task_async(zray, scale)["rate"]
    return values


def node_processes(system: System, scale: Scale) -> Values:
    """Processor time of a task, all processes together, where each of the nodes runs those of a client."""
    each = scale.growth_max // PER_NODE
    return {f"nodes_{nodes}": _node_processes(nodes, each) for nodes in PROCESSES if nodes <= scale.nodes_max}


def _node_processes(nodes: int, each: int) -> float:
    import zray
    from benchmarks.systems.ray_like import Submitter
    from zray.cluster_utils import Cluster
    from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    run, used_us = processes.own_run(), []
    with Cluster(
        initialize_head=True, connect=True, head_node_args={"num_cpus": 1}, environment=PATIENT
    ) as cluster:
        for _ in range(nodes - 1):
            cluster.add_node(wait=False, num_cpus=1)
        cluster.wait_for_nodes()
        places = [
            NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in cluster.list_all_nodes()
        ]
        cls = zray.remote(Submitter)
        actors = [cls.options(num_cpus=0, scheduling_strategy=place).remote() for place in places]
        for _ in range(1 + RUNS):
            before = sum(processes.cpu_ns(processes.family(run)).values())
            zray.get([actor.submit_and_count.remote("zray", each) for actor in actors])
            used = sum(processes.cpu_ns(processes.family(run)).values()) - before
            used_us.append(used / 1e3 / (each * nodes))
        zray.shutdown()
    return statistics.median(used_us[1:])


# --- the list -------------------------------------------------------------------------------------


def _growth(title: str, key: str, steps: tuple[int, ...]) -> tuple[Metric, ...]:
    return tuple(Metric(f"{key}_{count}", title.format(f"{count:,}"), "us") for count in steps)


PARTS = (
    Case("null_worker", (
        Metric("p50", "null worker: task round trip, p50", "us"),
        Metric("rate", "null worker: tasks, {tasks_many:,} in flight", "1/s", higher_is_better=True),
    ), null_worker, 60.0),
    Case("shard", (Metric("rate", "GCS shard, batched records", "1/s", higher_is_better=True),), shard, 60.0),
    Case("write_behind", (Metric("cost", "write-behind, per task", "us"),), write_behind, 60.0),
    Case("simulator", (
        Metric("rate", "simulator events, per CPU second", "1/s", higher_is_better=True),
        *_growth("CPU per task, {} simulated nodes", "nodes", SIMULATED),
    ), simulator, 120.0),
    Case("between_nodes", (
        Metric("raw", "(1 GiB between two sockets)", "GiB/s", higher_is_better=True),
        Metric("pull", "1 GiB between nodes", "GiB/s", higher_is_better=True),
        Metric("share", "1 GiB between nodes, of the sockets'", "%", higher_is_better=True),
        Metric("encrypted", "1 GiB between nodes, encrypted", "GiB/s", higher_is_better=True),
    ), between_nodes, 120.0),
    Case("pending", _growth("time per task, {} in flight", "tasks", PENDING), pending, 180.0),
    Case("live", _growth("time per task, {} live objects", "objects", LIVE), live, 60.0),
    Case("node_processes", _growth("CPU per task, {} real nodes", "nodes", PROCESSES), node_processes, 180.0),
)  # fmt: skip

ALL_CASES = (*CASES, *PARTS)


def cases_of(system: str) -> tuple[Case, ...]:
    """What a system is asked."""
    return (START, *PARTS) if system == SYSTEM else CASES
