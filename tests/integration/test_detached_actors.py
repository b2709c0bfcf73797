"""Detached actors outlive every process and node, their home included: real nodes that are killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
import zray.util
from tests.clusters import Place, finish
from tests.integration.test_remote_actors import Account, Ledger, cluster, get, kill, node_of
from tests.support import eventually
from zray.cluster_utils import Cluster
from zray.exceptions import ActorDiedError, ActorUnavailableError

__all__ = ["cluster"]  # the fixture

pytestmark = pytest.mark.slow

SEATED = {"lifetime": "detached", "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


@zray.remote(num_cpus=0)
def open_ledger(name: str, balance: Any, calls: int) -> tuple[int, int]:
    """Make a detached actor whose home is the node of this task; the zygote of its host, and its balance."""
    saved = zray.remote(**SEATED, name=name, checkpoint_interval=5)(Ledger)
    ledger = saved.remote(balance)
    total = zray.get([ledger.add.remote(1) for _ in range(calls)])[-1]
    return zray.get(ledger.zygote.remote()), total


@zray.remote(num_cpus=0)
def open_account(name: str, **options: Any) -> int:
    """The same with any options, of an actor that cannot be saved."""
    teller = Account.options(name=name, lifetime="detached", **options).remote()
    zray.get(teller.add.remote(5))
    return zray.get(teller.zygote.remote())


@zray.remote(num_cpus=0)
def here() -> int:
    return os.getppid()


def home(cluster: Cluster, name: str) -> Any:
    return node_of(cluster, get(here.options(resources={name: 1}).remote()))


def test_it_goes_on_from_its_checkpoint_when_its_home_and_host_dies(cluster: Cluster) -> None:
    """What its driver has seen is there; calls under way have their effect once; others find it by name."""
    program = f"""
        import zray
        zray.init(address={cluster.worker_nodes[1].address!r}, namespace="bank")
        ledger = zray.get_actor("ledger")
        print(zray.get([ledger.add.remote(1) for _ in range(3)], timeout=30))
    """
    with cluster.connect(namespace="bank"):
        balance = zray.put(1000)  # of the driver, which stays; a copy is with the successor
        zygote, total = get(open_ledger.options(resources={"first": 1}).remote("ledger", balance, 13))
        assert total == 1013
        ledger = zray.get_actor("ledger")
        calls = [ledger.add.remote(1) for _ in range(50)]
        kill(node_of(cluster, zygote), cluster)
        assert get(calls) == list(range(1014, 1064))
        assert zray.util.list_named_actors() == ["ledger"]
        other = finish(Place(Path(os.environ["ZRAY_TMPDIR"])).start(program))
        assert other.stdout.split("\n")[0] == "[1064, 1065, 1066]", other.stderr
        second = get(ledger.zygote.remote())
        assert second != zygote
        zray.kill(ledger)
        with pytest.raises(ActorDiedError):
            get(ledger.add.remote(1))
        eventually(lambda: zray.util.list_named_actors() == [], 10.0)


def test_a_life_elsewhere_goes_on_when_its_home_dies(cluster: Cluster) -> None:
    """Nothing is lost, though it may not be made again: the node where it lives is its home now."""
    with cluster.connect(namespace="bank"):
        made = open_account.options(resources={"first": 1}).remote("teller", resources={"second": 1})
        zygote = get(made)
        teller = zray.get_actor("teller")
        assert get(teller.add.remote(1)) == 6
        first = home(cluster, "first")
        assert node_of(cluster, zygote) is not first
        kill(first, cluster)
        assert get([teller.add.remote(1) for _ in range(20)])[-1] == 26
        (row,) = eventually(lambda: [row for row in rows() if row["successor_node_id"]], 10.0)
        assert (row["state"], row["num_restarts"]) == ("ALIVE", 0)
        assert row["node_id"] == row["home_node_id"] != row["successor_node_id"]
        assert get(teller.zygote.remote()) == zygote
        assert get(zray.get_actor("teller").add.remote(1)) == 27
        zray.kill(teller)
        eventually(lambda: "zray.kill()" in end_of(teller), 10.0)
        eventually(lambda: zray.util.list_named_actors() == [], 10.0)


def end_of(teller: Any) -> str:
    """Why the actor is dead; nothing while it is not."""
    try:
        get(teller.add.remote(0))
    except ActorUnavailableError:
        return ""
    except ActorDiedError as error:
        return str(error)
    return ""


def rows() -> list[dict[str, Any]]:
    from zray.util import state

    return state.list_actors()


def test_one_that_may_not_be_made_again_dies_with_its_home(cluster: Cluster) -> None:
    """Its callers hear why; its name is free."""
    with cluster.connect(namespace="bank"):
        zygote = get(open_account.options(resources={"first": 1}).remote("teller"))
        teller = zray.get_actor("teller")
        kill(node_of(cluster, zygote), cluster)
        eventually(lambda: "which was its home, died" in end_of(teller), 10.0)
        eventually(lambda: zray.util.list_named_actors() == [], 10.0)
        assert get(open_account.options(resources={"second": 1}).remote("teller"))


@zray.remote(num_cpus=0)
def open_vault(name: str, size: int) -> int:
    """An actor whose constructor takes what only the node of this task has."""
    vault = zray.remote(**SEATED, name=name)(Vault).remote(zray.put(np.ones(size)))
    return zray.get(vault.zygote.remote())


class Vault:
    def __init__(self, gold: np.ndarray) -> None:
        self.gold = gold

    def weigh(self) -> float:
        return float(self.gold.sum())

    def zygote(self) -> int:
        return os.getppid()


def test_what_its_constructor_takes_is_not_lost_with_its_home(cluster: Cluster) -> None:
    with cluster.connect(namespace="bank"):
        zygote = get(open_vault.options(resources={"first": 1}).remote("vault", 300_000))
        vault = zray.get_actor("vault")
        kill(node_of(cluster, zygote), cluster)
        assert get(vault.weigh.remote()) == 300_000
        assert get(vault.zygote.remote()) != zygote
        zray.kill(vault)
