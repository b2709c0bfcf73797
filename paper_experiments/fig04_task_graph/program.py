"""The program of the paper's figure 3, whose task graph is its figure 4: two simulators, two iterations.

Nothing waits inside the loop: the whole graph is built through refs. The policy is a number, so that the
result can be told: every rollout adds what its simulator has seen, every update adds up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import zray

SIMULATORS = 2
ITERATIONS = 2


def die_once(marker: str) -> None:
    """Kill this process, if nobody did so before at this place; an empty marker is no place."""
    if not marker:
        return
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@zray.remote
def create_policy() -> int:
    """The policy to begin with."""
    return 1


@zray.remote
def update_policy(policy: int, *rollouts: int) -> int:
    """A policy from the one before and what was seen with it."""
    return policy + sum(rollouts)


class Simulator:
    """An environment; what it has seen is its state, which outlives its process."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self.rollouts = 0

    def rollout(self, policy: int) -> int:
        """Act on a policy."""
        self.rollouts += 1
        if self.rollouts == ITERATIONS:
            die_once(self.marker)
        return policy * self.rollouts

    def __zray_save__(self) -> int:
        return self.rollouts

    def __zray_load__(self, rollouts: int) -> None:
        self.rollouts = rollouts


@zray.remote
def train_policy(dying_actor: str, dying_parent: str) -> int:
    """Rollouts and updates in turn.

    Args:
        dying_actor, dying_parent: files that say that the first simulator, or this task, has died already.
    """
    policy: Any = create_policy.remote()
    recoverable: Any = zray.remote(Simulator).options(max_restarts=-1, max_task_retries=-1)
    simulators = [recoverable.remote("" if number else dying_actor) for number in range(SIMULATORS)]
    for _ in range(ITERATIONS):
        rollouts = [simulator.rollout.remote(policy) for simulator in simulators]
        policy = update_policy.remote(policy, *rollouts)
    trained: int = zray.get(policy)
    die_once(dying_parent)
    return trained


def trained_alone() -> int:
    """What the program computes, computed without zray."""
    policy = 1
    for iteration in range(1, ITERATIONS + 1):
        policy += SIMULATORS * policy * iteration
    return policy
