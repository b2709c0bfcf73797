"""Links straight between two processes of one machine, over Unix stream sockets.

Of drivers and workers to their node, and straight to each other. There each side waits for the other with
one message on the way, and ZeroMQ's own threads would double the wake-ups (``docs/decisions/0022``). Nodes
and the control store speak with each other over ``transport.py``.

A frame is its length, four bytes, and as many bytes. The first one of a link says who made it. If a link
breaks, the side that had made it makes it again, and what was not sent waits for that; the side that had
accepted it has no way to its peer until then. All descriptors are behind one, ``fileno()``, that signals
levels: a wait returns as long as something is to be done.

Not thread-safe. Whoever shares it between threads holds a lock around every call but ``wait``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import mmap
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from zray.config import Config
from zray.core.machine import Address
from zray.errors import RemoteProtocolError
from zray.protocol.codec import encode_batch
from zray.protocol.messages import Refused
from zray.runtime.endpoints import remove_socket_file
from zray.runtime.frames import FrameSender
from zray.runtime.spinning import Spinning

log = logging.getLogger("zray.transport")

STRANGERS_MAX = 64
"""Accepted links that have not said whose they are; of more the oldest is closed."""
ACCEPTED_PER_TURN_MAX = 32
READ_BYTES = 64 * 1024
"""Of one link at a time: a thousand messages, as a rule."""
RETRY_NS, RETRY_NS_MAX = 2_000_000, 200_000_000
"""Until a link that cannot be made is tried again: at first, and at most; doubled each time."""
_LENGTH = struct.Struct("=I")
_INTRODUCTION = b"zray-link "
_IDENTITY_BYTES_MAX = 255
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Decoder = Callable[[bytes], list[Any]]


class StreamLink:
    """One link; found in ``StreamLinks.links`` once it is known whose it is.

    Attributes:
        address: who is at the other end; empty: not said yet.
        path: where to find it, if this side makes the link; empty: it was accepted.
        socket: ``None`` while it is to be made.
        came: the beginning of a frame.
        waiting: bytes that were not sent, a whole frame each but for the first.
    """

    __slots__ = ("address", "came", "path", "retry_at_ns", "retry_ns", "socket", "waiting")

    def __init__(self, address: Address, path: str, socket: socket.socket | None) -> None:
        self.address = address
        self.path = path
        self.socket = socket
        self.came = bytearray()
        self.waiting: deque[bytes | memoryview] = deque()
        self.retry_at_ns = 0
        self.retry_ns = RETRY_NS


class StreamLinks(FrameSender):
    """All such links of one process: those that it makes, and those that it accepts.

    Args:
        identity: who this process is for those to whom it makes links.
        decode: one frame to its messages.
        config: limits.
        is_taken: whether a name is that of a process that is reached in another way.
    """

    def __init__(
        self,
        identity: Address,
        decode: Decoder,
        config: Config,
        is_taken: Callable[[Address], bool] | None = None,
    ) -> None:
        super().__init__(config)
        self.identity = identity
        self._is_taken = is_taken
        self.links: dict[Address, StreamLink] = {}
        self._decode = decode
        self._epoll = select.epoll()
        self._spinning = Spinning(config.spin_ns)
        self._ready: list[tuple[int, int]] = []  # what the last wait found
        self._by_fd: dict[int, StreamLink] = {}
        self._strangers: dict[StreamLink, None] = {}
        self._to_make: dict[Address, StreamLink] = {}
        self._listener: socket.socket | None = None
        self._endpoint = ""
        self._deaf_until_ns = 0  # no descriptors are left: nobody is accepted
        self._buffer = mmap.mmap(-1, READ_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # takes what is used

    def fileno(self) -> int:
        """Readable as long as :meth:`receive` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Let :meth:`wait` also return when ``fd`` is readable."""
        self._epoll.register(fd, _READ)

    def unwatch(self, fd: int) -> None:
        """Take :meth:`watch` back."""
        self._epoll.unregister(fd)

    def wait(self, timeout_ms: int | None) -> list[int]:
        """Block until :meth:`receive` has something to do, a watched descriptor is readable, or time is over.

        The only method that may be called beside others. Returns the descriptors where something happened.
        """
        due_ms = self.until_due(timeout_ms)
        self._ready = self._spinning.wait(self._epoll.poll, None if due_ms is None else due_ms / 1000)
        return [fd for fd, _ in self._ready]

    # --- making and ending links --------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether others can call."""
        return self._listener is not None

    def bind(self, endpoint: str) -> None:
        """Take links at ``ipc://PATH``.

        Raises:
            OSError: if that cannot be.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(_path_of(endpoint))
            listener.listen(socket.SOMAXCONN)
            self._epoll.register(listener, _READ)
        except BaseException:
            listener.close()
            raise
        self._listener, self._endpoint = listener, endpoint

    def connect(self, address: Address, endpoint: str) -> None:
        """Make ``address`` reachable at ``ipc://PATH``; frames wait until somebody is there."""
        path, link = _path_of(endpoint), self.links.get(address)
        if link is not None and link.path == path:
            return
        self.disconnect(address)
        self.links[address] = link = StreamLink(address, path, None)
        self._introduce(link)
        self._make(link)

    def disconnect(self, address: Address) -> None:
        """Forget a peer: its link, and frames that still wait for it."""
        link = self.links.pop(address, None)
        if link is not None:
            self._to_make.pop(address, None)
            self._close(link)
        self.unreachable.pop(address, None)

    def callers(self) -> list[Address]:
        """Who made a link to this process, and is there."""
        return [address for address, link in self.links.items() if not link.path]

    def _introduce(self, link: StreamLink) -> None:
        introduction = _INTRODUCTION + self.identity
        link.waiting.appendleft(_LENGTH.pack(len(introduction)) + introduction)

    def _make(self, link: StreamLink) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            made.connect(link.path)
        except OSError:  # not there yet, gone (whoever said where it is will say so), or too busy to accept
            made.close()
            link.retry_at_ns = time.monotonic_ns() + link.retry_ns
            link.retry_ns = min(2 * link.retry_ns, RETRY_NS_MAX)
            self._to_make[link.address] = link
            return
        self._to_make.pop(link.address, None)
        link.retry_ns = RETRY_NS
        self._watch(link, made)
        self._send_waiting(link)

    def _watch(self, link: StreamLink, made: socket.socket) -> None:
        link.socket = made
        self._by_fd[made.fileno()] = link
        self._epoll.register(made, _READ)

    def _close(self, link: StreamLink) -> None:
        if link.socket is not None:
            self._epoll.unregister(link.socket)
            del self._by_fd[link.socket.fileno()]
            link.socket.close()
            link.socket = None
        self._strangers.pop(link, None)
        link.came.clear()

    def _lose(self, link: StreamLink) -> None:
        """The link broke, or has to be given up."""
        self._close(link)
        if self.links.get(link.address) is not link:
            return
        if link.path:
            if link.waiting and isinstance(link.waiting[0], memoryview):
                self.note_unreachable(link.address, link.waiting.popleft())  # the rest of a frame
            self._introduce(link)
            link.retry_at_ns = time.monotonic_ns() + link.retry_ns
            self._to_make[link.address] = link
            return
        del self.links[link.address]
        for frame in link.waiting:
            self.note_unreachable(link.address, frame)

    # --- sending ------------------------------------------------------------------------------------

    def pass_on(self, address: Address, frame: bytes) -> None:
        """Send one frame now, or as soon as the peer takes it; a peer without a link loses it, counted."""
        link = self.links.get(address)
        if link is None:
            self.note_unreachable(address, frame)
            return
        is_first = not link.waiting and link.socket is not None
        link.waiting.append(_LENGTH.pack(len(frame)) + frame)
        if is_first:
            self._send_waiting(link)

    def _send_waiting(self, link: StreamLink) -> None:
        waiting = link.waiting
        assert link.socket is not None
        try:
            while waiting:
                data = waiting[0]
                sent = link.socket.send(data, _SEND_FLAGS)
                if sent == len(data):
                    waiting.popleft()
                else:
                    waiting[0] = memoryview(data)[sent:]
        except BlockingIOError:
            self._epoll.modify(link.socket, _READ | _WRITE)
        except OSError:  # nobody is there any more; what came before that is still to be read
            self._epoll.modify(link.socket, _READ)

    def _go_on(self, link: StreamLink) -> None:
        """It takes bytes again."""
        assert link.socket is not None
        self._epoll.modify(link.socket, _READ)
        self._send_waiting(link)

    # --- receiving ----------------------------------------------------------------------------------

    def receive(self, messages_max: float = math.inf) -> list[tuple[Address, Any]]:
        """What has arrived, as ``(source, message)``, by one read of each link; empty at once if nothing has.

        Args:
            messages_max: no further link is read once there are so many.

        A frame that is not a batch is answered by ``Refused`` and logged; nothing of it is returned.
        """
        self.send_due()
        if self._to_make:
            self._make_again()
        if self._deaf_until_ns:
            self._listen_again()
        received: list[tuple[Address, Any]] = []
        ready, self._ready = self._ready, []
        self._serve(ready, received, messages_max)
        if not received:  # what the wait found may be old, and not all that there is by now
            self._serve(self._epoll.poll(0), received, messages_max)
        return received

    def _serve(
        self, ready: list[tuple[int, int]], received: list[tuple[Address, Any]], messages_max: float
    ) -> None:
        for fd, events in ready:
            if len(received) >= messages_max:
                break
            link = self._by_fd.get(fd)
            if link is None:
                if self._listener is not None and fd == self._listener.fileno():
                    self._accept(self._listener, received)
                continue  # else watched, or closed in this turn
            if events & _WRITE:
                self._go_on(link)
            if events & ~_WRITE and link.socket is not None:
                self._read(link, received)

    def _read(self, link: StreamLink, received: list[tuple[Address, Any]]) -> None:
        assert link.socket is not None
        try:
            count = link.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose(link)
            return
        with memoryview(self._buffer) as buffer, buffer[:count] as data:
            if link.came:
                link.came += data
                self._take_came(link, received)
            else:
                link.came += data[self._take(link, data, received) :]

    def _take_came(self, link: StreamLink, received: list[tuple[Address, Any]]) -> None:
        came = link.came
        if self._is_coming(came):
            return
        link.came = bytearray()
        with memoryview(came) as data:
            taken = self._take(link, data, received)
            if link.socket is not None:
                link.came += data[taken:]

    def _is_coming(self, came: bytearray) -> bool:
        """Whether there is less than a frame, which may be as large as it says."""
        if len(came) < _LENGTH.size:
            return True
        (size,) = _LENGTH.unpack_from(came)
        return len(came) < _LENGTH.size + size and size <= self.frame_bytes_max

    def _take(self, link: StreamLink, data: memoryview, received: list[tuple[Address, Any]]) -> int:
        """Take all whole frames; returns where the rest begins."""
        start, end = 0, len(data)
        while end - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, start)
            if size > self.frame_bytes_max:
                self._hang_up(link, f"a frame of {size} bytes, of {self.frame_bytes_max} at most")
                return end
            behind = start + _LENGTH.size + size
            if behind > end:
                break
            if not self._take_frame(link, bytes(data[start + _LENGTH.size : behind]), received):
                return end
            start = behind
        return start

    def _take_frame(self, link: StreamLink, frame: bytes, received: list[tuple[Address, Any]]) -> bool:
        """Whether the link goes on."""
        if not link.address:
            return self._hear_introduction(link, frame)
        source = link.address
        try:
            received += [(source, message) for message in self._decode(frame)]
        except RemoteProtocolError as error:
            self.refused += 1
            log.warning("refused a frame from %s: %s", source.hex(), error)
            self.pass_on(source, encode_batch([Refused("garbage", str(error))]))
        return link.socket is not None

    # --- strangers ----------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, received: list[tuple[Address, Any]]) -> None:
        """Take those who knock, and hear them at once: who has said who it is is no stranger."""
        try:
            for _ in range(ACCEPTED_PER_TURN_MAX):
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                link = StreamLink(b"", "", None)
                self._watch(link, accepted)
                self._strangers[link] = None
                self._read(link, received)
                if len(self._strangers) > STRANGERS_MAX:
                    self._hang_up(next(iter(self._strangers)), "it does not say whose it is")
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                return  # the caller is gone already
            log.warning("a link cannot be accepted: %s", error.strerror)
            self._epoll.unregister(listener)
            self._deaf_until_ns = time.monotonic_ns() + RETRY_NS_MAX

    def _listen_again(self) -> None:
        if time.monotonic_ns() >= self._deaf_until_ns and self._listener is not None:
            self._deaf_until_ns = 0
            self._epoll.register(self._listener, _READ)

    def _hear_introduction(self, link: StreamLink, frame: bytes) -> bool:
        address = frame.removeprefix(_INTRODUCTION)
        if not frame.startswith(_INTRODUCTION) or not 0 < len(address) <= _IDENTITY_BYTES_MAX:
            self._hang_up(link, "it does not say whose it is")
            return False
        self._strangers.pop(link, None)
        former = self.links.get(address)
        if (former is not None and former.path) or (self._is_taken is not None and self._is_taken(address)):
            self._hang_up(link, f"it says that it is {address.hex()}, who is somebody else")
            return False
        if former is not None:  # it came again before the end of its old link was seen
            self._lose(former)
        link.address = address
        self.links[address] = link
        return True

    def _hang_up(self, link: StreamLink, why: str) -> None:
        self.refused += 1
        log.warning("hung up on %s: %s", link.address.hex() or "a stranger", why)
        self._lose(link)

    # --- waiting ------------------------------------------------------------------------------------

    def _make_again(self) -> None:
        now_ns = time.monotonic_ns()
        for link in list(self._to_make.values()):
            if link.retry_at_ns <= now_ns:
                self._make(link)

    def until_due(self, timeout_ms: int | None) -> int | None:
        """How long a wait may take so that delayed frames leave, and links are tried again, in time."""
        timeout_ms = super().until_due(timeout_ms)
        if not self._to_make and not self._deaf_until_ns:
            return timeout_ms
        times = [link.retry_at_ns for link in list(self._to_make.values())]  # the lock is free
        due_ns = min([*times, self._deaf_until_ns] if self._deaf_until_ns else times)
        due_ms = max(0, due_ns - time.monotonic_ns()) // 1_000_000 + 1
        return due_ms if timeout_ms is None else min(timeout_ms, due_ms)

    def close(self, linger_s: float = 0.2) -> None:
        """End all links, after frames already sent had ``linger_s`` to leave; remove the socket's file."""
        self.send_all_delayed()
        self._linger(time.monotonic() + linger_s)
        for link in list(self._by_fd.values()):
            self._close(link)
        self.links.clear()
        self._to_make.clear()
        self._epoll.close()
        self._buffer.close()
        if self._listener is not None:
            self._listener.close()
            remove_socket_file(self._endpoint)

    def _linger(self, deadline: float) -> None:
        for link in self._by_fd.values():
            if link.socket is None or not link.waiting:
                continue
            with contextlib.suppress(OSError):  # it takes no more, or nobody is there
                while link.waiting:
                    link.socket.settimeout(max(0.0, deadline - time.monotonic()))
                    link.socket.sendall(link.waiting[0], socket.MSG_NOSIGNAL)
                    link.waiting.popleft()


def _path_of(endpoint: str) -> str:
    return endpoint.removeprefix("ipc://")
