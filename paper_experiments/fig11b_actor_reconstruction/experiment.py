"""Figure 11b: actors whose nodes die, with and without checkpoints.

Every actor runs a queue of calls. After forty of them each, as in the paper, a fifth of the nodes that hold
actors is killed with all that is on them, and the others make these actors again: from their last checkpoint
and the calls since, or from all calls. What ran again is counted at each execution and not estimated; each
actor's state is a checksum of the order of its calls, which a loop tells.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import zray
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig11b_actor_reconstruction import simulated
from paper_experiments.fig11b_actor_reconstruction.recovery import (
    CALLS_BEFORE,
    INTERVAL,
    VARIANTS,
    WITH,
    Executions,
    Recovery,
    conclude,
    draw,
    following,
    state_alone,
)
from zray.cluster_utils import Cluster as LocalCluster

CALL_S = 0.1
SETTINGS = {"ZRAY_NODE_DEATH_NS": str(10**9)}
STORE_BYTES = 128 << 20
SEATS = 1000
"""Of a node that may hold actors; the driver's node has none, and stays."""


class Accumulator:
    """An actor whose state tells which calls it ran, and in which order.

    Args:
        log: a file that gets a line for every execution, also for those that are repeated.
    """

    def __init__(self, log: str) -> None:
        self.log = log
        self.state = 0

    def node(self) -> str:
        """Where it is."""
        return str(zray.get_runtime_context().get_node_id())

    def work(self, number: int) -> int:
        """One call."""
        time.sleep(CALL_S)
        self.state = following(self.state, number)
        with open(self.log, "a") as log:
            log.write(f"{number} {time.monotonic()}\n")
        return self.state

    def __zray_save__(self) -> int:
        return self.state

    def __zray_load__(self, state: int) -> None:
        self.state = state


# --- real nodes ----------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Nodes of this machine, one of which is killed, and a driver on one that stays."""
    nodes = run.pick("nodes_with_actors", tiny=2, small=5, paper=5)
    count = run.pick("actors", tiny=6, small=20, paper=50)
    after = run.pick("calls_after", tiny=8, small=50, paper=80)
    before = run.pick("calls_before", tiny=12, small=CALLS_BEFORE, paper=CALLS_BEFORE)
    run.parameter("checkpoint_interval", INTERVAL)
    calls = before + after
    wrong, found = 0, {}
    for variant in run.steps(VARIANTS, "variant"):
        one = _recover(nodes, count, before, calls, INTERVAL if variant == WITH else 0)
        found[variant] = one
        wrong += sum(state != state_alone(calls) for state in one.states)
        draw(run, "throughput", variant, one)
    run.quantity("wrong_states", wrong)
    conclude(run, found, CALL_S)
    steady = run.quantities["rate_over_ideal"]
    if steady < 0.97:
        run.beyond(
            "others_share_after_loss",
            f"on {os.cpu_count()} shared CPUs the actors reach {steady:.2f} of their rate even undisturbed, "
            "and new processes start on the same CPUs",
        )


def _recover(nodes: int, count: int, before: int, calls: int, interval: int) -> Recovery:
    """All actors at work; a node dies with those that are on it; all come to their ends."""
    with (
        tempfile.TemporaryDirectory(prefix="zs") as folder,
        LocalCluster(True, head_node_args=_node(0), environment=SETTINGS) as cluster,
    ):
        members = [cluster.add_node(**_node(SEATS)) for _ in range(nodes)]
        victim = members[-1]
        with cluster.connect():
            logs = [Path(folder) / str(number) for number in range(count)]
            kind: Any = zray.remote(Accumulator).options(
                max_restarts=-1, max_task_retries=-1, checkpoint_interval=interval, num_cpus=0,
                resources={"seat": 1}, scheduling_strategy="SPREAD",
            )  # fmt: skip
            actors = [kind.remote(str(log)) for log in logs]
            homes = zray.get([actor.node.remote() for actor in actors])
            began_s = time.monotonic()
            refs = [[actor.work.remote(number) for number in range(calls)] for actor in actors]
            zray.get([mine[before - 1] for mine in refs])
            cluster.remove_node(victim, allow_graceful=False)
            killed_s = time.monotonic()  # until then its actors went on, and what they ran is run again
            states = zray.get([mine[-1] for mine in refs])
            homes_after = zray.get([actor.node.remote() for actor in actors])
        lost = [home == victim.node_id for home in homes]
        elsewhere = sum(was and home != victim.node_id for was, home in zip(lost, homes_after, strict=True))
        logged = [_read(log, calls) for log in logs]
    return Recovery(logged, states, began_s, killed_s, lost, elsewhere)


def _node(seats: int) -> dict[str, Any]:
    return {"num_cpus": 1, "object_store_memory": STORE_BYTES, "resources": {"seat": seats} if seats else {}}


def _read(log: Path, calls: int) -> Executions:
    first: dict[int, float] = {}
    again: list[float] = []
    for line in log.read_text().splitlines():
        number, moment = line.split()
        if int(number) in first:
            again.append(float(moment))
        else:
            first[int(number)] = float(moment)
    return Executions(np.array([first[number] for number in range(calls)]), np.array(again))


# --- virtual time --------------------------------------------------------------------------------


class SimPlan(NamedTuple):
    """How large a simulated run is; the paper's has 10 nodes and 2000 actors."""

    nodes: int
    actors: int
    dying: int
    after: int
    """Calls of each actor after the loss."""


TINY = SimPlan(4, 8, 1, 5)
SMALL = SimPlan(10, 200, 2, 20)
PAPER = SimPlan(10, 2000, 2, 80)


def sim(run: ExperimentRun) -> None:
    """The paper's nodes, a call of every actor each five seconds, two nodes die after forty."""
    plan = run.pick("plan", tiny=TINY, small=SMALL, paper=PAPER)
    run.parameter("checkpoint_interval", INTERVAL)
    run.parameter("calls_before", CALLS_BEFORE)
    calls = CALLS_BEFORE + plan.after
    wrong, found = 0, {}
    for variant in run.steps(VARIANTS, "variant"):
        interval = INTERVAL if variant == WITH else 0
        one = simulated.recover(plan.nodes, plan.actors, plan.dying, calls, interval)
        found[variant] = one
        wrong += sum(state != state_alone(calls) for state in one.states)
        draw(run, "simulated", variant, one)
    run.quantity("wrong_states", wrong)
    conclude(run, found, simulated.PERIOD_S)
