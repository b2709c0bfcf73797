"""Plays a described workload with any system that has zray's API. Imports nothing of zray: Ray runs it, too.

A task sleeps as long as was drawn for it and returns as many bytes as its stage says; what it takes is only
looked at. So a run measures the system, and virtual time may stand for real time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any


def work(seconds: float, output_bytes: int, *inputs: bytes) -> bytes:
    """One task."""
    time.sleep(seconds)
    return bytes(output_bytes)


class StageActor:
    """Runs the calls of a stage that belong to it, one after the other."""

    def work(self, seconds: float, output_bytes: int, *inputs: bytes) -> bytes:
        """One call."""
        return work(seconds, output_bytes, *inputs)


def durations_s(stage: dict[str, Any], seed: int, iteration: int) -> list[float]:
    """How long each task of a stage takes in one iteration: lognormal around its median."""
    drawn = random.Random(f"{seed}/{iteration}/{stage['name']}")
    median_s = stage["duration_ms"] / 1000
    if not median_s:
        return [0.0] * stage["tasks"]
    return [drawn.lognormvariate(math.log(median_s), stage["spread"]) for _ in range(stage["tasks"])]


def inputs_of(stage: dict[str, Any], number: int, done: dict[str, list[Any]]) -> list[Any]:
    """What a task takes: its share of the results of other stages, or all of them."""
    found: list[Any] = []
    for taken in stage["takes"]:
        results = done[taken]
        found += results if stage["takes_all"] else results[number % len(results) :: stage["tasks"]]
    return found


def play(
    api: Any, workload: dict[str, Any], clock_s: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Run a workload once.

    Returns:
        ``makespan_s``, how many ``tasks`` there were, and ``work_s``, what they slept.
    """
    function = api.remote(work)
    actors = {
        stage["name"]: [api.remote(StageActor).options(num_cpus=0).remote() for _ in range(stage["actors"])]
        for stage in workload["stages"]
    }
    api.get([actor.work.remote(0.0, 0) for group in actors.values() for actor in group])
    api.get([function.remote(0.01, 0) for _ in range(2 * workload["cpus"])])  # workers are there
    began_s, work_s, tasks = clock_s(), 0.0, 0
    for iteration in range(workload["iterations"]):
        done: dict[str, list[Any]] = {}
        for stage in workload["stages"]:
            if stage["waits"]:
                _wait(api, done)
            seconds = durations_s(stage, workload["seed"], iteration)
            group = actors[stage["name"]]
            done[stage["name"]] = [
                (group[number % len(group)].work if group else function).remote(
                    one_s, stage["output_bytes"], *inputs_of(stage, number, done)
                )
                for number, one_s in enumerate(seconds)
            ]
            work_s, tasks = work_s + sum(seconds), tasks + len(seconds)
        _wait(api, done)
    return {"makespan_s": clock_s() - began_s, "tasks": tasks, "work_s": work_s}


def _wait(api: Any, done: dict[str, list[Any]]) -> None:
    refs = [ref for refs in done.values() for ref in refs]
    api.wait(refs, num_returns=len(refs)) if refs else None
