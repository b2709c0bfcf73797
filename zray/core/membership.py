"""Who is alive: the one place that decides that a node is dead.

Any report is a sign of life; a node without one is *suspected* for a while and then *dead*, sooner if its
link was lost: a process that ended does not link again, one whose network hiccuped does. A judge that was
held up itself adds that time to everybody's deadline. Death is written to the control store, as a
compare-and-set against nothing, before anybody is told, so it holds across lives of this process. A node id
names one life (incarnation) of a node: an id that is dead never comes back, and a node that was only cut off
begins anew under another (I9).

Hosted beside the first shard. The table of the living is soft: reports rebuild it. A new life begins with the
nodes that the shard knows and gives each of them longer for its first word: after a fail-over it is not in a
node's power to be heard at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from zray.config import Config
from zray.core.census import Census
from zray.core.machine import RUNTIME, Address, Effect, Handler, invariant
from zray.ids import short
from zray.protocol.cluster import LinkLost, ListNodes, Members
from zray.protocol.documents import decode_value
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_KV,
    TABLE_NODE,
    NodeHello,
    NodeReport,
    TableCas,
    TablePage,
    TableReply,
    TableScan,
    Warn,
)

GRAVES = b"zray/dead-node/"
"""Prefix of the keys that say of a node that it is dead."""
PAGE = 1_000
RETRY_NS = 1_000_000_000
LIFE_SHIFT = 32

ALIVE, SUSPECTED, DYING = 0, 1, 2


class Member:
    """One node that is not known to be dead."""

    __slots__ = ("address", "endpoint", "epoch", "heard_ns", "is_heard", "lost_ns", "node_id", "state")

    def __init__(self, now_ns: int, address: Address, node_id: bytes, endpoint: str) -> None:
        self.address = address
        self.node_id = node_id
        self.endpoint = endpoint
        self.heard_ns = now_ns
        self.is_heard = False  # has reported to this life of the judge
        self.lost_ns: int | None = None  # when its link was lost, if it was not heard since
        self.epoch = 0  # of the newest table that it is known to have
        self.state = ALIVE


class Membership:
    """The table of living nodes. Pure.

    Args:
        store: the address of the shard beside it, which keeps the graves.
        life: the number of that shard's life: epochs of later lives are higher.
        config: heartbeat interval and deadlines.
    """

    def __init__(self, *, store: Address, life: Callable[[], int], config: Config) -> None:
        self.out: list[Effect] = []
        self.store = store
        self.life = life
        self.config = config
        self.epoch = 0
        self.members: dict[bytes, Member] = {}
        self.dead: dict[bytes, None] = {}
        self.census = Census()
        self.burials: dict[int, bytes] = {}  # token of a write that is under way -> node
        self.tokens = life() << LIFE_SHIFT  # no answer to a former life is taken for one to this
        self.opened = False  # whether the graves and the node table were read
        self.reading: tuple[int, bytes] = (TABLE_KV, GRAVES)  # table, and the last key that was read
        self.asked = 0  # token of the newest question for a page
        self.look_at_ns: int | None = 0
        self.changed = False

    @property
    def wake_at_ns(self) -> int | None:
        """When somebody may have been silent for too long; never while a node is alone."""
        return self.look_at_ns

    # --- signs of life -----------------------------------------------------------------------------

    def on_node_hello(self, now_ns: int, source: Address, message: NodeHello) -> None:
        """A node introduces itself, under its own name; the shard refuses one of another version."""
        if message.version != PROTOCOL_VERSION or source != message.node_id:
            return
        if message.node_id not in self.dead:
            self.census.introduced(message)
        member = self.members.get(message.node_id)
        if message.node_id in self.dead:
            self._tell(source)
        elif member is None:
            member = Member(now_ns, source, message.node_id, message.endpoint)
            member.is_heard = self.opened  # else it may be an old one that greets all replicas
            self.members[message.node_id] = member
            self.changed = True
            if self.look_at_ns is None and len(self.members) > 1:
                self._begin_to_look(now_ns)
        else:
            member.epoch = 0  # it may have missed anything
            self._hear(now_ns, member)

    def on_node_report(self, now_ns: int, source: Address, message: NodeReport) -> None:
        """A node reports its load, and which table of the living it has."""
        member = self.members.get(message.node_id)
        if member is None or message.node_id in self.dead:
            if message.node_id in self.dead:
                self._tell(source)
            return
        if message.epoch > self.epoch:  # of a former life of this process
            self.epoch = message.epoch
            self.changed = True
        member.epoch = message.epoch
        member.is_heard = True
        self.census.reported(message)
        self._hear(now_ns, member)

    def _hear(self, now_ns: int, member: Member) -> None:
        member.heard_ns = now_ns
        member.lost_ns = None
        if member.state == SUSPECTED:
            member.state = ALIVE
        if member.epoch < self.epoch and self.opened:
            self._tell(member.address)

    # --- death -------------------------------------------------------------------------------------

    def _begin_to_look(self, now_ns: int) -> None:
        """A node has company: from now on it would be missed, and its silence counts."""
        for member in self.members.values():
            if member.is_heard:
                member.heard_ns = now_ns
        self.look_at_ns = now_ns + self.config.heartbeat_interval_ns

    def on_link_lost(self, now_ns: int, source: Address, message: LinkLost) -> None:
        """The process behind a link is gone, unless it is heard again soon.

        Of one that has not reported to this life yet the loss says nothing: it may be on its way back.
        """
        member = self.members.get(message.peer)
        if member is None or member.state == DYING or not member.is_heard or source != RUNTIME:
            return
        member.state = SUSPECTED
        member.lost_ns = now_ns

    def on_tick(self, now_ns: int) -> None:
        """Suspect who is silent, and declare dead who stays so."""
        config = self.config
        if not self.opened:
            self._read_on()
            self.look_at_ns = now_ns + RETRY_NS
            for member in self.members.values():
                member.heard_ns = now_ns
            return
        late_ns = max(0, now_ns - (self.look_at_ns or now_ns))
        for member in list(self.members.values()):
            if late_ns > config.heartbeat_interval_ns:
                member.heard_ns = min(now_ns, member.heard_ns + late_ns)
            silence_ns = now_ns - member.heard_ns
            if member.state == DYING:
                self._write_grave(member)
            elif self._is_over(now_ns, member) and len(self.members) > 1:
                self._bury(member)  # a node alone is missed by nobody, and may go on after a pause
            elif silence_ns >= self._patience_ns(member) // 2:
                member.state = SUSPECTED
        self.look_at_ns = now_ns + config.heartbeat_interval_ns if self._is_to_look() else None

    def _is_to_look(self) -> bool:
        """Whether anybody could be missed, or is to be buried."""
        return len(self.members) > 1 or any(member.state == DYING for member in self.members.values())

    def _is_over(self, now_ns: int, member: Member) -> bool:
        """Whether a node was silent for as long as one may be, given what is known of its link."""
        if member.lost_ns is not None and now_ns - member.lost_ns >= self.config.node_link_loss_ns:
            return True
        return now_ns - member.heard_ns >= self._patience_ns(member)

    def _patience_ns(self, member: Member) -> int:
        """How long a node may be silent: longer before its first word, which may have far to go."""
        config = self.config
        return config.node_death_ns if member.is_heard else max(config.node_return_ns, config.node_death_ns)

    def _bury(self, member: Member) -> None:
        if member.state != DYING:
            member.state = DYING
            self._write_grave(member)

    def _write_grave(self, member: Member) -> None:
        self.tokens += 1
        self.burials[self.tokens] = member.node_id
        key = GRAVES + member.node_id
        self.out.append((self.store, TableCas(self.tokens, TABLE_KV, key, None, member.endpoint.encode())))

    def on_table_reply(self, now_ns: int, source: Address, message: TableReply) -> None:
        """A grave is durable: everybody may know."""
        node_id = self.burials.pop(message.token, None)
        if source != self.store or node_id is None or not (message.ok or message.value is not None):
            return
        self.dead[node_id] = None
        self.census.died(node_id)
        member = self.members.pop(node_id, None)
        if member is not None:
            self.changed = True
            self._tell_operator(f"node {short(node_id)} is dead: {member.endpoint or 'no endpoint'}")

    def _read_on(self) -> None:
        table, after = self.reading
        self.tokens += 1
        self.asked = self.tokens
        self.out.append((self.store, TableScan(self.asked, table, after, PAGE)))

    def on_table_page(self, now_ns: int, source: Address, message: TablePage) -> None:
        """What former lives left: the graves, then the nodes, which count as alive until they are silent."""
        if source != self.store or self.opened or message.token != self.asked:
            return
        table, _ = self.reading
        entries = message.entries
        if table == TABLE_KV:
            entries = tuple(entry for entry in entries if entry[0].startswith(GRAVES))
            for key, _ in entries:
                self.dead[key[len(GRAVES) :]] = None
                self.members.pop(key[len(GRAVES) :], None)
        else:
            for key, value in entries:
                self._remember(now_ns, key, value)
        if len(entries) == PAGE:
            self.reading = table, entries[-1][0]
            self._read_on()
        elif table == TABLE_KV:
            self.reading = TABLE_NODE, b""
            self._read_on()
        else:
            self.opened = self.changed = True
            self.look_at_ns = now_ns + self.config.heartbeat_interval_ns

    def _remember(self, now_ns: int, node_id: bytes, value: bytes) -> None:
        if node_id in self.members:
            return
        hello = decode_value(value, NodeHello)
        self.census.introduced(hello)
        if node_id in self.dead:
            self.census.died(node_id)
        else:
            self.members[node_id] = Member(now_ns, node_id, node_id, hello.endpoint)

    # --- telling -----------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Once per batch: a new table for everybody, if it is one."""
        if self.changed and self.opened:
            self.changed = False
            self.epoch = max(self.epoch, self.life() << LIFE_SHIFT) + 1
            for member in self.members.values():
                self._tell(member.address)

    def _tell(self, address: Address) -> None:
        nodes = tuple((member.node_id, member.endpoint) for member in self.members.values())
        self.out.append((address, Members(self.epoch, nodes)))

    def on_list_nodes(self, now_ns: int, source: Address, message: ListNodes) -> None:
        """A node asks, for people, which nodes there are. Before the graves are read it asks again."""
        if self.opened:
            self.out.append((source, self.census.answer(message)))

    def _tell_operator(self, text: str) -> None:
        self.out.append((RUNTIME, Warn(text)))

    def check(self) -> None:
        """Nobody is both alive and dead."""
        for node_id in self.members:
            invariant(node_id not in self.dead, "alive and dead:", short(node_id))

    HANDLERS: ClassVar[dict[type, Handler]] = {
        NodeHello: on_node_hello,
        NodeReport: on_node_report,
        LinkLost: on_link_lost,
        TableReply: on_table_reply,
        TablePage: on_table_page,
        ListNodes: on_list_nodes,
    }
