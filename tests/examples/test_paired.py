"""What counts as a regression, and what is compared with what."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import paired
from benchmarks.paired import Comparison


@pytest.mark.parametrize(
    ("ratios", "is_regression"),
    [
        ([0.8, 0.85, 0.8, 0.82], True),
        ([0.95, 0.92, 0.97, 0.94], False),  # within the tolerance
        ([0.5, 0.5, 1.3, 1.2], False),  # the rounds do not agree
        ([0.6, 0.7, 0.8, 1.2], True),  # three quarters do
        ([1.4, 1.5, 1.2, 1.3], False),
    ],
)
def test_a_regression_is_beyond_the_tolerance_and_most_rounds_agree(
    ratios: list[float], is_regression: bool
) -> None:
    assert Comparison("x", ratios).is_regression(0.1) == is_regression


def test_rates_and_times_are_better_in_opposite_directions_and_gaps_are_left_out() -> None:
    ours = [{"task_sync.rate": 200.0, "task_sync.p50": 50.0}, {"task_sync.rate": 300.0}]
    theirs = [{"task_sync.rate": 100.0, "task_sync.p50": 100.0}, {"task_sync.p50": 100.0}]
    compared = {each.title: each.ratios for each in paired.compare(ours, theirs, ["task_sync"])}
    assert compared == {"task, one at a time": [2.0], "task round trip, p50": [2.0]}


def test_without_a_commit_to_compare_with_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="say --against COMMIT"):
        paired.base_commit(None)
    with pytest.raises(SystemExit, match="say --against COMMIT"):
        paired.base_commit("no-such-commit")
