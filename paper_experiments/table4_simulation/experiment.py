"""Table 4: simulations of different lengths, in rounds with a barrier and as tasks gathered when ready.

3n simulation runs on n CPUs. *Bulk synchronous*: three rounds of n, each waited for. *Asynchronous*: all 3n
at once, taken as they end. Both are programs of zray, so the ratio is that of the two ways of waiting alone.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from typing import Any

import zray
from paper_experiments.common.local import local_cluster
from paper_experiments.common.run import ExperimentRun

ROUNDS = 3
SIGMA = 0.35
"""Of the lognormal lengths: the paper does not give their distribution, and this one explains its ratios."""
SIGMAS = (0.0, 0.2, 0.35, 0.6)
STEPS_MEDIAN = 1_000
STEP_S = 1 / 22_600
"""The paper's own rate of one CPU."""
CPUS = (1, 16, 256)


def simulate_pendulum(steps: int) -> float:
    """Swing for so many time steps, in plain Python; the reward, to be compared."""
    angle, velocity, reward = math.pi, 0.0, 0.0
    for _ in range(steps):
        torque = max(-2.0, min(2.0, -0.8 * velocity - math.sin(angle)))
        velocity = max(-8.0, min(8.0, velocity + (15.0 * math.sin(angle) + 3.0 * torque) * 0.05))
        angle += velocity * 0.05
        reward -= (angle % math.tau) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2
    return reward


def lengths(count: int, sigma: float, seed: int) -> list[int]:
    """Steps of each simulation run."""
    drawn = random.Random(f"{seed}/{count}")
    return [max(1, round(drawn.lognormvariate(math.log(STEPS_MEDIAN), sigma))) for _ in range(count)]


Submit = Callable[[int], Any]
"""Submits a simulation of so many steps; gives its ref."""


def bulk_synchronous(submit: Submit, runs: list[int]) -> list[float]:
    """A barrier after each third."""
    size, rewards = len(runs) // ROUNDS, []
    for first in range(0, len(runs), size):
        rewards += zray.get([submit(steps) for steps in runs[first : first + size]])
    return rewards


def asynchronous(submit: Submit, runs: list[int]) -> list[float]:
    """All at once; each result is taken as soon as it is there."""
    pending = {submit(steps): number for number, steps in enumerate(runs)}
    rewards = [0.0] * len(runs)
    while pending:
        ready, _ = zray.wait(list(pending))
        for ref in ready:
            rewards[pending.pop(ref)] = zray.get(ref)
    return rewards


WAYS = {"bulk synchronous": bulk_synchronous, "asynchronous": asynchronous}


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """A pendulum in plain Python, on as many CPUs as there are."""
    cores = len(os.sched_getaffinity(0))
    repetitions = run.pick("repetitions", tiny=2, small=7, paper=15)
    scale = run.pick("steps_per_length", small=3, paper=10)
    run.parameter("sigma", SIGMA)
    simulation = zray.remote(simulate_pendulum)
    ratios = {}
    for cpus in dict.fromkeys((1, cores)):
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        with local_cluster(num_cpus=cpus):
            zray.get([simulation.remote(1) for _ in range(2 * cpus)])
            for seed in run.steps(range(repetitions), f"{cpus} CPUs, repetition"):
                runs = [scale * steps for steps in lengths(ROUNDS * cpus, SIGMA, seed)]
                rewards = {}
                for way, gather in WAYS.items():
                    started = time.monotonic()
                    rewards[way] = gather(simulation.remote, runs)
                    rates[way].append(sum(runs) / (time.monotonic() - started))
                assert rewards["asynchronous"] == rewards["bulk synchronous"]
        medians = {way: run.point("rates", way, cpus, samples) for way, samples in rates.items()}
        ratios[cpus] = medians["asynchronous"] / medians["bulk synchronous"]
    run.quantity("ratio_at_1", ratios[1])
    run.quantity("ratio_at_all", ratios[cores])
    run.parameter("cores", cores)
    for cpus in CPUS[1:]:
        if cores < cpus:
            run.beyond(
                f"ratio_at_{cpus}", f"this machine has {cores} CPUs and not {cpus}; see the simulation"
            )
        elif cores == cpus:
            run.quantity(f"ratio_at_{cpus}", ratios[cpus])


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

            gather(submit, runs)
            rates[way] = sum(runs) / (cluster.now_s - began_s)
    return rates


def simulated_run(steps: int) -> float:
    """Stands for a simulation; its time is declared where it is submitted."""
    return float(steps)
