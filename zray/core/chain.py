"""One replica of a GCS shard: a ``ControlShard`` in a chain of equals (paper, section 4.2.1, figure 10a).

Clients speak to the head. It applies a batch at once, numbers what changed and passes it towards the tail;
what the batch has to say to anybody leaves only when the acknowledgement of its number has come back from the
tail. That holds for reads too: an answer is given by a head that *after the question arrived* was still head
of the whole chain, so one that was replaced and does not know it cannot answer from the past.

The invariant (I7): every member of an epoch holds a prefix of what its predecessor holds, and what a client
was told is held by all of them. So any one member of the newest epoch can go on alone. An epoch is a list of
members made by the master (``chain_master.py``); who hears an older number answers with the newer list (I9).

What lives beside a shard, its directory for one, lives beside the head. It is not replicated: a new head
begins with nothing and the nodes say everything again. What it says is numbered like the words of the shard
itself, so nobody hears two heads at once.

A joiner is fed by the tail: its tables in pieces, as they were at one moment, then what came since. The tail
waits for it like for a successor *before* it tells the master, so the epoch that seats it finds it complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from zray.config import Config
from zray.core.beside_shard import KINDS
from zray.core.chain_feed import Admission, Downstream, parts_of
from zray.core.control_shard import ControlShard
from zray.core.machine import LOG, ROWS, RUNTIME, Address, Effect, Handler, invariant
from zray.protocol.chain import (
    Admit,
    Admitted,
    ChainPosition,
    Command,
    InFlight,
    Logged,
    PieceTaken,
    ReplicaAck,
    ReplicaHello,
    Replicate,
    RewriteLog,
    ShardOpened,
    StatePiece,
)
from zray.protocol.flushing import RowsFlushed, RowsRead
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    ChainEpoch,
    ChainMember,
    NodeHello,
    Refused,
    TaskRecord,
)

ASKERS_MAX = 10_000
"""Nodes that a replica without a chain remembers, to tell them once there is one."""


class ChainReplica:
    """A shard as one replica of a chain. Pure.

    Args:
        shard: empty, or filled by :meth:`restore` afterwards.
        me: this life of the replica.
        master: where the chain's master is.
        beside: makes the machines that live beside the shard while this replica is the head.
        host, pid: how the master may watch this process.
    """

    HANDLERS: ClassVar[dict[type, Handler]]

    def __init__(
        self,
        shard: ControlShard,
        *,
        me: ChainMember,
        master: Address,
        config: Config,
        beside: Callable[[ControlShard], list[Any]] = lambda shard: [],
        host: str = "",
        pid: int = 0,
    ) -> None:
        self.out: list[Effect] = []
        self.shard = shard
        self.me, self.master, self.config = me, master, config
        self.host, self.pid = host, pid
        self.make_beside = beside
        self.beside: list[Any] = []  # head: directory, and so on
        self.newest = ChainEpoch(shard.shard, 0, (), 0)  # the newest epoch that was heard of
        self.has_state = False  # the tables are those of a member
        self.have = 0  # the newest number in the tables
        self.committed = 0  # the newest number that the whole chain has
        self.window: dict[int, tuple[Command, ...]] = {}  # numbers the next one may lack, in order
        self.held: dict[int, list[Effect]] = {}  # head: what waits for a number to be committed
        self.upstream: Address | None = None
        self.successor: Downstream | None = None
        self.admission: Admission | None = None  # tail: the joiner that it feeds
        self.pieces_taken = 0  # joiner: of its state
        self.askers: dict[Address, None] = {}
        self.misled: dict[Address, None] = {}  # spoke to a replica that is not the head, in this batch
        self.owes_ack = False
        self.heartbeat_at_ns = 0

    # --- who is who ------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The number of the newest epoch that was heard of; 0: none."""
        return self.newest.epoch

    @property
    def is_head(self) -> bool:
        """Whether clients are served here."""
        return self.has_state and self.newest.members[:1] == (self.me,)

    @property
    def is_tail(self) -> bool:
        """Whether nobody comes after this member."""
        return self.has_state and self.newest.members[-1:] == (self.me,)

    # --- clients ---------------------------------------------------------------------------------

    def on_request(self, now_ns: int, source: Address, message: Any) -> None:
        """A client, or the host, has something for the shard: the head takes it, others name the head."""
        if self.is_head:
            if len(self.window) >= self.config.chain_window_max:
                return  # whoever needs an answer asks again
            if type(message) is NodeHello and source in self.shard.unannounced:
                self.out.append((source, self.newest))  # it may greet all replicas and know no head
            self._hand_over(now_ns, source, message)
        elif source not in (RUNTIME, self.me.address):
            self.misled[source] = None
            if type(message) is NodeHello and len(self.askers) < ASKERS_MAX:
                self.askers[source] = None

    def _hand_over(self, now_ns: int, source: Address, message: Any) -> None:
        """Let everybody have it who takes such messages: the shard and what lives beside it."""
        for machine in (self.shard, *self.beside):
            handler = machine.HANDLERS.get(type(message))
            if handler is not None:
                handler(machine, now_ns, source, message)

    def flush(self, now_ns: int) -> None:
        """Number what the batch changed, pass on what is known, say what is committed."""
        for machine in (self.shard, *self.beside):
            machine.flush(now_ns)
        self._number()
        if self.successor is not None:
            self._forward(self.successor)
        if self.admission is not None:
            self._feed(self.admission)
        self._commit()
        if self.owes_ack:
            self._acknowledge()
        if self.misled:
            self._lead()

    def _number(self) -> None:
        """Give all effects numbers: changes go down the chain, words wait for their return."""
        commands: list[Command] = []
        words: list[Effect] = []
        for machine in (self.shard, *self.beside):
            for destination, message in machine.out:
                if destination == LOG:
                    commands.append(Command(message.source, message.message))
                elif destination in (RUNTIME, ROWS):
                    self.out.append((destination, message))
                else:
                    words.append((destination, message))
            machine.out.clear()
        if not commands and not words:
            return
        for part in parts_of(commands) or ((),):
            self._append(part)
        self.held[self.have] = words

    def _append(self, commands: tuple[Command, ...]) -> None:
        """These are in the tables now, under the next number."""
        self.have += 1
        self.window[self.have] = commands
        self.out.extend((LOG, Logged(command.source, command.message)) for command in commands)
        self._log_position()

    def _log_position(self) -> None:
        self.out.append((LOG, Logged(RUNTIME, self._position())))

    def _position(self) -> ChainPosition:
        newest = self.newest
        return ChainPosition(
            newest.epoch, self.have, self.committed, newest.members, newest.master, self.has_state
        )

    def _lead(self) -> None:
        """Tell who spoke to the wrong replica where the head is."""
        if self.epoch:
            self.out.extend((source, self.newest) for source in self.misled)
        self.misled.clear()

    def on_rows(self, now_ns: int, source: Address, message: RowsRead | RowsFlushed) -> None:
        """The file of flushed rows answers; every replica has one of its own."""
        self._hand_over(now_ns, source, message)

    # --- down the chain --------------------------------------------------------------------------

    def _forward(self, link: Downstream) -> None:
        """Send what the next replica has not been sent, once it has said what it has."""
        if not link.synced:
            return
        epoch = self.epoch
        for sequence in range(link.sent + 1, self.have + 1):
            commands = self.window.get(sequence)
            if commands is None:  # it lacks what all members had: only a lost disk does that
                return
            self.out.append((link.address, Replicate(epoch, sequence, commands)))
            link.sent = sequence

    def on_replicate(self, now_ns: int, source: Address, message: Replicate) -> None:
        """Take the next number; fence an older epoch; of a repetition only say what is here."""
        if self._is_stale(source, message.epoch) or source != self.upstream or message.epoch != self.epoch:
            return
        if message.sequence == self.have + 1:
            self._apply(message.commands)
            self._append(message.commands)
        self.owes_ack = True

    def _is_stale(self, source: Address, epoch: int) -> bool:
        """Whether the sender lives in an epoch that is over; then it is told so (I9)."""
        if epoch >= self.epoch:
            return False
        self.out.append((source, self.newest))
        return True

    def _apply(self, commands: Iterable[Command | Logged]) -> None:
        """Let the shard do what the head's did; what it would tell anybody is the head's to tell."""
        shard = self.shard
        for command in commands:
            shard.replay(command.source, command.message)
        shard.out.clear()
        shard.wake_at_ns = None  # a life that is opened here is announced by the head

    # --- up the chain ----------------------------------------------------------------------------

    def on_ack(self, now_ns: int, source: Address, message: ReplicaAck) -> None:
        """The next replica says what it has, and what the tail has."""
        if self._is_stale(source, message.epoch) or message.epoch != self.epoch:
            return
        successor, admission = self.successor, self.admission
        if successor is not None and source == successor.address:
            successor.hear(now_ns, message)
        elif admission is not None and source == admission.joiner.address and admission.link is not None:
            admission.link.hear(now_ns, message)
            self._bind(admission)

    def _commit(self) -> None:
        """Move the mark of what the whole chain has, and say what waited for it."""
        if self.upstream is None and not self.is_head:
            return  # it has no place yet: others may lack what it has
        committed = self._committed_below()
        if committed > self.committed:
            self.committed = committed
            self.owes_ack = True
        while self.held and (oldest := next(iter(self.held))) <= self.committed:
            self.out.extend(self.held.pop(oldest))
        kept_from = self.committed
        if self.admission is not None:
            kept_from = min(kept_from, self.admission.needs_from())
        while self.window and (oldest := next(iter(self.window))) <= kept_from:
            del self.window[oldest]

    def _committed_below(self) -> int:
        """The newest number that everybody from here to the tail has."""
        if self.successor is not None:
            return min(self.have, self.successor.committed)
        admission = self.admission
        if admission is not None and admission.binding_from is not None and admission.link is not None:
            return min(self.have, admission.link.have)
        return self.have

    def _acknowledge(self) -> None:
        self.owes_ack = False
        if self.upstream is not None:
            self.out.append((self.upstream, ReplicaAck(self.epoch, self.have, self.committed)))

    # --- epochs ----------------------------------------------------------------------------------

    def on_chain_epoch(self, now_ns: int, source: Address, message: ChainEpoch) -> None:
        """The chain has other members: take the place among them, or none."""
        known = self.newest
        is_news = message.epoch > known.epoch and message.master >= known.master
        if (
            not is_news
            or message.shard != self.shard.shard
            or not message.members
            or self._is_stranger(source)
        ):
            return
        if self.has_state and self._was_member(message.members):
            return  # whether what this life found in its log is wanted, the master says next
        was_head = self.is_head
        self.newest = message
        self.out.append((RUNTIME, message))
        self._tell_nodes()
        self._end_admission()
        self.upstream = self.successor = None
        self.pieces_taken = 0
        if self.me in message.members:
            self._take_place(now_ns, message.members, was_head)
        elif self.has_state:
            self._step_out()
        self.heartbeat_at_ns = now_ns

    def _is_stranger(self, source: Address) -> bool:
        """Whether the sender is neither the master nor a member, as far as is known here."""
        return source != self.master and all(source != member.address for member in self.newest.members)

    def _was_member(self, members: tuple[ChainMember, ...]) -> bool:
        """Whether a former life of this replica is among them."""
        me = self.me
        return any(m.address == me.address and m.incarnation < me.incarnation for m in members)

    def _tell_nodes(self) -> None:
        told = dict.fromkeys(self.shard.peers) | self.askers
        self.out.extend((address, self.newest) for address in told)
        self.askers.clear()

    def _take_place(self, now_ns: int, members: tuple[ChainMember, ...], was_head: bool) -> None:
        place = members.index(self.me)
        self.has_state = True
        if place + 1 < len(members):
            self.successor = Downstream(members[place + 1].address, self.config.chain_heartbeat_ns)
            self.out.append((self.successor.address, Replicate(self.epoch, 0)))
        if place:
            self.held.clear()
            self.shard.forget_requests()
            self.upstream = members[place - 1].address
            self.owes_ack = True
        elif not was_head:
            self._reign(now_ns)
        self._log_position()

    def _reign(self, now_ns: int) -> None:
        """Be the head from now on: a new life of the shard, and of what lives beside it."""
        self.beside = self.make_beside(self.shard)
        self._hand_over(now_ns, RUNTIME, ShardOpened())

    def _step_out(self) -> None:
        """The chain goes on without this replica: what only it has was never acknowledged."""
        self._empty()
        self.out.append((LOG, RewriteLog()))

    def _empty(self) -> None:
        old = self.shard
        self.shard = old.emptied()
        self.beside = []
        self.has_state = False
        self.have = self.committed = 0
        self.window.clear()
        self.held.clear()

    # --- joining: the tail -----------------------------------------------------------------------

    def on_admit(self, now_ns: int, source: Address, message: Admit) -> None:
        """Begin to give the tables to a joiner, as they are now."""
        is_current = message.epoch == self.epoch and message.master >= self.newest.master
        if source != self.master or not is_current or not self.is_tail:
            return
        if self.admission is not None and self.admission.joiner == message.joiner:
            return
        self.out.append((RUNTIME, message))
        self._number()  # what this batch changed has no number yet, and the snapshot has it
        self.admission = Admission(
            message.joiner, self.shard.state_for_joiner(), self.have, self.config.chain_heartbeat_ns
        )

    def _feed(self, admission: Admission) -> None:
        """Send pieces while there is room on the way, and afterwards what came since."""
        if len(self.window) >= self.config.chain_window_max and admission.binding_from is None:
            self.out.append((self.master, Admitted(self.epoch, admission.joiner, ok=False)))
            self._end_admission()
            return
        for number, commands, last in admission.next_pieces():
            piece = StatePiece(self.epoch, number, admission.base, commands, last)
            self.out.append((admission.joiner.address, piece))
        self.out.extend(self.shard.out)  # what it must read for the next ones
        self.shard.out.clear()
        if admission.link is not None:
            self._forward(admission.link)

    def _end_admission(self) -> None:
        self.admission = None
        self.shard.forget_joiner()

    def on_piece_taken(self, now_ns: int, source: Address, message: PieceTaken) -> None:
        """The joiner has that many pieces of its state."""
        admission = self.admission
        if admission is not None and source == admission.joiner.address and message.epoch == self.epoch:
            admission.hear(now_ns, message.pieces)

    def _bind(self, admission: Admission) -> None:
        """Once the joiner is close behind nothing is committed without it; then the master may know."""
        invariant(admission.link is not None, "a joiner that answers before it has its state")
        assert admission.link is not None
        if admission.binding_from is None and admission.is_close(self.have):
            admission.binding_from = self.have
        if admission.binding_from is not None and admission.link.have >= admission.binding_from:
            self.out.append((self.master, Admitted(self.epoch, admission.joiner)))

    # --- joining: the joiner ---------------------------------------------------------------------

    def on_state_piece(self, now_ns: int, source: Address, message: StatePiece) -> None:
        """Take the next piece of the tables; the last one makes this replica a follower of the tail."""
        if self._is_stale(source, message.epoch) or self.has_state or message.epoch != self.epoch:
            return
        if not self.epoch or source != self.newest.members[-1].address:
            return
        if message.number == self.pieces_taken:
            if message.number == 0:
                self._empty()
            self._apply(message.commands)
            self.pieces_taken += 1
            if message.last:
                self.have = self.committed = message.sequence
                self.upstream = source
                self.owes_ack = True
                self.out.append((LOG, RewriteLog()))
        self.out.append((source, PieceTaken(message.epoch, self.pieces_taken)))

    # --- time ------------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """The next heartbeat, or what the shard wants, or what lives beside it."""
        earliest_ns = self.heartbeat_at_ns
        for machine in (self.shard, *self.beside):
            wish_ns = machine.wake_at_ns
            if wish_ns is not None and wish_ns < earliest_ns:
                earliest_ns = wish_ns
        return earliest_ns

    def on_tick(self, now_ns: int) -> None:
        """Show the master that this replica lives, and repeat what got no answer."""
        if self.shard.wake_at_ns is not None and self.shard.wake_at_ns <= now_ns:
            self.out.extend((address, self.newest) for address in self.shard.unannounced)
            self.shard.on_tick(now_ns)
        for machine in self.beside:
            if machine.wake_at_ns is not None and machine.wake_at_ns <= now_ns:
                machine.on_tick(now_ns)
        if self.heartbeat_at_ns > now_ns:
            return
        self.heartbeat_at_ns = now_ns + self.config.chain_heartbeat_ns
        self.out.append((self.master, self._hello()))
        self.owes_ack = True
        if self.successor is not None and self.successor.is_overdue(now_ns, self.have):
            self.out.append((self.successor.address, Replicate(self.epoch, 0)))
        admission = self.admission
        if admission is not None:
            admission.repeat(now_ns, self.have)
            if admission.link is not None:
                self._bind(admission)

    def _hello(self) -> ReplicaHello:
        shard, me, newest = self.shard, self.me, self.newest
        return ReplicaHello(
            PROTOCOL_VERSION, shard.cluster_id, shard.shard, shard.shard_count, me.incarnation, me.endpoint,
            self.host, self.pid, newest.epoch, newest.members, newest.master, self.have, self.committed,
            self.has_state, me.address,
        )  # fmt: skip

    def on_refused(self, now_ns: int, source: Address, message: Refused) -> None:
        """The master does not want this replica: its operator must know."""
        if source == self.master:
            self.out.append((RUNTIME, message))

    # --- the log ---------------------------------------------------------------------------------

    def restore(self, logged: Iterable[Logged]) -> None:
        """Be what a log describes: a member as of its last words, whose place the master decides anew.

        Args:
            logged: messages of the log in order, perhaps a part of them; call again for the next part.
        """
        pending: list[Command] = []
        for entry in logged:
            message = entry.message
            if isinstance(message, ChainPosition):
                self._restore_position(message, tuple(pending))
                pending.clear()
            elif isinstance(message, InFlight):
                self.window[message.sequence] = message.commands
            else:
                self._apply((entry,))
                pending.append(Command(entry.source, message))

    def _restore_position(self, position: ChainPosition, commands: tuple[Command, ...]) -> None:
        if position.have == self.have + 1 and self.has_state:
            self.window[position.have] = commands
        self.have, self.committed = position.have, position.committed
        self.has_state = position.has_state
        self.newest = ChainEpoch(self.shard.shard, position.epoch, position.members, position.master)
        for number in [number for number in self.window if not self.committed < number <= self.have]:
            del self.window[number]

    def snapshot(self, flushed: Iterable[TaskRecord] = ()) -> Iterator[Logged]:
        """The messages that :meth:`restore` this replica as it is now; ``flushed`` as the shard wants it."""
        for command in self.shard.snapshot(flushed):
            yield Logged(command.source, command.message)
        yield Logged(RUNTIME, self._position())
        for sequence, commands in self.window.items():
            if sequence > self.committed:
                yield Logged(RUNTIME, InFlight(sequence, commands))

    def check(self) -> None:
        """The window has no gap, only a head holds words back, the successor has a prefix of what is here."""
        for machine in (self.shard, *self.beside):
            machine.check()
        invariant(self.is_head or not self.beside, "only a head has something beside its tables")
        numbers = list(self.window)
        invariant(numbers == sorted(numbers), "the window is out of order", numbers[:3])
        if numbers:
            invariant(
                numbers[-1] == self.have, "the window ends before the tables do", numbers[-1], self.have
            )
            invariant(numbers[-1] - numbers[0] + 1 == len(numbers), "the window has a gap")
        invariant(self.committed <= self.have, "committed beyond what is here", self.committed, self.have)
        invariant(not self.held or self.is_head, "only a head holds words back")
        invariant(not self.is_head or self.upstream is None, "a head follows nobody")
        invariant(not self.shard.subscribers or self.is_head, "subscriptions belong to the head")
        if self.successor is not None:
            invariant(self.successor.have <= self.have, "the successor has more than its predecessor (I7)")


ChainReplica.HANDLERS = {
    **{
        kind: ChainReplica.on_request
        for machine in (ControlShard, *KINDS)
        for kind in machine.HANDLERS
        if kind.__name__ not in ("ShardOpened", "ShardState")
    },
    Replicate: ChainReplica.on_replicate,
    ReplicaAck: ChainReplica.on_ack,
    ChainEpoch: ChainReplica.on_chain_epoch,
    Admit: ChainReplica.on_admit,
    PieceTaken: ChainReplica.on_piece_taken,
    StatePiece: ChainReplica.on_state_piece,
    Refused: ChainReplica.on_refused,
    RowsRead: ChainReplica.on_rows,
    RowsFlushed: ChainReplica.on_rows,
}
