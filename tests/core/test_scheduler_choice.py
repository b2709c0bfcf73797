"""Which global scheduler a node forwards to: one node's view, message by message."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from zray.config import Config
from zray.core.machine import RUNTIME
from zray.core.scheduler_choice import SchedulerChoice
from zray.protocol.cluster import AskScheduler
from zray.protocol.messages import Warn

SHARDS = [b"gcs-0000", b"gcs-0001", b"gcs-0002"]
CONFIG = Config()
PATIENCE_NS = CONFIG.heartbeat_interval_ns * CONFIG.heartbeat_liveness_count
BEAT_NS = CONFIG.heartbeat_interval_ns


class Bench:
    """The choice of one node among three, and how often it moved."""

    def __init__(self, node_id: bytes = b"N" * 16, *, greet: bool = True) -> None:
        self.out: list[tuple[bytes, Any]] = []
        self.moves: list[tuple[bytes, bytes]] = []  # from, to
        self.shards = list(SHARDS)
        self.choice = SchedulerChoice(
            self.out, node_id=node_id, shards=self.shards, config=CONFIG, on_move=self._moved
        )
        for shard in SHARDS if greet else ():
            self.choice.heard(0, shard, 0)
        self.moves.clear()

    def _moved(self, former: bytes) -> None:
        self.moves.append((former, self.choice.address))

    def order(self) -> list[bytes]:
        known = self.choice.known
        return [self.shards[number] for number in sorted(known, key=lambda number: known[number].rank)]

    def lose(self, shard: bytes, now_ns: int = 0) -> list[tuple[bytes, bytes]]:
        self.choice.lost(now_ns, self.shards.index(shard))
        return self.taken_moves()

    def hear(self, shard: bytes, now_ns: int, token: int = 0) -> list[tuple[bytes, bytes]]:
        self.choice.heard(now_ns, shard, token)
        return self.taken_moves()

    def look(self, now_ns: int, *, waits: bool = True) -> list[tuple[bytes, Any]]:
        self.choice.look(now_ns, waits=waits)
        self.choice.check()
        found, self.out[:] = list(self.out), []
        return found

    def taken_moves(self) -> list[tuple[bytes, bytes]]:
        self.choice.check()
        found, self.moves = self.moves, []
        return found


def test_a_node_forwards_to_the_first_shard_until_others_greet() -> None:
    bench = Bench(greet=False)
    assert bench.choice.address == SHARDS[0]
    assert bench.choice.addresses() == [SHARDS[0]]
    bench.hear(b"a stranger", 0)
    assert bench.choice.addresses() == [SHARDS[0]]
    for shard in SHARDS:
        bench.hear(shard, 0)
    assert bench.choice.addresses() == SHARDS
    assert bench.choice.address == bench.order()[0]


def test_nodes_are_spread_over_all_schedulers_and_over_those_that_are_left() -> None:
    benches = [Bench(number.to_bytes(16, "big")) for number in range(300)]
    first = Counter(bench.choice.address for bench in benches)
    assert min(first.values()) > 70, first
    mourners = [bench for bench in benches if bench.choice.address == SHARDS[1]]
    for bench in mourners:
        bench.lose(SHARDS[1])
    heirs = Counter(bench.choice.address for bench in mourners)
    assert set(heirs) == {SHARDS[0], SHARDS[2]}
    assert min(heirs.values()) > 25, heirs


def test_a_lost_one_is_left_at_once_and_preferred_again_once_it_knows_all_nodes() -> None:
    bench = Bench()
    first, second, _ = bench.order()
    assert bench.lose(first) == [(first, second)]
    assert bench.look(BEAT_NS, waits=False) == [(first, AskScheduler(1))], "is it back?"
    assert bench.hear(first, 2 * BEAT_NS, token=1) == [], "it is, and has heard of no node yet"
    assert bench.look(3 * BEAT_NS, waits=False) == []
    bench.look(PATIENCE_NS + 2 * BEAT_NS - 1, waits=False)
    assert bench.taken_moves() == []
    bench.look(PATIENCE_NS + 2 * BEAT_NS, waits=False)
    assert bench.taken_moves() == [(second, first)]


def test_another_one_that_is_lost_moves_nothing() -> None:
    bench = Bench()
    _, second, third = bench.order()
    assert bench.lose(second) == []
    assert bench.lose(third) == []
    assert bench.choice.answers


def test_silence_counts_only_while_something_waits() -> None:
    bench = Bench()
    first, second, _ = bench.order()
    assert bench.look(0, waits=False) == bench.look(10 * PATIENCE_NS, waits=False) == []
    start_ns = 20 * PATIENCE_NS
    assert bench.look(start_ns) == [(first, AskScheduler(1))]
    bench.hear(first, start_ns + PATIENCE_NS - 1, token=1)
    assert bench.look(start_ns + PATIENCE_NS) == [(first, AskScheduler(2))], "a new question"
    assert bench.look(start_ns + 2 * PATIENCE_NS - 1) == [(first, AskScheduler(3))]
    assert bench.taken_moves() == []
    bench.look(start_ns + 2 * PATIENCE_NS)
    assert bench.taken_moves() == [(first, second)]


def test_an_answer_from_before_its_loss_does_not_bring_one_back() -> None:
    bench = Bench()
    first, second, _ = bench.order()
    assert bench.look(0) == [(first, AskScheduler(1))]
    assert bench.lose(first, 1) == [(first, second)]
    bench.hear(first, 2, token=1)
    bench.look(2 + PATIENCE_NS)
    assert bench.choice.address == second
    assert not bench.choice.known[bench.shards.index(first)].is_up


def test_with_all_of_them_gone_forwards_stay_and_people_are_told() -> None:
    bench = Bench()
    first, second, third = bench.order()
    assert bench.lose(first) == [(first, second)]
    assert bench.lose(second) == [(second, third)]
    assert bench.lose(third) == []
    assert not bench.choice.answers
    assert bench.out == [(RUNTIME, Warn("no global scheduler answers; what is forwarded waits"))]
    assert bench.hear(second, BEAT_NS) == [(third, second)], "whoever is back first"
    assert bench.choice.answers


def test_the_only_one_hears_everything_again_when_it_is_back() -> None:
    bench = Bench(greet=False)
    assert bench.lose(SHARDS[0]) == []
    assert not bench.choice.answers
    bench.look(BEAT_NS)
    assert bench.hear(SHARDS[0], 2 * BEAT_NS, token=1) == [(SHARDS[0], SHARDS[0])]


def test_another_head_of_a_chain_is_another_scheduler() -> None:
    bench = Bench()
    first, second, _ = bench.order()
    number = bench.shards.index(first)
    bench.shards[number] = b"gcs-head.2"
    assert bench.lose(b"gcs-head.2") == [(b"gcs-head.2", second)]
    bench.hear(b"gcs-head.2", 0)
    bench.look(PATIENCE_NS)
    assert bench.choice.address == b"gcs-head.2"


def test_a_node_without_shards_forwards_to_nobody() -> None:
    choice = SchedulerChoice([], node_id=b"N" * 16, shards=[], config=CONFIG, on_move=pytest.fail)
    choice.look(0, waits=True)
    choice.check()
    assert (choice.address, choice.addresses(), choice.out) == (RUNTIME, [], [])
