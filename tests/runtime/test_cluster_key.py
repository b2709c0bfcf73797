"""The key of a cluster: who has it is heard, and nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from tests.support import eventually
from zray.config import Config
from zray.protocol.codec import decode_for_node, decode_for_process, encode_batch
from zray.protocol.messages import Acked, Goodbye
from zray.runtime import cluster_key
from zray.runtime.transport import Transport


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def config(path: Path) -> Config:
    cluster_key.ensure(str(path))
    return Config(key_file=str(path))


def server(stack: ExitStack, tmp_path: Path) -> tuple[Transport, list[str]]:
    """Listens on both schemes with one socket."""
    made = Transport(b"server", decode_for_node, config(tmp_path / "key"))
    stack.callback(made.close)
    return made, [made.bind("tcp://127.0.0.1:*"), made.bind(f"ipc://{tmp_path}/s")]


def client(stack: ExitStack, settings: Config, endpoint: str, name: bytes = b"client") -> Transport:
    made = Transport(name, decode_for_process, settings)
    stack.callback(made.close, 0)
    made.connect(b"server", endpoint)
    made.send(b"server", [Goodbye()])
    return made


def test_a_key_is_made_once_and_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    made = cluster_key.ensure(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert cluster_key.ensure(str(path)) == made == cluster_key.load(str(path))
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="mode 600"):
        cluster_key.load(str(path))
    path.chmod(0o600)
    path.write_bytes(b"zray cluster key 1\nshort\n")
    with pytest.raises(ValueError, match="not a cluster key"):
        cluster_key.load(str(path))


def test_who_has_the_key_is_heard_over_tcp_and_nobody_needs_it_over_ipc(
    stack: ExitStack, tmp_path: Path
) -> None:
    made, endpoints = server(stack, tmp_path)
    for name, endpoint, settings in (
        (b"far", endpoints[0], config(tmp_path / "key")),
        (b"near", endpoints[1], Config()),
        (b"near with a key", endpoints[1], config(tmp_path / "key")),
    ):
        peer = client(stack, settings, endpoint, name)
        assert eventually(lambda: made.receive(1)) == [(name, Goodbye())]
        made.send(name, [Acked(1)])
        assert eventually(lambda peer=peer: peer.receive(1)) == [(b"server", Acked(1))]


@pytest.mark.parametrize("kind", ["no key", "another key", "the public half alone"])
def test_nobody_else_is_heard(stack: ExitStack, tmp_path: Path, kind: str) -> None:
    made, endpoints = server(stack, tmp_path)
    stranger = Config()
    if kind == "another key":
        stranger = config(tmp_path / "other")
    elif kind == "the public half alone":
        known = cluster_key.load(str(tmp_path / "key"))
        other = cluster_key.ensure(str(tmp_path / "other"))
        thief = zmq.Context.instance().socket(zmq.ROUTER)
        stack.callback(thief.close, 0)
        thief.curve_publickey, thief.curve_secretkey = other
        thief.curve_serverkey = known.public
        thief.setsockopt(zmq.CONNECT_ROUTING_ID, b"server")
        thief.connect(endpoints[0])
        thief.send_multipart([b"server", encode_batch([Goodbye()])])
    client(stack, stranger, endpoints[0], b"stranger")
    friend = client(stack, Config(), endpoints[1], b"friend")
    assert eventually(lambda: made.receive(9)) == [(b"friend", Goodbye())]
    for _ in range(20):  # long enough for a handshake on this machine
        friend.send(b"server", [Goodbye()])
        assert {source for source, _ in eventually(lambda: made.receive(9))} == {b"friend"}
        made.wait(10)


def test_nothing_listens_beyond_this_machine_without_a_key(stack: ExitStack) -> None:
    made = Transport(b"server", decode_for_node, Config())
    stack.callback(made.close)
    for endpoint in ("tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*"):
        with pytest.raises(PermissionError, match="key-file"):
            made.bind(endpoint)
    assert os.path.basename(made.bind("tcp://127.0.0.1:*")).startswith("127.0.0.1:")
