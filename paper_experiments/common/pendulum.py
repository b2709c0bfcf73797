"""The pendulum of Gym (``Pendulum-v1``), many at once, in numpy: same dynamics, reward and beginnings.

Swing it up with a torque too weak to lift it. An episode has 200 steps; -1200 is what doing nothing useful
gives, -150 is a good swing-up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

EPISODE_STEPS = 200
OBSERVATIONS = 3
SPEED_MAX, TORQUE_MAX = 8.0, 2.0
GRAVITY, STEP_S = 10.0, 0.05


class Pendulums:
    """``count`` pendulums, each with an angle (0 is up) and a speed.

    Args:
        seed: where they begin.
    """

    def __init__(self, count: int, seed: int | tuple[int, ...]) -> None:
        random = np.random.default_rng(seed)
        self.angle: Array = random.uniform(-np.pi, np.pi, count)
        self.speed: Array = random.uniform(-1.0, 1.0, count)

    def observe(self) -> Array:
        """float64[count, 3]: cosine, sine, speed."""
        return np.stack([np.cos(self.angle), np.sin(self.angle), self.speed], axis=1)

    def step(self, torque: Array) -> Array:
        """Apply float64[count]; float64[count] of rewards, each at most 0."""
        torque = np.clip(torque, -TORQUE_MAX, TORQUE_MAX)
        off = (self.angle + np.pi) % (2 * np.pi) - np.pi
        cost: Array = off**2 + 0.1 * self.speed**2 + 0.001 * torque**2
        push = 1.5 * GRAVITY * np.sin(self.angle) + 3.0 * torque
        self.speed = np.clip(self.speed + push * STEP_S, -SPEED_MAX, SPEED_MAX)
        self.angle = self.angle + self.speed * STEP_S
        return -cost
