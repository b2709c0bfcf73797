"""Whose link to a socket was lost: the end of a peer's process, seen at once.

Of a bound socket ZeroMQ's monitor tells which descriptor was closed, and each frame which one it came
through. A descriptor may be used again before its end was read here, so an answer can be wrong about the
peer: whoever asks must give it the chance to be heard again. Of one that connects the monitor tells which
endpoint was lost, and nothing has to be noted for each frame.
"""

from __future__ import annotations

import struct
from typing import Any

import zmq

from zray.core.machine import Address

_EVENT = struct.Struct("=hi")
"""Layout of the first frame of an event, zmq_socket_monitor(3): its kind and the descriptor."""


class LinkWatch:
    """The links of one bound socket. For the thread of the socket.

    Args:
        socket: not bound yet.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._peers: dict[int, Address] = {}  # descriptor -> who spoke through it last

    def receive(self, flags: int = 0) -> bytes:
        """The next frame, as ``recv`` of the socket; notes what it says if it is a routing id.

        Raises:
            zmq.Again: if there is none.
        """
        frame: zmq.Frame = self._socket.recv(flags, copy=False)
        data = frame.bytes
        if frame.more:  # a routing id comes before something else
            descriptor: Any = frame.get(zmq.SRCFD)
            self._peers[descriptor] = data
        return data

    def fileno(self) -> int:
        """Readable, by edges, when links may have been lost."""
        return int(self._monitor.getsockopt(zmq.FD))

    def lost(self) -> list[Address]:
        """The peers whose links were lost since the last call."""
        found: list[Address] = []
        while True:
            try:
                event, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            _, descriptor = _EVENT.unpack(event)
            peer = self._peers.pop(descriptor, None)
            if peer is not None:
                found.append(peer)

    def close(self) -> None:
        """Let go of the monitor; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)


class ConnectionWatch:
    """The endpoints that one socket is connected to. For the thread of the socket.

    An endpoint with the name of a host is known by its address once it was connected to again: what cannot
    be told here, others must find out by silence.

    Args:
        socket: not connected yet.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def fileno(self) -> int:
        """Readable, by edges, when connections may have been lost."""
        return int(self._monitor.getsockopt(zmq.FD))

    def lost(self) -> list[str]:
        """The endpoints at the other ends of the connections that were lost since the last call.

        Of a peer that had connected to this socket, where that is bound.
        """
        found: list[str] = []
        while True:
            try:
                _, endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append(endpoint.decode(errors="replace"))

    def close(self) -> None:
        """Let go of the monitor; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
