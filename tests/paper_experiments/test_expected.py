"""Every ``expected.toml`` is whole, and what is wrong in one is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paper_experiments.common import catalogue, expected, results
from paper_experiments.common.expected import ExpectedError

GOOD = """
title = "t"
place = "figure 0"
question = "q"
setup = "s"
[[charts]]
name = "c"
title = "t"
x = "x"
y = "y"
[[series]]
chart = "c"
name = "paper"
x = [1, 2]
y = [3, 4]
source = "figure 0"
[[claims]]
name = "a"
text = "it grows"
quantity = "slope"
at_least = 1.0
modes = ["sim"]
source = "section 0"
"""


def test_a_good_one_is_read() -> None:
    found = expected.parse(GOOD, "here")
    assert found.claims[0].holds_for(1.0)
    assert not found.claims[0].holds_for(0.99)
    assert not found.claims[0].holds_for(float("nan"))
    assert found.claims[0].bounds == "at least 1"


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('place = "figure 0"', "", "place"),
        ("at_least = 1.0", "", "neither at_least nor at_most"),
        ("at_least = 1.0", "at_least = 2.0\nat_most = 1.0", "nothing is"),
        ("at_least = 1.0", 'at_least = "1"', "at_least"),
        ('modes = ["sim"]', 'modes = ["simulated"]', "modes"),
        ('modes = ["sim"]', "modes = []", "modes is empty"),
        ('chart = "c"', 'chart = "d"', "no chart 'd'"),
        ("y = [3, 4]", "y = [3]", "2 x and 1 y"),
        ('source = "figure 0"', "", "source"),
        ('quantity = "slope"', 'quantity = "slope"\nqantity = "s"', "qantity"),
        ("[[claims]]", "[[claims", "here"),
    ],
)
def test_a_bad_one_is_refused_with_what_is_wrong(before: str, after: str, named: str) -> None:
    with pytest.raises(ExpectedError, match=re.escape(named)) as caught:
        expected.parse(GOOD.replace(before, after), "here")
    assert "here" in str(caught.value)


def test_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpectedError, match=r"expected\.toml"):
        expected.load(tmp_path)


@pytest.mark.parametrize("name", catalogue.names())
def test_the_folder_of_an_experiment_is_whole(name: str) -> None:
    experiment = catalogue.get(name)
    assert (experiment.folder / "README.md").read_text().startswith(f"# {experiment.expected.title}\n")
    claimed = {mode for claim in experiment.expected.claims for mode in claim.modes}
    assert claimed == set(experiment.runners), "claims are made for modes that run, and every mode has some"


@pytest.mark.parametrize("name", catalogue.names())
def test_stored_results_are_of_this_experiment_and_say_where_they_come_from(name: str) -> None:
    experiment = catalogue.get(name)
    charts = {chart.name for chart in experiment.expected.charts}
    for result in results.load_all(experiment.folder):
        assert result.experiment == name
        assert result.mode in experiment.runners
        assert {series.chart for series in result.series} <= charts
        assert {"machine", "commit", "code", "experiment_code", "day", "python"} <= result.provenance.keys()
