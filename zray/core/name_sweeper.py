"""Names of actors whose home is dead: nobody there gives them back, so one node of the living does.

When a node died, the living node with the least id looks at every name of the cluster. An actor whose row
in the actor table names a home with a grave (``membership.py``) is over, and its name is deleted if it
still holds that actor; a late or repeated delete never takes the name of a successor. If the sweeper dies
as well, the next one begins again, also for homes that died before its time. A detached actor is over only
if its successor is dead, too, and its deed is told so first: a successor that was about to take it over
finds that out.

Invariant: there is at most one sweep, and each of its questions is answered or asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from zray.core.actor_names import PAGE_ENTRIES, PREFIX
from zray.core.machine import Address, Effect, invariant
from zray.core.membership import GRAVES
from zray.ids import ID_BYTES, shard_of, short
from zray.protocol import faults
from zray.protocol.actor_messages import ActorRow
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.messages import (
    ACTOR_DEAD,
    TABLE_ACTOR,
    TABLE_KV,
    TableCas,
    TableDelete,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)

FIRST_TOKEN = 1 << 43
"""Tokens from here on are ours; those below belong to other askers of the same node."""
SweepQuestion = TableScan | TableGet | TableDelete | TableCas


def _nobody_cares(actor_id: bytes) -> None:
    pass


class _Asked:
    """One question without an answer: about a name that holds a handle, or for a page (no handle)."""

    __slots__ = ("handle", "key", "question", "row", "shard")

    def __init__(self, shard: int, question: SweepQuestion, key: bytes, handle: bytes, row: bytes) -> None:
        self.shard, self.question, self.key, self.handle = shard, question, key, handle
        self.row = row  # of the actor, as it was read


class NameSweeper:
    """Gives names back for nodes that died. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node.
        shards: every GCS shard, by number; the first keeps the graves.
        on_over: called with each detached actor that died with its home and its successor.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        shards: Sequence[Address],
        on_over: Callable[[bytes], None] = _nobody_cares,
    ) -> None:
        self.out = out
        self.on_over = on_over
        self.node_id = node_id
        self.shards = shards
        self.asked: dict[int, _Asked] = {}
        self.tokens = FIRST_TOKEN

    def node_dead(self, alive: dict[Address, str]) -> None:
        """A node died: begin, if that is for this node to do."""
        self.asked.clear()
        if all(self.node_id < node for node in alive):
            for shard in range(len(self.shards)):
                self._ask(shard, TableScan(0, TABLE_KV, PREFIX, PAGE_ENTRIES))

    def _ask(
        self,
        shard: int,
        question: SweepQuestion,
        key: bytes = b"",
        handle: bytes = b"",
        row: bytes = b"",
    ) -> None:
        self.tokens += 1
        numbered = replace(question, token=self.tokens)
        self.asked[self.tokens] = _Asked(shard, numbered, key, handle, row)
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
        """The row of an actor, whether its home or successor has a grave, or the end of an actor or name."""
        asked = self.asked.pop(message.token, None)
        if asked is None or message.value is None:
            return
        question = asked.question
        if isinstance(question, TableCas) and message.value == question.value:
            self.on_over(question.key)
            self._give_back(asked)
        elif isinstance(question, TableCas) or (
            message.ok and isinstance(question, TableGet) and question.table == TABLE_ACTOR
        ):
            self._look(alive, asked, message.value)
        elif message.ok and isinstance(question, TableGet):
            row = decode_value(asked.row, ActorRow)
            if question.key == GRAVES + row.home and row.detached and row.state != ACTOR_DEAD:
                self._look_at_successor(alive, asked, row)
            elif row.detached and row.state != ACTOR_DEAD:
                self._end(asked, row)
            else:
                self._give_back(asked)

    def _look(self, alive: dict[Address, str], asked: _Asked, value: bytes) -> None:
        """An actor is at an end if its home is dead and has no successor, who gets the name with all else."""
        row = decode_value(value, ActorRow)
        if row.home != self.node_id and row.home not in alive:
            grave = TableGet(0, TABLE_KV, GRAVES + row.home)
            self._ask(0, grave, asked.key, asked.handle, value)

    def _look_at_successor(self, alive: dict[Address, str], asked: _Asked, row: ActorRow) -> None:
        if not row.successor:
            self._end(asked, row)
        elif row.successor != self.node_id and row.successor not in alive:
            grave = TableGet(0, TABLE_KV, GRAVES + row.successor)
            self._ask(0, grave, asked.key, asked.handle, asked.row)

    def _end(self, asked: _Asked, row: ActorRow) -> None:
        """Write that a detached actor is dead, unless its deed has changed: then look once more."""
        successor = (
            f"node {short(row.successor)}, its successor, died as well"
            if row.successor
            else "no other node could take it over"
        )
        reason = f"node {short(row.home)}, which was its home, died, and {successor}"
        cause = faults.fault_value(faults.ACTOR_DIED, short(row.actor_id), reason)
        dead = replace(row, state=ACTOR_DEAD, host=b"", cause=cause)
        cas = TableCas(0, TABLE_ACTOR, row.actor_id, asked.row, encode_value(dead))
        self._ask(self._shard(row.actor_id), cas, asked.key, asked.handle, asked.row)

    def _give_back(self, asked: _Asked) -> None:
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
