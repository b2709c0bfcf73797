"""What the tasks and actors of the benchmarks do: as little as possible.

An importable module, so that every system pickles these by reference and none pays for shipping code.
"""

from __future__ import annotations

import os
import time
from typing import Any


def noop(_: object = None) -> None:
    """The empty task; the ignored argument lets it be mapped over a range."""


def increment(number: int) -> int:
    """One link of the chain."""
    return number + 1


def add(left: int, right: int) -> int:
    """One inner node of the tree."""
    return left + right


def count_arguments(*values: object) -> int:
    """Takes any number of references; returns how many values arrived."""
    return len(values)


def count_to(count: int) -> list[int]:
    """As many return values as asked for."""
    return list(range(count))


def length(array: Any) -> int:
    """Takes a large argument and looks at both ends of it."""
    return len(array) + int(array[0]) + int(array[-1])


def zeros(size_bytes: int) -> Any:
    """Returns a large array."""
    import numpy as np

    return np.zeros(size_bytes, dtype=np.uint8)


def pause(seconds: float) -> None:
    """Occupies a worker, so that the next task needs another one."""
    time.sleep(seconds)


def occupy_once(path: str, seconds: float) -> float:
    """Writes its process id into ``path`` and stays, unless somebody did so before. Returns when it began.

    The first attempt is there to be killed; the next one finds the file. ``time.monotonic()`` is the clock,
    which all processes of a machine share.
    """
    began_s = time.monotonic()
    if not os.path.exists(path):
        partial = f"{path}.{os.getpid()}"
        with open(partial, "w") as file:
            file.write(str(os.getpid()))
        os.rename(partial, path)  # whoever looks sees all of it or nothing
        time.sleep(seconds)
    return began_s


class Tally:
    """The smallest actor with state."""

    def __init__(self) -> None:
        self.total = 0

    def increment(self) -> int:
        self.total += 1
        return self.total

    def process_id(self) -> int:
        """Whom to kill."""
        return os.getpid()


class AsyncTally:
    """The same with a coroutine: many calls are in the actor at once."""

    def __init__(self) -> None:
        self.total = 0

    async def increment(self) -> int:
        self.total += 1
        return self.total
