"""Where the bytes of chunks belong that are on their way here.

Written to by two threads, the node's loop and that of its raw links, and taken away by the loop at any time:
after :meth:`Rooms.close` nobody writes there any more, so that the memory may be somebody else's.
"""

from __future__ import annotations

import socket
from threading import Lock

from zray.store.arena import ArenaView
from zray.store.spill import SpillDirectory, SpillFile

PIECE_BYTES = 1 << 20
"""The most that is written without a look whether the room is still there: a call-off waits for no more."""


class ChunkRoom:
    """The bytes of one object, in the arena or in a file.

    Args:
        file: that they are written to; otherwise ``offset`` says where in the arena they belong.
    """

    def __init__(self, view: ArenaView, offset: int, size: int, file: SpillFile | None) -> None:
        self.size = size
        self._view, self._offset, self._file = view, offset, file
        self._came: dict[int, int] = {}  # start of each chunk that is complete -> its size
        self._is_open = True
        self._lock = Lock()
        self._piece = memoryview(bytearray(min(size, PIECE_BYTES))) if file is not None else None

    def holds(self, start: int, size: int) -> bool:
        """Whether these are bytes of this object."""
        return 0 <= start <= start + size <= self.size

    def copy_in(self, start: int, data: memoryview) -> bool:
        """Write a whole chunk; whether there is still room for it."""
        with self._lock:
            if not self._is_open:
                return False
            if self._file is None:
                extent = (self._offset, self._offset + self.size)
                self._view.copy_in(self._offset + start, data, extent)
            else:
                self._file.copy_in(start, data)
            return True

    def receive(self, start: int, size: int, connection: socket.socket) -> int | None:
        """Take what has come over a connection, at most ``size`` bytes, straight to where it belongs.

        Returns:
            how many bytes; 0: the other end hung up; ``None``: there is no room any more, none were taken.
        Raises:
            BlockingIOError: if none have come. OSError: if the connection is lost, or memory is used up.
        """
        size = min(size, PIECE_BYTES)
        with self._lock:
            if not self._is_open:
                return None
            if self._piece is None or self._file is None:
                return connection.recv_into(self._view.write(self._offset + start, size))
            taken = connection.recv_into(self._piece[:size])
            self._file.copy_in(start, self._piece[:taken])
            return taken

    def complete(self, start: int, size: int) -> bool:
        """A chunk is all there; whether there was still room for it. A file with all chunks gets its name."""
        with self._lock:
            if not self._is_open:
                return False
            self._came[start] = size
            if self._file is not None and sum(self._came.values()) == self.size:
                self._file.seal()
                self._is_open = False
            return True

    def close(self) -> None:
        """Nothing is written from now on; a file that is not complete goes."""
        self._is_open = False  # before the lock: whoever has it takes it for one piece more, not for ever
        with self._lock:
            if self._file is not None:
                self._file.abort()


class Rooms:
    """The rooms of one node. Opened and closed by its loop, found by any thread."""

    def __init__(self, view: ArenaView, files: SpillDirectory) -> None:
        self._view = view
        self._files = files
        self._rooms: dict[bytes, ChunkRoom] = {}

    def open(self, object_id: bytes, offset: int, size: int, *, in_file: bool) -> None:
        """From now on the bytes of an object have a place; said again, it changes nothing.

        Raises:
            OutOfDiskError: if that is a file, and the disk is full.
        """
        if object_id in self._rooms:
            return
        file = self._files.create(object_id, size) if in_file else None
        self._rooms[object_id] = ChunkRoom(self._view, offset, size, file)

    def close(self, object_id: bytes) -> None:
        """From now on they have none; takes as long as one piece at the most."""
        room = self._rooms.pop(object_id, None)
        if room is not None:
            room.close()

    def find(self, object_id: bytes) -> ChunkRoom | None:
        """The room of an object whose bytes are wanted."""
        return self._rooms.get(object_id)
