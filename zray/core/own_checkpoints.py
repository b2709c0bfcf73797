"""In the process of an actor that can be saved: what its node is told of each call, and when it is saved.

After a call and before its reply the node is told of it, and after every ``checkpoint_interval`` calls the
state of the actor becomes an object that the node keeps. An actor that is made again gets that state and
repeats the calls since then in the order in which they ran; a caller whose reply was lost gets the recorded
one. So an answered call has its effect on the state exactly once (paper, section 4.2.3).
"""

from __future__ import annotations

from zray.core.client import ClientMachine
from zray.protocol.messages import Call, Describe, Value
from zray.protocol.user_messages import STREAM, RecordCall, RepeatCall, SaveCheckpoint


class OwnCheckpoints:
    """Those of one actor that runs its calls one after the other. Pure.

    Args:
        client: the client's machine of its process.
        descriptor: of its creation task.
    """

    def __init__(self, client: ClientMachine, descriptor: Describe) -> None:
        self.client = client
        self.interval = descriptor.checkpoint_interval
        self.records = descriptor.records_calls
        self._since = 0  # calls since the last checkpoint
        self._is_wanted = False
        self._answers: dict[bytes, tuple[Value, ...]] = {}  # of calls that a former process ran
        self._told: list[RepeatCall] = []

    def want(self) -> None:
        """Save after the present call, whatever the interval."""
        self._is_wanted = True

    def note(self, call: Call, values: tuple[Value, ...]) -> bool:
        """Tell the node of a call that has run; returns whether the actor is to be saved now.

        A stream is recorded without its values: the items that its reader did not get are made again.
        """
        if self.records:
            answer = () if call.returns == STREAM else values
            self.client.out.append((self.client.node, RecordCall(call, answer)))
        self._since += 1
        return self._is_wanted or 0 < self.interval <= self._since

    def save(self, object_id: bytes) -> None:
        """The state was put as this object, which the node keeps from now on."""
        self.client.share((object_id,))
        self.client.out.append((self.client.node, SaveCheckpoint(object_id)))

    def saved(self) -> None:
        """The node has it."""
        self._since, self._is_wanted = 0, False

    def on_repeat(self, message: RepeatCall) -> None:
        """A former process of the actor ran this call."""
        self._told.append(message)

    def calls_to_repeat(self) -> list[Call]:
        """All is told: what is to run again for its effect on the restored state alone, in order."""
        told, self._told = self._told, []
        for message in told:
            if message.values:
                self._answers[message.call.task_id] = message.values
        calls = [message.call for message in told if not message.covered]
        self._since += len(calls)
        return calls

    def take_answer(self, call: Call) -> tuple[Value, ...] | None:
        """The values of a call that ran before this process was made, and whose reply alone was lost."""
        return self._answers.pop(call.task_id, None)
