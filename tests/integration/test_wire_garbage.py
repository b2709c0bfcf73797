"""What a stranger may send to the sockets of a node and of a shard: they refuse it and go on."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.clusters import PATIENCE_S, Place, finish, line_of, place, tell
from tests.nonsense import invented, types_of
from tests.support import eventually
from zray.config import Config
from zray.protocol import messages as m
from zray.protocol.cluster import FromScheduler
from zray.protocol.codec import batch_decoder
from zray.runtime.link_watch import EVENTS_WAITING_MAX
from zray.runtime.stream_links import StreamLinks
from zray.runtime.transport import Transport

pytestmark = pytest.mark.slow

decode = batch_decoder(m.ToClient)
DRIVER = """
import zray
from zray.api.cluster import report
context = zray.init(num_cpus=2)

@zray.remote
def double(x):
    return 2 * x

print(context.address)
while input() != "end":
    assert zray.get([double.remote(i) for i in range(50)]) == [2 * i for i in range(50)]
    print(context.pid, flush=True)
"""


class Cluster:
    """A driver with its node, which is asked after every attack whether it still works."""

    def __init__(self, here: Place) -> None:
        self.log_file = here.folder / "log"
        with self.log_file.open("a") as log:
            self.driver = here.start(DRIVER, stderr=log)
        self.address = line_of(self.driver)
        self.pid = self.ask()

    def ask(self) -> str:
        tell(self.driver)
        return line_of(self.driver)

    def assert_well(self) -> None:
        assert self.ask() == self.pid, self.log()

    def log(self) -> str:
        return self.log_file.read_text()

    def peer_door(self) -> str:
        """Where the node listens for other nodes."""
        return self.address + "-peer"

    def shard(self) -> str:
        return self.address.removesuffix("node") + "gcs0"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with place() as here:
        found = Cluster(here)
        try:
            found.assert_well()
            yield found
            found.assert_well()
        finally:
            finish(found.driver, "end\n")


class Peer:
    """A stranger who can speak the protocol, as a client of a node does."""

    def __init__(self, endpoint: str, name: bytes = b"") -> None:
        self.links = StreamLinks(name or os.urandom(16), decode, Config())
        self.links.connect(b"peer", endpoint)
        self.came: deque[Any] = deque()

    def send(self, *batch: Any) -> None:
        self.links.send(b"peer", list(batch))

    def receive(self) -> Any:
        """The next message."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.came:
            assert time.monotonic() < deadline, "no answer"
            self.links.wait(50)
            self.came.extend(message for _, message in self.links.receive())
        return self.came.popleft()

    def close(self) -> None:
        self.links.close(linger_s=1.0)


def as_frame(data: bytes) -> bytes:
    """As links of clients have it."""
    return struct.pack("=I", len(data)) + data


class Stranger:
    """One who says who it is, and then speaks bytes."""

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(endpoint.removeprefix("ipc://"))
        self.send(b"zray-link " + os.urandom(16))

    def send(self, frame: bytes) -> None:
        self.socket.sendall(as_frame(frame))

    def receive(self) -> bytes:
        (size,) = struct.unpack("=I", self.socket.recv(4, socket.MSG_WAITALL))
        return self.socket.recv(size, socket.MSG_WAITALL)


@pytest.fixture
def peer(cluster: Cluster) -> Iterator[Peer]:
    found = Peer(cluster.address)
    yield found
    found.close()


def hello(version: int = m.PROTOCOL_VERSION, pid: int | None = None, role: int = m.DRIVER) -> m.Hello:
    return m.Hello(version, role, os.getpid() if pid is None else pid, os.urandom(16))


def test_bytes_of_no_protocol(cluster: Cluster) -> None:
    dice = random.Random(1)
    for endpoint in (cluster.address, cluster.peer_door(), cluster.shard()):
        for size in (0, 1, 11, 64, 5000):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(endpoint.removeprefix("ipc://"))
                stranger.sendall(dice.randbytes(size))
    cluster.assert_well()


def no_batches() -> list[bytes]:
    dice = random.Random(2)
    frames = [b"", b"\xc1", b"\x90", b"\x91\x92\x05\x01", b"\x91\xcd\xff\xff", b"\xff" * 100, b"\x91" * 5000]
    return frames + [dice.randbytes(dice.randrange(1, 200)) for _ in range(50)]


def test_frames_that_are_no_batches_from_a_client(cluster: Cluster) -> None:
    stranger = Stranger(cluster.address)
    for frame in no_batches():
        stranger.send(frame)
        if frame != b"\x90":  # an empty batch says nothing and is no offence
            [refused] = decode(stranger.receive())
            assert (type(refused), refused.reason) == (m.Refused, "garbage")
    stranger.socket.close()
    eventually(lambda: "refused a frame from" in cluster.log())


def test_frames_that_are_no_batches_from_afar(cluster: Cluster) -> None:
    frames = no_batches()
    for endpoint in (cluster.peer_door(), cluster.shard()):
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.connect(endpoint)
            for frame in frames:
                stranger.send(frame)
                if frame == b"\x90":
                    continue  # an empty batch says nothing and is no offence
                assert stranger.poll(PATIENCE_S * 1000), frame
                [refused] = decode(stranger.recv())
                assert (type(refused), refused.reason) == (m.Refused, "garbage")
            stranger.send_multipart([b"\x90", b"more", b"frames"])
            [refused] = decode(stranger.recv())
            assert "more than one frame" in refused.detail
    eventually(lambda: "refused a frame from" in cluster.log())


def test_thousands_of_links_come_and_end(cluster: Cluster) -> None:
    at_once = 250
    for _ in range(0, EVENTS_WAITING_MAX + 2 * at_once, at_once):
        strangers = [Stranger(cluster.address) for _ in range(at_once)]
        for stranger in strangers:
            stranger.send(b"\xc1")
        for stranger in strangers:
            assert stranger.receive()
            stranger.socket.close()
    cluster.assert_well()
    for endpoint in (cluster.peer_door(), cluster.shard()):
        with zmq.Context() as context:
            for _ in range(0, EVENTS_WAITING_MAX + 2 * at_once, at_once):
                visitors = [context.socket(zmq.DEALER) for _ in range(at_once)]
                for visitor in visitors:
                    visitor.connect(endpoint)
                    visitor.send(b"\xc1")
                for visitor in visitors:
                    assert visitor.poll(PATIENCE_S * 1000), "it answers nobody any more"
                    visitor.close(linger=0)
        cluster.assert_well()


def test_frame_beyond_the_limit_ends_the_link_only(cluster: Cluster) -> None:
    client = Stranger(cluster.address)
    client.socket.sendall(struct.pack("=I", Config().frame_bytes_max + 1))
    assert client.socket.recv(1) == b""
    client.socket.close()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(cluster.peer_door())
        stranger.send(b"\xc1")
        stranger.recv()
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.send(bytes(Config().frame_bytes_max + 1))
        cluster.assert_well()


def test_another_version_is_refused_by_type_and_logged(cluster: Cluster, peer: Peer) -> None:
    peer.send(hello(version=m.PROTOCOL_VERSION + 1))
    refused = peer.receive()
    assert (type(refused), refused.reason) == (m.Refused, "version")
    eventually(lambda: f"refused process {os.getpid()}: node speaks protocol version" in cluster.log())
    peer.send(hello())
    assert isinstance(peer.receive(), m.Welcome)


def test_driver_of_another_version_raises_version_mismatch(cluster: Cluster) -> None:
    with place() as here:
        done = here.run(f"""
            import zray.protocol.messages as messages
            messages.PROTOCOL_VERSION += 1
            import zray
            try:
                zray.init(address={cluster.address!r})
            except zray.exceptions.VersionMismatchError as error:
                print(error)
        """)
    assert done.stdout == (
        f"protocol version {m.PROTOCOL_VERSION} met version {m.PROTOCOL_VERSION + 1}; "
        "install the same zray on both sides\n"
    ), done.stderr


def test_strangers_who_do_not_introduce_themselves(cluster: Cluster, peer: Peer) -> None:
    for message in (
        m.Get((b"o" * 16,)),
        m.Submit(b"t" * 16, b"p" * 16, b"d" * 16, b""),
        m.Create(b"o" * 16, 100),
        m.KillActor(b"a" * 16),
        m.Query(1, "node"),
        m.HoldFor(b"h", (b"o" * 16,), 1),
    ):
        peer.send(message)
        refused = peer.receive()
        assert (type(refused), refused.reason) == (m.Refused, "unknown-peer")
    peer.send(hello(role=m.WORKER))
    assert peer.receive().reason == "unknown-peer"
    for message in (
        m.Goodbye(), m.Release((b"o" * 16,)), m.Unpin((b"o" * 16,)), m.TaskDone(b"t" * 16, 0, (), 1),
        m.Blocked(b"t" * 16), m.Returned((b"t" * 16,)), m.Recorded(99), m.Refused("version", "no"),
        m.ShardWelcome(1, b"c" * 16, 0, 1), m.Place(m.Submit(b"t" * 16, b"", b"", b""), describe(), 1),
        m.Infeasible(b"t" * 16, "f", (), ()),
    ):  # fmt: skip
        peer.send(message)
    cluster.assert_well()


def describe(**changed: Any) -> m.Describe:
    fields = {
        "descriptor_id": b"d" * 16, "function_id": b"f" * 16, "name": "f", "num_returns": 1,
        "demand": (("CPU", 10_000),), "max_retries": 0,
    }  # fmt: skip
    return m.Describe(**{**fields, **changed})


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40, 2**63 - 1])
def test_driver_with_an_impossible_pid(cluster: Cluster, peer: Peer, pid: int) -> None:
    peer.send(hello(pid=pid))
    peer.receive()
    cluster.assert_well()


def test_code_that_does_not_load_is_an_error_of_its_task(cluster: Cluster, peer: Peer) -> None:
    peer.send(hello(), describe(), m.ExportFunction(b"f" * 16, b"not a pickle"))
    peer.send(m.Submit(b"t" * 11 + bytes(5), b"p" * 16, b"d" * 16, b"neither"))
    assert isinstance(peer.receive(), m.Welcome)
    ready = peer.receive()
    assert isinstance(ready, m.ObjectReady)
    assert ready.value.kind in (m.ERROR, m.FAULT)


@pytest.mark.parametrize("seed", range(6))
def test_well_formed_nonsense_to_the_node(cluster: Cluster, seed: int) -> None:
    """Any message of the right shape with any content, from a driver that introduced itself."""
    dice = random.Random(seed)
    peer = Peer(cluster.address)
    peer.send(hello())
    for _ in range(1500):
        peer.send(invented(dice, dice.choice(types_of(m.ToNode))))
        peer.links.receive()
    eventually(lambda: not peer.links.receive(), what="answers")
    cluster.assert_well()
    peer.send(m.Goodbye())
    peer.close()
    cluster.assert_well()


@pytest.mark.parametrize("seed", range(3))
def test_well_formed_nonsense_to_a_shard(cluster: Cluster, seed: int) -> None:
    dice = random.Random(seed)
    transport = Transport(os.urandom(16), batch_decoder(m.FromShard | FromScheduler), Config())
    transport.connect(b"shard", cluster.shard())
    for _ in range(1500):
        transport.send(b"shard", [invented(dice, dice.choice(types_of(m.ToGcs)))])
        transport.receive(10)
    transport.close(linger_ms=1000)
    cluster.assert_well()
    assert "starts again" not in cluster.log()


def test_peer_that_reads_nothing_does_not_stop_the_node(cluster: Cluster) -> None:
    """Its answers wait; others are served."""
    reader = Peer(cluster.address)
    reader.send(hello())
    for token in range(20_000):
        reader.send(m.Query(token, "objects"))
        if token % 5000 == 0:
            cluster.assert_well()
    cluster.assert_well()
    reader.close()


def test_stopped_driver_does_not_stop_another(cluster: Cluster) -> None:
    with place() as here:
        other = here.start(f"""
            import time, zray
            zray.init(address={cluster.address!r})
            @zray.remote
            def big(i):
                return b"x" * 20_000
            refs = [big.remote(i) for i in range(2000)]
            print("sent")
            zray.get(refs)
            print("got")
        """)
        assert line_of(other) == "sent"
        other.send_signal(signal.SIGSTOP)
        for _ in range(5):
            cluster.assert_well()
        other.send_signal(signal.SIGCONT)
        assert finish(other).stdout == "got\n"


def test_the_name_of_the_node_or_a_shard_cannot_be_taken(cluster: Cluster) -> None:
    lies = ([m.Recorded(10**6), m.Refused("version", "go away")], [m.ShardWelcome(1, b"c" * 16, 7, 9)])
    for name in (b"gcs-0000", b"zray", b"node"):
        thief, client = Transport(name, decode, Config()), Peer(cluster.address, name)
        thief.connect(b"peer", cluster.peer_door())
        for lie in lies:
            thief.send(b"peer", list(lie))
            client.send(*lie)
        cluster.assert_well()
        thief.close()
        client.close()
    eventually(lambda: "who is somebody else" in cluster.log())
