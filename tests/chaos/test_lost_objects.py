"""Lost objects with real processes: many who ask cause one re-execution, also when their driver is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests.clusters import MARK, Place, finish, line_of, place
from zray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SIZES = {"num_cpus": 2, "object_store_memory": 64 << 20}
GET_TIMEOUT_S = 60
SIZE = 200_000


@pytest.fixture
def here() -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as monkeypatch, place() as found:
        monkeypatch.setenv("ZRAY_TMPDIR", str(found.folder))
        monkeypatch.setenv(MARK, found.mark)
        yield found


@zray.remote(max_retries=-1, resources={"maker": 1})
def made(notes: str, *inputs: np.ndarray) -> np.ndarray:
    with Path(notes).open("a") as file:
        file.write("x")
    return np.full(SIZE, 1.0 + sum(float(array[0]) for array in inputs))


@zray.remote(num_cpus=0)
class Reader:
    """Has a ref, and looks at nothing before it is told to."""

    def __init__(self, box: list[Any]) -> None:
        self.box = box

    def node(self) -> int:
        return os.getppid()

    def read(self) -> float:
        return float(zray.get(self.box[0])[-1])


def test_ten_nodes_that_ask_for_one_lost_object_cause_one_execution(here: Place) -> None:
    notes = here.folder / "notes"
    with Cluster(True, head_node_args=SIZES) as cluster:
        maker = cluster.add_node(wait=False, resources={"maker": 1}, **SIZES)
        seats = [f"seat{number}" for number in range(10)]
        for seat in seats:
            cluster.add_node(wait=False, resources={seat: 1}, **SIZES)
        cluster.wait_for_nodes()
        with cluster.connect():
            first = made.remote(str(notes))
            second = made.remote(str(notes), first)
            zray.wait([second], timeout=GET_TIMEOUT_S, fetch_local=False)
            readers = [Reader.options(resources={seat: 1}).remote([second]) for seat in seats]
            places = zray.get([reader.node.remote() for reader in readers], timeout=GET_TIMEOUT_S)
            assert len(set(places)) == len(seats)
            assert notes.read_text() == "xx"
            cluster.add_node(resources={"maker": 1}, **SIZES)
            cluster.remove_node(maker, allow_graceful=False)
            values = zray.get([reader.read.remote() for reader in readers], timeout=GET_TIMEOUT_S)
            assert values == [2.0] * len(seats)
            assert notes.read_text() == "xxxx"
    notes.unlink()


CHAIN = """
import os, sys, zray
import numpy as np
zray.init(address={address!r}, namespace="both")

@zray.remote(max_retries=-1)
def link(depth):
    with open({notes!r}, "a") as file:
        file.write("x")
    if not depth:
        return np.full({size}, 1.0)
    return zray.get(link.options(scheduling_strategy="SPREAD").remote(depth - 1)) + 1.0

final = link.options(resources={{"maker": 1}}).remote(4)
zray.wait([final], fetch_local=False)
box = zray.get_actor("box")
zray.get(box.keep.remote([final]))
print("kept", flush=True)
input()
"""


@zray.remote(num_cpus=0)
class Box:
    """Refs that others made."""

    def __init__(self) -> None:
        self.refs: list[Any] = []

    def keep(self, refs: list[Any]) -> None:
        self.refs += refs

    def give(self) -> list[Any]:
        return self.refs


@pytest.mark.parametrize("ending", ["its node is killed", "it ends"])
def test_a_nested_chain_is_made_again_for_a_driver_that_has_its_ref(here: Place, ending: str) -> None:
    """Nested tasks of the first driver made a value; the second one has its ref when its copies are lost."""
    notes = here.folder / "notes"
    with Cluster(True, head_node_args=SIZES) as cluster:
        home = cluster.add_node(**SIZES)
        for _ in range(2):
            cluster.add_node(resources={"maker": 1}, **SIZES)
        with cluster.connect(namespace="both"):
            box = Box.options(name="box").remote()
            zray.get(box.keep.remote([]))
            program = CHAIN.format(address=home.address, notes=str(notes), size=SIZE)
            other = here.start(program)
            assert line_of(other) == "kept", other.communicate()
            (final,) = zray.get(box.give.remote())
            assert notes.read_text() == "x" * 5
            if ending == "it ends":
                finish(other, "\n")
            else:
                cluster.remove_node(home, allow_graceful=False)
                other.kill()
                other.communicate()
            for node in [node for node in cluster.worker_nodes if node is not home]:
                cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(resources={"maker": 1}, **SIZES)
            value = zray.get(final, timeout=GET_TIMEOUT_S)
            assert float(value[-1]) == 5.0
            assert len(notes.read_text()) > 5
    notes.unlink()
