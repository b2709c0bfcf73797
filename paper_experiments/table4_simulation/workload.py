"""Simulations of different lengths, gathered in two ways; and their rounds by OpenMPI. No code of zray."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 3
BEGIN = 1.0
"""Angle, from the top."""
Submit = Callable[[int], Any]
"""Submits a simulation of so many steps; gives its ref."""


def simulate_pendulum(steps: int) -> float:
    """Swing gymnasium's pendulum for so many time steps, in plain Python; the reward, to be compared."""
    angle, speed, reward = BEGIN, 0.0, 0.0
    for _ in range(steps):
        torque = torque_of(math.sin(angle), speed)
        off = (angle + math.pi) % math.tau - math.pi
        reward -= off**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = max(-8.0, min(8.0, speed + (15.0 * math.sin(angle) + 3.0 * torque) * 0.05))
        angle += speed * 0.05
    return reward


def simulate_gymnasium(steps: int) -> float:
    """The same in gymnasium's own environment."""
    import gymnasium

    environment: Any = gymnasium.make("Pendulum-v1").unwrapped
    environment.reset(seed=0)
    environment.state = np.array([BEGIN, 0.0])
    sine, speed, reward = math.sin(BEGIN), 0.0, 0.0
    for _ in range(steps):
        (_, sine, speed), rewarded, *_ = environment.step(np.array([torque_of(sine, speed)]))
        reward += float(rewarded)
    return reward


def torque_of(sine: float, speed: float) -> float:
    """A policy."""
    return max(-2.0, min(2.0, -0.8 * float(speed) - float(sine)))


SIMULATIONS = {"plain Python": simulate_pendulum, "gymnasium": simulate_gymnasium}


def has_gymnasium(api: Any) -> bool:
    """Whether this interpreter can import it."""
    return importlib.util.find_spec("gymnasium") is not None


def bulk_synchronous(api: Any, submit: Submit, runs: list[int]) -> list[float]:
    """A barrier after each third."""
    size, rewards = len(runs) // ROUNDS, []
    for first in range(0, len(runs), size):
        rewards += api.get([submit(steps) for steps in runs[first : first + size]])
    return rewards


def asynchronous(api: Any, submit: Submit, runs: list[int]) -> list[float]:
    """All at once; each result is taken as soon as it is there."""
    pending = {submit(steps): number for number, steps in enumerate(runs)}
    rewards = [0.0] * len(runs)
    while pending:
        ready, _ = api.wait(list(pending))
        for ref in ready:
            rewards[pending.pop(ref)] = api.get(ref)
    return rewards


BARRIERS, TASKS = "bulk synchronous", "asynchronous"
WAYS = {BARRIERS: bulk_synchronous, TASKS: asynchronous}


def measure(api: Any, runs: list[int], simulator: str) -> dict[str, dict[str, Any]]:
    """Time steps per second and rewards, by way; workers are there before."""
    simulation = api.remote(SIMULATIONS[simulator])
    api.get([simulation.remote(1) for _ in range(2 * len(runs) // ROUNDS)])
    found = {}
    for way, gather in WAYS.items():
        started = time.perf_counter()
        rewards = gather(api, simulation.remote, runs)
        found[way] = {"rate": sum(runs) / (time.perf_counter() - started), "rewards": rewards}
    return found


def measure_mpi(communicator: Any, runs: list[int], simulator: str) -> dict[str, dict[str, Any]]:
    """The same rounds by the processes of OpenMPI, one run each and a barrier after every round."""
    simulate = SIMULATIONS[simulator]
    simulate(1)  # what it imports is there
    rank, count = communicator.Get_rank(), communicator.Get_size()
    communicator.Barrier()
    started = time.perf_counter()
    gathered: list[float] = []
    for first in range(0, len(runs), count):
        mine = simulate(runs[first + rank])
        gathered += communicator.allgather(mine)
    rate = sum(runs) / (time.perf_counter() - started)
    return {BARRIERS: {"rate": rate, "rewards": gathered}}
