"""Placement groups with one rule taken out: a judge must notice each of them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sim.run import CORRECTNESS, LIVENESS, PASSED, run_scenario
from sim.scenario import (
    ClusterPart,
    FaultsPart,
    NetworkPart,
    PhasesPart,
    Scenario,
    WorkloadPart,
    load,
)
from zray.core import group_plans
from zray.core.bundle_wishes import BundleWishes
from zray.core.bundles import Bundles
from zray.core.group_book import RECORDING, Group
from zray.core.group_requests import GroupRequests
from zray.core.placement_groups import PlacementGroups
from zray.core.worker_pool import WorkerPool
from zray.protocol.group_messages import HoldBundles

Patch = pytest.MonkeyPatch
SEEDS = range(8)

RESTLESS = Scenario(
    "restless-groups",
    cluster=ClusterPart(nodes=3, drivers=6, cpus=4),
    network=NetworkPart(latency_us=100, jitter_us=1000),
    workload=WorkloadPart("groups", tasks=1000, task_us=1000),
    faults=FaultsPart(shard_crash=60.0, outage_ms=5),
    phases=PhasesPart(faulty_s=2.0, quiet_s=15.0),
)
"""Many groups at a coordinator that dies many times a second."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def first_failure(scenario: Scenario, seeds: range = SEEDS) -> tuple[int, str]:
    """Verdict and words of the first seed that does not pass; who hangs has little time to do so."""
    phases = PhasesPart(scenario.phases.faulty_s, liveness_s=20.0, quiet_s=scenario.phases.quiet_s)
    for seed in seeds:
        verdict, _ = run_scenario(replace(scenario, phases=phases), seed)
        if verdict.kind != PASSED:
            return verdict.kind, verdict.detail
    return PASSED, ""


@pytest.fixture
def groups(monkeypatch: Patch) -> Scenario:
    """The shipped scenario; ``check()`` of the code under test says nothing."""
    for machine in (PlacementGroups, Bundles, BundleWishes, GroupRequests, WorkerPool):
        monkeypatch.setattr(machine, "check", lambda self, *_: None)
    return load("groups")


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("scenario", [load("groups"), RESTLESS])
def test_without_a_canary_they_pass(scenario: Scenario) -> None:
    assert first_failure(scenario, range(2)) == (PASSED, "")


def test_a_commit_before_all_have_prepared_is_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    def see(self: PlacementGroups, group: Group) -> None:
        if group.planned and group.state < RECORDING:
            self.book.set_state(group, RECORDING)
            self.table.write(group.row())

    monkeypatch.setattr(PlacementGroups, "_see_whether_prepared", see)
    kind, detail = first_failure(groups)
    assert kind == CORRECTNESS
    assert "is committed before all of it is reserved" in detail


def test_a_node_that_is_not_told_to_let_go_is_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    monkeypatch.setattr(BundleWishes, "release_all", lambda self, group_id: None)
    kind, detail = first_failure(groups)
    assert kind in (CORRECTNESS, LIVENESS)
    assert "has set aside" in detail or "did not end" in detail


def test_wishes_that_are_said_once_are_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    monkeypatch.setattr(BundleWishes, "repeat", lambda self: None)
    kind, _ = first_failure(groups)
    assert kind in (CORRECTNESS, LIVENESS)


def test_bundles_of_the_dead_are_missed(monkeypatch: Patch, groups: Scenario) -> None:
    monkeypatch.setattr(PlacementGroups, "_survive", lambda self, *_: None)
    kind, _ = first_failure(groups)
    assert kind in (CORRECTNESS, LIVENESS)


def test_groups_that_outlive_their_job_are_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    monkeypatch.setattr(GroupRequests, "job_over", lambda self, *_: None)
    kind, detail = first_failure(groups)
    assert kind == CORRECTNESS
    assert "groups are left" in detail


def test_a_strict_strategy_that_is_not_kept_is_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    monkeypatch.setattr(group_plans, "_each_apart", group_plans._on_few)
    kind, detail = first_failure(groups)
    assert kind == CORRECTNESS
    assert "has two bundles on one node" in detail


def test_a_group_that_is_usable_in_part_is_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    """A node that commits what it should only prepare: tasks run in a group that may never be."""
    hold = Bundles.on_hold

    def commits_at_once(self: Bundles, source: bytes, message: HoldBundles) -> None:
        bundles = tuple(replace(bundle, committed=True) for bundle in message.bundles)
        hold(self, source, replace(message, bundles=bundles))

    monkeypatch.setattr(Bundles, "on_hold", commits_at_once)
    kind, detail = first_failure(groups)
    assert kind == CORRECTNESS
    assert "starts where nothing of it is committed" in detail


def test_a_forgetful_coordinator_is_noticed(monkeypatch: Patch, groups: Scenario) -> None:
    """A new life that does not ask what its nodes hold leaves them with what nobody knows."""

    def ask(self: BundleWishes, node_id: bytes) -> Any:
        return None

    monkeypatch.setattr(BundleWishes, "ask", ask)
    kind, detail = first_failure(RESTLESS)
    assert kind == CORRECTNESS
    assert "has set aside" in detail
