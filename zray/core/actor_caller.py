"""The calls that one process makes to actors, and what they keep alive until they end.

A call needs its arguments, and its actor: a handle is held while any call to that actor has no reply, so
that an actor never ends under a call. What a call returns is the caller's from the moment it is made.
``ActorCalls`` knows where calls wait and in which order they go; this machine ties them to the objects of
the process.
"""

from __future__ import annotations

from collections.abc import Sequence

from zray.core.actor_calls import ActorCalls
from zray.core.cancellation import cancelled_value
from zray.core.client_objects import ClientObjects
from zray.core.machine import invariant
from zray.ids import first_return_id, return_ids, short
from zray.protocol.messages import ActorState, Call, Reply, Value


class ActorCaller:
    """The caller's side of every actor call of one process. Pure.

    Args:
        calls: where they are.
        objects: what they need and return.
    """

    def __init__(self, calls: ActorCalls, objects: ClientObjects) -> None:
        self.calls = calls
        self.objects = objects
        self._arguments: dict[bytes, tuple[bytes, ...]] = {}  # of calls that carry refs

    def call(
        self, call: Call, returns: Sequence[bytes], arguments: tuple[bytes, ...] = (), repeats: int = 0
    ) -> None:
        """Make a call; it may end at once.

        Args:
            call: the call; its actor's handle and the refs that it carries are shared by now.
            returns: the ids of its return objects.
            arguments: the ids of the refs that it carries.
            repeats: how often it may run again if its actor dies and is made again; -1: without end.
        """
        objects = self.objects
        if call.task_id in self.calls.actor_of_call:
            objects.hold_all(returns)  # for its new handles; what the call needs is counted
            self.calls.make_again(call)
            return
        if not self.calls.is_pending(call.actor_id):
            objects.hold(first_return_id(call.actor_id))
        if arguments:
            objects.hold_all(arguments)
            self._arguments[call.task_id] = arguments
        objects.expect_reply(returns)
        fault = self.calls.call(call, repeats)
        if fault is not None:
            self._end(call, (fault,) * call.num_returns)
            self._let_go_of(call.actor_id)

    def on_reply(self, message: Reply) -> None:
        """An actor answers."""
        call = self.calls.on_reply(message)
        if call is not None:
            self._end(call, message.values)
            self._let_go_of(call.actor_id)

    def on_state(self, message: ActorState) -> None:
        """The node says where an actor is, or that calls have ended with it."""
        ended = self.calls.on_state(message)
        for call, cause in ended:
            self._end(call, (cause,) * call.num_returns)
        if ended:
            self._let_go_of(message.actor_id)

    def cancel(self, task_id: bytes, recursive: bool) -> None:
        """Take a call back: it ends now if it was not sent; otherwise the actor decides."""
        call = self.calls.cancel(task_id, recursive)
        if call is not None:
            self._end(call, (cancelled_value(task_id),) * call.num_returns)
            self._let_go_of(call.actor_id)

    def _end(self, call: Call, values: Sequence[Value]) -> None:
        objects = self.objects
        task_id = call.task_id
        if call.num_returns == 1:
            (value,) = values
            objects.on_reply(first_return_id(task_id), value, call.actor_id)
        else:
            for object_id, value in zip(return_ids(task_id, call.num_returns), values, strict=True):
                objects.on_reply(object_id, value, call.actor_id)
        if self._arguments and task_id in self._arguments:
            for object_id in self._arguments.pop(call.task_id):
                objects.drop(object_id)

    def _let_go_of(self, actor_id: bytes) -> None:
        """After calls have ended: the last one lets go of the handle."""
        if not self.calls.is_pending(actor_id):
            self.objects.drop(first_return_id(actor_id))

    def check(self) -> None:
        """What unanswered calls need is here."""
        self.calls.check()
        known = self.objects.objects
        for task_id, actor_id in self.calls.actor_of_call.items():
            needs = (first_return_id(actor_id), *self._arguments.get(task_id, ()))
            lost = [short(object_id) for object_id in needs if object_id not in known]
            invariant(not lost, "call", short(task_id), "lacks", lost)
        ended = [short(task_id) for task_id in self._arguments if task_id not in self.calls.actor_of_call]
        invariant(not ended, "arguments of calls that have ended", ended)
