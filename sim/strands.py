"""What one process does at once: a generator of steps for each thread that a real one would have."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from zray.core.task_context import TaskContext

Wish = int | Callable[[], bool]
"""How long it computes, in nanoseconds, or what it waits for."""
Steps = Generator[Wish, None, Any]


class Strand:
    """One of them.

    Args:
        steps: everything that it does.
        context: the task or call that it runs.

    What a process knows of the strand that goes on is in the process itself; of the others it is here.
    """

    __slots__ = ("context", "debt_ns", "handles", "steps", "waiting")

    def __init__(self, steps: Steps, context: TaskContext) -> None:
        self.steps = steps
        self.waiting: Callable[[], bool] | None = None
        self.context = context
        self.handles: dict[bytes, int] = {}
        self.debt_ns = 0
