"""Drivers of their own, for tests of what happens to a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_script(code: str, timeout_s: float = 40.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this project at hand; returns what it wrote and how it ended."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=False,
    )
