"""Simulations of different lengths, gathered in two ways; and their rounds by OpenMPI. No code of zray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 3
Submit = Callable[[int], Any]
"""Submits a simulation of so many steps; gives its ref."""


def simulate_pendulum(steps: int) -> float:
    """Swing for so many time steps, in plain Python; the reward, to be compared."""
    angle, velocity, reward = math.pi, 0.0, 0.0
    for _ in range(steps):
        torque = max(-2.0, min(2.0, -0.8 * velocity - math.sin(angle)))
        velocity = max(-8.0, min(8.0, velocity + (15.0 * math.sin(angle) + 3.0 * torque) * 0.05))
        angle += velocity * 0.05
        reward -= (angle % math.tau) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2
    return reward


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


def measure(api: Any, runs: list[int]) -> dict[str, dict[str, Any]]:
    """Time steps per second and rewards, by way; workers are there before."""
    simulation = api.remote(simulate_pendulum)
    api.get([simulation.remote(1) for _ in range(2 * len(runs) // ROUNDS)])
    found = {}
    for way, gather in WAYS.items():
        started = time.perf_counter()
        rewards = gather(api, simulation.remote, runs)
        found[way] = {"rate": sum(runs) / (time.perf_counter() - started), "rewards": rewards}
    return found


def measure_mpi(communicator: Any, runs: list[int]) -> dict[str, dict[str, Any]]:
    """The same rounds by the processes of OpenMPI, one run each and a barrier after every round."""
    rank, count = communicator.Get_rank(), communicator.Get_size()
    communicator.Barrier()
    started = time.perf_counter()
    gathered: list[float] = []
    for first in range(0, len(runs), count):
        mine = simulate_pendulum(runs[first + rank])
        gathered += communicator.allgather(mine)
    rate = sum(runs) / (time.perf_counter() - started)
    return {BARRIERS: {"rate": rate, "rewards": gathered}}
