"""What runs here, of several things at once.

A driver and a plain worker run one thing at a time. An actor with threads or coroutines runs several, so each
thread and each coroutine carries its own.
"""

from __future__ import annotations

from contextvars import ContextVar

from zray.core.task_context import TaskContext

here: ContextVar[TaskContext | None] = ContextVar("zray_task", default=None)
"""Of a thread or coroutine among several; ``None`` where the process runs one thing at a time."""
