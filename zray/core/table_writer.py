"""What a node writes to the GCS tables without waiting: functions, descriptors, jobs, where actors are.

Written behind, like lineage: each write is kept until its shard acknowledges it and sent again until then.
Of several writes to one key only the newest counts. Paper, section 4.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from zray.core.machine import Address, Effect, invariant
from zray.ids import shard_of
from zray.protocol.messages import TablePut, TableReply

RESEND_NS = 1_000_000_000


class TableWriter:
    """Unacknowledged table writes of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        shards: the addresses of all GCS shards, by number; none: nothing is written. The node puts another
            one in when the head of a chain changes.
        unacked_max: writes kept for shards that are away; the oldest are given up beyond it (I15).
    """

    def __init__(self, out: list[Effect], *, shards: Sequence[Address], unacked_max: int) -> None:
        self.out = out
        self.shards = shards
        self.unacked_max = unacked_max
        self.unacked: dict[tuple[int, bytes], TablePut] = {}  # oldest first
        self.tokens = 0
        self.dropped = 0
        self.wake_at_ns: int | None = None

    def put(self, now_ns: int, table: int, key: bytes, value: bytes) -> None:
        """Write one key."""
        if not self.shards:
            return
        self.tokens += 1
        write = TablePut(self.tokens, table, key, value)
        self.unacked.pop((table, key), None)
        self.unacked[table, key] = write
        if len(self.unacked) > self.unacked_max:
            del self.unacked[next(iter(self.unacked))]
            self.dropped += 1
        if self.wake_at_ns is None:
            self.wake_at_ns = now_ns + RESEND_NS
        self.out.append((self._shard_of(key), write))

    def passed(self, token: int) -> bool:
        """Whether all writes up to this one are acknowledged, or given up."""
        # They are in the order of their tokens.
        return not self.unacked or next(iter(self.unacked.values())).token > token

    def awaited_by(self, token: int) -> list[int]:
        """The numbers of the shards that did not acknowledge writes up to this one, one for each write."""
        keys = [write.key for write in self.unacked.values() if write.token <= token]
        return [shard_of(key, len(self.shards)) for key in keys]

    def _shard_of(self, key: bytes) -> Address:
        return self.shards[shard_of(key, len(self.shards))]

    def on_reply(self, now_ns: int, source: Address, message: TableReply) -> None:
        """A shard has the write, or has no room for it: either way there is nothing left to send."""
        for place, write in self.unacked.items():  # replies come in order: it is among the first
            if write.token == message.token and self._shard_of(write.key) == source:
                del self.unacked[place]
                break
        if not self.unacked:
            self.wake_at_ns = None

    def shard_is_back(self, source: Address) -> None:
        """A shard greets: it may have missed anything that it did not acknowledge."""
        for write in self.unacked.values():
            if self._shard_of(write.key) == source:
                self.out.append((source, write))

    def on_tick(self, now_ns: int) -> None:
        """Send the oldest write of each silent shard again; the others follow when it greets."""
        if self.wake_at_ns is None or self.wake_at_ns > now_ns:
            return
        self.wake_at_ns = now_ns + RESEND_NS
        knocked: dict[Address, None] = {}
        for write in self.unacked.values():
            shard = self._shard_of(write.key)
            if shard not in knocked:
                knocked[shard] = None
                self.out.append((shard, write))

    def check(self) -> None:
        """Bounded, and awake as long as something is left to send."""
        invariant(len(self.unacked) <= self.unacked_max, "I15: table writes", len(self.unacked))
        invariant(bool(self.unacked) == (self.wake_at_ns is not None), "table writes without a clock")
