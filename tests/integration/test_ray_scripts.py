"""Scripts for Ray Core, as its users write them, with one line changed: ``import zray as ray``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import clusters

SCRIPTS = sorted(Path(__file__).with_name("ray_scripts").glob("*.py"))
AT_ONCE = 2

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[Path, Future[Done]]]:
    """All of them, some at a time; what they leave behind fails the last test."""
    with clusters.place() as place, ThreadPoolExecutor(AT_ONCE) as pool:
        yield {path: pool.submit(place.command, sys.executable, str(path)) for path in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(runs: dict[Path, Future[Done]], path: Path) -> None:
    done = runs[path].result()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr + done.stdout
