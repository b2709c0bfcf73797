"""Garbage over tcp, from strangers and from who has the key: nodes and shards refuse it and go on."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.clusters import line_of, place, tell
from tests.network_hosts import Host
from tests.nonsense import invented, types_of
from tests.protocol.shapes import LINKS
from zray.config import Config
from zray.protocol.cluster import Members
from zray.protocol.codec import batch_decoder, encode_batch
from zray.protocol.messages import Goodbye
from zray.runtime import cluster_key
from zray.runtime.endpoints import free_ports
from zray.runtime.transport import Transport

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PROGRAM = """
import json, sys, zray
import numpy as np
zray.init(address="ADDRESS")

@zray.remote
def make(number):
    return np.full(50_000, number)

@zray.remote(scheduling_strategy="SPREAD")
def total(array):
    return int(array.sum())

for line in sys.stdin:
    made = [make.remote(number) for number in range(8)]
    right = zray.get([total.remote(ref) for ref in made], timeout=30) == [50_000 * n for n in range(8)]
    nodes = sorted(node["node_id"] for node in zray.nodes() if node["alive"])
    print(json.dumps([right, nodes]), flush=True)
"""


class TcpCluster:
    """Two nodes and a control store that listen on tcp, and a driver that is asked whether all is well."""

    def __init__(self, hosts: list[Host], key: str, driver: subprocess.Popen[str]) -> None:
        self.key, self.driver = key, driver
        self.endpoints = [
            f"tcp://127.0.0.1:{each.laddr.port}"
            for host in hosts
            for process in (psutil.Process(host.pid), *psutil.Process(host.pid).children(recursive=True))
            for each in process.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        ]
        self.nodes = self.ask()
        assert len(self.nodes) == 2
        assert len(self.endpoints) == 5  # control and bulk of each node, and the control store

    def ask(self) -> list[str]:
        tell(self.driver)
        right, nodes = json.loads(line_of(self.driver))
        assert right
        return nodes

    def assert_well(self) -> None:
        """The same two nodes are alive and exchange objects."""
        assert self.ask() == self.nodes


@pytest.fixture(scope="module")
def cluster() -> Iterator[TcpCluster]:
    with place() as here:
        head, other = Host(here), Host(here)
        port, key = free_ports("127.0.0.1"), str(here.folder / "key")
        head.start("--head", "--port", str(port), "--key-file", key)
        other.start("--address", f"127.0.0.1:{port}", "--key-file", key)
        driver = head.driver(PROGRAM)
        try:
            yield TcpCluster([head, other], key, driver)
        finally:
            driver.communicate(timeout=30)
            here.zray("stop")


@pytest.fixture(autouse=True)
def _well(cluster: TcpCluster) -> Iterator[None]:
    yield
    cluster.assert_well()


GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01"


def test_bytes_of_a_stranger(cluster: TcpCluster) -> None:
    """Noise, half a handshake, a handshake of another kind, and connections that say nothing."""
    dice = random.Random(1)
    silent = []
    for endpoint in cluster.endpoints:
        address = "127.0.0.1", int(endpoint.rpartition(":")[2])
        mechanisms = [GREETING + name.ljust(20, b"\0") for name in (b"CURVE", b"NULL")]
        for start in (b"", GREETING, *mechanisms):
            for size in (0, 1, 64, 5000):
                stranger = socket.create_connection(address)
                stranger.sendall(start + dice.randbytes(size))
                if size == 64:
                    silent.append(stranger)
                else:
                    stranger.close()
    cluster.assert_well()
    for stranger in silent:
        stranger.close()


@pytest.mark.parametrize("kind", ["no key", "another key"])
def test_messages_of_who_has_not_the_key(cluster: TcpCluster, tmp_path: Path, kind: str) -> None:
    """Nothing of it is decoded, let alone answered."""
    with zmq.Context() as context:
        for endpoint in cluster.endpoints:
            with context.socket(zmq.DEALER) as stranger:
                stranger.linger = 0
                if kind == "another key":
                    other = cluster_key.ensure(str(tmp_path / "other"))
                    stranger.curve_publickey, stranger.curve_secretkey = other
                    stranger.curve_serverkey = cluster_key.load(cluster.key).public
                stranger.connect(endpoint)
                for _ in range(20):
                    stranger.send(encode_batch([Goodbye()]))
                assert not stranger.poll(20)


def _with_the_key(cluster: TcpCluster, context: zmq.Context[Any], endpoint: str) -> zmq.Socket[Any]:
    known = cluster_key.load(cluster.key)
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    peer.curve_publickey, peer.curve_secretkey = known
    peer.curve_serverkey = known.public
    peer.connect(endpoint)
    return peer


def test_frames_of_who_has_the_key_and_speaks_nonsense(cluster: TcpCluster) -> None:
    dice = random.Random(2)
    frames = [b"", b"\xc1", b"\x90", b"\x91\x92\x05\x01", b"\x91\xcd\xff\xff", b"\xff" * 100, b"\x91" * 5000]
    frames += [dice.randbytes(dice.randrange(1, 200)) for _ in range(50)]
    with zmq.Context() as context:
        for endpoint in cluster.endpoints:
            with _with_the_key(cluster, context, endpoint) as peer:
                for frame in frames:
                    peer.send(frame)
                peer.send_multipart([b"\x90", b"more", b"frames"])
                peer.poll(100)
        cluster.assert_well()


@pytest.mark.parametrize("link", ["node", "gcs"])
def test_messages_of_who_has_the_key_that_mean_nothing(cluster: TcpCluster, link: str) -> None:
    """Every kind of message of the link, with contents that nobody sends, to every endpoint."""
    dice = random.Random(3)
    kinds = types_of(LINKS[link][1])
    all_dead = Members(2**63 - 1, ())
    config = Config(key_file=cluster.key)
    for endpoint in cluster.endpoints:
        peer = Transport(os.urandom(16), batch_decoder(LINKS["process"][1]), config)
        peer.connect(b"peer", endpoint)
        peer.send(b"peer", [all_dead])
        for kind in kinds * 4:
            peer.send(b"peer", [invented(dice, kind)])
        peer.close(linger_ms=1000)
        cluster.assert_well()
