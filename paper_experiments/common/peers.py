"""The systems beside which a live experiment runs: each in a process of its own, asked in turn.

A system may need another interpreter (``run NAME --python ray=PATH``). One that cannot be started here is
missing with a reason, which the report shows; it is never guessed.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from paper_experiments.common.peer_child import OPENMPI
from zray.errors import ZrayError

ROOT = Path(__file__).resolve().parents[2]
HTTP = "http"
SYSTEMS = {"zray": "zray", "ray": "Ray", OPENMPI: "OpenMPI", HTTP: "Starlette and uvicorn"}
"""Name on the command line: name in charts."""
MODULES = {"zray": "zray", "ray": "ray", OPENMPI: "mpi4py", HTTP: "starlette, uvicorn"}
START_S = 90.0
STORE_BYTES = 1 << 30
ANSWER_S = 300.0
END_S = 30.0
PROBE_S = 60.0


class PeerError(ZrayError):
    """A system could not be started, or did not answer; with the last thing it said."""


class Peer:
    """A system that runs and answers.

    Args:
        system: a key of :data:`SYSTEMS`.
        python: its interpreter.
        cpus: how many CPUs a node may use; for OpenMPI, how many processes there are.
        store_bytes: of a node's object store.
        nodes: of a cluster; 0: a system of one node that is no cluster.
    """

    def __init__(
        self, system: str, python: str, cpus: int, *, store_bytes: int = STORE_BYTES, nodes: int = 0
    ) -> None:
        self.system = system
        self._said: IO[bytes] = TemporaryFile()  # noqa: SIM115 - end() closes it
        child = [
            python,
            "-m",
            "paper_experiments.common.peer_child",
            system,
            *map(str, (cpus, store_bytes, nodes)),
        ]
        command = [*_mpirun(cpus), *child] if system == OPENMPI else child
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **SETTINGS}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said,
        )  # fmt: skip
        try:
            self._read(START_S)
        except PeerError:
            self.end()
            raise

    def ask(self, function: str, **arguments: Any) -> Any:
        """Call ``module:function`` there.

        Raises:
            PeerError: if it raises, dies, or takes longer than :data:`ANSWER_S`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": function, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error("it ended") from None
        found = self._read(ANSWER_S)
        if "error" in found:
            raise PeerError(f"{self.system}: {function} failed there: {found['error']}")
        return found["value"]

    def _read(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not readable:
            raise self._error(f"no answer within {limit_s:g} s")
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            raise self._error("it ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def _error(self, what: str) -> PeerError:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return PeerError(f"{self.system}: {what}; it said: {lines[-1] if lines else 'nothing'}")

    def end(self) -> None:
        """Let it stop in good order, or kill it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(END_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # Who computes at the same time is up to the systems, and not to a library inside each of their processes.
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip


def _mpirun(ranks: int) -> list[str]:
    return ["mpirun", "--oversubscribe", "-np", str(ranks)]


def missing_reason(system: str, python: str) -> str:
    """Why a system cannot be run by an interpreter; empty if it can."""
    if system == OPENMPI and shutil.which("mpirun") is None:
        return "there is no mpirun; install the distribution's openmpi-bin"
    probe = f"import {MODULES[system]}"
    try:
        done = subprocess.run(
            [python, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its interpreter does not run: {type(error).__name__}"
    if done.returncode == 0:
        return ""
    why = done.stderr.strip().splitlines()
    return f"{why[-1] if why else 'import failed'}; name an interpreter with --python {system}=PATH"


@contextmanager
def started(
    systems: Sequence[str], pythons: Mapping[str, str], cpus: int, *, store_bytes: int = STORE_BYTES,
    nodes: int = 0,
) -> Iterator[tuple[dict[str, Peer], dict[str, str]]]:  # fmt: skip
    """Start those systems that can be started.

    Returns:
        The peers by system, and why the others are missing.
    Raises:
        PeerError: if zray itself does not start.
    """
    running: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for system in systems:
            python = pythons.get(system, sys.executable)
            reason = missing_reason(system, python)
            if not reason:
                try:
                    running[system] = Peer(system, python, cpus, store_bytes=store_bytes, nodes=nodes)
                    stack.callback(running[system].end)
                except PeerError as error:
                    reason = str(error)
            if reason:
                missing[system] = reason
        if "zray" in missing:
            raise PeerError(missing["zray"])
        yield running, missing
