"""Figure 10b: what the control store holds while tasks stay live, with and without flushing their lineage.

The memory of the control store's own process is sampled while it is given the records of more and more tasks
whose results somebody still wants: all of them may have to run again. Then a program on real nodes loses what
it has made, with lineage that was flushed, and computes the same as without. In virtual time the same is done
with the machines alone: their own estimate of memory, and a node that dies.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import zray
from paper_experiments.common.local import own_memory_bytes
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig10b_gcs_flushing.feeder import Feeder, control_store
from sim.cluster import Cluster
from sim.kernel import S
from sim.programs import Await, Compute, Fetch, Program, Spawn
from sim.scenario import ClusterPart, PhasesPart, Scenario
from sim.workload import make_blob, tag_of
from zray.cluster_utils import Cluster as LocalCluster
from zray.core.flushing_shard import FlushingShard

SAMPLES = 40
SETTLED_SHARE = 0.4
"""The first part of a run fills memory up to the limit, and buffers: it is no growth."""
READ_BACK = 500
OBJECT_BYTES = 40_000
"""Too large to be inline: there is one copy, on the node that made it."""
PAPER_TASKS = 50_000_000
TASK_NS = 100_000
PAUSE_S = 10
LIMIT_S = 100_000


class Growth(NamedTuple):
    """One run: what was sampled, how fast records were taken, how many rows came back wrong."""

    tasks: list[int]
    memory_bytes: list[float]
    records_per_s: float
    wrong: int

    @property
    def bytes_per_task(self) -> float:
        """The slope of memory after the first part, by its ends."""
        first = next(n for n, tasks in enumerate(self.tasks) if tasks >= SETTLED_SHARE * self.tasks[-1])
        grown = self.memory_bytes[-1] - self.memory_bytes[first]
        return grown / max(1, self.tasks[-1] - self.tasks[first])


# --- real processes ------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """A real control store under live tasks, then real nodes of which one dies."""
    count = run.pick("live_tasks", tiny=30_000, small=300_000, paper=5_000_000)
    limit = run.pick("memory_max_bytes", tiny=2_000_000, small=16_000_000, paper=256_000_000)
    found = {}
    for name, memory_max in run.steps((("flush", limit), ("no flush", 0)), "variant"):
        growth = found[name] = _feed(count, memory_max)
        for tasks, memory_bytes in zip(growth.tasks, growth.memory_bytes, strict=True):
            run.point("memory", name, tasks, memory_bytes / 1e6)
        run.quantity(f"records_per_s {name}", growth.records_per_s)
        run.quantity(f"memory_mb {name}", growth.memory_bytes[-1] / 1e6)
    chain = run.pick("chain", tiny=10, small=40, paper=200)
    results = [_rebuilt(chain, memory_max) for memory_max in (1, 0)]
    _conclude(run, found["flush"], found["no flush"], results)
    run.note(
        f"{count:,} tasks are live at once; the paper submits {PAPER_TASKS:,}, one after the other: compared "
        "are slopes."
    )


def _feed(count: int, memory_max: int) -> Growth:
    with control_store(memory_max) as (endpoint, process):
        feeder = Feeder(endpoint)
        try:
            tasks, memory = [0], [float(own_memory_bytes(process.pid))]

            def sample(fed: int) -> None:
                tasks.append(fed)
                memory.append(float(own_memory_bytes(process.pid)))

            took_s = feeder.feed(count, max(1, count // SAMPLES), sample)
            rng = random.Random(1)
            wrong = feeder.wrong_rows([rng.randrange(count) for _ in range(READ_BACK)])
            sample(count)
        finally:
            feeder.close()
    return Growth(tasks, memory, count / took_s, wrong)


def link(before: tuple[int, bytes], number: int) -> tuple[int, bytes]:
    """One of a chain of tasks."""
    return before[0] + number, bytes(OBJECT_BYTES)


def _rebuilt(count: int, memory_max: int) -> list[int]:
    """What a chain of tasks gives whose node dies before anybody has read a result of it."""
    function: Any = zray.remote(max_retries=-1, num_cpus=0.1, resources={"other": 0.01})(link)
    small: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 128 << 20}
    settings = {"ZRAY_GCS_MEMORY_MAX": str(memory_max), "ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
    with LocalCluster(True, head_node_args=small, environment=settings) as cluster:
        victim = cluster.add_node(resources={"other": 1}, **small)
        with cluster.connect():
            refs = [function.remote((0, b""), 0)]
            for number in range(1, count):
                refs.append(function.remote(refs[-1], number))
            zray.wait(refs, num_returns=count, timeout=120, fetch_local=False)
            cluster.add_node(resources={"other": 1}, **small)
            cluster.remove_node(victim, allow_graceful=False)
            return [zray.get(ref, timeout=120)[0] for ref in refs]


def _conclude(run: ExperimentRun, flush: Growth, kept: Growth, results: list[list[int]]) -> None:
    run.quantity("bytes_per_task_kept", kept.bytes_per_task)
    run.quantity("growth_share", flush.bytes_per_task / kept.bytes_per_task)
    run.quantity("wrong_rows", flush.wrong + kept.wrong)
    with_flush, without = results
    expected = [number * (number + 1) // 2 for number in range(len(without))]
    run.quantity("wrong_results", sum(a != b for got in results for a, b in zip(got, expected, strict=True)))
    run.quantity("flushed_rebuilds", sum(a == b for a, b in zip(with_flush, expected, strict=True)))


# --- virtual time --------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """The machines, with a model of the disk: three nodes hold results, and one of them dies."""
    count = run.pick("live_tasks", tiny=600, small=10_000, paper=100_000)
    limit = run.pick("memory_max_bytes", tiny=50_000, small=500_000, paper=5_000_000)
    found = {}
    for name, memory_max in run.steps((("flush", limit), ("no flush", 1 << 40)), "variant"):
        found[name] = _simulated(run, name, count, memory_max)
    flush, kept = found["flush"], found["no flush"]
    run.quantity("bytes_per_task_kept", kept.bytes_per_task)
    run.quantity("growth_share", flush.bytes_per_task / kept.bytes_per_task)
    run.quantity("wrong_results", flush.wrong + kept.wrong)


def hold(count: int) -> Program:
    """Tasks whose results are held, and read long after they were made."""
    refs = []
    for number in range(count):
        ref = yield Spawn("make_blob", (OBJECT_BYTES, number, TASK_NS))
        refs.append(ref)
    yield Await(refs, count)
    yield Compute(PAUSE_S * S)
    tags = []
    for ref in refs:
        tag = yield Spawn("tag_of", (ref,))
        tags.append(tag)
    return (yield Fetch(tags))


def _simulated(run: ExperimentRun, name: str, count: int, memory_max: int) -> Growth:
    scenario = Scenario(
        "fig10b", strict=False, check_every=10_000_000, phases=PhasesPart(liveness_s=LIMIT_S),
        cluster=ClusterPart(nodes=3, cpus=8, arena_kib=8_000_000, gcs_memory_bytes=memory_max),
    )  # fmt: skip
    functions: dict[str, Any] = {"make_blob": make_blob, "tag_of": tag_of}
    cluster = Cluster(scenario, 0, [lambda: hold(count)], functions=functions)
    cluster.boot()
    tasks, memory = [0], [0.0]
    every = max(1, count // SAMPLES)
    while cluster.tasks_run < count:
        _run_until(cluster, min(count, (cluster.tasks_run // every + 1) * every))
        tasks.append(cluster.tasks_run)
        memory.append(_memory_bytes(cluster))
        run.point("estimate", name, tasks[-1], memory[-1] / 1e6)
    cluster.kernel.run_until(cluster.kernel.now_ns + S, lambda: not cluster.unfinished)
    cluster.crash_node(cluster.nodes[-1])
    cluster.kernel.run_until(LIMIT_S * S, lambda: not cluster.unfinished)
    run.quantity("flushed_rebuilds" if memory_max < 1 << 40 else "rebuilds", cluster.tasks_run - 2 * count)
    wrong = sum(a != b for a, b in zip(cluster.drivers[0].result, range(count), strict=True))
    return Growth(tasks, memory, count / (cluster.kernel.now_ns / S), wrong)


def _run_until(cluster: Cluster, tasks: int) -> None:
    cluster.kernel.run_until(LIMIT_S * S, lambda: cluster.tasks_run >= tasks or not cluster.unfinished)
    if cluster.tasks_run < tasks:
        raise TimeoutError(f"{cluster.tasks_run} of {tasks} tasks ran")


def _memory_bytes(cluster: Cluster) -> float:
    """What the shard thinks its rows take."""
    [shard] = [host.shard for host in cluster.shards]
    assert isinstance(shard, FlushingShard)
    return float(shard.rows.memory_bytes + shard.rows.flushed.memory_bytes)
