"""How a node is told what to be: one JSON document on its command line, checked by its type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from zray.runtime.spawning import python_command

if TYPE_CHECKING:  # 14 ms that whoever starts a node need not pay first
    from zray.protocol.messages import Demand
    from zray.protocol.strategies import Labels

CLUSTER_NAME = "[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
"""What a name of a cluster looks like, as a regular expression."""


class NodeOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that a ``zray-node`` can be told."""

    num_cpus: float | None = None
    num_gpus: float = 0
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    object_store_memory: int | None = None
    gcs_shards: int = 1
    """Control-store processes that the node starts itself, when ``gcs`` is empty."""
    gcs: tuple[str, ...] = ()
    """Endpoints of running shards, by number; those of the replicas of one with commas between them."""
    gcs_replicas: int = 1
    """Processes of each shard that the node starts itself."""
    global_schedulers: int | None = None
    """How many of these shards have a global scheduler beside them; ``None``: as ``Config`` says."""
    gcs_memory_max: int | None = None
    """Bytes of memory for the task rows of each of them; ``None``: as configured."""
    listen: str = ""
    """``tcp://HOST:PORT`` where other nodes reach it, and at the next port; empty: only on this machine."""
    gcs_listen: str = ""
    """``tcp://HOST:PORT`` of the first shard process that the node starts itself, and the next ports for the
    others; empty: only on this machine."""
    parent_pid: int | None = None
    """End when this process does."""
    detached: bool = False
    """Write the output of the node, its shards and its workers into files of the session."""
    cluster: str = ""
    """Name of its cluster on this machine, for whoever ends it."""
    log_level: str = "WARNING"
    trace: str | None = None
    """Record every pump in this file, and those of shards that the node starts beside it."""

    def total(self) -> Demand:
        """The resources of the node.

        Raises:
            ValueError: if an amount makes no sense.
        """
        from zray.core.resources import demand_from

        cpus = self.num_cpus if self.num_cpus is not None else usable_cpus()
        named = {"CPU": cpus, "GPU": self.num_gpus, "memory": memory_bytes(), **self.resources}
        return demand_from(named)

    def wire_labels(self) -> Labels:
        """The labels of the node.

        Raises:
            ValueError: if one makes no sense.
        """
        from zray.core.labels import labels_from

        return labels_from(self.labels)

    def arena_bytes(self) -> int:
        """The size of the object store, in whole pages."""
        size = self.object_store_memory or int(memory_bytes() * 0.3)
        return max(1, -(-size // 4096)) * 4096


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def command(options: Mapping[str, Any]) -> list[str]:
    """The command that starts a node with these options, with the ``zray`` of this process."""
    document = msgspec.json.encode(msgspec.convert(options, NodeOptions)).decode()
    return python_command("zray.services.node", "--options", document)
