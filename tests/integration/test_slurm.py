"""The script of ``zray slurm`` as a job of a real Slurm on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import PATIENCE_S, ROOT, Place, place
from tests.slurm_site import slurm_site
from tests.support import eventually
from zray.runtime.endpoints import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAM = """
import os, sys, time, zray
zray.init()
@zray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where(number):
    time.sleep(0.05)
    return os.environ["SLURMD_NODENAME"]
print("ran on", *sorted(set(zray.get([where.remote(number) for number in range(30)]))), flush=True)
if sys.argv[1:] == ["stay"]:
    time.sleep(1000)
sys.exit(len(sys.argv) - 1)
"""


class Site:
    """A Slurm of three nodes, and how to give it jobs."""

    def __init__(self, here: Place, environment: dict[str, str]) -> None:
        self.here = here
        self.environment = environment
        (here.folder / "program.py").write_text(PROGRAM)

    def script(
        self, *arguments: str, nodes: int = 3, python: str = sys.executable, timeout_s: int = 20
    ) -> Path:
        setup = f"export PYTHONPATH={ROOT} ZRAY_BACKLOG_PER_SLOT_MAX=0"
        made = self.here.zray(
            "slurm", "--nodes", str(nodes), "--cpus", "1", "--mem", "256M", "--setup", setup,
            "--python", python, "--port", str(free_ports("127.0.0.1")), "--timeout", str(timeout_s),
            "--", "program.py", *arguments,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        path = self.here.folder / "job.sh"
        path.write_text(made.stdout)
        return path

    def command(self, *command: str) -> str:
        done = self.here.command(*command, environment=self.environment)
        return done.stdout + done.stderr

    def submit(self, script: Path) -> str:
        """The number of the job."""
        return self.command("sbatch", "--parsable", "--output=job.out", str(script)).strip()

    def output(self) -> str:
        path = self.here.folder / "job.out"
        return path.read_text() if path.exists() else ""

    def await_end(self, job: str) -> str:
        """The exit code of a job, as Slurm writes it."""

        def ended() -> str:
            shown = dict(
                pair.partition("=")[::2] for pair in self.command("scontrol", "show", "job", job).split()
            )
            over = shown.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
            return shown["ExitCode"] if over else ""

        try:
            return eventually(ended, 2 * PATIENCE_S, "the end of the job")
        except AssertionError:
            raise AssertionError(self.output()) from None


@pytest.fixture
def site() -> Iterator[Site]:
    with place() as here, slurm_site(here, 3) as environment:
        yield Site(here, environment)
        here.assert_empty(PATIENCE_S)


def test_a_program_runs_on_all_nodes_and_its_exit_code_is_that_of_the_job(site: Site) -> None:
    job = site.submit(site.script("one", "two"))
    assert site.await_end(job) == "2:0", site.output()
    assert "ran on n0 n1 n2\n" in site.output()
    assert "Killed" not in site.output(), "every node ended by itself"


def test_a_job_that_is_told_to_end_ends_its_cluster(site: Site) -> None:
    job = site.submit(site.script("stay"))
    # Slurm begins a job when the nodes of the one before are free, which takes it up to half a minute.
    eventually(lambda: "ran on n0 n1 n2\n" in site.output(), 2 * PATIENCE_S, "the output of the program")
    site.command("scancel", "--batch", "--signal=TERM", job)
    assert site.await_end(job) == "143:0", site.output()
    assert "Killed" not in site.output()


def test_a_job_of_one_node_needs_no_others(site: Site) -> None:
    job = site.submit(site.script(nodes=1))
    assert site.await_end(job) == "0:0", site.output()
    assert "ran on n0\n" in site.output()


def test_a_job_whose_nodes_cannot_join_says_so_and_ends(site: Site) -> None:
    only_on_the_first = f"test $SLURMD_NODENAME = n0 && {sys.executable}"
    job = site.submit(site.script(python=only_on_the_first, timeout_s=3))
    assert site.await_end(job) == "1:0", site.output()
    assert "should have 3 nodes: it has 1 (" in site.output()
    assert "ran on" not in site.output()
