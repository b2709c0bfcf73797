"""Tasks of other nodes that are taken back: what the origin says, and what the host does."""

from __future__ import annotations

from tests.core.test_admission import OTHER, PEER
from tests.core.test_local_scheduler import DRIVER_ADDRESS
from tests.core.test_offloading import GUEST, QuietBench, away, bench, host_one, through_the_gate
from zray.core.cancellation import cancelled_value
from zray.protocol.cluster import Ended, Taken
from zray.protocol.messages import ObjectReady
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
    assert GUEST.task_id not in bench.node.scheduler.guests
