"""``zray-gcs`` as a real process: crashes, restarts, refusals and ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support import eventually
from zray.config import Config
from zray.ids import task_id
from zray.protocol.cluster import FromScheduler, Members
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_KV,
    TABLE_TASK,
    FromShard,
    NodeHello,
    Recorded,
    RecordTasks,
    Refused,
    ShardWelcome,
    TableChanged,
    TablePage,
    TablePut,
    TableReply,
    TableScan,
    TableSubscribe,
    TaskRecord,
)
from zray.runtime.append_log import LOG_NAME
from zray.runtime.transport import Transport
from zray.services.gcs import main, shard_address

pytestmark = pytest.mark.slow

PATIENCE_S = 20.0
NODE_ID = b"n" * 16

_decode_all = batch_decoder(FromShard | FromScheduler | Members)


def decode(frame: bytes) -> list[Any]:
    """What a shard says, without its word on who is alive."""
    return [message for message in _decode_all(frame) if not isinstance(message, Members)]


class Gcs:
    """A ``zray-gcs`` process in a directory, at an ipc endpoint there."""

    def __init__(self, directory: Path, *options: str, **popen: Any) -> None:
        self.socket_file = directory / "gcs.sock"
        self.endpoint = f"ipc://{self.socket_file}"
        self.data_dir = directory / "data"
        self.log_file = directory / "gcs.log"
        command = [sys.executable, "-m", "zray.services.gcs", "--listen", self.endpoint]
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir), *options], stderr=output, **popen
            )

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def log(self) -> str:
        return self.log_file.read_text()


class Client:
    """A peer of a shard that waits for what it expects."""

    def __init__(self, endpoint: str, shard: int = 0, identity: bytes = b"client") -> None:
        self.address = shard_address(shard)
        self.transport = Transport(identity, decode, Config())
        self.transport.connect(self.address, endpoint)
        self.inbox: list[Any] = []

    def send(self, *messages: Any) -> None:
        self.transport.send(self.address, list(messages))

    def take(self, count: int) -> list[Any]:
        """The next ``count`` messages, waiting for them."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.inbox) < count:
            assert time.monotonic() < deadline, f"{len(self.inbox)} of {count} messages came"
            if not self.transport.readable():
                self.transport.wait(100)
            self.inbox += [message for _, message in self.transport.receive(100)]
        taken, self.inbox = self.inbox[:count], self.inbox[count:]
        return taken

    def ask(self, *messages: Any) -> Any:
        """Send messages of which the last is answered; returns the answer."""
        self.send(*messages)
        return self.take(1)[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """A function that starts a ``Gcs`` in the test's directory; those that still run must end cleanly."""
    started: list[Gcs] = []

    def start_one(*options: str, **popen: Any) -> Gcs:
        started.append(Gcs(tmp_path, *options, **popen))
        return started[-1]

    yield start_one
    for gcs in started:
        try:
            assert gcs.process.poll() is not None or gcs.end(signal.SIGTERM) == 0
        finally:
            gcs.process.kill()


@pytest.fixture
def connect() -> Iterator[Any]:
    """A function that makes a ``Client``; all of them are closed at the end."""
    clients: list[Client] = []

    def connect_one(endpoint: str, **options: Any) -> Client:
        clients.append(Client(endpoint, **options))
        return clients[-1]

    yield connect_one
    for client in clients:
        client.transport.close(linger_ms=0)


def hello(version: int = PROTOCOL_VERSION) -> NodeHello:
    return NodeHello(version, NODE_ID, 1, os.getpid(), "host", "tcp://host:1", (("CPU", 10_000),))


def records(first: int, count: int) -> tuple[TaskRecord, ...]:
    return tuple(
        TaskRecord(
            task_id=task_id(b"p" * 8, number), parent_id=b"p" * 16, descriptor_id=b"d" * 16,
            args=b"a" * 60, deps=(), node_id=NODE_ID, attempt=0, state=0,
        )
        for number in range(first, first + count)
    )  # fmt: skip


def scan(client: Client, table: int) -> tuple[tuple[bytes, bytes], ...]:
    page = client.ask(TableScan(0, table, b"", 100_000))
    assert isinstance(page, TablePage)
    return page.entries


def test_acknowledged_writes_survive_sigkill(start: Any, connect: Any) -> None:
    """I7. Killed in the middle of a stream of writes: what was acknowledged is back, in whole batches."""
    gcs = start()
    client = connect(gcs.endpoint)
    assert isinstance(client.ask(hello()), ShardWelcome)
    for batch in range(100):
        put = TablePut(batch, TABLE_KV, b"%04d" % batch, b"v")
        client.send(RecordTasks(batch + 1, records(10 * batch, 10)), put)
    answers = client.take(101)
    gcs.end(signal.SIGKILL)
    answers += [message for _, message in client.transport.receive(1000)]
    recorded = max(answer.sequence for answer in answers if isinstance(answer, Recorded))
    puts = sum(isinstance(answer, TableReply) for answer in answers)
    assert recorded >= 50

    again = connect(start().endpoint, identity=b"again")
    tasks, pairs = scan(again, TABLE_TASK), scan(again, TABLE_KV)
    assert len(tasks) % 10 == 0
    assert [key for key, _ in tasks] == [record.task_id for record in records(0, len(tasks))]
    assert len(tasks) >= 10 * recorded
    assert len(pairs) >= puts


def test_one_thousand_acknowledged_records_are_back_after_sigkill(start: Any, connect: Any) -> None:
    gcs = start("--sync", "group")
    client = connect(gcs.endpoint)
    assert client.ask(RecordTasks(1, records(0, 1000))) == Recorded(1)
    gcs.end(signal.SIGKILL)
    gcs = start()
    assert len(scan(connect(gcs.endpoint, identity=b"again"), TABLE_TASK)) == 1000
    assert "recovered 1000 records" in gcs.log()
    assert gcs.end(signal.SIGTERM) == 0


def test_torn_tail_is_cut_and_the_shard_starts(start: Any, connect: Any) -> None:
    gcs = start()
    connect(gcs.endpoint).ask(RecordTasks(1, records(0, 10)))
    gcs.end(signal.SIGKILL)
    with (gcs.data_dir / LOG_NAME).open("ab") as log:
        log.write(b"torn")
    gcs = start()
    assert len(scan(connect(gcs.endpoint, identity=b"again"), TABLE_TASK)) == 10
    assert "cut off 4 bytes" in gcs.log()


def test_damage_in_the_middle_keeps_the_shard_from_starting(start: Any, connect: Any) -> None:
    gcs = start()
    connect(gcs.endpoint).ask(RecordTasks(1, records(0, 10)))
    gcs.end(signal.SIGTERM)
    file = gcs.data_dir / LOG_NAME
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)
    gcs = start()
    assert gcs.process.wait(PATIENCE_S) == 1
    assert "damaged at byte 8, and intact records follow" in gcs.log()
    assert file.read_bytes() == content


def test_log_is_compacted_while_it_serves(start: Any, connect: Any) -> None:
    environment = dict(os.environ, ZRAY_LOG_COMPACT_BYTES="20000")
    gcs = start(env=environment)
    client = connect(gcs.endpoint)
    for round_number in range(300):
        client.ask(TablePut(0, TABLE_KV, b"key", b"%05d" % round_number * 100))
    assert (gcs.data_dir / LOG_NAME).stat().st_size < 25_000
    gcs.end(signal.SIGKILL)
    assert "compacted" in gcs.log()
    entries = scan(connect(start(env=environment).endpoint, identity=b"again"), TABLE_KV)
    assert entries == ((b"key", b"00299" * 100),)


def test_full_disk_ends_the_shard_before_it_acknowledges(start: Any, connect: Any) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    gcs = start(preexec_fn=limit_files)
    client = connect(gcs.endpoint)
    acknowledged = 0
    while gcs.process.poll() is None:
        client.send(TablePut(acknowledged, TABLE_KV, b"%04d" % acknowledged, b"v" * 1000))
        while gcs.process.poll() is None and not client.transport.receive(1):
            client.transport.wait(20)
        acknowledged += gcs.process.poll() is None
    assert gcs.process.returncode == 1
    assert "could not be written" in gcs.log()
    assert len(scan(connect(start().endpoint, identity=b"again"), TABLE_KV)) == acknowledged > 10


def test_garbage_and_wrong_versions_are_refused_and_the_shard_goes_on(start: Any, connect: Any) -> None:
    gcs = start()
    client = connect(gcs.endpoint)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(gcs.endpoint)
        for frame in (b"", b"\xc1 junk", b"\x91\x92\x05\x01"):
            stranger.send(frame)
            assert stranger.poll(PATIENCE_S * 1000)
            [refused] = decode(stranger.recv())
            assert (type(refused), refused.reason) == (Refused, "garbage")
    refused = client.ask(hello(version=PROTOCOL_VERSION + 1))
    assert (type(refused), refused.reason) == (Refused, "version")
    welcome = client.ask(hello())
    assert (welcome.version, welcome.shard, welcome.shard_count) == (PROTOCOL_VERSION, 0, 1)
    assert "refused a frame from" in gcs.log()


def test_restarted_shard_tells_its_nodes_by_itself(start: Any, connect: Any) -> None:
    """A node that only waits for a subscription would otherwise wait for ever (I6)."""
    gcs = start()
    node = connect(gcs.endpoint, identity=b"node")
    first = node.ask(hello())
    gcs.end(signal.SIGKILL)
    gcs = start()
    assert node.take(1) == [first]
    node.send(hello(), TableSubscribe(1, TABLE_KV, b"k"))
    while node.ask(TablePut(2, TABLE_KV, b"k", b"v")) != TableChanged(TABLE_KV, b"k", b"v"):
        pass  # a repeated welcome
    assert f"node {NODE_ID.hex()[:24]} is here" in gcs.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(start: Any, connect: Any, number: int) -> None:
    gcs = start("--shard", "2/3")
    client = connect(gcs.endpoint, shard=2)
    assert client.ask(TablePut(1, TABLE_KV, b"k", b"v")).ok
    assert gcs.end(number) == 0
    assert not gcs.socket_file.exists()
    assert "shard 2/3" in gcs.log()


def test_it_ends_with_its_parent(start: Any, connect: Any) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as parent:
        gcs = start("--parent-pid", str(parent.pid))
        connect(gcs.endpoint).ask(TablePut(1, TABLE_KV, b"k", b"v"))
        assert gcs.process.poll() is None
    assert gcs.process.wait(PATIENCE_S) == 0
    assert f"process {parent.pid} is gone" in gcs.log()
    assert not gcs.socket_file.exists()


def test_it_ends_at_once_if_its_parent_is_gone(start: Any) -> None:
    with subprocess.Popen(["true"]) as parent:
        pass
    assert start("--parent-pid", str(parent.pid)).process.wait(PATIENCE_S) == 0


def test_one_that_opens_after_the_end_of_its_node_brings_no_session_back(start: Any, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as parent:
        pass
    late = start("--parent-pid", str(parent.pid), "--data-dir", str(tmp_path / "session" / "gcs0.log"))
    assert late.process.wait(PATIENCE_S) == 1
    assert "make that first" in late.log()
    assert not (tmp_path / "session").exists()


def test_second_process_cannot_take_the_log_or_the_socket(start: Any, connect: Any, tmp_path: Path) -> None:
    gcs = start()
    connect(gcs.endpoint).ask(TablePut(1, TABLE_KV, b"k", b"v"))
    assert start().process.wait(PATIENCE_S) == 1
    assert "in use by process" in gcs.log()
    assert main(["--listen", gcs.endpoint]) == 1
    assert connect(gcs.endpoint, identity=b"again").ask(TablePut(2, TABLE_KV, b"k", b"w")).ok


def test_log_of_another_shard_or_cluster_is_refused(start: Any, connect: Any) -> None:
    gcs = start("--cluster-id", "ab" * 16)
    assert connect(gcs.endpoint).ask(hello()).cluster_id == b"\xab" * 16
    assert gcs.end(signal.SIGTERM) == 0
    for options in (("--shard", "1/2"), ("--cluster-id", "cd" * 16)):
        assert start(*options).process.wait(PATIENCE_S) == 1
    assert gcs.log().count(f"this is shard 0/1 of cluster {'ab' * 16}") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--shard", "2/2"),
        ("--shard", "x"),
        ("--cluster-id", "12"),
        ("--listen", "inproc://x"),
        ("--sync", "maybe"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_port_in_use_is_a_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        assert main(["--listen", f"tcp://127.0.0.1:{port}"]) == 1
    assert f"cannot listen on tcp://127.0.0.1:{port}: Address already in use" in caplog.text


# --- replicas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--replica", "0"], "--replica and --master belong together"),
        (["--master", "127.0.0.1:1"], "--replica and --master belong together"),
        (["--replica", "0", "--master", "127.0.0.1:1"], "--replica asks for --cluster-id"),
        (["--replica", "many", "--master", "127.0.0.1:1"], "'many' is not a whole number up to 64"),
    ],
)
def test_what_makes_no_replica_is_said(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_the_log_of_a_replica_is_refused_without_its_chain(start: Any, tmp_path: Path) -> None:
    cluster = ["--cluster-id", "ab" * 16]
    master = ["--master", f"ipc://{tmp_path}/nobody"]
    replica = start("--replica", "0", *master, *cluster)
    eventually(lambda: "listens on" in replica.log(), PATIENCE_S, "the replica listens")
    assert replica.end(signal.SIGKILL) == -signal.SIGKILL
    replica.socket_file.unlink()
    alone = start(*cluster)
    assert alone.process.wait(PATIENCE_S) == 1
    assert "this is the log of a replica; start it with --replica" in alone.log()
