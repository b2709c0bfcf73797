"""How long a client of a replicated shard waits when a replica dies, and when one joins (figure 10a).

``python -m benchmarks.bench_failover`` starts a master and three replicas, writes one key after the other
and waits for each answer, and meanwhile kills the head, starts it again, kills the tail, and so on. It prints
the longest wait around each event, and reads back everything that was acknowledged.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zray.config import Config
from zray.ids import random_id
from zray.protocol.cluster import FromScheduler
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_KV,
    ChainEpoch,
    FromShard,
    NodeHello,
    TablePage,
    TablePut,
    TableReply,
    TableScan,
)
from zray.runtime.endpoints import remove_socket_file, replica_address
from zray.runtime.transport import Transport

PATIENCE_S = 30.0
REPEAT_S = 0.05


class Chain:
    """The processes of one replicated shard, in a directory."""

    def __init__(self, directory: Path, replicas: int) -> None:
        self.directory, self.count = directory, replicas
        self.cluster_id = random_id().hex()
        self.replicas: dict[int, subprocess.Popen[bytes]] = {}
        self.master = self.start_master()
        for replica in range(replicas):
            self.start(replica)

    @property
    def endpoints(self) -> list[str]:
        """Where the replicas listen, by number."""
        return [self.endpoint(f"replica{replica}") for replica in range(self.count)]

    def endpoint(self, name: str) -> str:
        return f"ipc://{self.directory}/{name}"

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "zray.services.gcs", "--listen", self.endpoint(name)]
        command += ["--shard", "0/1", "--cluster-id", self.cluster_id, "--parent-pid", str(os.getpid())]
        with (self.directory / f"{name}.log").open("ab") as output:
            return subprocess.Popen([*command, *options], stderr=output)

    def start_master(self) -> subprocess.Popen[bytes]:
        self.master = self._start("master", "--master-of", str(self.count))
        return self.master

    def start(self, replica: int, *options: str) -> None:
        """A replica without a log joins as an empty one."""
        master = self.endpoint("master")
        name = f"replica{replica}"
        self.replicas[replica] = self._start(name, "--replica", str(replica), "--master", master, *options)

    def kill(self, replica: int) -> None:
        process = self.replicas.pop(replica)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in [self.master, *self.replicas.values()]:
            process.terminate()
        for process in [self.master, *self.replicas.values()]:
            process.wait()
        for endpoint in [self.endpoint("master"), *self.endpoints]:
            remove_socket_file(endpoint)  # one that was killed leaves it behind


class Client:
    """Writes keys one by one to the head of a chain, and finds the head again when it changes.

    Args:
        endpoints: of the replicas, by number.
        config: with the key of the cluster, if they listen on tcp.
    """

    def __init__(self, endpoints: list[str], config: Config | None = None) -> None:
        self.addresses = [replica_address(0, replica) for replica in range(len(endpoints))]
        self.transport = Transport(random_id(), batch_decoder(FromShard | FromScheduler), config or Config())
        for address, endpoint in zip(self.addresses, endpoints, strict=True):
            self.transport.connect(address, endpoint, may_drop=True)
        self.epoch: ChainEpoch | None = None
        self.tokens = 0
        self.written: dict[bytes, bytes] = {}
        self.waits_s: list[float] = []

    @property
    def members(self) -> list[int]:
        """The numbers of the replicas, head first, as of the newest epoch that was heard of."""
        if self.epoch is None:
            return []
        return [self.addresses.index(member.address) for member in self.epoch.members]

    def say(self, message: Any) -> None:
        """To the head; to everybody who may know it, as long as nobody has said."""
        head = None if self.epoch is None else self.epoch.members[0].address
        for address in self.addresses if head is None else [head]:
            self.transport.send(address, [message])

    def ask_around(self) -> None:
        """Who is not the head says who is; the hello makes that also news that comes later."""
        hello = NodeHello(PROTOCOL_VERSION, b"c" * 16, 1, os.getpid(), "", "", ())
        for address in self.addresses:
            self.transport.send(address, [hello])

    def ask(self, message: Any) -> Any:
        """The answer to a request, repeated until there is one."""
        self.say(message)
        started = asked = time.monotonic()
        while True:
            if time.monotonic() - asked > REPEAT_S:
                asked = time.monotonic()
                if asked - started > PATIENCE_S:
                    raise TimeoutError(f"no answer to {message} within {PATIENCE_S} s")
                self.ask_around()
                self.say(message)
            if not self.transport.readable():
                self.transport.wait(10)
            for _, answer in self.transport.receive(100):
                if isinstance(answer, ChainEpoch):
                    self._learn(answer, message)
                elif getattr(answer, "token", None) == message.token:
                    return answer

    def _learn(self, epoch: ChainEpoch, unanswered: Any) -> None:
        if self.epoch is None or epoch.epoch > self.epoch.epoch:
            former, self.epoch = self.epoch, epoch
            if former is None or former.members[0] != epoch.members[0]:
                self.say(unanswered)

    def put(self) -> None:
        """One more key."""
        self.tokens += 1
        key, value = b"key%09d" % self.tokens, b"v" * 100
        started = time.monotonic()
        reply = self.ask(TablePut(self.tokens, TABLE_KV, key, value))
        self.waits_s.append(time.monotonic() - started)
        assert isinstance(reply, TableReply)
        assert reply.ok, reply
        self.written[key] = value

    def put_until(self, members: int, more_s: float) -> float:
        """Write until the chain has so many members and for a while on; the longest wait, in seconds."""
        self.waits_s.clear()
        deadline = time.monotonic() + PATIENCE_S
        until: float | None = None
        while until is None or time.monotonic() < until:
            self.put()
            if self.tokens % 500 == 0:
                self.ask_around()
            if until is None and len(self.members) == members:
                until = time.monotonic() + more_s
            if time.monotonic() > deadline:
                raise TimeoutError(f"the chain is {self.members} and not of {members} replicas")
        return max(self.waits_s)

    def read_back(self, table: int = TABLE_KV) -> dict[bytes, bytes]:
        """Everything in a table."""
        found: dict[bytes, bytes] = {}
        after, more = b"", True
        while more:
            self.tokens += 1
            page = self.ask(TableScan(self.tokens, table, after, 10_000))
            assert isinstance(page, TablePage)
            found.update(page.entries)
            more = page.more or len(page.entries) == 10_000
            after = page.entries[-1][0] if page.entries else b""
        return found

    def close(self) -> None:
        self.transport.close(linger_ms=0)


def rows(chain: Chain, client: Client, rounds: int) -> list[tuple[str, float, int]]:
    """(event, longest wait in milliseconds, writes meanwhile) for each thing that happens."""
    found: list[tuple[str, float, int]] = []

    def note(what: str, members: int) -> None:
        wait_s = client.put_until(members, 0.5)
        found.append((what, wait_s * 1000, len(client.waits_s)))

    client.ask_around()
    note("start", chain.count)
    note("nothing", chain.count)
    for _ in range(rounds):
        for what, place in (("head", 0), ("middle", chain.count // 2), ("tail", -1)):
            replica = client.members[place]
            chain.kill(replica)
            note(f"the {what} is killed", chain.count - 1)
            chain.start(replica)
            note("a replica joins", chain.count)
    return found


def main() -> None:
    """Print a row per event."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zray-failover-") as directory:
        chain = Chain(Path(directory), arguments.replicas)
        client = Client(chain.endpoints)
        try:
            for what, wait_ms, writes in rows(chain, client, arguments.rounds):
                print(f"{what:24} longest wait {wait_ms:8.2f} ms   {writes:7d} writes", flush=True)
            lost = client.written.keys() - client.read_back().keys()
            print(f"{len(client.written)} acknowledged, {len(lost)} lost")
        finally:
            client.close()
            chain.close()


if __name__ == "__main__":
    main()
