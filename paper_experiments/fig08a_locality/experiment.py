"""Figure 8a: tasks that take one object each, on two nodes that each hold about half of the objects.

The objects are made by tasks that spread over both nodes. Then as many empty tasks take one each, in a drawn
order; the time for all of them over their number is the latency, as in the paper. *Aware* and *blind* name
what the global scheduler looks at, and it places every task (``backlog_per_slot`` of -1): a node that kept
those with their object there would be aware of locality for it. A third series submits each task on the node
of its object.

The empty task has run a few times before: what the estimate of the queueing time is made of (paper, section
4.2.2) is an average over former runs, and without any a task is taken for as long as others were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun, paired_ratio
from paper_experiments.fig08a_locality.workload import AWARE, BLIND
from sim.cluster import Cluster
from sim.kernel import MS, S
from sim.programs import Await, Blob, Compute, Fetch, Program, Ref, Spawn
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.errors import ZrayError

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
LINK_MIB_S = 1335
"""1.4 GB/s: what the paper's own unaware series follows."""
CPUS = 4
MAKE_NS = 50 * MS
"""Long enough that one node cannot keep all tasks that make objects."""
WARM_UP_NS = 1 * S
KNOWN_TASKS = 20
"""Tasks before those that are measured: a scheduler that averages run times has seen some."""
QUIET_NS = 2 * S
LIMIT_NS = 100_000 * S
ARENA_KIB = 10_000_000
LIVE_SIZES = (100_000, 1_000_000, 10_000_000)
LIVE_CPUS = 1
LIVE_STORE_BYTES = 1 << 30
WORKLOAD = "paper_experiments.fig08a_locality.workload:measure"
Policy = Literal["paper", "locality_blind"]


class UnfinishedError(ZrayError):
    """A simulated run did not come to an end."""


class LocalityOutcome(NamedTuple):
    """One run."""

    per_task_s: float
    made_elsewhere: float
    """Share of the objects that were made on the second node."""


def make(number: int) -> Program:
    """An object."""
    yield Compute(MAKE_NS)
    return Blob(_size_of(number), number)


def take(_: object) -> None:
    """An empty task."""


def _size_of(number: int) -> int:
    """Objects carry their size in their number: arguments are plain values."""
    return number % (1 << 40)


def driver(size: int, count: int, seed: int, marks: list[int], clock_ns: Callable[[], int]) -> Program:
    """Run the empty task, to know how long it takes; make objects, let all come to rest, take them."""
    yield Compute(WARM_UP_NS)
    known: list[Ref] = []
    for number in range(KNOWN_TASKS):
        ref = yield Spawn("take", (number,))
        known += (ref,)
    yield Fetch(known)
    refs: list[Ref] = []
    for number in range(count):
        ref = yield Spawn("make", (number << 40 | size,))
        refs += (ref,)
    yield Await(refs, count)
    yield Compute(WARM_UP_NS + QUIET_NS - clock_ns() % S)
    Random(seed).shuffle(refs)
    began_ns = clock_ns()
    taken: list[Ref] = []
    for ref in refs:
        result = yield Spawn("take", (ref,))
        taken += (result,)
    yield Fetch(taken)
    marks.append(clock_ns() - began_ns)


def simulate(size: int, count: int, seed: int, policy: Policy, drivers: int) -> LocalityOutcome:
    """One run in virtual time.

    Args:
        drivers: 1: one driver for all objects; 2: one on each node, for the objects that it made there.
    Raises:
        UnfinishedError: if it does not end.
    """
    scenario = Scenario(
        "fig08a", strict=False, check_every=10_000_000, policy=policy,
        cluster=ClusterPart(nodes=2, cpus=CPUS, drivers=drivers, arena_kib=ARENA_KIB,
                            backlog_per_slot=-1 if drivers == 1 else 1_000_000),
        network=NetworkPart(latency_us=100, jitter_us=0, bandwidth_mib_s=LINK_MIB_S),
        phases=PhasesPart(liveness_s=LIMIT_NS / S),
    )  # fmt: skip
    marks: list[int] = []

    def program() -> Program:
        return driver(size, count // drivers, seed, marks, lambda: cluster.kernel.now_ns)

    functions = {"make": make, "take": take}
    cluster = Cluster(scenario, seed, [program] * drivers, functions=functions, keep_spans=True)
    cluster.boot()
    cluster.kernel.run_until(LIMIT_NS, lambda: not cluster.unfinished)
    if cluster.unfinished:
        raise UnfinishedError(f"{count} tasks with objects of {size} bytes do not end")
    second = cluster.nodes[1].address
    made = [span for span in cluster.spans or () if span.name == "make"]
    elsewhere = sum(span.worker.startswith(second[:12]) for span in made) / len(made)
    return LocalityOutcome(max(marks) / count / S, elsewhere)


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Two real nodes on this machine, whose stores copy through a socket; systems take turns."""
    sizes = run.pick("sizes", tiny=LIVE_SIZES[:1], small=LIVE_SIZES, paper=LIVE_SIZES)
    repetitions = run.pick("repetitions", tiny=1, small=5, paper=9)
    count = run.pick("tasks", tiny=8, small=40, paper=100)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    medians: dict[str, list[float]] = {}
    samples: dict[tuple[str, str], list[float]] = {}
    with run.peers(systems, LIVE_CPUS, nodes=2, store_bytes=LIVE_STORE_BYTES) as running:
        for size in run.steps(sizes, "object of bytes"):
            samples = {}
            for seed in range(repetitions):
                for system, peer in running.items():
                    for way, taken_s in peer.ask(WORKLOAD, size=size, count=count, seed=seed).items():
                        samples.setdefault((system, way), []).append(1000 * taken_s)
            for (system, way), taken_ms in samples.items():
                middle = run.point("live", f"{SYSTEMS[system]}, {way}", size, taken_ms)
                if system == "zray":
                    medians.setdefault(way, []).append(middle)
    aware = medians[AWARE]
    run.quantity("live_aware_spread", max(aware) / min(aware))
    run.quantity("live_blind_over_aware", paired_ratio(samples["zray", BLIND], samples["zray", AWARE]))
    run.beyond(
        "live_aware_spread",
        f"two nodes, their workers and the driver share {os.cpu_count()} CPUs: what a task costs also "
        "depends on who else is busy",
    )
    run.beyond(
        "live_blind_over_aware",
        f"a copy between two nodes of one machine costs no network, and a task costs {aware[-1]:.1f} ms on "
        f"{os.cpu_count()} CPUs where the paper's costs 0.1 ms; see the simulation",
    )
    if ("ray", AWARE) in samples:
        run.compare("ray_over_ours", samples["ray", AWARE], samples["zray", AWARE])
    else:
        run.beyond("ray_over_ours", f"{SYSTEMS['ray']} was not run beside it")


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """Two nodes with the paper's bandwidth between them."""
    count = run.pick("tasks", tiny=20, small=100, paper=1_000)
    seeds = run.pick("seeds", tiny=1, small=3, paper=5)
    run.parameter("link_mib_per_s", LINK_MIB_S)
    runs: dict[str, tuple[Policy, int]] = {
        "aware": ("paper", 1),
        "blind": ("locality_blind", 1),
        "submitted where the object is": ("paper", 2),
    }
    medians: dict[str, list[float]] = {name: [] for name in runs}
    for size in run.steps(SIZES, "object of bytes"):
        for name, (policy, drivers) in runs.items():
            found = [simulate(size, count, seed, policy, drivers) for seed in range(seeds)]
            samples = [1000 * one.per_task_s for one in found]
            medians[name].append(run.point("latency", name, size, samples))
            if name == "aware" and size == SIZES[0]:
                run.quantity("made_elsewhere", float(np.median([one.made_elsewhere for one in found])))
    _conclude(run, medians["aware"], medians["blind"], medians["submitted where the object is"])


def _conclude(
    run: ExperimentRun, aware: Sequence[float], blind: Sequence[float], beside: Sequence[float]
) -> None:
    run.quantity("aware_spread", max(aware) / min(aware))
    run.quantity("beside_spread", max(beside) / min(beside))
    run.quantity("blind_over_aware_10_mb", blind[2] / aware[2])
    run.quantity("blind_growth_10_to_100_mb", blind[3] / blind[2])
    run.quantity("blind_over_beside_10_mb", blind[2] / beside[2])
