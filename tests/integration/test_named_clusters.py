"""Nodes that a program starts and ends: by the name of their cluster, and as a child that it waits for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.clusters import PATIENCE_S, Place, finish, line_of, place
from tests.support import eventually

pytestmark = pytest.mark.slow

SMALL = ("--num-cpus", "1", "--object-store-memory", str(64 << 20))
BLOCKED = (sys.executable, "-u", "-m", "zray.cli", "start", "--head", *SMALL, "--block", "--json")


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def test_a_name_ends_its_own_cluster_alone(here: Place) -> None:
    started = {}
    for name in ("one", "two"):
        done = here.zray("start", "--head", *SMALL, "--cluster", name, "--json")
        assert done.returncode == 0, done.stderr
        started[name] = json.loads(done.stdout)
    for key in ("address", "node_id", "pid", "session"):
        assert started["one"][key] != started["two"][key]
    ended = here.zray("stop", "--cluster", "one")
    assert ended.stdout.startswith(f"ended the node at {started['one']['address']}")
    assert here.zray("status", "--address", started["two"]["address"]).returncode == 0
    again = here.zray("stop", "--cluster", "one")
    assert (again.returncode, again.stdout) == (0, "no cluster one of this user runs on this machine\n")
    assert here.zray("stop", "--cluster", "two").returncode == 0
    assert not here.remains()


@pytest.mark.parametrize("name", ["", "One", "a b", "-a", "a-", "a" * 41, "../a"])
def test_a_name_that_would_not_do_is_refused(here: Place, name: str) -> None:
    done = here.zray("start", "--head", f"--cluster={name}")
    assert (done.returncode, "is not a name of 1 to 40 letters" in done.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_waited_for_ends_with_the_command(here: Place, number: int) -> None:
    command = here.start_command(list(BLOCKED))
    started = json.loads(line_of(command))
    assert here.zray("status", "--address", started["address"]).returncode == 0
    command.send_signal(number)
    done = finish(command)
    assert done.returncode == 0
    assert "ending" in done.stderr, "its log comes out of the command"
    here.assert_empty()


def test_the_command_ends_with_its_node_and_the_node_with_its_command(here: Place) -> None:
    command = here.start_command(list(BLOCKED))
    os.kill(json.loads(line_of(command))["pid"], signal.SIGKILL)
    assert finish(command).returncode == 128 + signal.SIGKILL
    command = here.start_command(list(BLOCKED), stderr=subprocess.DEVNULL)
    assert json.loads(line_of(command))["pid"] in {process.pid for process in here.processes()}
    command.kill()
    command.communicate()  # its node has the other ends of the pipes: this waits for it, too
    eventually(lambda: not here.processes(), PATIENCE_S, "the end of the node")
