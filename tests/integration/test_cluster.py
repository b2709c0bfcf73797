"""``zray.cluster_utils.Cluster``: real nodes that come, leave, are killed and hang, and one driver or two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import zray
from tests.clusters import Place, finish, line_of, place
from tests.support import eventually
from zray import cli
from zray.cluster_utils import Cluster
from zray.config import Config
from zray.errors import ClusterUnavailableError
from zray.runtime.joining import living_nodes
from zray.util import state

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
def slow(number: int) -> int:
    time.sleep(1.0)
    return number


@zray.remote
def filled(number: int, size: int) -> np.ndarray:
    time.sleep(0.02)
    return np.full(size // 8, number, dtype=np.float64)


@zray.remote
def total(array: np.ndarray) -> float:
    return float(array.sum())


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


def test_tasks_that_are_to_spread_do(cluster: Cluster) -> None:
    """Three at once, of which the first node alone could run two; loads are known a report late."""
    spread = where.options(scheduling_strategy="SPREAD")
    with cluster.connect():
        eventually(lambda: len(set(zray.get([spread.remote(i) for i in range(3)]))) == 3, 20.0)


def test_nested_tasks(cluster: Cluster) -> None:
    with cluster.connect():
        pids = zray.get([nested.remote(5) for _ in range(9)])
        assert [len(some) for some in pids] == [5] * 9


def test_large_results_travel(cluster: Cluster) -> None:
    with cluster.connect():
        arrays = [filled.remote(number, 8 << 20) for number in range(9)]
        totals = [total.remote(array) for array in arrays]
        assert zray.get(totals) == [float(number * (1 << 20)) for number in range(9)]
        for number, array in enumerate(zray.get(arrays)):
            assert array.nbytes == 8 << 20
            assert bool((array == number).all())


def test_a_node_that_is_killed_costs_no_result(cluster: Cluster) -> None:
    with cluster.connect():
        refs = [filled.options(max_retries=-1).remote(number, 1 << 20) for number in range(60)]
        zray.wait(refs, num_returns=40)
        cluster.remove_node(cluster.worker_nodes[0], allow_graceful=False)
        totals = [total.options(max_retries=-1).remote(ref) for ref in refs]
        assert zray.get(totals) == [float(number * (1 << 17)) for number in range(60)]


def test_a_node_that_leaves_costs_no_result(cluster: Cluster) -> None:
    with cluster.connect():
        refs = [filled.options(max_retries=-1).remote(number, 1 << 20) for number in range(60)]
        zray.wait(refs, num_returns=20)
        cluster.remove_node(cluster.worker_nodes[0])
        assert [int(array[0]) for array in zray.get(refs)] == list(range(60))


def test_a_node_that_comes_later_takes_part(cluster: Cluster) -> None:
    with cluster.connect():
        late = where.options(resources={"late": 1}).remote(0)
        assert zray.wait([late], timeout=0.2) == ([], [late])
        node = cluster.add_node(**_node(resources={"late": 1}))
        zygote = zray.get(late, timeout=20)
        assert psutil.Process(zygote).ppid() == node.pid


def test_two_drivers_on_different_nodes(cluster: Cluster) -> None:
    program = f"""
        import os, time, zray
        zray.init(address={cluster.worker_nodes[1].address!r})
        @zray.remote
        def where(number):
            time.sleep(0.05)
            return number, os.getppid()
        found = zray.get([where.remote(number) for number in range(60)])
        print([number for number, _ in found] == list(range(60)), len({{pid for _, pid in found}}) > 1)
    """
    other = Place(Path(os.environ["ZRAY_TMPDIR"])).start(program)
    with cluster.connect():
        assert len(set(zray.get([where.remote(number) for number in range(60)]))) > 1
        done = finish(other)
        assert done.stdout.split()[0] == "True", done.stderr  # where they ran is up to this driver, too
    alone = Place(Path(os.environ["ZRAY_TMPDIR"])).run(program)
    assert alone.stdout.split() == ["True", "True"], alone.stderr


def _pids(cluster: Cluster) -> dict[int, bytes]:
    """The living nodes as the control store knows them, as process -> id."""
    return {node.pid: node.node_id for node in living_nodes(cluster.gcs_address, Config())}


def test_a_killed_node_is_dead_within_a_second(cluster: Cluster) -> None:
    victim = cluster.worker_nodes[0].pid
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in _pids(cluster), 1.0)


def test_a_stopped_node_is_dead_within_a_second_and_begins_anew(cluster: Cluster) -> None:
    victim = cluster.worker_nodes[0].pid  # it has the disks
    with cluster.connect():
        running = [slow.options(resources={"disk": 1}, max_retries=-1).remote(number) for number in range(2)]
        zray.wait(running, timeout=0.3)
        former = _pids(cluster)[victim]
        os.kill(victim, signal.SIGSTOP)
        try:
            eventually(lambda: victim not in _pids(cluster), 1.5)
        finally:
            os.kill(victim, signal.SIGCONT)
        assert zray.get(running, timeout=20) == [0, 1]
        assert _pids(cluster)[victim] != former
        cluster.wait_for_nodes()


def test_a_driver_of_a_node_that_begins_anew_hears_of_it(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    with place():
        driver = Place(Path(os.environ["ZRAY_TMPDIR"])).start(
            f"""
            import zray
            zray.init(address={node.address!r})
            @zray.remote
            def never():
                import time
                time.sleep(600)
            ref = never.remote()
            print("waits")
            try:
                zray.get(ref)
            except zray.exceptions.RaySystemError as error:
                print(type(error).__name__)
            """
        )
        assert line_of(driver) == "waits"
        os.kill(node.pid, signal.SIGSTOP)
        eventually(lambda: node.pid not in _pids(cluster), 2.0)
        os.kill(node.pid, signal.SIGCONT)
        done = finish(driver)
        assert done.stdout.split() == ["ClusterUnavailableError"], done.stderr
        cluster.wait_for_nodes()


def test_nodes_end_with_the_process_that_made_them() -> None:
    with place() as here:
        program = """
        from zray.cluster_utils import Cluster
        small = {"num_cpus": 1, "object_store_memory": 1 << 24}
        cluster = Cluster(initialize_head=True, head_node_args=small)
        cluster.add_node(**small)
        print("there")
        input()
        """
        made = here.start(program)
        assert line_of(made) == "there"
        assert len(here.sessions()) == 3
        made.kill()
        finish(made)
        eventually(lambda: not here.processes(), 10.0)
        here.zray("stop")  # sweeps
        here.assert_empty()


def test_what_makes_no_sense_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(head_node_args={"num_cpus": 1})
    with pytest.raises(ValueError, match="not negative"):
        cluster.add_node(num_cpus=-1)
    gone = cluster.worker_nodes[1]
    cluster.remove_node(gone)
    with pytest.raises(ValueError, match="removed before"):
        cluster.remove_node(gone)
    cluster.wait_for_nodes()


def test_a_wait_for_nodes_that_do_not_come_ends(cluster: Cluster) -> None:
    stopped = cluster.worker_nodes[0].pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        eventually(lambda: stopped not in _pids(cluster), 2.0)
        with pytest.raises(ClusterUnavailableError, match="should have the nodes"):
            cluster.wait_for_nodes(timeout=0.1)
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_the_whole_cluster_is_seen_from_every_node(cluster: Cluster) -> None:
    labelled = cluster.add_node(**_node(labels={"zone": "a"}))
    first, *others = cluster.list_all_nodes()
    with cluster.connect():
        eventually(lambda: len(zray.nodes()) == 4, 20.0)
        rows = {row["NodeID"]: row for row in zray.nodes()}
        assert next(iter(rows)) == first.node_id, "the own node comes first"
        assert rows[labelled.node_id]["Labels"] == {"zone": "a"}
        assert {row["pid"] for row in rows.values()} == {node.pid for node in (first, *others)}
        assert zray.cluster_resources()["CPU"] == 8
        assert zray.cluster_resources()["disk"] == 2
        busy = slow.options(resources={"disk": 2}).remote(1)
        eventually(lambda: "disk" not in zray.available_resources(), 20.0, "that the use of a node is seen")
        assert zray.get(busy) == 1
        eventually(lambda: zray.available_resources().get("disk") == 2, 20.0)
        cluster.remove_node(labelled, allow_graceful=False)
        eventually(lambda: zray.cluster_resources()["CPU"] == 6, 20.0, "that a death is seen")
        dead = [row for row in zray.nodes() if not row["Alive"]]
        assert [(row["NodeID"], row["Resources"], row["labels"]) for row in dead] == [
            (labelled.node_id, {}, {"zone": "a"})
        ]
        assert len(state.list_nodes(filters=[("Alive", "=", True)])) == 3


def test_the_commands_show_the_whole_cluster(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    first, *others = cluster.list_all_nodes()
    assert cli.main(["list", "nodes", "--address", first.address]) == 0
    said = capfd.readouterr().out
    assert all(node.node_id in said for node in (first, *others))
    cluster.remove_node(others[0], allow_graceful=False)
    cluster.wait_for_nodes()
    assert cli.main(["status", "--address", first.address]) == 0
    said = capfd.readouterr().out
    assert "cluster of 2 nodes, 1 dead: 4 of 4 CPU" in said
    assert f"{others[0].pid}: dead" in said


def test_without_a_control_store_nobody_says_that_there_are_no_others(cluster: Cluster) -> None:
    with cluster.connect():
        eventually(lambda: len(zray.nodes()) == 3, 20.0)
        os.kill(cluster.control_store.pid(), signal.SIGSTOP)
        try:
            with pytest.raises(ClusterUnavailableError, match="control store"):
                zray.nodes()
        finally:
            os.kill(cluster.control_store.pid(), signal.SIGCONT)
