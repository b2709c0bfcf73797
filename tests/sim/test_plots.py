"""Pictures of a run, and what is said without the library that draws them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sim.command import main
from sim.plots import MissingExtraError, draw_gantt, require
from sim.run import run_scenario
from sim.scenario import load


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'zray\[experiments\]'"):
        require(".png")
    assert main(["run", "chain", "--plots", str(tmp_path)]) == 2
    assert "zray[experiments]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends in .png, .svg, .pdf, .html, not in '.doc'"):
        require(".doc")


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'experiments' is not installed")
    assert main(["run", "chain", "--plots", str(tmp_path / "new"), "--format", "html"]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "gantt.html", "queues.html", "throughput.html",
    ]  # fmt: skip
    _, cluster = run_scenario(load("tree"), 1, keep_spans=True)
    draw_gantt(cluster, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_queues_are_only_watched_for_pictures() -> None:
    _, plain = run_scenario(load("tree"), 1)
    _, watched = run_scenario(load("tree"), 1, keep_spans=True)
    assert plain.nodes[0].queue_lengths == []
    assert max(length for _, length in watched.nodes[0].queue_lengths) > 0
    assert plain.kernel.digest() == watched.kernel.digest()
