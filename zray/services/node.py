"""``zray-node``: local scheduler, object store and workers of one machine.

Only wiring: the machine is ``core/node.py``. The order at the start matters: everything that forks (control
store, zygote) comes before the first thread and the first ZeroMQ context.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from zray import ids
from zray.config import Config
from zray.core.machine import DISK, RUNTIME, WORKER_POOL
from zray.core.node import Node, NodeIdentity, exit_workers
from zray.errors import ZrayError
from zray.protocol.codec import decode_for_node
from zray.protocol.messages import (
    DRIVER,
    ClientGone,
    DeleteFile,
    Hello,
    KillWorker,
    Refused,
    Spill,
    Spilled,
    SpillFailed,
    StartWorker,
    WorkerExited,
)
from zray.runtime import session_dir
from zray.runtime.loop import Loop
from zray.runtime.node_options import NodeOptions
from zray.runtime.processes import (
    Exited,
    WorkerProcesses,
    ZygoteGone,
    announce,
    end_process,
    fork_zygote,
    take_ready_fd,
    watch_pid,
)
from zray.runtime.transport import Transport
from zray.runtime.worker import CELL_BYTES, WorkerProcess
from zray.serialize.values import preload
from zray.services import gcs
from zray.store.arena import Arena, ArenaView
from zray.store.spill import SPILL, DiskOutcome, SpillDirectory, SpillWorker

log = logging.getLogger("zray.node")

SLOT_VARIABLE = "ZRAY_WORKER_SLOT"
ORPHAN_DESCRIPTOR = "ZRAY_PARENT_OUTPUT"


class NodeProcess:
    """The parts of one running node and what connects them."""

    def __init__(self, options: NodeOptions, session: session_dir.Session, config: Config) -> None:
        self.options = options
        self.session = session
        self.config = config
        self.node_id = ids.random_id()
        self.endpoint = f"ipc://{session.socket_path('node')}"
        self.cells = mmap.mmap(-1, config.workers_max * CELL_BYTES)
        self.free_slots = list(range(config.workers_max - 1, -1, -1))
        self.slots: dict[bytes, int] = {}
        self.shard_pids: list[int] = []
        self.shards = self._start_shards() if not options.gcs else options.gcs
        self.arena = Arena(options.arena_bytes())
        preload()
        self.workers: WorkerProcesses = fork_zygote(self._worker_main, session)
        self.drivers: dict[int, bytes] = {}

    # --- before the first thread -------------------------------------------------------------------

    def _start_shards(self) -> tuple[str, ...]:
        """Fork the control store of a cluster that begins with this node."""
        cluster_id = ids.random_id()
        count = self.options.gcs_shards
        endpoints = []
        for shard in range(count):
            endpoint = f"ipc://{self.session.socket_path(f'gcs{shard}')}"
            data_dir = os.path.join(self.session.path, f"gcs{shard}.log")
            settings = gcs.GcsOptions(
                listen=endpoint,
                shard=shard,
                shard_count=count,
                data_dir=data_dir,
                cluster_id=cluster_id,
                parent_pid=os.getpid(),
            )
            pid = os.fork()
            if pid == 0:
                _be_shard(settings)
            self.shard_pids.append(pid)
            self.session.add_process(pid)
            endpoints.append(endpoint)
        return tuple(endpoints)

    def _worker_main(self, worker_id: bytes, session_path: str) -> int:
        """Runs in a freshly forked worker."""
        slot = int(os.environ.pop(SLOT_VARIABLE))
        number = int.from_bytes(worker_id[-4:], "big")
        cell = memoryview(self.cells)[slot * CELL_BYTES : (slot + 1) * CELL_BYTES]
        worker = WorkerProcess(
            worker_id,
            b"node",
            node_endpoint=self.endpoint,
            call_endpoint=f"ipc://{session_path}/w{number}",
            cell=cell,
            config=self.config,
        )
        return worker.run()

    # --- running ---------------------------------------------------------------------------------

    def serve(self, ready_fd: int | None) -> int:
        """Run until a signal, or the end of the process that started it."""
        config, options = self.config, self.options
        identity = NodeIdentity(
            node_id=self.node_id,
            arena_bytes=options.arena_bytes(),
            incarnation=time.time_ns(),
            pid=os.getpid(),
            host=socket.gethostname(),
            endpoint=self.endpoint,
            arena_path=self.arena.path,
            spill_dir=self.session.spill_dir,
        )
        addresses = tuple(gcs.shard_address(shard) for shard in range(len(self.shards)))
        node = Node(identity, total=options.total(), shards=addresses, config=config)
        transport = Transport(self.node_id, decode_for_node, config)
        transport.bind(self.endpoint)
        for address, endpoint in zip(addresses, self.shards, strict=True):
            transport.connect(address, endpoint)
        self.node = node
        self.view = ArenaView(self.arena.path, options.arena_bytes())
        self.spill_directory = SpillDirectory(self.session.spill_dir)
        self.loop = loop = Loop(
            [node], transport, {WORKER_POOL: self._manage_workers, DISK: self._use_disk, RUNTIME: self._note}
        )
        self.spiller = SpillWorker(self.spill_directory, self._disk_done)
        loop.watch_fd(self.workers.fileno(), self._workers_changed)
        if options.parent_pid is not None:
            loop.watch_fd(watch_pid(options.parent_pid), loop.stop)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.stop())
        node.introduce()
        cpus = dict(options.total()).get("CPU", 0) // 10_000
        for _ in range(max(1, cpus)):
            node.pool.start(time.monotonic_ns())
        self.session.set_address(self.endpoint)
        ready = {"address": self.endpoint, "node_id": self.node_id.hex(), "session": self.session.path}
        announce(ready_fd, ready)
        log.info("node %s listens on %s (control store: %s)", self.node_id.hex(), self.endpoint, self.shards)
        try:
            loop.run()
        finally:
            self._close(transport)
        return 0

    def _close(self, transport: Transport) -> None:
        log.info("ending")
        exit_workers(self.node, "the node ends")
        self.spiller.close()
        transport.close()
        self.workers.close(self.config.shutdown_timeout_ns / 1e9)
        for pid in self.shard_pids:
            end_process(pid, self.config.shutdown_timeout_ns / 1e9)
        self.view.close()
        self.arena.close()
        session_dir.remove(self.session.path)

    # --- local services of the machine -------------------------------------------------------------

    def _manage_workers(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, StartWorker):
                slot = self.free_slots.pop()
                self.slots[message.worker_id] = slot
                stdout, stderr = self._worker_output()
                self.workers.start(message.worker_id, {SLOT_VARIABLE: str(slot)}, stdout, stderr)
            elif isinstance(message, KillWorker):
                self.workers.kill(message.worker_id)

    def _worker_output(self) -> tuple[str | None, str | None]:
        """Where prints of workers go: to the driver's own output, where it started this node."""
        parent = self.options.parent_pid
        if parent is None:
            return None, None
        paths = [f"/proc/{parent}/fd/1", f"/proc/{parent}/fd/2"]
        return tuple(path if os.access(path, os.W_OK) else None for path in paths)  # type: ignore[return-value]

    def _workers_changed(self) -> None:
        for event in self.workers.receive():
            if isinstance(event, Exited):
                slot = self.slots.pop(event.worker_id)
                running = bytes(self.cells[slot * CELL_BYTES : (slot + 1) * CELL_BYTES])
                self.free_slots.append(slot)
                self.loop.post(RUNTIME, WorkerExited(event.worker_id, event.exit_code, running))
            elif isinstance(event, ZygoteGone):
                log.error("the process that starts workers is gone; the node ends")
                self.loop.unwatch_fd(self.workers.fileno())
                self.loop.stop()

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
            if isinstance(message, Hello) and message.role == DRIVER:
                self._watch_driver(message)
            elif isinstance(message, Refused):
                log.error("the control store refuses this node: %s: %s", message.reason, message.detail)

    def _watch_driver(self, hello: Hello) -> None:
        fd = watch_pid(hello.pid)
        address = next(c.address for c in self.node.clients.values() if c.job_id == hello.job_id)

        def gone() -> None:
            self.loop.unwatch_fd(fd)
            os.close(fd)
            self.loop.post(RUNTIME, ClientGone(address))

        self.loop.watch_fd(fd, gone)


def _nothing() -> None:
    pass


def _be_shard(settings: gcs.GcsOptions) -> None:
    code = 1
    try:
        code = gcs.serve(settings)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def run(options: NodeOptions, ready_fd: int | None) -> int:
    """Be a node until it ends; the process's exit code."""
    logging.basicConfig(
        level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    session_dir.sweep()
    session = session_dir.create("node")
    try:
        process = NodeProcess(options, session, Config.from_environment())
    except (ZrayError, OSError, ValueError) as error:
        session_dir.remove(session.path)
        announce(ready_fd, {"error": f"the node cannot start: {error}"})
        log.error("the node cannot start: %s", error)
        return 1
    return process.serve(ready_fd)


def _parse(argv: Sequence[str]) -> NodeOptions:
    if len(argv) == 2 and argv[0] == "--options":
        return msgspec.json.decode(argv[1], type=NodeOptions)
    parser = argparse.ArgumentParser(prog="zray-node", description="One node of a zray cluster.")
    parser.add_argument("--num-cpus", type=float, help="default: the CPUs this process may use")
    parser.add_argument("--num-gpus", type=float, default=0)
    parser.add_argument("--resources", type=_resources, default={}, help='JSON, such as \'{"disk": 2}\'')
    parser.add_argument("--object-store-memory", type=int, metavar="BYTES", help="default: 30%% of memory")
    parser.add_argument("--gcs", action="append", default=[], metavar="ENDPOINT",
                        help="a running shard, by number; repeat it. Default: start --gcs-shards here")  # fmt: skip
    parser.add_argument("--gcs-shards", type=int, default=1)
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    given = vars(parser.parse_args(argv))
    return msgspec.convert({**given, "gcs": tuple(given["gcs"])}, NodeOptions)


def _resources(text: str) -> dict[str, float]:
    try:
        return msgspec.json.decode(text, type=dict[str, float])
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object of amounts by name: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-node``."""
    ready_fd = take_ready_fd()
    return run(_parse(sys.argv[1:] if argv is None else argv), ready_fd)


if __name__ == "__main__":
    sys.exit(main())
