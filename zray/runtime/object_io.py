"""The bytes of large objects, as one process of a node reads and writes them.

They lie in the node's arena, which each process maps once at the first use, or, when that is full of things
that somebody looks at, in a file of their own. Either way a reader gets a view without a copy.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.protocol.messages import EXTENT, FILE, Created, Value, Welcome
from zray.serialize.values import Serialized
from zray.store.arena import ArenaView
from zray.store.spill import SpillDirectory

MAPPED_WRITE_MAX = 256 * 1024
"""Up to this size a value is written through the mapping without a thought (see ``ArenaView.copy_in``)."""


class ObjectIO:
    """The arena and the spill directory of the node that said ``welcome``.

    Args:
        welcome: where they are.
        on_unpin: called with an object id, in any thread and inside the collector, once nobody in this
            process looks at an extent that was shown to it: it must only append.
        huge_pages: see :class:`ArenaView`.
    """

    def __init__(
        self, welcome: Welcome, on_unpin: Callable[[bytes], None], *, huge_pages: bool = True
    ) -> None:
        self._welcome = welcome
        self._huge_pages = huge_pages
        self._on_unpin = on_unpin
        self._arena: ArenaView | None = None
        self._spill = SpillDirectory(welcome.spill_dir)

    @property
    def arena(self) -> ArenaView:
        """The node's shared memory, mapped at the first use."""
        if self._arena is None:
            welcome, huge_pages = self._welcome, self._huge_pages
            self._arena = ArenaView(welcome.arena_path, welcome.arena_bytes, huge_pages=huge_pages)
        return self._arena

    def view(self, object_id: bytes, value: Value) -> bytes | memoryview:
        """The bytes of a value that was shown to this process, without a copy."""
        if value.kind == EXTENT:
            on_unpin = self._on_unpin
            return self.arena.read(value.offset, value.size, lambda: on_unpin(object_id))
        if value.kind == FILE:
            return self._spill.open_view(object_id, value.size)
        return value.data

    def write(self, room: Created, value: Serialized) -> None:
        """Write a value where the node made room for it.

        Raises:
            OutOfDiskError: if there is no memory, or no disk, behind that room.
        """
        size = value.total_bytes
        if room.kind == FILE:
            self._write_file(room.object_id, value)
        elif size <= MAPPED_WRITE_MAX:
            value.write_into(self.arena.write(room.offset, size))
        else:
            offset, extent = room.offset, (room.offset, room.offset + size)
            for segment in value.segments():
                offset += self.arena.copy_in(offset, segment, extent)

    def _write_file(self, object_id: bytes, value: Serialized) -> None:
        file = self._spill.create(object_id, value.total_bytes)
        try:
            offset = 0
            for segment in value.segments():
                offset += file.copy_in(offset, segment)
            file.seal()
        except BaseException:
            file.abort()
            raise

    def close(self) -> None:
        """Let go of the mapping; what is still looked at stays mapped until it is not."""
        if self._arena is not None:
            self._arena.close()
