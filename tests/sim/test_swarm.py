"""A short swarm, the runs that once failed, and the tools around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim import command
from sim.run import CORRECTNESS, CRASH, LIVENESS, PASSED, run_scenario
from sim.scenario import ScenarioError, load, shipped
from sim.swarm import (
    ACTOR_SEEDS,
    CHAINED_SEEDS,
    CLUSTER_SEEDS,
    COPY_SEEDS,
    DETACHED_SEEDS,
    FLUSHING_SEEDS,
    GROUP_SEEDS,
    LEAVER_SEEDS,
    OFFLOAD_SEEDS,
    SCHEDULER_SEEDS,
    STREAM_SEEDS,
    TRAINING_SEEDS,
    Regression,
    difference,
    regressions,
    run_seed,
    run_seeds,
    shrink,
    worst,
)
from zray.core.local_scheduler import LocalScheduler
from zray.errors import InvariantError

REGRESSIONS = Path(__file__).with_name("regressions.toml")
SMOKE_SEEDS = [
    *range(100),
    *range(CLUSTER_SEEDS, CLUSTER_SEEDS + 40),
    *range(CHAINED_SEEDS, CHAINED_SEEDS + 15),
    *range(ACTOR_SEEDS, ACTOR_SEEDS + 20),
    *range(GROUP_SEEDS, GROUP_SEEDS + 10),
    *range(OFFLOAD_SEEDS, OFFLOAD_SEEDS + 10),
    *range(TRAINING_SEEDS, TRAINING_SEEDS + 8),
    *range(SCHEDULER_SEEDS, SCHEDULER_SEEDS + 15),
    *range(COPY_SEEDS, COPY_SEEDS + 6),
    *range(FLUSHING_SEEDS, FLUSHING_SEEDS + 8),
    *range(DETACHED_SEEDS, DETACHED_SEEDS + 12),
    *range(STREAM_SEEDS, STREAM_SEEDS + 5),
    *range(LEAVER_SEEDS, LEAVER_SEEDS + 8),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SMOKE_SEEDS)
def test_swarm_smoke(seed: int) -> None:
    verdict = run_seed(seed)[1]
    assert verdict.kind == PASSED, f"{verdict.detail}\nreplay: zray sim run swarm --seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped() if name != "empty"])
def test_shipped_scenarios_pass(name: str) -> None:
    verdict, _ = run_scenario(load(name), 1)
    assert verdict.kind == PASSED, verdict.detail
    assert verdict.summary.tasks > 50


@pytest.mark.parametrize("regression", regressions(REGRESSIONS), ids=lambda regression: regression.name)
def test_what_failed_once_passes(regression: Regression) -> None:
    verdict, _ = run_scenario(regression.scenario, regression.seed, costs=regression.costs)
    if regression.is_open:
        assert verdict.kind != PASSED, "it is mended: take `open` out of its entry"
    else:
        assert verdict.kind == PASSED, verdict.detail


def test_regressions_are_refused_by_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "regressions.toml"
    path.write_text("[[run]]\nname = 'x'\nseed = 1\nstory = ''\nchanges = { 'cluster.colour' = 3 }\n")
    with pytest.raises(ScenarioError, match=r"regressions\.toml: run 0"):
        regressions(path)


@pytest.mark.slow
def test_two_jobs_give_the_verdicts_of_one() -> None:
    alone = dict(run_seeds(range(4), 1))
    assert dict(run_seeds(range(4), 2)) == alone


def test_the_worst_verdict_is_the_exit_code() -> None:
    assert worst([]) == worst([PASSED]) == 0
    assert worst([PASSED, LIVENESS]) == 4
    assert worst([LIVENESS, CRASH]) == 3
    assert worst([CRASH, CORRECTNESS, LIVENESS]) == 5


def test_the_command_runs_lists_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, picture = tmp_path / "trace.json", tmp_path / "chrome.json"
    arguments = ["run", "chain", "--seed", "3", "--trace", str(trace), "--chrome", str(picture)]
    assert command.main(arguments) == 0
    assert "chain, seed 3: passed" in capsys.readouterr().out
    assert '"add_all"' in picture.read_text()
    assert trace.stat().st_size > 100
    assert command.main(["list"]) == 0
    assert "crashes" in capsys.readouterr().out
    assert command.main(["run", "nowhere"]) == 2
    assert "shipped scenarios" in capsys.readouterr().err
    assert command.main(["run", "chain", "--costs", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert command.main(["swarm", "--seeds", "0..1"]) == 0
    assert "2 seeds, 2 passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("exit_code", "rule"), [(CRASH, KeyError), (LIVENESS, None), (CORRECTNESS, InvariantError)]
)
def test_exit_codes_tell_what_kind_of_failure_it_is(
    monkeypatch: pytest.MonkeyPatch, exit_code: int, rule: type[Exception] | None
) -> None:
    def dependencies_sealed(self: LocalScheduler, tasks: list[Any]) -> None:
        if rule is not None:
            raise rule("a canary")

    monkeypatch.setattr(LocalScheduler, "dependencies_sealed", dependencies_sealed)
    monkeypatch.setattr(LocalScheduler, "check", lambda self: None)  # it would see what does not go on
    assert command.main(["run", "chain"]) == exit_code


@pytest.mark.slow
def test_a_failing_scenario_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalScheduler, "dependencies_sealed", lambda self, tasks: None)
    scenario = load("outages")
    verdict, _ = run_scenario(scenario, 1)
    assert verdict.kind != PASSED
    smaller = shrink(scenario, 1, verdict.kind, lambda _: None)
    assert run_scenario(smaller, 1)[0].kind == verdict.kind
    assert smaller.workload.tasks < 20
    assert "faults.shard_crash" not in difference(smaller)
