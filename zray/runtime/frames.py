"""What every kind of link has in common: batches become frames of bounded size, and may be sent late."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from zray.config import Config
from zray.core.machine import Address
from zray.protocol.codec import BATCH_MESSAGES_MAX, encode_batch

log = logging.getLogger("zray.transport")


class FrameSender(ABC):
    """Send batches as frames, in order, without ever blocking.

    Args:
        config: limits, and by how much every frame is delayed (experiments: injected latency).
    """

    def __init__(self, config: Config) -> None:
        self.frame_bytes_max = config.frame_bytes_max
        self.unreachable: dict[Address, int] = {}  # frames dropped per peer that has no route
        self.refused = 0  # frames that did not decode
        self._send_delay_ns = config.send_delay_ns
        self._delayed: deque[tuple[int, Address, bytes]] = deque()  # (when it leaves, to whom, frame)

    @abstractmethod
    def pass_on(self, address: Address, frame: bytes) -> None:
        """Send one frame now, or once the peer takes it."""

    def send(self, address: Address, messages: list[Any]) -> None:
        """Queue messages to a peer, in order, as few frames."""
        if len(messages) <= BATCH_MESSAGES_MAX:
            self._send_part(address, messages)
            return
        for start in range(0, len(messages), BATCH_MESSAGES_MAX):
            self._send_part(address, messages[start : start + BATCH_MESSAGES_MAX])

    def _send_part(self, address: Address, messages: list[Any]) -> None:
        """One frame, or several if the peer would refuse it for its size."""
        frame = encode_batch(messages)
        if len(frame) <= self.frame_bytes_max:
            self._send_frame(address, frame)
        elif len(messages) > 1:
            middle = len(messages) // 2
            self._send_part(address, messages[:middle])
            self._send_part(address, messages[middle:])
        else:
            kind = type(messages[0]).__name__
            log.error("a %s of %d bytes is too large for any frame and is dropped", kind, len(frame))

    def _send_frame(self, address: Address, frame: bytes) -> None:
        if self._send_delay_ns:
            self._delayed.append((time.monotonic_ns() + self._send_delay_ns, address, frame))
        else:
            self.pass_on(address, frame)

    def send_due(self) -> None:
        """Send what was delayed for long enough."""
        if self._delayed:
            self._send_delayed(time.monotonic_ns())

    def send_all_delayed(self) -> None:
        """Before the end: send what was delayed, however long."""
        if self._delayed:
            self._send_delayed(self._delayed[-1][0])

    def _send_delayed(self, until_ns: int) -> None:
        while self._delayed and self._delayed[0][0] <= until_ns:
            _, address, frame = self._delayed.popleft()
            self.pass_on(address, frame)

    def until_due(self, timeout_ms: int | None) -> int | None:
        """How long a wait may take so that delayed frames leave in time.

        Rounded down: the last millisecond is spent looking.
        """
        if not self._delayed:
            return timeout_ms
        due_ms = max(0, (self._delayed[0][0] - time.monotonic_ns()) // 1_000_000)
        return due_ms if timeout_ms is None else min(timeout_ms, due_ms)

    def note_unreachable(self, address: Address, frame: bytes | memoryview) -> None:
        """There is no way to this peer (any more): the frame is lost, and counted."""
        self.unreachable[address] = self.unreachable.get(address, 0) + 1
        log.debug("no route to %s; a frame of %d bytes is dropped", address.hex(), len(frame))
