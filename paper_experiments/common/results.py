"""What a run found, as JSON beside the experiment, with the machine and the code that it was found with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from hashlib import blake2b
from pathlib import Path

import msgspec

from paper_experiments.common.expected import Mode
from zray.errors import ZrayError
from zray.protocol import provenance

FOLDER_NAME = "results"


class StoredResultError(ZrayError, ValueError):
    """A stored result cannot be read: which, why, and how to get another."""


class MeasuredSeries(msgspec.Struct, forbid_unknown_fields=True):
    """A curve that was measured or simulated. ``low`` and ``high`` are the extremes of the repetitions."""

    chart: str
    name: str
    x: list[float] = []
    y: list[float] = []
    low: list[float] = []
    high: list[float] = []


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """One run of one experiment."""

    experiment: str
    mode: Mode
    scale: str
    provenance: dict[str, str | int | float]
    parameters: dict[str, str | int | float]
    quantities: dict[str, float]
    series: list[MeasuredSeries]
    beyond: dict[str, str]
    """Quantity -> why this machine cannot show what is claimed of it."""
    absent: dict[str, str]
    """Quantity -> why what is claimed of it is not so, if it is not."""
    notes: list[str]
    took_s: float


def code_digest_of(folder: Path) -> str:
    """A digest of an experiment's code, in 16 hex digits: a result of other code is told as such.

    Also of what it takes from other experiments; not of what all have in common.
    """
    digest = blake2b(digest_size=8)
    for path in _code_of(folder):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _code_of(folder: Path) -> list[Path]:
    own = sorted(folder.glob("*.py"))
    named = [found for path in own for found in _NAMED.findall(path.read_text(encoding="utf-8"))]
    others = [folder.parent / of / f"{module}.py" for of, module in dict.fromkeys(named) if of != folder.name]
    return own + [path for path in others if path.parent.name != "common" and path.exists()]


_NAMED = re.compile(r"\bpaper_experiments\.(\w+)\.(\w+)")


def provenance_of(folder: Path) -> dict[str, str | int | float]:
    """Machine, versions, day and code, for whoever reads the numbers later."""
    system, cpus = platform.uname(), os.cpu_count()
    return {
        **provenance.description(),
        "experiment_code": code_digest_of(folder),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{system.machine}, {cpus} CPUs, {_processor()}, {system.system} {system.release}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return sys.platform
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def path_of(folder: Path, mode: str, scale: str) -> Path:
    """Where the result of an experiment is stored: the newest of each mode and scale is kept."""
    return folder / FOLDER_NAME / f"{mode}-{scale}.json"


def save(result: Result, folder: Path) -> Path:
    """Write a result, whole or not at all."""
    path = path_of(folder, result.mode, result.scale)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".json.part")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    unfinished.replace(path)
    return path


def load(path: Path) -> Result:
    """A stored result.

    Raises:
        StoredResultError: if it cannot be read or is not one of this version.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        advice = "python -m paper_experiments run makes a new one"
        raise StoredResultError(f"{path}: not a result of this version ({error}); {advice}") from None


def load_all(folder: Path) -> list[Result]:
    """The stored results of an experiment, live ones first; raises like :func:`load`."""
    return [load(path) for path in sorted((folder / FOLDER_NAME).glob("*.json"))]


def load_if_stored(folder: Path, mode: str, scale: str) -> Result | None:
    """The stored result of an experiment in one mode and scale, if there is one; raises like :func:`load`."""
    path = path_of(folder, mode, scale)
    return load(path) if path.exists() else None
