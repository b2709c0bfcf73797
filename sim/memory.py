"""The bytes of one node's large objects: arena and spill files, with a judge of their own.

Only the encoded value of an object is kept, its size is declared. Whoever looks at memory, or copies it to a
file, must find there what was sealed, and nobody may write where somebody looks (I10, I11).
"""

from __future__ import annotations

from collections.abc import Callable

from sim.programs import Packed
from zray.core.machine import Address
from zray.ids import short
from zray.protocol.messages import FILE, Created, Value

_View = tuple[int, int, bytes]
"""Offset, size, object."""


class SimMemory:
    """Arena and files of one node.

    Args:
        fail: called with a sentence when a rule is broken.
    """

    def __init__(self, fail: Callable[[str], None]) -> None:
        self.fail = fail
        self.extents: dict[int, tuple[bytes, bytes]] = {}  # offset -> object, encoded value
        self.files: dict[bytes, bytes] = {}
        self.views: dict[Address, list[_View]] = {}

    def write(self, room: Created, packed: Packed) -> None:
        """A process writes where the node made room."""
        if room.kind == FILE:
            self.files[room.object_id] = packed.data
            return
        end = room.offset + packed.total_bytes
        for viewer, views in self.views.items():
            for offset, size, object_id in views:
                if offset < end and room.offset < offset + size:
                    self.fail(f"I10: {short(room.object_id)} is written where {viewer.hex()} "
                              f"looks at {short(object_id)}")  # fmt: skip
        self.extents[room.offset] = room.object_id, packed.data

    def look(self, viewer: Address, object_id: bytes, value: Value) -> None:
        """A process is shown an extent."""
        self.look_at(viewer, object_id, value.offset, value.size)

    def look_at(self, viewer: Address, object_id: bytes, offset: int, size: int) -> None:
        """The same of an extent that is no value, such as one that is being spilled."""
        self._find(object_id, offset)
        self.views.setdefault(viewer, []).append((offset, size, object_id))

    def look_away(self, viewer: Address, object_id: bytes, value: Value) -> None:
        """Take one :meth:`look` back; the bytes must be the same until here."""
        self.look_away_from(viewer, object_id, value.offset, value.size)

    def look_away_from(self, viewer: Address, object_id: bytes, offset: int, size: int) -> None:
        """Take one :meth:`look_at` back."""
        self._find(object_id, offset)
        views = self.views.get(viewer)
        if views is None:
            return
        views.remove((offset, size, object_id))
        if not views:
            del self.views[viewer]

    def process_gone(self, viewer: Address) -> None:
        """A process looks at nothing any more."""
        self.views.pop(viewer, None)

    def read(self, object_id: bytes, value: Value) -> bytes:
        """The encoded value that lies there."""
        if value.kind == FILE:
            data = self.files.get(object_id)
            if data is None:
                self.fail(f"{short(object_id)} is shown as a file that is not there")
            return data or b""
        return self._find(object_id, value.offset)

    def _find(self, object_id: bytes, offset: int) -> bytes:
        found, data = self.extents.get(offset, (b"", b""))
        if found != object_id:
            self.fail(f"I10: at {offset} there should be {short(object_id)}, not {short(found)}")
        return data
