"""Which GPUs this worker's code sees: those that its node gave to the task, by ``CUDA_VISIBLE_DEVICES``.

CUDA looks at that variable once per process, which is why a task with GPUs gets a process of its own unless
it says otherwise (``max_calls``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"

_names: list[str] = []  # of the node's GPUs, by number; empty: they are called by their number
_seen: list[str] = []


def hide() -> None:
    """At the start of a worker of a node with GPUs: it sees none until it is given some."""
    _names[:] = names_in(os.environ.get(VARIABLE))
    os.environ[VARIABLE] = ""


def names_in(text: str | None) -> list[str]:
    """What a value of the variable names: indices, or UUIDs."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


def see(numbers: Sequence[int]) -> None:
    """The node gave these GPUs to what this process runs next."""
    _seen[:] = [_names[number] if number < len(_names) else str(number) for number in numbers]
    os.environ[VARIABLE] = ",".join(_seen)


def seen() -> list[str]:
    """The names of the GPUs that this process may use."""
    return list(_seen)
