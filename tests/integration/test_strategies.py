"""Strategies on real nodes: one by its id, some by labels, the one that has the data; and nodes that die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests.clusters import place
from tests.support import eventually
from zray.cluster_utils import Cluster
from zray.exceptions import TaskCancelledError, TaskUnschedulableError
from zray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

pytestmark = pytest.mark.slow

STORE_BYTES = 256 << 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes of two CPUs, two of them with labels; this process is a driver of the first."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        size: dict[str, Any] = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
        with Cluster(True, head_node_args=size) as found:
            found.add_node(**size, labels={"zone": "a", "disk": "ssd"})
            found.add_node(**size, labels={"zone": "b"})
            yield found


@zray.remote
def where(*inputs: Any) -> str:
    return zray.get_runtime_context().get_node_id()


@zray.remote
def filled(size: int) -> np.ndarray:
    return np.zeros(size // 8)


def test_tasks_run_on_the_node_that_they_name(cluster: Cluster) -> None:
    with cluster.connect():
        for node in cluster.list_all_nodes():
            for soft in (False, True):
                strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=soft)
                pinned = where.options(scheduling_strategy=strategy)
                assert zray.get([pinned.remote() for _ in range(4)]) == [node.node_id] * 4


def test_a_dead_node_is_an_error_at_once_or_a_wish(cluster: Cluster) -> None:
    doomed = cluster.worker_nodes[0]
    with cluster.connect():
        hard = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(doomed.node_id, soft=False))
        soft = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(doomed.node_id, soft=True))
        assert zray.get(hard.remote()) == doomed.node_id
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.wait_for_nodes()
        with pytest.raises(TaskUnschedulableError, match=f"{doomed.node_id}.*is dead; alive: ") as caught:
            zray.get(hard.remote(), timeout=30)
        assert all(node.node_id in str(caught.value) for node in cluster.list_all_nodes())
        assert zray.get(soft.remote()) != doomed.node_id


def test_a_node_that_dies_takes_what_is_bound_to_it_along(cluster: Cluster) -> None:
    doomed = cluster.worker_nodes[1]

    @zray.remote(scheduling_strategy=NodeAffinitySchedulingStrategy(doomed.node_id, soft=False))
    def sleep_there() -> None:
        time.sleep(600)

    with cluster.connect():
        refs = [sleep_there.remote() for _ in range(5)]  # two of them run
        eventually(lambda: not zray.wait(refs, timeout=0.2)[0], 20.0)
        cluster.remove_node(doomed, allow_graceful=False)
        for ref in refs:
            with pytest.raises(TaskUnschedulableError, match="is dead"):
                zray.get(ref, timeout=30)


def test_an_unknown_node_is_an_error_at_once(cluster: Cluster) -> None:
    stranger = NodeAffinitySchedulingStrategy("ab" * 16, soft=False)
    with cluster.connect(), pytest.raises(TaskUnschedulableError, match="none of this cluster"):
        zray.get(where.options(scheduling_strategy=stranger).remote(), timeout=30)


def test_labels_choose_nodes(cluster: Cluster) -> None:
    plain, first, second = (node.node_id for node in cluster.list_all_nodes())
    everywhere = {plain, first, second}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"label_selector": {"zone": "a"}}, {first}),
        ({"label_selector": {"zone": "in(a, b)", "disk": "!ssd"}}, {second}),
        ({"label_selector": {"zone": "!in(a,b)"}}, {plain}),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"disk": Exists()})}, {first}),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": DoesNotExist()})}, {plain}),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": NotIn("a")})}, {plain, second}),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy(soft={"zone": In("b")})}, {second}),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy(soft={"zone": In("gone")})}, everywhere),
    ]
    with cluster.connect():
        for options, expected in cases:
            found = set(zray.get([where.options(**options).remote() for _ in range(3)]))
            assert found <= expected, options


def test_a_task_goes_to_its_large_input(cluster: Cluster) -> None:
    holder = cluster.worker_nodes[1].node_id
    there = NodeAffinitySchedulingStrategy(holder, soft=False)
    with cluster.connect():
        zray.get([where.remote() for _ in range(20)])  # it is known how short they are
        data = filled.options(scheduling_strategy=there).remote(64 << 20)
        zray.wait([data], fetch_local=False)
        assert zray.get([where.remote(data) for _ in range(2)]) == [holder] * 2
        small = filled.options(scheduling_strategy=there).remote(64)
        assert zray.get(where.remote(small)) == cluster.list_all_nodes()[0].node_id


def test_a_task_that_nobody_can_run_fails_after_a_grace_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRAY_UNSCHEDULABLE_AFTER_NS", "1500000000")
    with zray.init(num_cpus=1, labels={"zone": "a"}, object_store_memory=STORE_BYTES):
        for options in ({"num_gpus": 1}, {"label_selector": {"zone": "b"}}):
            with pytest.raises(TaskUnschedulableError, match=r"for 1\.5 s.*(0 of 1 GPU|it is 'a')"):
                zray.get(where.options(**options).remote(), timeout=30)
        assert zray.get(where.options(label_selector={"zone": "a"}).remote())


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeAffinitySchedulingStrategy("nonsense", soft=False),
        lambda: NodeAffinitySchedulingStrategy("ab" * 15, soft=True),
        lambda: NodeAffinitySchedulingStrategy("ab" * 16, soft=True, _spill_on_unavailable=True),
        lambda: NodeLabelSchedulingStrategy(),
        lambda: NodeLabelSchedulingStrategy({"zone": In()}),
        lambda: NodeLabelSchedulingStrategy({"no name": Exists()}),
        lambda: where.options(label_selector={"zone": "in(a,b"}),
        lambda: where.options(scheduling_strategy="ELSEWHERE"),
        lambda: zray.init(labels={"zone": "no value"}),
        lambda: zray.init(labels={"": "a"}),
    ],
)
def test_nonsense_is_refused_where_it_is_written(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()
    assert not zray.is_initialized()


def test_the_wrong_types_are_refused_where_they_are_written() -> None:
    for make in (
        lambda: NodeLabelSchedulingStrategy({"zone": "a"}),  # type: ignore[dict-item]
        lambda: where.options(label_selector=["zone"]),
        lambda: where.options(label_selector={"zone": 1}),
        lambda: zray.init(labels={"zone": 1}),  # type: ignore[dict-item]
    ):
        with pytest.raises(TypeError, match=r"\w"):
            make()


@pytest.mark.parametrize("force", [False, True])
def test_what_runs_on_another_node_is_taken_back_there(cluster: Cluster, tmp_path: Path, force: bool) -> None:
    there = NodeAffinitySchedulingStrategy(cluster.worker_nodes[0].node_id, soft=False)

    @zray.remote
    def below(started: str) -> None:
        wait_until_told(started)

    @zray.remote(scheduling_strategy=there)
    def above(started: str) -> None:
        zray.get(below.options(scheduling_strategy=there).remote(f"{started}-below"))

    with cluster.connect():
        paths = [tmp_path / str(number) for number in range(2)]
        tasks = [above.remote(str(path)) for path in paths]
        for path in paths:
            eventually(Path(f"{path}-below").exists, 20.0, "that both run")
        for task in tasks:
            zray.cancel(task, force=force)
            with pytest.raises(TaskCancelledError):
                zray.get(task, timeout=20)
        # Both CPUs of that node are free although nobody told the tasks to go on.
        assert zray.get([where.options(scheduling_strategy=there).remote() for _ in range(2)], timeout=20)
        if not force:
            assert sorted(path.name for path in tmp_path.glob("*-stopped")) == [
                "0-below-stopped",
                "1-below-stopped",
            ]


def wait_until_told(started: str) -> None:
    """Say that it runs, and whether it was interrupted; nobody ever tells it to go on."""
    Path(started).touch()
    try:
        eventually(Path(f"{started}-go").exists, 60.0)
    except KeyboardInterrupt:
        Path(f"{started}-stopped").touch()
        raise
