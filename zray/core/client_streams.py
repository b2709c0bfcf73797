"""The streams that a driver or worker reads: what is held of them, and what their makers are told.

An item that the process is told of is held until its reader takes it. Who makes the stream hears how far the
reader is if the stream is bounded, and in any case when nobody reads it any more.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.core.actor_calls import ActorCalls
from zray.core.client_objects import ClientObjects
from zray.core.machine import Address, Effect
from zray.core.streams import StreamReader, item_id
from zray.protocol.messages import EXTENT
from zray.protocol.user_messages import Consumed, ReplyItem, StreamItem


class ClientStreams(StreamReader):
    """Those of one process. Pure; shares its outbox.

    Args:
        out: the process's outbox.
        node: the address of its node.
        objects: what the process refers to.
        calls: the actor calls that it made.
    """

    def __init__(
        self, out: list[Effect], *, node: Address, objects: ClientObjects, calls: ActorCalls
    ) -> None:
        super().__init__()
        self.out = out
        self.node = node
        self.objects = objects
        self.calls = calls
        self.watchers: dict[bytes, list[Callable[[], None]]] = {}  # called at each item

    def begin(self, task_id: bytes, end: bytes) -> None:
        """A generator of this stream is handed out; ``end`` is the object that ends it."""
        for object_id in self.open(task_id, anew=not self.objects.is_ready(end)):
            self.objects.drop(object_id)

    def on_item(self, message: StreamItem) -> None:
        """The node has an item of a task's stream."""
        object_id = item_id(message.task_id, message.index)
        self.objects.expect((object_id,))
        self._keep(message.task_id, message.index, object_id)

    def on_reply_item(self, message: ReplyItem) -> None:
        """An actor sends an item of a call's stream."""
        object_id = item_id(message.task_id, message.index)
        actor_id = self.calls.actor_of_call.get(message.task_id)
        if actor_id is None:  # the call has ended: what it handed over is let go with the dead actor
            if message.value.kind == EXTENT and not self.objects.refers_to(object_id):
                self.objects.released[object_id] = None
            return
        self.objects.expect_reply((object_id,))
        self.objects.on_reply(object_id, message.value, actor_id)
        if message.task_id in self.calls.again:  # of a run whose reader is gone
            self.objects.drop(object_id)
            return
        self._keep(message.task_id, message.index, object_id)

    def _keep(self, task_id: bytes, index: int, object_id: bytes) -> None:
        if not self.told(task_id, index):
            self.objects.drop(object_id)
        for notify in list(self.watchers.get(task_id, ())):
            notify()

    def note_consumed(self, task_id: bytes, items: int, *, done: bool = False) -> None:
        """Tell who makes a stream how far its reader is."""
        if task_id in self.calls.actor_of_call:
            self.calls.note_consumed(task_id, items, done)
        else:
            self.out.append((self.node, Consumed(task_id, items, done)))

    def let_go(self, task_id: bytes) -> None:
        """Nobody reads a stream any more: its items go, and its maker hears of it."""
        for object_id in self.close(task_id):
            self.objects.drop(object_id)
        if task_id in self.streams:
            return  # by another generator: the task that submitted it ran again here
        self.watchers.pop(task_id, None)
        self.note_consumed(task_id, 0, done=True)
