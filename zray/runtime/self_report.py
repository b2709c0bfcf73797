"""What a process says of itself when its node asks: what ran here and when, its metrics, its stacks."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any

from zray.runtime import measures

SPANS_MAX = 10_000
"""Of one process; the oldest are forgotten first."""


class Spans:
    """What ran in this process, and when. Any thread may note."""

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        self._ring: deque[tuple[str, bytes, int, int]] = deque(maxlen=SPANS_MAX)

    def __len__(self) -> int:
        return len(self._ring)

    def note(self, name: str, task_id: bytes, started_ns: int, ended_ns: int) -> None:
        """A task or call has run between these moments of the monotonic clock."""
        self._ring.append((name, task_id, started_ns, ended_ns))

    def rows(self) -> list[tuple[str, str, int, int]]:
        """``(name, task id in hex, start, duration)``, times in nanoseconds, since 1970 and long."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        return [
            (name, task_id.hex(), epoch_ns + started_ns, ended_ns - started_ns)
            for name, task_id, started_ns, ended_ns in self._ring.copy()
        ]


def body_of(what: str, spans: Spans) -> bytes:
    """The answer to ``Tell``: one topic, or all that outlives the process if none is named."""
    found: dict[str, Any] = {}
    if what in ("", "spans"):
        found["spans"] = spans.rows()
    if what in ("", "metrics"):
        found["metrics"] = measures.snapshot()
    if what == "stacks":
        found["stacks"] = stacks()
    return json.dumps(found, separators=(",", ":")).encode()


def stacks() -> list[dict[str, str]]:
    """The stack of every thread but the one that asks, the innermost frame last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return [
        {"thread": names.get(ident, str(ident)), "stack": "".join(traceback.format_stack(frame))}
        for ident, frame in sys._current_frames().items()
        if ident != own or threading.current_thread() is threading.main_thread()
    ]
