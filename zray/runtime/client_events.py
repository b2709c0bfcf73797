"""What a process hears without waiting for it: values by callback, ends of streams, output of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from zray.config import Config
from zray.core.client import ClientMachine
from zray.core.client_objects import Want
from zray.core.machine import Address
from zray.protocol.user_messages import Printed, Tell, Told
from zray.runtime.link import NodeLink
from zray.runtime.printing import is_showing, show
from zray.runtime.self_report import Spans, body_of

if TYPE_CHECKING:
    from zray.runtime.taking_on import Publisher

PRINTED_MAX = 10_000
"""Messages with output that wait to be shown; the oldest go first."""


class EventLink(NodeLink):
    """The part of a client that others call back.

    Args:
        identity: routing id of this process.
        node: routing id of the node.
        config: limits.
    """

    def __init__(self, identity: Address, node: Address, config: Config) -> None:
        super().__init__(identity, ClientMachine(node=node, config=config), config)
        self.node = node
        self.objects, self.calls, self.streams = (
            self.machine.objects,
            self.machine.calls,
            self.machine.streams,
        )
        self.closed_streams: deque[bytes] = deque()  # of any thread, also inside the collector
        self.namespace = ""
        self.environment = ""  # what tasks run in that ask for nothing else, as canonical JSON
        self.publisher: Publisher | None = None  # of directories in environments, once there is one
        self.spans = Spans()
        self.lines_told = 0  # how often this process told its node of output
        self.printed: deque[Printed] = deque(maxlen=PRINTED_MAX)
        self._callbacks: dict[Want, Callable[[], None]] = {}  # of those that do not wait in a thread
        self.handlers[Printed] = self._on_printed
        self.handlers[Tell] = self._on_tell

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

    def note_consumed(self, task_id: bytes, items: int) -> None:
        """Tell who makes a stream how far its reader is. Lock held."""
        self.streams.note_consumed(task_id, items)

    def note_closed_stream(self, task_id: bytes) -> None:
        """Nobody reads a stream any more; otherwise like :meth:`note_dropped`."""
        self.closed_streams.append(task_id)
        self.rouse_sleeper()

    # --- inquiries -------------------------------------------------------------------------------

    def _on_tell(self, now_ns: int, source: Address, message: Tell) -> None:
        self.out.append((self.node, Told(message.token, body_of(message.what, self.spans))))

    # --- output ----------------------------------------------------------------------------------

    def _on_printed(self, now_ns: int, source: Address, message: Printed) -> None:
        self.printed.append(message)

    def show_output(self) -> None:
        """Print what workers of this job have printed. Not with the lock held: a terminal may be slow."""
        if self.printed or is_showing():
            show(self.printed)
