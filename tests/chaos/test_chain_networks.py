"""A shard whose replicas are on several hosts, and a network that fails between them: no write is lost.

The chain master and clients that write and read all the time are on the first host, the replicas on others.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.history import judge, read_history
from tests.chaos.witnesses import clients_command
from tests.clusters import PATIENCE_S, Place, line_of, place, tell
from tests.network_hosts import Host, hosts_of_network
from tests.support import eventually
from zray.ids import random_id
from zray.runtime import cluster_key

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

MASTER_PORT, REPLICA_PORT = 6400, 6401
SHORT_S = 0.15


class SpreadChain:
    """A master, three replicas on as many hosts, and who writes."""

    def __init__(self, here: Place, hosts: list[Host]) -> None:
        self.here, self.hosts = here, hosts
        self.key = str(here.folder / "key")
        cluster_key.ensure(self.key)
        self.cluster_id = random_id().hex()
        self.processes: list[subprocess.Popen[str]] = []
        self.logs = (here.folder / "log").open("w")
        self._gcs(hosts[0], MASTER_PORT, "--master-of", "3")
        master = f"tcp://{hosts[0].ip_address}:{MASTER_PORT}"
        for number, host in enumerate(self.hosts[1:]):
            self._gcs(host, REPLICA_PORT, "--replica", str(number), "--master", master)
        endpoints = [f"tcp://{host.ip_address}:{REPLICA_PORT}" for host in hosts[1:]]
        self.history = here.folder / "history"
        clients = clients_command([",".join(endpoints)], self.history, "--key-file", self.key)
        self.clients = self._start(hosts[0], clients, stdout=subprocess.PIPE)
        self.operations = 0
        self.await_members(3)

    def _start(self, host: Host, command: list[str], **popen: Any) -> subprocess.Popen[str]:
        streams = {"stdout": self.logs, "stderr": self.logs, **popen}
        process = self.here.start_command(
            [*host.prefix, *command], environment={"ZRAY_KEY_FILE": self.key}, **streams
        )
        self.processes.append(process)
        return process

    def _gcs(self, host: Host, port: int, *options: str) -> None:
        listen = f"tcp://{host.ip_address}:{port}"
        command = [sys.executable, "-m", "zray.services.gcs", "--listen", listen, "--shard", "0/1"]
        self._start(host, [*command, "--cluster-id", self.cluster_id, *options])

    def ask(self, question: str) -> Any:
        tell(self.clients, question)
        return json.loads(line_of(self.clients))

    def head(self) -> Host:
        return self.hosts[1 + self.ask("members")[0]]

    def await_members(self, count: int) -> None:
        eventually(lambda: len(self.ask("members")) == count, PATIENCE_S, f"{count} replicas in the chain")

    def judge(self) -> None:
        """The chain is whole again, and its clients, who read all keys first, saw what can be."""
        self.await_members(3)
        assert self.ask("read") > 0
        checked = judge(read_history(self.history))
        assert checked.operations > self.operations
        self.operations = checked.operations

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.communicate(timeout=PATIENCE_S)
        self.logs.close()


@pytest.fixture(scope="module")
def chain() -> Iterator[SpreadChain]:
    with place() as here, hosts_of_network(here, 4) as hosts:
        made = SpreadChain(here, hosts)
        try:
            yield made
        finally:
            for host in hosts:
                host.heal()
            made.close()


FROM_MASTER = f"tcp sport {MASTER_PORT} drop"
TO_MASTER = f"tcp dport {MASTER_PORT} drop"


@pytest.mark.parametrize(
    "rules",
    [
        [("input", "drop"), ("output", "drop")],
        [("input", "drop")],
        [("output", "drop")],
        [("input", FROM_MASTER), ("output", TO_MASTER)],
    ],
    ids=["all", "what it hears", "what it says", "its master"],
)  # fmt: skip
def test_the_head_is_cut_off(chain: SpreadChain, rules: list[tuple[str, str]]) -> None:
    """Its former clients go to the next one; what it acknowledged before is there, and it joins again."""
    head = chain.head()
    try:
        for hook, rule in rules:
            head.faulty(hook, rule)
        eventually(lambda: chain.head() is not head, PATIENCE_S, "another head")
    finally:
        head.heal()
    chain.judge()


def test_replicas_come_and_go(chain: SpreadChain) -> None:
    victims = chain.hosts[1:]
    for turn in range(6):
        with contextlib.ExitStack() as stack:
            victim = victims[turn % 3]
            stack.callback(victim.plug_in)
            victim.plug_out()
            time.sleep(SHORT_S)  # the fault
        time.sleep(SHORT_S)  # and how long it is mended
    chain.judge()
