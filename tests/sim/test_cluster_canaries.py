"""Machines of a cluster with one rule taken out: a judge must notice each of them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sim.run import CORRECTNESS, LIVENESS, PASSED, run_scenario
from sim.scenario import ClusterPart, FaultsPart, NetworkPart, PhasesPart, Scenario, WorkloadPart, load
from zray.core import cluster_side
from zray.core.admission import TaskAdmission
from zray.core.away import Away
from zray.core.cluster_side import ClusterSide
from zray.core.flushed_keys import FlushedKeys
from zray.core.flushing_shard import FlushingShard
from zray.core.guests import Guests
from zray.core.local_scheduler import LocalScheduler
from zray.core.machine import TRANSFER
from zray.core.node import Node
from zray.core.node_store import NodeStore
from zray.core.object_directory import ObjectDirectory, SharedRow
from zray.core.peers import Peers
from zray.core.references import References
from zray.core.sharing import Sharing
from zray.core.worker_pool import WorkerPool
from zray.protocol.chain import ShardOpened
from zray.protocol.cluster import EXPECT, HOME, CopiesCounted, Rebuild
from zray.protocol.flushing import RowsRead

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.slow

REFERENCES = Scenario(
    "shared-references",
    cluster=ClusterPart(nodes=3, shards=2, cpus=2, backlog_per_slot=-1),
    network=NetworkPart(latency_us=200, jitter_us=2000),
    workload=WorkloadPart("references", tasks=100, task_us=500, object_kib=64),
    phases=PhasesPart(liveness_s=20.0),
)


def judged(scenario: Scenario, seeds: range = range(6)) -> list[int]:
    """Verdicts; programs that hang have little time to do so."""
    phases = replace(scenario.phases, liveness_s=20.0)
    return [run_scenario(replace(scenario, phases=phases), seed)[0].kind for seed in seeds]


def first_failure(scenario: Scenario, seeds: range) -> tuple[int, str]:
    """Verdict and words of the first seed that does not pass; the race that a rule prevents may be rare."""
    for seed in seeds:
        verdict, _ = run_scenario(scenario, seed)
        if verdict.kind != PASSED:
            return verdict.kind, verdict.detail
    return PASSED, ""


@pytest.fixture
def no_self_judgement(monkeypatch: Patch) -> None:
    """``check()`` of the code under test says nothing: the judges have to see it themselves."""
    for machine in (Node, NodeStore, References, LocalScheduler, WorkerPool, ClusterSide, ObjectDirectory):
        monkeypatch.setattr(machine, "check", lambda self, *_: None)


@pytest.mark.parametrize("scenario", [REFERENCES, *map(load, ("node_deaths", "lost_objects"))])
def test_without_a_canary_they_pass(scenario: Scenario) -> None:
    assert judged(scenario, seeds=range(4)) == [PASSED] * 4


@pytest.mark.usefixtures("no_self_judgement")
def test_a_shard_that_forgets_what_it_flushed_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(FlushingShard, "check", lambda self: None)
    monkeypatch.setattr(FlushedKeys, "__contains__", lambda self, key: False)
    kind, detail = first_failure(load("flushed"), range(3))
    assert kind == CORRECTNESS
    assert "before its lineage is durable" in detail or "I7" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_a_row_that_is_read_and_never_comes_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ObjectDirectory, "on_rows_read", lambda self, *_: None)
    monkeypatch.setitem(ObjectDirectory.HANDLERS, RowsRead, lambda self, *_: None)
    kind, detail = first_failure(replace(load("flushed"), phases=PhasesPart(0.4, 20.0, 14.0)), range(6))
    assert kind == LIVENESS
    assert "did not end in time" in detail


@pytest.mark.parametrize("name", ["cluster", "lost_objects"])
@pytest.mark.usefixtures("no_self_judgement")
def test_a_value_that_leaves_before_its_lineage_is_noticed(monkeypatch: Patch, name: str) -> None:
    def may_leave(self: Sharing, waiting: Any) -> bool:
        return all(mark <= link.acked for link, mark in zip(self.links, waiting.holds, strict=True))

    monkeypatch.setattr(Sharing, "_may_leave", may_leave)
    kind, detail = first_failure(load(name), range(1))
    assert kind == CORRECTNESS
    assert "before its lineage is durable" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_release_before_acquire_between_nodes_is_noticed(monkeypatch: Patch) -> None:
    def may_leave(self: Sharing, waiting: Any) -> bool:
        return self.lineage.passed(waiting.records)

    monkeypatch.setattr(Sharing, "_may_leave", may_leave)
    kind, detail = first_failure(REFERENCES, range(30))
    assert kind == CORRECTNESS
    assert "sees a fault that nothing explains" in detail
    assert "is lost" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_a_node_that_lives_on_after_its_death_is_noticed(monkeypatch: Patch) -> None:
    original = Peers.on_members

    def on_members(self: Peers, now_ns: int, source: bytes, message: Any) -> None:
        if any(node_id == self.node_id for node_id, _ in message.nodes):
            original(self, now_ns, source, message)

    monkeypatch.setattr(Peers, "on_members", on_members)
    scenario = load("node_deaths")
    cluster = replace(scenario.cluster, drivers=3)
    faults = replace(scenario.faults, node_crash=0.0, node_freeze=20.0)
    phases = replace(scenario.phases, liveness_s=20.0)
    scenario = replace(scenario, cluster=cluster, faults=faults, phases=phases)
    kind, detail = first_failure(scenario, range(8))
    assert kind == LIVENESS
    assert "did not end in time" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_two_nodes_that_rebuild_one_loss_are_noticed(monkeypatch: Patch) -> None:
    original = ObjectDirectory._lost

    def lost(self: ObjectDirectory, row: SharedRow) -> None:
        before = len(self.out)
        original(self, row)
        for chosen, message in self.out[before:]:
            if isinstance(message, Rebuild):
                others = [node for node in self.alive if node != chosen]
                self.out += [(node, message) for node in others[:1]]

    monkeypatch.setattr(ObjectDirectory, "_lost", lost)
    verdicts = [run_scenario(load("lost_objects"), seed)[0] for seed in range(12)]
    assert {verdict.kind for verdict in verdicts} <= {PASSED, CORRECTNESS}
    details = [verdict.detail for verdict in verdicts if verdict.kind == CORRECTNESS]
    assert any("attempt" in detail or "rebuilds left" in detail for detail in details), details


@pytest.mark.usefixtures("no_self_judgement")
def test_two_reconstructions_of_one_loss_are_noticed(monkeypatch: Patch) -> None:
    original = ObjectDirectory._lost

    def lost(self: ObjectDirectory, row: Any) -> None:
        before = len(self.out)
        original(self, row)
        for index, (node, message) in enumerate(self.out[before:], before):
            if isinstance(message, Rebuild) and message.record is not None:
                again = replace(message, attempt=message.record.attempt)
                self.out[index] = node, again

    monkeypatch.setattr(ObjectDirectory, "_lost", lost)
    kind, detail = first_failure(load("lost_objects"), range(12))
    assert kind == CORRECTNESS
    assert "attempt" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_a_task_that_is_granted_twice_is_noticed(monkeypatch: Patch) -> None:
    def on_claim(self: Away, now_ns: int, source: bytes, message: Any) -> None:
        task = self.scheduler.tasks.get(message.task_id)
        if task is not None:
            self.scheduler.forwarded.pop(message.task_id, None)
            self.tasks[message.task_id] = task, source
            self.numbers[message.task_id] = 1
            self._grant(task, source)

    original = Node._report

    def report(self: Node, now_ns: int) -> None:  # forwards are repeated all the time
        original(self, now_ns)
        for task, _ in self.cluster.away.tasks.values():
            self.scheduler.admission.forward(task)
        for task_id in self.cluster.away.tasks:
            self.scheduler.forwarded.pop(task_id, None)

    monkeypatch.setattr(Away, "on_claim", on_claim)
    monkeypatch.setattr(Node, "_report", report)
    assert any(kind != PASSED for kind in judged(load("node_deaths")))


def test_an_end_that_is_not_repeated_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Guests, "finished", lambda self, task, *, failed: None)
    assert any(kind != PASSED for kind in judged(load("node_deaths"), seeds=range(1)))


# --- fail-overs ------------------------------------------------------------------------------------

FAIL_OVERS = replace(
    load("lost_objects"),
    check_every=50,
    cluster=replace(REFERENCES.cluster, replicas=2),
    network=NetworkPart(latency_us=200, jitter_us=3000),
    faults=FaultsPart(replica_crash=80.0, outage_ms=5),
    phases=PhasesPart(faulty_s=0.4, liveness_s=20.0, quiet_s=4.0),
)
"""Nothing dies but replicas, so nothing may be made twice."""


def test_without_a_canary_fail_overs_pass() -> None:
    assert judged(FAIL_OVERS, seeds=range(4)) == [PASSED] * 4


@pytest.mark.usefixtures("no_self_judgement")
def test_a_new_head_that_decides_before_all_have_restated_is_noticed(monkeypatch: Patch) -> None:
    handlers = {**ObjectDirectory.HANDLERS, ShardOpened: lambda *_: None}
    monkeypatch.setattr(ObjectDirectory, "HANDLERS", handlers)
    kind, detail = first_failure(FAIL_OVERS, range(12))
    assert kind == CORRECTNESS
    assert "and nothing died" in detail


@pytest.mark.usefixtures("no_self_judgement")
def test_a_home_that_is_taken_for_a_maker_is_noticed(monkeypatch: Patch) -> None:
    """A node and the head of a chain die in one moment, and all who knew that an object was made."""
    original = Sharing._update

    def update(self: Sharing, kind: int, *rest: Any, **more: Any) -> None:
        original(self, EXPECT if kind == HOME else kind, *rest, **more)

    monkeypatch.setattr(Sharing, "_update", update)
    scenario = replace(
        load("lost_objects"),
        check_every=20,
        cluster=replace(load("lost_objects").cluster, nodes=4, drivers=2, replicas=3),
        faults=FaultsPart(twin_crash=10.0, outage_ms=40),
        phases=PhasesPart(faulty_s=0.5, liveness_s=20.0, quiet_s=14.0),
    )
    kind, _ = first_failure(scenario, range(6))
    assert kind != PASSED


@pytest.mark.usefixtures("no_self_judgement")
def test_forwards_that_stay_with_a_scheduler_that_is_gone_are_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(TaskAdmission, "move", lambda self, former: None)
    monkeypatch.setattr(cluster_side, "RESEND_FORWARDS_NS", 1 << 62)  # which would find it five seconds later
    kind, _ = first_failure(load("schedulers"), range(1, 9))
    assert kind == LIVENESS


@pytest.mark.usefixtures("no_self_judgement")
def test_copies_that_are_counted_before_they_are_there_are_noticed(monkeypatch: Patch) -> None:
    original = ObjectDirectory._keep_copies

    def keep_copies(self: ObjectDirectory, row: SharedRow) -> None:
        original(self, row)
        if row.asked:
            counted = CopiesCounted(row.object_id, len(row.kept) + len(row.asked))
            self.out.extend((node, counted) for node in row.kept)

    monkeypatch.setattr(ObjectDirectory, "_keep_copies", keep_copies)
    kind, detail = first_failure(load("copies"), range(12))
    assert kind == CORRECTNESS
    assert "kept a copy, is lost" in detail, detail


@pytest.mark.usefixtures("no_self_judgement")
def test_copies_that_are_not_made_again_are_noticed(monkeypatch: Patch) -> None:
    original = SharedRow.forget

    def forget(self: SharedRow, node: bytes) -> bool:
        if node in self.kept:
            self.copies_wanted = 0
        return original(self, node)

    monkeypatch.setattr(SharedRow, "forget", forget)
    kind, detail = first_failure(load("copies"), range(12))
    assert kind == CORRECTNESS
    assert "kept a copy, is lost" in detail, detail


SLOW_LINKS = replace(
    REFERENCES,
    cluster=replace(REFERENCES.cluster, arena_kib=256),
    network=NetworkPart(latency_us=200, jitter_us=500, bandwidth_mib_s=2),
)


def test_stores_that_are_full_of_what_is_sent_over_slow_links_pass() -> None:
    assert judged(SLOW_LINKS, seeds=range(4)) == [PASSED] * 4


@pytest.mark.usefixtures("no_self_judgement")
def test_an_extent_that_is_freed_while_it_is_sent_is_noticed(monkeypatch: Patch) -> None:
    look_at, look_away = NodeStore.look_at, NodeStore.look_away
    monkeypatch.setattr(
        NodeStore, "look_at", lambda self, reader, entry: reader == TRANSFER or look_at(self, reader, entry)
    )
    monkeypatch.setattr(
        NodeStore,
        "look_away",
        lambda self, reader, entry: reader == TRANSFER or look_away(self, reader, entry),
    )
    kind, detail = first_failure(SLOW_LINKS, range(8))
    assert kind == CORRECTNESS
    assert "I10" in detail
