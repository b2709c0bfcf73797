"""Which experiments there are: every folder with an ``expected.toml``; and how one of them is run."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from paper_experiments.common import expected, results
from paper_experiments.common.expected import MODES, Expected, Mode
from paper_experiments.common.results import Result
from paper_experiments.common.run import ExperimentRun, Progress
from zray.errors import ZrayError

ROOT = Path(__file__).resolve().parents[1]


class UnknownExperimentError(ZrayError, ValueError):
    """There is no such experiment, or it cannot be run that way; with those that there are."""


class Experiment(NamedTuple):
    """One folder."""

    name: str
    folder: Path
    expected: Expected
    runners: dict[Mode, Callable[[ExperimentRun], None]]
    """``live`` and ``sim`` of its ``experiment.py``, as far as they are there."""


def names() -> list[str]:
    """All experiments, in the order of the paper."""
    return sorted(path.parent.name for path in ROOT.glob(f"*/{expected.FILE_NAME}"))


def get(name: str) -> Experiment:
    """An experiment by its name, or by a beginning that only it has.

    Raises:
        UnknownExperimentError: if there is none.
        ExpectedError: if its ``expected.toml`` is wrong.
    """
    found = [one for one in names() if one == name] or [one for one in names() if one.startswith(name)]
    if len(found) != 1:
        raise UnknownExperimentError(f"no experiment {name!r}; there are {', '.join(names())}")
    folder = ROOT / found[0]
    module = importlib.import_module(f"paper_experiments.{found[0]}.experiment")
    runners = {mode: getattr(module, mode) for mode in MODES if hasattr(module, mode)}
    return Experiment(found[0], folder, expected.load(folder), runners)


def runner_of(experiment: Experiment, mode: Mode) -> Callable[[ExperimentRun], None]:
    """What runs an experiment in a mode.

    Raises:
        UnknownExperimentError: if it has no such mode.
    """
    runner = experiment.runners.get(mode)
    if runner is None:
        there = ", ".join(experiment.runners)
        raise UnknownExperimentError(f"{experiment.name} does not run {mode}; it has {there}")
    return runner


def run(
    experiment: Experiment, mode: Mode, scale: str, progress: Progress | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Result:  # fmt: skip
    """Run an experiment once; nothing is stored.

    Args:
        pythons: interpreters of systems that it is compared with.
    Raises:
        UnknownExperimentError: if it has no such mode.
        ZrayError: whatever the run itself raises.
    """
    runner = runner_of(experiment, mode)
    provenance = results.provenance_of(experiment.folder)
    progress = progress or Progress(f"{experiment.name} {mode}")
    doing = ExperimentRun(experiment.name, mode, scale, progress, pythons)
    started = time.monotonic()
    runner(doing)
    return doing.result(experiment.folder, time.monotonic() - started, provenance)
