"""Every example runs as a user would run it, checks its own result and says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import eventually

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("wordcount", "parameter_server", "monte_carlo")
TIMEOUT_S = 50

pytestmark = pytest.mark.slow


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the project importable; a failure shows everything that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, *command]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=TIMEOUT_S
    )
    print(done.stdout, done.stderr)
    return done


@pytest.mark.parametrize(
    ("example", "verdict"),
    [
        ("wordcount", "the counts agree"),
        ("parameter_server", "converged"),
        ("monte_carlo", "plausible"),
    ],
)
def test_example_finds_its_result_correct(example: str, verdict: str) -> None:
    done = run(f"examples/{example}.py", "--quick", "--num-cpus", "2")
    assert done.returncode == 0
    assert verdict in done.stdout
    assert "abandoned" not in done.stderr


def test_wordcount_uses_as_many_shards_of_files_and_of_the_control_store_as_told() -> None:
    done = run("examples/wordcount.py", "--limit", "30", "--shards", "3", "--gcs-shards", "2", "--top", "1")
    assert done.returncode == 0
    assert "30 files" in done.stdout
    assert "3 shards" in done.stdout


@pytest.mark.parametrize("shards", [1, 4])
def test_wordcount_counts_right_while_its_workers_are_killed(shards: int) -> None:
    """kill -9, twice, of whoever works just then: a task, a merge, or the progress actor."""
    command = [sys.executable, "examples/wordcount.py", "--limit", "600", "--gcs-shards", str(shards)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        first = program.stdout.readline()
        killed = [_kill_a_busy_worker(program.pid) for _ in range(2)]
        rest = program.stdout.read()
    print(first, rest)
    assert program.returncode == 0
    assert len({*killed}) == 2
    assert "the counts agree" in rest


def _kill_a_busy_worker(driver_pid: int) -> int:
    """Kill the worker that used most CPU time since a moment ago; returns its process id."""

    def workers() -> list[psutil.Process]:
        children = psutil.Process(driver_pid).children(recursive=True)
        return [child for child in children if child.name() == "zray-worker"]

    def busiest() -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = {worker: worker.cpu_percent(0.05) for worker in workers()}
            worker = max(used, key=lambda worker: used[worker], default=None)
            if worker is not None and used[worker] > 0:
                return worker
        return None

    worker = eventually(busiest, 20.0, "a worker that works")
    worker.kill()
    return worker.pid


def test_parameter_server_that_cannot_converge_says_so_in_its_exit_code() -> None:
    done = run("examples/parameter_server.py", "--quick", "--num-cpus", "2", "--updates", "3")
    assert done.returncode == 1
    assert "NOT CONVERGED" in done.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_refuses_to_size_a_cluster_that_it_joins(example: str) -> None:
    done = run(f"examples/{example}.py", "--address", "127.0.0.1:1", "--num-cpus", "2")
    assert done.returncode == 2
    assert "--address" in done.stderr


def test_benchmarks_run_on_one_peer_and_name_the_reason_where_a_system_fails() -> None:
    done = run(
        "-m", "benchmarks.compare", "--quick", "--systems", "processpool,ray",
        "--python", "ray=/nonexistent/python", "--cases", "start,task_sync,actor_sync",
    )  # fmt: skip
    assert done.returncode == 0
    assert "no such interpreter" in done.stdout
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines() if line}
    assert " -" in rows["actor call, one at a time"]
    assert "1/s" in rows["task, one at a time"]
