"""Every experiment runs, at a scale of seconds, and gives what its claims are about."""

from __future__ import annotations

import io

import pytest

from paper_experiments.common import catalogue
from paper_experiments.common.expected import Mode
from paper_experiments.common.results import Result
from paper_experiments.common.run import Progress

pytestmark = pytest.mark.slow

NEEDS_SIZE = {"tasks_per_s_at_100", "growth_10_to_100", "ratio_at_256"}
"""Quantities of clusters that a tiny run does not have."""
EXACT = {
    "lost_writes", "stale_reads", "wrong_results", "wrong_chains", "wrong_states", "wrong_rows",
    "missing_edges", "unexpected_edges", "deaths", "different_weights", "recovered_elsewhere",
}  # fmt: skip
"""What must hold at every scale and load."""


def runs_of(mode: Mode) -> list[str]:
    return [name for name in catalogue.names() if mode in catalogue.get(name).runners]


def run_tiny(name: str, mode: Mode) -> Result:
    experiment = catalogue.get(name)
    result = catalogue.run(experiment, mode, "tiny", Progress(name, io.StringIO()))
    charts = {chart.name for chart in experiment.expected.charts}
    assert result.series
    assert {series.chart for series in result.series} <= charts
    for claim in experiment.expected.claims:
        if mode in claim.modes and claim.quantity not in NEEDS_SIZE:
            assert claim.quantity in {**result.quantities, **result.beyond, **result.absent}, claim.name
        if mode in claim.modes and claim.quantity in EXACT:
            assert claim.holds_for(result.quantities[claim.quantity]), claim.name
    return result


@pytest.mark.parametrize("name", runs_of("sim"))
def test_it_runs_in_virtual_time(name: str) -> None:
    run_tiny(name, "sim")


@pytest.mark.parametrize("name", runs_of("live"))
def test_it_runs_on_real_processes(name: str) -> None:
    run_tiny(name, "live")


def test_a_simulated_ring_pays_once_per_round_for_added_latency() -> None:
    """Reference: figure 12b. The cheap and decisive one."""
    result = run_tiny("fig12b_scheduler_latency", "sim")
    assert 0.85 <= result.quantities["slope_per_round"] <= 1.15
    assert result.quantities["r_squared"] >= 0.99


def test_chains_are_right_and_throughput_is_what_is_left_of_the_slots() -> None:
    """Reference: figure 11a."""
    result = run_tiny("fig11a_task_reconstruction", "sim")
    assert result.quantities["least_share_after_loss"] >= 0.95
    assert result.quantities["reexecuted"] > 0


def test_a_simulated_run_is_the_same_twice() -> None:
    first, second = (run_tiny("fig08a_locality", "sim") for _ in range(2))
    assert first.series == second.series
    assert first.quantities == second.quantities
