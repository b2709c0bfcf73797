"""The benchmarks beside other systems: adapters that can be imported here, zray's own parts, and the aims."""

from __future__ import annotations

import sys

import pytest

from benchmarks import compare, instructions, report, runner
from benchmarks.cases import QUICK
from benchmarks.parts import ALL_CASES
from benchmarks.systems import HOMES
from benchmarks.targets import MET, NOT_MET, TARGETS, Target
from tests.examples.test_examples import run

PEERS = ("ray", "dask", "loky", "ipyparallel", "parsl", "scaler", "hyperqueue", "monarch")


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_runs_what_it_has_a_concept_for(peer: str) -> None:
    reason = compare.missing_reason(peer, sys.executable)
    if reason:
        pytest.skip(f"{peer} cannot be imported here: {reason}")
    cases = "start,task_async,actor_sync,many_returns"
    done = run("-m", "benchmarks.compare", "--quick", "--systems", peer, "--cases", cases)
    assert done.returncode == 0
    assert "note:" not in done.stdout  # nothing failed, nothing had to be killed


@pytest.mark.slow
def test_zray_is_asked_for_crashes_many_clients_and_its_parts_beside_the_aims() -> None:
    cases = "multi_client,actor_asyncio,worker_killed,actor_killed,null_worker,shard,write_behind,live"
    done = run("-m", "benchmarks.compare", "--quick", "--systems", "zray,parts", "--cases", f"start,{cases}")
    assert done.returncode == 0
    assert "note:" not in done.stdout
    rows = {line.split("  ")[0] for line in done.stdout.splitlines()}
    for case in ALL_CASES:
        if case.name in cases.split(","):
            assert rows >= {report.title(metric, QUICK) for metric in case.metrics}
    aims = done.stdout[done.stdout.index("\ntarget ") :]
    assert "actor killed: until a call is answered" in aims
    assert "write-behind, per task" in aims


def test_every_aim_is_about_a_row_and_a_system_that_exist() -> None:
    rows = {(case.name, metric.key) for case in ALL_CASES for metric in case.metrics}
    for target in TARGETS:
        assert (target.case, target.metric) in rows, target
        case, _, key = target.against.partition(".")
        assert not target.against or target.against in HOMES or (case, key) in rows, target


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        (Target("task_sync", "rate", 10, "ray"), 10.0, MET),  # 1,000 against 100
        (Target("task_sync", "rate", 11, "ray"), 10.0, NOT_MET),
        (Target("chain", "time", 5, "ray"), 4.0, NOT_MET),  # 50 ms against 200: less is better
        (Target("task_sync", "p50", 150, at_most=True), 150.0, MET),
        (Target("task_sync", "p50", 149, at_most=True), 150.0, NOT_MET),
        (Target("large_objects", "recycled", 85, "copy.time", scale=100), 80.0, NOT_MET),  # 8 ms of 10
        (Target("task_sync", "rate", 2, "loky"), None, None),  # was not in the run
        (Target("start", "cold", 1, "ray"), None, None),  # Ray's failed
    ],
)
def test_an_aim_is_met_by_a_ratio_a_share_or_a_median(
    target: Target, measured: float | None, verdict: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "TARGETS", (target,))
    values = {
        "zray": {
            "task_sync": {"rate": 1000.0, "p50": 150.0, "p99": 1.0}, "chain": {"time": 50.0},
            "large_objects": {"first": 1.0, "recycled": 10.0, "get": 1.0}, "copy": {"time": 8.0},
            "start": {"cold": 1.0},
        },
        "ray": {"task_sync": {"rate": 100.0, "p50": 1.0, "p99": 1.0}, "chain": {"time": 200.0}},
    }  # fmt: skip
    results = runner.Results()
    for system, cases in values.items():
        results.outcomes += [runner.Outcome(system, 0, case, found) for case, found in cases.items()]
    results.outcomes.append(runner.Outcome("ray", 0, "start", failed="no such interpreter"))
    plan = runner.Plan([*values], [*values["zray"]], 1, QUICK, {}, 1.0)
    compared, alone = report.split(plan, results)
    assert not alone
    _, lines = report.targets(compared)
    told = [(line[2].rstrip("x"), line[3]) for line in lines]
    assert told == ([] if measured is None else [(report.number(measured), verdict)])


def test_a_path_that_got_longer_is_named_and_other_interpreters_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = instructions.stored_counts() or dict.fromkeys(instructions.PATHS, 1000.0)
    assert kept.keys() == instructions.PATHS.keys()
    assert instructions.judge(kept, kept) == []
    assert instructions.judge({**kept, "task": kept["task"] * 1.06}, kept) == ["task"]
    monkeypatch.setattr(instructions, "interpreter", lambda: "another one")
    assert instructions.stored_counts() is None
