"""Names of actors whose home is dead: nobody there gives them back, so one node of the living does.

When a node died, the living node with the least id looks at every name of the cluster. An actor whose row
in the actor table names a home with a grave (``membership.py``) is over, and its name is deleted if it
still holds that actor; a late or repeated delete never takes the name of a successor. If the sweeper dies
as well, the next one begins again, also for homes that died before its time.

Invariant: there is at most one sweep, and each of its questions is answered or asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from zray.core.actor_names import PAGE_ENTRIES, PREFIX
from zray.core.machine import Address, Effect, invariant
from zray.core.membership import GRAVES
from zray.ids import ID_BYTES, shard_of
from zray.protocol.actor_messages import ActorRow
from zray.protocol.documents import decode_value
from zray.protocol.messages import (
    TABLE_ACTOR,
    TABLE_KV,
    TableDelete,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)

FIRST_TOKEN = 1 << 43
"""Tokens from here on are ours; those below belong to other askers of the same node."""
SweepQuestion = TableScan | TableGet | TableDelete


class _Asked:
    """One question without an answer: about a name that holds a handle, or for a page (no handle)."""

    __slots__ = ("handle", "key", "question", "shard")

    def __init__(self, shard: int, question: SweepQuestion, key: bytes, handle: bytes) -> None:
        self.shard, self.question, self.key, self.handle = shard, question, key, handle


class NameSweeper:
    """Gives names back for nodes that died. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node.
        shards: every GCS shard, by number; the first keeps the graves.
    """

    def __init__(self, out: list[Effect], *, node_id: bytes, shards: Sequence[Address]) -> None:
        self.out = out
        self.node_id = node_id
        self.shards = shards
        self.asked: dict[int, _Asked] = {}
        self.tokens = FIRST_TOKEN
        self.swept = 0  # names given back

    def node_dead(self, alive: dict[Address, str]) -> None:
        """A node died: begin, if that is for this node to do."""
        self.asked.clear()
        if all(self.node_id < node for node in alive):
            for shard in range(len(self.shards)):
                self._ask(shard, TableScan(0, TABLE_KV, PREFIX, PAGE_ENTRIES))

    def _ask(self, shard: int, question: SweepQuestion, key: bytes = b"", handle: bytes = b"") -> None:
        self.tokens += 1
        numbered = replace(question, token=self.tokens)
        self.asked[self.tokens] = _Asked(shard, numbered, key, handle)
        self.out.append((self.shards[shard], numbered))

    def _shard(self, key: bytes) -> int:
        return shard_of(key, len(self.shards))

    def on_page(self, message: TablePage) -> bool:
        """Names of one shard; whether they were asked for here."""
        asked = self.asked.pop(message.token, None)
        for key, handle in message.entries if asked is not None else ():
            if not key.startswith(PREFIX):
                return True
            actor_id = handle[:ID_BYTES]
            self._ask(self._shard(actor_id), TableGet(0, TABLE_ACTOR, actor_id), key, handle)
        if asked is not None and message.entries and (message.more or len(message.entries) == PAGE_ENTRIES):
            self._ask(asked.shard, TableScan(0, TABLE_KV, message.entries[-1][0], PAGE_ENTRIES))
        return message.token > FIRST_TOKEN

    def on_table_reply(self, alive: dict[Address, str], message: TableReply) -> None:
        """The row of an actor, or whether its home has a grave, or the end of a name."""
        asked = self.asked.pop(message.token, None)
        if asked is None or not message.ok or message.value is None:
            return
        question = asked.question
        if isinstance(question, TableGet) and question.table == TABLE_ACTOR:
            home = decode_value(message.value, ActorRow).home
            if home != self.node_id and home not in alive:
                self._ask(0, TableGet(0, TABLE_KV, GRAVES + home), asked.key, asked.handle)
        elif isinstance(question, TableGet):
            self.swept += 1
            self._ask(self._shard(asked.key), TableDelete(0, TABLE_KV, asked.key, asked.handle), asked.key)

    def shard_is_back(self, shard: Address) -> None:
        """A shard greets: it may not have heard what it did not answer."""
        self.out.extend(
            (shard, asked.question) for asked in self.asked.values() if self.shards[asked.shard] == shard
        )

    def check(self) -> None:
        """Every question is under its own token."""
        for token, asked in self.asked.items():
            invariant(asked.question.token == token, "question", asked.question.token, "under", token)
