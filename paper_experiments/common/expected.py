"""What the paper says about one result: ``expected.toml``, refused with file and key if it is wrong.

It holds the digitised series that are drawn beside ours, and claims: numbers that a run must reach, each with
the paper's own value and where it stands there. A claim never holds a number that was measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from zray.errors import ZrayError

Mode = Literal["live", "sim"]
MODES: tuple[Mode, ...] = ("live", "sim")
FILE_NAME = "expected.toml"


class ExpectedError(ZrayError, ValueError):
    """An ``expected.toml`` cannot be used: which file, which key, what is wrong."""


class _ExpectedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Chart(_ExpectedPart, frozen=True):
    """One picture: what is on its axes."""

    name: str
    title: str
    x: str
    y: str
    x_log: bool = False
    y_log: bool = False


class PaperSeries(_ExpectedPart, frozen=True):
    """A curve of the paper, read off its figure or its text."""

    chart: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    source: str
    """Where in the paper, how it was read, and how far that may be off."""


class PaperClaim(_ExpectedPart, frozen=True):
    """A sentence of the paper as a bound on one quantity of a run."""

    name: str
    text: str
    quantity: str
    """The name of a number that ``experiment.py`` computes from what it measured."""
    modes: tuple[Mode, ...]
    source: str
    paper: float | None = None
    """The paper's own value of the quantity, where it gives one."""
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bounds(self) -> str:
        """Such as ``at least 0.99``."""
        parts = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)

    def holds_for(self, value: float) -> bool:
        """Whether a value is within the bounds; nothing that is not a number is."""
        low = self.at_least if self.at_least is not None else float("-inf")
        high = self.at_most if self.at_most is not None else float("inf")
        return low <= value <= high


class Expected(_ExpectedPart, frozen=True):
    """One result of the paper."""

    title: str
    place: str
    """Figure or table, and section."""
    question: str
    setup: str
    """The machines and the workload of the paper."""
    charts: tuple[Chart, ...]
    claims: tuple[PaperClaim, ...]
    series: tuple[PaperSeries, ...] = ()

    def problems(self) -> list[str]:
        """What types do not say: every name leads somewhere, every claim can fail."""
        charts = [chart.name for chart in self.charts]
        found = _twice("chart", charts) + _twice("claim", [claim.name for claim in self.claims])
        found += _twice("series", [f"{one.chart}/{one.name}" for one in self.series])
        if not self.claims:
            found.append("claims: there is none, so no run could fail")
        for series in self.series:
            if series.chart not in charts:
                found.append(f"series {series.name!r}: there is no chart {series.chart!r}")
            if len(series.x) != len(series.y) or not series.x:
                found.append(f"series {series.name!r}: {len(series.x)} x and {len(series.y)} y")
        for claim in self.claims:
            if claim.at_least is None and claim.at_most is None:
                found.append(f"claim {claim.name!r}: has neither at_least nor at_most")
            elif claim.at_least is not None and claim.at_most is not None and claim.at_least > claim.at_most:
                found.append(f"claim {claim.name!r}: nothing is {claim.bounds}")
            if not claim.modes:
                found.append(f"claim {claim.name!r}: modes is empty")
        return found


def _twice(what: str, names: list[str]) -> list[str]:
    return [f"{what} {name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]


def parse(text: str, where: str) -> Expected:
    """What an ``expected.toml`` says.

    Raises:
        ExpectedError: naming ``where`` and what is wrong.
    """
    try:
        expected = msgspec.toml.decode(text, type=Expected)
    except msgspec.MsgspecError as error:
        raise ExpectedError(f"{where}: {error}") from None
    problems = expected.problems()
    if problems:
        raise ExpectedError(f"{where}: {'; '.join(problems)}")
    return expected


def load(folder: Path) -> Expected:
    """The ``expected.toml`` of an experiment's folder; raises like :func:`parse`."""
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExpectedError(f"{path}: {error}") from None
    return parse(text, str(path))
