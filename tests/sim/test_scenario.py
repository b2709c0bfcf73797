"""Scenario files: what is refused, and how it is said."""

from __future__ import annotations

import pytest

from sim import workload
from sim.scenario import Scenario, ScenarioError, WorkloadKind, load, parse, shipped
from sim.swarm import as_toml, scenario_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'\n[cluster]\ncpu = 4", ("cluster", "unknown field `cpu`")),
        ("name = 'x'\n[cluster]\ncpus = 'four'", ("key cluster.cpus", "Expected `int`")),
        ("name = 'x'\n[cluster]\ncpus = 0", ("key cluster.cpus", ">= 1")),
        ("name = 'x'\n[faults]\nspill_failure = 1.5", ("key faults.spill_failure", "<= 1.0")),
        ("name = 'x'\n[workload]\nkind = 'walk'", ("key workload.kind", "walk")),
        ("about = 'nameless'", ("name",)),
        ("name = ", ("not TOML",)),
    ],
)
def test_a_wrong_scenario_is_refused_with_file_and_key(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(text, "here.toml")
    assert str(caught.value).startswith("here.toml: ")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_scenario_is_refused_with_the_known_names() -> None:
    with pytest.raises(ScenarioError, match="crashes"):
        load("nowhere")


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenarios_have_their_file_name_and_say_what_they_are(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")


def test_every_kind_of_workload_exists() -> None:
    assert tuple(workload.KINDS) == WorkloadKind.__args__


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_scenario_survives_its_own_file(seed: int) -> None:
    scenario = scenario_of(seed)
    assert parse(as_toml(scenario), "drawn") == scenario
    assert scenario != Scenario("other")
