"""Proximal policy optimisation that swings up a pendulum, for any system with zray's API.

Actors simulate with the current policy; whoever returns gets the next task, until enough steps are there
(asynchronous scatter and gather), and one learner takes some gradient steps on all of them. Networks, their
gradients and Adam are written in numpy. After Schulman et al., 2017.

``python -m paper_experiments.fig14b_ppo.workload`` trains and prints the rewards.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

import numpy as np

from paper_experiments.common.pendulum import EPISODE_STEPS, OBSERVATIONS, TORQUE_MAX, Array, Pendulums

HIDDEN = 64
ENVIRONMENTS = 8
"""Pendulums of one actor, simulated at once."""
DISCOUNT, SMOOTHING = 0.95, 0.95
CLIP = 0.2
EPOCHS, MINIBATCH = 10, 400
LEARNING_RATE = 5e-3
REWARD_SCALE = 0.1
SPEED_SCALE = 0.125

Parameters = dict[str, Array]


class Experience(NamedTuple):
    """What one task saw; the first axis counts steps of all its environments."""

    observed: Array
    actions: Array
    logs: Array
    """Logarithm of the density of each action."""
    advantages: Array
    returns: Array
    reward: float
    """Mean over episodes."""


# --- networks ------------------------------------------------------------------------------------


def new_parameters(seed: int) -> Parameters:
    """Of a policy (mean of the torque) and a value, with one hidden layer each."""
    random = np.random.default_rng(seed)
    found: Parameters = {"log_deviation": np.zeros(1)}
    for name, scale in (("policy", 0.01), ("value", 1.0)):
        found[f"{name}_first"] = random.standard_normal((OBSERVATIONS, HIDDEN)) / OBSERVATIONS**0.5
        found[f"{name}_shift"] = np.zeros(HIDDEN)
        found[f"{name}_last"] = scale * random.standard_normal(HIDDEN) / HIDDEN**0.5
        found[f"{name}_base"] = np.zeros(1)
    return found


def forward(parameters: Parameters, name: str, observed: Array) -> tuple[Array, Array]:
    """float64[N] of a network at float64[N, 3], and its hidden layer."""
    hidden = np.tanh(observed @ parameters[f"{name}_first"] + parameters[f"{name}_shift"])
    return np.asarray(hidden @ parameters[f"{name}_last"] + parameters[f"{name}_base"]), hidden


def backward(
    parameters: Parameters, name: str, observed: Array, hidden: Array, slope: Array
) -> Parameters:  # fmt: skip
    """Gradients of a network, given float64[N] of the loss by its output."""
    down = np.outer(slope, parameters[f"{name}_last"]) * (1 - hidden**2)
    return {
        f"{name}_first": observed.T @ down, f"{name}_shift": down.sum(axis=0),
        f"{name}_last": hidden.T @ slope, f"{name}_base": slope.sum(keepdims=True),
    }  # fmt: skip


def log_density(actions: Array, means: Array, log_deviation: Array) -> Array:
    """Of a normal distribution."""
    off = (actions - means) * np.exp(-log_deviation)
    return np.asarray(-0.5 * off**2 - log_deviation - 0.5 * np.log(2 * np.pi))


# --- simulation ----------------------------------------------------------------------------------


class PendulumSimulator:
    """Runs episodes with whatever policy it gets."""

    def __init__(self, number: int) -> None:
        self.number, self.episodes = number, 0

    def simulate(self, parameters: Parameters) -> Experience:
        """One episode of each environment."""
        self.episodes += 1
        seed = (self.number, self.episodes)
        pendulums, random = Pendulums(ENVIRONMENTS, seed), np.random.default_rng((7, *seed))
        deviation = np.exp(parameters["log_deviation"])
        seen, done, gained, worth = [], [], [], []
        for _ in range(EPISODE_STEPS):
            observed = scaled(pendulums.observe())
            mean, _ = forward(parameters, "policy", observed)
            action = mean + deviation * random.standard_normal(ENVIRONMENTS)
            worth.append(forward(parameters, "value", observed)[0])
            seen.append(observed)
            done.append(action)
            gained.append(pendulums.step(TORQUE_MAX * action))
        worth.append(forward(parameters, "value", scaled(pendulums.observe()))[0])
        return summed_up(parameters, np.array(seen), np.array(done), np.array(gained), np.array(worth))


def scaled(observed: Array) -> Array:
    """Observations of about the same size."""
    return np.asarray(observed * np.array([1.0, 1.0, SPEED_SCALE]))


def summed_up(
    parameters: Parameters, seen: Array, done: Array, gained: Array, worth: Array
) -> Experience:  # fmt: skip
    """Generalised advantages of [steps, environments], the last value being that of what comes after."""
    advantages, following = np.zeros_like(gained), np.zeros(gained.shape[1])
    for step in reversed(range(len(gained))):
        surprise = REWARD_SCALE * gained[step] + DISCOUNT * worth[step + 1] - worth[step]
        following = advantages[step] = surprise + DISCOUNT * SMOOTHING * following
    observed, actions = seen.reshape(-1, OBSERVATIONS), done.ravel()
    means, _ = forward(parameters, "policy", observed)
    logs = log_density(actions, means, parameters["log_deviation"])
    returns = (advantages + worth[:-1]).ravel()
    return Experience(observed, actions, logs, advantages.ravel(), returns, float(gained.sum(axis=0).mean()))


# --- learning ------------------------------------------------------------------------------------


class PpoLearner:
    """Owns the parameters."""

    def __init__(self, seed: int) -> None:
        self.parameters = new_parameters(seed)
        self.random = np.random.default_rng(seed)
        self.first = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        self.steps = 0

    def current(self) -> Parameters:
        """The parameters."""
        return self.parameters

    def learn(self, *found: Experience) -> Parameters:
        """Some passes over all that was seen, in small batches; the parameters after it."""
        observed, actions, logs, advantages, returns = (
            np.concatenate([one[field] for one in found]) for field in range(5)
        )
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(EPOCHS):
            order = self.random.permutation(len(actions))
            for first in range(0, len(order), MINIBATCH):
                chosen = order[first : first + MINIBATCH]
                self._descend(*(part[chosen] for part in (observed, actions, logs, advantages, returns)))
        return self.parameters

    def _descend(
        self, observed: Array, actions: Array, logs: Array, advantages: Array, returns: Array
    ) -> None:
        """One step of Adam."""
        gradients = loss_gradients(self.parameters, observed, actions, logs, advantages, returns)
        self.steps += 1
        for name, gradient in gradients.items():
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            mean = self.first[name] / (1 - 0.9**self.steps)
            deviation = np.sqrt(self.second[name] / (1 - 0.999**self.steps)) + 1e-8
            self.parameters = {
                **self.parameters, name: self.parameters[name] - LEARNING_RATE * mean / deviation,
            }  # fmt: skip


def loss(
    parameters: Parameters, observed: Array, actions: Array, logs: Array, advantages: Array, returns: Array
) -> float:
    """What is made small: minus the clipped gain, plus the error of the value."""
    means, _ = forward(parameters, "policy", observed)
    ratio = np.exp(log_density(actions, means, parameters["log_deviation"]) - logs)
    gain = np.minimum(ratio * advantages, np.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages)
    values, _ = forward(parameters, "value", observed)
    return float(np.mean(0.5 * (values - returns) ** 2 - gain))


def loss_gradients(
    parameters: Parameters, observed: Array, actions: Array, logs: Array, advantages: Array, returns: Array
) -> Parameters:
    """The gradients of :func:`loss`."""
    count, log_deviation = len(actions), parameters["log_deviation"]
    means, hidden = forward(parameters, "policy", observed)
    ratio = np.exp(log_density(actions, means, log_deviation) - logs)
    is_cut = np.where(advantages > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
    slope = np.where(is_cut, 0.0, -ratio * advantages) / count  # of the loss by the log density
    off = (actions - means) * np.exp(-2 * log_deviation)
    gradients = backward(parameters, "policy", observed, hidden, slope * off)
    spread = (actions - means) ** 2 * np.exp(-2 * log_deviation) - 1
    gradients["log_deviation"] = (slope * spread).sum(keepdims=True)
    values, hidden = forward(parameters, "value", observed)
    gradients |= backward(parameters, "value", observed, hidden, (values - returns) / count)
    return gradients


# --- the loop ------------------------------------------------------------------------------------


def train(api: Any, iterations: int, simulators: int, tasks: int, seed: int = 0) -> dict[str, Any]:
    """Mean reward of every iteration, and seconds per iteration."""
    actors = [api.remote(PendulumSimulator).remote(1_000 * seed + number) for number in range(simulators)]
    learner = api.remote(PpoLearner).options(num_cpus=0).remote(seed)
    policy = learner.current.remote()
    api.get(policy)
    rewards, started = [], time.perf_counter()
    for _ in range(iterations):
        found = gather(api, actors, policy, tasks)
        rewards.append(float(np.mean([one.reward for one in api.get(found)])))
        policy = learner.learn.remote(*found)
    api.get(policy)
    return {"rewards": rewards, "iteration_s": (time.perf_counter() - started) / iterations}


def gather(api: Any, actors: list[Any], policy: Any, tasks: int) -> list[Any]:
    """So many tasks; an actor gets the next one as soon as it returned from the last."""
    busy = {actor.simulate.remote(policy): actor for actor in actors[:tasks]}
    started, found = len(busy), []
    while busy:
        (ready,), _ = api.wait(list(busy), num_returns=1)
        actor = busy.pop(ready)
        found.append(ready)
        if started < tasks:
            busy[actor.simulate.remote(policy)] = actor
            started += 1
    return found


def main() -> int:
    """Train on this machine; 1 if nothing was learned."""
    import zray

    iterations = 60
    with zray.init():
        found = train(zray, iterations, simulators=2, tasks=4)
    for iteration in range(0, iterations, 10):
        print(f"iteration {iteration:3}: mean reward {found['rewards'][iteration]:8.1f}")
    return 0 if np.mean(found["rewards"][-10:]) > found["rewards"][0] / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
