"""Every limit and timeout, with its unit, and the one reader of the environment.

``ZRAY_<NAME>`` in the environment overrides a field; a value that does not parse is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

MIB = 1 << 20


class Config(NamedTuple):
    """Frozen settings of one process; nodes hand theirs to their workers."""

    inline_bytes_max: int = 32 * 1024
    """Values up to this size travel inside messages; larger ones go to the arena."""
    huge_pages: int = 0
    """Whether large objects in fresh memory ask the system for huge pages; 0: never.

    Where the memory is there a first write takes a third of the time. A virtual machine that gives free
    memory back gives huge pages first, so that these have to be found again: five times as long.
    """

    submit_batch_max: int = 256
    """Tasks a client puts in one frame before it sends on its own."""
    submit_linger_ns: int = 300_000
    """A link unused for this long is idle: the next task leaves at once; otherwise tasks gather."""
    submit_window_max: int = 8_192
    """Tasks sent and not yet credited by the node; beyond it ``remote()`` slows down."""
    submit_delay_ns: int = 50_000_000
    """How long ``remote()`` waits for credit before it sends one more batch without."""
    ready_backlog_max: int = 8_192
    """Ready tasks of a node beyond which it gives no credit: submitters run at the workers' pace."""
    idle_duty_interval_ns: int = 2_000_000
    """How often the background thread looks after a client whose threads are busy elsewhere."""
    idle_duty_linger_ns: int = 200_000_000
    """The background thread sleeps for good once nothing happened for this long."""

    spin_ns: int = 200_000
    """How long drivers and workers look for a message before they sleep, while that is faster; 0: never."""

    run_ahead_ns: int = 4_000_000
    """Run time worth of short tasks that a worker holds beyond the one it runs."""
    run_ahead_tasks_max: int = 128
    """The most tasks a worker holds beyond the one it runs."""
    run_stall_ns: int = 20_000_000
    """A worker without progress for this long gives its queued tasks back."""
    run_average_alpha: float = 0.2
    """Weight of the newest sample in the exponential averages (paper, section 4.2.2)."""
    done_linger_ns: int = 1_000_000
    """A finished result waits at most this long for company while its worker runs more."""
    done_batch_max: int = 64
    """Finished tasks a worker gathers before it reports while it runs more."""

    lease_idle_ns: int = 100_000_000
    """A worker leased to a submitter is taken back once it was not used for this long; 0: no leases."""

    backlog_per_slot_max: int = 2
    """Tasks per worker slot kept before new ones are forwarded, in a cluster of several nodes; brief ones
    beyond it, too, unless it is 0 or less."""
    offload_patience_ns: int = 100_000_000
    """While others are idle, a node gives those of its queued tasks away that wait for longer; -1: none."""
    workers_max: int = 512
    """Worker processes of one node, blocked ones and actors included."""
    worker_idle_ns: int = 5_000_000_000
    """An idle worker beyond the number of CPUs ends after this long."""
    worker_start_timeout_ns: int = 30_000_000_000
    """A forked worker that did not introduce itself by then is replaced."""
    infeasible_grace_ns: int = 1_000_000_000
    """How long a request may be infeasible before the driver is warned."""
    unschedulable_after_ns: int = 0
    """How long a request may be infeasible before it fails; 0: it waits for a node that can run it."""

    stranger_patience_ns: int = 5_000_000_000
    """How long an object may be asked for before anybody announced it; then it is lost."""

    lineage_flush_ns: int = 20_000_000
    """Task records wait at most this long for company before they leave for their shard."""
    lineage_batch_max: int = 512
    """Task records of one frame."""
    lineage_unacked_max: int = 200_000
    """Task records on their way to a shard; beyond it the oldest are kept to resend and counted."""
    table_writes_max: int = 10_000
    """Writes to other tables on their way to a shard; beyond it the oldest are given up and counted."""
    finished_tasks_max: int = 10_000
    """Finished tasks a node remembers for people to look at."""

    global_schedulers: int = 2
    """Shards, from the first on, that have a global scheduler beside them; at most one for each shard."""

    heartbeat_interval_ns: int = 100_000_000
    """How often a node reports its load while it changes, and the control store looks who is silent."""
    heartbeat_liveness_count: int = 10
    """Missed intervals after which a peer is dead."""
    node_death_ns: int = 800_000_000
    """A node of a cluster that was silent for this long is dead, and begins anew if it is not."""
    node_link_loss_ns: int = 250_000_000
    """The same for a node whose link to the control store was lost."""
    node_return_ns: int = 2_500_000_000
    """The same for a node that was not heard yet since who decides on life and death began anew."""

    chunk_bytes: int = 2 * MIB
    """Large objects travel between nodes in chunks of this size."""
    chunks_under_way_max: int = 8
    """Chunks of one object that a node has asked for and not got."""
    pulls_max: int = 8
    """Objects that a node copies from others at once."""
    pull_patience_ns: int = 2_000_000_000
    """A transfer that got nothing for this long asks again; then after twice as long, and so on."""

    copies_patience_ns: int = 10_000_000_000
    """How long ``put(copies=...)`` waits for its copies before it says that they are not there yet."""

    chain_heartbeat_ns: int = 50_000_000
    """How often a replica of a shard shows its chain's master that it lives; also its pace of repetition."""
    chain_liveness_count: int = 20
    """Missed heartbeats after which a replica leaves its chain; the end of a process is seen at once."""
    chain_window_max: int = 20_000
    """Batches that a replica keeps for the next one; beyond it new requests wait with their senders."""

    table_entries_max: int = 1_000_000
    """Entries of one GCS table; the oldest released ones go first."""
    released_records_max: int = 20_000
    """Released task records a shard keeps for people to look at."""
    gcs_memory_max: int = 0
    """Bytes of memory for the task rows of a shard that may be needed again; those beyond it go to disk, the
    oldest first, and are read back when they are needed. 0: all stay, up to ``table_entries_max`` of them."""
    gcs_flush_bytes_max: int = 0
    """How large the file of those may become on disk; then rows stay in memory. 0: until the disk is full."""
    storage_timeout_ns: int = 5_000_000_000
    """How long a shard waits for the server that has its log before it ends; it answers nothing meanwhile."""
    log_compact_bytes: int = 64 * MIB
    """A shard rewrites its log once it has grown by this much beyond its live state."""

    trace_bytes_max: int = 4096 * MIB
    """A recorded trace ends when its file has this size."""
    scheduling_policy: str = "paper"
    """When tasks are forwarded and where they go: a name in ``zray.core.placement.SCHEDULING``."""
    scheduling_seed: int = 0
    """What a policy that draws random numbers starts from."""

    key_file: str = ""
    """The key of the cluster: links over tcp are protected by it, and stay on this machine without one."""
    bulk_encryption: int = 1
    """Whether the bytes of large objects are encrypted between nodes that have a key.

    0: whoever can listen in on the network can read them, and who can change packets can change them; for
    networks that are trusted. Two nodes do without encryption only if both are told so.
    """
    send_delay_ns: int = 0
    """Every frame leaves this much later: what a network with that latency would do. For experiments."""
    frame_bytes_max: int = 256 * MIB
    """Larger frames are refused."""
    arguments_warn_bytes: int = 64 * MIB
    """A call with more in its arguments is warned of, once for each function."""
    package_bytes_max: int = 512 * MIB
    """Files of one package of a runtime environment: a ``working_dir``, or one of ``py_modules``."""
    environments_bytes_max: int = 10_240 * MIB
    """Unpacked packages and installed ones that a node keeps while no worker uses them."""
    init_timeout_ns: int = 20_000_000_000
    """How long ``init`` waits for a cluster to answer."""
    shutdown_timeout_ns: int = 3_000_000_000
    """How long a process waits for those it started before it kills them."""
    farewell_timeout_ns: int = 30_000_000_000
    """How long the user's code of a worker that ends may take (``__ray_shutdown__``, exit handlers)."""
    last_words_timeout_ns: int = 5_000_000_000
    """How long an actor that ended itself waits for callers to take its last replies."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Config:
        """The defaults, overridden by ``ZRAY_<FIELD>`` variables.

        Raises:
            ValueError: if a variable does not parse, naming it.
        """
        changes: dict[str, float | str] = {}
        for field, default in cls._field_defaults.items():
            name = f"ZRAY_{field.upper()}"
            text = environment.get(name)
            if text is None:
                continue
            try:
                changes[field] = type(default)(text)
            except ValueError:
                raise ValueError(f"{name}={text!r} is not a {type(default).__name__}") from None
        return cls(**changes)  # type: ignore[arg-type]
