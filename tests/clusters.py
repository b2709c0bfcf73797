"""Real clusters for tests: programs in a place of their own, and what is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.leftovers import sockets_in
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 30.0
GONE_S = 5.0
"""How long after the end of a cluster anything of it may be found (invariant I14)."""
MARK = "ZRAY_TEST_PLACE"


class Place:
    """A directory for sessions of its own, and a mark on every process that is started from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "ZRAY_TMPDIR": str(folder), MARK: self.mark,
        }  # fmt: skip
        self.environment.pop("ZRAY_ADDRESS", None)

    def start(self, program: str, **popen: Any) -> subprocess.Popen[str]:
        """Run a driver: its output and its input are pipes."""
        return self.start_command([sys.executable, "-u", "-c", textwrap.dedent(program)], **popen)

    def start_command(self, command: list[str], **popen: Any) -> subprocess.Popen[str]:
        """Run anything, with this place in its environment."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**self.environment, **popen.pop("environment", {})}
        return subprocess.Popen(command, env=environment, text=True, cwd=self.folder, **{**pipes, **popen})

    def run(self, program: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Run a driver to its end."""
        return finish(self.start(program, **popen))

    def command(self, *command: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Run anything to its end."""
        return finish(self.start_command(list(command), **popen))

    def zray(self, *arguments: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Run the command ``zray``."""
        return self.command(sys.executable, "-m", "zray.cli", *arguments, **popen)

    def processes(self) -> list[psutil.Process]:
        """The living processes that were started from here, directly or not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def sessions(self) -> list[Path]:
        """The session directories, those on their way out too."""
        return [path for base in self.folder.glob("zray-*") for path in base.iterdir()]

    def remains(self) -> list[str]:
        """One line for each process, session directory and socket file."""
        found = [f"process {process.pid} {_command(process)}" for process in self.processes()]
        found += [f"session {path}" for path in self.sessions()]
        return found + [f"socket {path}" for path in sockets_in(self.folder)]

    def assert_empty(self, timeout_s: float = GONE_S) -> None:
        """Nothing is left after ``timeout_s``."""
        try:
            eventually(lambda: not self.remains(), timeout_s)
        except AssertionError:
            raise AssertionError("left behind:\n" + "\n".join(self.remains())) from None


@contextmanager
def place() -> Iterator[Place]:
    """A place that must be empty at the end; what is found there then is ended all the same."""
    folder = Path(tempfile.mkdtemp(prefix="p"))
    here = Place(folder)
    try:
        yield here
        here.assert_empty()
    finally:
        for process in here.processes():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def finish(process: subprocess.Popen[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Write the last of its input, wait for its end, and return what it said since."""
    try:
        out, err = process.communicate(text, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it runs for ever; it said {out!r} and {err!r}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a driver prints; empty if it ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Write a line to a driver that waits for one."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.name()} {' '.join(process.cmdline())[:200]}"
    return "gone by now"
