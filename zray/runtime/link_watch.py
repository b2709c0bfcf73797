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

EVENTS_WAITING_MAX = 2_000
"""Ends of links that wait to be read: after them ZeroMQ's own thread stands still, and with it all links."""
_EVENT = struct.Struct("=hi")
"""Layout of the first frame of an event, zmq_socket_monitor(3): its kind and the descriptor."""


class _Ends:
    """The ends of the links of one socket, as ZeroMQ's monitor tells them."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        # Before it was found empty once, its descriptor signals nothing.
        self._monitor.getsockopt(zmq.EVENTS)

    def fileno(self) -> int:
        """Readable, by edges, when links may have been lost. It has to be watched: ``EVENTS_WAITING_MAX``."""
        return int(self._monitor.getsockopt(zmq.FD))

    def _next(self) -> tuple[bytes, bytes] | None:
        """What the monitor says of an end and its endpoint, if there is one more."""
        try:
            event, endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return event, endpoint

    def close(self) -> None:
        """Let go of the monitor; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)


class LinkWatch(_Ends):
    """The links of one bound socket. For the thread of the socket.

    Args:
        socket: not bound yet.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(socket)
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

    def lost(self) -> list[Address]:
        """The peers whose links were lost since the last call."""
        found: list[Address] = []
        while (told := self._next()) is not None:
            _, descriptor = _EVENT.unpack(told[0])
            peer = self._peers.pop(descriptor, None)
            if peer is not None:
                found.append(peer)
        return found


class ConnectionWatch(_Ends):
    """The endpoints that one socket is connected to. For the thread of the socket.

    An endpoint with the name of a host is known by its address once it was connected to again: what cannot
    be told here, others must find out by silence.

    Args:
        socket: not connected yet.
    """

    def lost(self) -> list[str]:
        """The endpoints at the other ends of the connections that were lost since the last call.

        Of a peer that had connected to this socket, where that is bound.
        """
        found: list[str] = []
        while (told := self._next()) is not None:
            found.append(told[1].decode(errors="replace"))
        return found
