"""Costs: their file, what they are derived from, and the comparison with real processes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sim.calibrate import Sample, derive, fit_burst, measure_handlers, write
from sim.command import main
from sim.costs import SHIPPED, Costs, CostsError, CostsFile, default_costs, load_costs
from sim.fidelity import Case, compare, simulate_case, table
from sim.kernel import MS
from tests.traces import record_scenario
from zray.protocol.messages import Credit

HANDLERS = {"Submit": 2_000, "TaskDone": 3_000}


def samples(*, wake_us: float) -> tuple[Sample, Sample, Sample]:
    us = 1_000.0
    burst = Sample(1000, 20 * us, {"driver": 6 * us, "submitted": 4 * us, "worker": 5 * us, "node": 10 * us})
    ping = Sample(1000, 2 * wake_us * us + 11 * us, {"driver": wake_us * us, "worker": wake_us * us})
    chain = Sample(1000, 2 * wake_us * us + 11 * us, {})
    return burst, ping, chain


def test_the_shipped_costs_say_where_they_come_from() -> None:
    file = load_costs(SHIPPED)
    assert {"machine", "python", "day", "commit", "code", "protocol"} <= file.measured.keys()
    assert file.costs == default_costs()
    assert file.costs.handlers.keys() >= {"Submit", "TaskDone"}


def test_a_file_survives_writing_and_reading(tmp_path: Path) -> None:
    file = CostsFile({"day": "today"}, Costs(turn_ns=17, handlers={"Submit": 3}))
    write(file, tmp_path / "costs.json")
    assert load_costs(tmp_path / "costs.json") == file


@pytest.mark.parametrize("content", ["", "[]", '{"measured": {}, "costs": {"tern_ns": 1}}', "\xff"])
def test_other_files_are_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CostsError, match=r"costs\.json: not a file of costs.*zray sim calibrate"):
        load_costs(path)
    with pytest.raises(CostsError, match="No such file"):
        load_costs(tmp_path / "none")
    assert main(["fidelity", "--costs", str(path)]) == 2


def test_a_turn_costs_what_its_messages_do() -> None:
    costs = Costs(
        turn_ns=100, node_wake_ns=1000, message_ns=10, transport_ns=1, handlers={"Credit": 5}, hear_ns=7,
        heard_ns=2, wake_ns=50,
    )  # fmt: skip
    assert costs.of_turn([], slept=False) == 100
    assert costs.of_turn([(b"", Credit(1)), (b"", 3)], slept=True) == 1100 + 2 + 5 + 10
    assert costs.of_frame(3, slept=False) == 13
    assert costs.of_frame(3, slept=True) == 63


def test_derived_costs_explain_pings_and_chains() -> None:
    burst, ping, chain = samples(wake_us=80.0)
    costs = derive(burst, ping, chain, HANDLERS)
    way_ns = 2 * (costs.hear_ns + costs.wake_ns + costs.heard_ns + costs.link_ns)
    assert costs.submit_ns + costs.run_ns + way_ns == pytest.approx(ping.makespan_ns, rel=0.01)
    assert costs.submit_ns == 4_000
    assert costs.run_ns == 3_000
    assert simulate_case(Case("ping", "ping", 200), costs=costs) == pytest.approx(
        200 * ping.makespan_ns, rel=0.25
    )
    assert simulate_case(Case("chain", "chain", 200), costs=costs) == pytest.approx(
        200 * chain.makespan_ns, rel=0.25
    )


def test_costs_are_never_negative() -> None:
    costs = derive(*samples(wake_us=1.0), HANDLERS)
    numbers = [number for number in msgspec.structs.astuple(costs) if isinstance(number, int)]
    assert min(numbers) >= 0


@pytest.mark.slow
def test_a_simulated_burst_is_fitted_to_a_real_one() -> None:
    costs = fit_burst(derive(*samples(wake_us=80.0), HANDLERS), 3000 * 30_000, 3000)
    assert simulate_case(Case("burst", "burst", 3000), costs=costs) == pytest.approx(3000 * 30_000, rel=0.1)


def test_handlers_are_measured_on_a_recorded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.trace"
    record_scenario(path, "chain", monkeypatch)
    found = measure_handlers(path)
    assert all(0 < cost_ns < 100 * MS for cost_ns in found.values())


def test_added_latency_is_paid_per_frame() -> None:
    near = simulate_case(Case("", "ping", 50))
    far = simulate_case(Case("", "ping", 50, delay_us=1_000))
    assert far - near == pytest.approx(50 * 2 * MS, rel=0.4)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_both_worlds_are_compared() -> None:
    cases = (Case("a few", "pauses", 9, nodes=2, cpus=2),)
    (compared,) = compare(cases, rounds=1)
    # 9 tasks, 333 ms of pauses on two CPUs: whatever the machine does meanwhile, it is not ten times as much.
    assert 0.1 < compared.ratio < 3
    text = table([compared])
    assert "| a few |" in text
    assert f"{compared.ratio:.2f}" in text
