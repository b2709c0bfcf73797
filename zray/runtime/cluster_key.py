"""The key of a cluster: who has it may link to its processes over tcp, nobody else can.

One CURVE key pair for the whole cluster, in a file that only its user may read. Both ends of a link have it:
the one that connects must know the public half, which never crosses the wire in clear, and proves that it has
the secret half; the one that listens admits no other key. Links inside a machine are sockets in a directory
of mode 0700 and need none.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any, NamedTuple

import zmq

_HEAD = b"zray cluster key 1"
_Z85_BYTES = 40


class ClusterKey(NamedTuple):
    """Both halves in Z85, the encoding that ZeroMQ uses."""

    public: bytes
    secret: bytes


def ensure(path: str) -> ClusterKey:
    """The key in a file; a new one if there is no file.

    Raises:
        OSError, ValueError: as :func:`load`, or if the file cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(b"\n".join((_HEAD, *zmq.curve_keypair(), b"")))
    return load(path)


def load(path: str) -> ClusterKey:
    """The key in a file.

    Raises:
        PermissionError: if others than this user may read or change it.
        OSError: if it cannot be read.
        ValueError: if it is no key.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            lines = file.read(4 * _Z85_BYTES).splitlines()
    except OSError as error:
        remedy = "the key of the cluster is a copy of the file that zray start --head wrote"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", path) from None
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid() or mode & 0o077:
        raise PermissionError(
            f"the cluster key {path} must be a file of this user with mode 600; it has mode {mode:o} and "
            f"belongs to user {found.st_uid}"
        )
    if len(lines) != 3 or lines[0] != _HEAD or any(len(half) != _Z85_BYTES for half in lines[1:]):
        raise ValueError(f"{path} is not a cluster key; copy the file that zray start --head wrote")
    return ClusterKey(lines[1], lines[2])


def protect(socket: zmq.Socket[Any], key: ClusterKey | None, *, serves: bool) -> None:
    """What the socket binds or connects to next is protected by ``key``; ``None``: not at all."""
    if key is None:
        socket.setsockopt(zmq.CURVE_SERVER, 0)  # also: no CURVE
        return
    socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret)
    if serves:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
    else:
        socket.setsockopt(zmq.CURVE_SERVERKEY, key.public)


class Doorkeeper:
    """Admits to the sockets of one context whoever has the key. A thread of its own, until it is closed."""

    def __init__(self, context: zmq.Context[Any], key: ClusterKey) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # only who listens on tcp need load it

        self._public = zmq.utils.z85.decode(key.public)
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key is admitted; the name is ZeroMQ's."""
        return zmq.utils.z85.decode(key) == self._public

    def close(self) -> None:
        """End the thread."""
        self._authenticator.stop()
