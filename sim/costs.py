"""What things cost in processor time, for hosts that are modelled one turn at a time.

Defaults are rounded from measurements of the real processes on a small virtual machine (two shared cores,
CPython 3.11, pyzmq 27, msgspec 0.22, benchmarks of November 2026): a hop of one frame over ipc costs its two
ends 12 us, a message inside a larger batch about 1 us of transport and 2 us of decisions, a forked worker
introduces itself after 5 ms. They scale virtual time; no verdict depends on them.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.kernel import MS


class Costs(NamedTuple):
    """Nanoseconds of one processor, unless said otherwise."""

    turn_ns: int = 8_000
    """One turn of a node or shard: wait, receive, send."""
    message_ns: int = 2_500
    """One message inside a turn, decided and answered."""
    submit_ns: int = 4_000
    """One ``remote()`` or ``put()`` in a program."""
    hear_ns: int = 4_000
    """One frame that a driver or worker receives."""
    run_ns: int = 12_000
    """Everything around the user's code of one task."""
    worker_start_ns: int = 5 * MS
    """Fork to ``Hello``."""
    exit_notice_ns: int = 1 * MS
    """The end of a process until its node knows."""
    disk_bytes_per_s: int = 500_000_000
    disk_latency_ns: int = 1 * MS
