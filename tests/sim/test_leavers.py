"""Actors that end themselves, over links of unequal speed: callers hear all that had ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from sim.run import CORRECTNESS, PASSED, run_scenario
from sim.scenario import load
from zray.core.call_relay import CallRelay
from zray.core.last_words import Farewells
from zray.protocol.user_messages import LastWordsHeard

pytestmark = pytest.mark.slow

SAY = Farewells.say


def test_callers_hear_all_that_was_answered() -> None:
    verdict, cluster = run_scenario(load("leavers"), 0)
    assert verdict.kind == PASSED, verdict.detail
    assert len(cluster.judge.left) == 50
    assert len(cluster.judge.answered) > 200


@pytest.mark.parametrize("seed", range(3))
def test_nobody_waits_for_the_dead(seed: int) -> None:
    """Callers, actors, nodes die, and processes over single messages."""
    scenario = load("leavers")
    rates = {"worker_crash": 40.0, "driver_crash": 2.0, "node_crash": 4.0, "worker_freeze": 20.0}
    faults = replace(scenario.faults, message_death=10.0, link_loss=20.0, **rates)
    verdict, _ = run_scenario(replace(scenario, faults=faults), seed)
    assert verdict.kind == PASSED, verdict.detail


@pytest.mark.parametrize(
    ("seed", "owner", "rule", "otherwise"),
    [
        (2, Farewells, "say", lambda self, callers: None),
        (2, Farewells, "say", lambda self, callers: SAY(self, ())),
        (
            10,
            CallRelay,
            "on_last_words",
            lambda self, worker: self.out.append((worker, LastWordsHeard())),
        ),
    ],
    ids=["the actor does not wait", "it waits for its node only", "its node does not wait for other nodes"],
)
def test_a_death_that_overtakes_a_reply_is_noticed(
    monkeypatch: pytest.MonkeyPatch, seed: int, owner: type, rule: str, otherwise: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, rule, otherwise)
    verdict, _ = run_scenario(load("leavers"), seed)
    assert verdict.kind == CORRECTNESS
    assert "in the place of a reply" in verdict.detail


def test_that_it_left_is_known_before_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be made again."""
    monkeypatch.setattr(Farewells, "say", lambda self, callers: None)
    verdict, _ = run_scenario(load("leavers"), 1)
    assert verdict.kind == CORRECTNESS
    assert "is being restarted" in verdict.detail
