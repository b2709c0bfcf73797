"""How often a node without work shows that it lives: as often as somebody would miss it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_local_scheduler import CONFIG, GLOBAL, Bench
from zray.core.machine import pump
from zray.core.node import IDLE_INTERVALS
from zray.protocol.cluster import Members
from zray.protocol.messages import PROTOCOL_VERSION, Forward, NodeReport, ShardWelcome

HERE, PEER = b"n" * 16, b"p" * 16
RARELY_NS = IDLE_INTERVALS * CONFIG.heartbeat_interval_ns


class IdleBench(Bench):
    """A node that only its clock wakes."""

    def welcome(self) -> None:
        self.say(GLOBAL, ShardWelcome(PROTOCOL_VERSION, b"c" * 16, 0, 1))

    def members(self, epoch: int, *nodes: bytes) -> list[int]:
        """Tell it who is alive; the epochs of what it reports at once."""
        return self._turn((GLOBAL, Members(epoch, tuple((node, "") for node in nodes))))

    def reports_in(self, duration_ns: int) -> int:
        """How many there are in a time in which nothing happens, from now on."""
        end_ns, count = self.now_ns + duration_ns, 0
        while (wake_at_ns := self.node.wake_at_ns) is not None and wake_at_ns <= end_ns:
            self.now_ns = max(self.now_ns, wake_at_ns)
            count += len(self._turn())
        self.now_ns = end_ns
        return count

    def _turn(self, *batch: tuple[bytes, Any]) -> list[int]:
        pump(self.node, batch, self.now_ns)
        self.node.check()
        found = [message.epoch for _, message in self.node.out if isinstance(message, NodeReport)]
        self.node.out.clear()
        return found


@pytest.fixture
def bench() -> IdleBench:
    made = IdleBench()
    made.welcome()
    made.reports_in(RARELY_NS)
    return made


def test_a_node_alone_reports_rarely(bench: IdleBench) -> None:
    assert bench.reports_in(10 * RARELY_NS) == 10


def test_with_company_it_reports_at_once_and_some_times_within_its_death(bench: IdleBench) -> None:
    assert bench.members(1, HERE, PEER) == [1]
    bench.reports_in(RARELY_NS)
    assert bench.reports_in(CONFIG.node_death_ns) >= 3
    bench.members(2, HERE)
    bench.reports_in(RARELY_NS)
    assert bench.reports_in(10 * RARELY_NS) == 10


def test_one_that_no_shard_has_welcomed_says_so_often() -> None:
    bench = IdleBench()
    bench.reports_in(RARELY_NS)
    assert bench.reports_in(2 * CONFIG.node_death_ns) > 2 * CONFIG.node_death_ns // RARELY_NS


def test_one_that_waits_for_a_placement_asks_often(bench: IdleBench) -> None:
    bench.submit(bench.kind(CPU=8))
    assert bench.take(Forward)
    bench.reports_in(RARELY_NS)
    assert bench.reports_in(2 * CONFIG.node_death_ns) > 2 * CONFIG.node_death_ns // RARELY_NS
