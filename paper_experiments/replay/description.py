"""What a workload file may say, refused with file and key where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from zray.errors import ZrayError

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
TASKS_MAX = 1_000_000


class WorkloadFileError(ZrayError, ValueError):
    """A workload file cannot be used: which file, which key, what is wrong."""


class _WorkloadPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class StagePart(_WorkloadPart, frozen=True):
    """Tasks of one kind, submitted together."""

    name: str
    tasks: Count
    duration_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)] = 0.0
    """Median of what a task takes."""
    spread: Annotated[float, msgspec.Meta(ge=0, le=3)] = 0.0
    """Sigma of a lognormal distribution; 0: all take the same."""
    output_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    takes: tuple[str, ...] = ()
    """Earlier stages whose results these tasks get, divided among them."""
    takes_all: bool = False
    """Every task gets all of those results."""
    actors: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    """The tasks are calls of so many actors, in turn; 0: plain tasks."""
    waits: bool = False
    """Nothing of this stage is submitted before all earlier ones are done: a barrier."""


class Workload(_WorkloadPart, frozen=True):
    """A whole file."""

    name: str
    about: str
    stages: tuple[StagePart, ...]
    cpus: Annotated[int, msgspec.Meta(ge=1, le=512)] = 2
    iterations: Count = 1
    seed: int = 0

    def problems(self) -> list[str]:
        """What types do not say."""
        found = [] if self.stages else ["stages: there is none"]
        known: list[str] = []
        for stage in self.stages:
            if stage.name in known:
                found.append(f"stages: {stage.name!r} is there twice")
            found += [
                f"stage {stage.name!r} takes {taken!r}, which is no earlier stage"
                for taken in stage.takes if taken not in known
            ]  # fmt: skip
            known.append(stage.name)
        total = self.iterations * sum(stage.tasks for stage in self.stages)
        if total > TASKS_MAX:
            found.append(f"{total} tasks are more than {TASKS_MAX}")
        return found

    def plain(self) -> dict[str, Any]:
        """For ``program.play``, in any interpreter."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def load(path: Path) -> Workload:
    """The workload of a file.

    Raises:
        WorkloadFileError: naming the file and what is wrong.
    """
    try:
        workload = msgspec.toml.decode(path.read_bytes(), type=Workload)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise WorkloadFileError(f"{path}: {error}") from None
    problems = workload.problems()
    if problems:
        raise WorkloadFileError(f"{path}: {'; '.join(problems)}")
    return workload
