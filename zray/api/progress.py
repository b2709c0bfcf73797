"""How far a wait is: for a person who looks at a terminal, or for a function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

STEPS = 200
"""A wait for many refs looks up so often that it tells at most about so many times."""
PAUSE_S = 1.0
"""Between two lines where there is no terminal whose line could be written anew."""

Tell = Callable[[int, int], None]
"""``(ready, wanted)``"""
Look = Callable[[int, float | None], list[bool]]
"""``(needed, timeout_s) -> which are ready``: as ``Client.wait_ready``."""


def wait_telling(look: Look, wanted: int, timeout_s: float | None, tell: Tell) -> list[bool]:
    """Wait for ``wanted``, and tell whenever there is something new to tell; which are ready."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    step = max(1, wanted // STEPS)
    ready = 0
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        here = look(min(wanted, ready + step), left_s)
        ready = sum(here)
        tell(min(ready, wanted), wanted)
        if ready >= wanted or left_s == 0.0:
            return here


class ProgressLine:
    """Says on standard error how many are ready: one line, written anew on a terminal."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.said_at = -PAUSE_S
        self.is_terminal = sys.stderr.isatty()

    def tell(self, ready: int, wanted: int) -> None:
        """Say it, unless that was just done or it is the same."""
        now = time.monotonic() - self.started
        is_last = ready == wanted
        if not (self.is_terminal or is_last or now - self.said_at >= PAUSE_S):
            return
        self.said_at = now
        start, end = ("\r", "\n" if is_last else "") if self.is_terminal else ("", "\n")
        print(f"{start}{ready} of {wanted} ready after {now:.1f} s", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The wait is over, perhaps too early: what comes next begins a line of its own."""
        if self.is_terminal:
            print(file=sys.stderr, flush=True)
