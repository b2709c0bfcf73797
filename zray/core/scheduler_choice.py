"""Which global scheduler a node forwards to, where there are several (paper, section 4.2.2).

A node reports its load to all of them and forwards everything to one, the *current* one: the first, in an
order of its own, of those that answer. So a node's tasks are known to one scheduler at a time, and nodes are
spread over all of them. One is *down* once its link was lost, its shard began a new life or has another head,
or a question to it had no answer for as long as a peer may be silent. It is asked on, and is up again with
its next answer; but it is *settled*, and preferred again, only after so long a time that it has heard the
loads of all nodes.

The invariant: everything that this node forwarded and that was not answered is with the current one, or on
its way there; whoever calls moves it at every change. With all of them down it stays where it is, and the
operator and ``zray why`` are told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zray.config import Config
from zray.core.machine import RUNTIME, Address, Effect, invariant
from zray.ids import digest
from zray.protocol.cluster import AskScheduler
from zray.protocol.messages import Warn


class _Scheduler:
    """One global scheduler, as this node knows it."""

    __slots__ = ("asked_ns", "is_up", "rank", "settled_at_ns", "valid_from")

    def __init__(self, rank: bytes) -> None:
        self.rank = rank  # in the order of this node
        self.is_up = True
        self.settled_at_ns = 0
        self.asked_ns: int | None = None  # since when an answer is owed
        self.valid_from = 1  # answers to older questions may come from a life that is over


class SchedulerChoice:
    """The global schedulers of a cluster, as one node sees them. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        node_id: of this node; decides its order.
        shards: the address that serves each shard now, by number; a scheduler is named by its shard.
        config: how long a peer may be silent.
        on_move: called with the former address once forwards go to :attr:`address`, which may be the same
            if what was sent there may be lost.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        node_id: bytes,
        shards: Sequence[Address],
        config: Config,
        on_move: Callable[[Address], None],
    ) -> None:
        self.out = out
        self.node_id = node_id
        self.shards = shards
        self.on_move = on_move
        self.patience_ns = config.heartbeat_interval_ns * config.heartbeat_liveness_count
        self.known: dict[int, _Scheduler] = {}
        self.current = 0
        self.asked = 0  # questions so far
        if shards:
            self.known[0] = _Scheduler(self._rank(0))  # there is one beside the first shard

    def _rank(self, number: int) -> bytes:
        """Nodes order schedulers differently, so those of one that dies spread over all that are left."""
        return digest(b"%s/%d" % (self.node_id, number), 8)

    @property
    def address(self) -> Address:
        """Who gets what this node forwards; in a cluster without shards nobody."""
        return self.shards[self.current] if self.shards else RUNTIME

    def addresses(self) -> list[Address]:
        """Who is told the load of this node."""
        return [self.shards[number] for number in self.known]

    @property
    def answers(self) -> bool:
        """Whether the current one does, as far as is known."""
        return self.current not in self.known or self.known[self.current].is_up

    # --- what happens to them ------------------------------------------------------------------------

    def heard(self, now_ns: int, source: Address, token: int) -> None:
        """One says that it is there.

        Args:
            token: of the question that it answers; 0: it greets.
        """
        if source not in self.shards:
            return
        number = self.shards.index(source)
        scheduler = self.known.get(number)
        if scheduler is None:
            self.known[number] = _Scheduler(self._rank(number))
            self._choose(now_ns)
            return
        if 0 < token < scheduler.valid_from:
            return
        scheduler.asked_ns = None
        if not scheduler.is_up:
            scheduler.is_up = True
            scheduler.settled_at_ns = now_ns + self.patience_ns
            if not self._choose(now_ns) and number == self.current:
                self.on_move(self.address)

    def lost(self, now_ns: int, number: int) -> None:
        """The link of one was lost, or its life is over: what it has of this node goes to another."""
        scheduler = self.known.get(number)
        if scheduler is None:
            return
        scheduler.valid_from = self.asked + 1
        scheduler.asked_ns = None
        if scheduler.is_up:
            scheduler.is_up = False
            self._choose(now_ns)
            if not any(each.is_up for each in self.known.values()):
                self.out.append((RUNTIME, Warn("no global scheduler answers; what is forwarded waits")))

    def look(self, now_ns: int, *, waits: bool) -> None:
        """Ask who owes a sign of life, and give up on who has owed it for too long.

        Args:
            waits: whether this node waits for an answer to something that it forwarded.
        """
        for number, scheduler in list(self.known.items()):
            if scheduler.is_up and not (waits and number == self.current):
                scheduler.asked_ns = None
                continue
            if scheduler.asked_ns is None:
                scheduler.asked_ns = now_ns
            elif scheduler.is_up and now_ns - scheduler.asked_ns >= self.patience_ns:
                self.lost(now_ns, number)
            self.asked += 1
            self.out.append((self.shards[number], AskScheduler(self.asked)))
        self._choose(now_ns)

    def _choose(self, now_ns: int) -> bool:
        """Forward to the best one from now on; whether that is another one."""
        up = {number: each for number, each in self.known.items() if each.is_up}
        if not up:
            return False
        best = min(up, key=lambda number: (up[number].settled_at_ns > now_ns, up[number].rank))
        if best == self.current:
            return False
        former, self.current = self.address, best
        self.on_move(former)
        return True

    def check(self) -> None:
        """The current one is known, and is up if any is."""
        invariant(not self.shards or self.current in self.known, "an unknown global scheduler is the current")
        is_up = {number: each.is_up for number, each in self.known.items()}
        invariant(not any(is_up.values()) or is_up[self.current], "forwards go to one that is down:", is_up)
