"""The ring of figure 12a, each of whose calls is late; for zray and Ray. No code of zray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paper_experiments.fig12a_allreduce.workload import RING, allreduce, start

_started: dict[int, list[Any]] = {}


def measure(api: Any, count: int, size_bytes: int, added_ms: Sequence[float]) -> list[float]:
    """Seconds of one allreduce for each added latency; participants stay for the next time."""
    length = max(1, size_bytes // count // 8)
    if count not in _started:
        _started[count] = start(api, count)
        allreduce(api, _started[count], length)
    return [allreduce(api, _started[count], length, RING, added / 1000) for added in added_ms]
