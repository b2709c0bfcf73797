"""The metrics of this process: numbers under a name and tags, which its node collects when asked.

Every process counts for itself, without a message. A counter or histogram of a cluster is the sum over its
processes; of a gauge the latest value counts.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SERIES_MAX = 1_000
"""Combinations of tag values of one metric; what comes beyond is counted under the tag ``overflow``."""
OVERFLOW = (("overflow", "true"),)

Tags = tuple[tuple[str, str], ...]
"""Sorted by key."""

_lock = threading.Lock()
_families: dict[str, Family] = {}


class Family:
    """All series of one metric in this process.

    Attributes:
        series: tags -> ``[value, time]``; of a histogram ``[sum, count, values between bounds...]``.
    """

    __slots__ = ("bounds", "description", "kind", "series")

    def __init__(self, kind: str, description: str, bounds: Sequence[float]) -> None:
        self.kind = kind
        self.description = description
        self.bounds = tuple(bounds)
        self.series: dict[Tags, list[float]] = {}

    def _of(self, tags: Tags) -> list[float]:
        found = self.series.get(tags)
        if found is None:
            if len(self.series) >= SERIES_MAX:
                tags = OVERFLOW
            empty = [0.0] * (2 + len(self.bounds))
            found = self.series.setdefault(tags, empty)
        return found

    def add(self, tags: Tags, amount: float) -> None:
        """Count."""
        with _lock:
            self._of(tags)[0] += amount

    def set(self, tags: Tags, value: float) -> None:
        """Replace the value."""
        with _lock:
            self._of(tags)[:2] = value, time.time()

    def observe(self, tags: Tags, value: float) -> None:
        """Put a value into its bucket."""
        with _lock:
            series = self._of(tags)
            series[0] += value
            series[1] += 1
            place = bisect_left(self.bounds, value)
            if place < len(self.bounds):
                series[2 + place] += 1


def family(name: str, kind: str, description: str, bounds: Sequence[float] = ()) -> Family:
    """The metric of that name, made if there is none.

    Raises:
        ValueError: if there is one of another kind, or with other bounds.
    """
    with _lock:
        found = _families.get(name)
        if found is None:
            found = _families[name] = Family(kind, description, bounds)
    if found.kind != kind or found.bounds != tuple(bounds):
        raise ValueError(
            f"there is another metric called {name!r}: a {found.kind} with bounds {found.bounds}"
        )
    return found


def snapshot() -> list[dict[str, Any]]:
    """Everything that was measured here."""
    with _lock:
        return [
            {
                "name": name,
                "kind": each.kind,
                "description": each.description,
                "bounds": each.bounds,
                "series": [[tags, values] for tags, values in each.series.items()],
            }
            for name, each in _families.items()
            if each.series
        ]
