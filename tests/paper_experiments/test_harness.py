"""Runs, verdicts, storage, the report and the command, with an experiment of a few microseconds."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from paper_experiments import command
from paper_experiments.common import catalogue, drawing, expected, report, results, verdicts
from paper_experiments.common.catalogue import Experiment, UnknownExperimentError
from paper_experiments.common.results import StoredResultError
from paper_experiments.common.run import ExperimentRun, Progress
from tests.paper_experiments.test_expected import GOOD
from zray import cli

QUIET = Progress("test", io.StringIO())


def tiny(run: ExperimentRun) -> None:
    """A line of slope 2."""
    count = run.pick("points", small=2, paper=4)
    for x in run.steps(range(count), "x"):
        run.point("c", "ours", x, [2.0 * x, 2.0 * x + 0.5, 2.0 * x - 0.5])
    run.quantity("slope", 2.0)
    run.note("a line <b>")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    folder = tmp_path / "fig00_line"
    folder.mkdir()
    (folder / "experiment.py").write_text("")
    (folder / "expected.toml").write_text(GOOD)
    return Experiment("fig00_line", folder, expected.load(folder), {"sim": tiny})


def test_a_run_is_stored_and_read_again(experiment: Experiment) -> None:
    result = catalogue.run(experiment, "sim", "small", QUIET)
    path = results.save(result, experiment.folder)
    assert path.name == "sim-small.json"
    assert results.load_all(experiment.folder) == [result]
    (series,) = result.series
    assert (series.x, series.y, series.low, series.high) == ([0, 1], [0, 2], [-0.5, 1.5], [0.5, 2.5])
    assert result.parameters == {"points": 2}
    assert result.provenance["experiment_code"] == results.code_digest_of(experiment.folder)


def test_a_torn_result_is_refused_with_what_to_do(experiment: Experiment) -> None:
    path = results.save(catalogue.run(experiment, "sim", "small", QUIET), experiment.folder)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoredResultError, match="run makes a new one"):
        results.load_all(experiment.folder)


def test_a_mode_that_is_not_there_is_refused(experiment: Experiment) -> None:
    with pytest.raises(UnknownExperimentError, match="it has sim"):
        catalogue.run(experiment, "live", "small", QUIET)


def test_a_claim_is_judged_by_its_bound_then_by_what_the_run_explains(experiment: Experiment) -> None:
    (claim,) = experiment.expected.claims
    result = catalogue.run(experiment, "sim", "small", QUIET)
    assert verdicts.judge(claim, result).kind == verdicts.REPRODUCED
    result.beyond["slope"] = "one core"
    assert verdicts.judge(claim, result).kind == verdicts.REPRODUCED
    result.quantities["slope"] = 0.5
    assert verdicts.judge(claim, result)[2:] == (verdicts.BEYOND, 0.5, "one core", "small")
    result.beyond.clear()
    assert verdicts.judge(claim, result).reason == "0.5 is not at least 1"
    result.quantities.clear()
    assert verdicts.judge(claim, result).kind == verdicts.NOT_RUN
    result.absent["slope"] = "there is none"
    assert verdicts.judge(claim, result)[2:] == (verdicts.NOT_REPRODUCED, None, "there is none", "small")
    assert [verdict.kind for verdict in verdicts.judge_all(experiment.expected, [])] == [verdicts.NOT_RUN]


def test_the_page_holds_every_number_and_escapes_text(experiment: Experiment) -> None:
    result = catalogue.run(experiment, "sim", "small", QUIET)
    judged = verdicts.judge_all(experiment.expected, [result])
    page = report.html(
        [report.Section("fig00_line", experiment.expected, [result], judged, {("sim", "small"): True})],
        "small",
    )
    assert "1 reproduced" in page
    assert "a line &lt;b&gt;" in page
    assert "has changed since" in page
    assert str(result.provenance["code"]) in page


def test_the_same_picture_is_the_same_bytes(experiment: Experiment) -> None:
    pytest.importorskip("matplotlib")
    result = catalogue.run(experiment, "sim", "small", QUIET)
    (chart,) = experiment.expected.charts
    picture = drawing.draw(chart, experiment.expected, [result])
    assert picture == drawing.draw(chart, experiment.expected, [result])
    assert b"ours (sim)" in picture
    assert b"paper" in picture


def test_a_report_is_written_from_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *_: b"<svg/>")  # half a minute for all of them
    assert command.main(["report", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    for name in catalogue.names():
        assert f'id="{name}"' in page
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")


def test_runs_of_the_papers_scale_are_judged_beside_those_of_the_usual_one(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ROOT", experiment.folder.parent)
    for scale in ("tiny", "small", "paper"):
        results.save(catalogue.run(experiment, "sim", scale, QUIET), experiment.folder)
    [section] = report.sections("small")
    assert [result.scale for result in section.results] == ["small", "paper"]
    assert [verdict.scale for verdict in section.verdicts] == ["small", "paper"]
    assert not any(section.is_stale.values())
    [of_paper] = report.sections("paper")
    assert [verdict.scale for verdict in of_paper.verdicts] == ["paper"]
    assert "(sim, paper)" in report.html([section], "small")


def test_one_that_fails_does_not_keep_the_others_from_running(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(_: ExperimentRun) -> None:
        raise BrokenPipeError("its peer is gone")

    broken = experiment._replace(name="fig01_broken", runners={"sim": break_down})
    monkeypatch.setattr(catalogue, "get", lambda name: broken if name == "fig01" else experiment)
    assert command.main(["run", "fig01", "fig00", "--sim"]) == 1
    printed = capsys.readouterr()
    assert "fig01_broken, sim: BrokenPipeError: its peer is gone" in printed.err
    assert "stored in" in printed.out


def test_the_code_of_an_experiment_is_also_what_it_takes_from_others(experiment: Experiment) -> None:
    other = experiment.folder.parent / "fig99_other"
    other.mkdir()
    (experiment.folder / "experiment.py").write_text("from paper_experiments.fig99_other.workload import x")
    digests = [results.code_digest_of(experiment.folder)]
    for text in ("x = 1", "x = 2"):
        (other / "workload.py").write_text(text)
        digests.append(results.code_digest_of(experiment.folder))
    assert len(set(digests)) == 3


def test_a_check_fails_for_what_is_no_longer_reproduced_and_stores_nothing(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "get", lambda _: experiment)
    check = ["run", "fig00", "--sim", "--check"]
    assert command.main(check) == 0
    assert results.load_all(experiment.folder) == []
    stored = catalogue.run(experiment, "sim", "small", QUIET)
    path = results.save(stored, experiment.folder)
    assert command.main(check) == 0
    worse = experiment._replace(runners={"sim": lambda run: run.quantity("slope", 0.5)})
    monkeypatch.setattr(catalogue, "get", lambda _: worse)
    assert command.main(check) == 1
    stored.quantities["slope"] = 0.7  # was not reproduced before, either
    results.save(stored, experiment.folder)
    assert command.main(check) == 0
    path.write_text("{")
    assert command.main(check) == 1


def test_what_makes_no_sense_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "fig99"]) == 2
    assert "fig12b_scheduler_latency" in capsys.readouterr().err
    assert command.main(["run", "fig12b", "fig10a", "--sim", "--dry"]) == 2
    with pytest.raises(SystemExit):
        command.main(["run"])


def test_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in catalogue.names())


def test_zray_paper_is_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["paper", "list"]) == 0
    there = capsys.readouterr().out
    assert command.main(["list"]) == 0
    assert capsys.readouterr().out == there


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        progress = Progress("x", stream)
        progress.show(1, 2, "more")
        progress.clear()
    assert "############------------] 1/2 more" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")
    assert plain.getvalue() == "x 1/2 more\n"
