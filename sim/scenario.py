"""Scenarios: topology, network, workload, faults and phases, in TOML, refused with file and key if wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

FOLDER = Path(__file__).parent / "scenarios"

Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
Some = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Rate = Annotated[float, msgspec.Meta(ge=0.0, le=10_000.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1_000_000.0)]

WorkloadKind = Literal[
    "empty", "chain", "tree", "fan_out", "random_dag", "shuffle", "counter", "ordered_log", "heavy_tail",
    "memory_pressure", "references", "mixed", "lone",
    "choosy", "actors", "groups", "copies", "detached", "allreduce", "parameter_server", "streams",
    "leavers",
]  # fmt: skip


Policy = Literal[
    "paper", "centralised", "threshold_zero", "locality_blind", "random", "power_of_two", "spread",
]  # fmt: skip


class ScenarioError(ValueError):
    """A scenario that cannot be run: which file, which key, what is wrong."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ClusterPart(_Part, frozen=True):
    """What there is. Drivers are spread over the nodes.

    ``backlog_per_slot`` -1 forwards every task; ``offload_patience_ms`` -1 lets queued ones stay.
    """

    nodes: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    shards: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    global_schedulers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Beside the first shards; more than there are of them are as many."""
    drivers: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    cpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    node_cpus: tuple[Annotated[int, msgspec.Meta(ge=1, le=1024)], ...] = ()
    """Of the first nodes, one by one; the others have ``cpus``."""
    arena_kib: Count = 65_536
    backlog_per_slot: Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)] = 2
    compact_messages: Count = 500
    heartbeat_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    offload_patience_ms: Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)] = 100
    gcs_memory_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    """For the task rows of each shard; 0: no limit."""
    resources: dict[str, Annotated[float, msgspec.Meta(gt=0.0)]] = {}
    """Of every node, besides its CPUs."""


class NetworkPart(_Part, frozen=True):
    """How good the links are."""

    latency_us: Some = 30
    jitter_us: Some = 20
    bandwidth_mib_s: Count = 2_000


class WorkloadPart(_Part, frozen=True):
    """What every driver runs; see ``workload.py`` for the meaning of each kind."""

    kind: WorkloadKind = "mixed"
    tasks: Count = 100
    depth: Annotated[int, msgspec.Meta(ge=1, le=200)] = 4
    fan_out: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    task_us: Some = 500
    object_kib: Count = 256
    actors: Annotated[int, msgspec.Meta(ge=1, le=200)] = 2
    retries: Annotated[int, msgspec.Meta(ge=-1, le=1000)] = -1


class FaultsPart(_Part, frozen=True):
    """Mean strikes per virtual second of the faulty phase, and shares of single events."""

    worker_crash: Rate = 0.0
    worker_crash_creating: Rate = 0.0
    worker_freeze: Rate = 0.0
    driver_crash: Rate = 0.0
    node_crash: Rate = 0.0
    keeper_crash: Rate = 0.0
    node_freeze: Rate = 0.0
    link_loss: Rate = 0.0
    node_silence: Rate = 0.0
    peer_partition: Rate = 0.0
    shard_crash: Rate = 0.0
    scheduler_crash: Rate = 0.0
    scheduler_freeze: Rate = 0.0
    replica_crash: Rate = 0.0
    twin_crash: Rate = 0.0
    replica_partition: Rate = 0.0
    master_crash: Rate = 0.0
    partition: Rate = 0.0
    clog: Rate = 0.0
    disk_slow: Rate = 0.0
    message_death: Rate = 0.0
    """Of the sender or the receiver of a message of a kind that is drawn; see ``message_faults.py``."""
    spill_failure: Share = 0.0
    flush_failure: Share = 0.0
    worker_start_failure: Share = 0.0
    worker_start_hang: Share = 0.0
    outage_ms: Count = 50


class PhasesPart(_Part, frozen=True):
    """Faults strike for a while, then everything is healed and the programs must end within a bound."""

    faulty_s: Seconds = 0.0
    liveness_s: Seconds = 120.0
    quiet_s: Seconds = 12.0


class Scenario(_Part, frozen=True):
    """One kind of run; with a seed it is a run."""

    name: str
    about: str = ""
    check_every: Count = 1
    strict: bool = True
    policy: Policy = "paper"
    """When tasks are forwarded and where they go: see ``zray.core.placement.SCHEDULING``."""
    cluster: ClusterPart = ClusterPart()
    network: NetworkPart = NetworkPart()
    workload: WorkloadPart = WorkloadPart()
    faults: FaultsPart = FaultsPart()
    phases: PhasesPart = PhasesPart()


def parse(text: str, where: str) -> Scenario:
    """A scenario from TOML.

    Raises:
        ScenarioError: naming ``where`` and the key.
    """
    try:
        return msgspec.toml.decode(text, type=Scenario)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        key = path.strip("`.")
        raise ScenarioError(f"{where}: {'key ' + key + ': ' if key else ''}{what}") from None
    except msgspec.DecodeError as error:
        raise ScenarioError(f"{where}: not TOML: {error}") from None


def load(name: str) -> Scenario:
    """The scenario of a file, or a shipped one by its name.

    Raises:
        ScenarioError: if there is none, or it is wrong.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(shipped())
        raise ScenarioError(f"{path}: {error.strerror}; shipped scenarios: {known}") from None
    return parse(text, str(path))


def shipped() -> list[str]:
    """The names of the scenarios that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))
