"""How a process of the control store is told what to be; one JSON document, if a program tells it."""

from __future__ import annotations

import msgspec

DEFAULT_LISTEN = "tcp://127.0.0.1:6480"
SHARDS_MAX, REPLICAS_MAX = 10_000, 64
"""Of a control store, and of each of its shards."""


class GcsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a ``zray-gcs`` can be told."""

    listen: str = DEFAULT_LISTEN
    shard: int = 0
    shard_count: int = 1
    data_dir: str | None = None
    """Where the log is."""
    memory_max: int | None = None
    """Bytes of memory for task rows; ``None``: as configured."""
    flush_dir: str | None = None
    """Where the file of flushed rows is; ``None``: beside the log, or where temporary files are."""
    storage: str | None = None
    """URL of a Redis or Valkey server that has the log instead; neither: nothing survives the process."""
    cluster_id: bytes | None = None
    """16 bytes; ``None``: the one in the log, or a new one."""
    sync: bool = False
    """Whether every write waits for the disk: survive a power failure, not only the end of the process."""
    parent_pid: int | None = None
    """End when this process does."""
    trace: str | None = None
    """Record every pump in this file."""
    replica: int | None = None
    """Number of this replica in the chain of the shard; ``None``: the shard is not replicated."""
    master: str = ""
    """Where a replica finds the chain's master."""
    global_schedulers: int | None = None
    """How many of the first shards have a global scheduler beside them; ``None``: as ``Config`` says."""
    master_of: int = 0
    """Be the master of chains of that many replicas, one for each of ``shard_count`` shards."""
    log_level: str = "INFO"
