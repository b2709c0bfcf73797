"""The master of all chains: who is a member of which, from which epoch on (paper, section 4.2.1).

It keeps nothing that the replicas do not know: every heartbeat carries the newest epoch that its sender has
heard of. A master that starts anew waits until all members of the newest list have spoken, or were silent for
a whole deadline, and goes on from there. Meanwhile chains serve on; only their members cannot change.

The invariant: a list of members is made from the list before it by leaving out members, or by adding one for
which the tail already waits. So every member of the newest list has all that was ever acknowledged. The last
member is never left out: without it there is nothing to go on from.
"""

from __future__ import annotations

from typing import ClassVar

from zray.config import Config
from zray.core.machine import RUNTIME, Address, Effect, Handler, invariant
from zray.errors import VersionMismatchError
from zray.protocol.chain import Admit, Admitted, ReplicaHello, ReplicaLost
from zray.protocol.messages import PROTOCOL_VERSION, ChainEpoch, ChainMember, Refused, Warn

KNOWN_MAX = 64
"""Replicas of one shard, members or not."""


class _Known:
    """The last words of a living replica."""

    __slots__ = ("heard_ns", "hello", "member")

    def __init__(self, now_ns: int, address: Address, hello: ReplicaHello) -> None:
        self.heard_ns = now_ns
        self.hello = hello
        self.member = ChainMember(address, hello.incarnation, hello.endpoint)


class _Chain:
    """The chain of one shard, as far as its master knows."""

    __slots__ = ("asked_ns", "epoch", "is_lost", "joiner", "known", "members", "shard")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.epoch = 0  # 0: not known, or not founded
        self.members: tuple[ChainMember, ...] = ()
        self.known: dict[Address, _Known] = {}
        self.joiner: ChainMember | None = None  # who is on the way in
        self.asked_ns: int | None = None  # when the first replica spoke
        self.is_lost = False  # whether the operator was told so


class ChainMaster:
    """Decides the members of every chain. Pure.

    Args:
        life: higher than that of any master before it.
        shard_count: number of chains.
        replicas: of each; a chain is founded once so many have come.
    """

    HANDLERS: ClassVar[dict[type, Handler]]

    def __init__(self, *, life: int, shard_count: int, replicas: int, config: Config) -> None:
        self.out: list[Effect] = []
        self.life, self.replicas, self.config = life, replicas, config
        self.cluster_id = b""  # of the first replica that spoke
        self.chains = [_Chain(shard) for shard in range(shard_count)]
        self.wake_at_ns: int | None = None
        self._silence_ns = config.chain_heartbeat_ns * config.chain_liveness_count
        self._due: dict[int, None] = {}  # chains to be decided on in this batch

    # --- messages --------------------------------------------------------------------------------

    def on_replica_hello(self, now_ns: int, source: Address, message: ReplicaHello) -> None:
        """A replica lives, and says what it has."""
        problem = self._problem_of(source, message)
        if problem:
            self.out.append((source, Refused("version" if "version" in problem else "shard", problem)))
            self.out.append((RUNTIME, Warn(f"refused replica {source.hex()}: {problem}")))
            return
        self.cluster_id = message.cluster_id
        chain = self.chains[message.shard]
        if chain.asked_ns is None:
            chain.asked_ns = now_ns
        known = chain.known.get(source)
        if known is not None and known.hello.incarnation > message.incarnation:
            return
        if known is None or known.hello.incarnation != message.incarnation:
            self.out.append((RUNTIME, message))  # its process may be watched
        chain.known[source] = _Known(now_ns, source, message)
        self._due[chain.shard] = None
        if message.epoch < chain.epoch:
            self.out.append((source, self._epoch_of(chain)))
        elif chain.joiner is not None and chain.members[-1:] == (chain.known[source].member,):
            self.out.append((source, Admit(chain.epoch, chain.joiner, self.life)))

    def _problem_of(self, source: Address, message: ReplicaHello) -> str:
        """A sentence, or nothing if the replica may be one of ours."""
        count = len(self.chains)
        if message.address != source:
            return f"it says that it is {message.address.hex()}"
        if message.version != PROTOCOL_VERSION:
            return str(VersionMismatchError(PROTOCOL_VERSION, message.version))
        if message.shard_count != count or not 0 <= message.shard < count:
            return f"this is shard {message.shard}/{message.shard_count}; the master has {count} shards"
        if self.cluster_id and message.cluster_id != self.cluster_id:
            return f"it belongs to cluster {message.cluster_id.hex()}, not to {self.cluster_id.hex()}"
        known = self.chains[message.shard].known
        if source not in known and len(known) >= KNOWN_MAX:
            return f"shard {message.shard} has {KNOWN_MAX} replicas already"
        return ""

    def on_admitted(self, now_ns: int, source: Address, message: Admitted) -> None:
        """A tail does not commit without its joiner any more, or gives up on it."""
        for chain in self.chains:
            if chain.members and chain.members[-1].address == source and chain.epoch == message.epoch:
                self._joiner_is_complete(chain, message)
                return

    def _joiner_is_complete(self, chain: _Chain, message: Admitted) -> None:
        joiner, seats = chain.joiner, self._seats(chain)
        if joiner is None or joiner != message.joiner or not self._is_known(chain, joiner) or not seats:
            return
        self._begin_epoch(chain, (*seats, joiner) if message.ok else seats)

    def on_replica_lost(self, now_ns: int, source: Address, message: ReplicaLost) -> None:
        """The process of a replica is gone."""
        if source != RUNTIME:
            return
        for chain in self.chains:
            known = chain.known.get(message.address)
            if known is not None and known.hello.incarnation == message.incarnation:
                del chain.known[message.address]
                self._due[chain.shard] = None

    # --- decisions -------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Decide once on every chain of which something was heard."""
        if self.wake_at_ns is None:
            self.wake_at_ns = now_ns + self.config.chain_heartbeat_ns
        while self._due:
            shard = next(iter(self._due))
            del self._due[shard]
            self._decide(now_ns, self.chains[shard])

    def on_tick(self, now_ns: int) -> None:
        """Who was silent for too long counts as gone."""
        self.wake_at_ns = now_ns + self.config.chain_heartbeat_ns
        for chain in self.chains:
            silent = [
                address for address, known in chain.known.items()
                if known.heard_ns + self._silence_ns <= now_ns
            ]  # fmt: skip
            for address in silent:
                del chain.known[address]
            self._due[chain.shard] = None

    def _decide(self, now_ns: int, chain: _Chain) -> None:
        if chain.epoch == 0:
            self._find(now_ns, chain)
            return
        seats = self._seats(chain)
        if not seats:
            self._tell_of_loss(chain)
        elif seats != chain.members or not self._is_known(chain, chain.joiner):
            self._begin_epoch(chain, seats)
        elif chain.joiner is None:
            self._invite(chain)

    def _seats(self, chain: _Chain) -> tuple[ChainMember, ...]:
        """The members that live and have their state, in order; some were started again from a log."""
        present = [chain.known[member.address] for member in chain.members if member.address in chain.known]
        committed = max((known.hello.committed for known in present), default=0)
        seats = tuple(
            known.member for known in present
            if known.member in chain.members or (known.hello.has_state and known.hello.have >= committed)
        )  # fmt: skip
        return seats

    @staticmethod
    def _is_known(chain: _Chain, joiner: ChainMember | None) -> bool:
        """Whether the one who is on the way in, if anybody is, still lives."""
        return joiner is None or (
            joiner.address in chain.known and chain.known[joiner.address].member == joiner
        )

    def _find(self, now_ns: int, chain: _Chain) -> None:
        """The chain that its replicas speak of; a new one if all have come and none knows any."""
        if not chain.known:
            return
        newest = max((known.hello for known in chain.known.values()), key=lambda hello: hello.epoch)
        if newest.epoch == 0:
            if len(chain.known) >= self.replicas:
                members = [chain.known[address].member for address in sorted(chain.known)]
                self._begin_epoch(chain, tuple(members))
            return
        assert chain.asked_ns is not None
        missing = [member for member in newest.members if member.address not in chain.known]
        if missing and now_ns < chain.asked_ns + self._silence_ns:
            return  # one that was left alone in an epoch that nobody else heard of may still speak
        chain.members = newest.members
        seats = self._seats(chain)
        if not seats:
            self._tell_of_loss(chain)
            return
        chain.epoch = newest.epoch
        self._begin_epoch(chain, seats)

    def _begin_epoch(self, chain: _Chain, members: tuple[ChainMember, ...]) -> None:
        """From now on these are the members: tell everybody."""
        invariant(bool(members), "a chain without members", chain.shard)
        chain.epoch += 1
        chain.members = members
        chain.joiner = None
        chain.is_lost = False
        news = self._epoch_of(chain)
        self.out.extend((address, news) for address in chain.known)
        names = ", ".join(member.address.decode("ascii", "replace") for member in members)
        self.out.append((RUNTIME, Warn(f"shard {chain.shard}, epoch {chain.epoch}: {names}")))
        self._invite(chain)

    def _epoch_of(self, chain: _Chain) -> ChainEpoch:
        return ChainEpoch(chain.shard, chain.epoch, chain.members, self.life)

    def _invite(self, chain: _Chain) -> None:
        """Let the tail feed one living replica that is no member."""
        seated = dict.fromkeys(member.address for member in chain.members)
        for address, known in chain.known.items():
            if address not in seated:
                chain.joiner = known.member
                self.out.append((chain.members[-1].address, Admit(chain.epoch, known.member, self.life)))
                return

    def _tell_of_loss(self, chain: _Chain) -> None:
        if chain.is_lost:
            return
        chain.is_lost = True
        names = ", ".join(member.address.decode("ascii", "replace") for member in chain.members)
        text = f"shard {chain.shard} is away: start one of {names} again, with its log"
        self.out.append((RUNTIME, Warn(text)))

    def check(self) -> None:
        """Members are there once, and a joiner is none of them."""
        for chain in self.chains:
            seated = dict.fromkeys(member.address for member in chain.members)
            invariant(len(seated) == len(chain.members), "a member has two places", chain.shard)
            invariant(chain.joiner is None or chain.joiner.address not in seated, "a member joins")
            invariant(len(chain.known) <= KNOWN_MAX, "I15 replicas of a shard", len(chain.known))


ChainMaster.HANDLERS = {
    ReplicaHello: ChainMaster.on_replica_hello,
    Admitted: ChainMaster.on_admitted,
    ReplicaLost: ChainMaster.on_replica_lost,
}
