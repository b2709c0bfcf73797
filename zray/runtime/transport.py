"""One ROUTER socket: batches of messages to and from peers that are named by their routing id.

Nodes and processes of the control store have one each, which is bound and connects to others, too.
``ROUTER_MANDATORY`` is on: an unreachable peer is counted, not hidden, and a full one is kept in a backlog
here, so that no send blocks. Drivers and workers have links of their own: see ``stream_links.py``.

The socket is not thread-safe. Whoever shares a ``Transport`` between threads holds a lock around every
call except :meth:`wait`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from zray.config import Config
from zray.core.machine import Address
from zray.errors import RemoteProtocolError
from zray.protocol.codec import encode_batch
from zray.protocol.messages import Refused
from zray.runtime.cluster_key import Doorkeeper, load, protect
from zray.runtime.endpoints import is_local, remove_socket_file
from zray.runtime.frames import FrameSender
from zray.runtime.link_watch import ConnectionWatch, LinkWatch

log = logging.getLogger("zray.transport")

SEND_FRAMES_MAX = 10_000  # high-water marks, frames per peer; beyond them frames wait in the backlog
DROPPABLE_FRAMES_MAX = 1_000  # frames in the backlog of a peer that may lose some
BACKLOG_RETRY_MS = 5
FORMER_PEERS_MAX = 4_096  # disconnected peers whose routing ids are not used again at once

# Plain numbers: to combine or convert the library's enumerations costs more than a look at the socket.
_NOBLOCK, _NOBLOCK_AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE, _EVENTS, _POLLIN = int(zmq.RCVMORE), int(zmq.EVENTS), int(zmq.POLLIN)

Decoder = Callable[[bytes], list[Any]]


class Transport(FrameSender):
    """Send and receive batches over one ROUTER socket, without ever blocking in a send."""

    def __init__(
        self, identity: Address, decode: Decoder, config: Config, context: zmq.Context[Any] | None = None
    ) -> None:
        super().__init__(config)
        self.identity = identity
        self.context = zmq.Context() if context is None else context
        self._owns_context = context is None
        self._decode = decode
        self._key_file = config.key_file
        self._doorkeeper: Doorkeeper | None = None
        self._socket = self._open(identity, config)
        self._backlog: dict[Address, deque[bytes]] = {}
        self._endpoints: dict[Address, str] = {}
        self._may_drop: dict[Address, None] = {}
        # ZeroMQ lets go of a disconnected peer some time later, and aborts the process if its routing id is
        # given away before: a peer that comes back is known to the socket by another one.
        self._former: dict[Address, int] = {}  # disconnected peers -> how often, oldest first
        self._aliases: dict[Address, bytes] = {}  # address -> its routing id at the socket, if it is another
        self._addresses: dict[bytes, Address] = {}  # the same, backwards
        self._bound: list[str] = []
        self.links: LinkWatch | None = None
        """Who notices lost links, if :meth:`watch_links` was called."""
        self.connections: ConnectionWatch | None = None
        """The same of :meth:`watch_connections`."""
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)

    def _open(self, identity: Address, config: Config) -> zmq.Socket[bytes]:
        self.context.set(zmq.MAX_SOCKETS, 4096)
        socket = self.context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTING_ID, identity)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, SEND_FRAMES_MAX)
        socket.setsockopt(zmq.RCVHWM, SEND_FRAMES_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, config.frame_bytes_max)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        return socket

    def bind(self, endpoint: str) -> str:
        """Take connections at ``endpoint``; returns it with any wildcard port filled in.

        Raises:
            OSError: why nobody can listen there.
        """
        self._protect(endpoint, serves=True)
        with _as_os_error(f"cannot listen on {endpoint}"):
            self._socket.bind(endpoint)
        actual = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._bound.append(actual)
        return actual

    def _protect(self, endpoint: str, *, serves: bool) -> None:
        """Before a bind or connect: tcp is protected by the key of the cluster, if there is one.

        Raises:
            PermissionError: if there is none, and others than this machine could connect.
        """
        key = load(self._key_file) if self._key_file and not endpoint.startswith("ipc://") else None
        if key is None and serves and not is_local(endpoint):
            raise PermissionError(
                f"{endpoint} could be reached from other machines: give the key of the cluster with "
                "--key-file or ZRAY_KEY_FILE, or listen on 127.0.0.1"
            )
        if self._key_file:
            protect(self._socket, key, serves=serves)
        if key is not None and serves and self._owns_context and self._doorkeeper is None:
            self._doorkeeper = Doorkeeper(self.context, key)

    def watch_links(self) -> None:
        """Before :meth:`bind`: from now on it can be told whose link was lost."""
        self.links = LinkWatch(self._socket)

    def watch_connections(self) -> int:
        """Before :meth:`connect`: from now on :meth:`lost_connections` can tell; readable when it may."""
        self.connections = ConnectionWatch(self._socket)
        return self.connections.fileno()

    def lost_connections(self) -> list[Address]:
        """The peers that this process had connected to and lost, or may have lost, since the last call."""
        lost = dict.fromkeys(self.connections.lost() if self.connections is not None else ())
        return [address for address, endpoint in self._endpoints.items() if endpoint in lost]

    def connect(self, address: Address, endpoint: str, *, may_drop: bool = False) -> None:
        """Make ``address`` reachable at ``endpoint``; frames wait until the peer is there.

        ``may_drop``: a peer that is away for very long may lose frames, because the sender of what matters
        sends it again; otherwise they all wait, in memory.

        Raises:
            OSError: if that is no endpoint.
        """
        if self._endpoints.get(address) == endpoint:
            return
        self.disconnect(address)
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, self._fresh_routing_id(address))
        self._protect(endpoint, serves=False)
        with _as_os_error(f"cannot connect to {endpoint}"):
            self._socket.connect(endpoint)
        self._endpoints[address] = endpoint
        if may_drop:
            self._may_drop[address] = None

    def _fresh_routing_id(self, address: Address) -> bytes:
        times = self._former.get(address)
        if times is None:
            return address
        alias = self._aliases[address] = b"%s~%d" % (address, times)
        self._addresses[alias] = address
        return alias

    def _note_former(self, address: Address) -> None:
        self._former[address] = self._former.pop(address, 0) + 1
        alias = self._aliases.pop(address, None)
        if alias is not None:
            del self._addresses[alias]
        if len(self._former) > FORMER_PEERS_MAX:
            del self._former[next(iter(self._former))]

    def knows(self, address: Address) -> bool:
        """Whether this process connects to it."""
        return address in self._endpoints

    def disconnect(self, address: Address) -> None:
        """Forget a peer: its link, and frames that still wait for it."""
        endpoint = self._endpoints.pop(address, None)
        if endpoint is not None:
            self._socket.disconnect(endpoint)
            self._note_former(address)
        self._backlog.pop(address, None)
        self._may_drop.pop(address, None)
        self.unreachable.pop(address, None)

    def pass_on(self, address: Address, frame: bytes) -> None:
        """Send one frame now, or keep it until the peer takes it."""
        waiting = self._backlog.get(address)
        if waiting:
            if len(waiting) >= DROPPABLE_FRAMES_MAX and address in self._may_drop:
                self.note_unreachable(address, frame)
            else:
                waiting.append(frame)
        elif not self._try_send(address, frame):
            self._backlog.setdefault(address, deque()).append(frame)

    def _try_send(self, address: Address, frame: bytes) -> bool:
        """Send now; False if the peer is full. A peer without a route loses the frame, counted."""
        routing_id = self._aliases.get(address, address) if self._aliases else address
        try:
            self._write(routing_id, frame)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.note_unreachable(address, frame)
        return True

    def _write(self, routing_id: bytes, frame: bytes) -> None:
        self._socket.send(routing_id, _NOBLOCK_AND_MORE)
        self._socket.send(frame, _NOBLOCK)

    def retry_backlog(self) -> None:
        """Send what waited for a full peer, as far as it takes it."""
        for address in list(self._backlog):
            frames = self._backlog[address]
            while frames and self._try_send(address, frames[0]):
                frames.popleft()
            if not frames:
                del self._backlog[address]

    def receive(
        self, frames_max: int, *, messages_max: float = math.inf, was_signalled: bool = False
    ) -> list[tuple[Address, Any]]:
        """What has arrived, as ``(source, message)``; empty at once if nothing has.

        Args:
            frames_max: how much of it.
            messages_max: no further frame once there are so many messages.
            was_signalled: the descriptor was readable just now, so that as a rule something has arrived.

        A frame that is not a batch of this link is answered by ``Refused`` and logged; nothing of it is
        returned.
        """
        self.send_due()
        if self._backlog:
            self.retry_backlog()
        received: list[tuple[Address, Any]] = []
        receive: Any = self._socket.recv if self.links is None else self.links.receive
        option, decode = self._socket.getsockopt, self._decode
        for _ in range(frames_max):
            if was_signalled:
                was_signalled = False
            elif not int(option(_EVENTS)) & _POLLIN:  # half the price of the error of an empty socket
                break
            try:
                source = receive(_NOBLOCK)
            except zmq.Again:
                break
            frame = receive()  # a routing id never comes alone, and all frames of a message come at once
            if self._addresses:
                source = self._addresses.get(source, source)
            try:
                if option(_RCVMORE):
                    self._drop_rest()
                received += [(source, message) for message in decode(frame)]
            except RemoteProtocolError as error:
                self._refuse(source, error)
            if len(received) >= messages_max:
                break
        return received

    def _drop_rest(self) -> None:
        while self._socket.getsockopt(_RCVMORE):
            self._socket.recv()
        raise RemoteProtocolError("more than one frame behind the routing id")

    def _refuse(self, source: Address, error: RemoteProtocolError) -> None:
        self.refused += 1
        log.warning("refused a frame from %s: %s", source.hex(), error)
        self._try_send(source, encode_batch([Refused("garbage", str(error))]))

    def fileno(self) -> int:
        """The descriptor that signals edges of this socket; see :meth:`wait`."""
        return int(self._socket.FD)

    def watch(self, fd: int) -> None:
        """Let :meth:`wait` also return when ``fd`` is readable."""
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Take :meth:`watch` back."""
        self._poll.unregister(fd)

    def readable(self) -> bool:
        """Whether :meth:`receive` would return something (asks the socket; see :meth:`wait`)."""
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def wait(self, timeout_ms: int | None) -> list[int]:
        """Block until the socket may be readable, a watched descriptor is, or the time is over.

        ZeroMQ's descriptor signals edges, and a send may swallow one: call :meth:`readable` first, and
        always :meth:`receive` afterwards. Returns the watched descriptors that are readable.
        """
        if self._backlog:
            timeout_ms = BACKLOG_RETRY_MS if timeout_ms is None else min(timeout_ms, BACKLOG_RETRY_MS)
        ready = self._poll.poll(self.until_due(timeout_ms))
        return [fd for fd, _ in ready] if ready else []

    def close(self, linger_ms: int = 200) -> None:
        """Close the socket, give frames already sent ``linger_ms`` to leave, remove socket files."""
        self.send_all_delayed()
        for watch in (self.links, self.connections):
            if watch is not None:
                watch.close()
        self._socket.close(linger=linger_ms)
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        if self._owns_context:
            self.context.term()
        for endpoint in self._bound:
            if endpoint.startswith("ipc://"):
                remove_socket_file(endpoint)


@contextlib.contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """For callers that know nothing of ZeroMQ."""
    try:
        yield
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from None
