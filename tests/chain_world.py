"""Chains of replicas, their master and a client on a network that loses, repeats and delays: for tests.

Everything is a choice of the caller: which link delivers next, who dies, when time passes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zray.config import Config
from zray.core.chain import ChainReplica
from zray.core.chain_master import ChainMaster
from zray.core.control_shard import ControlShard
from zray.core.machine import LOG, RUNTIME, Address, pump
from zray.protocol.chain import Logged, ReplicaLost, RewriteLog, ToMaster, ToReplica
from zray.protocol.codec import batch_decoder, encode_batch
from zray.protocol.messages import (
    TABLE_KV,
    ChainEpoch,
    ChainMember,
    FromShard,
    TablePut,
    TableReply,
    TableUnsubscribe,
)

MASTER: Address = b"gcs-chain-master"
CLIENT: Address = b"client"
CONFIG = Config(chain_heartbeat_ns=10, chain_liveness_count=10, heartbeat_interval_ns=10)

_decode = batch_decoder(ToReplica | ToMaster | FromShard)
_decode_log = batch_decoder(Logged)


class World:
    """``replicas`` replicas of one shard.

    Attributes:
        links: (from, to) -> frames on the way, in order.
        answers: token -> how often it was answered.
    """

    def __init__(self, replicas: int, config: Config = CONFIG) -> None:
        self.config = config
        self.now_ns = 0
        self.incarnations = 0
        self.replicas: dict[Address, ChainReplica] = {}
        self.logs: dict[Address, list[bytes]] = {}
        self.links: dict[tuple[Address, Address], deque[bytes]] = {}
        self.cut: dict[tuple[Address, Address], None] = {}  # links that lose everything
        self.count = replicas
        self.addresses = [b"gcs-0000.%d" % number for number in range(replicas)]
        self.answers: dict[int, int] = {}
        self.sent: dict[int, int] = {}  # token -> how often it was sent
        self.acknowledged: dict[bytes, bytes] = {}  # key -> value that was acknowledged last
        self.puts: dict[int, TablePut] = {}  # unanswered
        self.head: Address = self.addresses[0]
        self.head_epoch = 0
        self.tokens = 0
        self.master: ChainMaster | None = None
        self.start_master()
        for address in self.addresses:
            self.start(address)

    # --- processes -------------------------------------------------------------------------------

    def start_master(self) -> None:
        self.incarnations += 1
        self.master = ChainMaster(
            life=self.incarnations, shard_count=1, replicas=self.count, config=self.config
        )

    def kill_master(self) -> None:
        self.master = None
        self._lose_links(MASTER)

    def start(self, address: Address, *, from_log: bool = False) -> None:
        """A new life of a replica, empty or from its log."""
        self.incarnations += 1
        shard = ControlShard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=self.config)
        me = ChainMember(address, self.incarnations)
        replica = ChainReplica(shard, me=me, master=MASTER, config=self.config)
        if from_log:
            for record in self.logs[address]:
                replica.restore(_decode_log(record))
        else:
            self.logs[address] = []
        self.replicas[address] = replica
        self.logs[address] = [encode_batch(list(replica.snapshot()))]

    def kill(self, address: Address, *, seen: bool = True) -> None:
        """A replica is gone; ``seen``: its master is told at once."""
        incarnation = self.replicas.pop(address).me.incarnation
        self._lose_links(address)
        if seen and self.master is not None:
            self.pump(MASTER, RUNTIME, [ReplicaLost(address, incarnation)])

    def _lose_links(self, address: Address) -> None:
        for link in self.links:
            if address in link:
                self.links[link].clear()

    # --- messages --------------------------------------------------------------------------------

    def pump(self, address: Address, source: Address, messages: list[Any]) -> None:
        self._pump(address, [(source, message) for message in messages])

    def _pump(self, address: Address, batch: list[tuple[Address, Any]]) -> None:
        machine: Any = self.master if address == MASTER else self.replicas.get(address)
        if machine is None:
            return
        pump(machine, batch, self.now_ns)
        machine.check()
        out, machine.out[:] = list(machine.out), []
        self._log(address, [message for destination, message in out if destination == LOG])
        for destination, message in out:
            if destination not in (LOG, RUNTIME):
                self.send(address, destination, [message])

    def _log(self, address: Address, messages: list[Any]) -> None:
        if any(type(message) is RewriteLog for message in messages):
            self.logs[address] = [encode_batch(list(self.replicas[address].snapshot()))]
        elif messages:
            self.logs[address].append(encode_batch(messages))

    def send(self, source: Address, destination: Address, messages: list[Any]) -> None:
        link = source, destination
        if link not in self.cut:
            self.links.setdefault(link, deque()).append(encode_batch(messages))

    def busy(self) -> list[tuple[Address, Address]]:
        """Links with something on the way."""
        return [link for link, frames in self.links.items() if frames]

    def deliver(self, link: tuple[Address, Address], *, keep: bool = False) -> None:
        """The next frame of a link arrives; ``keep``: and will arrive again."""
        frames = self.links[link]
        if not frames:
            return
        messages = _decode(frames[0] if keep else frames.popleft())
        if link[1] == CLIENT:
            self._answered(link[0], messages)
        else:
            self.pump(link[1], link[0], messages)

    def deliver_all_to(self, address: Address) -> None:
        """Everything that is on the way to a process arrives in one batch."""
        batch: list[tuple[Address, Any]] = []
        for (source, destination), frames in self.links.items():
            while destination == address and frames:
                batch += [(source, message) for message in _decode(frames.popleft())]
        self._pump(address, batch)

    def tick(self, passed_ns: int = 10) -> None:
        """Time passes for everybody."""
        self.now_ns += passed_ns
        for address in [*self.replicas, MASTER]:
            self.pump(address, RUNTIME, [])

    def settle(self, rounds: int = 200) -> None:
        """Deliver and let time pass, without faults, until nothing but heartbeats happens."""
        for _ in range(rounds):
            while busy := self.busy():
                for link in busy:
                    self.deliver(link)
            self.repeat()
            self.tick()

    # --- the client ------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> int:
        """Write a key; the token of the request."""
        self.tokens += 1
        message = TablePut(self.tokens, TABLE_KV, key, value)
        self.puts[self.tokens] = message
        self.ask(message)
        return self.tokens

    def ask(self, message: Any) -> None:
        self.sent[message.token] = self.sent.get(message.token, 0) + 1
        self.send(CLIENT, self.head, [message])

    def repeat(self) -> None:
        """The client asks again what was not answered, and everybody where the head is."""
        for message in list(self.puts.values()):
            self.ask(message)
        for address in self.addresses if self.puts else ():
            self.send(CLIENT, address, [TableUnsubscribe(TABLE_KV, b"no answer, unless it is not the head")])

    def _answered(self, source: Address, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is ChainEpoch and message.epoch > self.head_epoch:
                self.links.setdefault((CLIENT, self.head), deque()).clear()  # it hangs up
                self.head_epoch, self.head = message.epoch, message.members[0].address
                self.repeat()
            elif type(message) is TableReply:
                self.answers[message.token] = self.answers.get(message.token, 0) + 1
                put = self.puts.pop(message.token, None)
                if put is not None and message.ok:
                    self.acknowledged[put.key] = put.value

    # --- what must hold --------------------------------------------------------------------------

    def chain(self) -> list[ChainReplica]:
        """The members that live, head first, as the head sees it."""
        heads = [replica for replica in self.replicas.values() if replica.is_head]
        newest = max(heads, key=lambda replica: replica.epoch)
        return [self.replicas[member.address] for member in newest.newest.members]

    def tables(self, replica: ChainReplica) -> Any:
        """The durable state of a replica, without what belongs to no table."""
        return [encode_batch([command]) for command in replica.shard.snapshot()]
