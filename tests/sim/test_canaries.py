"""Machines with one rule taken out: a judge must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from sim.hosts import SimShard
from sim.process import Process
from sim.run import CORRECTNESS, LIVENESS, PASSED, run_scenario
from sim.scenario import ClusterPart, PhasesPart, Scenario, WorkloadPart, load
from zray.core.chain import ChainReplica
from zray.core.client_objects import ClientObjects
from zray.core.leased_tasks import LeasedTasks
from zray.core.leases import Leases
from zray.core.local_scheduler import LocalScheduler
from zray.core.machine import LOG
from zray.core.node import Node
from zray.core.node_store import NodeStore
from zray.core.references import References
from zray.core.worker import WorkerMachine
from zray.core.worker_pool import WorkerPool
from zray.errors import InvariantError
from zray.protocol.messages import ChainEpoch, LeaseGone, ObjectReady

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.slow


def judged(name: str, seeds: range = range(4)) -> list[int]:
    """Verdicts of a shipped scenario; programs that hang have little time to do so."""
    scenario = load(name)
    phases = replace(scenario.phases, liveness_s=10.0)
    return [run_scenario(replace(scenario, phases=phases), seed)[0].kind for seed in seeds]


@pytest.fixture
def no_self_judgement(monkeypatch: Patch) -> None:
    """``check()`` of the code under test says nothing: the judges have to see it themselves."""
    for machine in (Node, NodeStore, References, LocalScheduler, WorkerPool, Leases, ChainReplica):
        monkeypatch.setattr(machine, "check", lambda self, *_: None)


def every(count: int, original: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
    """``original``, except for one call in ``count``."""
    calls = [0]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return otherwise if calls[0] % count == 0 else original(*args, **kwargs)

    return sometimes


@pytest.mark.parametrize("name", ["crashes", "outages", "memory", "references", "lone"])
def test_without_a_canary_they_pass(name: str) -> None:
    assert judged(name, seeds=range(2)) == [PASSED] * 2


@pytest.mark.usefixtures("no_self_judgement")
def test_a_lost_wake_up_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(NodeStore, "notify", every(50, NodeStore.notify))
    assert LIVENESS in judged("references")


@pytest.mark.usefixtures("no_self_judgement")
def test_a_task_that_is_forgotten_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(LocalScheduler, "dependencies_sealed", every(20, LocalScheduler.dependencies_sealed))
    assert LIVENESS in judged("chain")


@pytest.mark.usefixtures("no_self_judgement")
def test_an_attempt_number_that_is_used_twice_is_noticed(monkeypatch: Patch) -> None:
    def run_anew(self: LocalScheduler, task: Any) -> None:
        task.alone = True
        self.queue(task)

    monkeypatch.setattr(LocalScheduler, "_run_anew", run_anew)
    assert CORRECTNESS in judged("crashes")


@pytest.mark.usefixtures("no_self_judgement")
def test_a_leased_task_that_runs_twice_in_one_attempt_is_noticed(monkeypatch: Patch) -> None:
    original = LeasedTasks.on_gone

    def on_gone(self: LeasedTasks, message: LeaseGone) -> Any:
        return original(self, replace(message, running=b""))

    monkeypatch.setattr(LeasedTasks, "on_gone", on_gone)
    assert CORRECTNESS in judged("lone")


@pytest.mark.usefixtures("no_self_judgement")
def test_a_lease_that_is_lost_with_its_task_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Leases, "worker_gone", lambda self, worker, message: None)
    assert LIVENESS in judged("lone")


@pytest.mark.usefixtures("no_self_judgement")
def test_no_recall_on_block_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(WorkerMachine, "return_queued", lambda self: [])
    workload = WorkloadPart("references", tasks=200, task_us=1)
    phases = PhasesPart(liveness_s=10.0)
    scenario = Scenario("one-cpu", cluster=ClusterPart(cpus=1), workload=workload, phases=phases)
    assert [run_scenario(scenario, seed)[0].kind for seed in range(3)] == [LIVENESS] * 3
    monkeypatch.undo()
    assert run_scenario(scenario, 0)[0].kind == PASSED


@pytest.mark.usefixtures("no_self_judgement")
def test_release_before_acquire_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Process, "confirm_acquired", lambda self: iter(()))
    monkeypatch.setattr(Process, "acquire_for", lambda self, holder, object_ids: iter(()))
    assert CORRECTNESS in judged("references")


@pytest.mark.usefixtures("no_self_judgement")
def test_a_pin_that_is_forgotten_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(References, "contain", lambda self, now_ns, object_ids: None)
    assert any(kind != PASSED for kind in judged("references"))


@pytest.mark.usefixtures("no_self_judgement")
def test_a_leaked_hold_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(References, "release", every(40, References.release))
    assert CORRECTNESS in judged("references")


@pytest.mark.usefixtures("no_self_judgement")
def test_memory_that_is_reused_under_a_reader_is_noticed(monkeypatch: Patch) -> None:
    def ready(self: NodeStore, reader: bytes, entry: Any) -> ObjectReady:
        return ObjectReady(entry.object_id, entry.value)  # and forget that somebody looks at it

    monkeypatch.setattr(NodeStore, "ready", ready)
    assert CORRECTNESS in judged("memory")


def test_a_shard_that_answers_before_it_logs_is_noticed(monkeypatch: Patch) -> None:
    original = SimShard.serve

    def forgetful(self: SimShard, name: bytes, messages: list[Any]) -> None:
        original(self, name, messages[:-1] if name == LOG else messages)

    monkeypatch.setattr(SimShard, "serve", forgetful)
    assert CORRECTNESS in judged("outages")


def judged_chains(**changes: float) -> list[int]:
    """Verdicts of ``chains`` with more of what a rule about chains is for."""
    scenario = load("chains")
    faults = replace(scenario.faults, **changes)
    scenario = replace(scenario, faults=faults, phases=replace(scenario.phases, liveness_s=10.0))
    return [run_scenario(scenario, seed)[0].kind for seed in range(3)]


@pytest.mark.usefixtures("no_self_judgement")
def test_a_head_that_does_not_wait_for_its_tail_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ChainReplica, "_committed_below", lambda self: self.have)
    assert CORRECTNESS in judged_chains(replica_crash=60.0)


@pytest.mark.usefixtures("no_self_judgement")
def test_a_replica_that_lives_on_after_its_epoch_is_noticed(monkeypatch: Patch) -> None:
    original = ChainReplica.on_chain_epoch

    def on_chain_epoch(self: ChainReplica, now_ns: int, source: bytes, message: ChainEpoch) -> None:
        if self.me in message.members or not self.has_state:
            original(self, now_ns, source, message)

    monkeypatch.setitem(ChainReplica.HANDLERS, ChainEpoch, on_chain_epoch)
    assert PASSED not in judged_chains(replica_partition=40.0, outage_ms=150)


def test_two_values_of_one_object_are_noticed(monkeypatch: Patch) -> None:
    original = ClientObjects.keep

    def keep(self: ClientObjects, object_id: bytes, value: Any) -> None:
        original(self, object_id, replace(value, data=b"\x2a") if not value.contained else value)

    monkeypatch.setattr(ClientObjects, "keep", keep)
    assert CORRECTNESS in judged("chain")


def test_a_broken_invariant_is_a_matter_of_correctness(monkeypatch: Patch) -> None:
    def check(self: Node) -> None:
        raise InvariantError("a canary")

    monkeypatch.setattr(Node, "check", check)
    assert judged("chain", seeds=range(1)) == [CORRECTNESS]
