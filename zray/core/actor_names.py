"""Names of actors: one actor per name and namespace in the whole cluster, by compare-and-set in the GCS.

A claim is one compare-and-set of an absent key (paper, section 4.2.1: all control state is in the GCS, so
every node answers alike). The value is the actor's id and its handle. The node of the actor gives the name
back when the actor is dead, by deleting the key only if it still holds that value; so a late or repeated
delete never takes the name of a successor. A question without an answer is asked again when its shard
greets.

Invariant: every claim of a process ends with an actor, or is given back when that process is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from zray.core.machine import Address, Effect, invariant
from zray.ids import ID_BYTES, shard_of
from zray.protocol.documents import encode_report
from zray.protocol.messages import (
    TABLE_KV,
    TableCas,
    TableDelete,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)
from zray.protocol.user_messages import ClaimName, FindName, ListNames, NameAnswer

Question = TableCas | TableGet | TableDelete | TableScan
FIRST_TOKEN = 1 << 40
"""Tokens from here on are ours; those below belong to other writers of the same node."""
PAGE_ENTRIES = 500
PREFIX = b"actor-name\0"


def key_of(namespace: str, name: str) -> bytes:
    """The key of a name in the key-value table."""
    return PREFIX + namespace.encode() + b"\0" + name.encode()


class NameQuestion:
    """One question to a shard that has no answer yet; found in ``ActorNames.asked``."""

    __slots__ = ("client", "found", "handle", "is_repeated", "question", "shard", "token")

    def __init__(self, client: Address, token: int, shard: int, question: Question) -> None:
        self.client = client  # empty: nobody waits
        self.token = token
        self.shard = shard  # its number: its address may change
        self.question = question
        self.is_repeated = False
        self.handle = b""
        self.found: list[tuple[str, str]] = []  # of a listing: what earlier pages had


class ActorNames:
    """The names that one node asks for, and those of its actors. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        shards: every GCS shard, by number; none: names are refused. The node puts another one in when the
            head of a chain changes.
        questions_max: questions without an answer; more are refused (I15).
        is_actor: whether this node has an actor with that id, in any state.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        shards: Sequence[Address],
        questions_max: int,
        is_actor: Callable[[bytes], bool],
    ) -> None:
        self.out = out
        self.shards = shards
        self.questions_max = questions_max
        self.is_actor = is_actor
        self.asked: dict[int, NameQuestion] = {}
        self.claimed: dict[Address, dict[bytes, bytes]] = {}  # process -> its keys -> handles
        self.tokens = FIRST_TOKEN

    # --- questions -------------------------------------------------------------------------------

    def claim(self, source: Address, message: ClaimName) -> None:
        """A process is about to make an actor with this name."""
        key = key_of(message.namespace, message.name)
        self._ask(source, message.token, key, TableCas(0, TABLE_KV, key, None, message.handle))

    def find(self, source: Address, message: FindName) -> None:
        """A process wants the handle of an actor."""
        key = key_of(message.namespace, message.name)
        self._ask(source, message.token, key, TableGet(0, TABLE_KV, key))

    def list_names(self, source: Address, message: ListNames) -> None:
        """A process wants every name of a namespace, or of all."""
        prefix = PREFIX + (message.namespace.encode() + b"\0" if message.namespace else b"")
        if not self.shards:
            self.out.append((source, NameAnswer(message.token, True, encode_report([]))))
            return
        self._scan(source, message.token, 0, prefix, prefix, [])

    def gone(self, namespace: str, name: str, handle: bytes) -> None:
        """The actor is dead: its name is free."""
        key = key_of(namespace, name)
        for claims in self.claimed.values():
            claims.pop(key, None)
        self._ask(b"", 0, key, TableDelete(0, TABLE_KV, key, handle))

    def keep(self, namespace: str, name: str, handle: bytes) -> None:
        """A detached actor is there: its name was perhaps given back for the life before this one."""
        key = key_of(namespace, name)
        self._ask(b"", 0, key, TableCas(0, TABLE_KV, key, None, handle))

    def disown(self, namespace: str, name: str) -> None:
        """The actor that a process of this node claimed a name for has its home elsewhere, and its name."""
        for claims in self.claimed.values():
            claims.pop(key_of(namespace, name), None)

    def client_gone(self, client: Address) -> None:
        """A process is gone: a name that it claimed for an actor it never made is free."""
        for question in self.asked.values():
            if question.client == client:
                question.client = b""
        for key, handle in self.claimed.pop(client, {}).items():
            if not self.is_actor(handle[:ID_BYTES]):
                self._ask(b"", 0, key, TableDelete(0, TABLE_KV, key, handle))

    def _ask(self, client: Address, token: int, key: bytes, question: Question) -> None:
        if not self.shards or (client and len(self.asked) >= self.questions_max):
            if client:
                self.out.append((client, NameAnswer(token, False)))
            return
        self._send(client, token, shard_of(key, len(self.shards)), question)

    def _send(self, client: Address, token: int, shard: int, question: Question) -> NameQuestion:
        self.tokens += 1
        numbered = replace(question, token=self.tokens)
        asked = self.asked[self.tokens] = NameQuestion(client, token, shard, numbered)
        self.out.append((self.shards[shard], numbered))
        return asked

    def _scan(
        self,
        client: Address,
        token: int,
        shard: int,
        prefix: bytes,
        after: bytes,
        found: list[tuple[str, str]],
    ) -> None:
        asked = self._send(client, token, shard, TableScan(0, TABLE_KV, after, PAGE_ENTRIES))
        asked.handle, asked.found = prefix, found

    # --- answers ---------------------------------------------------------------------------------

    def on_reply(self, source: Address, message: TableReply) -> bool:
        """An answer of a shard; whether it is to a question about names."""
        asked = self.asked.get(message.token)
        if asked is None or self.shards[asked.shard] != source:
            return message.token > FIRST_TOKEN
        del self.asked[message.token]
        question = asked.question
        if isinstance(question, TableCas):
            self._claim_answered(asked, question, message)
        elif isinstance(question, TableGet) and asked.client:
            self.out.append((asked.client, NameAnswer(asked.token, message.ok, message.value or b"")))
        return True

    def _claim_answered(self, asked: NameQuestion, question: TableCas, message: TableReply) -> None:
        # Asked twice, the first time may have won: then the key holds what we wrote. Asked once, a task
        # that ran before this one has claimed it for the same actor, which may live: it is not ours to free.
        won = message.ok or message.value == question.value
        is_own = won and (message.ok or asked.is_repeated)
        if not asked.client:
            if is_own and not self.is_actor(question.value[:ID_BYTES]):
                self._ask(b"", 0, question.key, TableDelete(0, TABLE_KV, question.key, question.value))
            return
        if is_own:
            self.claimed.setdefault(asked.client, {})[question.key] = question.value
        answer = NameAnswer(asked.token, won, question.value if won else message.value or b"")
        self.out.append((asked.client, answer))

    def on_page(self, source: Address, message: TablePage) -> None:
        """One page of a listing; the next page or shard follows."""
        asked = self.asked.get(message.token)
        if asked is None or self.shards[asked.shard] != source or not isinstance(asked.question, TableScan):
            return
        del self.asked[message.token]
        if not asked.client:
            return
        prefix, beyond = asked.handle, False
        for key, _ in message.entries:
            beyond = not key.startswith(prefix)
            if beyond:
                break
            namespace, _, name = key[len(PREFIX) :].decode(errors="replace").partition("\0")
            asked.found.append((namespace, name))
        if message.entries and not beyond and (message.more or len(message.entries) == PAGE_ENTRIES):
            shard, after = asked.shard, message.entries[-1][0]
        else:
            shard, after = asked.shard + 1, prefix
        if shard < len(self.shards):
            self._scan(asked.client, asked.token, shard, prefix, after, asked.found)
        else:
            listing = encode_report(sorted(asked.found))
            self.out.append((asked.client, NameAnswer(asked.token, True, listing)))

    def shard_is_back(self, shard: Address) -> None:
        """A shard greets: it may not have heard what it did not answer."""
        for asked in self.asked.values():
            if self.shards[asked.shard] == shard:
                asked.is_repeated = True
                self.out.append((shard, asked.question))

    def check(self) -> None:
        """Every question is under its own token."""
        for token, asked in self.asked.items():
            invariant(asked.question.token == token, "question", asked.question.token, "under", token)
