"""Figure 14a: evolution strategies, whose driver adds up ten thousand results per iteration, or has it done.

Live, a small policy learns to swing up a pendulum (``workload.py``), with sums added by the driver and by a
tree of actors. In the simulation an iteration has the paper's size (``aggregation.py``).
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig14a_es.aggregation import Iteration, iteration_s
from paper_experiments.fig14a_es.workload import AGGREGATIONS, FLAT, TREE

WORKLOAD = "paper_experiments.fig14a_es.workload:train"
POLICY_WEIGHTS = 376 * 256 + 256 * 256 + 256 * 17
"""Of Humanoid: its observations and actions, and two hidden layers of a usual size; the paper gives none."""
STEP_NS = 1_000_000
"""Of the simulated environment: an assumption, 1 ms."""
DIRECT, BY_TREE = "driver alone", "tree"


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Both ways of adding up, beside Ray; systems take turns."""
    iterations = run.pick("iterations", tiny=30, small=60, paper=100)
    rounds = run.pick("rounds", tiny=1, small=2, paper=5)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    tasks = run.pick("tasks", tiny=8, small=8, paper=16)
    taken_s: dict[tuple[str, str], list[float]] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with run.peers(systems, 2) as running:
        for _ in run.steps(range(rounds), "round"):
            for aggregation in AGGREGATIONS:
                for system, peer in running.items():
                    key = system, aggregation
                    found[key] = peer.ask(
                        WORKLOAD, iterations=iterations, tasks=tasks, aggregation=aggregation
                    )
                    taken_s.setdefault(key, []).append(found[key]["iteration_s"])
    for iteration, reward in enumerate(found["zray", TREE]["rewards"]):
        run.point("reward", "zray, tree", iteration, reward)
    _conclude_live(run, found, taken_s)


def _conclude_live(
    run: ExperimentRun,
    found: dict[tuple[str, str], dict[str, Any]],
    taken_s: dict[tuple[str, str], list[float]],
) -> None:
    rewards = found["zray", TREE]["rewards"]
    reached = float(np.mean(rewards[-5:]))
    run.quantity("reward_first", rewards[0])
    run.quantity("reward_last", reached)
    run.quantity("regret_left", reached / rewards[0])
    flat, tree = (found["zray", aggregation]["weights"] for aggregation in (FLAT, TREE))
    run.quantity("different_weights", sum(one != other for one, other in zip(flat, tree, strict=True)))
    for (system, aggregation), samples in taken_s.items():
        run.quantity(f"iteration_ms {SYSTEMS[system]}, {aggregation}", 1000 * median(samples))
    if ("ray", TREE) in taken_s:
        run.compare("ray_over_ours", taken_s["ray", TREE], taken_s["zray", TREE])
    else:
        run.beyond("ray_over_ours", "Ray was not run beside it")
    run.beyond("minutes_to_6000", "Humanoid needs MuJoCo and thousands of CPUs; here it is a pendulum")


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """One iteration on 4 to 128 nodes of 64 CPUs."""
    cpus = run.pick("cpus", tiny=(64, 128), small=(256, 4096, 8192), paper=(256, 512, 1024, 2048, 4096, 8192))
    rollouts = run.pick("rollouts", tiny=400, small=10_000, paper=10_000)
    measured_ns = 0 if run.scale == "tiny" else in_a_fresh_process(measured_result_ns)
    result_ns = run.pick("result_ns", tiny=250_000, small=measured_ns, paper=measured_ns)
    run.parameter("step_ns", STEP_NS)
    taken: dict[tuple[str, int], float] = {}
    for count in run.steps(cpus, "CPUs"):
        for name in (DIRECT, BY_TREE):
            setting = Iteration(count, rollouts, STEP_NS, result_ns, name == BY_TREE, 0)
            taken[name, count] = run.point("iteration", name, count, iteration_s(setting))
    least, most = min(cpus), max(cpus)
    doublings = np.log2(most / least)
    run.quantity("gain_per_doubling", (taken[BY_TREE, least] / taken[BY_TREE, most]) ** (1 / doublings))
    run.quantity("direct_over_tree", taken[DIRECT, most] / taken[BY_TREE, most])
    if most // 2 in cpus:
        run.quantity("direct_last_doubling", taken[DIRECT, most // 2] / taken[DIRECT, most])
    run.note(
        "A step of the environment is assumed to take 1 ms, and only ratios are claimed; the paper's own "
        "times are minutes until a score is reached, which is many iterations."
    )


def in_a_fresh_process(measure: Callable[[], int]) -> int:
    """What is measured there: how fast memory comes depends on what a process did before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


def measured_result_ns() -> int:
    """What one result costs whoever adds it up, on this machine: read it, weigh it, add it."""
    data = pickle.dumps(np.ones(POLICY_WEIGHTS, dtype=np.float32))
    total = np.zeros(POLICY_WEIGHTS, dtype=np.float32)
    samples = []
    for _ in range(200):
        started = time.thread_time_ns()
        total += 0.5 * pickle.loads(data)
        samples.append(time.thread_time_ns() - started)
    return int(median(samples))
