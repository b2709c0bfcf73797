"""Faults of a network under running programs: hosts in namespaces, packets that do not arrive or come twice.

Whatever happens to the network, a program on the host of the control store gets the right results, each call
of its actor has its effect once, and what it was given once it is given again. Whoever was cut off for so
long that it was declared dead is a member again afterwards, under another id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import PATIENCE_S, line_of, place, tell
from tests.network_hosts import Host, hosts_of_network

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PORT = 6480
DEATH_NS = str(1_500_000_000)
"""Longer than by default: a node that only waits for a busy processor is not to be taken for a dead one."""
PROGRAM = """
import json, os, sys, time, zray
import numpy as np
from zray.exceptions import ZrayError
zray.init(address="ADDRESS")
SIZE, COUNT = 1 << 14, 60

@zray.remote(max_retries=-1)
def make(number, gate):
    while gate and not os.path.exists(gate):  # the fault is not there yet
        time.sleep(0.01)  # between two looks
    return os.urandom(8), np.full(SIZE, number, dtype=np.float64)

@zray.remote(max_retries=-1)
def total(*made):
    return [mark for mark, _ in made], float(sum(array.sum() for _, array in made))

@zray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, checkpoint_interval=10,
             scheduling_strategy="SPREAD")
class Ledger:
    def __init__(self):
        self.times = {}
    def add(self, entry):
        self.times[entry] = self.times.get(entry, 0) + 1
    def read(self):
        return self.times
    def __zray_save__(self):
        return self.times
    def __zray_load__(self, times):
        self.times = dict(times)

def play(count, gate):
    ledger = Ledger.remote()
    made = [make.remote(number, gate if number >= count // 2 else "") for number in range(count)]
    pairs = [(number, (number + 7) % count) for number in range(count)]
    totals = [total.remote(made[one], made[other]) for one, other in pairs]
    added = [ledger.add.remote(entry) for entry in range(count)]
    zray.wait(made, num_returns=count // 4)
    print("begun", flush=True)
    wrong = []
    marks = [mark for mark, _ in zray.get(made, timeout=60)]
    for (one, other), (seen, value) in zip(pairs, zray.get(totals, timeout=60)):
        if value != SIZE * (one + other) or seen != [marks[one], marks[other]]:
            wrong.append(f"total of {one} and {other}: {value}, or another value of them was seen")
    zray.get(added, timeout=60)
    times = zray.get(ledger.read.remote(), timeout=60)
    if times != {entry: 1 for entry in range(count)}:
        wrong.append(f"entries: {times}")
    return wrong, made, marks

kept = []
for line in sys.stdin:
    if line.startswith("again"):
        wrong = [f"{number} is another one now" for number, ref, mark in kept if zray.get(ref)[0] != mark]
        kept.clear()
    else:
        try:
            wrong, made, marks = play(COUNT, line.strip())
            kept += zip(range(len(made)), made, marks)
            del made
        except ZrayError as error:
            wrong = [f"{type(error).__name__}: {error}"]
    nodes = {node["pid"]: node["node_id"] for node in zray.nodes() if node["alive"]}
    print(json.dumps([wrong, nodes]), flush=True)
"""


class Net:
    """Three hosts, the first with the control store and a driver."""

    def __init__(self, hosts: list[Host], driver: subprocess.Popen[str], folder: Path) -> None:
        self.hosts, self.driver, self.folder = hosts, driver, folder
        self.gates = 0

    def begin(self) -> Path:
        """The program runs, and some of its results are there; others once this file is."""
        self.gates += 1
        gate = self.folder / f"gate-{self.gates}"
        tell(self.driver, str(gate))
        assert line_of(self.driver) == "begun"
        return gate

    def verdict(self) -> dict[int, str]:
        """The living nodes, as process -> id; nothing was wrong."""
        wrong, nodes = json.loads(line_of(self.driver))
        assert wrong == []
        return {int(pid): node_id for pid, node_id in nodes.items()}

    def nodes(self) -> list[str]:
        """The id of the node of every host, once all are members; what was seen before is seen again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            tell(self.driver, "again")
            living = self.verdict()
            if all(host.pid in living for host in self.hosts):
                return [living[host.pid] for host in self.hosts]
            assert time.monotonic() < deadline, living


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with place() as here, hosts_of_network(here, 3) as hosts:
        here.environment["ZRAY_NODE_DEATH_NS"] = DEATH_NS
        head, *others = hosts
        key = str(here.folder / "key")
        head.start("--head", "--port", str(PORT), "--node-ip-address", head.ip_address, "--key-file", key)
        for host in others:
            host.start("--address", f"{head.ip_address}:{PORT}", "--key-file", key)
        driver = head.driver(PROGRAM)
        try:
            yield Net(hosts, driver, here.folder)
        finally:
            driver.communicate(timeout=PATIENCE_S)
            for gate in here.folder.glob("gate-*"):  # not before: what is lost is made again behind it
                gate.unlink()
            for host in hosts:
                host.heal()
            here.zray("stop")


def reborn_under(net: Net, fault: contextlib.AbstractContextManager[Any], lasts_s: float) -> list[int]:
    """The program begins, the fault lasts for a while, and the results are right, now and later.

    Returns:
        the places of the hosts whose nodes were declared dead and began anew.
    """
    before = net.nodes()
    gate = net.begin()
    try:
        with fault:
            gate.touch()
            time.sleep(lasts_s)  # the fault
    finally:  # also if this machine cannot do that to its network: the next test finds the program ready
        gate.touch()
        net.verdict()
    return [place for place, (old, new) in enumerate(zip(before, net.nodes(), strict=True)) if old != new]


@contextlib.contextmanager
def dropping(host: Host, *rules: tuple[str, str]) -> Iterator[None]:
    try:
        for hook, rule in rules:
            host.faulty(hook, rule)
        yield
    finally:
        host.heal()


LONG_S = 2.3  # beyond DEATH_NS
SHORT_S = 0.15


@pytest.mark.parametrize(
    "rules",
    [
        [("input", "drop"), ("output", "drop")],
        [("input", "drop")],
        [("output", "drop")],
    ],
    ids=["both ways", "it hears nothing", "it is not heard"],
)  # fmt: skip
def test_a_host_is_cut_off_until_its_node_is_dead(net: Net, rules: list[tuple[str, str]]) -> None:
    assert reborn_under(net, dropping(net.hosts[2], *rules), LONG_S) == [2]


def test_two_hosts_cannot_reach_each_other_and_everybody_else_can(net: Net) -> None:
    """Nobody is dead; what one needs of the other comes once it can."""
    other = net.hosts[2].ip_address
    rules = ("input", f"ip saddr {other} drop"), ("output", f"ip daddr {other} drop")
    assert reborn_under(net, dropping(net.hosts[1], *rules), LONG_S) == []


def test_the_host_of_the_control_store_is_cut_off_from_all_others(net: Net) -> None:
    """Its own node and driver go on; all others begin anew."""
    rules = ("input", 'iif "eth0" drop'), ("output", 'oif "eth0" drop')
    assert reborn_under(net, dropping(net.hosts[0], *rules), LONG_S) == [1, 2]


@contextlib.contextmanager
def flapping(host: Host, times: int) -> Iterator[None]:
    host.plug_out()
    yield
    for number in range(times):
        if number:
            host.plug_out()
        time.sleep(SHORT_S)  # the fault
        host.plug_in()
        time.sleep(SHORT_S)  # and how long it is mended


def test_a_host_comes_and_goes(net: Net) -> None:
    assert reborn_under(net, flapping(net.hosts[1], 6), 0.0) in (
        [],
        [1],
    )  # packets that are sent again are late


@pytest.mark.parametrize(
    "rule", ["numgen random mod 100 < 5 drop", 'iif "eth0" dup to {self}'], ids=["lost", "doubled"]
)
def test_single_packets_are(net: Net, rule: str) -> None:
    host = net.hosts[1]
    rule = rule.format(self=host.ip_address)
    assert reborn_under(net, dropping(host, ("input", rule)), 0.5) == []


def test_packets_come_late_and_in_another_order(net: Net) -> None:
    host = net.hosts[1]
    with dropping(host):
        host.netem("delay", "20ms", "15ms")
        net.begin().touch()
        net.verdict()


@contextlib.contextmanager
def stopped(host: Host) -> Iterator[None]:
    os.kill(host.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.pid, signal.SIGCONT)


def test_a_node_is_stopped_and_its_late_words_change_nothing(net: Net) -> None:
    assert reborn_under(net, stopped(net.hosts[2]), LONG_S) == [2]
