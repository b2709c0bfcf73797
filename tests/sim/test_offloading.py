"""Queues that are fair by count and uneven by time are evened out, by the nodes and in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sim.cluster import Cluster
from sim.kernel import MS, S
from sim.programs import Await, Compute, Program, Spawn
from sim.run import LIVENESS, run_scenario
from sim.scenario import ClusterPart, PhasesPart, Scenario, load
from zray.core.admission import TaskAdmission
from zray.core.guests import Guests
from zray.core.local_scheduler import LocalScheduler

NODES = 4
TASKS = 160
LONG_NS, SHORT_NS = 200 * MS, 5 * MS
HELD_UP_NS, BRIEF_NS = 3 * S, 20_000


def pause(duration_ns: int) -> Program:
    yield Compute(duration_ns)


def program() -> Program:
    """Every fourth task is long, and tasks are dealt to four nodes one after the other."""
    refs = []
    for number in range(TASKS):
        ref = yield Spawn("pause", (SHORT_NS if number % NODES else LONG_NS,))
        refs.append(ref)
    yield Await(refs, len(refs))


def makespan_s(offload_patience_ms: int) -> float:
    shape = ClusterPart(nodes=NODES, cpus=2, backlog_per_slot=-1, offload_patience_ms=offload_patience_ms)
    scenario = Scenario("uneven-by-time", cluster=shape, phases=PhasesPart(liveness_s=60.0))
    cluster = Cluster(scenario, 0, [program], functions={"pause": pause})
    cluster.boot()
    cluster.kernel.run_until(60 * S, lambda: not cluster.unfinished)
    finished_ns = cluster.drivers[0].finished_ns
    assert finished_ns is not None
    return finished_ns / S


def test_idle_nodes_get_what_waits_on_others() -> None:
    ideal_s = (TASKS // NODES * LONG_NS + TASKS * 3 // 4 * SHORT_NS) / S / (NODES * 2)
    left_alone_s, evened_out_s = makespan_s(-1), makespan_s(100)
    assert left_alone_s > 2.5 * ideal_s, "one node got all of the long ones"
    assert evened_out_s < 1.5 * ideal_s


def brief_finished_s() -> float:
    """When the last of many brief tasks of one node has ended, that queue behind one that is not."""
    shape = ClusterPart(nodes=NODES, cpus=1, drivers=1)
    scenario = Scenario("one-is-long", cluster=shape, phases=PhasesPart(liveness_s=60.0))
    cluster = Cluster(scenario, 0, [one_is_long], functions={"pause": pause})
    cluster.boot()
    cluster.kernel.run_until(60 * S, lambda: not cluster.unfinished)
    finished_ns = cluster.drivers[0].finished_ns
    assert finished_ns is not None
    return finished_ns / S


def one_is_long() -> Program:
    for durations in ([BRIEF_NS] * TASKS, [BRIEF_NS] * TASKS + [HELD_UP_NS] + [BRIEF_NS] * TASKS):
        refs = []
        for duration_ns in durations:
            ref = yield Spawn("pause", (duration_ns,))
            refs.append(ref)
        yield Await(refs, len(refs) - durations.count(HELD_UP_NS))


def test_a_queue_that_was_kept_for_brief_tasks_leaves_once_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert brief_finished_s() < HELD_UP_NS / S / 2
    monkeypatch.setattr(TaskAdmission, "standing_ns", lambda self: 0)
    assert brief_finished_s() > HELD_UP_NS / S


@pytest.mark.slow
def test_a_host_that_forgets_to_say_what_it_gave_away_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def offload(self: Guests, task: Any) -> None:
        guest = self.guests.pop(task.spec.task_id)
        self._let_go(task)
        self._make_none(guest)
        self._unpin(guest)

    monkeypatch.setattr(Guests, "offload", offload)
    monkeypatch.setattr(LocalScheduler, "check", lambda self: None)
    scenario = load("uneven")
    scenario = replace(scenario, phases=replace(scenario.phases, liveness_s=20.0))
    assert any(run_scenario(scenario, seed)[0].kind == LIVENESS for seed in range(1, 7))
