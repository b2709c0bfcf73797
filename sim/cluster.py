"""A simulated cluster: nodes, shards, drivers, their network and what goes wrong with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sim.checkers import Judge
from sim.costs import Costs, default_costs
from sim.faults import Faults
from sim.histogram import DurationHistogram
from sim.hosts import SimNode, SimShard
from sim.kernel import MS, US, Kernel, S
from sim.network import LinkQuality, Network
from sim.oracle import Oracle
from sim.programs import FUNCTIONS, Program
from sim.replicas import CHAIN_CONFIG, NOTICED, SimChain, SimMaster, SimReplica
from sim.scenario import ClusterPart, Scenario
from sim.worker import SimDriver
from zray.config import Config
from zray.core.machine import Address
from zray.core.placement import configured
from zray.core.placement_groups import PlacementGroups
from zray.ids import short
from zray.protocol.chain import ShardOpened
from zray.protocol.cluster import LinkLost
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import ACTOR_DEAD, DRIVER, PROTOCOL_VERSION, Describe, Goodbye, Hello, KillActor

STORY_LINES = 400


def _cpus_of(shape: ClusterPart) -> list[int]:
    """Of each node."""
    first = list(shape.node_cpus[: shape.nodes])
    return first + [shape.cpus] * (shape.nodes - len(first))


def _config_of(shape: ClusterPart) -> Config:
    """The settings of every process of a scenario."""
    return Config(
        backlog_per_slot_max=shape.backlog_per_slot,
        heartbeat_interval_ns=shape.heartbeat_ms * MS,
        offload_patience_ns=shape.offload_patience_ms * MS,
    )


class Span(NamedTuple):
    """One task that ran: for traces and utilisation."""

    worker: Address
    name: str
    task_id: bytes
    start_ns: int
    end_ns: int
    attempt: int = 0


class Cluster:
    """Everything of one run.

    Args:
        scenario: what there is and what goes wrong.
        seed: the root of all random draws.
        programs: one per driver.
        config: of every process.
        costs: processor time.
        keep_spans: remember every task for a trace.
        functions: the code of tasks by name, if it is not that of the shipped workloads.
    """

    def __init__(
        self, scenario: Scenario, seed: int, programs: list[Callable[[], Program]], *,
        config: Config | None = None, costs: Costs | None = None, keep_spans: bool = False,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:  # fmt: skip
        self.scenario = scenario
        self.config = configured(
            (config or _config_of(scenario.cluster))._replace(scheduling_policy=scenario.policy)
        )
        self.config = self.config._replace(global_schedulers=scenario.cluster.global_schedulers)
        self.config = self.config._replace(gcs_memory_max=scenario.cluster.gcs_memory_bytes)
        if scenario.cluster.replicas > 1:
            self.config = self.config._replace(**CHAIN_CONFIG)
        self.costs = costs or default_costs()
        self.functions: Mapping[str, Callable[..., Any]] = FUNCTIONS if functions is None else functions
        self.kernel = Kernel(seed)
        self.check_every = scenario.check_every
        self.judge = Judge(scenario.faults, strict=scenario.strict, is_over=self._is_over)
        net = scenario.network
        quality = LinkQuality(net.latency_us * US, net.jitter_us * US, net.bandwidth_mib_s << 20)
        self.network = Network(self.kernel, quality, strict=scenario.strict)
        self.faults = Faults(self, scenario.faults, int(scenario.phases.faulty_s * S))
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.spans: list[Span] | None = [] if keep_spans else None
        self.run_times = DurationHistogram()
        self.work_ns = 0  # run times without the time in which a processor was lent
        self.tasks_run = 0
        self.forwards = 0
        self.spillbacks = 0  # forwards of tasks that had been placed before
        self.ending = False
        self.incarnations = 0  # of nodes that began anew
        self.unfinished = 0
        shape = scenario.cluster
        self.lives = 0  # of replicas and masters
        self.shards: list[SimShard] = []
        self.chains: list[SimChain] = []
        self.master: SimMaster | None = None
        if shape.replicas == 1:
            self.shards += [
                SimShard(self, i, shape.shards, shape.compact_messages) for i in range(shape.shards)
            ]
        else:
            self.master = SimMaster(self)
            self.chains += [SimChain(self, i) for i in range(shape.shards)]
        self.nodes = [
            SimNode(self, b"node%08d----" % i, i, shape.arena_kib << 10, cpus)
            for i, cpus in enumerate(_cpus_of(shape))
        ]
        self.drivers = [self._driver(number, program) for number, program in enumerate(programs)]
        self.unfinished = len(self.drivers)

    def _driver(self, number: int, program: Callable[[], Program]) -> SimDriver:
        node = self.nodes[number % len(self.nodes)]
        return SimDriver(
            self,
            b"driver-%09d" % number,
            node,
            number=number,
            root_task=root_task_of(number),
            program=program,
        )

    def code_of(self, kind: Describe) -> bytes:
        """What a client exports as the code of a function: the name under which ``functions`` has it."""
        return (kind.name if kind.name in self.functions else kind.function_id.hex()).encode()

    def boot(self) -> None:
        """Start every process; drivers come a little later, one after the other."""
        if self.master is not None:
            self.master.run([])
        for shard in self.shards:
            shard.post(ShardOpened())
        for chain in self.chains:
            chain.boot()
        for node in self.nodes:
            node.boot()
        for driver in self.drivers:
            self.kernel.after((1 + driver.number) * MS // 4, driver.start)
        self.faults.unleash()

    def shard_addresses(self) -> tuple[tuple[Address, ...], tuple[tuple[Address, ...], ...]]:
        """What a node is told: an address of each shard, and all of them if shards are replicated."""
        replicas = tuple(tuple(host.address for host in chain.hosts) for chain in self.chains)
        return tuple(shard.address for shard in self.shards) or tuple(c[0] for c in replicas), replicas

    def addresses_of_shards(self) -> list[Address]:
        """Every process that serves a shard, replicas included."""
        hosts = [host for chain in self.chains for host in chain.hosts]
        return [shard.address for shard in self.shards] + [host.address for host in hosts]

    def hosts_of(self, shard: int) -> Sequence[SimShard | SimReplica]:
        """The processes that serve a shard."""
        return self.chains[shard].hosts if self.chains else self.shards[shard : shard + 1]

    def serving(self, shard: int) -> Sequence[SimShard | SimReplica]:
        """Those of them that have what the shard acknowledged: all, or the members of the newest epoch."""
        return self.chains[shard].seated() if self.chains else self.hosts_of(shard)

    def coordinators(self) -> list[PlacementGroups]:
        """Those of placement groups: one, unless there is none at this moment."""
        beside = [machine for host in self.serving(0) for machine in host.beside]
        return [machine for machine in beside if isinstance(machine, PlacementGroups)]

    def tell_first_shard(self, message: Any) -> None:
        """Those who serve it notice something themselves."""
        for host in self.hosts_of(0):
            host.post(message)

    def lives_at(self, address: Address) -> bool:
        """Whether the process there is up; nodes always are."""
        hosts = [self.master, *(host for chain in self.chains for host in chain.hosts)]
        return all(host is None or host.alive or host.address != address for host in hosts)

    def process_ended(self, address: Address) -> None:
        """One that serves a shard is gone: nodes notice it by their links, or by its silence."""
        random = self.kernel.stream("broken links")
        for node in self.nodes:
            if random.random() < NOTICED:
                delay_ns = int(random.expovariate(1.0) * self.costs.exit_notice_ns)
                self.kernel.after(delay_ns, self._notice_end, (node, address))

    @staticmethod
    def _notice_end(noticed: tuple[SimNode, Address]) -> None:
        node, address = noticed
        node.post(LinkLost(address))

    def next_life(self) -> int:
        """A number that no process had before."""
        self.lives += 1
        return self.lives

    # --- what processes report -----------------------------------------------------------------------

    def tell(self, who: Address, text: str) -> None:
        """A line for the story."""
        name = who.decode() if who.isascii() and who.decode().isprintable() else short(who)
        self.story.append(f"{self.kernel.now_ns / 1e9:.6f} {name}: {text}")

    def task_ended(
        self, worker: Address, name: str, task_id: bytes, start_ns: int, end_ns: int, lent_ns: int,
        attempt: int = 0,
    ) -> None:  # fmt: skip
        """A task or a call is over; for ``lent_ns`` of its time it waited."""
        self.tasks_run += 1
        self.work_ns += end_ns - start_ns - lent_ns
        self.run_times.add(end_ns - start_ns)
        if self.spans is not None:
            self.spans.append(Span(worker, name, task_id, start_ns, end_ns, attempt))
        elif self.scenario.strict:
            self.tell(worker, f"{name} {short(task_id)} ended")

    def driver_finished(self, driver: SimDriver) -> None:
        """A program has its result."""
        self.unfinished -= 1
        self.tell(driver.address, "finished")

    def driver_gone(self, driver: SimDriver) -> None:
        """A driver's process is over; its node finds out."""
        if driver.gone:
            return
        driver.gone = True
        driver.crash()
        driver.host.memory.process_gone(driver.address)
        self.network.detach(driver.address)
        self.judge.gone[driver.address] = None
        notice = ClientGone(driver.address)
        self.kernel.after(self.costs.exit_notice_ns, lambda _: driver.host.post(notice))

    def crash_node(self, node: SimNode) -> None:
        """Kill all processes of a node, drivers included."""
        for driver in self.drivers:
            if driver.host is node and driver.alive:
                if driver.finished_ns is None:
                    self.unfinished -= 1
                self.driver_gone(driver)
        node.crash()
        self.judge.gone[node.address] = None
        self.judge.groups.node_gone(node.address)

    def restart_node(self, node: SimNode) -> None:
        """A new incarnation of a node, under a new id and with an empty state."""
        if self.nodes[node.number] is not node:
            return
        if node.alive:
            self.crash_node(node)
        self.incarnations += 1
        # Ids of workers begin with twelve bytes of their node's, which no other life of it may share.
        address = b"born%04d%04d----" % (node.number, self.incarnations)
        born = SimNode(self, address, node.number, node.arena_bytes, node.cpus)
        self.nodes[node.number] = born
        self.tell(address, "begins anew")
        born.boot()

    def _is_over(self, address: Address) -> bool:
        """Whether a worker works for a job whose driver is gone."""
        found = [node.node.pool.workers.get(address) for node in self.nodes]
        jobs = [worker.job_id for worker in found if worker is not None]
        return any(driver.gone and root_task_of(driver.number) in jobs for driver in self.drivers)

    def end_detached_actors(self) -> None:
        """What outlived its program is ended, by a driver on the first node that comes for nothing else."""
        kills = []
        for node in self.nodes:
            for actor_id, entry in node.node.actors.entries.items():
                if entry.job_id == actor_id and entry.state.state != ACTOR_DEAD:
                    self.judge.actor_killed(actor_id)
                    kills.append(KillActor(actor_id))
        hello = Hello(PROTOCOL_VERSION, DRIVER, 1, root_task_of(len(self.drivers)))
        self.nodes[0].deliver(b"cleaner", [hello, *kills, Goodbye()])

    def crash_driver(self, driver: SimDriver) -> None:
        """Kill a driver's process."""
        self.unfinished -= 1
        self.driver_gone(driver)


def root_task_of(number: int) -> bytes:
    """The job of a driver: ids must be the same in every run, so it is not drawn."""
    return b"job%05d" % number + bytes(8)


def oracle_of(number: int, program: Callable[[], Program]) -> tuple[Oracle, object]:
    """What a driver's program gives when it is run sequentially."""
    oracle = Oracle(root_task_of(number))
    return oracle, oracle.run(program())
