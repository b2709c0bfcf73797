"""The check for leftovers sees what it is there to see."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers

WAIT_FOR_STDIN = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def run() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zt") as folder:
        yield Path(folder)


def test_a_clean_run_leaves_nothing(run: str, short_folder: Path) -> None:
    assert leftovers.leftovers(run, short_folder, leftovers.segments()) == []


@pytest.mark.slow
def test_a_process_is_found_until_it_ends(run: str, short_folder: Path) -> None:
    environment = {**os.environ, leftovers.RUN_VARIABLE: run}
    with subprocess.Popen(WAIT_FOR_STDIN, stdin=subprocess.PIPE, env=environment) as child:
        found = leftovers.leftovers(run, short_folder, leftovers.segments(), grace_s=0.05)
        assert len(found) == 1
        assert str(child.pid) in found[0]
    assert leftovers.leftovers(run, short_folder, leftovers.segments()) == []


def test_a_socket_file_is_found(run: str, short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_folder / "node"))
        assert len(leftovers.leftovers(run, short_folder, leftovers.segments())) == 1


def test_a_shared_memory_segment_is_found(
    run: str, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", short_folder)
    before = leftovers.segments()
    (short_folder / "zray-arena").touch()
    assert leftovers.leftovers(run, short_folder, before) == ["shared memory zray-arena"]
