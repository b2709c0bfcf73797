"""Several real ``zray-node`` processes in one cluster: tasks spread, objects travel, a node dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.clusters import Place, finish, line_of, place, tell
from tests.support import eventually

pytestmark = pytest.mark.slow

QUICK = {"ZRAY_NODE_DEATH_NS": "2500000000", "ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
"""A dead node is missed sooner than by default, and the second task of a kind may go elsewhere."""


class SeveralNodes:
    """A control store and some nodes, each a process of its own."""

    def __init__(self, here: Place, nodes: int) -> None:
        self.here = here
        endpoint = f"ipc://{here.folder}/gcs.sock"
        command = [sys.executable, "-m", "zray.services.gcs", "--listen", endpoint]
        self.gcs = here.start_command(command, environment=QUICK, stderr=subprocess.DEVNULL)
        eventually(lambda: (here.folder / "gcs.sock").exists(), 20.0)
        self.pids: list[int] = []
        self.addresses: list[str] = []
        for _ in range(nodes):
            started = here.zray("start", "--address", endpoint, "--num-cpus", "2", environment=QUICK)
            found = re.search(r"runs at (\S+) \(process (\d+)\)", started.stdout)
            assert found is not None, started.stdout + started.stderr
            self.addresses.append(found[1])
            self.pids.append(int(found[2]))

    def driver(self, program: str) -> subprocess.Popen[str]:
        """Start a driver that joins the first node."""
        join = f"import zray; zray.init(address={self.addresses[0]!r})\n"
        return self.here.start(join + program)

    def end(self) -> None:
        """End whatever is left of it."""
        for address in self.addresses:
            self.here.zray("stop", "--address", address)
        self.gcs.send_signal(signal.SIGTERM)
        finish(self.gcs)


@pytest.fixture
def nodes() -> Iterator[SeveralNodes]:
    with ExitStack() as stack:
        found = SeveralNodes(stack.enter_context(place()), 2)
        stack.callback(found.end)
        yield found


TASKS = """
import os, time
@zray.remote
def where(number):
    time.sleep(0.05)
    return os.getppid()
@zray.remote
def nested(count):
    return [where.remote(number) for number in range(count)]
"""


def test_tasks_spread_over_nodes_and_refs_come_back(nodes: SeveralNodes) -> None:
    driver = nodes.driver(
        TASKS
        + """
print(len(set(zray.get([where.remote(i) for i in range(60)]))))
inner = [ref for refs in zray.get([nested.remote(4) for _ in range(12)]) for ref in refs]
print(len(zray.get(inner)))
"""
    )
    done = finish(driver)
    assert done.stdout.split() == ["2", "48"], done.stderr


def test_large_results_travel(nodes: SeveralNodes) -> None:
    driver = nodes.driver(
        """
import os, time
import numpy as np
@zray.remote
def make(number):
    time.sleep(0.3)
    return os.getppid(), np.full(100 << 17, number, dtype=np.float64)
@zray.remote
def total(made):
    return float(made[1].sum())
refs = [make.remote(i) for i in range(6)]
totals = [total.remote(ref) for ref in refs]
places = set()
for number, ref in enumerate(refs):
    place, array = zray.get(ref)
    places.add(place)
    assert array.nbytes == 100 << 20 and bool((array == number).all())
    del array
print(len(places), zray.get(totals) == [float(i * (100 << 17)) for i in range(6)])
"""
    )
    done = finish(driver)
    assert done.stdout.split() == ["2", "True"], done.stderr


def test_a_node_that_is_killed_costs_time_and_no_result(nodes: SeveralNodes) -> None:
    driver = nodes.driver(
        """
import os, time
import numpy as np
@zray.remote(max_retries=-1)
def make(number):
    time.sleep(0.1)
    return os.getppid(), np.full(1 << 16, number, dtype=np.float64)
refs = [make.remote(i) for i in range(30)]
ready, _ = zray.wait(refs, num_returns=20)
print("made", flush=True)
input()
values = zray.get(refs)
print([int(array[0]) for _, array in values] == list(range(30)))
"""
    )
    assert line_of(driver) == "made"
    os.kill(nodes.pids[1], signal.SIGKILL)
    tell(driver)
    done = finish(driver)
    assert done.stdout.split() == ["True"], done.stderr
