"""Evolution strategies that swing up a pendulum, for any system with zray's API; summed flat or in a tree.

An iteration broadcasts a policy and tries many changed ones, each change in both directions. What a task
found is a sum (how many, rewards, their squares, changes weighted by what they gained), so sums can be added
anywhere: by the driver alone, or by actors that are the inner nodes of a tree. After Salimans et al., 2017.

``python -m paper_experiments.fig14a_es.workload`` trains and prints the rewards.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

import numpy as np

from paper_experiments.common.pendulum import EPISODE_STEPS, OBSERVATIONS, TORQUE_MAX, Array, Pendulums

HIDDEN = 16
DIMENSION = (OBSERVATIONS + 2) * HIDDEN
PAIRS = 16
"""Changes that a task tries, each in both directions."""
EPISODES = 4
SIGMA = 0.3
RATE = 1.5
MOMENTUM = 0.8
FAN_IN = 4
FLAT, TREE = AGGREGATIONS = ("flat", "tree")


class EvolutionSum(NamedTuple):
    """What some tries found; two of them add up to one of all their tries."""

    tries: float
    rewards: float
    squares: float
    change: Array
    """float64[DIMENSION], changes weighted by what they gained over their opposites."""

    def plus(self, other: EvolutionSum) -> EvolutionSum:
        """Both."""
        return EvolutionSum(
            self.tries + other.tries, self.rewards + other.rewards, self.squares + other.squares,
            self.change + other.change,
        )  # fmt: skip


def torques(weights: Array, observed: Array) -> Array:
    """float64[P, N]: what each of P policies float64[P, DIMENSION] does at float64[P, N, 3]."""
    first = weights[:, : OBSERVATIONS * HIDDEN].reshape(-1, OBSERVATIONS, HIDDEN)
    shift = weights[:, None, OBSERVATIONS * HIDDEN : (OBSERVATIONS + 1) * HIDDEN]
    last = weights[:, (OBSERVATIONS + 1) * HIDDEN :, None]
    return np.asarray(TORQUE_MAX * np.tanh(np.tanh(observed @ first + shift) @ last)[..., 0])


def rewards_of(weights: Array, seed: int) -> Array:
    """float64[P]: mean reward of one episode, of each of P policies from the same beginnings."""
    pendulums = Pendulums(EPISODES, seed)
    policies = len(weights)
    pendulums.angle, pendulums.speed = np.tile(pendulums.angle, policies), np.tile(pendulums.speed, policies)
    total = np.zeros(policies * EPISODES)
    for _ in range(EPISODE_STEPS):
        observed = pendulums.observe().reshape(policies, EPISODES, OBSERVATIONS)
        total += pendulums.step(torques(weights, observed).ravel())
    return np.asarray(total.reshape(policies, EPISODES).mean(axis=1))


def try_changes(weights: Array, seed: int) -> EvolutionSum:
    """One task: both directions of some drawn changes."""
    changes = np.random.default_rng(seed).standard_normal((PAIRS, len(weights)))
    found = rewards_of(np.concatenate([weights + SIGMA * changes, weights - SIGMA * changes]), seed)
    gained = found[:PAIRS] - found[PAIRS:]
    return EvolutionSum(len(found), float(found.sum()), float(found @ found), gained @ changes)


class EvolutionSummer:
    """An inner node of the tree."""

    def add(self, *sums: EvolutionSum) -> EvolutionSum:
        """Several as one."""
        return add_all(sums)


def add_all(sums: Any) -> EvolutionSum:
    """Several as one, in their order."""
    total, *others = sums
    for one in others:
        total = total.plus(one)
    return EvolutionSum(*total)


class EvolutionStrategy:
    """The policy and how it follows what was found."""

    def __init__(self, seed: int) -> None:
        self.weights: Array = 0.1 * np.random.default_rng(seed).standard_normal(DIMENSION)
        self.direction: Array = np.zeros(DIMENSION)

    def follow(self, found: EvolutionSum) -> float:
        """Take a step; the mean reward of all tries."""
        mean = found.rewards / found.tries
        spread = max(1e-9, found.squares / found.tries - mean * mean) ** 0.5
        self.direction = MOMENTUM * self.direction + found.change / (found.tries * spread)
        self.weights = self.weights + RATE * self.direction
        return float(mean)


def train(api: Any, iterations: int, tasks: int, aggregation: str, seed: int = 0) -> dict[str, Any]:
    """Mean reward of every iteration, the weights at the end, and seconds per iteration."""
    tries: Any = api.remote(try_changes)
    summers = [api.remote(EvolutionSummer).options(num_cpus=0).remote() for _ in range(-(-tasks // FAN_IN))]
    strategy, rewards = EvolutionStrategy(seed), []
    api.get([*(summer.add.remote(try_nothing()) for summer in summers), tries.remote(strategy.weights, 0)])
    started = time.perf_counter()
    for iteration in range(iterations):
        policy = api.put(strategy.weights)
        refs = [tries.remote(policy, seed + 1 + iteration * tasks + number) for number in range(tasks)]
        groups = [refs[first : first + FAN_IN] for first in range(0, tasks, FAN_IN)]
        if aggregation == TREE:
            sums = api.get([summer.add.remote(*one) for summer, one in zip(summers, groups, strict=True)])
        else:  # in the same order, so that both give the same policy bit by bit
            sums = [add_all(api.get(one)) for one in groups]
        rewards.append(strategy.follow(add_all(sums)))
    taken_s = (time.perf_counter() - started) / iterations
    return {"rewards": rewards, "weights": strategy.weights.tolist(), "iteration_s": taken_s}


def try_nothing() -> EvolutionSum:
    """The sum of no tries."""
    return EvolutionSum(0.0, 0.0, 0.0, np.zeros(DIMENSION))


def main() -> int:
    """Train on this machine; 1 if nothing was learned."""
    import zray

    with zray.init():
        found = train(zray, iterations=100, tasks=8, aggregation=TREE)
    for iteration in range(0, 100, 10):
        print(f"iteration {iteration:3}: mean reward {found['rewards'][iteration]:8.1f}")
    return 0 if np.mean(found["rewards"][-10:]) > found["rewards"][0] / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
