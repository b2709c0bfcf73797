"""Traces for tests: machines of a simulated cluster, recorded by the real recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim import hosts
from sim.run import PASSED, run_scenario
from sim.scenario import load
from zray.config import Config
from zray.core.machine import pump
from zray.core.node import Node
from zray.protocol.trace import NodeStart, Pumped, Record, TraceReader, frame
from zray.runtime.trace import Recorder

SHARDS = (b"gcs-0000",)


def record_scenario(path: Path, name: str, patch: pytest.MonkeyPatch, *, seed: int = 1) -> None:
    """Run a shipped scenario with one node, and record its node."""
    recorders: dict[int, Recorder] = {}

    def recorded_pump(machine: Any, batch: list[Any], now_ns: int) -> None:
        pump(machine, batch, now_ns)
        recorder = recorders.get(id(machine))
        if recorder is not None:
            recorder.note_pump(0, now_ns, list(batch), machine.out)
            recorder.end_turn()

    original = hosts.SimNode.boot

    def boot(self: hosts.SimNode) -> None:
        identity = self.node.identity
        start = NodeStart(
            identity.node_id, identity.incarnation, identity.arena_bytes, identity.pid, identity.host,
            identity.endpoint, identity.arena_path, identity.spill_dir,
            self.node.pool.resources.as_demand(), self.node.shards, (), identity.labels,
        )  # fmt: skip
        recorder = recorders[id(self.node)] = Recorder(str(path), [start], self.cluster.config)
        recorder.note_boot(self.kernel.now_ns, max(1, min(self.cpus, self.cluster.config.workers_max)))
        original(self)

    with patch.context() as patched:
        patched.setattr(hosts, "pump", recorded_pump)
        patched.setattr(hosts.SimNode, "boot", boot)
        verdict, _ = run_scenario(load(name), seed)
    assert verdict.kind == PASSED, verdict.detail
    assert len(recorders) == 1
    for recorder in recorders.values():
        recorder.close()


def records_of(path: Path) -> list[Record]:
    """All records of a trace."""
    return list(TraceReader(path.read_bytes()))


def rewrite(path: Path, records: list[Any]) -> None:
    """A trace of these records, with checksums that are right."""
    from zray.protocol.trace import MAGIC

    path.write_bytes(MAGIC + b"".join(map(frame, records)))


def pumps_of(path: Path) -> list[Pumped]:
    """The pumps of a trace."""
    return [record for record in records_of(path) if isinstance(record, Pumped)]


def lone_node() -> tuple[Node, NodeStart]:
    """A node that has done nothing, and how it is made again."""
    from zray.core.identity import NodeIdentity

    total = (("CPU", 20_000),)
    start = NodeStart(b"n" * 16, 1, 1 << 20, 7, "here", "ipc://x", "", "", total, SHARDS)
    identity = NodeIdentity(
        node_id=start.node_id,
        arena_bytes=start.arena_bytes,
        incarnation=1,
        pid=7,
        host="here",
        endpoint="ipc://x",
    )
    return Node(identity, total=total, shards=SHARDS, config=Config()), start
