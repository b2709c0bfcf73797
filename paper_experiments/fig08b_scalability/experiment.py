"""Figure 8b: empty tasks per second of 10 to 100 nodes, and what would stop them from growing.

Every node has a driver of its own that submits its tasks in windows that its node can keep, as the nested
tasks of the paper do. The counterfactuals run the same program with one scheduler for all tasks, a threshold
of zero, windows above the threshold, one driver for all nodes, and one shard for all lineage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig08b_scalability.measured_costs import PerTask, listening, per_task
from sim.cluster import Cluster
from sim.costs import Costs
from sim.kernel import MS, S
from sim.programs import Compute, Fetch, Program, Ref, Spawn
from sim.real.clusters import real_cluster
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.config import Config
from zray.errors import ZrayError

NODES = (10, 20, 30, 40, 50, 60, 100)
CPUS = 64
WINDOW = 100
"""Below the threshold of such a node, which keeps two tasks per CPU."""
BURST = 500
NODES_PER_SHARD = 5
BEGIN_NS = 600 * MS
"""All workers are there by then, and nodes know each other."""
LIMIT_NS = 1_000 * S
NETWORK_US = 100
STORE_BYTES = 128 << 20
WORKLOAD = "paper_experiments.fig08b_scalability.workload:measure"
AS_IT_IS = "as it is"
Policy = Literal["paper", "centralised", "threshold_zero"]


class StalledError(ZrayError):
    """A simulated run did not come to an end."""


class Setting(NamedTuple):
    """One run."""

    nodes: int
    tasks: int
    """Of every driver."""
    shards: int
    policy: Policy = "paper"
    window: int = WINDOW
    drivers: int = 0
    """0: one per node."""


class Outcome(NamedTuple):
    """What came of it."""

    tasks_per_s: float
    forwards: int
    store_busy: float
    """Share of its time in which the busiest process of the control store worked."""


def nothing() -> None:
    """An empty task."""


def submit_window(count: int) -> Program:
    """So many tasks at once, and wait for them."""
    refs: list[Ref] = []
    for _ in range(count):
        ref = yield Spawn("nothing")
        refs += (ref,)
    yield Fetch(refs)


def submit(tasks: int, window: int, clock_ns: Callable[[], int]) -> Program:
    """Warm up, then all tasks in windows, from one moment on that is the same for all drivers."""
    for _ in range(2):
        yield from submit_window(window)
    yield Compute(max(0, BEGIN_NS - clock_ns()))
    for first in range(0, tasks, window):
        yield from submit_window(min(window, tasks - first))


def simulate(setting: Setting, costs: Costs) -> Outcome:
    """One run in virtual time.

    Raises:
        StalledError: if it does not end.
    """
    count = setting.drivers or setting.nodes
    scenario = Scenario(
        "fig08b", strict=False, check_every=10_000_000, policy=setting.policy,
        cluster=ClusterPart(
            nodes=setting.nodes, shards=setting.shards, cpus=CPUS, drivers=count, arena_kib=1024,
            compact_messages=1_000_000,
        ),
        network=NetworkPart(latency_us=NETWORK_US, jitter_us=0), phases=PhasesPart(liveness_s=LIMIT_NS / S),
    )  # fmt: skip

    def program() -> Program:
        return submit(setting.tasks, setting.window, lambda: cluster.kernel.now_ns)

    functions = {"nothing": nothing}
    cluster = Cluster(scenario, 0, [program] * count, config=Config(), costs=costs, functions=functions)
    cluster.boot()
    cluster.kernel.run_until(BEGIN_NS)
    before_ns = [shard.busy_ns for shard in cluster.shards]
    cluster.kernel.run_until(LIMIT_NS, lambda: not cluster.unfinished)
    finished = [driver.finished_ns for driver in cluster.drivers if driver.finished_ns is not None]
    if len(finished) < count:
        raise StalledError(f"{setting}: {count - len(finished)} drivers do not end")
    taken_ns = max(finished) - BEGIN_NS
    busy_ns = [shard.busy_ns - spent for shard, spent in zip(cluster.shards, before_ns, strict=True)]
    return Outcome(count * setting.tasks * S / taken_ns, cluster.forwards, max(busy_ns) / taken_ns)


def shards_for(nodes: int) -> int:
    """The control store grows with the cluster."""
    return max(1, nodes // NODES_PER_SHARD)


def measure_per_task() -> PerTask:
    """The costs that messages do not tell, from what two nodes say."""
    local, forwarding = listening(), listening()
    simulate(Setting(2, 4_000, 1), local)
    simulate(Setting(2, 1_000, 1, policy="centralised"), forwarding)
    return per_task(local, forwarding)


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """Nodes of 64 CPUs, with costs measured from zray's own processes and machines."""
    nodes = run.pick("nodes", tiny=(1, 2, 4), small=(10, 20, 40, 100), paper=NODES)
    tasks = run.pick("tasks_per_node", tiny=200, small=1_000, paper=5_000)
    against = run.pick("nodes_of_counterfactuals", tiny=(2,), small=(10, 20), paper=(10, 20, 40, 60))
    run.parameter("cpus_per_node", CPUS)
    run.parameter("window", WINDOW)
    measured = measure_per_task()
    run.parameter("record_ns", measured.record_ns)
    run.parameter("forward_ns", measured.forward_ns)
    costs = measured.costs()
    rates: dict[int, float] = {}
    for count in run.steps(nodes, "nodes"):
        outcome = simulate(Setting(count, tasks, shards_for(count)), costs)
        rates[count] = run.point("throughput", "zray", count, outcome.tasks_per_s)
        run.point("store", f"a shard for every {NODES_PER_SHARD} nodes", count, 100 * outcome.store_busy)
    _conclude(run, rates)
    found = {}
    for count in run.steps(against, "nodes, counterfactuals"):
        found = _counterfactuals(run, count, tasks, costs)
    for name, rate in found.items():  # of the largest cluster
        run.quantity(f"share: {name}", rate / found[AS_IT_IS])
    run.quantity("one_shard_share", 1e9 / measured.record_ns / max(rates.values()))


def _counterfactuals(run: ExperimentRun, count: int, tasks: int, costs: Costs) -> dict[str, float]:
    """Tasks per second by what is different."""
    shards = shards_for(count)
    fewer = max(WINDOW, tasks // 4)
    settings = {
        AS_IT_IS: Setting(count, tasks, shards),
        "one scheduler for all": Setting(count, fewer, shards, "centralised"),
        "threshold 0": Setting(count, fewer, shards, "threshold_zero"),
        "windows above the threshold": Setting(count, BURST, shards, window=BURST),
        "one driver for all": Setting(count, 2 * tasks, shards, drivers=1),
    }
    rates = {}
    for name, setting in settings.items():
        rates[name] = run.point("counterfactuals", name, count, simulate(setting, costs).tasks_per_s)
    alone = simulate(Setting(count, tasks, 1), costs)
    run.point("store", "one shard for all nodes", count, 100 * alone.store_busy)
    return rates


def _conclude(run: ExperimentRun, rates: dict[int, float]) -> None:
    x, y = np.array(list(rates)), np.array(list(rates.values()))
    residuals = y - np.polyval(np.polyfit(x, y, 1), x)
    run.quantity("r_squared", 1 - float(residuals @ residuals) / float((y - y.mean()) @ (y - y.mean())))
    if 100 in rates:
        run.quantity("tasks_per_s_at_100", rates[100])
        run.quantity("growth_10_to_100", rates[100] / rates[10])


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Nodes of one CPU on this machine: a driver for each; then an actor that submits, beside Ray."""
    counts = run.pick("nodes", small=(1, 2), paper=(1, 2, 4))
    tasks = run.pick("tasks_per_node", tiny=500, small=5_000, paper=20_000)
    repetitions = run.pick("repetitions", tiny=1, small=3, paper=7)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    nested_tasks = run.pick("nested_tasks_per_node", tiny=200, small=1_000, paper=5_000)
    medians = {}
    for count in run.steps(counts, "nodes"):
        with real_cluster(nodes=count, cpus=1) as cluster:
            cluster.run("burst", tasks)
            taken_ns = [cluster.run("burst", tasks).makespan_ns for _ in range(repetitions)]
        rates = [1e9 * count * tasks / ns for ns in taken_ns]
        medians[count] = run.point("live", "zray, a driver on each node", count, rates)
    run.quantity("growth_1_to_2", medians[2] / medians[1])
    nested = _nested(run, systems, max(counts), nested_tasks, repetitions)
    if "ray" in nested:
        run.compare("over_ray", nested["zray"], nested["ray"])
    else:
        run.beyond("over_ray", f"{SYSTEMS['ray']} was not run beside it")
    cores = os.cpu_count() or 1
    if cores < 6:
        run.beyond(
            "growth_1_to_2",
            f"a node with its driver and its worker are three busy processes, and on {cores} CPUs one node "
            "alone uses them all",
        )


def _nested(
    run: ExperimentRun, systems: Sequence[str], nodes: int, tasks: int, repetitions: int
) -> dict[str, list[float]]:
    """Tasks per second by system, submitted by an actor on each node; systems take turns."""
    rates: dict[str, list[float]] = {}
    with run.peers(systems, 1, nodes=nodes, store_bytes=STORE_BYTES) as running:
        for _ in range(repetitions):
            for system, peer in running.items():
                rates.setdefault(system, []).append(peer.ask(WORKLOAD, nodes=nodes, tasks=tasks))
    for system, samples in rates.items():
        run.point("live", f"{SYSTEMS[system]}, an actor that submits on each node", nodes, samples)
    return rates
