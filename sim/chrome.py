"""A Chrome trace of a run: open it in Perfetto, one track per worker."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sim.cluster import Cluster
from zray.ids import short


def write(cluster: Cluster, path: Path) -> None:
    """Write every task and call that ran; times in microseconds of virtual time."""
    tracks: dict[bytes, int] = {}
    events: list[dict[str, object]] = []
    for span in cluster.spans or ():
        track = tracks.setdefault(span.worker, len(tracks) + 1)
        node = int(span.worker[4:12])
        events.append(
            {
                "name": span.name, "ph": "X", "pid": node, "tid": track, "ts": span.start_ns / 1e3,
                "dur": (span.end_ns - span.start_ns) / 1e3, "args": {"task": short(span.task_id)},
            }
        )  # fmt: skip
    for worker, track in tracks.items():
        node = int(worker[4:12])
        name = f"worker {int.from_bytes(worker[12:], 'big')}"
        events.append({"name": "thread_name", "ph": "M", "pid": node, "tid": track, "args": {"name": name}})
    path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}))
