"""Two global schedulers as real processes: the one that a node uses is killed while it forwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import zray
from tests.clusters import MARK, place
from tests.support import eventually
from zray.cluster_utils import Cluster
from zray.exceptions import TaskUnschedulableError
from zray.util.state import list_nodes, list_tasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SMALL = {"num_cpus": 2, "object_store_memory": 64 << 20}
ITEMS = 60


@contextmanager
def nodes_of_two_cpus(
    monkeypatch: pytest.MonkeyPatch, count: int, environment: dict[str, str], **control_store: Any
) -> Iterator[Cluster]:
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        with Cluster(
            True, head_node_args=SMALL, environment=environment, gcs_shards=2, **control_store
        ) as made:
            for _ in range(count - 1):
                made.add_node(wait=False, **SMALL)
            made.wait_for_nodes()
            with made.connect():
                yield made


def scheduler_of(node_id: str) -> dict[str, Any]:
    """What a node says of the global scheduler that it uses: of which shard, and whether it answers."""
    found: dict[str, Any] = list_nodes([("node_id", "=", node_id)])[0]["global_scheduler"]
    return found


def both_known(cluster: Cluster) -> int:
    """The shard whose scheduler the driver's node uses, once it knows both."""
    assert cluster.head_node is not None
    node_id = cluster.head_node.node_id
    eventually(lambda: scheduler_of(node_id)["known"] == [0, 1])
    shard: int = scheduler_of(node_id)["shard"]
    return shard


@zray.remote(max_retries=-1)
def part(number: int, *before: int) -> int:
    time.sleep(0.02)
    return number + sum(before)


@zray.remote(scheduling_strategy="SPREAD")
def spread(number: int) -> int:
    return number


@zray.remote(resources={"rare": 1})
def rare() -> int:
    return 7


def test_a_program_that_forwards_ends_without_the_scheduler_that_its_node_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards are chains of two, so that nothing else is missed; the process that was killed stays away."""
    environment = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
    with nodes_of_two_cpus(monkeypatch, 3, environment, gcs_replicas=2) as cluster:
        used, store = both_known(cluster), cluster.control_store
        head = store.members(used)[0]
        firsts = [part.remote(number) for number in range(ITEMS)]
        zray.wait(firsts, num_returns=ITEMS // 4)
        store.kill(used, head)
        seconds = [part.remote(1, firsts[i], firsts[(i + 7) % ITEMS]) for i in range(ITEMS)]
        expected = [1 + i + (i + 7) % ITEMS for i in range(ITEMS)]
        assert zray.get(seconds, timeout=30) == expected
        assert not store.pid(used, head), "it is not back"


def test_one_whose_shard_is_gone_is_replaced_and_used_again_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What else a task needs of a shard (its lineage, to leave its node) waits for that shard itself."""
    with nodes_of_two_cpus(monkeypatch, 2, {"ZRAY_UNSCHEDULABLE_AFTER_NS": "3000000000"}) as cluster:
        assert cluster.head_node is not None
        node_id = cluster.head_node.node_id
        used, store = both_known(cluster), cluster.control_store
        waiting = rare.remote()
        store.kill(used)
        # All of these are forwarded; those that are placed on this very node need nothing of the other shard.
        refs = [spread.remote(number) for number in range(8)]
        ready, _ = zray.wait(refs, num_returns=3, timeout=10)
        assert len(ready) == 3
        with pytest.raises(TaskUnschedulableError, match="rare"):  # the grace goes on with the other one
            zray.get(waiting, timeout=10)
        why = f"shard {used} of the control store does not answer"
        details = [row["detail"] for row in list_tasks()]
        assert all(why in detail or "no global scheduler" in detail for detail in details), details
        store.start(used)
        assert zray.get(refs, timeout=30) == list(range(8))
        eventually(lambda: scheduler_of(node_id)["shard"] == used)


def test_a_stopped_scheduler_is_replaced_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes_of_two_cpus(monkeypatch, 1, {"ZRAY_UNSCHEDULABLE_AFTER_NS": "2500000000"}) as cluster:
        pid = cluster.control_store.pid(both_known(cluster))
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TaskUnschedulableError, match="rare"):
                zray.get(rare.remote(), timeout=15)
        finally:
            os.kill(pid, signal.SIGCONT)
