"""``put(copies=2)`` on real nodes: the node that put is killed, and the value is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zray
from tests.clusters import MARK, place
from tests.support import eventually
from zray.cluster_utils import Cluster, ClusterNode
from zray.exceptions import ObjectLostError
from zray.util import state

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SIZES = {"num_cpus": 2, "object_store_memory": 64 << 20}
LARGE = 1 << 20  # numbers of eight bytes
GET_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The driver's node; each test adds those that it kills."""
    with pytest.MonkeyPatch.context() as monkeypatch, place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        with Cluster(True, head_node_args=SIZES) as found, found.connect():
            yield found


@pytest.fixture
def three(cluster: Cluster) -> Iterator[list[ClusterNode]]:
    """Three more nodes, each with a resource of its own; none is left for the next test."""
    nodes = [cluster.add_node(wait=False, resources={name: 10}, **SIZES) for name in "abc"]
    cluster.wait_for_nodes()
    yield nodes
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


@zray.remote(max_retries=0)
def put_there(copies: int, count: int) -> list[Any]:
    """A ref to what this task put: nothing can make it again."""
    value = np.arange(count) if count else "small"
    return [zray.put(value, copies=copies)]


def _put_on(name: str, copies: int, count: int) -> Any:
    [ref] = zray.get(put_there.options(resources={name: 1}).remote(copies, count), timeout=GET_TIMEOUT_S)
    return ref


@zray.remote(num_cpus=0)
def pressure(count: int) -> int:
    """Nearly twice what the store holds, in pieces that are all needed at once."""
    refs = [zray.put(np.zeros(LARGE)) for _ in range(count)]
    return len(zray.get([piece.remote(ref) for ref in refs]))


@zray.remote(num_cpus=0)
def piece(array: np.ndarray) -> int:
    return len(array)


def test_two_copies_outlive_the_node_that_put_and_then_the_one_that_kept(
    cluster: Cluster, three: list[ClusterNode]
) -> None:
    """Killed one after the other; between them the second copies are made again elsewhere."""
    large, small = _put_on("a", 2, LARGE), _put_on("a", 2, 0)
    inside = zray.put([large], copies=2)
    for victim in three[:2]:
        _await_copies([large, small, inside])
        cluster.remove_node(victim, allow_graceful=False)
    assert zray.get(small, timeout=GET_TIMEOUT_S) == "small"
    [again] = zray.get(inside, timeout=GET_TIMEOUT_S)
    assert int(zray.get(again, timeout=GET_TIMEOUT_S)[-1]) == LARGE - 1


def _await_copies(refs: list[Any]) -> None:
    """Return once two living nodes keep each of them."""

    def are_kept() -> bool:
        kept = [
            (row["object_id"], row["node_id"])
            for row in state.list_objects()
            if row["copies"] == 2 and row["place"] != "pending"
        ]
        return all(len([None for name, _ in kept if name == ref.hex()]) >= 2 for ref in refs)

    eventually(are_kept, GET_TIMEOUT_S, "copies on two nodes")


def test_the_copy_survives_pressure_on_the_node_that_keeps_it(
    cluster: Cluster, three: list[ClusterNode]
) -> None:
    refs = [_put_on("a", 4, LARGE) for _ in range(3)]  # all four nodes keep them
    zray.get([pressure.options(resources={name: 1}).remote(14) for name in "bc"], timeout=60)
    cluster.remove_node(three[0], allow_graceful=False)
    cluster.remove_node(three[1], allow_graceful=False)
    assert [int(zray.get(ref, timeout=GET_TIMEOUT_S)[-1]) for ref in refs] == [LARGE - 1] * 3


def test_one_copy_is_lost_with_its_node_and_the_error_says_what_would_have_kept_it(
    cluster: Cluster, three: list[ClusterNode]
) -> None:
    ref = _put_on("a", 1, LARGE)
    cluster.remove_node(three[0], allow_graceful=False)
    with pytest.raises(ObjectLostError, match=r"put\(value, copies=2\)"):
        zray.get(ref, timeout=GET_TIMEOUT_S)


def test_with_too_few_nodes_a_warning_says_so_and_the_copy_is_made_once_there_is_one(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "zray.objects"):
        ref = zray.put(np.arange(LARGE), copies=2)
    assert time.monotonic() - began < 5.0
    assert "put(copies=2) has 1 so far" in caplog.text
    first = cluster.add_node(resources={"a": 1}, **SIZES)
    caplog.clear()
    again = zray.put("now there is one", copies=2)
    assert not caplog.records
    assert int(zray.get(piece.options(resources={"a": 1}).remote(ref), timeout=GET_TIMEOUT_S)) == LARGE
    assert zray.get(again) == "now there is one"
    cluster.remove_node(first, allow_graceful=False)


@pytest.mark.parametrize("copies", [0, 65, True, "2"])
def test_what_makes_no_sense_is_refused(cluster: Cluster, copies: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="copies is"):
        zray.put(1, copies=copies)
