"""Replicas of shards killed with SIGKILL, in real processes: nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.bench_failover import PATIENCE_S, Chain, Client
from tests.chaos.history import judge, read_history
from tests.chaos.store_clients import PREFIX
from tests.chaos.witnesses import store_clients
from tests.clusters import Place, place
from tests.integration.test_commands import finish, line_of, tell
from tests.support import eventually
from zray.protocol.messages import TABLE_TASK, TaskRecord
from zray.runtime.endpoints import knock

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

REPLICAS = 3


class Whole:
    """A chain of processes, and a client that writes to it."""

    def __init__(self, directory: Path) -> None:
        self.chain = Chain(directory, REPLICAS)
        self.client = Client(self.chain.endpoints)
        self.client.ask_around()
        self.client.put_until(REPLICAS, 0.1)

    def judge(self) -> None:
        found = self.client.read_back()
        assert {key: value for key, value in found.items() if not is_of_others(key)} == self.client.written


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Its directory has a short name: the path of a socket must not be long. Others keep a history of it."""
    folder = tmp_path_factory.mktemp("c")
    made = Whole(folder)
    with store_clients([",".join(made.chain.endpoints)], folder / "history"):
        yield made
    made.client.close()
    made.chain.close()
    checked = judge(read_history(folder / "history"))
    print(checked)
    assert checked.operations > 0


def is_of_others(key: bytes) -> bool:
    """Whether the clients with a history wrote it."""
    return key.startswith(PREFIX.encode())


def pid_at(endpoint: str) -> int:
    """Who listens; 0 if nobody does at this moment, because a replica has just been started again."""
    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
        return knock(endpoint)
    return 0


@pytest.mark.parametrize("place_in_chain", [0, 1, -1], ids=["head", "middle", "tail"])
def test_a_replica_dies_and_joins_again_while_clients_write(whole: Whole, place_in_chain: int) -> None:
    for _ in range(2):
        victim = whole.client.members[place_in_chain]
        whole.chain.kill(victim)
        whole.client.put_until(REPLICAS - 1, 0.1)
        assert victim not in whole.client.members
        whole.judge()
        whole.chain.start(victim)
        whole.client.put_until(REPLICAS, 0.1)
        assert whole.client.members[-1] == victim
        whole.judge()


@pytest.mark.parametrize("place_in_chain", [0, -1], ids=["head", "tail"])
def test_a_replica_is_stopped_and_what_it_says_later_changes_nothing(
    whole: Whole, place_in_chain: int
) -> None:
    victim = whole.client.members[place_in_chain]
    process = whole.chain.replicas[victim]
    process.send_signal(signal.SIGSTOP)
    try:
        whole.client.put_until(REPLICAS - 1, 0.1)
        assert victim not in whole.client.members
    finally:
        process.send_signal(signal.SIGCONT)
    whole.client.put_until(REPLICAS, 0.1)
    assert whole.client.members[-1] == victim
    whole.judge()


def test_only_one_replica_is_left_and_the_others_come_back(whole: Whole) -> None:
    victims = whole.client.members[:2]
    for left, victim in enumerate(victims):
        whole.chain.kill(victim)
        whole.client.put_until(REPLICAS - 1 - left, 0.1)
    whole.judge()
    for victim in victims:
        whole.chain.start(victim)
    whole.client.put_until(REPLICAS, 0.1)
    for victim in whole.client.members[:1]:  # the one that never died
        whole.chain.kill(victim)
    whole.client.put_until(REPLICAS - 1, 0.1)
    whole.judge()


def test_without_its_master_a_chain_serves_and_a_new_master_goes_on(whole: Whole) -> None:
    whole.chain.master.kill()
    whole.chain.master.wait()
    for _ in range(500):
        whole.client.put()
    whole.chain.start_master()
    victim = whole.client.members[0]
    whole.chain.kill(victim)  # the new master has heard nothing yet, or a little
    whole.client.put_until(REPLICAS - 1, 0.1)
    whole.chain.start(victim)
    whole.client.put_until(REPLICAS, 0.1)
    whole.judge()


def test_a_whole_shard_starts_again_from_its_disks(whole: Whole, tmp_path: Path) -> None:
    data = {replica: ("--data-dir", str(tmp_path / f"data{replica}")) for replica in range(REPLICAS)}
    for replica in range(REPLICAS):  # one after the other gets a disk
        whole.chain.kill(replica)
        whole.client.put_until(REPLICAS - 1, 0.05)
        whole.chain.start(replica, *data[replica])
        whole.client.put_until(REPLICAS, 0.05)
    for replica in range(REPLICAS):
        whole.chain.kill(replica)
    for replica in range(REPLICAS):
        whole.chain.start(replica, *data[replica])
    whole.client.put()
    whole.client.put_until(REPLICAS, 0.05)
    whole.judge()


# --- a cluster on chains ---------------------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


PROGRAM = """
import zray
from zray.api.cluster import report

zray.init(num_cpus=2, gcs_shards=1, gcs_replicas=3)

@zray.remote
def double(x):
    return 2 * x

def run(first):
    refs = [double.remote(i) for i in range(first, first + 500)]
    assert zray.get(refs) == [2 * i for i in range(first, first + 500)]
    return refs

kept = run(0)
print(report("node")["endpoint"], flush=True)
for round in range(1, 4):
    input()
    kept += run(500 * round)
    print("ran", flush=True)
input()
"""


@pytest.mark.parametrize("place_in_chain", [0, 1, -1], ids=["head", "middle", "tail"])
def test_tasks_run_on_while_replicas_die(here: Place, place_in_chain: int) -> None:
    driver = here.start(PROGRAM)
    folder = line_of(driver).removeprefix("ipc://").rpartition("/")[0]
    endpoints = [f"ipc://{folder}/gcs0.{replica}" for replica in range(REPLICAS)]
    client = Client(endpoints)
    client.ask_around()
    try:
        for _ in range(3):
            client.put_until(REPLICAS, 0.0)
            victim = client.members[place_in_chain]
            os.kill(eventually(lambda: pid_at(endpoints[victim]), 10.0), signal.SIGKILL)  # noqa: B023
            tell(driver)
            assert line_of(driver) == "ran"
        deadline = time.monotonic() + PATIENCE_S
        while needed_records(client) != 2000:  # the last ones may still gather on the node
            assert time.monotonic() < deadline, needed_records(client)
        assert client.read_back() == client.written
    finally:
        client.close()
    done = finish(driver, "\n")
    assert done.returncode == 0


def needed_records(client: Client) -> int:
    """How many task records of the shard nobody has released."""
    decode = msgspec.msgpack.Decoder(TaskRecord).decode
    return sum(not decode(row).released for row in client.read_back(TABLE_TASK).values())
