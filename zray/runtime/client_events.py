"""What a process hears without waiting for it: values by callback, items of streams, output of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from zray.config import Config
from zray.core.actor_caller import ActorCaller
from zray.core.actor_calls import ActorCalls
from zray.core.client_objects import ClientObjects, Want
from zray.core.machine import Address
from zray.core.streams import StreamReader, item_id
from zray.protocol.messages import EXTENT
from zray.protocol.user_messages import (
    VALUES,
    Consumed,
    ConsumedItems,
    Printed,
    ReplyItem,
    StreamItem,
    Tell,
    Told,
)
from zray.runtime.link import Handler, NodeLink
from zray.runtime.printing import show
from zray.runtime.self_report import Spans, body_of

if TYPE_CHECKING:
    from zray.runtime.taking_on import Publisher

PRINTED_MAX = 10_000
"""Messages with output that wait to be shown; the oldest go first."""


class MethodCall(NamedTuple):
    """What holds for all calls of one method through one handle."""

    name: str
    num_returns: int = 1
    returns: int = VALUES
    group: str = ""
    unconsumed_max: int = 0
    repeats: int = 0


class EventLink(NodeLink):
    """The part of a client that others call back.

    Args:
        identity: routing id of this process.
        node: routing id of the node.
        config: limits.
    """

    def __init__(self, identity: Address, node: Address, config: Config) -> None:
        super().__init__(identity, config)
        self.node = node
        self.objects = ClientObjects(self.out, node=node)
        self.calls = ActorCalls(self.out, node=node)
        self.caller = ActorCaller(self.calls, self.objects)
        self.streams = StreamReader()
        self.stream_watchers: dict[bytes, list[Callable[[], None]]] = {}  # called at each item
        self.closed_streams: deque[bytes] = deque()  # of any thread, also inside the collector
        self.namespace = ""
        self.environment = ""  # what tasks run in that ask for nothing else, as canonical JSON
        self.publisher: Publisher | None = None  # of directories in environments, once there is one
        self.spans = Spans()
        self.lines_told = 0  # how often this process told its node of output
        self.printed: deque[Printed] = deque(maxlen=PRINTED_MAX)
        self._callbacks: dict[Want, Callable[[], None]] = {}  # of those that do not wait in a thread

    def event_handlers(self) -> dict[type, Handler]:
        """The handlers of what arrives here."""
        return {
            StreamItem: self._on_stream_item,
            ReplyItem: self._on_reply_item,
            Printed: self._on_printed,
            Tell: self._on_tell,
        }

    def after_append(self) -> None:
        """For a subclass: send what is in the outbox, or let it gather. Lock held."""

    # --- values ----------------------------------------------------------------------------------

    def when_ready(self, object_id: bytes, callback: Callable[[], None]) -> Want:
        """Call ``callback``, with the lock held and in any thread, once the value can be fetched at once.

        Returns:
            what :meth:`forget_want` takes back.
        """
        with self.lock:
            want = self.objects.want((object_id,), None, True)
            if want.done:
                callback()
            else:
                want.on_done = lambda: self._ready(want)
                self._callbacks[want] = callback
                self.after_append()
        return want

    def fail(self, error: Exception) -> None:
        """The cluster is gone: who waits for a callback hears of it too."""
        super().fail(error)
        self.call_back()

    def _ready(self, want: Want) -> None:
        callback = self._callbacks.pop(want, None)
        if callback is not None:
            callback()

    def call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            callback()

    def forget_want(self, want: Want) -> None:
        """Take :meth:`when_ready` back."""
        with self.lock:
            want.on_done = None
            self._callbacks.pop(want, None)
            self.objects.end_want(want)

    # --- streams ---------------------------------------------------------------------------------

    def _on_stream_item(self, source: Address, message: StreamItem) -> None:
        object_id = item_id(message.task_id, message.index)
        self.objects.expect((object_id,))
        self._keep_item(message.task_id, message.index, object_id)

    def _on_reply_item(self, source: Address, message: ReplyItem) -> None:
        object_id = item_id(message.task_id, message.index)
        actor_id = self.calls.actor_of_call.get(message.task_id)
        if actor_id is None:  # the call has ended: what it handed over is let go with the dead actor
            if message.value.kind == EXTENT and not self.objects.refers_to(object_id):
                self.objects.released[object_id] = None
            return
        self.objects.expect_reply((object_id,))
        self.objects.on_reply(object_id, message.value, actor_id)
        self._keep_item(message.task_id, message.index, object_id)

    def _keep_item(self, task_id: bytes, index: int, object_id: bytes) -> None:
        if not self.streams.told(task_id, index):
            self.objects.drop(object_id)
        for notify in list(self.stream_watchers.get(task_id, ())):
            notify()

    def note_consumed(self, task_id: bytes, items: int, *, done: bool = False) -> None:
        """Tell who makes a stream how far its reader is. Lock held."""
        actor_id = self.calls.actor_of_call.get(task_id)
        if actor_id is None:
            self.out.append((self.node, Consumed(task_id, items, done)))
            return
        address = self.calls.address_of(actor_id)
        if address:
            self.out.append((address, ConsumedItems(task_id, items, done)))

    def note_closed_stream(self, task_id: bytes) -> None:
        """Nobody reads a stream any more; otherwise like :meth:`note_dropped`."""
        self.closed_streams.append(task_id)
        self.rouse_sleeper()

    def close_streams(self) -> None:
        """Let go of the items of streams that nobody reads any more. Lock held."""
        while self.closed_streams:
            task_id = self.closed_streams.popleft()
            self.stream_watchers.pop(task_id, None)
            for object_id in self.streams.close(task_id):
                self.objects.drop(object_id)
            self.note_consumed(task_id, 0, done=True)

    # --- inquiries -------------------------------------------------------------------------------

    def _on_tell(self, source: Address, message: Tell) -> None:
        self.out.append((self.node, Told(message.token, body_of(message.what, self.spans))))

    # --- output ----------------------------------------------------------------------------------

    def _on_printed(self, source: Address, message: Printed) -> None:
        self.printed.append(message)

    def show_output(self) -> None:
        """Print what workers of this job have printed. Not with the lock held: a terminal may be slow."""
        if self.printed:
            show(self.printed)
