"""Who a node is, and the processes that it knows: plain records of ``core/node.py``."""

from __future__ import annotations

from zray.core.machine import Address
from zray.core.worker_pool import TaskClass, Worker
from zray.protocol.messages import PROTOCOL_VERSION, Demand, NodeHello, Welcome
from zray.protocol.strategies import Labels


class NodeIdentity:
    """What a node tells others about itself. All fields are constant for its life."""

    __slots__ = (
        "arena_bytes", "arena_path", "endpoint", "host", "incarnation", "labels", "node_id", "pid",
        "spill_dir",
    )  # fmt: skip

    def __init__(
        self,
        *,
        node_id: bytes,
        arena_bytes: int,
        incarnation: int = 0,
        pid: int = 0,
        host: str = "",
        endpoint: str = "",
        arena_path: str = "",
        spill_dir: str = "",
        labels: Labels = (),
    ) -> None:
        self.node_id = node_id
        self.arena_bytes = arena_bytes
        self.incarnation = incarnation
        self.pid = pid
        self.host = host
        self.endpoint = endpoint
        self.arena_path = arena_path
        self.spill_dir = spill_dir
        self.labels = labels

    @property
    def ip(self) -> str:
        """Where other machines find it; empty if it is for its own machine only."""
        for endpoint in self.endpoint.split(","):
            if endpoint.startswith("tcp://"):
                return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        return ""

    def hello(self, total: Demand) -> NodeHello:
        """What a node with these resources tells every shard of itself."""
        return NodeHello(
            PROTOCOL_VERSION, self.node_id, self.incarnation, self.pid, self.host, self.endpoint, total,
            self.labels,
        )  # fmt: skip

    def welcome(self, inline_bytes_max: int) -> Welcome:
        """The answer to a process that introduces itself."""
        return Welcome(
            PROTOCOL_VERSION,
            self.node_id,
            self.arena_path,
            self.arena_bytes,
            self.spill_dir,
            inline_bytes_max,
        )


class ClientEntry:
    """One driver or worker that introduced itself; found in ``Node.clients``."""

    __slots__ = (
        "absorbed",
        "address",
        "classes",
        "job_id",
        "pid",
        "promised",
        "role",
        "wants_output",
        "worker",
    )

    def __init__(self, address: Address, role: int, pid: int, job_id: bytes, worker: Worker | None) -> None:
        self.address = address
        self.role = role
        self.pid = pid
        self.job_id = job_id
        self.worker = worker
        self.classes: dict[bytes, TaskClass] = {}
        self.promised: dict[bytes, None] = {}
        self.wants_output = False  # shows what its workers print
        self.absorbed = 0  # submissions it was not told about yet
