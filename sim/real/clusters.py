"""Real clusters on this machine, by the public commands ``zray-gcs``, ``zray start``, ``zray stop``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from zray.errors import ZrayError

PATIENCE_S = 60.0
STORE_BYTES = 64 << 20
PACKAGES = Path(__file__).resolve().parents[2]


class RealRunError(ZrayError):
    """A real process did not do what it was started for; with what it said."""


class Measured(msgspec.Struct, frozen=True):
    """One run of one driver."""

    started_ns: int
    makespan_ns: int
    spent_ns: dict[str, int]
    """Processor time while it ran, by role: ``driver``, ``node``, ``worker``."""


class RealNode(NamedTuple):
    """A node that runs."""

    address: str
    pid: int
    trace: Path | None


class RealCluster:
    """Some nodes of one cluster.

    Args:
        environment: of all its processes.
        nodes: where they are.
        gcs_pid: the process of their control store.
    """

    def __init__(self, environment: dict[str, str], nodes: Sequence[RealNode], gcs_pid: int) -> None:
        self.environment = environment
        self.nodes = nodes
        self.gcs_pid = gcs_pid

    def run(self, program: str, number: int) -> Measured:
        """Run a program with one driver per node, all at once: from the first start to the last end."""
        drivers = [self._start(program, number, node) for node in self.nodes]
        try:
            for driver in drivers:
                _line_of(driver, "ready")
            for driver in drivers:
                assert driver.stdin is not None
                driver.stdin.write("go\n")
                driver.stdin.flush()
            runs = [msgspec.json.decode(_line_of(driver, "{"), type=Measured) for driver in drivers]
            for driver in drivers:
                driver.wait(PATIENCE_S)
        finally:
            for driver in drivers:
                driver.kill()
                driver.communicate()
        first_ns = min(run.started_ns for run in runs)
        last_ns = max(run.started_ns + run.makespan_ns for run in runs)
        spent = {role: sum(run.spent_ns[role] for run in runs) for role in runs[0].spent_ns}
        return Measured(first_ns, last_ns - first_ns, spent)

    def _start(self, program: str, number: int, node: RealNode) -> subprocess.Popen[str]:
        command = ["-m", "sim.real.driver", program, str(number), "--address", node.address, "--wait"]
        return subprocess.Popen(
            [sys.executable, *command], env=self.environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def _line_of(driver: subprocess.Popen[str], beginning: str) -> str:
    assert driver.stdout is not None
    line = driver.stdout.readline()
    if not line.startswith(beginning):
        driver.kill()
        raise RealRunError(f"a driver ended early: {line}{driver.communicate()[1]}")
    return line


@contextmanager
def real_cluster(
    *, nodes: int, cpus: int, trace: bool = False, settings: dict[str, str] | None = None,
    store_bytes: int = STORE_BYTES, gcs_log: bool = False,
) -> Iterator[RealCluster]:  # fmt: skip
    """A cluster of ``nodes`` nodes on this machine, which is gone afterwards.

    Args:
        trace: whether each node records what it decides.
        settings: ``ZRAY_...`` variables of every process.
        store_bytes: of the object store of each node.
        gcs_log: whether the control store keeps a log.
    Raises:
        RealRunError: if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="zs") as folder, ExitStack() as stack:
        paths = os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "ZRAY_TMPDIR": folder, "PYTHONPATH": paths, **(settings or {})}
        environment.pop("ZRAY_ADDRESS", None)
        endpoint = f"ipc://{folder}/gcs"
        gcs = subprocess.Popen(
            [sys.executable, "-m", "zray.services.gcs", "--listen", endpoint, "--log-level", "WARNING",
             "--parent-pid", str(os.getpid()), *(["--data-dir", f"{folder}/gcs.log"] if gcs_log else [])],
            env=environment,
        )  # fmt: skip
        stack.callback(_end, gcs)
        stack.callback(_zray, environment, "stop")
        found = []
        for number in range(nodes):
            traced = Path(folder) / f"node{number}.trace" if trace else None
            arguments = ["--address", endpoint, "--num-cpus", str(cpus), "--object-store-memory"]
            arguments.append(str(store_bytes))
            if traced is not None:
                arguments += ["--trace", str(traced)]
            said = _zray(environment, "start", *arguments)
            match = re.search(r"runs at (\S+) \(process (\d+)\)", said)
            if match is None:
                raise RealRunError(f"a node did not start: {said}")
            found.append(RealNode(match[1], int(match[2]), traced))
        yield RealCluster(environment, found, gcs.pid)


def _zray(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zray.cli", *arguments], env=environment, text=True, capture_output=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RealRunError(f"zray {arguments[0]} failed: {done.stderr or done.stdout}")
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
