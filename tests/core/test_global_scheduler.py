"""The global scheduler alone: messages in, the exact outbox out."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from zray.config import Config
from zray.core import global_scheduler
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import RUNTIME, pump
from zray.core.placement import HOPS_MAX, POLICIES
from zray.core.resources import demand_from
from zray.errors import InvariantError
from zray.protocol.cluster import AskScheduler, Members, SchedulerHere
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    RESOURCE_UNIT,
    Describe,
    Forward,
    Infeasible,
    NodeHello,
    NodeReport,
    Place,
    Submit,
    Withdraw,
)
from zray.protocol.strategies import NONE_OF, ONE_OF, PRESENT, LabelRule, Strategy

S = 1_000_000_000
A, B, C = (bytes.fromhex(text) + bytes(14) for text in ("3fa2", "5b01", "77c3"))
CONFIG = Config()
GRACE_NS = CONFIG.infeasible_grace_ns
SILENCE_NS = 10 * S
FORWARDER = b"forwarder"


def address_of(node_id: bytes) -> bytes:
    return b"link to " + node_id


def report(
    node_id: bytes,
    total: dict[str, float] | None = None,
    free: dict[str, float] | None = None,
    *,
    incarnation: int = 1,
    backlog: int = 0,
) -> tuple[bytes, NodeReport]:
    total = {"CPU": 1} if total is None else total
    free = total if free is None else free
    amounts = demand_from(total), demand_from(free)
    return address_of(node_id), NodeReport(node_id, incarnation, *amounts, backlog, 10_000_000, S)


def task(number: int, demand: dict[str, float] | None = None, hops: int = 0) -> Forward:
    needs = demand_from({"CPU": 1} if demand is None else demand)
    descriptor = Describe(b"d" * 16, b"f" * 16, "work", 1, needs, 0)
    return Forward(Submit(number.to_bytes(16, "big"), b"p" * 16, b"d" * 16, b"args"), descriptor, hops)


def placed(forward: Forward, node_id: bytes, origin: bytes = FORWARDER) -> tuple[bytes, Place]:
    address = address_of(node_id)
    known = b"" if origin == address else origin
    return address, Place(forward.spec, forward.descriptor, forward.hops + 1, known)


def told(forward: Forward, *nodes: str, forwarder: bytes = FORWARDER) -> tuple[bytes, Infeasible]:
    descriptor = forward.descriptor
    return forwarder, Infeasible(forward.spec.task_id, descriptor.name, descriptor.demand, nodes)


class Bench:
    """A machine whose state is checked after every batch."""

    def __init__(self, *batch: tuple[bytes, Any], config: Config = CONFIG, **options: Any) -> None:
        self.machine = GlobalScheduler(config=config, **options)
        assert self.feed(*batch) == []

    def feed(self, *batch: tuple[bytes, Any], now_ns: int = 0) -> list[tuple[bytes, Any]]:
        """Pump one batch and return the outbox."""
        pump(self.machine, batch, now_ns)
        self.machine.check()
        out = list(self.machine.out)
        self.machine.out.clear()
        return out


# --- placing ---------------------------------------------------------------------------------------


def test_a_task_goes_to_the_link_its_node_reported_from() -> None:
    bench = Bench(report(A))
    forward = task(1)
    assert bench.feed((FORWARDER, forward)) == [placed(forward, A)]


def test_a_node_that_reports_from_a_new_link_gets_its_tasks_there() -> None:
    bench = Bench(report(A))
    bench.feed((b"new link", report(A)[1]))
    assert [to for to, _ in bench.feed((FORWARDER, task(1)))] == [b"new link"]
    bench.feed((RUNTIME, ClientGone(address_of(A))))
    assert [to for to, _ in bench.feed((FORWARDER, task(2)))] == [b"new link"]


def test_a_batch_is_placed_in_order_with_each_task_counted_at_once() -> None:
    bench = Bench(report(A), report(B, {"CPU": 2}))
    tasks = [task(n) for n in range(4)]
    out = bench.feed(*((FORWARDER, forward) for forward in tasks))
    # One on each idle node, the second CPU of B, then B again: it drains its queue twice as fast.
    assert out == [placed(forward, node) for forward, node in zip(tasks, (A, B, B, B), strict=True)]


def test_tasks_that_are_to_spread_go_where_the_fewest_are_and_not_to_their_inputs() -> None:
    bench = Bench(report(A, {"CPU": 4}), report(B, {"CPU": 4}))
    plain = [replace(task(n), inputs=((b"o" * 16, 1 << 30, (A,)),)) for n in range(4)]
    spread = [replace(each, descriptor=replace(each.descriptor, spread=True)) for each in plain]
    assert [to for to, _ in bench.feed(*((FORWARDER, each) for each in plain))] == [address_of(A)] * 4
    bench = Bench(report(A, {"CPU": 4}), report(B, {"CPU": 4}))
    placed_on = [to for to, _ in bench.feed(*((FORWARDER, each) for each in spread))]
    assert sorted(placed_on) == [address_of(A)] * 2 + [address_of(B)] * 2


def test_what_a_forwarder_keeps_counts_as_if_it_were_placed_there() -> None:
    """A kept two of four: both idle CPUs of B are free sooner, and its queue is shorter."""
    bench = Bench((A, report(A, {"CPU": 2})[1]), (B, report(B, {"CPU": 2})[1]))
    tasks = [replace(task(n), kept=2) for n in range(2)]
    assert [to for to, _ in bench.feed(*((A, forward) for forward in tasks))] == [B, B]
    assert [to for to, _ in bench.feed((A, replace(task(2), kept=4)))] == [B], "two more, not four"
    assert sorted(to for to, _ in bench.feed(*((A, replace(task(n), kept=4)) for n in (3, 4)))) == [A, B]


def test_what_a_forwarder_kept_before_its_report_counts_once() -> None:
    bench = Bench((A, report(A, {"CPU": 2})[1]), (B, report(B, {"CPU": 2})[1]))
    bench.feed((A, replace(task(0), kept=9)))
    load = bench.machine.nodes[A]
    assert (load.pool.free["CPU"], load.backlog) == (0, 7)
    bench.feed((A, report(A, {"CPU": 2}, {}, backlog=7)[1]), (B, report(B, {"CPU": 2}, {}, backlog=9)[1]))
    assert [to for to, _ in bench.feed((A, task(1)))] == [A]


def test_kept_tasks_count_by_kind_and_with_what_they_take() -> None:
    bench = Bench((A, report(A, {"CPU": 4, "GPU": 3})[1]))
    large = replace(task(0, {"CPU": 1, "GPU": 2}), kept=1)
    small = replace(task(1), kept=2)
    other = replace(small, spec=replace(small.spec, descriptor_id=b"e" * 16))
    bench.feed((A, large), (A, other))
    load = bench.machine.nodes[A]
    # One of the first kind and two of the other are kept; of the two that are placed one fits.
    assert (load.pool.free["GPU"], load.pool.free["CPU"], load.backlog) == (RESOURCE_UNIT, 0, 1)


@pytest.mark.parametrize("kept", [-1, 0, 1 << 62])
def test_whatever_a_forwarder_says_that_it_kept_its_task_is_placed(kept: int) -> None:
    bench = Bench((A, report(A)[1]))
    assert [to for to, _ in bench.feed((A, replace(task(1), kept=kept)))] == [A]


def test_reports_of_a_batch_count_before_its_tasks() -> None:
    bench = Bench()
    forward = task(1)
    assert bench.feed((FORWARDER, forward), report(A)) == [placed(forward, A)]


def test_busy_but_feasible_is_placed_and_not_parked() -> None:
    bench = Bench(report(A, free={}, backlog=5), report(B, free={}, backlog=4))
    tasks = [task(n) for n in range(3)]
    out = bench.feed(*((FORWARDER, forward) for forward in tasks))
    assert out == [placed(forward, node) for forward, node in zip(tasks, (B, A, B), strict=True)]
    assert not bench.machine.parked


def test_a_hundred_tasks_between_two_heartbeats_do_not_herd() -> None:
    nodes = [bytes([n]) * 16 for n in range(10)]
    bench = Bench(*(report(node_id, {"CPU": 4}) for node_id in nodes))
    out = []
    for n in range(100):  # one batch each, as they trickle in
        out += bench.feed((FORWARDER, task(n)))
    assert Counter(to for to, _ in out) == {address_of(node_id): 10 for node_id in nodes}


def test_herding_does_not_return_when_one_node_reports_early() -> None:
    bench = Bench(report(A, {"CPU": 4}), report(B, {"CPU": 4}))
    bench.feed(*((FORWARDER, task(n)) for n in range(40)))
    bench.feed(report(A, {"CPU": 4}, {}, backlog=16))
    out = bench.feed(*((FORWARDER, task(n)) for n in range(40, 60)))
    assert Counter(to for to, _ in out) == {address_of(A): 10, address_of(B): 10}


def test_a_task_that_takes_nothing_still_counts() -> None:
    bench = Bench(report(A, {"CPU": 4}), report(B, {"CPU": 4}))
    out = bench.feed(*((FORWARDER, task(n, {})) for n in range(10)))
    assert Counter(to for to, _ in out) == {address_of(A): 5, address_of(B): 5}


def test_a_duplicate_in_one_batch_is_placed_once() -> None:
    bench = Bench(report(A))
    forward = task(1)
    assert bench.feed((FORWARDER, forward), (FORWARDER, forward)) == [placed(forward, A)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_places_on_a_feasible_node(policy: str) -> None:
    bench = Bench(report(A), report(B, {"GPU": 1}), report(C, {"GPU": 2}), policy=policy, random=Random(1))
    out = bench.feed(*((FORWARDER, task(n, {"GPU": 1})) for n in range(20)))
    assert len(out) == 20
    assert {to for to, _ in out} == {address_of(B), address_of(C)}


def test_an_unknown_policy_and_a_missing_random_are_refused() -> None:
    with pytest.raises(ValueError, match="'best'; there are paper,"):
        GlobalScheduler(config=CONFIG, policy="best")
    with pytest.raises(ValueError, match=r"pass a random\.Random"):
        GlobalScheduler(config=CONFIG, policy="power_of_two")


# --- tasks that come back --------------------------------------------------------------------------


def test_a_task_does_not_return_to_the_node_that_just_refused_it() -> None:
    bench = Bench(report(A), report(B, free={}, backlog=9))
    refused = task(1, hops=1)
    assert bench.feed((address_of(A), refused)) == [placed(refused, B, address_of(A))]


def test_a_task_that_is_spilled_back_keeps_its_origin() -> None:
    bench = Bench(report(A), report(B, free={}, backlog=9))
    refused = replace(task(1, hops=1), origin=FORWARDER)
    assert bench.feed((address_of(A), refused)) == [placed(refused, B, FORWARDER)]


def test_nothing_is_placed_on_a_node_that_others_know_to_be_dead() -> None:
    bench = Bench(report(A), report(B, free={}, backlog=9))
    both, one = ((A, ""), (B, "")), ((B, ""),)
    assert bench.feed((B, Members(1, both)), (B, Members(2, one))) == []
    forward = task(1)
    assert bench.feed((FORWARDER, forward)) == [placed(forward, B)]
    bench.feed((B, Members(1, both)))
    assert list(bench.machine.nodes) == [B]


def test_unless_it_is_the_only_feasible_one() -> None:
    bench = Bench(report(A, {"GPU": 1}), report(B))
    refused = task(1, {"GPU": 1}, hops=1)
    assert bench.feed((address_of(A), refused)) == [placed(refused, A, address_of(A))]


def test_an_overloaded_node_may_get_its_first_forward_back() -> None:
    bench = Bench(report(A, free={}, backlog=1), report(B, free={}, backlog=9))
    forward = task(1)
    assert bench.feed((address_of(A), forward)) == [placed(forward, A, address_of(A))]


def test_a_task_that_bounced_too_often_goes_to_the_roomiest_node_for_good() -> None:
    bench = Bench(report(A), report(B, {"CPU": 16}, {}, backlog=100), report(C, {"CPU": 4}))
    below, at_bound = task(1, hops=HOPS_MAX - 1), task(2, hops=HOPS_MAX)
    # Also when the roomiest node is the one that refused it.
    out = bench.feed((address_of(B), below), (address_of(B), at_bound))
    assert out == [placed(below, A, address_of(B)), placed(at_bound, B, address_of(B))]
    assert out[1][1].hops == HOPS_MAX + 1


# --- infeasible ------------------------------------------------------------------------------------


def test_an_infeasible_task_is_parked_and_told_after_the_grace() -> None:
    bench = Bench(report(A, {"CPU": 4}), report(B, {"CPU": 8, "GPU": 1.5}))
    forward = task(1, {"CPU": 6, "GPU": 2})
    assert bench.feed((FORWARDER, forward), now_ns=5) == []
    assert bench.machine.wake_at_ns == 5 + GRACE_NS
    assert bench.feed(now_ns=4 + GRACE_NS) == []
    sentences = "node 3fa2: has 4 of 6 CPU, 0 of 2 GPU", "node 5b01: has 1.5 of 2 GPU"
    assert bench.feed(now_ns=5 + GRACE_NS) == [told(forward, *sentences)]
    assert bench.feed(now_ns=5 + 3 * GRACE_NS) == []
    assert bench.machine.wake_at_ns == SILENCE_NS


def test_a_cluster_without_nodes_says_so() -> None:
    bench = Bench()
    assert bench.machine.wake_at_ns is None
    forward = task(1)
    assert bench.feed((FORWARDER, forward)) == []
    assert bench.feed(now_ns=GRACE_NS) == [told(forward, "the cluster has no nodes")]
    assert bench.machine.wake_at_ns is None


def test_a_report_that_makes_it_feasible_places_it_in_the_same_batch() -> None:
    bench = Bench(report(A))
    tasks = [task(n, {"GPU": 1}) for n in range(3)]
    assert bench.feed(*((FORWARDER, forward) for forward in tasks)) == []
    out = bench.feed(report(B, {"GPU": 2}), report(C, {"GPU": 2}))
    assert out == [placed(forward, node) for forward, node in zip(tasks, (B, C, B), strict=True)]
    assert bench.feed(now_ns=GRACE_NS) == []


def test_a_known_node_that_grew_places_parked_tasks() -> None:
    bench = Bench(report(A))
    forward = task(1, {"CPU": 2})
    assert bench.feed((FORWARDER, forward)) == []
    assert bench.feed(report(A, backlog=1)) == []
    assert bench.feed(report(A, {"CPU": 2}, {})) == [placed(forward, A)]


def test_a_node_that_shrank_gets_no_more_of_what_it_cannot_run() -> None:
    bench = Bench(report(A, {"GPU": 1}))
    bench.feed((FORWARDER, task(1, {"GPU": 1})))
    bench.feed(report(A, {"CPU": 1}))
    assert bench.feed((FORWARDER, task(2, {"GPU": 1}))) == []


def test_a_parked_task_is_told_once_per_change_of_the_cluster() -> None:
    bench = Bench(report(A))
    forward = task(1, {"GPU": 1})
    bench.feed((FORWARDER, forward))
    first = "node 3fa2: has 0 of 1 GPU"
    assert bench.feed(now_ns=GRACE_NS) == [told(forward, first)]
    bench.feed(report(A, free={}, backlog=3), now_ns=GRACE_NS + 1)  # load is no change of the cluster
    assert bench.feed(now_ns=3 * GRACE_NS) == []
    # Two nodes that join together are one notice, a grace after the first of them.
    bench.feed(report(B), now_ns=3 * GRACE_NS)
    bench.feed(report(C), now_ns=3 * GRACE_NS + 1)
    assert bench.machine.wake_at_ns == 4 * GRACE_NS
    second = "node 5b01: has 0 of 1 GPU", "node 77c3: has 0 of 1 GPU"
    assert bench.feed(now_ns=4 * GRACE_NS) == [told(forward, first, *second)]
    assert bench.feed(now_ns=6 * GRACE_NS) == []


def test_a_duplicate_of_a_parked_task_changes_nothing() -> None:
    bench = Bench(report(A))
    forward = task(1, {"GPU": 1})
    bench.feed((FORWARDER, forward))
    bench.feed((FORWARDER, forward), now_ns=GRACE_NS // 2)
    assert len(bench.feed(now_ns=GRACE_NS)) == 1
    bench.feed((FORWARDER, forward), now_ns=GRACE_NS)
    assert bench.feed(now_ns=3 * GRACE_NS) == []
    assert bench.feed(report(B, {"GPU": 1})) == [placed(forward, B)]


def test_a_parked_task_forwarded_by_another_node_is_answered_there() -> None:
    bench = Bench(report(A))
    forward = task(1, {"GPU": 1})
    bench.feed((FORWARDER, forward))
    bench.feed((b"heir", forward), now_ns=GRACE_NS // 2)
    bench.feed((RUNTIME, ClientGone(FORWARDER)), now_ns=GRACE_NS)
    out = bench.feed(now_ns=GRACE_NS // 2 + GRACE_NS)
    assert out == [told(forward, "node 3fa2: has 0 of 1 GPU", forwarder=b"heir")]
    assert bench.feed(report(B, {"GPU": 1})) == [placed(forward, B, b"heir")]


def test_a_withdrawn_task_is_forgotten_wherever_it_is() -> None:
    bench = Bench(report(A))
    same_batch, parked = task(1), task(2, {"GPU": 1})
    withdraw = [(FORWARDER, Withdraw(forward.spec.task_id)) for forward in (same_batch, parked)]
    assert bench.feed((FORWARDER, same_batch), (FORWARDER, parked), withdraw[0]) == []
    assert bench.feed(withdraw[1], withdraw[1]) == []
    assert bench.feed(report(B, {"GPU": 1})) == []
    assert bench.feed(now_ns=GRACE_NS) == []


def test_whoever_asks_is_answered() -> None:
    bench = Bench()
    assert bench.feed((A, AskScheduler(7)), (B, AskScheduler(8))) == [
        (A, SchedulerHere(7)),
        (B, SchedulerHere(8)),
    ]


def test_time_with_another_scheduler_counts_and_the_oldest_is_given_up_first() -> None:
    bench = Bench(report(A), config=CONFIG._replace(unschedulable_after_ns=9 * S))
    gpu = {"GPU": 1.0}
    bench.feed((FORWARDER, task(1, gpu)), now_ns=S)
    bench.feed(report(A), (FORWARDER, replace(task(2, gpu), parked_ns=7 * S)), now_ns=2 * S)
    bench.feed(report(A), (FORWARDER, replace(task(3, gpu), parked_ns=-5 * S)), now_ns=3 * S)
    given_up = {}
    for second in range(4, 14):
        for _, message in bench.feed(report(A), now_ns=second * S):
            if message.verdict:
                given_up[int.from_bytes(message.task_id, "big")] = second
    assert given_up == {2: 4, 1: 10, 3: 12}


def test_in_a_new_life_nodes_have_time_to_return_before_one_is_none_of_the_cluster() -> None:
    back_ns = CONFIG.node_return_ns
    bench = Bench(report(A), alive(1, A), returning=True)
    bound = task(1)
    descriptor = replace(bound.descriptor, strategy=Strategy(B))
    returned, stranger = replace(bound, descriptor=descriptor), task(2)
    stranger = replace(stranger, descriptor=replace(descriptor, strategy=Strategy(C)))
    assert bench.feed((FORWARDER, returned), (FORWARDER, stranger)) == []
    assert bench.feed(report(B), now_ns=back_ns // 4) == [placed(returned, B)]
    assert verdicts(bench.feed(report(A), now_ns=back_ns // 2)) == [""], "a warning"
    (verdict,) = verdicts(bench.feed(now_ns=back_ns))
    assert "is none of this cluster" in verdict
    assert bench.machine.wake_at_ns != back_ns


# --- nodes that go ---------------------------------------------------------------------------------


def test_a_lost_link_ends_its_node_and_the_tasks_it_forwarded() -> None:
    bench = Bench(report(A), report(B))
    parked = task(1, {"GPU": 1})
    bench.feed((address_of(A), parked))
    assert bench.feed((address_of(A), task(2)), (RUNTIME, ClientGone(address_of(A)))) == []
    assert not bench.machine.parked
    forward = task(3)
    assert bench.feed((FORWARDER, forward)) == [placed(forward, B)]


def test_tasks_of_other_forwarders_are_parked_once_their_node_is_gone() -> None:
    bench = Bench(report(A))
    bench.feed((RUNTIME, ClientGone(address_of(A))))
    forward = task(1)
    assert bench.feed((FORWARDER, forward)) == []
    assert bench.feed(report(A, incarnation=2)) == [placed(forward, A)]


def test_reports_of_a_dead_incarnation_change_nothing() -> None:
    bench = Bench(report(A, incarnation=4))
    bench.feed((RUNTIME, ClientGone(address_of(A))))
    bench.feed(report(A, incarnation=4), report(A, incarnation=3))
    assert not bench.machine.nodes
    bench.feed(report(A, incarnation=5))
    assert bench.machine.nodes[A].incarnation == 5


def test_a_late_report_of_an_older_incarnation_changes_nothing() -> None:
    bench = Bench(report(A, free={}, incarnation=2))
    bench.feed(report(A, {"CPU": 1, "GPU": 1}, incarnation=1), now_ns=1)
    assert bench.machine.nodes[A].heard_ns == 0
    assert bench.feed((FORWARDER, task(1, {"GPU": 1}))) == []


def test_a_new_incarnation_on_a_new_link_ends_the_old_one() -> None:
    bench = Bench(report(A))
    bench.feed((address_of(A), task(1, {"GPU": 1})))
    bench.feed((b"new link", report(A, incarnation=2)[1]))
    assert not bench.machine.parked
    assert [to for to, _ in bench.feed((FORWARDER, task(2)))] == [b"new link"]


def test_a_silent_node_is_dead_until_it_reports_again() -> None:
    bench = Bench(report(A, {"GPU": 1}), report(B, {"CPU": 1}))
    bench.feed(report(B), now_ns=S)
    assert bench.machine.wake_at_ns == SILENCE_NS
    assert bench.feed(now_ns=SILENCE_NS - 1) == []
    assert list(bench.machine.nodes) == [A, B]
    assert bench.feed(now_ns=SILENCE_NS) == []
    assert list(bench.machine.nodes) == [B]
    forward = task(1, {"GPU": 1})
    assert bench.feed((FORWARDER, forward), now_ns=SILENCE_NS) == []
    assert bench.feed(report(A, {"GPU": 1}), now_ns=SILENCE_NS + 1) == [placed(forward, A)]


def test_the_last_report_before_the_deadline_counts() -> None:
    bench = Bench(report(A))
    bench.feed(report(A), now_ns=SILENCE_NS)
    assert list(bench.machine.nodes) == [A]
    assert bench.machine.wake_at_ns == 2 * SILENCE_NS


def test_a_task_is_told_when_its_last_feasible_node_fell_silent() -> None:
    bench = Bench(report(A, {"GPU": 1}))
    bench.feed(report(B), now_ns=SILENCE_NS - 1)
    forward = task(1, {"GPU": 1})
    assert bench.feed((FORWARDER, forward), now_ns=SILENCE_NS) == []
    assert bench.feed(now_ns=SILENCE_NS + GRACE_NS) == [told(forward, "node 5b01: has 0 of 1 GPU")]


def test_the_tables_of_dead_nodes_and_demands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_scheduler, "FENCED_MAX", 8)
    monkeypatch.setattr(global_scheduler, "NEEDS_CACHED_MAX", 8)
    bench = Bench(report(A, {"CPU": 64}))
    for n in range(1, 30):
        node_id = bytes([n]) * 16
        bench.feed(report(node_id), (RUNTIME, ClientGone(address_of(node_id))))
        bench.feed((FORWARDER, task(n, {"CPU": n})))
    assert len(bench.machine.fenced) == 8
    bench.feed(*((FORWARDER, task(n, {"CPU": n})) for n in range(30, 60)))
    assert len(bench.machine._feasible) <= 8


def test_check_notices_a_task_that_is_parked_and_feasible() -> None:
    bench = Bench(report(A))
    bench.feed((FORWARDER, task(1, {"GPU": 1})))
    bench.machine.nodes[A].pool.total["GPU"] = 10_000
    with pytest.raises(InvariantError, match="parked and feasible"):
        bench.machine.check()


# --- strategies ------------------------------------------------------------------------------------


def choosy(number: int, strategy: Strategy, demand: dict[str, float] | None = None) -> Forward:
    forward = task(number, demand)
    return replace(forward, descriptor=replace(forward.descriptor, strategy=strategy))


def labelled(node_id: bytes, **labels: str) -> tuple[bytes, NodeReport]:
    source, found = report(node_id)
    return source, replace(found, labels=tuple(sorted(labels.items())))


def alive(epoch: int, *nodes: bytes) -> tuple[bytes, Members]:
    return nodes[0] if nodes else A, Members(epoch, tuple((node_id, "") for node_id in nodes))


def verdicts(out: list[tuple[bytes, Any]]) -> list[str]:
    return [message.verdict for _, message in out if isinstance(message, Infeasible)]


IN_A = LabelRule("zone", ONE_OF, ("a",))


def test_a_task_goes_to_the_node_that_it_names() -> None:
    bench = Bench(report(A), report(B), report(C))
    forwards = [choosy(number, Strategy(B)) for number in range(3)]
    out = bench.feed(*((FORWARDER, forward) for forward in forwards))
    assert out == [placed(forward, B) for forward in forwards], "however busy it is"


@pytest.mark.parametrize("epoch", [1, 7])
def test_a_task_that_is_bound_to_a_dead_node_ends_at_once(epoch: int) -> None:
    bench = Bench(report(A), report(B), alive(epoch, A, B))
    bench.feed(alive(epoch + 1, A))
    (verdict,) = verdicts(bench.feed((FORWARDER, choosy(1, Strategy(B)))))
    assert verdict == f"node {B.hex()}, to which it is bound, is dead; alive: {A.hex()}"


def test_a_task_that_is_bound_to_no_node_of_the_cluster_ends_at_once() -> None:
    bench = Bench(report(A), alive(1, A))
    (verdict,) = verdicts(bench.feed((FORWARDER, choosy(1, Strategy(C)))))
    assert "is none of this cluster" in verdict
    assert A.hex() in verdict


def test_a_task_that_is_bound_to_a_node_that_just_came_waits_for_its_report() -> None:
    hello = NodeHello(1, C, 1, 1, "host", "ipc://c", ())
    bench = Bench(report(A), alive(1, A))
    assert bench.feed((C, hello)) == [(C, SchedulerHere())]
    forward = choosy(1, Strategy(C))
    assert bench.feed((FORWARDER, forward)) == []
    assert bench.feed(report(C)) == [placed(forward, C)]


def test_a_parked_task_ends_with_the_node_to_which_it_is_bound() -> None:
    bench = Bench(report(A), report(B), alive(1, A, B))
    assert bench.feed((FORWARDER, choosy(1, Strategy(B), {"GPU": 1}))) == []
    assert len(verdicts(bench.feed(alive(2, A)))) == 1
    assert not bench.machine.parked


def test_a_new_life_of_the_scheduler_says_of_no_node_that_it_is_dead_before_it_knows() -> None:
    bench = Bench()
    assert bench.feed((FORWARDER, choosy(1, Strategy(B))), (FORWARDER, choosy(2, Strategy(C)))) == []
    out = bench.feed(alive(9, A, B))
    assert len(verdicts(out)) == 1, "B is alive and will report, C is none"
    assert [to for to, _ in bench.feed(report(B))] == [address_of(B)]


def test_a_soft_wish_for_a_dead_node_is_forgotten() -> None:
    bench = Bench(report(A), report(B), alive(1, A, B))
    forward = choosy(1, Strategy(B, soft=True))
    assert bench.feed((FORWARDER, forward)) == [placed(forward, B)]
    bench.feed(alive(2, A))
    forward = choosy(2, Strategy(B, soft=True))
    assert bench.feed((FORWARDER, forward)) == [placed(forward, A)]


def test_labels_leave_some_nodes_and_prefer_others() -> None:
    bench = Bench(labelled(A, zone="a"), labelled(B, zone="a", disk="ssd"), labelled(C, zone="c"))
    wanted = Strategy(hard=(IN_A,), wanted=(LabelRule("disk", PRESENT),))
    forwards = [choosy(number, wanted) for number in range(2)]
    assert bench.feed(*((FORWARDER, each) for each in forwards)) == [placed(each, B) for each in forwards]
    elsewhere = choosy(3, Strategy(hard=(LabelRule("zone", NONE_OF, ("a",)),)))
    assert bench.feed((FORWARDER, elsewhere)) == [placed(elsewhere, C)]
    nowhere_wanted = choosy(4, Strategy(wanted=(LabelRule("disk", ONE_OF, ("tape",)),)))
    assert [type(message) for _, message in bench.feed((FORWARDER, nowhere_wanted))] == [Place]


def test_a_missing_label_is_said_per_node_and_a_node_that_gets_it_takes_the_task() -> None:
    bench = Bench(labelled(A), labelled(B, zone="b"))
    forward = choosy(1, Strategy(hard=(IN_A,)))
    assert bench.feed((FORWARDER, forward)) == []
    (told_of,) = bench.feed(now_ns=GRACE_NS)
    assert told_of[1].nodes == (
        "node 3fa2: zone in (a): it has no such label",
        "node 5b01: zone in (a): it is 'b'",
    )
    assert bench.feed(labelled(B, zone="a"), now_ns=GRACE_NS) == [placed(forward, B)]


def test_an_infeasible_task_ends_after_the_grace_that_was_set() -> None:
    bench = Bench(report(A), config=CONFIG._replace(unschedulable_after_ns=3 * S))
    gpu = {"GPU": 1.0}
    bench.feed((FORWARDER, task(1, gpu)))
    assert verdicts(bench.feed((FORWARDER, task(2, gpu)), now_ns=S)) == [""], "a warning first"
    assert verdicts(bench.feed(report(A), now_ns=2 * S)) == [""]
    assert bench.machine.wake_at_ns == 3 * S
    (verdict,) = verdicts(bench.feed(report(A), now_ns=3 * S))
    assert verdict == "no node could run it for 3 s. node 3fa2: has 0 of 1 GPU"
    assert len(verdicts(bench.feed(report(A), now_ns=4 * S))) == 1
    assert not bench.machine.parked


def test_nonsense_about_labels_is_refused() -> None:
    bench = Bench(report(A))
    for strategy in (Strategy(b"short"), Strategy(hard=(LabelRule("zone", 9),))):
        out = bench.feed((FORWARDER, choosy(1, strategy)))
        assert [type(message).__name__ for _, message in out] == ["Refused", "Warn"]
