"""Schedulers by name, in a scenario, in settings and on the command line."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sim.command import main
from sim.run import PASSED, run_scenario
from sim.scenario import ClusterPart, Scenario, ScenarioError, WorkloadPart, parse
from sim.swarm import as_toml
from zray.config import Config
from zray.core.placement import POLICIES, SCHEDULING, configured, placement_of


@pytest.mark.parametrize("name", sorted(SCHEDULING))
def test_every_policy_runs_a_cluster_and_is_judged(name: str) -> None:
    workload = WorkloadPart("random_dag", tasks=60)
    scenario = Scenario("p", policy=name, cluster=ClusterPart(nodes=3, drivers=3), workload=workload)  # type: ignore[arg-type]
    first, _ = run_scenario(scenario, 3)
    again, _ = run_scenario(scenario, 3)
    assert first.kind == PASSED, first.detail
    assert first.digest == again.digest


def test_a_policy_changes_what_nodes_and_the_global_scheduler_do() -> None:
    assert configured(Config()) == Config()
    assert configured(Config(scheduling_policy="centralised")).backlog_per_slot_max == -1
    assert configured(Config(scheduling_policy="threshold_zero")).backlog_per_slot_max == 0
    assert placement_of(Config(scheduling_policy="centralised")) == "paper"
    assert all(placement_of(Config(scheduling_policy=name)) == name for name in POLICIES)


def test_an_unknown_policy_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"no scheduling policy 'x'; there are centralised, .*threshold_zero"
    ):
        configured(Config(scheduling_policy="x"))
    with pytest.raises(ScenarioError, match=r"s\.toml: key policy: Invalid enum value 'x'"):
        parse('name = "s"\npolicy = "x"', "s.toml")
    with pytest.raises(SystemExit):
        main(["run", "chain", "--policy", "x"])
    assert "invalid choice: 'x'" in capsys.readouterr().err


def test_a_scenario_keeps_its_policy_and_resources_on_paper() -> None:
    scenario = parse('name = "s"\npolicy = "spread"\n[cluster.resources]\nGPU = 2.0', "s.toml")
    assert scenario.policy == "spread"
    assert scenario.cluster.resources == {"GPU": 2.0}
    assert parse(as_toml(scenario), "again") == scenario
    assert parse(as_toml(replace(scenario, policy="paper")), "again").policy == "paper"


def test_a_policy_can_be_given_to_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "chain", "--policy", "centralised"]) == PASSED
    assert "spillbacks 0" in capsys.readouterr().out
