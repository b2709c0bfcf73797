"""Checkpoints of a simulated actor: what ``zray.runtime.checkpoints`` does, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.programs import ProgramError, pack, unpack, unpack_args
from zray.protocol.messages import Call, Describe, Value
from zray.protocol.user_messages import (
    CheckpointFound,
    FindCheckpoint,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
)

if TYPE_CHECKING:
    from sim.process import Steps
    from sim.worker import SimWorker


class SimCheckpoints:
    """Those of one actor, whose class has ``save() -> state`` and ``load(state)``."""

    def __init__(self, worker: SimWorker, kind: Describe) -> None:
        self.worker = worker
        self.interval = kind.checkpoint_interval
        self.since = 0
        self.answers: dict[bytes, tuple[Value, ...]] = {}  # of calls that a former process ran
        self.told: list[RepeatCall] = []

    def note(self, call: Call, values: tuple[Value, ...]) -> Steps:
        """A call has run; go on when the node knows it, and the checkpoint that was due after it."""
        worker = self.worker
        worker.out.append((worker.node, RecordCall(call, values)))
        self.since += 1
        if self.interval and self.since >= self.interval:
            self.since = 0
            object_id = yield from worker._put(pack(worker.actor.save()))
            worker.machine.share((object_id,))
            worker.out.append((worker.node, SaveCheckpoint(object_id)))
            yield from worker.confirm_acquired()
            worker.objects.drop(object_id)
        else:
            yield from worker.confirm_acquired()

    def restore(self) -> Steps:
        """Become what the actor was when its former process died."""
        worker = self.worker
        found: CheckpointFound = yield from worker.answer_to(worker.machine.ask(FindCheckpoint))
        if found.object_id:
            inputs = yield from worker._fetch_inputs([found.object_id])
            worker.actor.load(unpack(inputs[found.object_id])[0])
        for message in self.told:
            if not message.covered:
                yield from self._repeat(message.call)
                self.since += 1
            if message.values:
                self.answers[message.call.task_id] = message.values

    def _repeat(self, call: Call) -> Steps:
        worker = self.worker
        worker.set_context(call.task_id)
        try:
            inputs = (yield from worker._fetch_inputs(list(call.deps))).values() if call.deps else ()
            args, refs = unpack_args(call.args, list(inputs))
            worker.take_up(refs)
            result: Any = getattr(worker.actor, call.method)(*args)
            if hasattr(result, "send"):
                yield from worker.drive(result)
        except ProgramError:
            pass
        worker._keep_state()
