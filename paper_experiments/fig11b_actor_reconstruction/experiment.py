"""Figure 11b: actors that lose their processes, with and without checkpoints.

Every actor runs a queue of calls of 100 ms. After about forty of them, as in the paper, a fifth of the actors
are killed at once and are made again: from their last checkpoint and the calls since, or from all calls.
Each execution leaves a line in a file of its actor, so what ran again is counted and not estimated; each
actor's state is a checksum of the order of its calls, which a run without zray tells.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import zray
from paper_experiments.common.local import local_cluster
from paper_experiments.common.run import ExperimentRun

CALL_S = 0.1
CALLS_BEFORE = 40
"""200 s of one call every 5 s, as in the paper."""
INTERVAL = 3
"""Calls between checkpoints: bursts every 16 s of calls every 5 s in the paper."""
LOST_SHARE = 0.2
SETTLE_S = 0.5
WITH, WITHOUT = VARIANTS = ("with checkpoints", "without checkpoints")
Moments = np.ndarray[Any, Any]


class Accumulator:
    """An actor whose state tells which calls it ran, and in which order.

    Args:
        log: a file that gets a line for every execution, also for those that are repeated.
    """

    def __init__(self, log: str) -> None:
        self.log = log
        self.state = 0

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def work(self, number: int) -> int:
        """One call."""
        time.sleep(CALL_S)
        self.state = following(self.state, number)
        with open(self.log, "a") as log:
            log.write(f"{number} {time.monotonic()}\n")
        return self.state

    def __zray_save__(self) -> int:
        return self.state

    def __zray_load__(self, state: int) -> None:
        self.state = state


def following(state: int, number: int) -> int:
    """The state after a call; not the same for any other order."""
    return (31 * state + number + 1) % (1 << 61)


class Executions(NamedTuple):
    """What the log of one actor says."""

    first_s: Moments
    """float64[calls]: when each call ran for the first time."""
    again_s: Moments
    """float64[repeated]: when calls ran again."""


class Recovery(NamedTuple):
    """One run."""

    actors: list[Executions]
    states: list[int]
    began_s: float
    killed_s: float
    lost: int
    """The first so many of the actors were killed."""


def live(run: ExperimentRun) -> None:
    """The actors of one node; their processes are killed."""
    count = run.pick("actors", tiny=5, small=20, paper=50)
    after = run.pick("calls_after", tiny=8, small=50, paper=80)
    before = run.pick("calls_before", tiny=12, small=CALLS_BEFORE, paper=CALLS_BEFORE)
    run.parameter("checkpoint_interval", INTERVAL)
    calls = before + after
    wrong, found = 0, {}
    for variant in run.steps(VARIANTS, "variant"):
        one = found[variant] = _recover(count, before, calls, INTERVAL if variant == WITH else 0)
        wrong += sum(state != state_alone(calls) for state in one.states)
        _draw(run, variant, one)
    run.quantity("wrong_states", wrong)
    _conclude(run, found[WITH], found[WITHOUT])


def state_alone(calls: int) -> int:
    """The state of an actor that nobody killed."""
    state = 0
    for number in range(calls):
        state = following(state, number)
    return state


def _recover(count: int, before: int, calls: int, interval: int) -> Recovery:
    """All actors at work; some lose their processes; all come to their ends."""
    lost = max(1, round(LOST_SHARE * count))
    with tempfile.TemporaryDirectory(prefix="zs") as folder, local_cluster(num_cpus=2):
        logs = [Path(folder) / str(number) for number in range(count)]
        kind: Any = zray.remote(Accumulator).options(
            max_restarts=-1, max_task_retries=-1, checkpoint_interval=interval, num_cpus=0
        )
        actors = [kind.remote(str(log)) for log in logs]
        pids = zray.get([actor.pid.remote() for actor in actors])
        began_s = time.monotonic()
        refs = [[actor.work.remote(number) for number in range(calls)] for actor in actors]
        zray.get([mine[before - 1] for mine in refs[:lost]])
        killed_s = time.monotonic()
        for pid in pids[:lost]:
            os.kill(pid, signal.SIGKILL)
        states = zray.get([mine[-1] for mine in refs])
        return Recovery([_read(log, calls) for log in logs], states, began_s, killed_s, lost)


def _read(log: Path, calls: int) -> Executions:
    first: dict[int, float] = {}
    again: list[float] = []
    for line in log.read_text().splitlines():
        number, moment = line.split()
        if int(number) in first:
            again.append(float(moment))
        else:
            first[int(number)] = float(moment)
    return Executions(np.array([first[number] for number in range(calls)]), np.array(again))


# --- what came of it -----------------------------------------------------------------------------


def _draw(run: ExperimentRun, variant: str, found: Recovery) -> None:
    """Calls that ended in each second, and those among them that ran again."""
    first_s = np.concatenate([one.first_s for one in found.actors]) - found.began_s
    again_s = np.concatenate([one.again_s for one in found.actors]) - found.began_s
    for second in range(int(first_s.max()) + 1):
        run.point("throughput", f"calls, {variant}", second, _within(first_s, second, second + 1))
        run.point("throughput", f"repeated, {variant}", second, _within(again_s, second, second + 1))


def _conclude(run: ExperimentRun, saved: Recovery, repeated: Recovery) -> None:
    per_actor = {}
    for name, found in ((WITH, saved), (WITHOUT, repeated)):
        counts = [len(one.again_s) for one in found.actors]
        per_actor[name] = sum(counts[: found.lost]) / found.lost
        run.quantity(f"repeated_per_lost {name}", per_actor[name])
        run.quantity(f"most_repeated {name}", max(counts))
        run.quantity(f"repeated_of_others {name}", sum(counts[found.lost :]))
    before = sum(int((one.first_s < repeated.killed_s).sum()) for one in repeated.actors[: repeated.lost])
    run.quantity("repeated_share_without", per_actor[WITHOUT] * repeated.lost / before)
    run.quantity("saved_by_checkpoints", per_actor[WITHOUT] / max(1 / saved.lost, per_actor[WITH]))
    run.quantity("rate_with_over_without", _rate(saved) / _rate(repeated))
    share = _share_of_others(saved)
    run.quantity("others_share_after_loss", share)
    if (steady := _rate(saved) * CALL_S / len(saved.actors)) < 0.97:
        run.beyond(
            "others_share_after_loss",
            f"on {os.cpu_count()} shared CPUs the actors reach {steady:.2f} of their rate even undisturbed, "
            "and new processes start on the same CPUs",
        )
    run.absent(
        "recovered_elsewhere",
        "actors stay on the node of their creator: here processes are killed and not nodes; an actor of a "
        "node that dies is lost with it",
    )


def _rate(found: Recovery) -> float:
    """Calls per second of all actors before the loss."""
    moments_s = np.concatenate([one.first_s for one in found.actors])
    from_s = found.began_s + SETTLE_S
    return _within(moments_s, from_s, found.killed_s) / (found.killed_s - from_s)


def _share_of_others(found: Recovery) -> float:
    """Throughput of the actors that were not killed from the loss until they end, against before it."""
    others = [one.first_s for one in found.actors[found.lost :]]
    until_s = min(float(moments[-1]) for moments in others)
    after = sum(_within(moments, found.killed_s, until_s) for moments in others) / (until_s - found.killed_s)
    from_s = found.began_s + SETTLE_S
    before = sum(_within(moments, from_s, found.killed_s) for moments in others) / (found.killed_s - from_s)
    return after / before


def _within(moments_s: Moments, from_s: float, to_s: float) -> float:
    return float(((moments_s >= from_s) & (moments_s < to_s)).sum())
