"""Remote functions that several tests use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import zray
from tests.support import eventually

PATIENCE_S = 30


@zray.remote
def echo(value: Any = None) -> Any:
    return value


@zray.remote
def add(left: int, right: int) -> int:
    return left + right


@zray.remote(num_cpus=0)
def wait_for_file(path: str) -> str:
    """Return once the file exists; needs no CPU, so that it never stands in the way."""
    return eventually(lambda: os.path.exists(path) and path, PATIENCE_S)


def meet(folder: str, name: str, count: int) -> int:
    """Say that ``name`` has come to ``folder``, wait until ``count`` have."""
    Path(folder, name).touch()
    return eventually(lambda: len(os.listdir(folder)) >= count and count, 10.0, f"the meeting in {folder}")
