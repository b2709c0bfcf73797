"""Tasks of other nodes that are taken back: what the origin says, and what the host does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_admission import OTHER, PEER, ClusterBench, overflow, strategic
from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL, JOB, MS
from tests.core.test_offloading import GUEST, KIND, QuietBench, away, bench, host_one, through_the_gate
from zray.core.cancellation import cancelled_value
from zray.core.machine import RUNTIME
from zray.core.node_store import CREATING, REMOTE, SEALED
from zray.ids import first_return_id
from zray.protocol.cluster import (
    HOME,
    WANT,
    ChunkArrived,
    Claim,
    Ended,
    Grant,
    Offload,
    Pull,
    ReceiveInto,
    ShareUpdate,
    Taken,
)
from zray.protocol.local_messages import ClientGone, WorkerExited
from zray.protocol.messages import (
    AT_NODE,
    EXTENT,
    Create,
    Created,
    CreateFailed,
    ExportFunction,
    JobContext,
    ObjectReady,
    Place,
    TaskDone,
    Value,
)
from zray.protocol.strategies import Strategy
from zray.protocol.user_messages import Cancel

__all__ = ["bench"]  # the fixture


def test_the_origin_passes_it_on_and_has_its_own_value_at_once(bench: QuietBench) -> None:
    gone = away(bench, 10)
    bench.say(DRIVER_ADDRESS, Cancel(gone[0], force=True, recursive=False))
    assert gone[0] not in bench.node.scheduler.tasks
    bench.take(ObjectReady)
    passed_on = Cancel(gone[0], force=True, recursive=False)
    assert through_the_gate(bench, Cancel) == [(PEER, passed_on)]
    bench.say(PEER, Ended(gone[0], 0, (cancelled_value(gone[0]),), failed=True))
    assert through_the_gate(bench, Taken) == [(PEER, Taken(gone[0], 0))]


def test_a_guest_is_not_among_those_that_its_host_kept(bench: QuietBench) -> None:
    """A global scheduler placed it, and counts it already."""
    host_one(bench)
    (guest,) = bench.node.cluster.guests.guests
    task_class = bench.node.scheduler.tasks[guest].task_class
    assert (task_class.kept, len(task_class.ready)) == (0, 1)
    bench.say(DRIVER_ADDRESS, KIND)
    kept, forward = overflow(bench, KIND.descriptor_id)
    assert forward.kept == kept > 0


def test_the_host_ends_a_guest_that_is_queued_for_its_origin_only(bench: QuietBench) -> None:
    host_one(bench)
    bench.say(OTHER, Cancel(GUEST.task_id))
    assert GUEST.task_id in bench.node.scheduler.tasks
    bench.say(PEER, Cancel(GUEST.task_id))
    assert GUEST.task_id not in bench.node.scheduler.tasks
    ((host, ended),) = through_the_gate(bench, Ended)
    assert (host, ended.failed, ended.values) == (PEER, True, (cancelled_value(GUEST.task_id),))
    bench.say(PEER, Cancel(GUEST.task_id), Taken(GUEST.task_id, 2), Cancel(GUEST.task_id))
    assert GUEST.task_id not in bench.node.cluster.guests.untaken


def test_a_guest_whose_end_is_not_taken_yet_may_be_submitted_here_too(bench: QuietBench) -> None:
    """Its parent runs again, on this node: its task is one of this node, of which no origin hears."""
    host_one(bench)
    bench.say(GLOBAL, Offload(2))
    bench.forwards()
    through_the_gate(bench, Ended)
    bench.say(DRIVER_ADDRESS, KIND, GUEST)
    assert GUEST.task_id in bench.node.scheduler.tasks
    bench.effects.clear()
    bench.say(DRIVER_ADDRESS, Cancel(GUEST.task_id))
    ((_, ready),) = bench.take(ObjectReady)
    assert ready.value == cancelled_value(GUEST.task_id)
    assert through_the_gate(bench, Ended) == []
    bench.say(PEER, Taken(GUEST.task_id, 2))
    assert GUEST.task_id not in bench.node.cluster.guests.untaken


def test_a_result_that_died_with_its_host_is_said_not_to_be_made_here(bench: QuietBench) -> None:
    """The directory may not have heard of it from the host, and would wait for the origin to make it."""
    gone = away(bench, 10)
    bench.say(PEER, Ended(gone[0], 0, (Value(AT_NODE, b"", 0, 3_000_000),)))
    through_the_gate(bench, Taken)
    said: list[ShareUpdate] = []
    link = bench.node.cluster.sharing.links[0]
    bench.members(OTHER)
    for batch in link.unacked:
        said += batch.updates
    kinds = [update.kind for update in said if update.object_id == first_return_id(gone[0])]
    assert kinds[-2:] == [HOME, WANT]


# --- a shard that is away for long ---------------------------------------------------------------------


def silence(bench: QuietBench, duration_ms: int, *messages: Any) -> None:
    """No shard acknowledges anything, and another node says this every second."""
    for _ in range(duration_ms // 1_000):
        bench.wait(1_000 * MS)
        bench.effects.clear()
        bench.say(PEER, *messages)
        bench.effects.clear()


def test_the_end_of_a_guest_waits_once_at_the_gate_of_its_host(bench: QuietBench) -> None:
    host_one(bench)
    bench.say(GLOBAL, Offload(2))
    bench.effects.clear()
    silence(bench, 60_000)
    ended = Ended(GUEST.task_id, 2, (), offloaded=True)
    assert [waiting.message for waiting in bench.node.cluster.sharing.gate].count(ended) == 1
    assert through_the_gate(bench, Ended) == [(PEER, ended)]
    bench.wait(1_000 * MS)
    assert bench.take(Ended) == [(PEER, ended)], "what has left is repeated"


def test_a_grant_and_all_that_introduces_it_wait_once(bench: QuietBench) -> None:
    (task_id,) = bench.submit(strategic(bench, Strategy(PEER)))
    bench.effects.clear()
    silence(bench, 60_000, Claim(task_id))
    kinds = [type(waiting.message) for waiting in bench.node.cluster.sharing.gate]
    assert (kinds.count(Grant), kinds.count(ExportFunction)) == (1, 1)
    assert len(through_the_gate(bench, Grant)) == 1
    bench.say(PEER, Claim(task_id))
    assert len(through_the_gate(bench, Grant)) == 1, "the first was lost: it is said again"


def test_that_an_end_was_taken_waits_once(bench: QuietBench) -> None:
    (task_id, *_) = away(bench, 10)
    ended = Ended(task_id, 0, (Value(AT_NODE, b"", 0, 3_000_000),))
    silence(bench, 60_000, ended)
    taken = Taken(task_id, 0)
    assert [waiting.message for waiting in bench.node.cluster.sharing.gate].count(taken) == 1
    assert through_the_gate(bench, Taken) == [(PEER, taken)]
    bench.say(PEER, ended)
    assert through_the_gate(bench, Taken) == [(PEER, taken)], "the first was lost: it is said again"
    assert len(bench.node.cluster.away.takings) == 1


# --- a result that other nodes have already -----------------------------------------------------------

RESULT, SIZE = first_return_id(GUEST.task_id), 300_000


def guest_that_runs_again(where: int) -> tuple[ClusterBench, bytes]:
    """A node that runs another attempt of a task for the sake of other results; and its worker.

    Args:
        where: the state that the first result is in here, because a task of this node takes it.
    """
    bench = ClusterBench()
    bench.submit(bench.kind("warm"))
    worker = bench.add_worker()
    ((_, warm, _),) = bench.runs()
    bench.done(worker, warm)
    bench.effects.clear()
    bench.submit(bench.kind(), deps=(RESULT,))
    bench.effects.clear()
    bench.found(RESULT, OTHER, size=SIZE)
    (forward,) = bench.forwards()
    if where != REMOTE:
        bench.say(GLOBAL, Place(forward.spec, forward.descriptor, 1))
        assert bench.pulls() == [(OTHER, RESULT)]
    bench.effects.clear()
    bench.say(GLOBAL, Place(GUEST, KIND, 1, PEER))
    assert bench.take(Claim) == [(PEER, Claim(GUEST.task_id))]
    grant = Grant(GUEST, 2, JOB, (), PEER, 7, 0)
    bench.say(PEER, JobContext(JOB, (), "/"), ExportFunction(KIND.function_id, b"code"), KIND, grant)
    ((worker, task, attempt),) = bench.runs()
    assert (task, attempt) == (GUEST.task_id, 2)
    bench.effects.clear()
    if where == SEALED:
        bench.say(RUNTIME, ChunkArrived(RESULT, 0, SIZE))
        bench.effects.clear()
    assert bench.node.store.objects[RESULT].state == where
    return bench, worker


@pytest.mark.parametrize("where", [REMOTE, CREATING, SEALED], ids=["elsewhere", "on its way", "copied"])
def test_a_result_that_other_nodes_have_is_made_all_the_same(where: int) -> None:
    """Found with real processes: the report of the task was taken for one of a process that wrote nothing."""
    bench, worker = guest_that_runs_again(where)
    entry = bench.node.store.objects[RESULT]
    bench.say(worker, Create(RESULT, SIZE))
    if where == SEALED:
        assert [answer for _, answer in bench.take(CreateFailed)]
        assert RESULT not in bench.node.store.copies, "it stays, as what was made here"
    else:
        assert [answer.kind for _, answer in bench.take(Created)] == [EXTENT]
        ended = [room.size for _, room in bench.take(ReceiveInto)]
        assert ended == ([0] if where == CREATING else []), "no chunk may come into its room any more"
    bench.say(RUNTIME, ChunkArrived(RESULT, 0, SIZE))  # a late one
    assert bench.node.store.objects[RESULT].state == (SEALED if where == SEALED else CREATING)
    bench.found(RESULT, OTHER, size=SIZE)  # an answer to what was asked before
    bench.say(worker, TaskDone(GUEST.task_id, 2, (Value(EXTENT, b"", 0, SIZE),), MS))
    assert entry.value is not None
    assert (entry.state, entry.value.kind) == (SEALED, EXTENT)
    bench.effects.clear()
    assert not bench.take(Pull)
    found = []
    for _ in range(3):
        found += [ended for _, ended in through_the_gate(bench, Ended)]  # type: ignore[arg-type]
    assert [value.kind for value in found[0].values] == [AT_NODE]


def test_a_result_that_is_not_made_again_after_all_is_looked_for() -> None:
    """Its worker dies: a task here still waits for it."""
    bench, worker = guest_that_runs_again(CREATING)
    bench.say(worker, Create(RESULT, SIZE))
    bench.effects.clear()
    bench.say(RUNTIME, ClientGone(worker), WorkerExited(worker, -9))
    bench.effects.clear()
    link = bench.node.cluster.sharing.links[0]
    said = [update for batch in link.unacked for update in batch.updates if update.object_id == RESULT]
    assert [update.kind for update in said][-2:] == [HOME, WANT]
    bench.found(RESULT, OTHER, size=SIZE)
    assert bench.pulls() == [(OTHER, RESULT)]
