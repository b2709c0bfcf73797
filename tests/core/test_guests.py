"""Tasks of other nodes that are taken back: what the origin says, and what the host does."""

from __future__ import annotations

from tests.core.test_admission import OTHER, PEER
from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL
from tests.core.test_offloading import GUEST, KIND, QuietBench, away, bench, host_one, through_the_gate
from zray.core.cancellation import cancelled_value
from zray.ids import first_return_id
from zray.protocol.cluster import HOME, WANT, Ended, Offload, ShareUpdate, Taken
from zray.protocol.messages import AT_NODE, ObjectReady, Value
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
