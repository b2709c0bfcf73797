"""Checkpoints of the actor of a process: when it is saved, and how it becomes again what it was.

After a call and before its reply the node is told of it, and after every ``checkpoint_interval`` calls what
``__zray_save__`` returns becomes an object that the node keeps. An actor that is made again gets that state
(``__zray_load__``) and repeats the calls since then in the order in which they ran; a caller whose reply was
lost gets the recorded one. So an answered call has its effect on the state exactly once (paper, 4.2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zray.protocol.messages import Call, Describe, Value
from zray.protocol.user_messages import STREAM, FindCheckpoint, RecordCall, RepeatCall, SaveCheckpoint
from zray.runtime.actor_class import LOAD, SAVE
from zray.runtime.client import Client
from zray.serialize.values import dump, load


class Checkpoints:
    """Those of one actor that runs its calls one after the other.

    Args:
        client: the worker's link.
        actor: the instance.
        descriptor: of its creation task.
    """

    def __init__(self, client: Client, actor: Any, descriptor: Describe) -> None:
        self.client = client
        self.actor = actor
        self.name = descriptor.name
        self.interval = descriptor.checkpoint_interval
        self.records = descriptor.records_calls
        self.since = 0  # calls since the last checkpoint
        self.wanted = False
        self.answers: dict[bytes, tuple[Value, ...]] = {}  # of calls that a former process ran

    def want(self) -> None:
        """Save after the present call, whatever the interval."""
        self.wanted = True

    # --- while it lives --------------------------------------------------------------------------

    def note(self, call: Call, values: tuple[Value, ...]) -> None:
        """A call has run; returns when the node knows it, and the checkpoint that was due after it.

        A stream is recorded without its values: the items that its reader did not get are made again.

        Raises:
            Exception: what ``__zray_save__`` raised, or the store when it could not keep the state.
        """
        client = self.client
        if self.records:
            with client.lock:
                answer = () if call.returns == STREAM else values
                client.out.append((client.node, RecordCall(call, answer)))
        self.since += 1
        if self.wanted or (self.interval and self.since >= self.interval):
            self._save()
        else:
            client.confirm_acquired()

    def _save(self) -> None:
        state = dump(getattr(self.actor, SAVE)(), f"the checkpoint of {self.name}")
        client = self.client
        client.hand_to_node(client.put(state), SaveCheckpoint)
        self.since, self.wanted = 0, False

    # --- when it is made again -------------------------------------------------------------------

    def restore(
        self,
        fetch: Callable[[Sequence[bytes]], dict[bytes, bytes | memoryview]],
        repeat: Callable[[Call], None],
    ) -> None:
        """Become what the actor was when its former process died, as far as anybody was told.

        Args:
            fetch: the bytes of objects, each of which is to be dropped once.
            repeat: runs a call for its effect alone.
        Raises:
            Exception: what ``__zray_load__`` raised; the actor is dead then.
        """
        client, calls = self.client, list[RepeatCall]()
        client.handlers[RepeatCall] = lambda _now_ns, _source, message: calls.append(message)
        object_id = client.ask(FindCheckpoint, None).object_id
        if object_id:
            try:
                state = load(fetch((object_id,))[object_id], f"the checkpoint of {self.name}")
            finally:
                client.note_dropped(object_id)
            getattr(self.actor, LOAD)(state)
        for message in calls:
            if not message.covered:
                repeat(message.call)
                self.since += 1
            if message.values:
                self.answers[message.call.task_id] = message.values
