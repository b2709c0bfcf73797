"""Figure 11a: linear chains of 100 ms tasks while nodes die and come back.

One driver submits all chains; every task takes the object of the one before and adds one to it. Nodes are
killed with all that is on them at three moments, and new ones take their place at a fourth. A chain is right
if its last object counts its length.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from paper_experiments.common.local import environment
from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig11a_task_reconstruction.workload import OBJECT_BYTES, TASK_S
from sim.cluster import Cluster, Span
from sim.kernel import S
from sim.programs import Blob, Compute, Fetch, Forget, Program, Ref, Spawn
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.config import Config
from zray.core.node_store import SEALED
from zray.errors import ZrayError

CPUS = 4
CHAINS_PER_SLOT = 4
DEATH_S = 1.0
"""How long a node may be silent; the paper does not give it."""
SETTLE_S = 1.0
"""After a death is known, until throughput is taken."""
LIMIT_S = 100_000


class NeverEndingError(ZrayError):
    """Chains do not come to their ends."""


class Plan(NamedTuple):
    """Who is there when: seconds of each change, and nodes from then on."""

    nodes: int
    changes: tuple[tuple[float, int], ...]
    ends_s: float

    def nodes_at(self, moment_s: float) -> int:
        """How many are alive."""
        return next((n for at_s, n in reversed(self.changes) if at_s <= moment_s), self.nodes)

    def steady(self) -> list[tuple[float, float, int]]:
        """From, to, nodes: each time between two changes, without the time that a death takes to be known."""
        ends = [at_s for at_s, _ in self.changes[1:]] + [self.ends_s]
        return [
            (at_s + DEATH_S + SETTLE_S, until_s, count)
            for (at_s, count), until_s in zip(self.changes, ends, strict=True)
        ]


TINY = Plan(4, ((4.0, 3), (7.0, 2), (10.0, 4)), 14.0)
SMALL = Plan(10, ((8.0, 9), (14.0, 5), (22.0, 3), (30.0, 10)), 38.0)
PAPER = Plan(50, ((25.0, 49), (50.0, 25), (100.0, 10), (210.0, 50)), 240.0)


LIVE = Plan(3, ((5.0, 2),), 12.0)
LIVE_CPUS = 2
LIVE_STORE_BYTES = 256 << 20
WORKLOAD = "paper_experiments.fig11a_task_reconstruction.workload:run_chains"
LIVE_SETTINGS = {"ZRAY_NODE_DEATH_NS": str(round(DEATH_S * S))}


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Three nodes of two CPUs on this machine, of which one is killed; tasks sleep and so share its cores."""
    plan = run.pick("live_plan", tiny=Plan(3, ((3.0, 2),), 7.0), small=LIVE, paper=LIVE)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    run.parameter("node_death_s", DEATH_S)
    slots = plan.nodes * LIVE_CPUS
    count = CHAINS_PER_SLOT * slots
    node_seconds = sum(plan.nodes_at(second) for second in range(int(plan.ends_s) + 2))
    length = round(node_seconds * LIVE_CPUS / TASK_S / count)
    found = {}
    for system in run.steps(systems, "system"):  # one after the other: the nodes of both are too many
        with (
            environment(LIVE_SETTINGS),
            run.peers([system], LIVE_CPUS, nodes=plan.nodes, store_bytes=LIVE_STORE_BYTES) as running,
        ):
            for peer in running.values():
                found[system] = peer.ask(
                    WORKLOAD, count=count, length=length, slots=slots, nodes=plan.nodes, changes=plan.changes
                )
    _conclude_live(run, plan, found, count, length)


def _conclude_live(
    run: ExperimentRun, plan: Plan, found: dict[str, dict[str, Any]], count: int, length: int
) -> None:
    ended_s = np.array(found["zray"]["ended_s"])
    _draw_times(run, "live", plan, LIVE_CPUS, ended_s)
    run.quantity("wrong_chains", sum(one != length for one in found["zray"]["lengths"]))
    run.quantity("tasks", count * length)
    killed_s = plan.changes[0][0]
    allowed = plan.nodes * LIVE_CPUS / TASK_S * (killed_s - SETTLE_S)
    share = _within(ended_s, SETTLE_S, killed_s) / allowed
    run.quantity("share_before_loss", share)
    if share < 0.99:
        reason = f"on {os.cpu_count()} shared CPUs it is {share:.3f} even before a node is lost"
        run.beyond("least_share_after_loss", reason)
    if "ray" not in found:
        run.beyond("over_ray", f"{SYSTEMS['ray']} was not run beside it")
        return
    of_ray_s = np.array(found["ray"]["ended_s"])
    for second in range(int(plan.ends_s)):
        run.point("live", SYSTEMS["ray"], second, _within(of_ray_s, second, second + 1))
    run.quantity("over_ray", float(of_ray_s.max() / ended_s.max()))


# --- simulated -----------------------------------------------------------------------------------


def step(before: Blob | int) -> Program:
    """One link of a chain."""
    yield Compute(round(TASK_S * S))
    return Blob(OBJECT_BYTES, _count_of(before) + 1)


def _count_of(value: Blob | int) -> int:
    return value.tag if isinstance(value, Blob) else value


Places = dict[bytes, tuple[int, int]]
"""Object -> (chain, place in it)."""


def chains(count: int, length: int, places: Places) -> Program:
    """All chains at once; the result is where each of them ends."""
    ends: list[Ref] = []
    for chain in range(count):
        ref = yield Spawn("step", (0,))
        places[ref.object_id] = chain, 1
        for place in range(1, length):
            following = yield Spawn("step", (ref,))
            places[following.object_id] = chain, place + 1
            yield Forget((ref,))
            ref = following
        ends += (ref,)
    return [_count_of(value) for value in (yield Fetch(ends))]


def sim(run: ExperimentRun) -> None:
    """Nodes of 4 CPUs; the driver's node stays."""
    plan = run.pick("plan", tiny=TINY, small=SMALL, paper=PAPER)
    run.parameter("node_death_s", DEATH_S)
    count = CHAINS_PER_SLOT * plan.nodes * CPUS
    capacity = sum(
        plan.nodes_at(second) * CPUS / TASK_S for second in range(int(plan.ends_s))
    )  # tasks, if no slot is ever idle
    length = round(capacity / count)
    places: Places = {}
    cluster = _start(plan, count, length, places)
    alive, lost = plan.nodes, 0
    for at_s, nodes in run.steps(plan.changes, "change"):
        cluster.kernel.run_until(round(at_s * S), lambda: not cluster.unfinished)
        lost += _change(cluster, places, alive, nodes)
        alive = nodes
    cluster.kernel.run_until(LIMIT_S * S, lambda: not cluster.unfinished)
    if cluster.unfinished:
        raise NeverEndingError(f"the chains do not end within {LIMIT_S} virtual seconds")
    _draw(run, plan, cluster.spans or [])
    run.quantity("wrong_chains", sum(end != length for end in cluster.drivers[0].result))
    run.quantity("tasks", count * length)
    run.quantity("to_run_again", lost)
    run.quantity("reexecuted_per_lost", run.quantities["reexecuted"] / lost)


def _start(plan: Plan, count: int, length: int, places: Places) -> Cluster:
    scenario = Scenario(
        "fig11a", strict=False, check_every=10_000_000,
        cluster=ClusterPart(nodes=plan.nodes, cpus=CPUS, arena_kib=1 << 19),
        network=NetworkPart(latency_us=100, jitter_us=0), phases=PhasesPart(liveness_s=LIMIT_S),
    )  # fmt: skip
    config = Config(node_death_ns=round(DEATH_S * S))
    cluster = Cluster(
        scenario,
        0,
        [lambda: chains(count, length, places)],
        config=config,
        functions={"step": step},
        keep_spans=True,
    )
    cluster.boot()
    return cluster


def _change(cluster: Cluster, places: Places, before: int, after: int) -> int:
    """Kill nodes from the last one on, or let new ones take the places of dead ones.

    Returns:
        How much has to run again: unfinished tasks of the nodes that died, and for each chain the links
        between the newest that there was and the newest that there still is.
    """
    had, unfinished = _newest(cluster, places, max(before, after)), 0
    for number in range(after, before):
        unfinished += len(cluster.nodes[number].node.scheduler.tasks)
        cluster.crash_node(cluster.nodes[number])
    for number in range(before, after):
        cluster.restart_node(cluster.nodes[number])
    if after > before:
        return 0
    left = _newest(cluster, places, after)
    return unfinished + sum(place - left.get(chain, 0) for chain, place in had.items())


def _newest(cluster: Cluster, places: Places, nodes: int) -> dict[int, int]:
    """Chain -> the last of its places whose object is in the store of one of the first so many nodes."""
    newest: dict[int, int] = {}
    for host in cluster.nodes[:nodes]:
        for object_id, entry in host.node.store.objects.items():
            chain, place = places.get(object_id, (-1, 0))
            if entry.state == SEALED and place > newest.get(chain, 0):
                newest[chain] = place
    return newest


def _draw(run: ExperimentRun, plan: Plan, spans: list[Span]) -> None:
    """Tasks that ended in each second, and those among them that ran again."""
    ended_s = np.array([span.end_ns / S for span in spans])
    again_s = np.array(_repeats_s(spans))
    shares = _draw_times(run, "throughput", plan, CPUS, ended_s)
    for second in range(int(plan.ends_s)):
        run.point("throughput", "re-executed", second, _within(again_s, second, second + 1))
    run.quantity("share_after_return", shares[-1])
    run.quantity("reexecuted", len(again_s))


def _repeats_s(spans: list[Span]) -> list[float]:
    """When tasks ended that had run before. A second attempt of one that never began is none of them."""
    ran: dict[bytes, None] = {}
    found = []
    for span in sorted(spans, key=lambda span: span.end_ns):
        if span.task_id in ran:
            found.append(span.end_ns / S)
        ran[span.task_id] = None
    return found


def _draw_times(
    run: ExperimentRun, chart: str, plan: Plan, cpus: int, ended_s: np.ndarray[Any, Any]
) -> list[float]:
    """Tasks that ended in each second; what that is of all slots after each change."""
    for second in range(int(plan.ends_s)):
        run.point(chart, "all", second, _within(ended_s, second, second + 1))
        run.point(chart, "what the slots allow", second, plan.nodes_at(second) * cpus / TASK_S)
    shares = [
        _within(ended_s, from_s, to_s) / (to_s - from_s) / (nodes * cpus / TASK_S)
        for from_s, to_s, nodes in plan.steady()
    ]
    losses = [share for share, (_, nodes) in zip(shares, plan.changes, strict=True) if nodes < plan.nodes]
    run.quantity("least_share_after_loss", min(losses))
    run.note("Share of what the slots allow, after each change: " + ", ".join(f"{s:.3f}" for s in shares))
    return shares


def _within(moments_s: np.ndarray[Any, Any], from_s: float, to_s: float) -> float:
    """How many there are."""
    return float(((moments_s >= from_s) & (moments_s < to_s)).sum())
