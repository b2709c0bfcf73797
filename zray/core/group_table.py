"""Placement groups in the control store: one row per group, written before anything depends on it.

The newest write of a group counts, and is repeated until it is answered. A new life reads all rows first.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.core.machine import Address, Effect, invariant
from zray.core.membership import LIFE_SHIFT
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.group_messages import GroupRow
from zray.protocol.messages import TABLE_KV, TableDelete, TablePage, TablePut, TableReply, TableScan

PREFIX = b"zray/group/"
PAGE = 1_000
FIRST_TOKEN = 1 << 56
"""Tokens from here on are ours; others of this process ask the same store."""


class GroupTable:
    """The rows of all groups, and writes under way. Pure; shares the outbox of the coordinator."""

    def __init__(self, out: list[Effect], *, store: Address, life: Callable[[], int]) -> None:
        self.out = out
        self.store = store
        self.life = life
        self.opened = False  # whether every row was read
        self.after = PREFIX  # the last key that was read
        self.asked = 0  # token of the newest question for a page
        self.tokens = 0
        self.writes: dict[bytes, TablePut | TableDelete] = {}  # the newest of each group without an answer
        self.written: dict[bytes, None] = {}  # groups with a row

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be repeated."""
        return self.opened and not self.writes

    def has(self, group_id: bytes) -> bool:
        """Whether a group has a row that is durable."""
        return group_id in self.written

    def write(self, row: GroupRow) -> None:
        """Write the row of a group."""
        group_id = row.spec.group_id
        self._send(group_id, TablePut(self._token(), TABLE_KV, PREFIX + group_id, encode_value(row)))

    def delete(self, group_id: bytes) -> None:
        """Delete the row of a group."""
        self._send(group_id, TableDelete(self._token(), TABLE_KV, PREFIX + group_id))

    def _send(self, group_id: bytes, write: TablePut | TableDelete) -> None:
        self.writes[group_id] = write
        self.out.append((self.store, write))

    def _token(self) -> int:
        """A number that no other question has, of this life or of a former one."""
        self.tokens += 1
        return FIRST_TOKEN + (self.life() << LIFE_SHIFT) + self.tokens

    def replied(self, source: Address, message: TableReply) -> bytes:
        """The group whose newest write an answer is for; empty if there is none."""
        if source != self.store or message.token < FIRST_TOKEN:
            return b""
        for group_id, write in self.writes.items():  # answers come in order: it is among the first
            if write.token == message.token:
                del self.writes[group_id]
                if isinstance(write, TableDelete):
                    self.written.pop(group_id, None)
                elif message.ok:
                    self.written[group_id] = None
                return group_id
        return b""

    def repeat(self) -> None:
        """Ask again for what was not answered."""
        if not self.opened:
            self.asked = self._token()
            self.out.append((self.store, TableScan(self.asked, TABLE_KV, self.after, PAGE)))
        self.out.extend((self.store, write) for write in self.writes.values())

    def read(self, source: Address, message: TablePage) -> list[GroupRow]:
        """Rows of one page; the next one is asked for."""
        if source != self.store or self.opened or message.token != self.asked:
            return []
        rows = [decode_value(value, GroupRow) for key, value in message.entries if key.startswith(PREFIX)]
        self.written.update((row.spec.group_id, None) for row in rows)
        beyond = len(rows) < len(message.entries)
        if message.entries and not beyond and (message.more or len(rows) == PAGE):
            self.after = message.entries[-1][0]
            self.repeat()
        else:
            self.opened = True
        return rows

    def check(self) -> None:
        """Nothing is written before all was read."""
        invariant(self.opened or not self.writes, "rows are written before they were read")
