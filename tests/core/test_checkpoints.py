"""What a bare node keeps of an actor that can be saved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.test_local_scheduler import DRIVER_ADDRESS
from tests.core.test_node import NodeBench
from tests.core.test_user_requests import made, next_worker
from zray import ids
from zray.core import checkpoints
from zray.protocol.messages import INLINE, Acquire, Call, KillActor, Publish, Release, Value, Warn
from zray.protocol.user_messages import (
    CheckpointFound,
    FindCheckpoint,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
)

STATE = Value(INLINE, b"state")


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    yield made
    made.all()


def call(number: int, *deps: bytes) -> Call:
    return Call(b"c%015d" % number, b"", number, "add", 1, b"%d" % number, deps)


def record(number: int, *deps: bytes) -> RecordCall:
    return RecordCall(call(number, *deps), (Value(INLINE, b"r%d" % number),))


def put(bench: NodeBench, source: bytes, number: int) -> bytes:
    object_id = ids.put_id(b"p" * 8, number)
    bench.say(source, Publish(object_id, STATE))
    return object_id


def found(bench: NodeBench, worker: bytes) -> tuple[list[tuple[bytes, bool]], bytes]:
    """What a worker is told: calls, whether each is covered, and the checkpoint."""
    bench.all()
    bench.say(worker, FindCheckpoint(7))
    repeats = [(message.call.args, message.covered) for _, message in bench.take(RepeatCall)]
    ((_, answer),) = bench.take(CheckpointFound)
    return repeats, answer.object_id


def again(bench: NodeBench, worker: bytes) -> bytes:
    bench.exit(worker)
    second = next_worker(bench)
    bench.all()
    return second


def test_the_checkpoint_replaces_what_was_recorded_before(bench: NodeBench) -> None:
    worker, actor_id = made(bench, max_restarts=-1)
    bench.say(worker, record(1))
    state = put(bench, worker, 1)
    bench.say(worker, SaveCheckpoint(state), Release((state,)), record(2))
    second = again(bench, worker)
    assert found(bench, second) == ([(b"", True), (b"2", False)], state)
    bench.done(second, actor_id, 1)
    bench.all()
    later = put(bench, second, 2)
    bench.say(second, SaveCheckpoint(later), Release((later,)))
    assert state not in bench.node.store.objects
    third = again(bench, second)
    assert found(bench, third) == ([(b"", True), (b"", True)], later)


def test_inputs_are_kept_until_they_are_covered(bench: NodeBench) -> None:
    worker, _ = made(bench, max_restarts=-1)
    given = put(bench, DRIVER_ADDRESS, 1)
    bench.say(worker, record(1, given))
    bench.say(DRIVER_ADDRESS, Release((given,)))
    assert given in bench.node.store.objects
    state = put(bench, worker, 2)
    bench.say(worker, SaveCheckpoint(state))
    assert given not in bench.node.store.objects


def test_the_end_of_the_actor_frees_everything(bench: NodeBench) -> None:
    worker, actor_id = made(bench, max_restarts=-1)
    given, state = put(bench, DRIVER_ADDRESS, 1), put(bench, worker, 2)
    bench.say(worker, SaveCheckpoint(state), Release((state,)), record(1, given))
    bench.say(DRIVER_ADDRESS, Release((given,)), KillActor(actor_id))
    assert given not in bench.node.store.objects
    assert state not in bench.node.store.objects
    assert not bench.node.scheduler.lives.checkpoints.pasts


def test_one_that_is_not_made_again_keeps_nothing(bench: NodeBench) -> None:
    worker, _ = made(bench, max_restarts=0)
    state = put(bench, worker, 1)
    bench.say(worker, SaveCheckpoint(state), record(1), Release((state,)))
    assert not bench.node.scheduler.lives.checkpoints.pasts
    assert state not in bench.node.store.objects


def test_the_dead_and_strangers_save_nothing(bench: NodeBench) -> None:
    worker, _ = made(bench, max_restarts=-1)
    bench.say(DRIVER_ADDRESS, SaveCheckpoint(b"x" * 16), record(1), FindCheckpoint(1), Acquire((), 0))
    bench.say(worker, SaveCheckpoint(b"x" * 16))
    assert found(bench, worker) == ([], b"")


def test_too_much_between_two_checkpoints(bench: NodeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CALLS_MAX", 2)
    worker, actor_id = made(bench, max_restarts=-1)
    bench.say(worker, record(1), record(2), record(3))
    ((_, warning),) = bench.take(Warn)
    assert "not made again" in warning.text
    assert bench.node.actors.entries[actor_id].creation is None
    assert found(bench, worker) == ([], b"")
