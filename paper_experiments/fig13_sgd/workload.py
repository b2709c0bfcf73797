"""Synchronous gradient descent by replicas and a sharded parameter server, for any system with zray's API.

A replica is an actor with its own part of the data; a shard of the server is an actor with a slice of the
weights. In a step every replica computes its gradient, cut into one piece per shard, and every shard adds up
the pieces of all replicas, in their order, and hands out its new slice. Only refs pass through the driver,
which submits all steps ahead. Sums have one order: the weights are those of :func:`train_alone` bit by bit.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

INPUTS, HIDDEN = 64, 64
RATE = 0.05
SEED = 13


class SgdSettings(NamedTuple):
    """Sizes of one run."""

    replicas: int
    shards: int
    batch: int
    steps: int


class MultilayerPerceptron:
    """Two dense layers that fit a smooth function of their inputs; all weights are one float64[D]."""

    dimension = INPUTS * HIDDEN + HIDDEN

    @staticmethod
    def weights() -> Array:
        """Those to begin with."""
        drawn = np.random.default_rng(SEED).standard_normal(MultilayerPerceptron.dimension)
        return np.asarray(drawn / np.sqrt(INPUTS))

    @staticmethod
    def loss_and_gradient(weights: Array, inputs: Array, targets: Array) -> tuple[float, Array]:
        """Mean squared error of float64[N, INPUTS] against float64[N], and its gradient."""
        first = weights[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN)
        second = weights[INPUTS * HIDDEN :]
        hidden = np.tanh(inputs @ first)
        errors = hidden @ second - targets
        down = np.outer(errors, second) * (1 - hidden**2)
        gradient = np.concatenate([(inputs.T @ down).ravel(), hidden.T @ errors])
        return float(errors @ errors) / len(errors), gradient / len(errors)


class SgdReplica:
    """Computes gradients on its own data."""

    def __init__(self, number: int, batch: int) -> None:
        self.random = np.random.default_rng((SEED, number))
        self.truth = np.random.default_rng(SEED + 1).standard_normal(INPUTS) / np.sqrt(INPUTS)
        self.batch = batch
        self.losses: list[float] = []

    def gradient(self, *slices: Array) -> Any:
        """The gradient at these weights, cut like them."""
        inputs = self.random.standard_normal((self.batch, INPUTS))
        targets = np.sin(inputs @ self.truth)
        loss, gradient = MultilayerPerceptron.loss_and_gradient(np.concatenate(slices), inputs, targets)
        self.losses.append(loss)
        pieces = np.split(gradient, np.cumsum([len(part) for part in slices])[:-1])
        return pieces[0] if len(pieces) == 1 else pieces

    def history(self) -> list[float]:
        """The loss of every step."""
        return self.losses


class ParameterShard:
    """Owns one slice of the weights."""

    def __init__(self, weights: Array) -> None:
        self.weights = weights

    def apply(self, *pieces: Array) -> Array:
        """Take one piece per replica, in their order; the weights after it."""
        if pieces:
            self.weights = self.weights - RATE / len(pieces) * _sum(pieces)
        return self.weights


def _sum(pieces: tuple[Array, ...]) -> Array:
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total


def train(api: Any, settings: SgdSettings) -> tuple[Array, list[float], float]:
    """Weights, mean loss of every step, and seconds for all steps."""
    replica, shard = api.remote(SgdReplica), api.remote(ParameterShard)
    slices = np.array_split(MultilayerPerceptron.weights(), settings.shards)
    servers = [shard.options(num_cpus=0).remote(part) for part in slices]
    replicas = [replica.remote(number, settings.batch) for number in range(settings.replicas)]
    current = [server.apply.remote() for server in servers]
    api.get([*current, *(one.history.remote() for one in replicas)])
    started = time.perf_counter()
    for _ in range(settings.steps):
        pieces = [_pieces(one, settings.shards, current) for one in replicas]
        current = [
            server.apply.remote(*[cut[number] for cut in pieces]) for number, server in enumerate(servers)
        ]
    weights = np.concatenate(api.get(current))
    taken_s = time.perf_counter() - started
    histories = api.get([one.history.remote() for one in replicas])
    return weights, [float(np.mean(losses)) for losses in zip(*histories, strict=True)], taken_s


def _pieces(replica: Any, shards: int, current: list[Any]) -> list[Any]:
    refs = replica.gradient.options(num_returns=shards).remote(*current)
    return [refs] if shards == 1 else list(refs)


def train_alone(settings: SgdSettings) -> Array:
    """The same without any system: the weights."""
    replicas = [SgdReplica(number, settings.batch) for number in range(settings.replicas)]
    weights = MultilayerPerceptron.weights()
    for _ in range(settings.steps):
        gradients = tuple(one.gradient(weights) for one in replicas)
        weights = weights - RATE / len(gradients) * _sum(gradients)
    return weights


def measure(api: Any, replicas: int, shards: int, batch: int, steps: int, check: bool) -> dict[str, Any]:
    """One run: examples per second, losses, and (if asked) how many weights differ from the right ones."""
    settings = SgdSettings(replicas, shards, batch, steps)
    weights, losses, taken_s = train(api, settings)
    alone = api.get(api.remote(train_alone).remote(settings)) if check else weights
    return {
        "rate": replicas * batch * steps / taken_s, "losses": losses,
        "different": int(np.count_nonzero(weights != alone)),
    }  # fmt: skip
