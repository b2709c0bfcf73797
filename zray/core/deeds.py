"""Deeds: the rows of detached actors in the actor table, written only by compare-and-set.

The deed of a detached actor names its *home* and its *successor*, the node that becomes the home when the
home dies. Every write names what it replaces, so there is one home at a time: when the successor has
written itself in, nothing that the dead home still sends changes anything (I9), and of two nodes that want
to be the home one wins. A home acts on what it wrote only once that is acknowledged.

Invariant: of one deed at most one write is under way; a later one waits, and only the newest of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zray.core.machine import Address, Effect, invariant
from zray.ids import shard_of, short
from zray.protocol.actor_messages import ActorRow
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.messages import ACTOR_DEAD, TABLE_ACTOR, TableCas, TableGet, TableReply

FIRST_TOKEN = 1 << 44
"""Tokens from here on are ours; those below belong to other askers of the same node."""
RESEND_NS = 1_000_000_000
RETRY_NS = 250_000_000
"""Between two looks at a deed whose home is dead and whose successor has not come forward."""


class Deed:
    """One row that this node has written, or is about to; found in ``Deeds.deeds``."""

    __slots__ = ("actor_id", "flying", "is_held", "known", "token", "wanted")

    def __init__(self, actor_id: bytes, known: bytes | None) -> None:
        self.actor_id = actor_id
        self.known = known  # what the row holds, as far as this node knows
        self.is_held = known is not None  # this node is the home, or is about to be
        self.flying: bytes | None = None  # what the write under way says
        self.token = 0  # of that write
        self.wanted: bytes | None = None  # what is to be written next


class Deeds:
    """The deeds of one node. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node.
        shards: the address that serves each shard now, by number.
        on_durable: called with every row that this node wrote, once it is acknowledged.
        on_other: called with a row that another node wrote instead, and its bytes.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        shards: Sequence[Address],
        on_durable: Callable[[ActorRow], None],
        on_other: Callable[[ActorRow, bytes], None],
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.shards = shards
        self.on_durable = on_durable
        self.on_other = on_other
        self.deeds: dict[bytes, Deed] = {}
        self.writes: dict[int, Deed] = {}  # token -> whose write is under way
        self.reads: dict[int, tuple[bytes, Callable[[ActorRow | None, bytes], None]]] = {}
        self.tokens = FIRST_TOKEN
        self.now_ns = 0
        self.wake_at_ns: int | None = None

    # --- writing -----------------------------------------------------------------------------------

    def write(self, row: ActorRow) -> None:
        """Say how an actor of this node is; nothing happens if the row says so already."""
        deed = self.deeds.get(row.actor_id)
        if deed is None:
            deed = self.deeds[row.actor_id] = Deed(row.actor_id, None)
        value = encode_value(row)
        if value == (deed.flying or deed.known):
            deed.wanted = None
            return
        deed.wanted = value
        if not deed.token:
            self._send(deed)

    def take(self, known: bytes, row: ActorRow) -> None:
        """Become the home of an actor whose row holds ``known``."""
        deed = self.deeds[row.actor_id] = Deed(row.actor_id, known)
        deed.wanted = encode_value(row)
        self._send(deed)

    def says(self, row: ActorRow) -> bool:
        """Whether it is acknowledged that the row is this, and no other write is under way."""
        deed = self.deeds.get(row.actor_id)
        return deed is not None and not deed.token and deed.known == encode_value(row)

    def is_held(self, actor_id: bytes) -> bool:
        """Whether this node was the home of an actor, as far as it knows."""
        deed = self.deeds.get(actor_id)
        return deed is not None and deed.is_held

    def forget(self, actor_id: bytes) -> None:
        """The actor is of another node."""
        deed = self.deeds.pop(actor_id, None)
        if deed is not None and deed.token:
            self.writes.pop(deed.token, None)

    def _send(self, deed: Deed) -> None:
        assert deed.wanted is not None
        self.tokens += 1
        deed.flying, deed.wanted, deed.token = deed.wanted, None, self.tokens
        self.writes[deed.token] = deed
        self._repeat(deed)
        self._wake_by(self.now_ns + RESEND_NS)

    def _repeat(self, deed: Deed) -> None:
        assert deed.flying is not None
        cas = TableCas(deed.token, TABLE_ACTOR, deed.actor_id, deed.known, deed.flying)
        self.out.append((self._shard(deed.actor_id), cas))

    def _shard(self, actor_id: bytes) -> Address:
        return self.shards[shard_of(actor_id, len(self.shards))]

    # --- reading -----------------------------------------------------------------------------------

    def read(self, actor_id: bytes, then: Callable[[ActorRow | None, bytes], None]) -> None:
        """Call ``then`` with the row as it is now and its bytes."""
        self.tokens += 1
        self.reads[self.tokens] = actor_id, then
        self.out.append((self._shard(actor_id), TableGet(self.tokens, TABLE_ACTOR, actor_id)))
        self._wake_by(self.now_ns + RESEND_NS)

    # --- answers -----------------------------------------------------------------------------------

    def on_table_reply(self, message: TableReply) -> None:
        """A shard has a write, or another value; or says what the row holds."""
        read = self.reads.pop(message.token, None)
        if read is not None:
            row = None if message.value is None else decode_value(message.value, ActorRow)
            read[1](row, message.value or b"")
            return
        deed = self.writes.pop(message.token, None)
        if deed is None:
            return
        # Asked twice, the first time may have won: then the key holds what we wrote.
        if message.ok or message.value == deed.flying:
            self._won(deed)
        else:
            self._lost(deed, message.value)

    def _won(self, deed: Deed) -> None:
        assert deed.flying is not None
        deed.known, deed.flying, deed.token, deed.is_held = deed.flying, None, 0, True
        row = decode_value(deed.known, ActorRow)
        if deed.wanted is not None:
            self._send(deed)
        elif row.state == ACTOR_DEAD:
            del self.deeds[deed.actor_id]
        self.on_durable(row)

    def _lost(self, deed: Deed, current: bytes | None) -> None:
        """The row holds something else than this node knew of."""
        deed.wanted, deed.flying, deed.token = deed.wanted or deed.flying, None, 0
        row = None if current is None else decode_value(current, ActorRow)
        is_free = row is None or (row.home == self.node_id if row.state != ACTOR_DEAD else not deed.is_held)
        if current != deed.known and is_free:
            deed.known = current
            self._send(deed)
        elif row is None:  # a full table: once more, later
            self._wake_by(self.now_ns + RESEND_NS)
        else:
            assert current is not None
            self.on_other(row, current)

    def again_later(self, actor_id: bytes) -> None:
        """The row is of a node that may be dead: try once more, when that is decided."""
        self._wake_by(self.now_ns + RETRY_NS)

    # --- time --------------------------------------------------------------------------------------

    def _wake_by(self, at_ns: int) -> None:
        if self.wake_at_ns is None or at_ns < self.wake_at_ns:
            self.wake_at_ns = at_ns

    def on_tick(self, now_ns: int) -> None:
        """Repeat what has no answer, and try again what waited."""
        self.now_ns = now_ns
        if self.wake_at_ns is None or self.wake_at_ns > now_ns:
            return
        self.wake_at_ns = None
        self._ask_again(None)

    def shard_is_back(self, shard: Address) -> None:
        """A shard greets: it may not have heard what it did not answer."""
        self._ask_again(shard)

    def _ask_again(self, shard: Address | None) -> None:
        for token, (actor_id, _) in self.reads.items():
            if shard in (None, self._shard(actor_id)):
                self.out.append((self._shard(actor_id), TableGet(token, TABLE_ACTOR, actor_id)))
        for deed in self.deeds.values():
            if shard not in (None, self._shard(deed.actor_id)):
                continue
            if deed.token:
                self._repeat(deed)
            elif deed.wanted is not None:
                self._send(deed)
        if self.reads or self.writes:
            self._wake_by(self.now_ns + RESEND_NS)

    def check(self) -> None:
        """What is under way is known by its token, and is awake."""
        for token, deed in self.writes.items():
            invariant(deed.token == token, "a write of", short(deed.actor_id), "under another token")
        waits = self.reads or any(deed.token or deed.wanted for deed in self.deeds.values())
        invariant(not waits or self.wake_at_ns is not None, "a deed that waits without a clock")
