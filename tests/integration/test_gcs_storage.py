"""``zray-gcs --storage``: a shard and a whole cluster whose records are in a real Redis server."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import Place, finish, line_of, place, tell
from tests.integration.test_gcs import PATIENCE_S, Client, hello, records, scan
from tests.redis_server import RedisServer, redis_server
from tests.support import eventually
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_TASK,
    Recorded,
    RecordTasks,
    ShardWelcome,
    TablePut,
    TableReply,
)

pytestmark = pytest.mark.slow


class StoredShard:
    """A ``zray-gcs`` process whose log is in a server."""

    def __init__(
        self,
        here: Place,
        url: str,
        *options: str,
        name: str = "gcs",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.endpoint = f"ipc://{here.folder}/{name}.sock"
        self.log_file = here.folder / f"{name}.log"
        command = [sys.executable, "-m", "zray.services.gcs", "--listen", self.endpoint, "--storage", url]
        with self.log_file.open("ab") as output:
            self.process = here.start_command(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                environment=environment or {},
            )  # fmt: skip

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def log(self) -> str:
        return self.log_file.read_text()


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as found:
        yield found


@pytest.fixture
def connect() -> Iterator[Any]:
    clients: list[Client] = []

    def connect_one(shard: StoredShard, identity: bytes = b"client") -> Client:
        clients.append(Client(shard.endpoint, identity=identity))
        return clients[-1]

    yield connect_one
    for client in clients:
        client.transport.close(linger_ms=0)


@pytest.mark.parametrize("victim", ["shard", "server", "both"])
def test_acknowledged_writes_survive_sigkill(
    here: Place, server: RedisServer, connect: Any, victim: str
) -> None:
    """I7, with the log elsewhere: killed in the middle of a stream of writes."""
    shard = StoredShard(here, server.url, "--sync", "group")
    client = connect(shard)
    assert isinstance(client.ask(hello()), ShardWelcome)
    for batch in range(100):
        client.send(
            RecordTasks(batch + 1, records(10 * batch, 10)), TablePut(batch, TABLE_KV, b"%04d" % batch, b"v")
        )
    answers = client.take(101)
    if victim != "shard":
        server.kill()
    if victim != "server":
        shard.end(signal.SIGKILL)
    answers += [message for _, message in client.transport.receive(1000)]
    recorded = max(answer.sequence for answer in answers if isinstance(answer, Recorded))
    puts = sum(isinstance(answer, TableReply) for answer in answers)
    assert recorded >= 50
    if victim != "shard":
        server.start()
    if victim == "server":
        assert shard.end() == 0, shard.log()

    again = StoredShard(here, server.url)
    client = connect(again, b"again")
    tasks, pairs = scan(client, TABLE_TASK), scan(client, TABLE_KV)
    assert len(tasks) % 10 == 0
    assert [key for key, _ in tasks] == [record.task_id for record in records(0, len(tasks))]
    assert len(tasks) >= 10 * recorded
    assert len(pairs) >= puts
    assert again.end() == 0


def test_a_log_is_compacted_while_it_serves(here: Place, server: RedisServer, connect: Any) -> None:
    shard = StoredShard(here, server.url, environment={"ZRAY_LOG_COMPACT_BYTES": "20000"})
    client = connect(shard)
    for number in range(300):
        client.ask(TablePut(0, TABLE_KV, b"key", b"%05d" % number * 100))
    assert server.client.llen("{zray:0}:log") < 60
    shard.end(signal.SIGKILL)
    assert "compacted" in shard.log()
    again = StoredShard(here, server.url)
    assert scan(connect(again, b"again"), TABLE_KV) == ((b"key", b"00299" * 100),)
    assert again.end() == 0


def test_a_server_that_stays_away_ends_the_shard_before_it_acknowledges(
    here: Place, server: RedisServer, connect: Any
) -> None:
    shard = StoredShard(here, server.url, environment={"ZRAY_STORAGE_TIMEOUT_NS": "500000000"})
    client = connect(shard)
    assert client.ask(TablePut(1, TABLE_KV, b"a", b"v")).ok
    server.process.send_signal(signal.SIGSTOP)
    client.send(TablePut(2, TABLE_KV, b"b", b"v"))
    assert shard.process.wait(PATIENCE_S) == 1
    assert client.transport.receive(10) == []
    assert "the server does not answer for 0.5 s" in shard.log()
    server.process.send_signal(signal.SIGCONT)
    again = StoredShard(here, server.url)
    assert (b"a", b"v") in scan(connect(again, b"again"), TABLE_KV)
    assert again.end() == 0


def test_of_two_processes_of_one_shard_the_newer_has_the_log(
    here: Place, server: RedisServer, connect: Any
) -> None:
    old = StoredShard(here, server.url)
    client = connect(old)
    assert client.ask(TablePut(1, TABLE_KV, b"a", b"old")).ok
    new = StoredShard(here, server.url, name="new")
    assert connect(new, b"new").ask(TablePut(1, TABLE_KV, b"a", b"new")).ok
    client.send(TablePut(2, TABLE_KV, b"a", b"late"))
    assert old.process.wait(PATIENCE_S) == 1
    assert "another process has opened this log" in old.log()
    assert scan(connect(new, b"reader"), TABLE_KV) == ((b"a", b"new"),)
    assert new.end() == 0


def test_the_log_of_another_cluster_is_refused_and_left_alone(
    here: Place, server: RedisServer, connect: Any
) -> None:
    shard = StoredShard(here, server.url, "--cluster-id", "ab" * 16)
    client = connect(shard)
    assert client.ask(TablePut(1, TABLE_KV, b"a", b"v")).ok
    other = [
        "--listen",
        f"ipc://{here.folder}/other.sock",
        "--storage",
        server.url,
        "--cluster-id",
        "cd" * 16,
    ]
    refused = here.command(sys.executable, "-m", "zray.services.gcs", *other)
    assert refused.returncode == 1
    assert f"this is shard 0/1 of cluster {'ab' * 16}" in refused.stderr
    assert client.ask(TablePut(2, TABLE_KV, b"b", b"v")).ok
    assert shard.end() == 0


def test_a_data_directory_and_a_storage_exclude_each_other(here: Place) -> None:
    both = ["--data-dir", "here", "--storage", "redis://127.0.0.1:1/0"]
    refused = here.command(sys.executable, "-m", "zray.services.gcs", *both)
    assert (refused.returncode, "not allowed with argument" in refused.stderr) == (2, True)


def test_nobody_there_is_said(here: Place) -> None:
    pytest.importorskip("redis", reason="the extra dev has the package redis")
    environment = {"ZRAY_STORAGE": "redis://:hidden@127.0.0.1:1/0", "ZRAY_STORAGE_TIMEOUT_NS": "300000000"}
    failed = here.command(sys.executable, "-m", "zray.services.gcs", environment=environment)
    assert failed.returncode == 1
    assert "redis://127.0.0.1:1/0, key {zray:0}:log: the server does not answer for 0.3 s" in failed.stderr
    assert "hidden" not in failed.stderr


PROGRAM = """
import os, zray
zray.init(address="ADDRESS")
@zray.remote(max_retries=-1)
def double(x):
    return 2 * x
while input():
    print(sum(zray.get([double.remote(number) for number in range(200)])), flush=True)
"""


def _await_life(shard: StoredShard, number: int) -> None:
    eventually(lambda: shard.log().count(" listens on ") == number, PATIENCE_S, f"life {number} of the shard")


def test_a_cluster_runs_on_while_its_shard_and_its_server_die(here: Place, server: RedisServer) -> None:
    shard = StoredShard(here, server.url)
    eventually((here.folder / "gcs.sock").exists, PATIENCE_S)
    started = here.zray("start", "--address", shard.endpoint, "--num-cpus", "2", "--json")
    assert started.returncode == 0, started.stderr
    address = started.stdout.split('"address":"')[1].split('"')[0]
    driver = here.start(PROGRAM.replace("ADDRESS", address))
    for victim, lives in (("nobody", 1), ("shard", 2), ("server", 2), ("both", 3)):
        if victim in ("server", "both"):
            server.kill()
        if victim in ("shard", "both"):
            shard.end(signal.SIGKILL)
        if victim in ("server", "both"):
            server.start()
        if victim in ("shard", "both"):
            shard = StoredShard(here, server.url)
        tell(driver, "go")
        assert line_of(driver) == str(2 * sum(range(200))), victim
        _await_life(shard, lives)
    finish(driver, "\n")
    eventually(lambda: shard.log().count(" listens on ") == 3, PATIENCE_S, "the third life of the shard")
    recorded = eventually(lambda: server.client.llen("{zray:0}:log") > 2, PATIENCE_S, "records in the server")
    assert recorded
    assert here.zray("stop").returncode == 0
    assert shard.end() == 0
