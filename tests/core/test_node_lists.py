"""Which nodes there are: what the control store tells a node, and a question without an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.core.test_admission import ClusterBench
from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL
from zray.config import Config
from zray.core import census as census_module
from zray.core import node_lists
from zray.core.census import Census
from zray.core.membership import Membership
from zray.protocol.cluster import ListNodes, NodeList, NodeRow
from zray.protocol.messages import Answer, Goodbye, NodeHello, NodeReport, Query

S = 1_000_000_000
ROW = NodeRow(b"r" * 16, "host", 7, "tcp://there:1", (("zone", "a"),), (("CPU", 20_000),), (), 3, True)


@pytest.fixture
def bench() -> ClusterBench:
    made = ClusterBench()
    made.effects.clear()
    return made


def asked(bench: ClusterBench) -> int:
    """Ask, and return the token with which the control store was asked."""
    bench.say(DRIVER_ADDRESS, Query(5, "nodes"))
    return max(bench.node.node_lists.open)


def answers(bench: ClusterBench) -> list[Any]:
    found = bench.take(Answer)
    assert all((to, answer.token) == (DRIVER_ADDRESS, 5) for to, answer in found)
    return [json.loads(answer.body) for _, answer in found]


def test_the_answer_of_the_control_store_is_passed_on_once(bench: ClusterBench) -> None:
    token = asked(bench)
    bench.say(b"a stranger", NodeList(token, (ROW,)))
    assert answers(bench) == []
    bench.say(GLOBAL, NodeList(token, (ROW,), 4))
    (found,) = answers(bench)
    assert found["own"]["node_id"] == bench.node.identity.node_id.hex()
    assert found["nodes"][0] == {
        "node_id": ROW.node_id.hex(), "host": "host", "pid": 7, "endpoint": "tcp://there:1",
        "labels": {"zone": "a"}, "alive": True, "total": {"CPU": 2}, "available": {}, "backlog": 3,
    }  # fmt: skip
    assert found["left_out"] == 4
    bench.say(GLOBAL, NodeList(token, (ROW,)))  # an answer to a repeated question
    assert answers(bench) == []


def test_a_question_is_repeated_and_given_up(bench: ClusterBench) -> None:
    asked(bench)
    for _ in range(9):
        bench.now_ns += S // 2
        bench.node.on_tick(bench.now_ns)
        assert any(isinstance(message, ListNodes) for _, message in bench.node.out)
        bench.node.out.clear()
    bench.now_ns += S
    bench.node.on_tick(bench.now_ns)
    bench.say(GLOBAL)
    (found,) = answers(bench)
    assert "does not answer" in found["unavailable"]
    assert not bench.node.node_lists.open


def test_a_node_alone_answers_for_itself_in_the_end(bench: ClusterBench) -> None:
    bench.members()
    asked(bench)
    bench.now_ns += 6 * S
    bench.node.on_tick(bench.now_ns)
    bench.say(GLOBAL)
    (found,) = answers(bench)
    assert found["nodes"] == []


def test_questions_are_bounded_and_go_with_who_asked(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_lists, "QUESTIONS_MAX", 1)
    asked(bench)
    bench.say(DRIVER_ADDRESS, Query(5, "nodes"))
    (found,) = answers(bench)
    assert "1 such questions" in found["unavailable"]
    bench.say(DRIVER_ADDRESS, Goodbye())
    bench.effects.clear()
    assert not bench.node.node_lists.open


def hello(number: int) -> NodeHello:
    return NodeHello(1, bytes([number]) * 16, 1, number, "host", f"ipc://{number}", (("CPU", 10_000),))


def test_a_census_has_the_living_and_the_newest_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census_module, "DEAD_SHOWN_MAX", 2)
    census = Census()
    for number in range(1, 6):
        census.introduced(hello(number))
    census.reported(NodeReport(hello(5).node_id, 1, (), (("CPU", 1),), 4, 0, 0))
    for number in (1, 3, 2):
        census.died(hello(number).node_id)
    rows = census.answer(ListNodes(9)).rows
    assert [(row.pid, row.alive) for row in rows] == [(4, True), (5, True), (3, False), (2, False)]
    assert (rows[1].free, rows[1].backlog, rows[2].free) == ((("CPU", 1),), 4, ())
    monkeypatch.setattr(census_module, "ROWS_MAX", 3)
    answer = census.answer(ListNodes(9))
    assert (len(answer.rows), answer.left_out) == (3, 1)


def test_before_the_graves_are_read_nothing_is_told() -> None:
    membership = Membership(store=GLOBAL, life=lambda: 1, config=Config())
    membership.on_list_nodes(0, b"node", ListNodes(1))
    assert not membership.out
