"""What an experiment is given: its scale, somewhere to put what it finds, a way to say how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TextIO, TypeVar

from paper_experiments.common import peers
from paper_experiments.common.expected import Mode
from paper_experiments.common.peers import Peer
from paper_experiments.common.results import MeasuredSeries, Result

T = TypeVar("T")

SCALES = ("tiny", "small", "paper")
BAR_WIDTH = 24


def paired_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median ratio of samples that were taken in turn, so that a busy machine slows both of a pair."""
    return float(median(one / other for one, other in zip(ours, others, strict=True)))


class Progress:
    """A bar on a terminal, a line per step elsewhere."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self.name, self.stream = name, stream or sys.stderr
        self.is_terminal = self.stream.isatty()

    def show(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` steps are over; ``what`` comes next."""
        if self.is_terminal:
            filled = BAR_WIDTH * done // max(1, total)
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            self.stream.write(f"\r\033[K{self.name} [{bar}] {done}/{total} {what}")
        else:
            self.stream.write(f"{self.name} {done}/{total} {what}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Leave the line to others."""
        if self.is_terminal:
            self.stream.write("\r\033[K")
            self.stream.flush()


class ExperimentRun:
    """One run of one experiment.

    Args:
        scale: ``tiny`` shows that it works, ``small`` ends within minutes, ``paper`` takes the paper's sizes.
        pythons: interpreters of systems that need one of their own.
    """

    def __init__(
        self, experiment: str, mode: Mode, scale: str, progress: Progress,
        pythons: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.experiment, self.mode, self.scale = experiment, mode, scale
        self.pythons = dict(pythons or {})
        self.progress = progress
        self.parameters: dict[str, str | int | float] = {}
        self.quantities: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.notes: list[str] = []
        self._series: dict[tuple[str, str], MeasuredSeries] = {}

    def pick(self, name: str, *, small: T, paper: T, tiny: T | None = None) -> T:
        """A parameter that depends on the scale; it is remembered with the result.

        Args:
            tiny: for tests; like ``small`` if it is not given.
        """
        value = {"tiny": small if tiny is None else tiny, "small": small, "paper": paper}[self.scale]
        self.parameter(name, value)
        return value

    def parameter(self, name: str, value: object) -> None:
        """Something that the numbers depend on."""
        self.parameters[name] = value if isinstance(value, str | int | float) else str(value)

    def steps(self, todo: Sequence[T], what: str) -> Iterator[T]:
        """Go through something and say how far it is."""
        for number, one in enumerate(todo):
            self.progress.show(number, len(todo), f"{what} {one}")
            yield one
        self.progress.clear()

    @contextmanager
    def peers(
        self, systems: Sequence[str], cpus: int, *, store_bytes: int = peers.STORE_BYTES, nodes: int = 0
    ) -> Iterator[dict[str, Peer]]:
        """Those of the systems that can be started here; the report says why others are missing.

        Args:
            cpus, store_bytes, nodes: see :class:`Peer`.

        Raises:
            PeerError: if zray itself does not start.
        """
        with peers.started(systems, self.pythons, cpus, store_bytes=store_bytes, nodes=nodes) as (
            running,
            missing,
        ):
            for system, reason in missing.items():
                self.note_once(f"Without {peers.SYSTEMS[system]}: {reason}")
            yield running

    def point(self, chart: str, series: str, x: float, samples: float | Iterable[float]) -> float:
        """A point of a curve: the median of the samples, with their extremes; the median."""
        values = [samples] if isinstance(samples, int | float) else list(samples)
        curve = self._series.setdefault((chart, series), MeasuredSeries(chart, series))
        middle = float(median(values))
        curve.x.append(float(x))
        curve.y.append(middle)
        curve.low.append(float(min(values)))
        curve.high.append(float(max(values)))
        return middle

    def quantity(self, name: str, value: float) -> None:
        """A number that claims are about."""
        self.quantities[name] = float(value)

    def compare(self, quantity: str, upper: Sequence[float], lower: Sequence[float]) -> None:
        """A ratio of samples that were taken in turn; should a claim of it fail, why is how they scatter."""
        ratios = sorted(one / other for one, other in zip(upper, lower, strict=True))
        self.quantity(quantity, median(ratios))
        spread = f"median {median(ratios):.2f} of {len(ratios)} pairs, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        if ratios[0] < 1 < ratios[-1]:
            spread += ": which of both is faster changes from pair to pair"
        self.absent(quantity, spread)

    def beyond(self, quantity: str, reason: str) -> None:
        """This machine cannot show what is claimed of a quantity, and why."""
        self.reasons[quantity] = reason

    def absent(self, quantity: str, reason: str) -> None:
        """Why what is claimed of a quantity is not so here; counts only if it is not."""
        self.missing[quantity] = reason

    def note(self, text: str) -> None:
        """A sentence for the report."""
        self.notes.append(text)

    def note_once(self, text: str) -> None:
        """A sentence for the report that may come up again."""
        if text not in self.notes:
            self.note(text)

    def result(self, folder: Path, took_s: float, provenance: dict[str, str | int | float]) -> Result:
        """Everything that was found."""
        return Result(
            self.experiment, self.mode, self.scale, provenance, self.parameters, self.quantities,
            list(self._series.values()), self.reasons,
            self.missing, self.notes, round(took_s, 2),
        )  # fmt: skip
