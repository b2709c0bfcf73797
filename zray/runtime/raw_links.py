"""Connections that carry nothing but the bytes of chunks, in the clear, from memory to memory.

Between each two nodes there is one, over tcp, or a Unix socket where both are on one machine without tcp.
The kernel copies out of the arena of one node and into that of the other; nothing else does. One thread of
its own does all of it, so the node's loop goes on meanwhile.

Who connects shows a *ticket* and is shown a *receipt*: random bytes, of use once and for a few seconds, that
the nodes gave each other over their control link, which is protected by the key of the cluster. Whoever has
none is hung up on, and so is who says nothing, or what makes no sense.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from zray.core.machine import Address
from zray.errors import ZrayError
from zray.protocol.cluster import ChunkArrived, ChunkSent, OfferRawLink, SendChunk
from zray.protocol.messages import FILE
from zray.runtime.endpoints import dial, listen
from zray.runtime.rooms import PIECE_BYTES, ChunkRoom, Rooms
from zray.store.arena import ArenaView
from zray.store.spill import SpillDirectory

log = logging.getLogger("zray.raw_links")

MAGIC = b"zrbulk1\n"
SECRET_BYTES = 16
GREETING_BYTES = len(MAGIC) + SECRET_BYTES
GREETING_PATIENCE_S = 5.0
"""How long a connection may take until it has shown its ticket or receipt; also how long one is valid."""
STALL_PATIENCE_S = 10.0
"""How long the other end may take nothing of what is to be sent before it is hung up on."""
STRANGERS_MAX = 64
"""Connections that have not shown a ticket yet; the oldest one makes room for one more."""
PIECES_PER_TURN = 16
PAUSE_S = 1.0
"""How long nobody is let in once a connection was not to be had for lack of descriptors."""
CLOSE_S = 3.0
"""How long the end waits for the thread, which may be reading from a slow disk."""
_HEAD = struct.Struct(">16sQQ")
"""In front of the bytes of each chunk: the object, where they begin, how many they are."""

Told = ChunkArrived | ChunkSent
Report = Callable[[list[Told]], None]


class _Ticket(NamedTuple):
    peer: Address
    receipt: bytes
    until: float


class _LeavingChunk:
    """A chunk on its way out: its head, and its bytes in memory or in a file."""

    def __init__(self, chunk: SendChunk, view: memoryview | None, fd: int) -> None:
        self.chunk = chunk
        self._head = _HEAD.pack(chunk.object_id, chunk.start, chunk.size)
        self._view, self._fd = view, fd
        self._sent = 0

    def send(self, connection: socket.socket) -> bool:
        """Send some more; whether that was all.

        Raises:
            BlockingIOError: if the connection takes nothing now.
            OSError: if it is lost, or the file is too short.
        """
        if self._head:
            more = socket.MSG_MORE if self.chunk.size else 0
            self._head = self._head[connection.send(self._head, more) :]
        elif self._view is not None:
            self._sent += connection.send(self._view[self._sent : self._sent + PIECE_BYTES])
        else:
            left = min(self.chunk.size - self._sent, PIECE_BYTES)
            taken = os.sendfile(connection.fileno(), self._fd, self.chunk.start + self._sent, left)
            if not taken:
                raise OSError(f"the file of {self.chunk.object_id.hex()} ends too early")
            self._sent += taken
        return not self._head and self._sent == self.chunk.size

    def release(self) -> None:
        """Nothing is read any more."""
        if self._view is not None:
            self._view.release()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Connection:
    """One connection, greeted or not."""

    def __init__(self, socket_: socket.socket, now: float) -> None:
        self.socket = socket_
        self.peer: Address = b""  # once it is greeted
        self.dialled: Address = b""  # whom it was made to, if it was made here
        self.says = b""  # what is to be said first
        self.expects = b""  # what the other end has to say first, if that is known
        self.heard = b""  # of it
        self.since = now  # of the connection; of the last progress, while there is something to send
        self.outgoing: deque[_LeavingChunk] = deque()
        self.waits_to_send = False
        self.head = bytearray(_HEAD.size)
        self.head_bytes = 0
        self.object_id, self.start, self.size = b"", 0, 0  # of the chunk that is coming
        self.room: ChunkRoom | None = None
        self.taken = 0

    def is_late(self, now: float) -> bool:
        """Whether the other end says, or takes, nothing for too long."""
        if self.peer:
            return bool(self.outgoing) and now - self.since > STALL_PATIENCE_S
        return now - self.since > GREETING_PATIENCE_S


class RawLinks:
    """The connections of one node, and their thread, which begins with the first one that is offered or made.

    Args:
        endpoint: beside which it listens, once somebody asks.
        view, files: the memory and the spill directory of this node.
        rooms: where what comes belongs.
        report: told of all chunks that have come or are gone, some at a time, in any thread.
    """

    def __init__(
        self, endpoint: str, view: ArenaView, files: SpillDirectory, rooms: Rooms, report: Report
    ) -> None:
        self._beside = endpoint
        self._view, self._files, self._rooms, self._report = view, files, rooms, report
        self.endpoint = ""  # where it listens
        self._listener: socket.socket | None = None
        self._tickets: dict[bytes, _Ticket] = {}
        self._links: dict[Address, _Connection] = {}
        self._strangers: dict[_Connection, None] = {}  # that have not greeted, oldest first
        self._orders: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._listens_again = 0.0  # when, if not now
        self._told: list[Told] = []  # what is to be reported
        self._waste = memoryview(bytearray(1 << 18))

    # --- in the thread of the node's loop ----------------------------------------------------------

    def offer(self, peer: Address) -> OfferRawLink:
        """What lets another node connect, once. An earlier offer to it is void.

        Raises:
            OSError: if nobody can listen here.
        """
        self._begin()
        if self._listener is None:
            self._listener, self.endpoint = listen(self._beside)
            self._order(self._watch_listener)
        for former in [ticket for ticket, given in list(self._tickets.items()) if given.peer == peer]:
            self._tickets.pop(former, None)
        ticket, receipt = os.urandom(SECRET_BYTES), os.urandom(SECRET_BYTES)
        self._tickets[ticket] = _Ticket(peer, receipt, time.monotonic() + GREETING_PATIENCE_S)
        return OfferRawLink(peer, self.endpoint, ticket, receipt)

    def dial(self, offer: OfferRawLink) -> None:
        """Connect to who made an offer."""
        self._begin()
        self._order(self._dial, offer)

    def reaches(self, peer: Address) -> bool:
        """Whether there is a connection to another node, as far as is known."""
        return peer in self._links

    def send(self, chunk: SendChunk) -> None:
        """Send a chunk; reported once it is sent, or never will be."""
        fd, view = -1, None
        if chunk.kind == FILE:
            try:
                fd = os.open(self._files.path_of(chunk.object_id), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # deleted since: who asks once more is told
                self._report([ChunkSent(chunk.node_id, chunk.object_id, chunk.start)])
                return
        else:
            view = self._view.read(chunk.offset + chunk.start, chunk.size, _nothing)
        self._order(self._send, _LeavingChunk(chunk, view, fd))

    def drop(self, peer: Address) -> None:
        """Another node is dead."""
        for ticket, given in list(self._tickets.items()):
            if given.peer == peer:
                self._tickets.pop(ticket, None)
        if self._thread is not None:
            self._order(self._drop, peer)

    def close(self) -> None:
        """End all connections and the thread."""
        if self._thread is None:
            return
        self._closing = True
        self._wake()
        self._thread.join(CLOSE_S)
        self._thread = None
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _begin(self) -> None:
        if self._thread is None:
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_read, False)
            os.set_blocking(self._wake_write, False)
            self._thread = threading.Thread(target=self._run, name="zray-links", daemon=True)
            self._thread.start()

    def _order(self, what: Callable[..., None], *about: object) -> None:
        self._orders.append((what, about))
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is full of wakes already
            os.write(self._wake_write, b"\0")

    # --- in the thread of the raw links --------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._obey)
            try:
                while not self._closing:
                    self._turn()
            finally:
                self._closing = True
                self._end()
                self._tell()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._timeout_s()):
            if isinstance(key.data, _Connection):
                self._serve(key.data, events)
            else:
                key.data()
        self._look_at_the_time()
        self._tell()

    def _tell(self) -> None:
        """All of a turn at once: each time the node's loop is woken costs as much as half a megabyte."""
        if self._told:
            self._report(self._told)
            self._told = []

    def _end(self) -> None:
        for connection in (*self._links.values(), *self._strangers):
            self._hang_up(connection, "")
        self._obey()  # what is still to be sent never will be
        if self._listener is not None:
            self._listener.close()
            if self._listener.family == socket.AF_UNIX:
                with suppress(FileNotFoundError):
                    os.unlink(self.endpoint.removeprefix("ipc://"))

    def _obey(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._orders:
            what, about = self._orders.popleft()
            if not self._closing or what == self._send:
                what(*about)

    def _timeout_s(self) -> float | None:
        if self._listens_again:
            return PAUSE_S
        waits = self._strangers or any(link.outgoing for link in self._links.values())
        return GREETING_PATIENCE_S / 4 if waits else None

    def _look_at_the_time(self) -> None:
        now = time.monotonic()
        if self._listens_again and self._listens_again <= now:
            self._listens_again = 0.0
            self._watch_listener()
        for connection in (*self._strangers, *self._links.values()):
            if connection.is_late(now):
                self._hang_up(connection, "the other end is silent")

    def _hang_up(self, connection: _Connection, why: str) -> None:
        """End a connection; what was to be sent over it is asked for once more."""
        if why and connection.peer:
            log.info("the raw link to %s is lost: %s", connection.peer.hex(), why)
        elif why:
            log.info("a connection for chunks came to nothing: %s", why)
        self._strangers.pop(connection, None)
        if self._links.get(connection.peer) is connection:
            del self._links[connection.peer]
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()
        while connection.outgoing:
            self._gone(connection.outgoing.popleft())

    def _gone(self, outgoing: _LeavingChunk) -> None:
        outgoing.release()
        chunk = outgoing.chunk
        self._told.append(ChunkSent(chunk.node_id, chunk.object_id, chunk.start))

    # --- beginnings --------------------------------------------------------------------------------

    def _watch_listener(self) -> None:
        assert self._listener is not None
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it hung up already
            return
        except OSError as error:  # there are no descriptors
            log.warning("nobody can connect for chunks for a moment: %s", error)
            self._selector.unregister(self._listener)
            self._listens_again = time.monotonic() + PAUSE_S
            return
        if len(self._strangers) >= STRANGERS_MAX:
            self._hang_up(next(iter(self._strangers)), "too many connections say nothing")
        self._take_on(_Connection(accepted, time.monotonic()))

    def _dial(self, offer: OfferRawLink) -> None:
        try:
            connection = _Connection(dial(offer.endpoint), time.monotonic())
        except OSError as error:
            log.warning("no raw link to %s at %s: %s", offer.node_id.hex(), offer.endpoint, error)
            return
        connection.dialled = offer.node_id
        connection.says, connection.expects = MAGIC + offer.ticket, MAGIC + offer.receipt
        self._take_on(connection)
        self._wait_to_send(connection, True)  # until it is connected

    def _take_on(self, connection: _Connection) -> None:
        connection.socket.setblocking(False)
        if connection.socket.family != socket.AF_UNIX:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._strangers[connection] = None
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection, events: int) -> None:
        if connection.socket.fileno() < 0:
            return  # hung up on since
        write, read = (self._write, self._read) if connection.peer else (self._say, self._listen)
        try:
            if events & selectors.EVENT_WRITE:
                with suppress(BlockingIOError):
                    write(connection)
            if events & selectors.EVENT_READ:
                with suppress(BlockingIOError):
                    read(connection)
        except (OSError, ValueError, ZrayError) as error:
            self._hang_up(connection, str(error))

    def _say(self, connection: _Connection) -> None:
        """
        Raises:
            OSError: if nobody is there.
        """
        if connection.socket.send(connection.says) != len(connection.says):
            raise ConnectionError("it does not take a greeting")
        self._wait_to_send(connection, False)

    def _listen(self, connection: _Connection) -> None:
        """
        Raises:
            OSError, ValueError: if it says nothing that lets it in.
        """
        heard = connection.socket.recv(GREETING_BYTES - len(connection.heard))
        connection.heard += heard
        if not heard or not MAGIC.startswith(connection.heard[: len(MAGIC)]):
            raise ValueError("it does not greet")
        if len(connection.heard) < GREETING_BYTES:
            return
        if connection.dialled:
            if connection.heard != connection.expects:
                raise ValueError("it has not the receipt")
            self._open(connection, connection.dialled)
            return
        # Found by its hash, so how long that takes says nothing of the tickets that there are.
        ticket = self._tickets.pop(connection.heard[len(MAGIC) :], None)
        if ticket is None or ticket.until < time.monotonic():
            raise ValueError("it has no ticket")
        connection.says = MAGIC + ticket.receipt
        self._say(connection)
        self._open(connection, ticket.peer)

    def _open(self, connection: _Connection, peer: Address) -> None:
        former = self._links.get(peer)
        if former is not None:
            self._hang_up(former, "there is a new one")
        del self._strangers[connection]
        connection.peer = peer
        self._links[peer] = connection
        log.info("chunks go to and come from %s over a raw link", peer.hex())

    def _drop(self, peer: Address) -> None:
        for connection in (*self._links.values(), *self._strangers):
            if peer in (connection.peer, connection.dialled):
                self._hang_up(connection, "")

    # --- going -------------------------------------------------------------------------------------

    def _send(self, outgoing: _LeavingChunk) -> None:
        connection = self._links.get(outgoing.chunk.node_id)
        if connection is None:  # lost since
            self._gone(outgoing)
            return
        if not connection.outgoing:
            connection.since = time.monotonic()
        connection.outgoing.append(outgoing)
        if not connection.waits_to_send:
            self._serve(connection, selectors.EVENT_WRITE)

    def _write(self, connection: _Connection) -> None:
        outgoing = connection.outgoing
        try:
            for _ in range(PIECES_PER_TURN):
                if not outgoing:
                    break
                if outgoing[0].send(connection.socket):
                    self._gone(outgoing.popleft())
                connection.since = time.monotonic()
        finally:
            self._wait_to_send(connection, bool(outgoing))

    def _wait_to_send(self, connection: _Connection, waits: bool) -> None:
        if waits != connection.waits_to_send:
            connection.waits_to_send = waits
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
            self._selector.modify(connection.socket, events, connection)

    # --- coming ------------------------------------------------------------------------------------

    def _read(self, connection: _Connection) -> None:
        for _ in range(PIECES_PER_TURN):
            if connection.head_bytes < _HEAD.size:
                taken = connection.socket.recv_into(memoryview(connection.head)[connection.head_bytes :])
                connection.head_bytes += taken
                if connection.head_bytes == _HEAD.size:
                    self._begin_chunk(connection)
            else:
                taken = self._take(connection)
            if not taken:
                raise ConnectionError("the other end hung up")
            if connection.head_bytes == _HEAD.size and connection.taken == connection.size:
                self._end_chunk(connection)

    def _begin_chunk(self, connection: _Connection) -> None:
        """
        Raises:
            ValueError: if it is no chunk of the object that is wanted.
        """
        connection.object_id, connection.start, connection.size = _HEAD.unpack(connection.head)
        connection.taken = 0
        room = connection.room = self._rooms.find(connection.object_id)
        if room is not None and not room.holds(connection.start, connection.size):
            raise ValueError("bytes beyond the end of an object")

    def _take(self, connection: _Connection) -> int:
        """More bytes of the chunk that is coming; what nobody wants any more goes nowhere."""
        left = connection.size - connection.taken
        taken = None
        if connection.room is not None:
            taken = connection.room.receive(connection.start + connection.taken, left, connection.socket)
        if taken is None:
            connection.room = None
            taken = connection.socket.recv_into(self._waste[:left])
        connection.taken += taken
        return taken

    def _end_chunk(self, connection: _Connection) -> None:
        connection.head_bytes = 0
        room, connection.room = connection.room, None
        if room is not None and room.complete(connection.start, connection.size):
            self._told.append(ChunkArrived(connection.object_id, connection.start, connection.size))


def _nothing() -> None:
    pass
