"""Placement policies, one decision at a time, on nodes built from reports."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from msgspec.structs import replace

from zray.core.placement import (
    BANDWIDTH_PRIOR,
    POLICIES,
    RUN_NS_PRIOR,
    ClusterAverages,
    Inputs,
    NodeLoad,
    any_node,
    is_better_elsewhere,
    least_queue,
    least_wait,
    most_room,
    power_of_two,
    spread,
)
from zray.core.resources import demand_from
from zray.protocol.messages import Describe, Forward, NodeReport, Submit

MS = 1_000_000
MB = 1_000_000
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
ONE_CPU = {"CPU": 1.0}


def node(
    node_id: bytes,
    *,
    total: dict[str, float] | None = None,
    free: dict[str, float] | None = None,
    backlog: int = 0,
    run_ns: int = 10 * MS,
    bandwidth: int = 1_000 * MB,
) -> NodeLoad:
    total = {"CPU": 1} if total is None else total
    report = NodeReport(
        node_id,
        1,
        demand_from(total),
        demand_from(total if free is None else free),
        backlog,
        run_ns,
        bandwidth,
    )
    return NodeLoad(0, node_id, report, ClusterAverages(0.2))


def task(demand: dict[str, float], inputs: Inputs = ()) -> Forward:
    descriptor = Describe(b"d" * 16, b"f" * 16, "f", 1, demand_from(demand), 0)
    return Forward(Submit(b"t" * 16, b"p" * 16, b"d" * 16, b""), descriptor, 0, inputs)


def test_a_node_where_it_fits_now_beats_a_busy_one() -> None:
    nodes = [node(A, free={}), node(B)]
    assert least_wait(nodes, task(ONE_CPU)) is nodes[1]


def test_the_shorter_queue_wins_when_all_are_busy() -> None:
    nodes = [node(A, free={}, backlog=3), node(B, free={}, backlog=2), node(C, free={}, backlog=4)]
    assert least_wait(nodes, task(ONE_CPU)) is nodes[1]


def test_a_longer_queue_of_shorter_tasks_wins() -> None:
    nodes = [node(A, free={}, backlog=1, run_ns=100 * MS), node(B, free={}, backlog=9, run_ns=MS)]
    assert least_wait(nodes, task(ONE_CPU)) is nodes[1]


def test_a_queue_drains_through_all_cpus_of_a_node() -> None:
    nodes = [node(A, free={}, backlog=3), node(B, total={"CPU": 8}, free={}, backlog=7)]
    assert [a_node.queue_ns for a_node in nodes] == [40 * MS, 10 * MS]
    assert least_wait(nodes, task(ONE_CPU)) is nodes[1]


def test_a_backlog_of_other_tasks_does_not_delay_what_fits() -> None:
    gpu = {"GPU": 1.0}
    nodes = [
        node(A, total={"CPU": 1, "GPU": 1}, free={"CPU": 1}),
        node(B, total={"CPU": 1, "GPU": 1}, free={"GPU": 1}, backlog=5),
    ]
    assert least_wait(nodes, task(gpu)) is nodes[1]


def test_the_inputs_draw_a_task_to_them() -> None:
    nodes = [node(A), node(B), node(C)]
    inputs = ((b"x" * 16, 30 * MB, (B,)), (b"y" * 16, 20 * MB, (C,)), (b"z" * 16, 5 * MB, (A, C)))
    assert least_wait(nodes, task(ONE_CPU, inputs)) is nodes[1]
    assert least_queue(nodes, task(ONE_CPU, inputs)) is nodes[0]


def test_queue_and_transfer_are_weighed_in_time() -> None:
    busy_holder, idle = node(A, free={}, backlog=1), node(B)  # 20 ms of queue; 1 MB takes 1 ms
    for size_bytes, chosen in ((19 * MB, idle), (21 * MB, busy_holder)):
        assert least_wait([busy_holder, idle], task(ONE_CPU, ((b"x" * 16, size_bytes, (A,)),))) is chosen


def test_a_faster_link_pulls_the_same_bytes_sooner() -> None:
    nodes = [node(A, bandwidth=10 * MB), node(B, bandwidth=100 * MB)]
    assert least_wait(nodes, task(ONE_CPU, ((b"x" * 16, MB, (C,)),))) is nodes[1]


def test_an_argument_that_is_passed_twice_is_pulled_once() -> None:
    nodes = [node(A), node(B)]
    small, large = (b"x" * 16, 6 * MB, (A,)), (b"y" * 16, 10 * MB, (B,))
    assert least_wait(nodes, task(ONE_CPU, (small, small, large))) is nodes[1]


def test_an_input_that_is_not_made_yet_draws_nowhere() -> None:
    nodes = [node(A, free={}), node(B)]
    assert least_wait(nodes, task(ONE_CPU, ((b"x" * 16, 0, ()),))) is nodes[1]


def test_equal_waits_go_to_the_least_loaded_node_then_to_the_least_id() -> None:
    four = {"CPU": 4.0}
    nodes = [node(A, total=four, free={"CPU": 1}), node(B, total=four), node(C, total=four)]
    inputs = ((b"x" * 16, MB, ()),)
    for policy in (least_wait, least_queue, spread):
        assert policy(nodes, task(ONE_CPU)) is nodes[1]
        assert policy(nodes, task(ONE_CPU, inputs)) is nodes[1]


def test_a_node_without_measurements_is_taken_for_average() -> None:
    averages = ClusterAverages(0.5)
    assert (averages.run_ns, averages.bandwidth) == (RUN_NS_PRIOR, BANDWIDTH_PRIOR)
    averages.absorb(NodeReport(A, 1, (), (), 0, 2 * MS, 0))
    averages.absorb(NodeReport(A, 1, (), (), 0, 0, 3_000 * MB))
    assert (averages.run_ns, averages.bandwidth) == (6 * MS, 2_000 * MB)
    unmeasured = NodeLoad(0, B, NodeReport(B, 1, (), (), 1, 0, 0), averages)
    assert (unmeasured.run_ns, unmeasured.bandwidth, unmeasured.queue_ns) == (6 * MS, 2_000 * MB, 12 * MS)


def test_a_debit_holds_resources_first_and_queues_then() -> None:
    debited = node(A, total={"CPU": 2})
    for _ in range(3):
        debited.debit(task(ONE_CPU))
    assert (debited.pool.free, debited.backlog, debited.load) == ({"CPU": 0}, 1, 1.5)
    assert debited.queue_ns == 2 * 10 * MS // 2


def test_a_debit_knows_how_short_a_task_is() -> None:
    debited = node(A, total={"CPU": 2})
    short = replace(task(ONE_CPU), run_ns=MS)
    for _ in range(4):
        debited.debit(short)
    assert debited.queue_ns == (2 * MS + MS) // 2, "two wait, behind one that ends soon"


def test_bytes_queue_too() -> None:
    pulled = node(A, total={"CPU": 8})
    holder = node(B, total={"CPU": 8}, free={}, run_ns=80 * MS)
    input_of = ((b"x" * 16, 4 * MB, (B,)),)
    placed = []
    for _ in range(4):
        chosen = least_wait([pulled, holder], task(ONE_CPU, input_of))
        chosen.debit(task(ONE_CPU, input_of))
        placed.append(chosen.node_id)
    assert placed == [A, A, B, A], "4 and 8 ms of copies, then 10 of queue, then 12 of copies behind 20"
    assert pulled.pull_ns(0) == 0, "who has all waits for no copies of others"


def test_what_is_on_its_way_is_in_the_report() -> None:
    report = NodeReport(A, 1, (), (), 0, MS, 1_000 * MB, pulling=3 * MB)
    assert NodeLoad(0, A, report, ClusterAverages(0.2)).pull_ns(MB) == 4 * MS


@pytest.mark.parametrize(
    ("inputs", "better"),
    [
        ((), False),
        (((b"x" * 16, 5, (A,)),), False),
        (((b"x" * 16, 5, (B,)),), True),
        (((b"x" * 16, 5, (A, B)),), False),
        (((b"x" * 16, 5, (A,)), (b"y" * 16, 4, (B,)), (b"z" * 16, 4, (C,))), False),
        (((b"x" * 16, 5, (A,)), (b"y" * 16, 4, (B,)), (b"z" * 16, 4, (B,))), True),
        (((b"x" * 16, 5, (A,)), (b"y" * 16, 4, (B,)), (b"y" * 16, 4, (B,))), False),
    ],
)
def test_a_task_looks_around_if_one_other_node_has_more(inputs: Inputs, better: bool) -> None:
    assert is_better_elsewhere(A, inputs) is better


def test_a_report_forgets_the_debits() -> None:
    debited = node(A)
    debited.debit(task(ONE_CPU))
    debited.debit(task(ONE_CPU))
    one_cpu = demand_from(ONE_CPU)
    debited.absorb(5, b"new", NodeReport(A, 1, one_cpu, one_cpu, 0, MS, MB), ClusterAverages(0.2))
    assert (debited.backlog, debited.load, debited.heard_ns, debited.address) == (0, 0.0, 5, b"new")
    assert debited.pool.free == {"CPU": 10_000}


def test_an_oversubscribed_node_is_busy() -> None:
    report = NodeReport(A, 1, (("CPU", 20_000),), (("CPU", -10_000),), 0, MS, MB)
    oversubscribed = NodeLoad(0, A, report, ClusterAverages(0.2))
    assert oversubscribed.load == 1.5
    assert least_wait([oversubscribed, node(B)], task(ONE_CPU)).node_id == B


def test_most_room_counts_whole_tasks_and_then_waits() -> None:
    eight_gpus = {"CPU": 8.0, "GPU": 8.0}
    nodes = [
        node(A, total={"CPU": 64, "GPU": 1}),
        node(B, total=eight_gpus, free={}, backlog=1),
        node(C, total=eight_gpus, free={}),
    ]
    assert most_room(nodes, task({"CPU": 1, "GPU": 1})) is nodes[2]
    assert most_room(nodes, task({})) is nodes[0]


def test_any_node_draws_all_alike_and_replays() -> None:
    nodes = [node(A), node(B, free={}, backlog=50), node(C)]
    first, again = Random(7), Random(7)
    drawn = [any_node(nodes, task(ONE_CPU), first).node_id for _ in range(300)]
    assert min(Counter(drawn)[node_id] for node_id in (A, B, C)) > 60
    assert drawn == [any_node(nodes, task(ONE_CPU), again).node_id for _ in range(300)]


def test_power_of_two_never_takes_the_worst_and_not_always_the_best() -> None:
    nodes = [node(bytes([n]) * 16, free={}, backlog=n) for n in range(5)]
    random = Random(3)
    chosen = Counter(power_of_two(nodes, task(ONE_CPU), random).node_id[0] for _ in range(200))
    assert chosen[4] == 0
    assert chosen[0] > chosen[1] > chosen[3] > 0


def test_spread_looks_at_nothing_but_the_number_of_tasks() -> None:
    nodes = [node(A, total={"CPU": 4}, free={"CPU": 1}), node(B, free={})]
    inputs = ((b"x" * 16, 100 * MB, (B,)),)
    assert spread(nodes, task(ONE_CPU, inputs)) is nodes[0]


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_a_randomised_policy_needs_its_randomness(name: str) -> None:
    with pytest.raises(ValueError, match=r"random\.Random"):
        POLICIES[name]([node(A), node(B), node(C)], task(ONE_CPU), None)
