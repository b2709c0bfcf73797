"""``zray-node``: local scheduler, object store and workers of one machine.

Only wiring: the machine is ``core/node.py``. The order at the start matters: everything that forks (control
store, zygote) comes before the first thread and the first ZeroMQ context, and before the import of what only
the node needs, so that its children import what they need at the same time, on another core.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from zray import ids
from zray.config import Config
from zray.core.machine import DISK, RUNTIME, TRANSFER, WORKER_POOL
from zray.errors import ClusterUnavailableError, ZrayError
from zray.protocol.cluster import BuriedAlive, Knock, LinkLost, LinkPeer, ReadLog, UnlinkPeer
from zray.protocol.codec import decode_for_node
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
    RESOURCE_UNIT,
    ChainEpoch,
    Refused,
    Warn,
)
from zray.runtime import log_files, session_dir
from zray.runtime.endpoints import addresses_of_shards, beside, knock, public_part, why
from zray.runtime.heap import keep_freed_memory
from zray.runtime.knocking import answer_in_thread
from zray.runtime.node_options import NodeOptions, memory_bytes, usable_cpus
from zray.runtime.processes import (
    Exited,
    WorkerProcesses,
    ZygoteGone,
    fork_zygote,
    watch_pid,
)
from zray.runtime.spawning import announce, take_ready_fd
from zray.runtime.stream_links import StreamLinks
from zray.runtime.zygote import open_output
from zray.services.shards import LocalShards
from zray.store.arena import Arena, ArenaView
from zray.store.spill import SPILL, DiskOutcome, SpillDirectory, SpillWorker

if TYPE_CHECKING:
    from zray.core.identity import NodeIdentity
    from zray.runtime.data_link import DataLink
    from zray.runtime.loop import Service
    from zray.runtime.trace import Recorder
    from zray.runtime.transport import Transport

log = logging.getLogger("zray.node")

CELL_BYTES = ids.ID_BYTES
"""Of a worker's progress cell: the id of the task that it runs."""
SLOT_VARIABLE = "ZRAY_WORKER_SLOT"
FAILED_STARTS_MAX = 16
START_PAUSE_S = 0.005
START_PAUSE_S_MAX = 1.0
"""After a worker that ended before it could work: the first pause, doubled each time, and the longest."""
RETRY_INTERVAL_S = 0.05
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
KNOCK_TIMEOUT_S = 1.0
FATAL_REFUSALS = ("version", "shard", "stale")
"""Reasons of a control store for which a node is of no use to its cluster."""


class NodeProcess:
    """The parts of one running node and what connects them.

    Args:
        stack: closes, at the end, what is opened here.
    Raises:
        OutOfDiskError, OSError: if the object store or the session cannot be made.
    """

    def __init__(
        self,
        options: NodeOptions,
        session: session_dir.Session,
        config: Config,
        stack: contextlib.ExitStack,
    ) -> None:
        self.options = options
        self.session = session
        self.config = config
        self.node_id = ids.random_id()
        self.endpoint = f"ipc://{session.socket_path(session_dir.NODE_SOCKET)}"
        self.peer_endpoint = options.listen or public_part(self.endpoint)
        self.cells = mmap.mmap(-1, config.workers_max * CELL_BYTES)
        self.free_slots = list(range(config.workers_max - 1, -1, -1))
        self.slots: dict[bytes, int] = {}
        self.exit_code = 0
        self.begins_anew = False
        self.told_to_end = False
        self.failed_starts = 0  # workers in a row that ended before they introduced themselves
        self.newest_failed = b""  # the newest of them; ids of workers count up
        self.drivers: dict[bytes, int] = {}  # address -> descriptor that tells the end of the process
        arena_bytes, there_are = options.arena_bytes(), memory_bytes()
        if arena_bytes > there_are:
            log.warning(
                "the object store may take %d bytes and this machine has %d: once they are used up the "
                "system kills processes; a smaller object_store_memory spills to disk before",
                arena_bytes,
                there_are,
            )
        self.arena = Arena(arena_bytes)
        stack.callback(self.arena.close)
        gc.freeze()  # all that are forked share what is here now, until a collection looks through it
        self.local_shards: LocalShards | None = None
        if options.gcs:
            self.shards = options.gcs
        else:
            self.local_shards = LocalShards(
                session, options.gcs_shards, options.gcs_replicas, options.log_level, options.trace,
                options.gcs_listen, options.global_schedulers, options.gcs_memory_max,
            )  # fmt: skip
            self.shards = self.local_shards.endpoints
            stack.callback(self.local_shards.close, config.shutdown_timeout_ns / 1e9)
            self.local_shards.fork()
        self.workers: WorkerProcesses = fork_zygote(self._worker_main, session, _prepare_workers)
        stack.callback(self.workers.close, config.shutdown_timeout_ns / 1e9)
        self._open(stack)

    # --- before the first thread -------------------------------------------------------------------

    def _worker_main(self, worker_id: bytes, session_path: str) -> int:
        """Runs in a freshly forked worker."""
        from zray.runtime import visible_gpus
        from zray.runtime.worker import WorkerProcess

        if self.options.num_gpus:
            visible_gpus.hide()
        slot = int(os.environ.pop(SLOT_VARIABLE))
        number = int.from_bytes(worker_id[-4:], "big")
        cell = memoryview(self.cells)[slot * CELL_BYTES : (slot + 1) * CELL_BYTES]
        worker = WorkerProcess(
            worker_id,
            b"node",
            node_endpoint=self.endpoint,
            call_endpoint=f"ipc://{session_path}/w{number}",
            session_path=session_path,
            cell=cell,
            config=self.config,
        )
        return worker.run()

    # --- running ---------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Make the machine and what drives it. From here on there are threads."""
        from zray.core.node import Node
        from zray.core.placement import configured
        from zray.runtime.loop import Loop
        from zray.runtime.transport import Transport

        self.config = configured(self.config)
        options = self.options
        addresses = addresses_of_shards(self.shards)
        self.heads = tuple(next(iter(chain)) for chain in addresses)
        self.replicas = tuple(map(tuple, addresses)) if any(len(chain) > 1 for chain in addresses) else ()
        self.node = Node(
            self._identity(),
            total=options.total(),
            shards=self.heads,
            config=self.config,
            replicas=self.replicas,
        )
        transport = Transport(self.node_id, decode_for_node, self.config)
        stack.callback(transport.close)
        transport.bind(self.peer_endpoint)
        self.transport = transport
        self.local = StreamLinks(self.node_id, decode_for_node, self.config, self._is_elsewhere)
        stack.callback(self.local.close)
        self.local.bind(self.endpoint)
        connections_fd = transport.watch_connections()
        for chain in addresses:
            for address, endpoint in chain.items():
                transport.connect(address, endpoint, may_drop=True)
        huge_pages = self.config.huge_pages > 0
        self.view = ArenaView(self.arena.path, options.arena_bytes(), huge_pages=huge_pages)
        stack.callback(self.view.close)
        self.data_link = self._open_data_link(transport, stack)
        services: dict[bytes, Service] = {
            WORKER_POOL: self._manage_workers, DISK: self._use_disk, TRANSFER: self.data_link.serve,
            RUNTIME: self._note,
        }  # fmt: skip
        self.loop = Loop([self.node], transport, services, self._recorder(stack), self.local)
        stack.callback(self.loop.close)
        self.loop.watch_fd(self.data_link.transport.fileno(), self.data_link.drain)
        self.loop.watch_fd(connections_fd, self._connections_lost)
        self.spiller = SpillWorker(SpillDirectory(self.session.spill_dir), self._disk_done)
        stack.callback(self.spiller.close)

    def _recorder(self, stack: contextlib.ExitStack) -> Recorder | None:
        """What writes the trace, if one was asked for."""
        if self.options.trace is None:
            return None
        from zray.protocol.trace import NodeStart  # most nodes need neither
        from zray.runtime.trace import Recorder

        identity = self.node.identity
        start = NodeStart(
            identity.node_id, identity.incarnation, identity.arena_bytes, identity.pid, identity.host,
            identity.endpoint, identity.arena_path, identity.spill_dir, self.options.total(),
            self.heads, self.replicas, identity.labels,
        )  # fmt: skip
        recorder = Recorder(self.options.trace, [start], self.config)
        stack.callback(recorder.close)
        return recorder

    def _open_data_link(self, transport: Transport, stack: contextlib.ExitStack) -> DataLink:
        from zray.runtime.chunk_transport import ChunkTransport, decode_chunks
        from zray.runtime.data_link import DATA_SUFFIX, DataLink
        from zray.runtime.raw_links import RawLinks
        from zray.runtime.rooms import Rooms

        keep_freed_memory()  # frames of chunks come and go
        data = ChunkTransport(self.node_id + DATA_SUFFIX, decode_chunks, self.config, transport.context)
        stack.callback(data.close)
        data.bind(beside(self.peer_endpoint))
        files = SpillDirectory(self.session.spill_dir)
        rooms, raw_links = Rooms(self.view, files), None
        if not (self.config.key_file and self.config.bulk_encryption):
            raw_links = RawLinks(
                self.peer_endpoint, self.view, files, rooms,
                lambda told: self.loop.post_all_threadsafe(RUNTIME, told),
            )  # fmt: skip
        link = DataLink(
            self.node_id, data, self.view, files, rooms, raw_links, lambda told: self.loop.post(RUNTIME, told)
        )
        stack.callback(link.close)
        return link

    def serve(self, ready_fd: int | None, early_signals: EarlySignals) -> int:
        """Run until a signal, or the end of the process that started it; the exit code."""
        for number in ENDING_SIGNALS:
            signal.signal(number, self._end_on_signal)
        if early_signals.came:
            return self.exit_code
        self._watch_processes()
        self._boot()
        self.session.set_address(self.endpoint)
        announce(
            ready_fd,
            {"address": self.endpoint, "node_id": self.node_id.hex(), "session": self.session.path},
        )
        log.info(
            "node %s listens on %s (control store: %s)",
            self.node_id.hex(), self.endpoint, ", ".join(self.shards),
        )  # fmt: skip
        self.loop.run()
        log.info("ending")
        return self.exit_code

    def _end_on_signal(self, number: int, frame: object) -> None:
        self.told_to_end = True
        self.loop.stop()

    def _identity(self) -> NodeIdentity:
        from zray.core.identity import NodeIdentity

        return NodeIdentity(
            node_id=self.node_id,
            arena_bytes=self.options.arena_bytes(),
            incarnation=time.time_ns(),
            pid=os.getpid(),
            host=socket.gethostname(),
            endpoint=",".join([*([self.options.listen] if self.options.listen else []), self.endpoint]),
            arena_path=self.arena.path,
            spill_dir=self.session.spill_dir,
            labels=self.options.wire_labels(),
        )

    def _is_elsewhere(self, address: bytes) -> bool:
        """Whether a client has the name of another node, or of a part of the control store."""
        return self.transport.knows(address) or address in self.node.cluster.peers.alive

    def _watch_processes(self) -> None:
        """Hear of the end of workers, of shards and of the process that started this one."""
        loop, parent_pid = self.loop, self.options.parent_pid
        loop.watch_fd(self.workers.fileno(), self._workers_changed)
        if self.local_shards is not None:
            self.local_shards.watch(loop)
        if parent_pid is not None:
            try:
                loop.watch_fd(watch_pid(parent_pid), loop.stop)
            except ProcessLookupError:
                loop.stop()

    def _boot(self) -> None:
        """Introduce the node, and start as many workers as can run at once; tasks ask for more."""
        cpus = dict(self.options.total()).get("CPU", 0) // RESOURCE_UNIT
        workers = max(1, min(cpus, usable_cpus(), self.config.workers_max))
        now_ns = time.monotonic_ns()
        self.node.introduce()
        for _ in range(workers):
            self.node.pool.start(now_ns)
        if self.loop.recorder is not None:
            self.loop.recorder.note_boot(now_ns, workers)

    # --- local services of the machine -------------------------------------------------------------

    def _manage_workers(self, messages: list[Any]) -> None:
        try:
            for message in messages:
                if isinstance(message, StartWorker):
                    self._start_worker(message.worker_id)
                elif isinstance(message, KillWorker):
                    self.workers.kill(message.worker_id)
        except ClusterUnavailableError as error:
            self._fail("the node cannot start workers any more: %s", error)

    def _start_worker(self, worker_id: bytes) -> None:
        slot = self.free_slots.pop()
        self.slots[worker_id] = slot
        output = os.path.join(self.session.logs_dir, f"worker-{int.from_bytes(worker_id[-4:], 'big')}")
        self.workers.start(worker_id, {SLOT_VARIABLE: str(slot)}, f"{output}.out", f"{output}.err")

    def _fail(self, text: str, *values: object) -> None:
        """Nothing good can come of this node any more: end it."""
        log.error(text, *values)
        self.exit_code = 1
        self.loop.stop()

    def _workers_changed(self) -> None:
        for event in self.workers.receive():
            if isinstance(event, Exited):
                slot = self.slots.pop(event.worker_id)
                running = bytes(self.cells[slot * CELL_BYTES : (slot + 1) * CELL_BYTES])
                self.free_slots.append(slot)
                self._worker_exited(WorkerExited(event.worker_id, event.exit_code, running))
            elif isinstance(event, ZygoteGone):
                self.loop.unwatch_fd(self.workers.fileno())
                self._fail("the process that starts workers is gone; the node ends")

    def _worker_exited(self, exited: WorkerExited) -> None:
        """Tell the machine, which starts another one: later and later if none of them gets to work."""
        if exited.worker_id in self.node.clients:
            self.loop.post(RUNTIME, exited)
            return
        worked = (worker_id for worker_id in self.node.pool.workers if worker_id in self.node.clients)
        if any(worker_id > self.newest_failed for worker_id in worked):
            self.failed_starts = 0
        self.newest_failed = max(self.newest_failed, exited.worker_id)
        self.failed_starts += 1
        if self.failed_starts >= FAILED_STARTS_MAX:
            self._fail("workers end before they can work (exit code %d); the node ends", exited.exit_code)
            return
        pause_s = min(START_PAUSE_S * 2**self.failed_starts, START_PAUSE_S_MAX)
        timer = threading.Timer(pause_s, self.loop.post_threadsafe, (RUNTIME, exited))
        timer.daemon = True
        timer.start()

    def _use_disk(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Spill):
                data = self.view.read(message.offset, message.size, _nothing)
                if not self.spiller.spill(message.object_id, data):
                    self.loop.post(RUNTIME, SpillFailed(message.object_id, "too many spills are waiting"))
            elif isinstance(message, DeleteFile):
                self.spiller.delete(message.object_id)

    def _disk_done(self, outcome: DiskOutcome) -> None:
        """From the disk's thread."""
        if outcome.kind != SPILL:
            if outcome.error is not None:
                log.warning("the file of %s stays: %s", outcome.object_id.hex(), outcome.error)
        elif outcome.error is None:
            self.loop.post_threadsafe(RUNTIME, Spilled(outcome.object_id))
        else:
            log.warning("cannot spill %s: %s", outcome.object_id.hex(), outcome.error)
            self.loop.post_threadsafe(RUNTIME, SpillFailed(outcome.object_id, str(outcome.error)))

    def _note(self, messages: list[Any]) -> None:
        """What the operator, or this process, must know."""
        for message in messages:
            if isinstance(message, ClientJoined):
                self._watch_driver(message)
            elif isinstance(message, ClientGone):
                self._forget_driver(message.client)
            elif isinstance(message, Warn):
                log.warning("%s", message.text)
            elif isinstance(message, Knock):
                answer_in_thread(message, self.loop.post_threadsafe)
            elif isinstance(message, ReadLog):
                log_files.answer_in_thread(self.session.logs_dir, message, self.loop.post_threadsafe)
            elif isinstance(message, LinkPeer):
                self._link_peer(message)
            elif isinstance(message, UnlinkPeer):
                self.transport.disconnect(message.node_id)
                self.data_link.unlink(message.node_id)
            elif isinstance(message, BuriedAlive):
                self._be_buried()
            elif isinstance(message, Refused):
                self._be_refused(message)
            elif isinstance(message, ChainEpoch):
                for member in message.members:
                    self.transport.connect(member.address, member.endpoint, may_drop=True)

    def _connections_lost(self) -> None:
        """Processes that this one had connected to are gone, or their links broke for a moment."""
        for address in self.transport.lost_connections():
            self.loop.post(RUNTIME, LinkLost(address))

    def _be_buried(self) -> None:
        """Nothing of this life counts any more: begin anew, unless the control store goes with this node."""
        if self.local_shards is not None:
            self._fail("the cluster declared this node dead after a silence; it ends, start it again")
            return
        log.warning("the cluster declared this node dead after a silence; it begins anew")
        gone = Refused("unknown-peer", "the cluster declared its node dead after a silence; join again")
        for driver in self.drivers:
            self.local.send(driver, [gone])
        self.begins_anew = True
        self.loop.stop()

    def _link_peer(self, peer: LinkPeer) -> None:
        """Reach another node. One of two connects, and both can send; the other waits to be found."""
        log.info("node %s is at %s", peer.node_id.hex(), peer.endpoint)
        endpoint = public_part(peer.endpoint)
        try:
            if self.node_id < peer.node_id:
                self.transport.connect(peer.node_id, endpoint)
            self.data_link.link(peer.node_id, endpoint)
        except OSError as error:
            log.error("node %s cannot be reached at %r: %s", peer.node_id.hex(), peer.endpoint, error)

    def _be_refused(self, message: Refused) -> None:
        if message.reason in FATAL_REFUSALS:
            self._fail("the control store refuses this node, which ends: %s", message.detail)
        else:
            log.error("the control store refuses a message: %s: %s", message.reason, message.detail)

    def _watch_driver(self, driver: ClientJoined) -> None:
        address = driver.client
        try:
            fd = watch_pid(driver.pid)
        except (ProcessLookupError, OverflowError):  # gone already, or never there
            self.loop.post(RUNTIME, ClientGone(address))
            return
        self.drivers[address] = fd
        self.loop.watch_fd(fd, lambda: self.loop.post(RUNTIME, ClientGone(address)))

    def _forget_driver(self, address: bytes) -> None:
        fd = self.drivers.pop(address, None)
        if fd is not None:
            self.loop.unwatch_fd(fd)
            os.close(fd)


def _nothing() -> None:
    pass


def _prepare_workers() -> None:
    """Import, in the zygote, what workers need; the node itself does not, and goes on meanwhile."""
    import zray.runtime.worker  # noqa: F401
    from zray.serialize.values import preload

    preload()
    public = importlib.import_module("zray")  # by name: it is user code that needs the layers above
    for name in public.__all__:
        if name != "simulate":  # no task needs it, and it brings the whole simulator
            getattr(public, name)


class EarlySignals:
    """SIGINT and SIGTERM until there is a loop that they can stop: remembered.

    They raise nothing, because an exception is lost if it happens to be raised inside a finalizer.
    """

    def __init__(self) -> None:
        self.came = False
        for number in ENDING_SIGNALS:
            signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)  # of a node that begins anew

    def _remember(self, number: int, frame: object) -> None:
        self.came = True


def run(options: NodeOptions, ready_fd: int | None) -> int:
    """Be a node until it ends; the process's exit code."""
    early_signals = EarlySignals()
    with contextlib.ExitStack() as stack:
        try:
            node = _start(options, stack, early_signals)
        except StartInterruptedError:
            log.info("interrupted before it listened")
            return 0
        except (ZrayError, OSError, ValueError, OverflowError) as error:
            if ready_fd is None:
                log.error("the node cannot start: %s", error)
            announce(ready_fd, {"error": str(error)})
            return 1
        exit_code = node.serve(ready_fd, early_signals)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)  # what comes from here on is for the next life
    if node.begins_anew and not node.told_to_end:
        # The same process, so that whoever started it still has it; nothing else of the former life is left.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return exit_code


class StartInterruptedError(Exception):
    """A signal came while the node waited for its control store."""


def _start(options: NodeOptions, stack: contextlib.ExitStack, early_signals: EarlySignals) -> NodeProcess:
    session_dir.sweep()
    session = session_dir.create("node", options.cluster)
    stack.callback(session_dir.remove, session.path)
    if options.detached:
        log_path = os.path.join(session.logs_dir, "node.log")
        open_output(log_path, log_path)
    _log_to_stderr(options.log_level)
    config = Config.from_environment()
    for chain in options.gcs:
        _await_shard(chain, config.init_timeout_ns / 1e9, early_signals)
    return NodeProcess(options, session, config, stack)


def _await_shard(endpoints: str, timeout_s: float, early_signals: EarlySignals) -> None:
    """Wait until one of the replicas of a shard, with commas between them, listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        for endpoint in endpoints.split(","):
            if early_signals.came:
                raise StartInterruptedError
            try:
                knock(endpoint, KNOCK_TIMEOUT_S)
                return
            except OSError as error:
                reason = why(error)
        if time.monotonic() > deadline:
            what = f"no control store listens at {endpoints}: {reason}; is its head up, the address right?"
            raise ClusterUnavailableError(what, timeout_s) from None
        time.sleep(RETRY_INTERVAL_S)


def _log_to_stderr(level: str) -> None:
    """Of zray alone: workers are forked from here, and in them the root logger is the user's to configure."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("zray")
    own.setLevel(level)
    own.addHandler(handler)
    own.propagate = False


def _parse(argv: Sequence[str]) -> NodeOptions:
    if len(argv) == 2 and argv[0] == "--options":
        return msgspec.json.decode(argv[1], type=NodeOptions)
    import argparse  # 8 ms that a node started by a program need not pay

    from zray.services.node_arguments import add_gcs_argument, add_node_arguments, options_of

    parser = argparse.ArgumentParser(prog="zray-node", description="One node of a zray cluster.")
    add_node_arguments(parser)
    add_gcs_argument(parser, "--gcs")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    parser.add_argument("--log-level", default="INFO", type=str.upper, choices=levels, help="default: INFO")
    given = parser.parse_args(argv)
    return options_of(parser, given, log_level=given.log_level)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-node``."""
    ready_fd = take_ready_fd()
    return run(_parse(sys.argv[1:] if argv is None else argv), ready_fd)


if __name__ == "__main__":
    sys.exit(main())
