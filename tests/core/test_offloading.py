"""Queues that turn out unfair: whom the global scheduler asks for tasks, and which ones a node gives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_admission import HERE, OTHER, PEER, ClusterBench, strategic
from tests.core.test_global_scheduler import A, B, C, address_of, report
from tests.core.test_global_scheduler import Bench as GlobalBench
from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL, MS
from zray import ids
from zray.config import Config
from zray.core.machine import WORKER_POOL
from zray.core.offloading import OFFLOAD_HOPS_MAX
from zray.core.placement import ClusterAverages, NodeLoad
from zray.core.rebalancing import Share, excess, idle_slots, shares
from zray.core.resources import demand_from
from zray.protocol.cluster import Claim, Ended, Grant, Offload, ShareAcked, Taken
from zray.protocol.messages import (
    Describe,
    ExportFunction,
    Forward,
    JobContext,
    ObjectReady,
    Place,
    Recorded,
    Submit,
    TableReply,
    Withdraw,
)
from zray.protocol.strategies import ABSENT, LabelRule, Strategy
from zray.protocol.user_messages import Cancel

RUN_NS = 10 * MS
"""What the reports say of run times."""
CPU = demand_from({"CPU": 1})


def load(node_id: bytes, cpus: int, *, free: int = 0, backlog: int = 0) -> NodeLoad:
    _, message = report(node_id, {"CPU": cpus}, {"CPU": free} if free else {}, backlog=backlog)
    return NodeLoad(0, address_of(node_id), message, ClusterAverages(0.2))


# --- how many -----------------------------------------------------------------------------------------


def test_a_node_is_idle_where_a_task_could_start_and_none_waits() -> None:
    assert idle_slots(load(A, 4, free=3)) == 3
    assert idle_slots(load(A, 4)) == 0
    assert idle_slots(load(A, 4, free=1, backlog=2)) == 0  # what waits there needs something else


@pytest.mark.parametrize(
    ("patience_ns", "left"), [(-1, 0), (0, 9), (RUN_NS, 7), (3 * RUN_NS, 3), (RUN_NS * 9, 0)]
)
def test_what_waits_for_a_moment_only_is_left_alone(patience_ns: int, left: int) -> None:
    assert excess(load(A, 2, backlog=9), patience_ns) == left


def test_shares_leave_all_nodes_equally_much_per_slot() -> None:
    busy, busier = load(A, 2, backlog=12), load(B, 2, backlog=30)
    found = shares([busy, busier], [load(C, 4, free=4)], 0)
    assert found == [Share(busier, 20), Share(busy, 2)]
    found = shares([load(A, 2, backlog=30), load(B, 2, backlog=30)], [load(C, 8, free=8)], 0)
    assert [share.tasks for share in found] == [24, 20]


def test_nobody_gives_without_a_taker() -> None:
    assert shares([load(A, 2, backlog=12)], [], 0) == []
    assert shares([load(A, 2, backlog=12)], [load(B, 4, free=4, backlog=1)], 0) == []


# --- whom the global scheduler asks -------------------------------------------------------------------


def test_an_overloaded_node_is_asked_once_per_report_while_another_is_idle() -> None:
    bench = GlobalBench(report(A, {"CPU": 2}, {}, backlog=100))
    asked = [(address_of(A), Offload(50))]
    assert bench.feed(report(B, {"CPU": 2})) == asked
    assert bench.feed(report(B, {"CPU": 2})) == []
    assert bench.machine.nodes[A].backlog == 50
    assert bench.feed(report(A, {"CPU": 2}, {}, backlog=100)) == asked


def test_a_queue_that_is_short_in_time_is_left_alone() -> None:
    bench = GlobalBench(report(A, {"CPU": 2}, {}, backlog=20))  # 20 x 10 ms over 2 slots: the patience
    assert bench.feed(report(B, {"CPU": 2})) == []
    bench = GlobalBench(report(A, {"CPU": 2}, {}, backlog=100), config=Config(offload_patience_ns=-1))
    assert bench.feed(report(B, {"CPU": 2})) == []


def test_a_node_that_died_neither_gives_nor_takes() -> None:
    bench = GlobalBench(report(B, {"CPU": 2}))
    bench.machine._node_dead(0, bench.machine.nodes[B], fence=2)
    bench.machine.flush(0)
    assert bench.feed(report(A, {"CPU": 2}, {}, backlog=100)) == []


# --- which ones a node gives ---------------------------------------------------------------------------


class QuietBench(ClusterBench):
    """Wishes for workers are looked at elsewhere."""

    def say(self, source: bytes, *messages: Any) -> None:
        super().say(source, *messages)
        self.effects = [effect for effect in self.effects if effect[0] != WORKER_POOL]


@pytest.fixture
def bench() -> QuietBench:
    made = QuietBench()
    made.submit(made.kind("warm"))
    made.effects.clear()
    return made


def placed_back(bench: QuietBench, kind: bytes, count: int, hops: int = 1) -> list[bytes]:
    """Tasks of this node that were forwarded, and that the global scheduler placed here."""
    tasks = [bench.spec(kind) for _ in range(count)]
    bench.say(DRIVER_ADDRESS, *tasks)
    kept = [task.task_id for task in tasks]
    places = [Place(forward.spec, forward.descriptor, hops) for forward in bench.forwards()]
    bench.say(GLOBAL, *places)
    return kept


def test_the_newest_go_and_the_oldest_stay(bench: QuietBench) -> None:
    tasks = placed_back(bench, bench.kind(), 10)
    bench.say(GLOBAL, Offload(4))
    assert [forward.spec.task_id for forward in bench.forwards()] == tasks[:-5:-1]
    bench.say(b"a stranger", Offload(4))
    bench.say(PEER, Offload(4))
    assert bench.forwards() == []


def test_more_than_there_are_is_all_of_them(bench: QuietBench) -> None:
    tasks = placed_back(bench, bench.kind(), 10)
    bench.say(GLOBAL, Offload(1_000_000))
    assert {forward.spec.task_id for forward in bench.forwards()} >= set(tasks)
    bench.say(GLOBAL, Offload(1))
    assert bench.forwards() == []


def test_what_only_some_nodes_can_run_stays(bench: QuietBench) -> None:
    bench.submit(strategic(bench, Strategy(HERE)), count=20)
    bench.submit(strategic(bench, Strategy(hard=(LabelRule("zone", ABSENT),))), count=4)
    placed_back(bench, bench.kind("warm"), 0)
    bench.effects.clear()
    bench.say(GLOBAL, Offload(100))
    assert [forward.descriptor.name for forward in bench.forwards()] == ["warm"]


def test_what_was_placed_often_stays(bench: QuietBench) -> None:
    tasks = placed_back(bench, bench.kind(), 10, hops=OFFLOAD_HOPS_MAX)
    bench.say(GLOBAL, Offload(100))
    assert not {forward.spec.task_id for forward in bench.forwards()} & set(tasks[5:])


def test_a_task_that_was_given_away_can_be_cancelled(bench: QuietBench) -> None:
    tasks = placed_back(bench, bench.kind(), 10)
    bench.say(GLOBAL, Offload(1))
    bench.forwards()
    bench.say(DRIVER_ADDRESS, Cancel(tasks[-1]))
    assert tasks[-1] not in bench.node.scheduler.tasks
    assert not bench.take(Withdraw)  # it went to the global scheduler, which the bench does not show
    bench.take(ObjectReady)


# --- guests ----------------------------------------------------------------------------------------------

GUEST = Submit(ids.task_id(b"elsewher", 1), b"p" * 16, b"d" * 16, b"")
KIND = Describe(GUEST.descriptor_id, b"f" * 16, "guest", 1, CPU, 3)


def through_the_gate(bench: QuietBench, kind: type) -> list[tuple[bytes, Any]]:
    """What of a kind leaves for other nodes once the shard acknowledges what was said before."""
    found = []
    link, lineage = bench.node.cluster.sharing.links[0], bench.node.lineage.links[0]
    for _ in range(3):
        found += bench.take(kind)
        bench.effects.clear()
        bench.now_ns += 100 * MS
        rows = [TableReply(write.token, True) for write in bench.node.tables.unacked.values()]
        bench.say(GLOBAL, ShareAcked(link.number, link.sequence), Recorded(lineage.sequence), *rows)
    return found


def host_one(bench: QuietBench, hops: int = 0) -> None:
    """A task of another node waits here, behind others that keep the workers busy."""
    bench.say(GLOBAL, Place(GUEST, KIND, 1, PEER))
    assert bench.take(Claim) == [(PEER, Claim(GUEST.task_id))]
    grant = Grant(GUEST, 2, b"j" * 16, (), PEER, 7, hops)
    bench.say(PEER, JobContext(b"j" * 16, (), "/"), ExportFunction(KIND.function_id, b"code"), KIND, grant)
    bench.effects.clear()
    assert bench.node.scheduler.tasks[GUEST.task_id].attempt == 2


def test_a_guest_goes_back_to_its_origin_until_that_has_taken_it(bench: QuietBench) -> None:
    host_one(bench)
    bench.say(GLOBAL, Offload(2))
    assert [forward.descriptor.name for forward in bench.forwards()] == ["warm"]
    ended = Ended(GUEST.task_id, 2, (), offloaded=True)
    assert through_the_gate(bench, Ended) == [(PEER, ended)]
    assert GUEST.task_id not in bench.node.scheduler.tasks
    bench.wait(1_000 * MS)
    assert bench.take(Ended) == [(PEER, ended)], "it is repeated"
    bench.effects.clear()
    bench.say(PEER, Taken(GUEST.task_id, 2))
    assert GUEST.task_id not in bench.node.cluster.guests.untaken


def test_a_guest_that_was_placed_often_stays(bench: QuietBench) -> None:
    host_one(bench, hops=OFFLOAD_HOPS_MAX)
    bench.say(GLOBAL, Offload(1))
    assert GUEST.task_id in bench.node.scheduler.tasks
    assert [forward.descriptor.name for forward in bench.forwards()] == ["warm"]


def away(bench: QuietBench, count: int) -> list[bytes]:
    """Tasks of this node that another one has."""
    tasks = bench.submit(bench.kind(), count=count)
    gone = [forward.spec.task_id for forward in bench.forwards()]
    bench.effects.clear()
    for task in gone:
        bench.say(PEER, Claim(task))
    assert len(through_the_gate(bench, Grant)) == len(gone)
    assert gone == tasks[-len(gone) :]
    return gone


def test_the_origin_places_a_task_once_more_that_comes_back(bench: QuietBench) -> None:
    *_, task = gone = away(bench, 20)
    bench.say(PEER, *[Ended(each, 0, (), offloaded=True) for each in gone])
    *_, forward = bench.forwards()
    assert (forward.spec.task_id, forward.hops) == (task, 1)
    assert through_the_gate(bench, Taken) == [(PEER, Taken(each, 0)) for each in gone]
    bench.say(PEER, Ended(task, 0, (), offloaded=True))  # it was repeated meanwhile
    assert bench.forwards() == []
    bench.effects.clear()
    bench.say(OTHER, Claim(task))
    ((_, grant),) = through_the_gate(bench, Grant)
    assert (grant.attempt, grant.hops) == (0, 1)


def test_an_origin_that_has_nothing_to_do_keeps_what_comes_back(bench: QuietBench) -> None:
    gone = away(bench, 10)
    for task in [task for task in bench.node.scheduler.tasks if task not in gone]:
        bench.say(DRIVER_ADDRESS, Cancel(task))
        bench.effects.clear()
    bench.say(PEER, Ended(gone[0], 0, (), offloaded=True))
    assert bench.forwards() == []
    assert bench.node.scheduler.tasks[gone[0]].stays


def test_one_that_ended_meanwhile_is_only_acknowledged(bench: QuietBench) -> None:
    gone = away(bench, 10)
    bench.say(DRIVER_ADDRESS, Cancel(gone[0]))
    bench.effects.clear()
    bench.say(PEER, Ended(gone[0], 0, (), offloaded=True))
    assert not bench.take(Forward)
    assert through_the_gate(bench, Taken) == [(PEER, Taken(gone[0], 0))]


def test_a_guest_that_is_placed_here_again_is_claimed_once_its_origin_knows_that_it_left(
    bench: QuietBench,
) -> None:
    host_one(bench)
    bench.say(GLOBAL, Offload(2))
    bench.effects.clear()
    bench.say(GLOBAL, Place(GUEST, KIND, 2, PEER))
    assert not bench.take(Claim), "the end of the former stay may be behind it"
    assert len(through_the_gate(bench, Ended)) == 1
    bench.say(PEER, Taken(GUEST.task_id, 2))
    assert bench.take(Claim) == [(PEER, Claim(GUEST.task_id))]
    bench.effects.clear()
    bench.say(PEER, Grant(GUEST, 2, b"j" * 16, (), PEER, 8, 2))
    bench.effects.clear()
    assert bench.node.scheduler.tasks[GUEST.task_id].hops == 3
