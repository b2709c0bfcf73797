"""Where a task goes that takes large objects of other nodes, and when its inputs are copied."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL, MS, Bench
from zray import ids
from zray.core import reports
from zray.core.machine import RUNTIME
from zray.core.node_store import PENDING, REMOTE
from zray.ids import first_return_id
from zray.protocol.cluster import (
    WANT,
    ChunkArrived,
    Claim,
    Grant,
    LinkPeer,
    Members,
    ObjectFound,
    Pull,
    ShareAcked,
    UnlinkPeer,
)
from zray.protocol.faults import fault_error
from zray.protocol.messages import (
    AT_NODE,
    INLINE,
    Forward,
    Infeasible,
    ObjectReady,
    Place,
    Run,
    TableReply,
    Value,
    Warn,
)
from zray.protocol.strategies import ABSENT, ONE_OF, LabelRule, Strategy
from zray.protocol.user_messages import STREAM, Cancel

HERE, PEER, OTHER = b"n" * 16, b"p" * 16, b"o" * 16
SIZE = 3_000_000


class ClusterBench(Bench):
    """A node with two peers; pulls are looked at by the tests, links are not."""

    def __init__(self) -> None:
        super().__init__()
        self.members(PEER, OTHER)

    def members(self, *peers: bytes) -> None:
        epoch = self.node.cluster.peers.epoch + 1
        self.say(GLOBAL, Members(epoch, tuple((node, "") for node in (HERE, *peers))))
        for kind in (LinkPeer, UnlinkPeer):
            self.take(kind)

    def found(self, object_id: bytes, *nodes: bytes, size: int = SIZE) -> None:
        """The directory says where an object is."""
        self.say(GLOBAL, ObjectFound(object_id, Value(AT_NODE, b"", 0, size), nodes))

    def pulls(self) -> list[tuple[bytes, bytes]]:
        found = {(node, pull.object_id): None for node, pull in self.take(Pull)}
        self.effects = [each for each in self.effects if each[0] not in (b"@transfer", RUNTIME)]
        return list(found)

    def forwards(self) -> list[Any]:
        return [forward for _, forward in self.take(Forward)]


@pytest.fixture
def bench() -> ClusterBench:
    made = ClusterBench()
    made.submit(made.kind("warm"))  # a worker is started, which no test looks at
    made.effects.clear()
    return made


def an_object(number: int) -> bytes:
    return ids.put_id(b"elsewher", number)


A, B = an_object(1), an_object(2)


def test_a_task_is_placed_before_its_inputs_are_copied(bench: ClusterBench) -> None:
    (task,) = bench.submit(bench.kind(), deps=(A,))
    assert bench.forwards() == []
    bench.found(A, PEER)
    (forward,) = bench.forwards()
    assert (forward.spec.task_id, forward.inputs) == (task, ((A, SIZE, (PEER,)),))
    assert bench.pulls() == []


def overflow(bench: ClusterBench, kind: bytes) -> tuple[int, Any]:
    """Submit until a task is forwarded: how many were kept, and the forward."""
    for kept in range(100):
        bench.submit(kind)
        forwards = bench.forwards()
        bench.effects.clear()  # workers that are started
        if forwards:
            return kept, forwards[0]
    raise AssertionError("nothing is forwarded")


def test_a_forward_says_how_many_of_its_kind_were_kept_since_the_last_report(bench: ClusterBench) -> None:
    kind = bench.kind()
    for each in (kind, bench.kind("other")):
        kept, forward = overflow(bench, each)
        assert forward.kept == kept > 0
    bench.wait(bench.node.config.heartbeat_interval_ns)
    kept, forward = overflow(bench, kind)
    assert forward.kept == kept == 0, "the report has those before it"


def test_a_placed_task_was_not_kept(bench: ClusterBench) -> None:
    kind = bench.kind()
    kept, forward = overflow(bench, kind)
    bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
    assert overflow(bench, kind)[1].kept == kept


def test_a_new_scheduler_hears_once_what_was_kept(bench: ClusterBench) -> None:
    kept, forward = overflow(bench, bench.kind())
    assert forward.kept == kept > 0
    bench.node.schedulers.on_move(GLOBAL)  # the load is reported, and what waits is sent again
    assert [told.kept for _, told in bench.node.out if isinstance(told, Forward)] == [0]


def test_what_another_reader_found_is_known_at_once(bench: ClusterBench) -> None:
    kind = bench.kind()
    bench.submit(kind, deps=(A,))
    bench.found(A, PEER, OTHER)
    bench.forwards()
    bench.submit(kind, deps=(A,))
    (forward,) = bench.forwards()
    assert forward.inputs == ((A, SIZE, (PEER, OTHER)),)


def test_a_source_that_was_dead_when_it_was_named_is_given_up(bench: ClusterBench) -> None:
    """Who named it had not heard of the death yet; the news of it came here before, and comes once."""
    bench.submit(bench.kind(), deps=(A,))
    bench.members(PEER)
    bench.found(A, OTHER)
    (forward,) = bench.forwards()
    bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
    assert bench.pulls() == [(OTHER, A)]
    bench.now_ns += bench.node.config.pull_patience_ns
    bench.say(GLOBAL)
    assert bench.pulls() == []
    link = bench.node.cluster.sharing.links[0]
    said = [update.kind for batch in link.unacked for update in batch.updates if update.object_id == A]
    assert said.count(WANT) == 2
    bench.effects.clear()  # the room of the copy that did not come
    bench.found(A, PEER)
    assert bench.pulls() == [(PEER, A)]


def test_a_task_that_comes_back_pulls(bench: ClusterBench) -> None:
    bench.submit(bench.kind(), deps=(A,))
    bench.found(A, PEER)
    (forward,) = bench.forwards()
    bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
    assert (PEER, A) in bench.pulls()
    assert not bench.forwards()


def test_small_inputs_travel_and_draw_nobody(bench: ClusterBench) -> None:
    bench.submit(bench.kind(), deps=(A,))
    bench.say(GLOBAL, ObjectFound(A, Value(INLINE, b"N.")))
    assert not bench.forwards()
    assert bench.node.scheduler.backlog() == 2


def test_a_task_waits_for_what_is_not_made_yet(bench: ClusterBench) -> None:
    bench.submit(bench.kind(), deps=(A, B))
    bench.found(A, PEER)
    assert not bench.forwards()
    bench.found(B, OTHER, size=1)
    (forward,) = bench.forwards()
    assert forward.inputs == ((A, SIZE, (PEER,)), (B, 1, (OTHER,)))


def test_an_input_that_is_lost_before_the_others_are_made_is_waited_for_again(bench: ClusterBench) -> None:
    bench.submit(bench.kind(), deps=(A, B))
    bench.found(A, PEER)
    bench.members(OTHER)
    assert bench.node.store.objects[A].state == PENDING
    bench.found(B, OTHER)
    assert not bench.forwards()
    bench.found(A, OTHER)
    (forward,) = bench.forwards()
    assert forward.inputs == ((A, SIZE, (OTHER,)), (B, SIZE, (OTHER,)))


def test_an_input_that_is_lost_while_its_task_is_placed_is_looked_for_by_the_host(
    bench: ClusterBench,
) -> None:
    (task,) = bench.submit(bench.kind(), deps=(A, B))
    bench.found(A, PEER)
    bench.found(B, OTHER)
    bench.forwards()
    bench.members(OTHER)
    bench.forwards()  # the death of a node repeats them
    bench.say(OTHER, Claim(task))
    grant = _granted(bench)
    assert [one.object_id for one in grant.inputs] == [B]
    assert bench.node.store.objects[A].pins == 1, "it is kept until the task has ended"


def _granted(bench: ClusterBench) -> Any:
    """The one grant that leaves through the gate once the shard acknowledges what was said before."""
    _acknowledge_rows(bench)
    (grant,) = _leaving(bench)
    return grant


def _acknowledge_rows(bench: ClusterBench) -> None:
    """Jobs, descriptors and code are in their tables."""
    for write in list(bench.node.tables.unacked.values()):
        bench.say(GLOBAL, TableReply(write.token, True))


def _leaving(bench: ClusterBench) -> list[Any]:
    grants: list[Any] = []
    link = bench.node.cluster.sharing.links[0]
    for _ in range(3):
        grants += [grant for _, grant in bench.take(Grant)]
        bench.effects.clear()  # what the host is told of the job
        bench.now_ns += 100 * MS
        bench.say(GLOBAL, ShareAcked(link.number, link.sequence))
    return grants


def test_a_task_goes_to_another_node_once_its_descriptor_is_acknowledged(bench: ClusterBench) -> None:
    """Else what it makes could not be made again if the node of its submitter died."""
    (task,) = bench.submit(bench.kind(), deps=(A, B))
    bench.found(A, PEER)
    bench.found(B, OTHER)
    bench.forwards()
    assert bench.node.tables.unacked
    bench.say(OTHER, Claim(task))
    assert _leaving(bench) == []
    _acknowledge_rows(bench)
    assert len(_leaving(bench)) == 1


def test_what_a_silent_shard_holds_back_is_told(bench: ClusterBench) -> None:
    """In the state of the task soon, and once in the log of the node."""
    (task,) = bench.submit(bench.kind(), deps=(A, B))
    bench.found(A, PEER)
    bench.found(B, OTHER)
    bench.forwards()
    bench.say(OTHER, Claim(task))
    told = []
    for _ in range(5):
        told += [warning.text for _, warning in bench.take(Warn)]
        bench.effects.clear()
        state = reports.tasks_of(bench.node)[-1]["state"]
        bench.now_ns += 1_000 * MS
        bench.say(GLOBAL)
    assert state == "on another node, or on its way there: shard 0 of the control store does not answer"
    text = "shard 0 of the control store does not answer; what goes to other nodes waits for it"
    assert told == [text]
    assert reports.node_report(bench.node)["to_other_nodes"]["held_back_by_shards"] == [0]
    _granted(bench)
    assert reports.tasks_of(bench.node)[-1]["state"] == "on another node"
    assert reports.node_report(bench.node)["to_other_nodes"] == {"waiting": 0, "held_back_by_shards": []}


def test_a_task_that_is_cancelled_while_it_fetches_leaves_nothing(bench: ClusterBench) -> None:
    (task,) = bench.submit(bench.kind(), deps=(A,))
    bench.found(A, PEER)
    (forward,) = bench.forwards()
    bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
    bench.pulls()
    task_class = bench.node.scheduler.tasks[task].task_class
    assert task_class.fetching == 1
    bench.say(DRIVER_ADDRESS, Cancel(task))
    assert task_class.fetching == 0
    assert task not in bench.node.scheduler.tasks
    assert bench.node.store.objects[A].state == REMOTE or not bench.node.store.objects[A].pins


def test_a_task_that_is_cancelled_while_it_fetches_is_counted_once(bench: ClusterBench) -> None:
    """What it waited for comes all the same, as another task takes it."""
    gone, stays = bench.submit(bench.kind(), 2, deps=(A,))
    bench.found(A, PEER)
    for forward in bench.forwards():
        bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
        bench.pulls()
    task_class = bench.node.scheduler.tasks[stays].task_class
    bench.say(DRIVER_ADDRESS, Cancel(gone))
    assert task_class.fetching == 1
    bench.effects.clear()  # the driver hears of the end
    chunk_bytes = bench.node.config.chunk_bytes
    for start in range(0, SIZE, chunk_bytes):
        bench.say(RUNTIME, ChunkArrived(A, start, min(chunk_bytes, SIZE - start)))
    assert task_class.fetching == 0
    assert list(task_class.ready) == [bench.node.scheduler.tasks[stays]]


def test_a_node_alone_forwards_nothing() -> None:
    bench = Bench()
    bench.submit(bench.kind(), deps=(A,))
    assert not bench.take(Forward)
    assert not bench.take(Run)


# --- strategies ------------------------------------------------------------------------------------


def strategic(bench: ClusterBench, strategy: Strategy, **more: Any) -> bytes:
    """The descriptor of tasks with a strategy."""
    kind = bench.kind()
    known = next(each for each in bench.node.scheduler.classes.values() if each.descriptor.name == "f")
    descriptor = replace(known.descriptor, strategy=strategy, **more)
    descriptor = replace(descriptor, descriptor_id=ids.content_id(kind + repr(descriptor).encode()))
    bench.say(DRIVER_ADDRESS, descriptor)
    return descriptor.descriptor_id


@pytest.mark.parametrize(
    ("strategy", "leaves"),
    [
        (Strategy(HERE), False),
        (Strategy(PEER), True),
        (Strategy(PEER, soft=True), True),
        (Strategy(hard=(LabelRule("zone", ONE_OF, ("a",)),)), True),
        (Strategy(hard=(LabelRule("zone", ABSENT),)), False),
        (Strategy(wanted=(LabelRule("zone", ONE_OF, ("a",)),)), True),
        (Strategy(wanted=(LabelRule("zone", ABSENT),)), False),
    ],
)
def test_a_strategy_says_who_decides(bench: ClusterBench, strategy: Strategy, leaves: bool) -> None:
    bench.submit(strategic(bench, strategy))
    assert len(bench.forwards()) == leaves


def test_the_task_of_a_node_that_is_named_stays_however_long_its_queue(bench: ClusterBench) -> None:
    kind = strategic(bench, Strategy(HERE))
    bench.submit(kind, count=200)
    assert not bench.forwards()


@pytest.mark.parametrize(("soft", "leaves"), [(True, False), (False, True)])
def test_a_node_alone_asks_about_those_only_that_it_may_not_run(soft: bool, leaves: bool) -> None:
    bench = ClusterBench()
    bench.members()
    bench.submit(strategic(bench, Strategy(PEER, soft)))
    assert len(bench.forwards()) == leaves
    bench.effects.clear()


def test_a_verdict_ends_a_task_with_an_error_that_says_why(bench: ClusterBench) -> None:
    (task,) = bench.submit(strategic(bench, Strategy(OTHER)))
    (forward,) = bench.forwards()
    verdict = Infeasible(task, "f", forward.descriptor.demand, (), "its node is dead")
    bench.say(b"a stranger", verdict)
    assert task in bench.node.scheduler.tasks
    bench.say(GLOBAL, verdict)
    assert task not in bench.node.scheduler.tasks
    value = bench.node.store.objects[first_return_id(task)].value
    assert value is not None
    assert str(fault_error(value.data)) == "f cannot be scheduled: its node is dead"
    assert [to for to, _ in bench.take(ObjectReady)] == [DRIVER_ADDRESS]
    bench.say(GLOBAL, verdict)  # a late repetition


def test_a_generator_that_is_to_run_elsewhere_ends_at_once(bench: ClusterBench) -> None:
    (task,) = bench.submit(strategic(bench, Strategy(PEER), returns=STREAM))
    assert not bench.forwards()
    assert task not in bench.node.scheduler.tasks
