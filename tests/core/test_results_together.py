"""All results of one task at once: when they are told in one message, and that nothing else depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.conftest import Outbox
from tests.core.test_local_scheduler import DRIVER_ADDRESS, MS
from tests.core.test_node import OTHER, NodeBench
from zray import ids
from zray.core import results_together
from zray.core.client_objects import ClientObjects
from zray.protocol.messages import (
    AT_NODE,
    ERROR,
    EXTENT,
    INLINE,
    Create,
    Created,
    Get,
    ObjectReady,
    Release,
    Run,
    TaskDone,
    Value,
)
from zray.protocol.user_messages import ResultsReady

ONE, TWO, BOOM = Value(INLINE, b"1"), Value(INLINE, b"2"), Value(ERROR, b"boom")
TASK_ID = ids.task_id(b"prefix__", 7)
FIRST, SECOND = ids.return_ids(TASK_ID, 2)


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


def running_pair(bench: NodeBench) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """A worker with a task of two results: (worker, task, the ids of the results)."""
    worker, task = bench.running(bench.kind(num_returns=2))
    return worker, task, ids.return_ids(task, 2)


@pytest.mark.parametrize("values", [(ONE, TWO), (ONE, BOOM)])
def test_who_submitted_a_task_hears_of_all_its_results_at_once(
    bench: NodeBench, values: tuple[Value, ...]
) -> None:
    worker, task, results = running_pair(bench)
    bench.say(worker, TaskDone(task, 0, values, MS))
    assert bench.all() == [(DRIVER_ADDRESS, ResultsReady(task, values))]
    bench.say(DRIVER_ADDRESS, Release(results[:1]))
    assert bench.objects == [results[1]]
    assert list(bench.node.references.lineage) == [task]
    bench.say(DRIVER_ADDRESS, Release(results[1:]))
    assert not bench.objects
    assert not bench.node.references.lineage


def test_the_record_goes_with_the_last_of_them_also_if_all_go_at_once(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    bench.take(ResultsReady)
    bench.say(DRIVER_ADDRESS, Release(results))
    assert not bench.objects
    assert not bench.node.references.lineage


def test_what_is_waited_for_and_not_held_goes_once_it_is_told(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    bench.say(DRIVER_ADDRESS, Release(results[:1]), Get(results[:1], False))
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    assert bench.values() == [ONE, TWO]
    assert bench.objects == [results[1]]


def test_a_task_that_waits_for_one_of_them_runs(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    (taker,) = bench.submit(bench.kind("taker"), deps=results[1:])
    bench.all()
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    bench.take(ResultsReady)
    ((_, run),) = bench.take(Run)
    assert (run.task_id, run.deps) == (taker, (ObjectReady(results[1], TWO),))
    bench.effects.clear()


def test_each_is_told_by_itself_if_one_was_let_go(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    bench.say(DRIVER_ADDRESS, Release(results[:1]))
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    assert bench.all() == [(DRIVER_ADDRESS, ObjectReady(results[1], TWO))]
    assert bench.objects == [results[1]]


@pytest.mark.parametrize("fetch", [True, False])
def test_each_is_told_by_itself_if_another_process_waits(bench: NodeBench, fetch: bool) -> None:
    worker, task, results = running_pair(bench)
    bench.add_driver()
    bench.say(OTHER, Get(results[1:], fetch))
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    told = sorted(bench.all(), key=lambda effect: (effect[0], effect[1].object_id))
    first, second = (ObjectReady(*pair) for pair in zip(results, (ONE, TWO), strict=True))
    assert told == [(DRIVER_ADDRESS, first), (DRIVER_ADDRESS, second), (OTHER, second)]


def test_each_is_told_by_itself_if_one_is_large(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    bench.say(worker, Create(results[0], 1000))
    bench.take(Created)
    bench.say(worker, TaskDone(task, 0, (Value(EXTENT, b"", 0, 1000), TWO), MS))
    assert bench.values() == [Value(AT_NODE, b"", 0, 1000), TWO]


def test_each_is_told_by_itself_if_one_contains_refs(bench: NodeBench) -> None:
    worker, task, results = running_pair(bench)
    containing = Value(INLINE, b"1", 0, 0, (results[1],))
    bench.say(worker, TaskDone(task, 0, (containing, TWO), MS))
    assert bench.all() == [
        (DRIVER_ADDRESS, ObjectReady(results[0], containing)),
        (DRIVER_ADDRESS, ObjectReady(results[1], TWO)),
    ]
    bench.say(DRIVER_ADDRESS, Release(results[1:]))
    assert bench.objects == list(results), "what is contained lives"
    bench.say(DRIVER_ADDRESS, Release(results[:1]))
    assert not bench.objects


def test_each_is_told_by_itself_if_they_are_too_much_for_a_message(
    bench: NodeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_together, "TOLD_BYTES_MAX", 1)
    worker, task, results = running_pair(bench)
    bench.say(worker, TaskDone(task, 0, (ONE, TWO), MS))
    assert [message.object_id for _, message in bench.take(ObjectReady)] == list(results)


# --- who hears of them ---------------------------------------------------------------------------


@pytest.fixture
def reader(out: Outbox) -> ClientObjects:
    made = ClientObjects(out, node=b"node")
    made.expect((FIRST, SECOND))
    return made


def test_who_waits_for_all_waits_for_the_last(reader: ClientObjects) -> None:
    taken: dict[bytes, Value] = {}
    want = reader.take_all((FIRST, SECOND), taken)
    assert want is not None
    called: list[Any] = []
    want.on_done = lambda: called.append(dict(want.missing))
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    assert called == [{}]
    assert reader.take_all((FIRST, SECOND), taken) is None
    assert taken == {FIRST: ONE, SECOND: TWO}


def test_several_that_wait_each_get_what_they_wait_for(reader: ClientObjects) -> None:
    either, both = reader.want((FIRST, SECOND), 1, False), reader.want((FIRST, SECOND), None, True)
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    assert (either.done, both.done) == (True, True)
    assert not both.missing


def test_two_that_wait_for_all_both_go_on(reader: ClientObjects) -> None:
    one, other = (reader.want((FIRST, SECOND), None, True) for _ in range(2))
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    assert (one.done, other.done) == (True, True)


def test_what_nobody_refers_to_any_more_is_passed_by(reader: ClientObjects) -> None:
    reader.drop(FIRST)
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    assert list(reader.objects) == [SECOND]
    assert reader.is_ready(SECOND)


def test_a_value_that_is_here_stays_when_its_maker_ran_again(reader: ClientObjects) -> None:
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    reader.on_results((FIRST, SECOND), (BOOM, BOOM))
    assert (reader.take(FIRST), reader.take(SECOND)) == (ONE, TWO)


def test_a_wait_that_was_given_up_is_not_counted(reader: ClientObjects) -> None:
    want = reader.want((FIRST, SECOND), None, True)
    reader.end_want(want)
    reader.on_results((FIRST, SECOND), (ONE, TWO))
    assert want.needed == 2
