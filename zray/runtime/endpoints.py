"""Addresses as people write them, and whether a process listens there.

These look at an endpoint with a plain socket: they need no ZeroMQ context and no thread, so a node can
use them before it forks.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from zray.core.machine import Address

CONNECT_TIMEOUT_S = 5.0
PORT_TRIES_MAX = 64
PORT_MAX = 65_535

_TCP, _IPC = "tcp://", "ipc://"


def shard_address(shard: int) -> Address:
    """The routing id of a shard of the control store."""
    return b"gcs-%04d" % shard


CHAIN_MASTER = b"gcs-chain-master"
"""The routing id of the master of all chains of a cluster."""


def replica_address(shard: int, replica: int) -> Address:
    """The routing id of one replica of a shard."""
    return b"gcs-%04d.%d" % (shard, replica)


def addresses_of_shards(endpoints: Iterable[str]) -> list[dict[Address, str]]:
    """The endpoint of each replica of each shard by routing id.

    Args:
        endpoints: of the shards by number; those of replicas of one shard with commas between them.
    """
    found: list[dict[Address, str]] = []
    for shard, text in enumerate(endpoints):
        chain = text.split(",")
        if len(chain) == 1:
            found.append({shard_address(shard): text})
        else:
            found.append({replica_address(shard, number): each for number, each in enumerate(chain)})
    return found


def endpoint_of(text: str, *, may_be_wild: bool = False) -> str:
    """``tcp://HOST:PORT`` or ``ipc://PATH``; ``HOST:PORT`` is short for the former.

    Args:
        may_be_wild: whether the port may be ``0`` or ``*``, for one who listens: any free one.
    Raises:
        ValueError: if it is neither.
    """
    if text.startswith(_IPC) and len(text) > len(_IPC):
        return text
    endpoint = text if "://" in text else _TCP + text
    host, colon, port = endpoint.removeprefix(_TCP).rpartition(":")
    if endpoint.startswith(_TCP) and host and colon:
        if may_be_wild and port in ("0", "*"):
            return endpoint
        if port.isascii() and port.isdigit() and 0 < int(port) < 65_536:
            return endpoint
    raise ValueError(f"{text!r} is neither HOST:PORT nor tcp://HOST:PORT nor ipc://PATH")


def ports_from(first: str, shards: int, replicas: int) -> tuple[str, ...]:
    """Where shards listen whose processes take the ports from that of ``first`` on, one each.

    Returns:
        One text for each shard, with commas between its replicas.
    Raises:
        ValueError: if there are not so many ports.
    """
    host, _, port = first.rpartition(":")
    last = int(port) + shards * replicas - 1
    if last > PORT_MAX:
        raise ValueError(f"{shards} shards of {replicas} need the ports {port} to {last}, beyond {PORT_MAX}")
    ports = iter(range(int(port), last + 1))
    return tuple(",".join(f"{host}:{next(ports)}" for _ in range(replicas)) for _ in range(shards))


def is_local(endpoint: str) -> bool:
    """Whether only processes of this machine can reach who listens there."""
    host = endpoint.removeprefix(_TCP).rpartition(":")[0].strip("[]")
    return not endpoint.startswith(_TCP) or host in ("localhost", "::1") or host.startswith("127.")


def public_part(endpoint: str) -> str:
    """Of what a node says of where it listens (commas between several): what other nodes connect to.

    Those of its own machine, too: drivers and workers have a socket of their own.
    """
    parts = endpoint.split(",")
    return next((part for part in parts if part.startswith(_TCP)), parts[0] + "-peer")


def local_part(endpoint: str) -> str:
    """The same for processes of its own machine."""
    return endpoint.split(",")[-1]


def beside(endpoint: str) -> str:
    """Where the bulk socket listens whose control socket listens at ``endpoint``: the next port, or file."""
    if not endpoint.startswith(_TCP):
        return endpoint + "-data"
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + 1}"


def own_host_towards(endpoint: str) -> str:
    """The address of this machine that packets to ``endpoint`` leave from; loopback for a local one.

    Raises:
        OSError: if there is no route, or no such host.
    """
    if is_local(endpoint):
        return "127.0.0.1"
    import socket

    host, _, port = endpoint.removeprefix(_TCP).rpartition(":")
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # nothing is sent
        probe.connect(address)
        found: str = probe.getsockname()[0]
    return f"[{found}]" if ":" in found else found


def free_ports(host: str) -> int:
    """The first of two neighbouring free tcp ports: control and bulk of a node.

    Raises:
        OSError: if none are found.
    """
    import socket

    require_free(f"{_TCP}{host}:0", "")
    for _ in range(PORT_TRIES_MAX):
        with socket.socket() as first, socket.socket() as second, suppress(OSError, OverflowError):
            first.bind((host, 0))
            port: int = first.getsockname()[1]
            second.bind((host, port + 1))
            return port
    raise OSError(f"{host} has no two free ports side by side; choose them with --node-port")


def require_free(endpoint: str, remedy: str) -> None:
    """Refuse a tcp endpoint where nobody can begin to listen just now.

    Raises:
        OSError: why not, and the ``remedy`` if another process listens there.
    """
    import socket

    host, _, port = endpoint.removeprefix(_TCP).rpartition(":")
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        # As ZeroMQ does: connections of who listened there before are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                remedy = "--node-ip-address is an address of this machine"
            raise OSError(f"nobody can listen at {endpoint}: {why(error)}; {remedy}") from None


def knock(endpoint: str, timeout_s: float = CONNECT_TIMEOUT_S) -> int:
    """Connect and hang up.

    Returns:
        int, the pid of the process that listens, where the system tells it; else 0.
    Raises:
        OSError: if nobody takes the connection within ``timeout_s``.
    """
    import socket  # 5 ms that the way of a local driver need not pay

    if endpoint.startswith(_IPC):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(timeout_s)
            probe.connect(endpoint.removeprefix(_IPC))
            if not hasattr(socket, "SO_PEERCRED"):
                return 0
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid: int = struct.unpack("3i", credentials)[0]
            return pid
    host, _, port = endpoint.removeprefix(_TCP).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    return 0


def listens(endpoint: str) -> bool:
    """Whether somebody takes a connection there."""
    try:
        knock(endpoint)
    except OSError:
        return False
    return True


def why(error: OSError) -> str:
    """The reason without the number: ``Connection refused``."""
    return os.strerror(error.errno) if error.errno else str(error)


def listen(endpoint: str) -> tuple[socket.socket, str]:
    """A plain socket that listens beside an endpoint: at a free tcp port of its host, or a file of its own.

    Returns:
        The socket, which does not block, and its endpoint.
    Raises:
        OSError: if nobody can.
    """
    import socket

    if endpoint.startswith(_IPC):
        path = endpoint.removeprefix(_IPC) + "-bulk"
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            listener.listen()
        except OSError:
            listener.close()
            raise
        actual = _IPC + path
    else:
        host = endpoint.removeprefix(_TCP).rpartition(":")[0]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host.strip("[]"), 0), family=family)
        actual = f"{_TCP}{host}:{listener.getsockname()[1]}"
    listener.setblocking(False)
    return listener, actual


def dial(endpoint: str) -> socket.socket:
    """Begin to connect to who listens there; it can be written to once that is done, or failed.

    Raises:
        OSError: if it failed at once.
    """
    import socket

    family: int = socket.AF_UNIX
    address: Any = endpoint.removeprefix(_IPC)
    if not endpoint.startswith(_IPC):
        host, _, port = endpoint.removeprefix(_TCP).rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
    connection = socket.socket(family)
    connection.setblocking(False)
    try:
        with suppress(BlockingIOError):
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def remove_socket_file(endpoint: str) -> None:
    """Delete the file of an ``ipc://`` endpoint, if it is still there."""
    with suppress(FileNotFoundError):
        os.unlink(endpoint.removeprefix("ipc://"))
