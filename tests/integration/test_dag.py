"""Graphs that are bound first and executed later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zray
from tests import conformance
from zray.dag import ClassNode, FunctionNode, InputNode, MultiOutputNode


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@zray.remote
def add(*numbers: int) -> int:
    return sum(numbers)


@zray.remote
def total(numbers: dict[str, list[Any]]) -> int:
    return sum(zray.get(numbers["refs"]))


@zray.remote
class Tally:
    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value

    def pair(self) -> tuple[int, int]:
        return self.value, -self.value


def test_tasks() -> None:
    graph = add.bind(add.bind(1, 2), add.options(num_cpus=0.5).bind(3))
    assert isinstance(graph, FunctionNode)
    assert zray.get(graph.execute()) == 6
    assert zray.get(graph.execute()) == 6


def test_a_shared_node_runs_once_per_execution() -> None:
    tally = Tally.remote(0)
    once = tally.add.bind(1)
    graph = add.bind(once, once, add.bind(once))
    assert zray.get(graph.execute()) == 3
    assert zray.get(graph.execute()) == 6


def test_actors_are_made_by_each_execution() -> None:
    node = Tally.bind(add.bind(5, 5))
    assert isinstance(node, ClassNode)
    graph = add.bind(node.add.bind(1), node.add.bind(2))
    assert zray.get(graph.execute()) == 11 + 13
    assert zray.get(graph.execute()) == 11 + 13
    assert zray.get(node.execute().add.remote(0)) == 10
    pair = node.pair.options(num_returns=2).bind()
    assert zray.get(pair.execute()) == [10, -10]


def test_inputs() -> None:
    with InputNode() as given:
        whole = add.bind(given, 1)
        parts = add.bind(given[0], given[1], given.more)
    assert zray.get(whole.execute(4)) == 5
    assert zray.get(whole.execute(zray.put(4))) == 5
    assert zray.get(parts.execute(1, 2, more=3)) == 6
    with pytest.raises(ValueError, match="no input 1"):
        parts.execute(1)
    with pytest.raises(ValueError, match="exactly one"):
        whole.execute(1, 2)
    with pytest.raises(ValueError, match="needs inputs"):
        whole.execute()
    with pytest.raises(ValueError, match="takes no inputs"):
        add.bind(1).execute(1)


def test_several_outputs_and_containers() -> None:
    one, two = add.bind(1), add.bind(2)
    assert zray.get(MultiOutputNode([one, two]).execute()) == [1, 2]
    assert zray.get(total.bind({"refs": [one, two]}).execute()) == 3


def test_a_deep_graph_needs_no_deep_stack() -> None:
    node = add.bind(0)
    for _ in range(3_000):
        node = add.bind(node, 1)
    assert zray.get(node.execute(), timeout=60) == 3_000


def test_errors_and_unknown_methods() -> None:
    with pytest.raises(TypeError):
        zray.get(add.bind("a", 1).execute())
    with pytest.raises(AttributeError, match="no method"):
        _ = Tally.bind(1).divide
