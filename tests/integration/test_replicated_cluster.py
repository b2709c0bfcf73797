"""Several nodes on shards that are chains, as real processes: any part of the control store may die."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zray
from tests.clusters import MARK, place
from zray.api.local_control_store import LocalControlStore
from zray.cluster_utils import Cluster
from zray.config import Config
from zray.runtime.joining import living_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SHARDS, REPLICAS = 2, 3
SMALL = {"num_cpus": 2, "object_store_memory": 128 << 20}
ENVIRONMENT = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
ITEMS = 40
DOUBLES = 1 << 14


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes of two CPUs on two shards of three replicas; this process is a driver of the first."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        with Cluster(
            True, head_node_args=SMALL, environment=ENVIRONMENT, gcs_shards=SHARDS, gcs_replicas=REPLICAS
        ) as found:
            found.add_node(wait=False, **SMALL)
            found.add_node(wait=False, **SMALL)
            found.wait_for_nodes()
            yield found


@zray.remote(max_retries=-1)
def filled(number: int) -> tuple[int, np.ndarray]:
    time.sleep(0.02)
    return os.getppid(), np.full(DOUBLES, number, dtype=np.float64)


@zray.remote(max_retries=-1)
def total(*made: tuple[int, np.ndarray]) -> float:
    time.sleep(0.01)
    return float(sum(array.sum() for _, array in made))


def run_while(strike: Callable[[], None]) -> int:
    """A program with values, references and inputs on other nodes; how many nodes ran a part of it."""
    made = [filled.remote(number) for number in range(ITEMS)]
    zray.wait(made, num_returns=ITEMS // 4)
    strike()
    pairs = [total.remote(made[i], made[(i + 7) % ITEMS]) for i in range(ITEMS)]
    expected = [float((i + (i + 7) % ITEMS) * DOUBLES) for i in range(ITEMS)]
    assert zray.get(pairs, timeout=60) == expected
    found = zray.get(made, timeout=60)
    assert [int(array[0]) for _, array in found] == list(range(ITEMS))
    return len({pid for pid, _ in found})


def ids_of(cluster: Cluster) -> dict[int, bytes]:
    """The living nodes as the control store knows them: process -> id."""
    return {node.pid: node.node_id for node in living_nodes(cluster.gcs_address, Config())}


def test_nodes_exchange_tasks_and_objects(cluster: Cluster) -> None:
    assert [len(cluster.control_store.members(shard)) for shard in range(SHARDS)] == [REPLICAS] * SHARDS
    with cluster.connect():
        assert run_while(lambda: None) == 3


@pytest.mark.parametrize("seat", [0, 1, -1], ids=["head", "middle", "tail"])
def test_a_replica_of_each_shard_dies_and_joins_again(cluster: Cluster, seat: int) -> None:
    store = cluster.control_store
    before = ids_of(cluster)
    with cluster.connect():
        for shard in (0, 1, 0):
            victim = store.members(shard)[seat]
            assert run_while(lambda: store.kill(shard, victim)) >= 2  # noqa: B023
            assert victim not in store.members(shard)
            store.start(shard, victim)
            store.wait_for_chains()
            assert store.members(shard)[-1] == victim
        assert run_while(lambda: None) == 3
    assert ids_of(cluster) == before  # a fail-over declares nobody dead


def test_one_replica_of_each_shard_is_left_and_the_others_come_back(cluster: Cluster) -> None:
    store = cluster.control_store
    before = ids_of(cluster)

    def strike() -> None:
        for shard in range(SHARDS):
            for victim in store.members(shard)[:-1]:  # heads, one after the other
                store.kill(shard, victim)

    with cluster.connect():
        run_while(strike)
        for shard in range(SHARDS):
            for replica in range(REPLICAS):
                if not store.pid(shard, replica):
                    store.start(shard, replica)
        store.wait_for_chains()
        assert run_while(lambda: None) == 3
    assert ids_of(cluster) == before


def test_without_the_master_they_go_on(cluster: Cluster) -> None:
    store = cluster.control_store
    with cluster.connect():
        assert run_while(store.kill_master) >= 2
        assert run_while(lambda: None) == 3
        store.start_master()
        victim = store.members(0)[0]
        assert run_while(lambda: store.kill(0, victim)) >= 2
        store.start(0, victim)
        store.wait_for_chains()


def restart_shard(store: LocalControlStore, shard: int) -> None:
    for replica in range(store.replicas):
        store.kill(shard, replica)
    for replica in range(store.replicas):
        store.start(shard, replica)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_whole_shard_starts_again_from_its_disks(cluster: Cluster, shard: int) -> None:
    store = cluster.control_store
    before = ids_of(cluster)
    with cluster.connect():
        assert run_while(lambda: restart_shard(store, shard)) >= 2
        store.wait_for_chains()
        assert run_while(lambda: None) == 3
    assert ids_of(cluster) == before


def test_a_node_dies_together_with_the_head_that_would_have_noticed(cluster: Cluster) -> None:
    store = cluster.control_store

    def strike() -> None:
        store.kill(0, store.members(0)[0])
        cluster.remove_node(cluster.worker_nodes[0], allow_graceful=False)

    with cluster.connect():
        run_while(strike)
        cluster.wait_for_nodes()
        cluster.add_node(**SMALL)
        run_while(lambda: None)


def test_what_makes_no_sense_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="at least 1 shard"):
        Cluster(gcs_replicas=0)
    store: Any = cluster.control_store
    with pytest.raises(ValueError, match="there is no replica 3 of shard 0"):
        store.kill(0, 3)
    with pytest.raises(ValueError, match="runs already"):
        store.start(1, 0)
