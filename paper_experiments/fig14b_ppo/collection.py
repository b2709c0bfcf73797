"""One iteration of PPO at the paper's size: collect steps, then learn on GPUs. Both sleep, in virtual time.

*Asynchronous*: whoever returns a rollout gets the next, until enough steps are there; one learner uses the
GPUs of a single node. *Bulk synchronous*: every process takes its share of the steps in whole rollouts, all
wait for the last, and all GPUs learn together, one for every eight CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

ROLLOUT_STEPS = (10, 1_000)
CPUS_PER_GPU = 8
GPUS_MAX = 8
"""Of the asynchronous learner."""


class CollectionPlan(NamedTuple):
    """What is simulated."""

    cpus: int
    steps: int
    step_s: float
    learn_s: float
    """On one GPU."""
    seed: int


class StepCollector:
    """Stands for an environment."""

    def rollout(self, steps: int, step_s: float) -> int:
        """One rollout; how many steps it had."""
        time.sleep(steps * step_s)
        return steps


def learn(seconds: float) -> None:
    """The update."""
    time.sleep(seconds)


def asynchronous_s(api: Any, plan: CollectionPlan, clock_s: Callable[[], float]) -> float:
    """Virtual seconds of one iteration."""
    actors, random = _collectors(api, plan), Random(plan.seed)
    began_s = clock_s()
    busy: dict[Any, Any] = {_rollout(actor, plan, random): actor for actor in actors}
    collected = 0
    while collected < plan.steps:
        (ready,), _ = api.wait(list(busy), num_returns=1)
        actor = busy.pop(ready)
        collected += api.get(ready)
        busy[_rollout(actor, plan, random)] = actor
    _learn(api, plan, gpus_of_learner(plan.cpus))
    taken_s = clock_s() - began_s
    api.get(list(busy))
    return taken_s


def bulk_synchronous_s(api: Any, plan: CollectionPlan, clock_s: Callable[[], float]) -> float:
    """Virtual seconds of one iteration."""
    return _in_step_s(api, plan, clock_s, gpus_of_all(plan.cpus))


def bulk_synchronous_learning_on_few_s(api: Any, plan: CollectionPlan, clock_s: Callable[[], float]) -> float:
    """The same if more GPUs than the asynchronous learner has do not make the update faster."""
    return _in_step_s(api, plan, clock_s, gpus_of_learner(plan.cpus))


def _in_step_s(api: Any, plan: CollectionPlan, clock_s: Callable[[], float], gpus: int) -> float:
    actors, random = _collectors(api, plan), Random(plan.seed)
    began_s = clock_s()
    refs = []
    for actor in actors:
        missing = plan.steps / plan.cpus
        while missing > 0:
            steps = random.randint(*ROLLOUT_STEPS)
            refs.append(_submit(actor, plan, steps))
            missing -= steps
    api.get(refs)
    _learn(api, plan, gpus)
    return clock_s() - began_s


def gpus_of_learner(cpus: int) -> int:
    """Never more than one for eight CPUs, and those of one node at most."""
    return min(GPUS_MAX, gpus_of_all(cpus))


def gpus_of_all(cpus: int) -> int:
    """One for every eight CPUs."""
    return max(1, cpus // CPUS_PER_GPU)


def _collectors(api: Any, plan: CollectionPlan) -> list[Any]:
    actors = [api.remote(StepCollector).remote() for _ in range(plan.cpus)]
    api.get([actor.rollout.remote(0, 0.0) for actor in actors])
    return actors


def _rollout(actor: Any, plan: CollectionPlan, random: Random) -> Any:
    return _submit(actor, plan, random.randint(*ROLLOUT_STEPS))


def _submit(actor: Any, plan: CollectionPlan, steps: int) -> Any:
    return actor.rollout.remote(steps, plan.step_s)


def _learn(api: Any, plan: CollectionPlan, gpus: int) -> None:
    api.get(api.remote(learn).options(num_cpus=0, num_gpus=gpus).remote(plan.learn_s / gpus))
