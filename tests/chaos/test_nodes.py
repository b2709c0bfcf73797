"""A shuffle over ten real nodes of which one is killed every few seconds: the right answer all the same."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import zray
from tests.clusters import MARK, place
from zray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = 10
PARTS = 24
PART_BYTES = 2 << 20
ROUNDS = 4
KILL_INTERVAL_S = 2.0


@zray.remote(max_retries=-1)
def mapped(number: int, round_: int) -> list[np.ndarray]:
    """The values ``number * PART .. (number + 1) * PART`` in an order of their own, cut by remainder."""
    count = PART_BYTES // 8
    values = np.random.default_rng([number, round_]).permutation(count) + number * count
    return [values[values % PARTS == part] for part in range(PARTS)]


@zray.remote(max_retries=-1)
def reduced(part: int, *pieces: np.ndarray) -> tuple[int, int, bool]:
    whole = np.sort(np.concatenate(pieces))
    return len(whole), int(whole.sum()), bool((np.diff(whole) == PARTS).all())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        sizes = {"num_cpus": 2, "object_store_memory": 256 << 20}
        with Cluster(True, head_node_args=sizes, environment={"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}) as found:
            for _ in range(NODES - 1):
                found.add_node(wait=False, **sizes)
            found.wait_for_nodes()
            yield found


class Killer(threading.Thread):
    """Every few seconds kills a node other than the driver's, and adds another one."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        while not self.over.wait(KILL_INTERVAL_S):
            victim = self.random.choice(self.cluster.worker_nodes)
            self.cluster.remove_node(victim, allow_graceful=False)
            self.killed += 1
            self.cluster.add_node(wait=False, num_cpus=2, object_store_memory=256 << 20)


def test_a_shuffle_survives_nodes_that_are_killed(cluster: Cluster) -> None:
    seed = int(os.environ.get("ZRAY_CHAOS_SEED", "0")) or random.randrange(1, 1 << 31)
    print(f"ZRAY_CHAOS_SEED={seed}")
    total = PARTS * PART_BYTES // 8
    with cluster.connect():
        killer = Killer(cluster, seed)
        killer.start()
        try:
            round_ = 0
            while round_ < ROUNDS or killer.killed < 3:
                maps = [mapped.options(num_returns=PARTS).remote(number, round_) for number in range(PARTS)]
                columns = [[pieces[part] for pieces in maps] for part in range(PARTS)]
                results = zray.get([reduced.remote(p, *columns[p]) for p in range(PARTS)], timeout=120)
                assert all(ordered for _, _, ordered in results)
                assert sum(count for count, _, _ in results) == total
                assert sum(value for _, value, _ in results) == total * (total - 1) // 2
                round_ += 1
        finally:
            killer.over.set()
            killer.join()
