"""One iteration of evolution strategies at the paper's size, in virtual time: who adds up the results.

A leader on every node starts the rollouts of its share. *Direct*: it hands all results to the driver, which
adds up one after the other. *Tree*: it adds them up itself, and the driver adds up one sum per leader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from msgspec.structs import replace

from sim.cluster import Cluster
from sim.kernel import MS, S
from sim.operations import SubmitAs
from sim.programs import Compute, Fetch, Program, Ref, Spawn, descriptor_of
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray import ids
from zray.errors import ZrayError
from zray.protocol.messages import TASK

CPUS = 64
KEEP_PER_SLOT = 1_000
"""The rollouts of a leader stay on its node: with so many for each there is nothing to balance."""
STEPS = (10, 1_000)
"""Of a rollout, drawn evenly: the paper gives the ends."""
SPREAD_LEADER = replace(
    descriptor_of("leader", TASK, 1, 1.0, -1, False),
    descriptor_id=ids.content_id(b"spread leader"),
    spread=True,
)
WARM_UP_NS = 600 * MS
LIMIT_NS = 10_000 * S


class StuckIterationError(ZrayError):
    """A simulated iteration did not come to an end."""


class Iteration(NamedTuple):
    """What is simulated."""

    cpus: int
    rollouts: int
    step_ns: int
    result_ns: int
    """What it costs to add up one result."""
    is_tree: bool
    seed: int


def lengths_ns(setting: Iteration) -> list[int]:
    """How long each rollout takes."""
    random = Random(f"{setting.seed}/rollouts")
    return [random.randint(*STEPS) * setting.step_ns for _ in range(setting.rollouts)]


def rollout(duration_ns: int) -> Program:
    """One policy in one environment."""
    yield Compute(duration_ns)
    return 1


def leader(durations_ns: Sequence[int], sum_ns: int) -> Program:
    """The share of a node: how many results there are, added up if that takes time."""
    refs: list[Ref] = []
    for duration_ns in durations_ns:
        ref = yield Spawn("rollout", (duration_ns,))
        refs += (ref,)
    found = yield Fetch(refs)
    yield Compute(sum_ns * len(found))
    return sum(found)


def iteration_s(setting: Iteration) -> float:
    """Virtual seconds of one iteration.

    Raises:
        StuckIterationError: if it does not end.
    """
    nodes = max(1, setting.cpus // CPUS)
    scenario = Scenario(
        "fig14a", strict=False, check_every=10_000_000,
        cluster=ClusterPart(
            nodes=nodes, cpus=CPUS, drivers=1, arena_kib=4096, backlog_per_slot=KEEP_PER_SLOT
        ),
        network=NetworkPart(latency_us=100, jitter_us=0), phases=PhasesPart(liveness_s=LIMIT_NS / S),
    )  # fmt: skip
    marks: list[int] = []
    shares = [lengths_ns(setting)[number::nodes] for number in range(nodes)]
    functions: dict[str, Callable[..., object]] = {"rollout": rollout, "leader": leader}

    def driver() -> Program:
        yield Compute(WARM_UP_NS)
        began_ns = cluster.kernel.now_ns
        refs: list[Ref] = []
        for share in shares:
            summed_ns = setting.result_ns if setting.is_tree else 0
            refs += yield SubmitAs(SPREAD_LEADER, (share, summed_ns))
        counts = yield Fetch(refs)
        mine = len(counts) if setting.is_tree else sum(counts)
        yield Compute(setting.result_ns * mine)
        marks.append(cluster.kernel.now_ns - began_ns)
        marks.append(sum(counts))

    cluster = Cluster(scenario, setting.seed, [driver], functions=functions)
    cluster.boot()
    cluster.kernel.run_until(LIMIT_NS, lambda: not cluster.unfinished)
    if cluster.unfinished or marks[1] != setting.rollouts:
        raise StuckIterationError(f"{setting} does not end with all rollouts")
    return marks[0] / S
