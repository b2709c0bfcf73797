"""Tasks so brief that a long queue of them stays on its node, and when it does not (paper, section 4.2.2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_admission import PEER, ClusterBench
from tests.core.test_local_scheduler import GLOBAL, MS
from zray.core import reports
from zray.core.worker_pool import BRIEF_RUN_NS, TYPICAL_SAMPLES_MIN
from zray.protocol.cluster import Claim
from zray.protocol.messages import Describe, Place, Submit

BRIEF_NS, LONG_NS = BRIEF_RUN_NS // 10, 2 * BRIEF_RUN_NS
MANY = 500


class BriefBench(ClusterBench):
    """A node with two peers and one worker, which has run tasks of one kind."""

    def __init__(self, run_ns: int = BRIEF_NS, ran: int = TYPICAL_SAMPLES_MIN) -> None:
        super().__init__()
        self.brief = self.kind("brief")
        self.busy = self.busy_worker(self.brief, run_ns)
        for _ in range(ran - 1):
            self.run_one(run_ns)

    def run_one(self, run_ns: int) -> None:
        (task,) = self.submit(self.brief)
        self.effects.clear()
        self.done(self.busy, task, run_ns=run_ns)
        self.effects.clear()

    def left(self, count: int = MANY) -> list[Any]:
        """Submit so many; those that leave."""
        self.submit(self.brief, count)
        forwards = self.forwards()
        self.effects.clear()
        return forwards

    def set(self, **changes: Any) -> None:
        self.node.config = self.node.scheduler.config = self.node.config._replace(**changes)


def test_a_long_queue_of_brief_tasks_stays() -> None:
    assert not BriefBench().left()


def test_longer_ones_leave() -> None:
    assert len(BriefBench(LONG_NS).left()) > MANY - 10


def test_those_leave_of_which_too_few_have_ended() -> None:
    assert len(BriefBench(ran=TYPICAL_SAMPLES_MIN - 1).left()) > MANY - 10


@pytest.mark.parametrize(("held_up", "stay"), [(1, True), (2, True), (8, False)])
def test_one_that_was_held_up_changes_nothing(held_up: int, stay: bool) -> None:
    bench = BriefBench()
    for _ in range(held_up):
        bench.run_one(1_000 * MS)
    assert bool(bench.left()) is not stay


@pytest.mark.parametrize(
    "change", [{"backlog_per_slot_max": 0}, {"backlog_per_slot_max": -1}, {"offload_patience_ns": -1}]
)
def test_who_wants_to_spread_all_or_even_nothing_out_spreads_them_too(change: dict[str, int]) -> None:
    bench = BriefBench()
    bench.set(**change)
    assert len(bench.left()) > MANY - 10
    assert reports.load_of(bench.node).run_ns == BRIEF_NS


def test_what_comes_to_a_queue_that_stands_leaves() -> None:
    bench = BriefBench()
    assert not bench.left()
    bench.wait(bench.node.config.offload_patience_ns + MS)  # it looks, and none has ended
    bench.effects.clear()
    assert len(bench.left()) == MANY
    assert reports.load_of(bench.node).run_ns > bench.node.config.offload_patience_ns


def test_a_node_that_was_held_up_itself_does_not_take_its_queue_for_one_that_stands() -> None:
    bench = BriefBench()
    assert not bench.left()
    bench.now_ns += 10 * bench.node.config.offload_patience_ns
    assert not bench.left()


def test_what_waits_for_copies_counts_however_brief() -> None:
    bench = BriefBench()
    assert not bench.left()
    (task_class,) = bench.node.scheduler.ready.values()
    task = task_class.ready[-1]
    assert not bench.node.scheduler.admission._overloaded(task)
    task_class.fetching = MANY
    assert bench.node.scheduler.admission._overloaded(task)


def test_a_node_that_works_off_brief_tasks_takes_guests() -> None:
    bench = BriefBench()
    assert not bench.left()
    spec = Submit(b"t" * 16, b"u" * 16, b"d" * 16, b"")
    descriptor = Describe(b"d" * 16, b"f" * 16, "guest", 1, (("CPU", 10_000),), 3)
    bench.say(GLOBAL, Place(spec, descriptor, 1, PEER))
    assert bench.take(Claim) == [(PEER, Claim(spec.task_id))]
    assert not bench.forwards()
