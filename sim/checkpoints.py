"""Checkpoints of a simulated actor: what ``zray.runtime.checkpoints`` does, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.making import Making
from sim.programs import ProgramError, pack, unpack
from zray.core.own_checkpoints import OwnCheckpoints
from zray.protocol.messages import Call, Describe, Value
from zray.protocol.user_messages import CheckpointFound, FindCheckpoint

if TYPE_CHECKING:
    from sim.strands import Steps
    from sim.worker import SimWorker


class SimCheckpoints:
    """Those of one actor, whose class has ``save() -> state`` and ``load(state)``."""

    def __init__(self, worker: SimWorker, kind: Describe) -> None:
        self.worker = worker
        self.machine = OwnCheckpoints(worker.machine, kind)

    def note(self, call: Call, values: tuple[Value, ...]) -> Steps:
        """A call has run; go on when the node knows it, and the checkpoint that was due after it."""
        worker = self.worker
        if not self.machine.note(call, values):
            yield from worker.confirm_acquired()
            return
        object_id = yield from worker._put(pack((yield from self._driven(worker.actor.save()))))
        self.machine.save(object_id)
        yield from worker.confirm_acquired()
        worker.objects.drop(object_id)
        self.machine.saved()

    def restore(self) -> Steps:
        """Become what the actor was when its former process died."""
        worker = self.worker
        found: CheckpointFound = yield from worker.answer_to(worker.machine.ask(FindCheckpoint))
        if found.object_id:
            inputs = yield from worker._fetch_inputs([found.object_id])
            yield from self._driven(worker.actor.load(unpack(inputs[found.object_id])[0]))
        for call in self.machine.calls_to_repeat():
            yield from self._repeat(call)

    def _driven(self, result: Any) -> Steps:
        return (yield from self.worker.drive(result)) if hasattr(result, "send") else result

    def _repeat(self, call: Call) -> Steps:
        worker = self.worker
        assert worker.hosted is not None
        worker.set_context(worker.hosted.context_of(call))
        worker.making[call.task_id] = Making(
            call.num_returns, call.returns, 0, lambda _index, _value: None, is_wanted=False
        )
        try:
            args = yield from worker.arguments_of(call)
            result: Any = worker.method(call.method)(*args)
            if hasattr(result, "send"):
                yield from worker.drive(result)
        except ProgramError:
            pass
        del worker.making[call.task_id]
        worker._keep_state()
