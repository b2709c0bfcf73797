"""``zray.cluster_utils.Cluster``: real nodes that come, leave, are killed and hang, and one driver or two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.clusters import finish, line_of, place, tell
from zray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

STORE_BYTES = 256 << 20
EAGER = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
"""The second task of a kind may go elsewhere."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes of two CPUs; this process is a driver of the first."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        for name, value in here.environment.items():
            if os.environ.get(name) != value and name != "PYTHONPATH":
                monkeypatch.setenv(name, value)
        with Cluster(True, head_node_args=_node(), environment=EAGER) as found:
            found.add_node(**_node(resources={"disk": 2}))
            found.add_node(**_node())
            yield found


def _node(**more: Any) -> dict[str, Any]:
    return {"num_cpus": 2, "object_store_memory": STORE_BYTES, **more}


@zray.remote
def where(number: int) -> int:
    time.sleep(0.05)
    return os.getppid()


@zray.remote
def nested(count: int) -> list[int]:
    return zray.get([where.remote(number) for number in range(count)])


def test_tasks_spread_over_the_nodes(cluster: Cluster) -> None:
    with cluster.connect():
        assert len(set(zray.get([where.remote(number) for number in range(90)]))) == 3


def test_a_custom_resource_of_another_node(cluster: Cluster) -> None:
    with cluster.connect():
        here, there = zray.get([where.remote(0), where.options(resources={"disk": 1}).remote(0)])
        assert here != there
        assert len(set(zray.get([where.options(resources={"disk": 0.5}).remote(i) for i in range(8)]))) == 1


def test_nested_tasks(cluster: Cluster) -> None:
    with cluster.connect():
        pids = zray.get([nested.remote(5) for _ in range(9)])
        assert [len(some) for some in pids] == [5] * 9
