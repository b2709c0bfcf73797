"""Detached actors with one rule taken out: a judge must notice each of them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sim.checkers import Judge
from sim.run import CORRECTNESS, PASSED, run_scenario
from sim.scenario import load
from tests.sim.test_cluster_canaries import first_failure, no_self_judgement
from zray.core.deeds import Deeds
from zray.core.succession import Succession
from zray.core.wills import Wills

__all__ = ["no_self_judgement"]  # the fixture

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.slow


def test_without_a_canary_they_pass_and_homes_change() -> None:
    inherited = 0
    for seed in range(3):
        verdict, cluster = run_scenario(load("detached"), seed)
        assert verdict.kind == PASSED, verdict.detail
        inherited += sum(node.node.cluster.actors.wills.inherited for node in cluster.nodes)
    assert inherited


@pytest.mark.usefixtures("no_self_judgement")
def test_two_successors_are_noticed(monkeypatch: Patch) -> None:
    """Every node has a will, and takes itself for the successor, whatever a compare-and-set says."""
    choose, decide = Succession._choose, Wills.decide

    def choose_all(self: Succession, entry: Any, line: Any) -> None:
        choose(self, entry, line)
        for node in self.alive:
            if node not in line.told:
                self._tell_all(entry, line, node)

    def take_anyway(self: Wills, actor_id: bytes, row: Any, value: bytes) -> None:
        held = self.wills.get(actor_id)
        if held is not None and row is not None:
            row = replace(row, home=held.home, successor=self.scheduler.node_id)
        decide(self, actor_id, row, value)

    monkeypatch.setattr(Succession, "_choose", choose_all)
    monkeypatch.setattr(Wills, "on_void", lambda *_: None)
    monkeypatch.setattr(Judge, "check_at_rest", lambda *_: None)  # such wills are left, too
    monkeypatch.setattr(Wills, "decide", take_anyway)
    monkeypatch.setattr(Deeds, "_lost", lambda self, deed, current: self._won(deed))
    kind, detail = first_failure(load("detached"), range(6))
    assert kind == CORRECTNESS
    assert "starts again" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_state_that_goes_backwards_is_noticed(monkeypatch: Patch) -> None:
    """The successor is told what was recorded before it was chosen, and nothing that was recorded since."""
    monkeypatch.setattr(Succession, "recorded", lambda *_: None)
    kind, detail = first_failure(load("detached"), range(12))
    assert kind == CORRECTNESS
    assert "I1" in detail
