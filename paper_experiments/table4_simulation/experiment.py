"""Table 4: simulations of different lengths, in rounds with a barrier and as tasks gathered when ready.

3n simulation runs on n CPUs. *Bulk synchronous*: three rounds of n, each waited for. *Asynchronous*: all 3n
at once, taken as they end. Both are programs of zray, so their ratio is that of the ways of waiting alone;
OpenMPI runs the rounds beside them, and Ray both.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from typing import Any

import zray
from paper_experiments.common.peer_child import OPENMPI
from paper_experiments.common.peers import SYSTEMS, Peer
from paper_experiments.common.run import ExperimentRun
from paper_experiments.table4_simulation.workload import BARRIERS, ROUNDS, TASKS, WAYS

MODULE = "paper_experiments.table4_simulation.workload"
WORKLOAD, MPI_WORKLOAD = f"{MODULE}:measure", f"{MODULE}:measure_mpi"
SLOWER = 20
"""Runs in gymnasium have so many times fewer steps: each step takes hundreds of times as long there."""
SIGMA = 0.35
"""Of the lognormal lengths: the paper does not give their distribution, and this one explains its ratios."""
SIGMAS = (0.0, 0.2, 0.35, 0.6)
STEPS_MEDIAN = 1_000
STEP_S = 1 / 22_600
"""The paper's own rate of one CPU."""
CPUS = (1, 16, 256)


def lengths(count: int, sigma: float, seed: int) -> list[int]:
    """Steps of each simulation run."""
    drawn = random.Random(f"{seed}/{count}")
    return [max(1, round(drawn.lognormvariate(math.log(STEPS_MEDIAN), sigma))) for _ in range(count)]


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """A pendulum, gymnasium's if all have it, on as many CPUs as there are; systems take turns."""
    cores = len(os.sched_getaffinity(0))
    repetitions = run.pick("repetitions", tiny=2, small=7, paper=15)
    scale = run.pick("steps_per_length", tiny=3, small=100, paper=200)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray", OPENMPI),
                       paper=("zray", "ray", OPENMPI))  # fmt: skip
    run.parameter("sigma", SIGMA)
    run.parameter("cores", cores)
    for cpus in dict.fromkeys((1, cores)):
        rates: dict[tuple[str, str], list[float]] = {}
        with run.peers(systems, cpus) as running:
            simulator = _simulator_of(run, running)
            for seed in run.steps(range(repetitions), f"{cpus} CPUs, repetition"):
                each = scale if simulator == "plain Python" else max(1, scale // SLOWER)
                runs = [each * steps for steps in lengths(ROUNDS * cpus, SIGMA, seed)]
                for key, rate in _rates_of(running, runs, simulator).items():
                    rates.setdefault(key, []).append(rate)
        for (system, way), samples in rates.items():
            run.point("rates", f"{SYSTEMS[system]}, {way}", cpus, samples)
        both = rates["zray", TASKS], rates["zray", BARRIERS]
        run.compare("ratio_at_1" if cpus == 1 else "ratio_at_all", *both)
        if cpus in CPUS[1:]:
            run.compare(f"ratio_at_{cpus}", *both)
    _compare(run, rates)
    for cpus in CPUS[1:]:
        if cores < cpus:
            reason = f"this machine has {cores} CPUs and not {cpus}; see the simulation"
            run.beyond(f"ratio_at_{cpus}", reason)


def _simulator_of(run: ExperimentRun, running: Mapping[str, Peer]) -> str:
    """The same for all systems."""
    everywhere = all(peer.ask(f"{MODULE}:has_gymnasium") for peer in running.values())
    simulator = "gymnasium" if everywhere else "plain Python"
    run.parameter("simulator", simulator)
    if not everywhere:
        run.note_once(
            "Without gymnasium, which not all of the interpreters have, the pendulum is plain Python."
        )
    return simulator


def _rates_of(running: Mapping[str, Peer], runs: list[int], simulator: str) -> dict[tuple[str, str], float]:
    """Time steps per second by system and way; all must find the same rewards."""
    found = {}
    rewards: list[Any] = []
    for system, peer in running.items():
        for way, one in peer.ask(
            MPI_WORKLOAD if system == OPENMPI else WORKLOAD, runs=runs, simulator=simulator
        ).items():
            found[system, way] = one["rate"]
            rewards.append(one["rewards"])
    assert all(one == rewards[0] for one in rewards), "systems find other rewards"
    return found


def _compare(run: ExperimentRun, rates: Mapping[tuple[str, str], list[float]]) -> None:
    """On all CPUs: tasks of zray against rounds of OpenMPI, and against the same tasks on Ray."""
    for system, way, quantity in ((OPENMPI, BARRIERS, "over_openmpi"), ("ray", TASKS, "over_ray")):
        if (system, way) in rates:
            run.compare(quantity, rates["zray", TASKS], rates[system, way])
        else:
            run.beyond(quantity, f"{SYSTEMS[system]} was not run beside it")


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """A run of a simulation takes as many steps as were drawn, each as long as one of the paper's."""
    seeds = run.pick("seeds", tiny=1, small=3, paper=15)
    run.parameter("sigma", SIGMA)
    run.parameter("steps_median", STEPS_MEDIAN)
    for cpus in run.steps(run.pick("cpus", tiny=(1, 16), small=CPUS, paper=CPUS), "CPUs"):
        found = [_rates(cpus, SIGMA, seed) for seed in range(seeds)]
        for way in WAYS:
            run.point("rates", way, cpus, [rates[way] for rates in found])
        ratio = run.point(
            "ratios", f"{cpus} CPUs by length spread", SIGMA, [_ratio(rates) for rates in found]
        )
        run.quantity(f"ratio_at_{cpus}", ratio)
        for sigma in SIGMAS:
            if sigma != SIGMA and cpus > 1:
                samples = [_ratio(_rates(cpus, sigma, seed)) for seed in range(seeds)]
                run.point("ratios", f"{cpus} CPUs by length spread", sigma, samples)
    run.note(
        f"Lengths are lognormal with sigma {SIGMA}, an assumption that explains the paper's efficiencies: "
        "it does not give the distribution. Other spreads are in the second chart."
    )


def _ratio(rates: dict[str, float]) -> float:
    return rates["asynchronous"] / rates["bulk synchronous"]


def _rates(cpus: int, sigma: float, seed: int) -> dict[str, float]:
    """Time steps per virtual second, by way of waiting."""
    runs = lengths(ROUNDS * cpus, sigma, seed)
    rates = {}
    for way, gather in WAYS.items():
        with zray.simulate(cpus=cpus, seed=seed) as cluster:
            simulation = zray.remote(simulated_run)
            zray.get([simulation.options(_duration_s=0.0).remote(0) for _ in range(cpus)])
            began_s = cluster.now_s

            def submit(steps: int, simulation: Any = simulation) -> Any:
                return simulation.options(_duration_s=steps * STEP_S).remote(steps)

            gather(zray, submit, runs)
            rates[way] = sum(runs) / (cluster.now_s - began_s)
    return rates


def simulated_run(steps: int) -> float:
    """Stands for a simulation; its time is declared where it is submitted."""
    return float(steps)
