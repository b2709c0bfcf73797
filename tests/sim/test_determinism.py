"""Equal seeds give equal runs, also in another process with another hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.run import run_scenario
from sim.swarm import scenario_of

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from sim.run import run_scenario
from sim.swarm import scenario_of
for seed in (3, 5, 8, 30, 298, 529, 500139):  # among them nodes that exchange objects, and chains
    print(run_scenario(scenario_of(seed), seed)[0].digest)
"""


@pytest.mark.slow
def test_two_processes_with_different_hash_seeds_deliver_the_same() -> None:
    digests = []
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        digests.append(done.stdout.split())
    assert len(digests[0]) == 7
    assert digests[0] == digests[1]
    assert len(dict.fromkeys(digests[0])) == 7


def test_a_run_can_be_repeated_in_one_process_and_depends_on_its_seed() -> None:
    scenario = scenario_of(3)
    first, again, other = (run_scenario(scenario, seed)[0] for seed in (3, 3, 4))
    assert first == again
    assert first.digest != other.digest
