"""Small helpers of tests with real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")
POLL_INTERVAL_S = 0.005


def eventually(predicate: Callable[[], Answer], timeout_s: float = 5.0, what: str = "") -> Answer:
    """Call ``predicate`` until its answer is true, and return that answer.

    For what no descriptor announces; anything else should be waited for where it happens.

    Raises:
        AssertionError: if it is still false after ``timeout_s``, with its last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            name = what or getattr(predicate, "__qualname__", repr(predicate))
            raise AssertionError(f"{name} is still {answer!r} after {timeout_s} s")
        time.sleep(POLL_INTERVAL_S)
    return answer
