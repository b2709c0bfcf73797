"""What actors ran before and after their nodes died, real or simulated, and what claims are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from paper_experiments.common.run import ExperimentRun

CALLS_BEFORE = 40
"""200 s of one call every 5 s, as in the paper."""
INTERVAL = 3
"""Calls between checkpoints: bursts every 16 s of calls every 5 s in the paper."""
SETTLE_PERIODS = 5
"""Calls of an actor until throughput is taken."""
WITH, WITHOUT = VARIANTS = ("with checkpoints", "without checkpoints")
Moments = np.ndarray[Any, Any]


def following(state: int, number: int) -> int:
    """The state after a call; not the same for any other order."""
    return (31 * state + number + 1) % (1 << 61)


def state_alone(calls: int) -> int:
    """The state of an actor that nobody killed."""
    state = 0
    for number in range(calls):
        state = following(state, number)
    return state


class Executions(NamedTuple):
    """What one actor ran."""

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
    lost: list[bool]
    """Of each actor, whether its node was killed."""
    elsewhere: int
    """How many of those are on another node at the end."""

    def those(self, lost: bool) -> list[Executions]:
        """The actors of killed nodes, or the others."""
        return [one for one, mine in zip(self.actors, self.lost, strict=True) if mine is lost]


def draw(run: ExperimentRun, chart: str, variant: str, found: Recovery) -> None:
    """Calls that ended in each second, and those among them that ran again."""
    first_s = np.concatenate([one.first_s for one in found.actors]) - found.began_s
    again_s = np.concatenate([one.again_s for one in found.actors]) - found.began_s
    last = int(first_s.max()) + 1
    step = max(1, last // 60)
    for second in range(0, last, step):
        for name, moments_s in (("calls", first_s), ("repeated", again_s)):
            run.point(chart, f"{name}, {variant}", second, within(moments_s, second, second + step) / step)


def conclude(run: ExperimentRun, found: Mapping[str, Recovery], period_s: float) -> None:
    """Quantities of both runs. ``period_s``: an undisturbed actor makes one call in that time."""
    saved, repeated = found[WITH], found[WITHOUT]
    per_actor = {}
    for name, one in found.items():
        mine = [len(actor.again_s) for actor in one.those(lost=True)]
        others = [len(actor.again_s) for actor in one.those(lost=False)]
        per_actor[name] = sum(mine) / max(1, len(mine))
        run.quantity(f"repeated_per_lost {name}", per_actor[name])
        run.quantity(f"most_repeated {name}", max(mine + others))
        run.quantity(f"repeated_of_others {name}", sum(others))
        run.quantity(f"lost {name}", len(mine))
    lost = repeated.those(lost=True)
    before = sum(int((one.first_s < repeated.killed_s).sum()) for one in lost)
    run.quantity("repeated_share_without", per_actor[WITHOUT] * len(lost) / before)
    run.quantity("saved_by_checkpoints", per_actor[WITHOUT] / max(1 / sum(saved.lost), per_actor[WITH]))
    run.quantity("rate_with_over_without", _rate(saved, period_s) / _rate(repeated, period_s))
    run.quantity("rate_over_ideal", _rate(saved, period_s) * period_s / len(saved.actors))
    run.quantity("others_share_after_loss", _share_of_others(saved))
    run.quantity(
        "recovered_elsewhere", sum(one.elsewhere for one in found.values()) / sum(map(_lost, found.values()))
    )


def _lost(found: Recovery) -> int:
    return sum(found.lost)


def _rate(found: Recovery, period_s: float) -> float:
    """Calls per second of all actors before the loss."""
    moments_s = np.concatenate([one.first_s for one in found.actors])
    from_s = found.began_s + SETTLE_PERIODS * period_s
    return within(moments_s, from_s, found.killed_s) / (found.killed_s - from_s)


def _share_of_others(found: Recovery) -> float:
    """Throughput of the actors that were not killed from the loss until they end, against before it.

    Each one's is taken between ends of its calls, so that no share of a call counts for a whole one.
    """
    before, after = 0.0, 0.0
    for moments_s in (one.first_s for one in found.those(lost=False)):
        done = int((moments_s < found.killed_s).sum())
        before += (done - SETTLE_PERIODS) / (moments_s[done - 1] - moments_s[SETTLE_PERIODS - 1])
        after += (len(moments_s) - done) / (moments_s[-1] - moments_s[done - 1])
    return after / before


def within(moments_s: Moments, from_s: float, to_s: float) -> float:
    """How many there are."""
    return float(((moments_s >= from_s) & (moments_s < to_s)).sum())
