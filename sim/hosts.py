"""Simulated processes around the real machines of a node and of a GCS shard.

One turn is that of ``runtime.loop``: take what has arrived, pump it in one batch, carry out the local
effects, then send the rest, one batch per peer. A turn takes processor time; what arrives meanwhile is
the next batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from sim.kernel import MS, S
from sim.memory import SimMemory
from sim.programs import Packed
from sim.rows import SimRows, settle
from sim.worker import SimWorker
from zray import ids
from zray.core.actors import SERVER_SUFFIX
from zray.core.beside_shard import machines_beside
from zray.core.control_shard import ControlShard
from zray.core.flushing_shard import new_shard
from zray.core.identity import NodeIdentity
from zray.core.machine import (
    DISK,
    LOG,
    ROWS,
    RUNTIME,
    TRANSFER,
    WORKER_POOL,
    Address,
    pump,
    take_effects,
)
from zray.core.node import Node
from zray.core.resources import demand_from
from zray.protocol.chain import Logged, ShardOpened
from zray.protocol.cluster import (
    BuriedAlive,
    Chunk,
    ChunkArrived,
    ChunkSent,
    Ended,
    LinkPeer,
    ReceiveInto,
    SendChunk,
    UnlinkPeer,
)
from zray.protocol.codec import batch_decoder, encode_batch
from zray.protocol.group_messages import BundlesHeld, HoldBundles
from zray.protocol.local_messages import (
    ClientGone,
    ClientJoined,
    DeleteFile,
    KillWorker,
    Spill,
    Spilled,
    SpillFailed,
    StartWorker,
    WorkerExited,
)
from zray.protocol.messages import (
    FILE,
    ChainEpoch,
    Created,
    Forward,
    Recorded,
    RecordTasks,
    Refused,
    ReleaseLineage,
    Value,
    Warn,
)
from zray.protocol.strategies import Labels

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.replicas import SimReplica

FRAMES_PER_TURN_MAX = 256
MESSAGES_PER_TURN_MAX = 512
CELLS_OF_NODE = b"@spilling"
SENDING = b"@sending"
DATA_SUFFIX = b"~"
PARTITION_LOOK_NS = 20 * MS
"""How often who sends over a link that is partitioned looks whether it still is."""
"""The address of a node's data link is the node's and this."""


class MachineHost(ABC):
    """A process that hosts machines.

    Args:
        cluster: where it lives.
        address: its routing id.
    """

    def __init__(self, cluster: Cluster, address: Address) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.address = address
        self.machines: list[Any] = []
        self.alive = True
        self.life = 0  # what was planned in a former life does not happen
        self.inbox: list[tuple[Address, list[Any]]] = []
        self.busy_until_ns = 0
        self.frozen_until_ns = 0
        self.busy_ns = 0
        self.pumps = 0
        self._turn_planned = False
        self._tick_at_ns: int | None = None

    def crash(self) -> None:
        """Be gone, with everything that was not written down."""
        self.alive = False
        self.life += 1
        self.inbox.clear()
        self._turn_planned = False
        self._tick_at_ns = None
        self.cluster.network.cut_off(self.address)

    def deliver(self, source: Address, messages: list[Any]) -> None:
        """A frame has arrived."""
        if not self.alive:
            return
        self.inbox.append((source, messages))
        self._plan_turn()

    def post(self, message: Any) -> None:
        """The process itself tells its machines something."""
        self.deliver(RUNTIME, [message])

    def _plan_turn(self) -> None:
        if not self._turn_planned:
            self._turn_planned = True
            self.kernel.at(self.busy_until_ns, self._turn, self.life)

    def _turn(self, life: int) -> None:
        if life != self.life:
            return
        self._turn_planned = False
        if self.frozen_until_ns > self.kernel.now_ns:
            self.busy_until_ns = self.frozen_until_ns
            self._plan_turn()
            return
        frames = self.inbox[: self._frames_of_turn()]
        del self.inbox[: len(frames)]
        self.run(frames)
        if self.inbox:
            self._plan_turn()

    def _frames_of_turn(self) -> int:
        """How many of the frames that are here one turn takes, as the real loop does."""
        messages = 0
        for frames, (_, batch) in enumerate(self.inbox[:FRAMES_PER_TURN_MAX], start=1):
            messages += len(batch)
            if messages >= MESSAGES_PER_TURN_MAX:
                return frames
        return FRAMES_PER_TURN_MAX

    def run(self, frames: list[tuple[Address, list[Any]]]) -> None:
        """One turn."""
        now_ns = self.kernel.now_ns
        batch = [(source, message) for source, messages in frames for message in messages]
        self.hear(batch)
        for machine in self.machines:
            self._pump(machine, batch, now_ns)
        cost_ns = self.cluster.costs.of_turn(batch, slept=self.busy_until_ns < now_ns)
        self.busy_ns += cost_ns
        self.busy_until_ns = now_ns + cost_ns
        self._act()
        self._plan_tick()

    def hear(self, batch: list[tuple[Address, Any]]) -> None:  # noqa: B027  a hook for those who watch
        """Let judges see what arrives."""

    def _pump(self, machine: Any, batch: list[tuple[Address, Any]], now_ns: int) -> None:
        if len(self.machines) > 1:
            batch = [pair for pair in batch if type(pair[1]) in machine.HANDLERS]
        wake_at_ns = machine.wake_at_ns
        if not batch and (wake_at_ns is None or wake_at_ns > now_ns):
            return
        pump(machine, batch, now_ns)
        self.pumps += 1
        if self.pumps % self.cluster.check_every == 0:
            machine.check()

    def _act(self) -> None:
        outgoing: dict[Address, list[Any]] = {}
        for machine in self.machines:
            take_effects(machine.out, outgoing)
        for name in (WORKER_POOL, DISK, TRANSFER, LOG, ROWS, RUNTIME):
            if name in outgoing:
                self.serve(name, outgoing.pop(name))
        own = outgoing.pop(self.address, None)
        if own is not None:  # one machine of this process speaks to another
            self.deliver(self.address, own)
        send = self.cluster.network.send
        for destination, messages in outgoing.items():
            send(self.address, destination, messages, self.busy_until_ns)

    @abstractmethod
    def serve(self, name: Address, messages: list[Any]) -> None:
        """Carry out what machines ask of their process."""

    def _plan_tick(self) -> None:
        due = [machine.wake_at_ns for machine in self.machines if machine.wake_at_ns is not None]
        if not due:
            return
        at_ns = max(min(due), self.busy_until_ns)
        if self._tick_at_ns is None or at_ns < self._tick_at_ns:
            self._tick_at_ns = at_ns
            self.kernel.at(at_ns, self._tick, (self.life, at_ns))

    def _tick(self, planned: tuple[int, int]) -> None:
        life, at_ns = planned
        if life != self.life or at_ns != self._tick_at_ns:
            return
        self._tick_at_ns = None
        now_ns = self.kernel.now_ns
        if any(m.wake_at_ns is not None and m.wake_at_ns <= now_ns for m in self.machines):
            self._plan_turn()
        else:
            self._plan_tick()


def labels_of(number: int) -> Labels:
    """The labels of a simulated node; of all its lives the same."""
    return ("number", str(number)), ("zone", "odd" if number % 2 else "even")


class SimNode(MachineHost):
    """A node: the composite machine, its workers, its memory and its disk."""

    def __init__(self, cluster: Cluster, address: Address, number: int, arena_bytes: int, cpus: int) -> None:
        super().__init__(cluster, address)
        self.number = number
        self.cpus = cpus
        identity = NodeIdentity(
            node_id=address, arena_bytes=arena_bytes, incarnation=1, host=f"node{number}",
            labels=labels_of(number),
        )  # fmt: skip
        total = demand_from({"CPU": cpus, **cluster.scenario.cluster.resources})
        shards, replicas = cluster.shard_addresses()
        self.node = Node(identity, total=total, shards=shards, config=cluster.config, replicas=replicas)
        self.arena_bytes = arena_bytes
        self.machines = [self.node]
        self.memory = SimMemory(cluster.judge.fail)
        self.workers: dict[Address, SimWorker] = {}
        self.starting: dict[Address, int] = {}  # forked and not there yet -> slot
        self.ended: dict[Address, None] = {}
        self.cells = [ids.NIL_ID] * cluster.config.workers_max
        self.free_slots = list(range(cluster.config.workers_max - 1, -1, -1))
        self.disk_free_ns = 0
        self.queue_lengths: list[tuple[int, int]] = []  # (time, tasks ready and not started), for pictures
        self.random = cluster.kernel.stream(f"node/{number}")
        self.rooms: dict[bytes, ReceiveInto] = {}  # where chunks that come belong
        cluster.network.attach(address, self.deliver)
        cluster.network.attach(address + DATA_SUFFIX, self._receive_chunks)

    def crash(self) -> None:
        """Be gone, with all workers."""
        self.alive = False
        self.life += 1
        self.inbox.clear()
        for worker in list(self.workers.values()):
            self.worker_ended(worker, -9)
        for address in (self.address, self.address + DATA_SUFFIX):
            self.cluster.network.detach(address)

    def boot(self) -> None:
        """Introduce the node and start its first workers."""
        self.node.introduce()
        for _ in range(max(1, min(self.cpus, self.cluster.config.workers_max))):
            self.node.pool.start(self.kernel.now_ns)
        self.run([])

    def hear(self, batch: list[tuple[Address, Any]]) -> None:
        """What shards confirm must survive."""
        for source, message in batch:
            if type(message) is Recorded:
                self.cluster.judge.acknowledged(self.address, source, message.sequence)
            elif type(message) is HoldBundles and message.version > self.node.groups.bundles.heard:
                self.cluster.judge.groups.told(self.address, message)

    def _act(self) -> None:
        for destination, message in self.node.out:
            if type(message) in (RecordTasks, ReleaseLineage):
                self.cluster.judge.recorded(self.address, destination, message)
            elif type(message) is Forward:
                self.cluster.forwards += 1
                self.cluster.spillbacks += message.hops > 0
            elif type(message) is BundlesHeld:
                self.cluster.judge.groups.said(self.address, message)
            elif type(message) is Ended and not (message.crashed or message.offloaded):
                self.cluster.judge.result_leaves(self.address, message.task_id, self._serving)
        if self.cluster.spans is not None:
            self._note_queue(self.node.scheduler.backlog())
        super()._act()

    def _serving(self, key: bytes) -> Sequence[SimShard | SimReplica]:
        """Who serves the shard of a key."""
        return self.cluster.serving(ids.shard_of(key, self.cluster.scenario.cluster.shards))

    def _note_queue(self, length: int) -> None:
        if not self.queue_lengths or self.queue_lengths[-1][1] != length:
            self.queue_lengths.append((self.kernel.now_ns, length))

    def serve(self, name: Address, messages: list[Any]) -> None:
        """Workers, disk and notices, as ``zray-node`` does it."""
        for message in messages:
            match message:
                case StartWorker(worker_id):
                    self._start_worker(worker_id)
                case KillWorker(worker_id):
                    self.kernel.after(self.cluster.costs.exit_notice_ns, self._kill, worker_id)
                case Spill():
                    self._spill(message)
                case DeleteFile(object_id):
                    self.memory.files.pop(object_id, None)
                case Warn(text):
                    self.cluster.tell(self.address, text)
                case Refused(reason, detail):
                    self.cluster.judge.fail(f"a shard refused the node: {reason}: {detail}")
                case SendChunk():
                    self._send_chunk(message)
                case ReceiveInto(object_id):
                    self._prepare(object_id, message)
                case BuriedAlive():
                    self.cluster.judge.buried_alive(self.address)
                    self.kernel.after(0, lambda _: self.cluster.restart_node(self))
                case ClientJoined() | ClientGone() | ChainEpoch() | LinkPeer() | UnlinkPeer():
                    pass
                case _:
                    raise TypeError(f"{name!r} cannot {message!r}")

    # --- workers -----------------------------------------------------------------------------------

    def _start_worker(self, worker_id: Address) -> None:
        slot = self.free_slots.pop()
        self.starting[worker_id] = slot
        fault = self.cluster.faults.worker_start(self.random)
        base_ns = self.cluster.costs.worker_start_ns
        delay_ns = base_ns + int(self.random.expovariate(1.0) * base_ns / 4)
        if fault == "exit":
            self.kernel.after(delay_ns, lambda _: self._exited(worker_id, 1))
        elif fault != "hang":
            self.kernel.after(delay_ns, self._worker_is_there, worker_id)

    def _worker_is_there(self, worker_id: Address) -> None:
        slot = self.starting.pop(worker_id, None)
        if slot is not None and self.alive:
            worker = SimWorker(self.cluster, worker_id, self, 5000 + slot, slot)
            self.workers[worker_id] = worker
            worker.start()

    def _kill(self, worker_id: Address) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            self.worker_ended(worker, -9)
        else:
            self._exited(worker_id, -9)

    def worker_ended(self, worker: SimWorker, exit_code: int) -> None:
        """A worker process is gone, killed or by itself."""
        if self.workers.pop(worker.address, None) is None:
            return
        worker.crash()
        self.memory.process_gone(worker.address)
        self.starting[worker.address] = worker.slot
        self.cluster.network.detach(worker.address)
        self.cluster.network.detach(worker.address + SERVER_SUFFIX)
        self.cluster.judge.worker_gone(worker.address, worker.actor_id)
        delay_ns = int(self.random.expovariate(1.0) * self.cluster.costs.exit_notice_ns)
        self.kernel.after(delay_ns, lambda _: self._exited(worker.address, exit_code))

    def _exited(self, worker_id: Address, exit_code: int) -> None:
        slot = self.starting.pop(worker_id, None)
        if slot is not None:
            self.free_slots.append(slot)
            self.post(WorkerExited(worker_id, exit_code, self.cells[slot]))

    # --- data links --------------------------------------------------------------------------------

    def _send_chunk(self, chunk: SendChunk) -> None:
        """Read bytes for another node; the encoded value stands for all of them and comes with the first."""
        where = Value(chunk.kind, b"", chunk.offset)
        data = self.memory.read(chunk.object_id, where) if chunk.start == 0 else b""
        message = Chunk(chunk.object_id, chunk.start, data)
        ends = self.address + DATA_SUFFIX, chunk.node_id + DATA_SUFFIX
        network = self.cluster.network
        network.send(*ends, [message], self.busy_until_ns, weight=chunk.size)
        if chunk.kind != FILE:
            self.memory.look_at(SENDING, chunk.object_id, chunk.offset, chunk.size)
        self.kernel.at(network.link(*ends).free_ns, self._sent, (self.life, chunk))

    def _sent(self, sent: tuple[int, SendChunk]) -> None:
        """The bytes of a chunk have left; over a link that is partitioned they leave later."""
        life, chunk = sent
        if life != self.life:
            return
        link = self.cluster.network.links.get((self.address + DATA_SUFFIX, chunk.node_id + DATA_SUFFIX))
        is_partitioned = link is not None and link.is_up and not link.is_open
        if is_partitioned and chunk.node_id in self.node.cluster.peers.alive:
            self.kernel.after(PARTITION_LOOK_NS, self._sent, sent)
            return
        if chunk.kind != FILE:
            self.memory.look_away_from(SENDING, chunk.object_id, chunk.offset, chunk.size)
        self.post(ChunkSent(chunk.node_id, chunk.object_id, chunk.start))

    def _prepare(self, object_id: bytes, room: ReceiveInto) -> None:
        if room.size:
            self.rooms[object_id] = room
        else:
            self.rooms.pop(object_id, None)

    def _receive_chunks(self, source: Address, messages: list[Any]) -> None:
        """Bytes have arrived on the data link."""
        for chunk in messages:
            room = self.rooms.get(chunk.object_id) if self.alive else None
            if room is None:
                continue
            if chunk.start == 0:
                packed = Packed(chunk.data, room.size, ())
                self.memory.write(Created(chunk.object_id, room.kind, room.offset), packed)
            size = min(self.cluster.config.chunk_bytes, room.size - chunk.start)
            self.post(ChunkArrived(chunk.object_id, chunk.start, size))

    # --- disk --------------------------------------------------------------------------------------

    def _spill(self, spill: Spill) -> None:
        self.memory.look_at(CELLS_OF_NODE, spill.object_id, spill.offset, spill.size)
        costs, faults = self.cluster.costs, self.cluster.faults
        self.disk_free_ns = max(self.disk_free_ns, self.kernel.now_ns)
        took_ns = costs.disk_latency_ns + spill.size * S // costs.disk_bytes_per_s
        self.disk_free_ns += took_ns * faults.disk_slowdown()
        self.kernel.at(self.disk_free_ns, self._spilled, spill)

    def _spilled(self, spill: Spill) -> None:
        data = self.memory.extents.get(spill.offset, (b"", b""))[1]
        self.memory.look_away_from(CELLS_OF_NODE, spill.object_id, spill.offset, spill.size)
        if self.cluster.faults.spill_fails(self.random):
            self.post(SpillFailed(spill.object_id, "the disk is full (a fault)"))
        else:
            self.memory.files[spill.object_id] = data
            self.post(Spilled(spill.object_id))


def placement_stream(cluster: Cluster, shard: int) -> Random:
    """What the global scheduler beside a shard draws from, if it draws anything."""
    return cluster.kernel.stream(f"placement/{shard}" if shard else "placement")


class SimShard(MachineHost):
    """A GCS shard with a log that survives it; the first ones also host a global scheduler."""

    def __init__(self, cluster: Cluster, number: int, count: int, compact_messages: int) -> None:
        super().__init__(cluster, b"gcs-%04d" % number)
        self.number = number
        self.count = count
        self.compact_messages = compact_messages
        self.log: list[bytes] = []
        self.logged = 0
        self._recover()
        self.log.append(encode_batch(list(self.shard.snapshot())))
        cluster.network.attach(self.address, self.deliver)

    def _recover(self) -> None:
        self.shard: ControlShard = new_shard(
            cluster_id=b"simulated-clustr", shard=self.number, shard_count=self.count,
            config=self.cluster.config,
        )  # fmt: skip
        self.rows = SimRows(self)
        for record in self.log:
            pump(self.shard, [(command.source, command.message) for command in _decode_log(record)], 0)
            settle(self.shard, self.rows.file)
        self.beside = machines_beside(self.shard, self.address, placement_stream(self.cluster, self.number))
        self.machines = [self.shard, *self.beside]

    def serve(self, name: Address, messages: list[Any]) -> None:
        """The log, before anything else of this turn leaves."""
        if name == ROWS:
            self.rows.serve(messages)
        if name != LOG:
            return
        self.log.append(encode_batch(messages))
        self.logged += len(messages)
        if self.logged >= self.compact_messages:
            self.logged = 0
            self.log = [encode_batch(list(self.shard.snapshot(self.rows.file.all_rows())))]

    def crash(self) -> None:
        """Be gone, with everything but the log."""
        super().crash()
        self.cluster.process_ended(self.address)

    def restart(self) -> None:
        """A new process on the same log; its peers find it a while later."""
        values = {number: table.entries for number, table in self.shard.values.items()}
        before = values, self.rows.file.records_of(self.shard.tasks)
        self._recover()
        self.alive = True
        self.busy_until_ns = self.kernel.now_ns
        self.frozen_until_ns = 0
        self.cluster.judge.recovered(self, before)
        self.post(ShardOpened())
        random = self.cluster.kernel.stream("reconnect")
        for node in self.cluster.nodes:
            delay_ns = random.randint(20 * MS, 500 * MS)
            self.kernel.after(delay_ns, self._reconnect, (self.life, node.address))

    def _reconnect(self, planned: tuple[int, Address]) -> None:
        life, address = planned
        network = self.cluster.network
        if life == self.life and self.alive:
            network.connect(network.link(address, self.address))
            network.connect(network.link(self.address, address))


_decode_log = batch_decoder(Logged)
