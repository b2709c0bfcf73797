"""The one event loop of ``zray-node`` and ``zray-gcs``: drain, pump, act.

One turn takes whatever has arrived (bounded), feeds it to the machines in one batch, carries out the local
effects and then sends the rest, one frame per peer. Local effects come first, so that what a machine wrote
to its log is on disk before anybody is told.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.core.machine import Address, Machine, pump, take_effects
from zray.runtime.stream_links import StreamLinks
from zray.runtime.transport import Transport

if TYPE_CHECKING:
    from zray.runtime.trace import Recorder

FRAMES_PER_TURN_MAX = 256
MESSAGES_PER_TURN_MAX = 512
"""A turn that has so many takes no further frame: what a machine says leaves when the turn ends, signs of
life too, and tens of milliseconds of work are a second where many processes share few cores."""
OBJECTS_PER_COLLECTION = 50_000
"""Tables of tasks and objects live long and hold no cycles: to look through them often costs a fifth."""

Service = Callable[[list[Any]], None]


class Loop:
    """Drive machines with one transport and local services until stopped.

    Args:
        machines: the machines; a message goes to every one whose ``HANDLERS`` has its type.
        transport: the socket.
        local: links to processes of this machine, if there are any.
        services: reserved address -> function that carries out the messages sent there.
        recorder: writes down every pump, if there is one.
    """

    def __init__(
        self, machines: list[Any], transport: Transport, services: dict[Address, Service],
        recorder: Recorder | None = None, local: StreamLinks | None = None,
    ) -> None:  # fmt: skip
        self.machines: list[Machine] = machines
        self.transport = transport
        self.local = local
        self.services = services
        self.recorder = recorder
        self._posted: deque[tuple[Address, Any]] = deque()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._running = True
        self.watch_fd(self._wake_read, self._drain_wakes)
        if local is not None:
            transport.watch(local.fileno())

    def post(self, source: Address, message: Any) -> None:
        """Feed a message to the machines in the next turn. For the loop's own thread."""
        self._posted.append((source, message))

    def post_all(self, source: Address, messages: list[Any]) -> None:
        """What one machine of this process says to another."""
        self._posted.extend((source, message) for message in messages)

    def post_threadsafe(self, source: Address, message: Any) -> None:
        """The same from any thread or signal handler."""
        self._posted.append((source, message))
        self.wake()

    def post_all_threadsafe(self, source: Address, messages: list[Any]) -> None:
        """The same of several messages."""
        self._posted.extend((source, message) for message in messages)
        self.wake()

    def wake(self) -> None:
        """End the current wait; from any thread or signal handler."""
        with contextlib.suppress(OSError):  # the pipe is full of wakes already, or closed
            os.write(self._wake_write, b"\0")

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop's thread whenever ``fd`` is readable."""
        self._callbacks[fd] = callback
        self.transport.watch(fd)

    def unwatch_fd(self, fd: int) -> None:
        """Take :meth:`watch_fd` back."""
        if self._callbacks.pop(fd, None) is not None:
            self.transport.unwatch(fd)

    def stop(self) -> None:
        """End :meth:`run` after the current turn; from any thread or signal handler."""
        self._running = False
        self.wake()

    def run(self) -> None:
        """Turn until stopped."""
        gc.freeze()  # what was imported stays
        gc.set_threshold(OBJECTS_PER_COLLECTION)
        while self._running:
            self.turn()

    def close(self) -> None:
        """Let go of the descriptors of :meth:`wake`, which does nothing from now on."""
        wake_read, wake_write = self._wake_read, self._wake_write
        self._wake_read = self._wake_write = -1  # first: a signal handler may want to wake in between
        self.unwatch_fd(wake_read)
        os.close(wake_read)
        os.close(wake_write)

    def turn(self) -> None:
        """One turn: wait if there is nothing to do, then drain, pump and act."""
        batch = self._receive()
        if not batch and not self._posted:
            self._wait()  # nothing has touched the socket since it was found empty
            batch = self._receive()
        if self._posted:
            batch.extend(self._take_posted())
        now_ns = time.monotonic_ns()
        for number, machine in enumerate(self.machines):
            self._pump(number, machine, batch, now_ns)
        self._act()
        if self.recorder is not None:
            self.recorder.end_turn()

    def _receive(self) -> list[tuple[Address, Any]]:
        batch = self.transport.receive(FRAMES_PER_TURN_MAX, messages_max=MESSAGES_PER_TURN_MAX)
        if self.local is not None:
            batch += self.local.receive(MESSAGES_PER_TURN_MAX)
        return batch

    def _pump(self, number: int, machine: Machine, batch: list[tuple[Address, Any]], now_ns: int) -> None:
        if len(self.machines) > 1:
            batch = [pair for pair in batch if type(pair[1]) in machine.HANDLERS]
        wake_at_ns = None if batch else machine.wake_at_ns
        if batch or (wake_at_ns is not None and wake_at_ns <= now_ns):
            pump(machine, batch, now_ns)
            if self.recorder is not None:
                self.recorder.note_pump(number, now_ns, batch, machine.out)

    def _take_posted(self) -> list[tuple[Address, Any]]:
        posted = self._posted
        return [posted.popleft() for _ in range(len(posted))]

    def _wait(self) -> None:
        if self.recorder is not None:
            self.recorder.flush()
        timeout_ms = self._timeout_ms()
        if self.local is not None:
            timeout_ms = self.local.until_due(timeout_ms)
        for fd in self.transport.wait(timeout_ms):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()

    def _timeout_ms(self) -> int | None:
        """Until the earliest machine wants its tick; ``None``: nothing is due."""
        due = [wish for machine in self.machines if (wish := machine.wake_at_ns) is not None]
        if not due:
            return None
        return max(0, -(-(min(due) - time.monotonic_ns()) // 1_000_000))

    def _act(self) -> None:
        outgoing: dict[Address, list[Any]] = {}
        for machine in self.machines:
            take_effects(machine.out, outgoing)
        for address, service in self.services.items():
            if address in outgoing:
                service(outgoing.pop(address))
        local = self.local
        for address, messages in outgoing.items():
            if local is not None and address in local.links:
                local.send(address, messages)
            else:
                self.transport.send(address, messages)
