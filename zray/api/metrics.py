"""``Counter``, ``Gauge`` and ``Histogram``: what a program measures of itself, in any process."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from zray.runtime import measures
from zray.runtime.measures import COUNTER, GAUGE, HISTOGRAM, Tags

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Metric:
    """What the three kinds have in common.

    Args:
        name: as Prometheus takes it.
        description: a sentence for whoever reads it.
        tag_keys: what its series differ by; every value needs all of them.
    Raises:
        ValueError: for a name or a key that Prometheus would not read, or a name that another metric has.
    """

    _kind = ""

    def __init__(
        self,
        name: str,
        description: str = "",
        tag_keys: Sequence[str] | None = None,
        *,
        _bounds: Sequence[float] = (),
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"the name of a metric has letters, digits, ':' and '_', not {name!r}")
        keys = tuple(tag_keys or ())
        for key in keys:
            if not isinstance(key, str) or not _TAG.fullmatch(key):
                raise ValueError(f"a tag has a name of letters, digits and '_', not {key!r}")
        self._given = (name, description, keys)
        self._defaults: dict[str, str] = {}
        self._bounds = tuple(_bounds)
        self._family = measures.family(name, self._kind, description, self._bounds)

    @property
    def info(self) -> dict[str, object]:
        """Name, description and tags."""
        name, description, keys = self._given
        return {
            "name": name, "description": description, "tag_keys": keys, "default_tags": dict(self._defaults),
        }  # fmt: skip

    def set_default_tags(self, default_tags: Mapping[str, str]) -> Metric:
        """Tags of every value that gives none."""
        self._check(default_tags)
        self._defaults = dict(default_tags)
        return self

    def _check(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._given[2]:
                raise ValueError(f"metric {self._given[0]!r} has no tag {key!r}; it has {self._given[2]}")
            if not isinstance(value, str):
                raise TypeError(f"the value of a tag is a string, not {value!r}")

    def _tags(self, tags: Mapping[str, str] | None) -> Tags:
        if not tags and not self._given[2]:
            return ()
        self._check(tags or {})
        both = {**self._defaults, **(tags or {})}
        missing = [key for key in self._given[2] if key not in both]
        if missing:
            raise ValueError(f"metric {self._given[0]!r} needs a value for the tags {missing}")
        return tuple(sorted(both.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self._given, self._defaults)


def _again(cls: type[Metric], given: tuple[str, str, tuple[str, ...]], tags: dict[str, str]) -> Metric:
    """The same metric in another process."""
    return cls(*given).set_default_tags(tags)


class Counter(Metric):
    """A number that only grows."""

    _kind = COUNTER

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add ``value``, which is above zero."""
        if not 0 < _number(value) < math.inf:
            raise ValueError(f"a counter grows: {value!r}")
        self._family.add(self._tags(tags), value)


class Gauge(Metric):
    """A number that goes up and down; the value that was set last counts, in whichever process."""

    _kind = GAUGE

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Set it."""
        self._family.set(self._tags(tags), _number(value))


class Histogram(Metric):
    """How often values fell between boundaries.

    Args:
        name, description, tag_keys: as in :class:`Metric`.
        boundaries: upper ends of the buckets, ascending and above zero.
    """

    _kind = HISTOGRAM

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: Sequence[str] | None = None,
    ) -> None:
        bounds = [_number(bound) for bound in boundaries or ()]
        if not bounds or bounds != sorted(dict.fromkeys(bounds)) or bounds[0] <= 0:
            raise ValueError(f"boundaries are ascending and above zero, at least one: {boundaries!r}")
        super().__init__(name, description, tag_keys, _bounds=bounds)

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Count one value."""
        self._family.observe(self._tags(tags), _number(value))

    def __reduce__(self) -> tuple[object, ...]:
        return _histogram_again, (self._given, self._bounds, self._defaults)


def _histogram_again(
    given: tuple[str, str, tuple[str, ...]], bounds: tuple[float, ...], tags: dict[str, str]
) -> Metric:
    name, description, keys = given
    return Histogram(name, description, bounds, keys).set_default_tags(tags)


def _number(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a metric measures numbers, not {value!r}")
    return value
