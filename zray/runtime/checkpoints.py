"""The state of the actor of a process: ``__zray_save__`` and ``__zray_load__``, called when ``core`` says so.

When it is saved, and which calls are repeated, is decided in ``core/own_checkpoints.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zray.core.own_checkpoints import OwnCheckpoints
from zray.protocol.messages import Call, Describe, Value
from zray.protocol.user_messages import FindCheckpoint, RepeatCall
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
        self.machine = OwnCheckpoints(client.machine, descriptor)

    # --- while it lives --------------------------------------------------------------------------

    def note(self, call: Call, values: tuple[Value, ...]) -> None:
        """A call has run; returns when the node knows it, and the checkpoint that was due after it.

        Raises:
            Exception: what ``__zray_save__`` raised, or the store when it could not keep the state.
        """
        client = self.client
        with client.lock:
            is_due = self.machine.note(call, values)
        if not is_due:
            client.confirm_acquired()
            return
        object_id = client.put(dump(getattr(self.actor, SAVE)(), f"the checkpoint of {self.name}"))
        with client.lock:
            self.machine.save(object_id)
        client.confirm_acquired()
        client.note_dropped(object_id)
        self.machine.saved()

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
        client = self.client
        machine = self.machine  # and not self, which holds the actor
        client.handlers[RepeatCall] = lambda _now_ns, _source, message: machine.on_repeat(message)
        object_id = client.ask(FindCheckpoint, None).object_id
        if object_id:
            try:
                state = load(fetch((object_id,))[object_id], f"the checkpoint of {self.name}")
            finally:
                client.note_dropped(object_id)
            getattr(self.actor, LOAD)(state)
        for call in self.machine.calls_to_repeat():
            repeat(call)
