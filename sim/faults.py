"""Nemeses: what goes wrong, how often, and how it is healed.

Each nemesis strikes at exponentially distributed times of the faulty phase, drawn from a stream of its
own, so that adding one does not move the strikes of the others. At the end of the phase everything is
healed: nothing strikes any more, partitions and outages are over. Only a node that is frozen or silent stays
so until its time is over: it takes seconds to be declared dead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from sim.hosts import DATA_SUFFIX
from sim.kernel import MS, S
from sim.message_faults import Deathblow, MessageFaults
from sim.replicas import MASTER
from zray.core.actors import SERVER_SUFFIX
from zray.protocol.cluster import LinkLost

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.hosts import SimNode, SimShard
    from sim.network import Link
    from sim.replicas import SimChain, SimReplica
    from sim.scenario import FaultsPart
    from sim.worker import SimDriver, SimWorker
    from zray.core.machine import Address


KEEPERS_PAUSE_NS = 5 * S
"""Between two deaths of nodes that keep copies: by then the copies of the first are made again."""


class Faults:
    """All nemeses of one run.

    Args:
        cluster: the victim.
        rates: how often each strikes.
        faulty_ns: the length of the faulty phase.
    """

    def __init__(self, cluster: Cluster, rates: FaultsPart, faulty_ns: int) -> None:
        self.cluster = cluster
        self.rates = rates
        self.faulty_ns = faulty_ns
        self.strikes: dict[str, int] = {}
        self.slow_until_ns = 0
        self.keeper_died_ns = -KEEPERS_PAUSE_NS
        self.partitioned: list[Link] = []
        self.messages: MessageFaults | None = None

    def unleash(self) -> None:
        """Plan the first strike of each nemesis."""
        nemeses: dict[str, tuple[float, Callable[[Random], bool]]] = {
            "worker_crash": (self.rates.worker_crash, self._crash_worker),
            "worker_crash_creating": (self.rates.worker_crash_creating, self._crash_creating),
            "worker_freeze": (self.rates.worker_freeze, self._freeze_worker),
            "driver_crash": (self.rates.driver_crash, self._crash_driver),
            "node_crash": (self.rates.node_crash, self._crash_node),
            "keeper_crash": (self.rates.keeper_crash, self._crash_keeper),
            "node_freeze": (self.rates.node_freeze, self._freeze_node),
            "link_loss": (self.rates.link_loss, self._lose_link),
            "node_silence": (self.rates.node_silence, self._silence_node),
            "peer_partition": (self.rates.peer_partition, self._partition_peers),
            "shard_crash": (self.rates.shard_crash, self._crash_shard),
            "scheduler_crash": (self.rates.scheduler_crash, self._crash_scheduler),
            "scheduler_freeze": (self.rates.scheduler_freeze, self._freeze_scheduler),
            "replica_crash": (self.rates.replica_crash, self._crash_replica),
            "twin_crash": (self.rates.twin_crash, self._crash_twins),
            "replica_partition": (self.rates.replica_partition, self._partition_replica),
            "master_crash": (self.rates.master_crash, self._crash_master),
            "partition": (self.rates.partition, self._partition),
            "clog": (self.rates.clog, self._clog),
            "disk_slow": (self.rates.disk_slow, self._slow_disk),
        }
        if self.rates.message_death and self.faulty_ns:
            self.messages = MessageFaults(self.cluster.network, self._deathblow, self._died_over)
            nemeses["message_death"] = self.rates.message_death, self.messages.arm
        for name, (rate, strike) in nemeses.items():
            if rate > 0 and self.faulty_ns:
                self._plan(name, rate, strike, self.cluster.kernel.stream(f"nemesis/{name}"))
        self.cluster.kernel.at(self.faulty_ns, lambda _: self.heal())

    def _plan(self, name: str, rate: float, strike: Callable[[Random], bool], random: Random) -> None:
        def act(_: None) -> None:
            if strike(random):
                self.strikes[name] = self.strikes.get(name, 0) + 1
                self.cluster.tell(b"nemesis", name)
            self._plan(name, rate, strike, random)

        at_ns = self.cluster.kernel.now_ns + int(random.expovariate(rate) * S)
        if at_ns < self.faulty_ns:
            self.cluster.kernel.at(at_ns, act)

    @property
    def is_faulty(self) -> bool:
        """Whether the faulty phase lasts."""
        return self.cluster.kernel.now_ns < self.faulty_ns

    def heal(self) -> None:
        """Nothing is wrong from now on."""
        if self.messages is not None:
            self.messages.armed = None
        links, self.partitioned = self.partitioned, []
        for link in links:
            self.cluster.network.heal(link)
        for shard in self.cluster.shards:
            if not shard.alive:
                shard.restart()
        for chain in self.cluster.chains:
            chain.heal()
        if self.cluster.master is not None and not self.cluster.master.alive:
            self.cluster.master.restart()
        for node in self.cluster.nodes:
            if not node.alive:
                self.cluster.restart_node(node)

    # --- asked by hosts ------------------------------------------------------------------------------

    def worker_start(self, random: Random) -> str:
        """ "": the worker starts; "exit": it ends at once; "hang": it never introduces itself."""
        if not self.is_faulty or not (self.rates.worker_start_failure or self.rates.worker_start_hang):
            return ""
        drawn = random.random()
        if drawn < self.rates.worker_start_failure:
            return "exit"
        return "hang" if drawn < self.rates.worker_start_failure + self.rates.worker_start_hang else ""

    def spill_fails(self, random: Random) -> bool:
        """Whether the disk refuses this one."""
        return self.is_faulty and self.rates.spill_failure > 0 and random.random() < self.rates.spill_failure

    def flush_fails(self, random: Random) -> bool:
        """Whether the disk of a shard refuses these rows."""
        return self.is_faulty and self.rates.flush_failure > 0 and random.random() < self.rates.flush_failure

    def disk_slowdown(self) -> int:
        """How many times slower than usual the disk is now."""
        return 50 if self.slow_until_ns > self.cluster.kernel.now_ns else 1

    # --- strikes -------------------------------------------------------------------------------------

    def _outage_ns(self, random: Random) -> int:
        return int(random.expovariate(1.0) * self.rates.outage_ms * MS)

    def _victim(self, random: Random) -> SimWorker | None:
        workers = [worker for node in self.cluster.nodes for worker in node.workers.values()]
        running = [
            worker for worker in workers if worker.work.current.strip(b"\0") or worker.actor is not None
        ]
        candidates = running if running and random.random() < 0.8 else workers
        return random.choice(candidates) if candidates else None

    def _crash_worker(self, random: Random) -> bool:
        victim = self._victim(random)
        if victim is not None:
            self._kill_worker(random, victim)
        return victim is not None

    def _kill_worker(self, random: Random, victim: SimWorker) -> None:
        victim.host.worker_ended(victim, -9)

    def _crash_creating(self, random: Random) -> bool:
        victim = self._victim(random)
        if victim is not None:
            victim.crash_when_creating = True
        return victim is not None

    def _freeze_worker(self, random: Random) -> bool:
        victim = self._victim(random)
        if victim is not None:
            until_ns = self.cluster.kernel.now_ns + self._outage_ns(random)
            victim.frozen_until_ns = max(victim.frozen_until_ns, until_ns)
        return victim is not None

    def _crash_driver(self, random: Random) -> bool:
        alive = self._running_drivers()
        if len(alive) < 2:  # one must be left to be judged
            return False
        self._kill_driver(random, random.choice(alive))
        return True

    def _kill_driver(self, random: Random, victim: SimDriver) -> None:
        self.cluster.crash_driver(victim)

    def _crash_shard(self, random: Random) -> bool:
        if self.cluster.chains:
            return self._crash_chain(random)
        shard = random.choice(self.cluster.shards)
        if not shard.alive:
            return False
        self._kill_shard(random, shard)
        return True

    def _kill_shard(self, random: Random, shard: SimShard) -> None:
        shard.crash()
        back_ns = min(self.faulty_ns, self.cluster.kernel.now_ns + self._outage_ns(random))
        self.cluster.kernel.at(back_ns, lambda _: None if shard.alive else shard.restart())

    def _crash_scheduler(self, random: Random) -> bool:
        """The process of a global scheduler, while nodes could go on with another."""
        cluster = self.cluster
        count = min(cluster.config.global_schedulers, cluster.scenario.cluster.shards)
        victim = random.randrange(count)
        if cluster.chains:
            alive = [chain.number for chain in cluster.chains[:count] if chain.members()]
            if victim in alive and len(alive) > 1 and cluster.chains[victim].is_whole():
                self._kill_replica(random, cluster.chains[victim].head())
                return True
            return False
        alive = [shard.number for shard in cluster.shards[:count] if shard.alive]
        if victim not in alive or len(alive) < 2:
            return False
        self._kill_shard(random, cluster.shards[victim])
        return True

    def _freeze_scheduler(self, random: Random) -> bool:
        """Stop such a process, often for longer than nodes wait for it. A replica is suspected sooner."""
        cluster = self.cluster
        now_ns, config = cluster.kernel.now_ns, cluster.config
        schedulers = cluster.shards[: config.global_schedulers]
        running = [shard for shard in schedulers if shard.alive and shard.frozen_until_ns <= now_ns]
        if len(running) < 2:
            return False
        longest_ns = 2 * config.heartbeat_interval_ns * config.heartbeat_liveness_count
        random.choice(running).frozen_until_ns = now_ns + random.randint(0, longest_ns)
        return True

    def _whole_chain(self, random: Random) -> SimChain | None:
        """A chain for which nothing is amiss: any single failure at a time is to be survived."""
        chain = random.choice(self.cluster.chains) if self.cluster.chains else None
        return chain if chain is not None and chain.is_whole() else None

    def _crash_chain(self, random: Random) -> bool:
        """All replicas of a shard at once; they come back with their logs."""
        chain = self._whole_chain(random)
        if chain is None:
            return False
        for host in chain.hosts:
            host.crash(with_log=False)
            back_ns = self.cluster.kernel.now_ns + self._outage_ns(random) // 10
            self.cluster.kernel.at(min(self.faulty_ns, back_ns), host.restart_if_down)
        return True

    def _crash_replica(self, random: Random) -> bool:
        """One replica, and sometimes its disk; it comes back as a joiner or with what its log says."""
        chain = self._whole_chain(random)
        if chain is None:
            return False
        self._kill_replica(random, random.choice(chain.hosts))
        return True

    def _kill_replica(self, random: Random, host: SimReplica) -> None:
        host.crash(with_log=random.random() < 0.7)
        back_ns = self.cluster.kernel.now_ns + self._outage_ns(random)
        self.cluster.kernel.at(min(self.faulty_ns, back_ns), host.restart_if_down)

    def _crash_twins(self, random: Random) -> bool:
        """A node and, in the same moment, who keeps a directory: the head of a chain, or a shard."""
        victim = self._node_victim(random)
        chain = self._whole_chain(random)
        if victim is None or (chain is None and self.cluster.chains):
            return False
        self._kill_node(random, victim)
        if chain is None:
            return self._crash_shard(random)
        self._kill_replica(random, chain.head())
        return True

    def _crash_master(self, random: Random) -> bool:
        master = self.cluster.master
        if master is None or not all(chain.is_whole() for chain in self.cluster.chains):
            return False
        self._kill_master(random)
        return True

    def _kill_master(self, random: Random) -> None:
        master = self.cluster.master
        assert master is not None
        master.crash()
        back_ns = self.cluster.kernel.now_ns + self._outage_ns(random)
        self.cluster.kernel.at(min(self.faulty_ns, back_ns), master.restart_if_down)

    def _partition_replica(self, random: Random) -> bool:
        """A replica cannot speak with its master, with another replica, or with any of them."""
        chain = self._whole_chain(random)
        if chain is None:
            return False
        host = random.choice(chain.hosts)
        others = chain.links_of(host)
        if random.random() < 0.5:
            others = [link for link in others if MASTER in (link.source, link.destination)]
        elif random.random() < 0.5:
            others = [random.choice(others)]
        self._cut(others, self._outage_ns(random))
        return True

    def _deathblow(self, address: Address) -> Deathblow | None:
        """How to kill the process at an address; ``None``: it must live, or is not there."""
        cluster, home = self.cluster, address.removesuffix(DATA_SUFFIX).removesuffix(SERVER_SUFFIX)
        for node in cluster.nodes:
            if node.address == home:
                return partial(self._kill_node, victim=node) if self._may_die(node) else None
            if home in node.workers:
                return partial(self._kill_worker, victim=node.workers[home])
        running = self._running_drivers()
        for driver in running:
            if driver.address == home:
                return partial(self._kill_driver, victim=driver) if len(running) > 1 else None
        for shard in cluster.shards:
            if shard.address == home and shard.alive:
                return partial(self._kill_shard, shard=shard)
        if all(chain.is_whole() for chain in cluster.chains):
            for host in (host for chain in cluster.chains for host in chain.hosts):
                if host.address == home:
                    return partial(self._kill_replica, host=host)
            if cluster.master is not None and home == MASTER:
                return self._kill_master
        return None

    def _died_over(self, kind: str, fate: str) -> None:
        self.cluster.tell(b"nemesis", f"{kind}: {fate}")
        self.strikes[kind] = self.strikes.get(kind, 0) + 1

    def _running_drivers(self) -> list[SimDriver]:
        return [driver for driver in self.cluster.drivers if driver.alive and driver.finished_ns is None]

    def _may_die(self, node: SimNode) -> bool:
        """Whether the end of a node leaves a driver to be judged."""
        return node.alive and any(driver.host is not node for driver in self._running_drivers())

    def _node_victim(self, random: Random) -> SimNode | None:
        """A node whose end leaves a driver to be judged."""
        nodes = [node for node in self.cluster.nodes if self._may_die(node)]
        return random.choice(nodes) if nodes else None

    def _crash_node(self, random: Random) -> bool:
        victim = self._node_victim(random)
        if victim is not None:
            self._kill_node(random, victim)
        return victim is not None

    def _crash_keeper(self, random: Random) -> bool:
        """A node that keeps copies of what was put, one at a time, and no driver's: nothing may be lost."""
        keepers = [node for node in self.cluster.nodes if node.node.store.kept and self._may_die_alone(node)]
        if keepers:
            self.keeper_died_ns = self.cluster.kernel.now_ns
            self._kill_node(random, random.choice(keepers))
        return bool(keepers)

    def _may_die_alone(self, node: SimNode) -> bool:
        is_home = any(driver.host is node for driver in self._running_drivers())
        rested = self.cluster.kernel.now_ns - self.keeper_died_ns >= KEEPERS_PAUSE_NS
        return node.alive and rested and not is_home

    def copies_acknowledged(self, host: SimNode) -> None:
        """A process was told that its copies are kept: its node may die in the very next moment."""
        random = self.cluster.kernel.stream("nemesis/keeper_acknowledged")
        if not self.rates.keeper_crash or not self.is_faulty or random.random() < 0.5:
            return

        def strike(_: None) -> None:
            if self._may_die_alone(host):
                self.keeper_died_ns = self.cluster.kernel.now_ns
                self.strikes["keeper_acknowledged"] = self.strikes.get("keeper_acknowledged", 0) + 1
                self._kill_node(random, host)

        self.cluster.kernel.after(int(random.expovariate(1.0) * 5 * MS), strike)

    def _kill_node(self, random: Random, victim: SimNode) -> None:
        self.cluster.crash_node(victim)
        if random.random() < 0.7:  # else only its silence tells
            notice_ns = int(random.expovariate(1.0) * 20 * MS)
            notice = LinkLost(victim.address)
            self.cluster.kernel.after(notice_ns, lambda _: self.cluster.tell_first_shard(notice))
        back_ns = min(self.faulty_ns, self.cluster.kernel.now_ns + self._outage_ns(random))
        self.cluster.kernel.at(back_ns, lambda _: self._revive(victim))

    def _lose_link(self, random: Random) -> bool:
        """A node's link to the control store breaks for a moment: nothing may come of it."""
        nodes = [node for node in self.cluster.nodes if node.alive]
        if not nodes:
            return False
        self.cluster.tell_first_shard(LinkLost(random.choice(nodes).address))
        return True

    def _revive(self, node: SimNode) -> None:
        if not node.alive:
            self.cluster.restart_node(node)

    def _freeze_node(self, random: Random) -> bool:
        """Stop a node, but not its workers, often for so long that it is declared dead."""
        victim = self._node_victim(random)
        if victim is not None:
            longest_ns = 2 * self.cluster.config.node_death_ns
            frozen_ns = random.choice((self._outage_ns(random), random.randint(0, longest_ns)))
            victim.frozen_until_ns = max(victim.frozen_until_ns, self.cluster.kernel.now_ns + frozen_ns)
        return victim is not None

    def _silence_node(self, random: Random) -> bool:
        """Cut a node off who decides on life and death, and from nobody else, for as long as a freeze lasts.

        If it is declared dead it goes on without knowing, and all others hear it: they have to know better.
        """
        victim = self._node_victim(random)
        if victim is None:
            return False
        network, judges = self.cluster.network, self.cluster.hosts_of(0)
        links = [network.link(victim.address, judge.address) for judge in judges]
        links += [network.link(judge.address, victim.address) for judge in judges]
        for link in links:
            network.partition(link)

        def over(_: None) -> None:
            for link in links:
                network.heal(link)

        self.cluster.kernel.after(random.randint(0, 2 * self.cluster.config.node_death_ns), over)
        return True

    def _partition_peers(self, random: Random) -> bool:
        """Between two nodes, control or data, both directions or one."""
        nodes = [node for node in self.cluster.nodes if node.alive]
        if len(nodes) < 2:
            return False
        suffix = random.choice((b"", DATA_SUFFIX))
        one, other = (node.address + suffix for node in random.sample(nodes, 2))
        network = self.cluster.network
        links = [network.link(one, other), network.link(other, one)]
        self._cut(links if random.random() < 0.5 else links[:1], self._outage_ns(random))
        return True

    def _some_links(self, random: Random) -> list[Link]:
        """Between a node and a shard: both directions, or one."""
        network = self.cluster.network
        node = random.choice(self.cluster.nodes).address
        shard = random.choice(self.cluster.addresses_of_shards())
        both = [network.link(node, shard), network.link(shard, node)]
        return both if random.random() < 0.5 else [random.choice(both)]

    def _partition(self, random: Random) -> bool:
        self._cut(self._some_links(random), self._outage_ns(random))
        return True

    def _cut(self, links: list[Link], outage_ns: int) -> None:
        for link in links:
            self.cluster.network.partition(link)
        self.partitioned += links

        def over(_: None) -> None:
            for link in links:
                self.cluster.network.heal(link)

        self.cluster.kernel.after(outage_ns, over)

    def _clog(self, random: Random) -> bool:
        network = self.cluster.network
        links = list(network.links.values())
        link = random.choice(links) if links and random.random() < 0.7 else self._some_links(random)[0]
        if not all(chain.is_whole() for chain in self.cluster.chains if chain.has_within(link)):
            return False
        network.clog(link, min(self.faulty_ns, self.cluster.kernel.now_ns + self._outage_ns(random)))
        return True

    def _slow_disk(self, random: Random) -> bool:
        self.slow_until_ns = self.cluster.kernel.now_ns + self._outage_ns(random)
        return True
