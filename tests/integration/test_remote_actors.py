"""Actors on other nodes than their creator's: real nodes, some of which are killed or stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import zray
import zray.util
from tests.clusters import Place, finish, place
from tests.support import eventually
from zray.api import session
from zray.api.local_cluster import ClusterNode
from zray.cluster_utils import Cluster
from zray.exceptions import ActorDiedError, ObjectLostError, TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.slow

STORE_BYTES = 128 << 20
PATIENCE_S = 30


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The head, where this process is a driver, and two nodes that have a seat for two actors each."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        for name, value in here.environment.items():
            if os.environ.get(name) != value and name != "PYTHONPATH":
                monkeypatch.setenv(name, value)
        small = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
        with Cluster(True, head_node_args={**small, "resources": {"head": 4}}) as found:
            found.add_node(**small, resources={"seat": 2, "first": 4})
            found.add_node(**small, resources={"seat": 2, "second": 4})
            yield found


@zray.remote
class Account:
    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.box: list[Any] = []

    def add(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def zygote(self) -> int:
        return os.getppid()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, box: list[Any]) -> int:
        self.box = box
        return len(box)

    def look(self) -> list[float]:
        return [float(np.sum(value)) for value in zray.get(self.box)]

    def give(self, size: int) -> list[Any]:
        return [zray.put(np.full(size, 2.0)), zray.put(3)]

    def fill(self, size: int, number: int) -> np.ndarray:
        return np.full(size, float(number))

    def total(self, array: np.ndarray) -> float:
        return float(array.sum())

    def count(self, items: int) -> Iterator[Any]:
        for number in range(items):
            yield np.full(50_000 if number % 2 else 1, float(number))


class Ledger:
    """Can be saved."""

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.made_at = os.getppid()

    def add(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def slowly_add(self, amount: int) -> int:
        time.sleep(0.2)
        return self.add(amount)

    def zygote(self) -> int:
        return os.getppid()

    def __zray_save__(self) -> Any:
        return np.full(100_000, self.balance)

    def __zray_load__(self, state: Any) -> None:
        self.balance = int(state[0])


SavedLedger = zray.remote(max_restarts=-1, max_task_retries=-1, checkpoint_interval=5, resources={"seat": 1})(
    Ledger
)


@zray.remote(num_cpus=0)
def add_to(handle: Any, amount: int) -> int:
    return zray.get(handle.add.remote(amount))


@zray.remote(num_cpus=0)
def add_in_box(box: list[Any], amounts: list[int]) -> list[int]:
    return zray.get([box[0].add.remote(amount) for amount in amounts])


def node_of(cluster: Cluster, zygote: int) -> ClusterNode:
    """The node whose zygote has that process id."""
    nodes = [cluster.head_node, *cluster.worker_nodes]
    for node in nodes:
        if node is not None and Path(f"/proc/{zygote}/stat").read_text().split()[3] == str(node.pid):
            return node
    raise AssertionError(f"no node has the zygote {zygote}")


def kill(node: ClusterNode, cluster: Cluster) -> None:
    cluster.remove_node(node, allow_graceful=False)


def get(refs: Any) -> Any:
    return zray.get(refs, timeout=PATIENCE_S)


def test_an_actor_lives_where_its_resources_are(cluster: Cluster) -> None:
    with cluster.connect():
        here = Account.options(resources={"head": 1}).remote()
        there = Account.options(resources={"first": 1}).remote(10)
        assert get(here.zygote.remote()) != get(there.zygote.remote())
        assert get([there.add.remote(1) for _ in range(200)]) == list(range(11, 211))


def test_actors_that_are_to_spread_do(cluster: Cluster) -> None:
    spread = Account.options(scheduling_strategy="SPREAD", num_cpus=1)
    with cluster.connect():
        handles = [spread.remote() for _ in range(6)]
        zygotes = get([handle.zygote.remote() for handle in handles])
        assert sorted(zygotes.count(zygote) for zygote in set(zygotes)) == [2, 2, 2]


def test_an_actor_that_does_not_fit_goes_elsewhere(cluster: Cluster) -> None:
    with cluster.connect():
        handles = [Account.options(num_cpus=1).remote() for _ in range(5)]
        zygotes = get([handle.zygote.remote() for handle in handles])
        assert len(set(zygotes)) > 1
        assert max(zygotes.count(zygote) for zygote in zygotes) == 2


def test_large_arguments_and_results_and_refs(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        size = 500_000
        assert get(there.total.remote(np.ones(size))) == size
        assert get(there.total.remote(zray.put(np.ones(size)))) == size
        assert get(there.total.remote(there.fill.remote(size, 3))) == 3 * size
        made = there.fill.remote(size, 4)
        assert get(total_of.options(resources={"second": 1}).remote(made)) == 4 * size
        assert float(get(made).sum()) == 4 * size
        assert [float(np.sum(value)) for value in get(get(there.give.remote(size)))] == [2 * size, 3]
        box = [zray.put(np.ones(size)), zray.put(5)]
        assert get(there.keep.remote(box)) == 2
        del box
        assert get(there.look.remote()) == [size, 5]


@zray.remote(num_cpus=0)
def total_of(array: np.ndarray) -> float:
    return float(array.sum())


def test_streams(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        items = there.count.options(num_returns="streaming", _generator_backpressure_num_objects=2).remote(9)
        sums = [float(get(item).sum()) for item in items]
        assert sums == [number * (50_000.0 if number % 2 else 1.0) for number in range(9)]


@zray.remote(num_cpus=0, max_retries=1, retry_exceptions=True)
def read_twice(handle: Any, begun: Path, ending: str) -> list[float]:
    found = []
    for ref in handle.count.options(num_returns="streaming", _generator_backpressure_num_objects=1).remote(9):
        found.append(float(zray.get(ref).flat[0]))
        if len(found) == 4 and not begun.exists():
            begun.touch()
            if ending == "dies":
                os._exit(1)
            raise KeyError(ending)
    return found


def test_a_reader_that_runs_again_reads_all_of_a_stream(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        for ending in ("dies", "raises"):
            assert get(read_twice.remote(there, tmp_path / ending, ending)) == list(range(9))


@zray.remote(num_cpus=0, max_retries=0, resources={"second": 1})
def read_one(handle: Any, path: Path, *, dies: bool) -> None:
    items = handle.count.options(num_returns="streaming", _generator_backpressure_num_objects=1).remote(3)
    next(items)
    path.touch()
    if dies:
        os._exit(1)
    time.sleep(PATIENCE_S)  # with a stream that it does not read


def test_nobody_waits_for_a_reader_that_died_or_whose_node_did(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        with pytest.raises(WorkerCrashedError):
            get(read_one.remote(there, tmp_path / "dead", dies=True))
        assert get(there.add.remote(1)) == 1
        reader = read_one.remote(there, tmp_path / "cut off", dies=False)
        eventually((tmp_path / "cut off").exists, PATIENCE_S)
        kill(cluster.worker_nodes[1], cluster)
        assert get(there.add.remote(1)) == 2
        with pytest.raises(ObjectLostError, match="died"):
            get(reader)


@zray.remote
class Patient:
    async def wait(self) -> None:
        import asyncio

        await asyncio.sleep(600)

    async def echo(self, value: int) -> int:
        return value


def test_a_call_is_cancelled(cluster: Cluster) -> None:
    with cluster.connect():
        there = Patient.options(resources={"first": 1}).remote()
        waiting = there.wait.remote()
        assert get(there.echo.remote(1)) == 1
        zray.cancel(waiting)
        with pytest.raises(TaskCancelledError):
            get(waiting)


def test_handles_travel(cluster: Cluster) -> None:
    """Calls of every process are in order, and no one is lost, whichever node it is on."""
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        callers = [
            add_in_box.options(resources={name: 1}).remote([there], [1] * 50)
            for name in ("head", "first", "second")
        ]
        seen = get(callers)
        assert all(totals == sorted(totals) for totals in seen)
        assert sorted(total for totals in seen for total in totals) == list(range(1, 151))
        assert get(add_to.options(resources={"second": 1}).remote(there, 1)) == 151


def test_an_actor_ends_with_its_last_handle_wherever_that_is(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        pid = get(there.pid.remote())
        keeper = Account.options(resources={"second": 1}).remote()
        assert get(keeper.keep.remote([there])) == 1
        del there
        time.sleep(0.5)  # long enough for an end that came too early to be seen
        assert os.path.exists(f"/proc/{pid}")
        assert get(keeper.keep.remote([])) == 0
        eventually(lambda: not os.path.exists(f"/proc/{pid}"), 10.0)


def test_its_callers_hear_which_node_died(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        held = add_to.options(resources={"second": 1}).remote(there, 1)
        assert get(held) == 1
        kill(node_of(cluster, get(there.zygote.remote())), cluster)
        with pytest.raises(ActorDiedError, match=r"node [0-9a-f]+, where it lived, died"):
            get(there.add.remote(1))
        with pytest.raises(ActorDiedError, match=r"node [0-9a-f]+, where it lived, died"):
            get(add_to.options(resources={"second": 1}).remote(there, 1))


def test_it_lives_on_elsewhere_from_its_checkpoint(cluster: Cluster) -> None:
    """Every call has its effect once, though its node is killed under a hundred of them."""
    with cluster.connect():
        ledger = SavedLedger.remote(1000)
        first = get(ledger.zygote.remote())
        assert get([ledger.add.remote(1) for _ in range(13)])[-1] == 1013
        calls = [ledger.add.remote(1) for _ in range(100)]
        kill(node_of(cluster, first), cluster)
        assert get(calls) == list(range(1014, 1114))
        assert get(ledger.zygote.remote()) != first
        assert get(add_to.options(resources={"head": 1}).remote(ledger, 1)) == 1114


def test_a_killed_process_begins_again(cluster: Cluster) -> None:
    with cluster.connect():
        ledger = SavedLedger.remote(0)
        assert get([ledger.add.remote(1) for _ in range(7)])[-1] == 7
        slow = ledger.slowly_add.remote(1)
        zray.kill(ledger, no_restart=False)
        assert get(slow) == 8
        assert get(ledger.add.remote(1)) == 9


def test_what_a_stopped_node_says_later_is_ignored(cluster: Cluster) -> None:
    with cluster.connect():
        ledger = SavedLedger.remote(0)
        assert get([ledger.add.remote(1) for _ in range(7)])[-1] == 7
        node = node_of(cluster, get(ledger.zygote.remote()))
        os.kill(node.pid, signal.SIGSTOP)
        try:
            calls = [ledger.add.remote(1) for _ in range(20)]
            assert get(calls) == list(range(8, 28))
        finally:
            os.kill(node.pid, signal.SIGCONT)
        cluster.wait_for_nodes()
        assert get(ledger.add.remote(1)) == 28


def test_names_work_on_every_node(cluster: Cluster) -> None:
    program = f"""
        import zray, zray.util
        zray.init(address={cluster.worker_nodes[1].address!r}, namespace="bank")
        handle = zray.get_actor("teller")
        print(zray.get([handle.add.remote(1) for _ in range(3)]), zray.util.list_named_actors())
        zray.kill(handle)
        try:
            while True:  # a call may still come before the end
                zray.get(handle.add.remote(1))
        except zray.exceptions.ActorDiedError as error:
            print("killed" if "zray.kill()" in str(error) else error)
    """
    with cluster.connect(namespace="bank"):
        teller = Account.options(name="teller", resources={"first": 1}).remote()
        assert get(teller.add.remote(1)) == 1
        other = finish(Place(Path(os.environ["ZRAY_TMPDIR"])).start(program))
        assert other.stdout.split("\n")[:2] == ["[2, 3, 4] ['teller']", "killed"], other.stderr
        with pytest.raises(ActorDiedError):
            get(teller.add.remote(1))
        eventually(lambda: zray.util.list_named_actors() == [], 10.0)


def test_a_name_is_free_when_the_node_of_its_actor_died(cluster: Cluster) -> None:
    with cluster.connect(namespace="bank"):
        teller = Account.options(name="teller", resources={"first": 1}).remote()
        kill(node_of(cluster, get(teller.zygote.remote())), cluster)
        eventually(lambda: zray.util.list_named_actors() == [], 10.0)
        again = Account.options(name="teller", resources={"second": 1}).remote(5)
        assert get(again.add.remote(1)) == 6


def test_a_detached_actor_outlives_its_driver_on_another_node(cluster: Cluster) -> None:
    program = f"""
        import os, zray
        zray.init(address={cluster.head_node.address!r}, namespace="bank")
        @zray.remote(name="vault", lifetime="detached", resources={{"first": 1}})
        class Vault:
            def __init__(self):
                self.inside = 0
            def add(self, amount):
                self.inside += amount
                return self.inside
        print(zray.get(Vault.remote().add.remote(7)))
    """
    other = finish(Place(Path(os.environ["ZRAY_TMPDIR"])).start(program))
    assert other.stdout.split() == ["7"], other.stderr
    with cluster.connect(namespace="bank"):
        vault = zray.get_actor("vault")
        assert get(vault.add.remote(1)) == 8
        zray.kill(vault)


def test_what_a_driver_made_elsewhere_ends_with_it(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        pid = get(there.pid.remote())
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), 10.0)


def test_the_report_says_where_it_is(cluster: Cluster) -> None:
    with cluster.connect():
        there = Account.options(resources={"first": 1}).remote()
        get(there.pid.remote())
        (row,) = msgspec.json.decode(session.current().query("actors"))
        assert row["state"] == "alive"
        assert row["node_id"] != zray.get_runtime_context().get_node_id()
