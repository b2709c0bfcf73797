"""The cluster that other tests of this folder get: as many nodes and shards as wanted, and all are used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

import zray
from tests import conformance
from zray.util import state

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@zray.remote
def node_of(seconds: float) -> int:
    time.sleep(seconds)
    return os.getppid()


def test_every_node_works(request: pytest.FixtureRequest) -> None:
    nodes = request.config.getoption("--nodes")
    assert len(state.list_nodes()) == nodes
    deadline = time.monotonic() + PATIENCE_S
    seen: set[int] = set()
    while len(seen) < nodes and time.monotonic() < deadline:
        seen |= set(zray.get([node_of.remote(0.05) for _ in range(12)], timeout=PATIENCE_S))
    assert len(seen) == nodes


def test_every_shard_is_there(request: pytest.FixtureRequest) -> None:
    """Names are spread over the shards: enough of them use each."""

    @zray.remote(num_cpus=0)
    class Named:
        def read(self) -> int:
            return 1

    made = [Named.options(name=f"of-shard-{number}").remote() for number in range(8)]
    found = [zray.get_actor(f"of-shard-{number}") for number in range(8)]
    assert zray.get([actor.read.remote() for actor in found], timeout=PATIENCE_S) == [1] * 8
    assert found == made
