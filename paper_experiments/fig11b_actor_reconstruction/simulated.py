"""The same in virtual time: the machines that ship, on as many nodes as the paper has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from paper_experiments.fig11b_actor_reconstruction.recovery import (
    CALLS_BEFORE,
    Executions,
    Recovery,
    following,
)
from sim.cluster import Cluster
from sim.kernel import MS, S
from sim.programs import CallActor, Compute, Fetch, Forget, MakeActor, Program, Ref
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.config import Config
from zray.errors import ZrayError

PERIOD_S = 5
"""Between two calls of an actor, as in the paper."""
CALL_NS = 100 * MS
WARM_UP_S = 10
DEATH_S = 1.0
LIMIT_S = 100_000
ACTOR = "SimAccumulator"
Executed = list[tuple[int, int, int]]
"""(actor, call, when it ended in virtual nanoseconds), also of calls that are repeated."""


class UnrecoveredError(ZrayError):
    """A simulated run does not come to its end."""


class SimAccumulator:
    """The actor of :mod:`.experiment`: its state tells the order of its calls."""

    def __init__(self, executed: Executed, clock_ns: Callable[[], int], number: int) -> None:
        self.executed, self.clock_ns, self.number = executed, clock_ns, number
        self.state = 0

    def work(self, call: int) -> Program:
        """One call."""
        yield Compute(CALL_NS)
        self.state = following(self.state, call)
        self.executed.append((self.number, call, self.clock_ns()))
        return self.state

    def save(self) -> int:
        """A checkpoint."""
        return self.state

    def load(self, state: int) -> None:
        """Go on from a checkpoint."""
        self.state = state


def driver(actors: int, calls: int, interval: int, clock_ns: Callable[[], int], ids: list[bytes]) -> Program:
    """Call every actor once in each period, without waiting for anybody; the states at the end."""
    kept = []
    for number in range(actors):
        actor = yield MakeActor(ACTOR, (number,), restarts=-1, checkpoint=interval, spread=True)
        kept.append(actor)
        ids.append(actor.actor_id)
    last: list[Ref] = []
    for call in range(calls):
        yield Compute(max(0, (WARM_UP_S + call * PERIOD_S) * S - clock_ns()))
        refs = []
        for actor in kept:
            ref = yield CallActor(actor, "work", (call,), repeats=-1)
            refs.append(ref)
        yield Forget(last)
        last = refs
    return (yield Fetch(last))


def recover(nodes: int, actors: int, dying: int, calls: int, interval: int) -> Recovery:
    """One run; the last ``dying`` nodes are killed after :data:`CALLS_BEFORE` calls of each actor.

    Raises:
        UnrecoveredError: if it does not end.
    """
    scenario = Scenario(
        "fig11b", strict=False, check_every=10_000_000,
        cluster=ClusterPart(nodes=nodes, cpus=4, arena_kib=1 << 16),
        network=NetworkPart(latency_us=100, jitter_us=0), phases=PhasesPart(liveness_s=LIMIT_S),
    )  # fmt: skip
    executed: Executed = []
    actor_ids: list[bytes] = []

    def clock_ns() -> int:
        return cluster.kernel.now_ns

    functions: dict[str, Any] = {ACTOR: partial(SimAccumulator, executed, clock_ns)}
    cluster = Cluster(
        scenario, 0, [lambda: driver(actors, calls, interval, clock_ns, actor_ids)],
        config=Config(node_death_ns=round(DEATH_S * S)), functions=functions, keep_spans=True,
    )  # fmt: skip
    cluster.boot()
    killed_s = WARM_UP_S + CALLS_BEFORE * PERIOD_S - PERIOD_S / 2
    cluster.kernel.run_until(round(killed_s * S), lambda: not cluster.unfinished)
    before = _hosts(cluster)
    for node in cluster.nodes[nodes - dying :]:
        cluster.crash_node(node)
    dead = [node.address[:12] for node in cluster.nodes[nodes - dying :]]
    cluster.kernel.run_until(LIMIT_S * S, lambda: not cluster.unfinished)
    if cluster.unfinished:
        raise UnrecoveredError(f"the calls of {actors} actors do not end within {LIMIT_S} virtual seconds")
    after = _hosts(cluster)
    lost = [before[actor_id] in dead for actor_id in actor_ids]
    elsewhere = sum(after[one] not in dead for one, was in zip(actor_ids, lost, strict=True) if was)
    states = cluster.drivers[0].result
    return Recovery(_by_actor(executed, actors, calls), states, WARM_UP_S, killed_s, lost, elsewhere)


def _hosts(cluster: Cluster) -> dict[bytes, bytes]:
    """Actor -> the beginning of the address of the node where it was made last."""
    return {span.task_id: span.worker[:12] for span in cluster.spans or () if span.name == ACTOR}


def _by_actor(executed: Executed, actors: int, calls: int) -> list[Executions]:
    first: list[dict[int, float]] = [{} for _ in range(actors)]
    again: list[list[float]] = [[] for _ in range(actors)]
    for number, call, ended_ns in executed:
        if call in first[number]:
            again[number].append(ended_ns / S)
        else:
            first[number][call] = ended_ns / S
    return [
        Executions(np.array([mine[call] for call in range(calls)]), np.array(repeated))
        for mine, repeated in zip(first, again, strict=True)
    ]
