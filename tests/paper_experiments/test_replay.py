"""Described workloads: what a file may say, the same program everywhere, the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paper_experiments import command
from paper_experiments.common.catalogue import ROOT
from paper_experiments.replay import description, program
from paper_experiments.replay.description import WorkloadFileError
from paper_experiments.replay.run import simulate

GOOD = """
name = "small"
about = "a barrier and a join"
cpus = 2
[[stages]]
name = "one"
tasks = 4
duration_ms = 100
output_bytes = 10
[[stages]]
name = "two"
tasks = 2
takes = ["one"]
duration_ms = 50
actors = 1
"""
SHIPPED = sorted((ROOT / "workloads").glob("*.toml"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(GOOD)
    return path


def test_in_virtual_time_it_takes_what_its_stages_take(written: Path) -> None:
    workload = description.load(written)
    found = simulate(workload)
    assert found["tasks"] == 6
    assert found["work_s"] == pytest.approx(0.5)
    assert found["makespan_s"] == pytest.approx(0.3, rel=0.05)  # two rounds of one, then two calls in turn
    assert simulate(workload) == found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_ones_run(path: Path) -> None:
    found = simulate(description.load(path))
    assert found["makespan_s"] > 0


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('takes = ["one"]', 'takes = ["three"]', "no earlier stage"),
        ('name = "two"', 'name = "one"', "is there twice"),
        ("tasks = 4", "tasks = 0", "tasks"),
        ("tasks = 4", "tusks = 4", "tusks"),
        ("tasks = 4", "tasks = 1_000_000", "more than"),
        ("duration_ms = 100", "duration_ms = -1", "duration_ms"),
        ("[[stages]]", "[[stages", "small.toml"),
    ],
)
def test_a_bad_one_is_refused_by_file_and_key(written: Path, before: str, after: str, named: str) -> None:
    written.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(WorkloadFileError, match=re.escape(named)) as caught:
        description.load(written)
    assert "small.toml" in str(caught.value)
    assert command.main(["replay", str(written)]) == 2


def test_results_are_divided_or_given_to_all() -> None:
    done = {"one": list("abcde")}
    stage = {"takes": ["one"], "takes_all": False, "tasks": 2}
    assert [program.inputs_of(stage, number, done) for number in range(2)] == [list("ace"), list("bd")]
    assert program.inputs_of({**stage, "takes_all": True}, 1, done) == list("abcde")
    assert program.inputs_of({**stage, "tasks": 9}, 7, done) == ["c"]  # more tasks than results: they share


@pytest.mark.slow
def test_the_command_runs_it_for_real_and_in_virtual_time(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["replay", str(written), "--repetitions", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^zray +0\.\d+ s", out, re.M)
    assert re.search(r"^sim +0\.3\d+ s", out, re.M)


@pytest.mark.slow
def test_a_system_that_is_missing_is_said(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["replay", str(written), "--system", "ray", "--python", f"ray={written.parent / 'python'}"]
    assert command.main(given) == 1
    assert "without ray" in capsys.readouterr().err
