"""What experiments compute is right: dynamics, gradients, sums, and the replicas' arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paper_experiments.common.pendulum import EPISODE_STEPS, Pendulums
from paper_experiments.fig13_sgd import workload as sgd
from paper_experiments.fig14a_es import workload as es
from paper_experiments.fig14b_ppo import workload as ppo
from paper_experiments.table4_simulation import workload as table4


def test_a_pendulum_at_the_top_stays_there_and_costs_nothing() -> None:
    pendulums = Pendulums(1, 0)
    pendulums.angle, pendulums.speed = np.zeros(1), np.zeros(1)
    assert sum(float(pendulums.step(np.zeros(1))[0]) for _ in range(EPISODE_STEPS)) == 0.0


def test_a_pendulum_that_hangs_costs_pi_squared_and_cannot_be_pushed_harder_than_it_may() -> None:
    pendulums = Pendulums(2, 0)
    pendulums.angle, pendulums.speed = np.full(2, math.pi), np.zeros(2)
    rewards = pendulums.step(np.array([2.0, 100.0]))
    assert rewards == pytest.approx(-(math.pi**2) - 0.004)
    assert pendulums.speed[0] == pendulums.speed[1] == pytest.approx(0.3)


def test_it_is_the_pendulum_of_gymnasium_where_that_is_installed() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: nothing to compare with")
    environment = gymnasium.make("Pendulum-v1").unwrapped
    environment.reset(seed=1)
    pendulums = Pendulums(1, 0)
    pendulums.angle, pendulums.speed = (np.array([one]) for one in environment.state)
    for torque in np.random.default_rng(0).uniform(-3, 3, 100):
        observed, reward, *_ = environment.step(np.array([torque]))
        assert pendulums.step(np.array([torque]))[0] == pytest.approx(reward, rel=1e-4)
        assert pendulums.observe()[0] == pytest.approx(observed, abs=1e-4)


def test_the_pendulum_of_table_4_is_the_same_in_plain_python_and_of_gymnasium() -> None:
    pendulums = Pendulums(1, 0)
    pendulums.angle, pendulums.speed = np.full(1, table4.BEGIN), np.zeros(1)
    reward = 0.0
    for _ in range(50):
        _, sine, speed = pendulums.observe()[0]
        reward += float(pendulums.step(np.array([table4.torque_of(sine, speed)]))[0])
    assert table4.simulate_pendulum(50) == pytest.approx(reward)
    if table4.has_gymnasium(None):
        assert table4.simulate_gymnasium(50) == pytest.approx(reward, rel=1e-3)


def numeric_slope(function: object, at: np.ndarray, index: int) -> float:
    beside = [at.copy(), at.copy()]
    beside[0].flat[index] += 1e-6
    beside[1].flat[index] -= 1e-6
    return (function(beside[0]) - function(beside[1])) / 2e-6  # type: ignore[operator]


def test_gradients_of_ppo_are_those_of_its_loss() -> None:
    random = np.random.default_rng(0)
    parameters = {name: value + 0.1 for name, value in ppo.new_parameters(1).items()}
    observed, actions = random.standard_normal((50, 3)), random.standard_normal(50)
    means, _ = ppo.forward(parameters, "policy", observed)
    logs = ppo.log_density(actions, means, parameters["log_deviation"]) + 0.2 * random.standard_normal(50)
    rest = (observed, actions, logs, random.standard_normal(50), random.standard_normal(50))
    gradients = ppo.loss_gradients(parameters, *rest)
    assert gradients.keys() == parameters.keys()
    for name, gradient in gradients.items():
        for index in range(0, gradient.size, 17):
            slope = numeric_slope(
                lambda value, name=name: ppo.loss({**parameters, name: value}, *rest), parameters[name], index
            )
            assert gradient.flat[index] == pytest.approx(slope, abs=1e-5), name


def test_gradients_of_the_perceptron_are_those_of_its_loss() -> None:
    random = np.random.default_rng(0)
    inputs, targets = random.standard_normal((20, sgd.INPUTS)), random.standard_normal(20)
    weights = sgd.MultilayerPerceptron.weights()
    _, gradient = sgd.MultilayerPerceptron.loss_and_gradient(weights, inputs, targets)
    for index in range(0, len(weights), 401):
        slope = numeric_slope(
            lambda at: sgd.MultilayerPerceptron.loss_and_gradient(at, inputs, targets)[0] / 2, weights, index
        )
        assert gradient[index] == pytest.approx(slope, abs=1e-5)


def test_sums_of_evolution_add_up_in_any_grouping() -> None:
    weights = es.EvolutionStrategy(0).weights
    found = [es.try_changes(weights, seed) for seed in range(4)]
    flat = es.add_all(found)
    tree = es.add_all([es.add_all(found[:2]), es.add_all(found[2:])])
    assert flat.tries == tree.tries == 8 * es.PAIRS
    assert flat.change == pytest.approx(tree.change)
    assert es.add_all([es.try_nothing(), flat]).change == pytest.approx(flat.change)
