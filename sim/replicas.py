"""Simulated replicas of shards and the master of their chains, around the real machines.

A replica's log survives a crash unless its disk goes with it. The master watches processes as the real one
does: it hears of an end soon, or not at all and must miss heartbeats.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from sim.hosts import MachineHost, placement_stream
from sim.kernel import MS
from sim.network import Link
from sim.rows import SimRows, settle
from zray.core.beside_shard import machines_beside
from zray.core.chain import ChainReplica
from zray.core.chain_master import ChainMaster
from zray.core.control_shard import ControlShard
from zray.core.flushing_shard import new_shard
from zray.core.machine import LOG, ROWS, Address
from zray.protocol.chain import Logged, ReplicaLost, RewriteLog
from zray.protocol.codec import batch_decoder, encode_batch
from zray.protocol.messages import ChainEpoch, ChainMember, Refused, Warn

if TYPE_CHECKING:
    from sim.cluster import Cluster

MASTER: Address = b"gcs-chain-master"
CHAIN_CONFIG: dict[str, Any] = {"chain_heartbeat_ns": 5 * MS, "chain_liveness_count": 8}
"""Shorter than the real ones, so that a partition of some milliseconds is a reason to suspect."""
NOTICED = 0.7
"""Share of deaths that the master is told of; the others it must find out."""

_decode_log = batch_decoder(Logged)


class RestartingHost(MachineHost):
    """A process that dies and comes back at its address; its peers find it a while later."""

    def restart(self) -> None:
        """Begin anew, with new machines."""
        self.begin()
        self.alive = True
        self.busy_until_ns = self.kernel.now_ns
        self._plan_turn()
        random = self.kernel.stream("reconnect")
        network = self.cluster.network
        peers = [link.source for link in network.links_to.get(self.address, ())]
        peers += [link.destination for link in network.links_from.get(self.address, ())]
        for peer in dict.fromkeys(peers):
            self.kernel.after(random.randint(1 * MS, 50 * MS), self._reconnect, (self.life, peer))

    @abstractmethod
    def begin(self) -> None:
        """Make the machines of a new life."""

    def restart_if_down(self, _: None) -> None:
        """:meth:`restart`, unless somebody did it meanwhile."""
        if not self.alive:
            self.restart()

    def _reconnect(self, planned: tuple[int, Address]) -> None:
        """The links of both directions, unless the one at the other end is away itself."""
        life, peer = planned
        network = self.cluster.network
        if life == self.life and self.alive and self.cluster.lives_at(peer):
            network.connect(network.link(peer, self.address))
            network.connect(network.link(self.address, peer))


class SimReplica(RestartingHost):
    """A replica of a shard, with a log."""

    def __init__(self, cluster: Cluster, number: int, replica: int) -> None:
        super().__init__(cluster, b"gcs-%04d.%d" % (number, replica))
        self.number = number
        self.log: list[bytes] = []
        self.logged = 0
        self.begin()
        cluster.network.attach(self.address, self.deliver)

    @property
    def shard(self) -> ControlShard:
        """The tables."""
        return self.replica.shard

    @property
    def beside(self) -> list[Any]:
        """What lives beside them, if this is the head."""
        return self.replica.beside

    def begin(self) -> None:
        """A new life, from the log if there is one."""
        shape = self.cluster.scenario.cluster
        shard = new_shard(
            cluster_id=b"simulated-clustr", shard=self.number, shard_count=shape.shards,
            config=self.cluster.config,
        )  # fmt: skip
        me = ChainMember(self.address, self.cluster.next_life())
        random = placement_stream(self.cluster, self.number)
        self.replica = ChainReplica(
            shard, me=me, master=MASTER, config=self.cluster.config,
            beside=lambda found: machines_beside(found, self.address, random),
        )  # fmt: skip
        self.rows = SimRows(self)
        for record in self.log:
            self.replica.restore(_decode_log(record))
            settle(self.replica.shard, self.rows.file)
        self._rewrite_log()
        self.machines = [self.replica]

    def serve(self, name: Address, messages: list[Any]) -> None:
        """The log, before anything else of this turn leaves; what a new head has is judged."""
        if name == LOG:
            self._write_log(messages)
            return
        if name == ROWS:
            self.rows.serve(messages)
            return
        for message in messages:
            if isinstance(message, ChainEpoch) and self.replica.is_head:
                self.cluster.judge.check_confirmed(self)
            elif isinstance(message, Refused):
                self.cluster.judge.fail(f"the master refused a replica: {message.detail}")

    def _write_log(self, messages: list[Any]) -> None:
        self.logged += len(messages)
        is_long = self.logged >= self.cluster.scenario.cluster.compact_messages
        if is_long or any(isinstance(message, RewriteLog) for message in messages):
            self._rewrite_log()
        else:
            self.log.append(encode_batch(messages))

    def _rewrite_log(self) -> None:
        self.logged = 0
        self.log = [encode_batch(list(self.replica.snapshot(self.rows.file.all_rows())))]

    def crash(self, *, with_log: bool = False) -> None:
        """Be gone; ``with_log``: the disk, too."""
        super().crash()
        if with_log:
            self.log = []
        self.cluster.process_ended(self.address)
        if self.cluster.master is not None:
            self.cluster.master.replica_ended(self.replica.me)


class SimMaster(RestartingHost):
    """The master of all chains: it keeps nothing over a crash."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, MASTER)
        self.random = cluster.kernel.stream("master")
        self.begin()
        cluster.network.attach(self.address, self.deliver)

    def begin(self) -> None:
        """A new life that knows nothing."""
        shape = self.cluster.scenario.cluster
        self.machine = ChainMaster(
            life=self.cluster.next_life(), shard_count=shape.shards, replicas=shape.replicas,
            config=self.cluster.config,
        )  # fmt: skip
        self.machines = [self.machine]

    def serve(self, name: Address, messages: list[Any]) -> None:
        """Notices; every process is watched anyway."""
        for message in messages:
            if isinstance(message, Warn):
                self.cluster.tell(self.address, message.text)

    def replica_ended(self, member: ChainMember) -> None:
        """A replica died: perhaps this process can see it."""
        if self.random.random() < NOTICED:
            delay_ns = int(self.random.expovariate(1.0) * self.cluster.costs.exit_notice_ns)
            lost = ReplicaLost(member.address, member.incarnation)
            self.kernel.after(delay_ns, lambda _: self.post(lost))


class SimChain:
    """The replicas of one shard."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        count = cluster.scenario.cluster.replicas
        self.hosts = [SimReplica(cluster, number, replica) for replica in range(count)]

    def boot(self) -> None:
        """Let every replica say hello."""
        for host in self.hosts:
            host.run([])

    def heal(self) -> None:
        """Start again what is down."""
        for host in self.hosts:
            host.restart_if_down(None)

    def members(self) -> tuple[Address, ...]:
        """The living members as the head sees them; none if there is no head."""
        heads = [host.replica for host in self.hosts if host.alive and host.replica.is_head]
        if not heads:
            return ()
        newest = max(heads, key=lambda replica: replica.epoch).newest
        return tuple(member.address for member in newest.members)

    def head(self) -> SimReplica:
        """Who serves clients; of a chain that is whole."""
        return next(host for host in self.hosts if host.replica.is_head)

    def seated(self) -> list[SimReplica]:
        """The living members of the newest epoch that any of them has heard of."""
        newest = max((host.replica.newest for host in self.hosts), key=lambda newest: newest.epoch)
        return [host for host in self.hosts if host.alive and host.replica.me in newest.members]

    def is_whole(self) -> bool:
        """Whether nothing is amiss: all live and are seated, and can speak with each other."""
        master = self.cluster.master
        if master is None or not master.alive or not all(host.alive for host in self.hosts):
            return False
        lists = {host.replica.newest.members: None for host in self.hosts}
        lists[master.machine.chains[self.number].members] = None
        if len(lists) != 1:
            return False
        seated = dict.fromkeys(next(iter(lists)))
        if any(host.replica.me not in seated for host in self.hosts) or len(seated) != len(self.hosts):
            return False
        now_ns = self.cluster.kernel.now_ns
        links = [link for host in self.hosts for link in self.links_of(host)]
        return all(link.is_open and link.is_up and link.clogged_until_ns <= now_ns for link in links)

    def links_of(self, host: SimReplica) -> list[Link]:
        """Both directions between a replica, the others and the master."""
        network = self.cluster.network
        peers = [MASTER, *(other.address for other in self.hosts if other is not host)]
        return [
            link for peer in peers
            for link in (network.link(host.address, peer), network.link(peer, host.address))
        ]  # fmt: skip

    def has_within(self, link: Link) -> bool:
        """Whether a link is one between replicas of this chain, or to their master."""
        inside = {MASTER: None, **{host.address: None for host in self.hosts}}
        return link.source in inside and link.destination in inside
