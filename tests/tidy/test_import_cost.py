"""``import zray`` is cheap: a script that only imports it pays for nothing it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("asyncio", "numpy", "psutil", "sortedcontainers")
"""57 to 240 ms each (docs/decisions/0008-dependencies.md)."""


def modules_after(statement: str) -> list[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=30
    )
    return json.loads(answer.stdout)


@pytest.mark.slow
def test_import_zray_pulls_in_nothing_heavy() -> None:
    loaded = modules_after("import zray")
    assert "zray" in loaded
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.slow
def test_the_probe_sees_a_heavy_module() -> None:
    assert "asyncio" in modules_after("import asyncio")


@pytest.mark.slow
def test_a_first_task_pulls_in_nothing_heavy() -> None:
    """The same holds for a driver that has run a task and called an actor."""
    program = (
        "import zray; zray.init(num_cpus=1); call = zray.remote(len).remote([]); zray.get(call); "
        "Plain = type('Plain', (), {'m': lambda self: 1}); zray.get(zray.remote(Plain).remote().m.remote())"
    )
    loaded = modules_after(program)
    assert "zray.runtime.stream_links" in loaded
    assert [
        name for name in (*HEAVY, "zmq", "ssl", "concurrent.futures.thread", "ctypes") if name in loaded
    ] == []
