"""Links that end and come back, over real sockets."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support import eventually
from zray.config import Config
from zray.protocol.codec import decode_for_node, decode_for_process
from zray.protocol.messages import Acked, Goodbye
from zray.runtime import transport
from zray.runtime.transport import Transport


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Transport]]:
    made = []
    for name in ("a", "b"):
        server = Transport(name.encode(), decode_for_node, Config())
        server._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # whoever comes again does so before it is missed
        server.bind(f"ipc://{tmp_path}/{name}")
        made.append(server)
    yield made
    for server in made:
        server.close()


@pytest.fixture
def client() -> Iterator[Transport]:
    made = Transport(b"client", decode_for_process, Config())
    yield made
    made.close()


def heard(side: Transport) -> list[tuple[bytes, Any]]:
    return eventually(lambda: side.receive(10), 10.0)


def test_a_peer_can_be_connected_again_at_once(
    servers: list[Transport], client: Transport, tmp_path: Path
) -> None:
    """ZeroMQ would end the process if a routing id were given away before its old link is gone."""
    for turn in range(50):
        server, endpoint = servers[turn % 2], f"ipc://{tmp_path}/{'ab'[turn % 2]}"
        client.connect(b"peer", endpoint)
        client.send(b"peer", [Goodbye()])
        assert heard(server) == [(b"client", Goodbye())]
        server.send(b"client", [Acked(turn)])
        assert heard(client) == [(b"peer", Acked(turn))]
        client.disconnect(b"peer")


def test_one_turn_takes_so_many_messages_and_leaves_the_rest(
    servers: list[Transport], client: Transport, tmp_path: Path
) -> None:
    client.connect(b"peer", f"ipc://{tmp_path}/a")
    for _ in range(5):
        client.send(b"peer", [Goodbye(), Goodbye()])
    turns: list[int] = []
    eventually(lambda: turns.append(len(servers[0].receive(10, messages_max=3))) or sum(turns) == 10)
    assert max(turns) <= 4, "a frame is taken whole, and none after the third message"


def test_former_peers_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, client: Transport, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, "FORMER_PEERS_MAX", 3)
    for number in range(10):
        client.connect(b"peer%d" % number, f"ipc://{tmp_path}/nobody")
        client.disconnect(b"peer%d" % number)
    assert list(client._former) == [b"peer7", b"peer8", b"peer9"]
    assert not client._aliases
    assert not client._addresses


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_whose_link_is_lost_is_told(tmp_path: Path, scheme: str) -> None:
    server = Transport(b"server", decode_for_node, Config())
    server.watch_links()
    links = server.links
    assert links is not None
    endpoint = server.bind(f"ipc://{tmp_path}/s" if scheme == "ipc" else "tcp://127.0.0.1:*")
    clients = [Transport(b"client%d" % number, decode_for_process, Config()) for number in range(3)]
    for client in clients:
        client.connect(b"server", endpoint)
        client.send(b"server", [Goodbye()])
    came: list[bytes] = []
    eventually(lambda: came.extend(source for source, _ in server.receive(10)) or len(came) == 3)
    assert links.lost() == []
    clients[1].close()
    assert eventually(links.lost) == [b"client1"]
    for client in (clients[0], clients[2]):
        server.send(client.identity, [Acked(1)])
        assert heard(client) == [(b"server", Acked(1))]
        client.close()
    server.close()


@pytest.mark.parametrize("watched", ["links", "connections"])
def test_the_descriptor_tells_of_ends_to_who_never_asked(watched: str, tmp_path: Path) -> None:
    server = Transport(b"server", decode_for_node, Config())
    if watched == "links":
        server.watch_links()
    else:
        server.watch_connections()
    watch = getattr(server, watched)
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    server.bind(f"ipc://{tmp_path}/server")
    for name in (b"first", b"second"):
        visitor = Transport(name, decode_for_process, Config())
        visitor.connect(b"server", f"ipc://{tmp_path}/server")
        visitor.send(b"server", [Goodbye()])
        assert heard(server) == [(name, Goodbye())]
        visitor.close()
        assert poll.poll(10_000), f"nothing said that {name!r} is gone"
        assert eventually(watch.lost, 10.0)
    server.close()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_whose_end_was_connected_to_is_told(client: Transport, tmp_path: Path, scheme: str) -> None:
    client.watch_connections()
    made = [Transport(name, decode_for_node, Config()) for name in (b"left", b"stays")]
    for server in made:
        name = server.identity.decode()
        client.connect(
            server.identity,
            server.bind(f"ipc://{tmp_path}/{name}" if scheme == "ipc" else "tcp://127.0.0.1:*"),
        )
        client.send(server.identity, [Goodbye()])
        assert heard(server) == [(b"client", Goodbye())]
    assert client.lost_connections() == []
    made[0].close()
    assert eventually(client.lost_connections, 10.0) == [b"left"]
    assert client.lost_connections() == []
    made[1].close()
    assert eventually(client.lost_connections, 10.0) == [b"stays"]


def test_the_end_of_who_connected_here_is_nobodys_that_was_connected_to(
    servers: list[Transport], tmp_path: Path
) -> None:
    watching = Transport(b"watching", decode_for_node, Config())
    watching.watch_connections()
    watching.bind(f"ipc://{tmp_path}/watching")
    watching.connect(b"a", f"ipc://{tmp_path}/a")
    visitor = Transport(b"visitor", decode_for_process, Config())
    visitor.connect(b"watching", f"ipc://{tmp_path}/watching")
    visitor.send(b"watching", [Goodbye()])
    assert heard(watching) == [(b"visitor", Goodbye())]
    visitor.close()
    assert watching.connections is not None
    assert eventually(watching.connections.lost, 10.0) == [f"ipc://{tmp_path}/watching"]
    assert watching.lost_connections() == []
    watching.close()
