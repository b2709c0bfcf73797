"""Asynchronous gradient descent with a parameter server (the paper's section 5.2.1 in small).

Shows:
- **an actor that owns state**: the server holds the weights and applies gradients in the order they come;
- **actors that own data**: each worker makes its part of a synthetic regression once and keeps it;
- **references between actors**: a gradient goes from worker to server, and the new weights from server
  to worker, without passing through the driver;
- **wait**: the driver serves whichever worker is finished first, so a slow one holds up nobody.

Gradients are therefore computed on weights that are a little old; the program prints how old.
The exit code is 1 if the weights do not come close to the true ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple

import numpy as np

import zray

NOISE = 0.1
"""Standard deviation of the noise on the targets; the loss cannot fall below half its square."""
ERROR_MAX = 0.05
"""Largest accepted distance to the true weights, relative to their length."""


class Weights(NamedTuple):
    """What the server hands out: ``values`` float64[D] after ``version`` updates."""

    version: int
    values: np.ndarray


class Gradient(NamedTuple):
    """What a worker sends: ``values`` float64[D] and ``loss`` at the weights of ``version``."""

    version: int
    values: np.ndarray
    loss: float


class Report(NamedTuple):
    """How training stands: ``loss`` is the mean since the last report, ``staleness`` since the start."""

    updates: int
    loss: float
    staleness: float


def true_weights(dimension: int, seed: int) -> np.ndarray:
    """float64[D], what the workers' data was made from and training has to find."""
    return np.random.default_rng(seed).standard_normal(dimension)


@zray.remote(num_cpus=0)
class ParameterServer:
    """Owns the weights; one call at a time, so no update is ever half applied."""

    def __init__(self, dimension: int, rate: float) -> None:
        self.weights = Weights(0, np.zeros(dimension))
        self.rate = rate
        self.staleness_sum = 0
        self.losses: list[float] = []

    def pull(self) -> Weights:
        return self.weights

    def push(self, gradient: Gradient) -> Weights:
        """Apply one gradient and return the weights after it."""
        version, values = self.weights
        self.staleness_sum += version - gradient.version
        self.losses.append(gradient.loss)
        # A new array, not an update in place: callers may still read the old one.
        self.weights = Weights(version + 1, values - self.rate * gradient.values)
        return self.weights

    def report(self) -> Report:
        losses, self.losses = self.losses, []
        updates = self.weights.version
        return Report(updates, float(np.mean(losses)), self.staleness_sum / updates)


@zray.remote
class GradientWorker:
    """Owns one part of the data and computes gradients of the squared error on random batches of it."""

    def __init__(self, dimension: int, rows: int, batch: int, seed: int, index: int) -> None:
        self.random = np.random.default_rng([seed, index])
        self.inputs = self.random.standard_normal((rows, dimension))
        noise = NOISE * self.random.standard_normal(rows)
        self.targets = self.inputs @ true_weights(dimension, seed) + noise
        self.batch = batch

    def gradient(self, weights: Weights) -> Gradient:
        rows = self.random.integers(0, len(self.targets), self.batch)
        inputs = self.inputs[rows]
        errors = inputs @ weights.values - self.targets[rows]
        return Gradient(
            weights.version, inputs.T @ errors / self.batch, float(errors @ errors) / 2 / self.batch
        )


def train(server: Any, workers: list[Any], updates: int, report_every: int) -> None:
    """Keep every worker busy until the server has applied ``updates`` gradients; print the loss."""
    start = server.pull.remote()
    busy = {worker.gradient.remote(start): worker for worker in workers}
    for update in range(1, updates + 1):
        (gradient,), _ = zray.wait(list(busy), num_returns=1)
        worker = busy.pop(gradient)
        weights = server.push.remote(gradient)
        busy[worker.gradient.remote(weights)] = worker
        if update % report_every == 0:
            # The server answers in order, so this also keeps the driver from running far ahead.
            report: Report = zray.get(server.report.remote())
            print(f"  {report.updates:>6} updates   loss {report.loss:10.5f}   "
                  f"staleness {report.staleness:4.1f}", flush=True)  # fmt: skip
    zray.wait(list(busy), num_returns=len(busy))  # of no use any more, but not left behind


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` is a smaller problem."""
    parser = argparse.ArgumentParser(
        description="Train a linear model with an asynchronous parameter server."
    )
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs to use (default: every core)")
    parser.add_argument("--address", help="join a running cluster instead of starting one")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="gradient workers (default: 2)")
    parser.add_argument("--updates", type=int, metavar="N", help="gradients to apply (default: 2000)")
    parser.add_argument("--dimension", type=int, metavar="D", help="number of weights (default: 500)")
    parser.add_argument(
        "--batch", type=int, default=256, metavar="N", help="rows per gradient (default: 256)"
    )
    parser.add_argument("--rate", type=float, help="learning rate (default: 0.01)")
    parser.add_argument("--seed", type=int, default=1, help="of the data (default: 1)")
    parser.add_argument("--quick", action="store_true", help="50 weights, 200 updates, rate 0.05")
    options = parser.parse_args(arguments)
    if options.address and options.num_cpus:
        parser.error("--num-cpus belongs to a cluster started here, not to --address")
    options.updates = options.updates or (200 if options.quick else 2000)
    options.dimension = options.dimension or (50 if options.quick else 500)
    options.rate = options.rate or (0.05 if options.quick else 0.01)
    return options


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``zray.init`` that were given."""
    given = {"num_cpus": options.num_cpus, "address": options.address}
    return {name: value for name, value in given.items() if value is not None}


def main() -> int:
    """Train, print the loss on the way, compare with the truth. Returns the exit code."""
    options = parse_arguments()
    truth = true_weights(options.dimension, options.seed)
    print(f"{options.workers} workers, {options.dimension} weights, batches of {options.batch}")
    with zray.init(**connection(options)):
        server = ParameterServer.remote(options.dimension, options.rate)
        workers = [
            GradientWorker.options(num_cpus=0).remote(
                options.dimension, 20 * options.dimension, options.batch, options.seed, index
            )
            for index in range(options.workers)
        ]
        started = time.perf_counter()
        train(server, workers, options.updates, max(1, options.updates // 10))
        elapsed_s = time.perf_counter() - started
        final: Weights = zray.get(server.pull.remote())
    error = float(np.linalg.norm(final.values - truth) / np.linalg.norm(truth))
    converged = error < ERROR_MAX
    print(f"{options.updates / elapsed_s:,.0f} updates/s; distance to the true weights {error:.3%}: "
          f"{'converged' if converged else 'NOT CONVERGED'}")  # fmt: skip
    return 0 if converged else 1


if __name__ == "__main__":
    sys.exit(main())
