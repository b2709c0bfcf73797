"""Chains of tasks on real nodes, some of which are killed meanwhile; for zray and Ray. No code of zray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from paper_experiments.common import peer_nodes

TASK_S = 0.1
OBJECT_BYTES = 40_000
"""Above the size that travels inside messages: such an object dies with the node that made it."""


def link(before: dict[str, Any]) -> dict[str, Any]:
    """One link of a chain: sleeps, counts, and notes when it ended."""
    time.sleep(TASK_S)
    ended_s = [*before["ended_s"], time.monotonic()]
    return {"count": before["count"] + 1, "ended_s": ended_s, "bytes": bytes(OBJECT_BYTES)}


def run_chains(
    api: Any, count: int, length: int, slots: int, nodes: int, changes: Sequence[tuple[float, int]]
) -> dict[str, Any]:
    """Run chains to their ends while nodes are killed.

    Args:
        slots: of all nodes.
        changes: (seconds since the start, nodes from then on).
    Returns:
        ``lengths`` of all chains as they counted them, and ``ended_s``, when each of their tasks ended.
    """
    function = api.remote(max_retries=-1)(link)
    first = {"count": 0, "ended_s": [], "bytes": b""}
    api.get([function.remote(first) for _ in range(4 * slots)])  # every node has its workers
    began_s = time.monotonic()
    ends = [function.remote(first) for _ in range(count)]
    for _ in range(length - 1):
        ends = [function.remote(end) for end in ends]
    for at_s, left in changes:
        api.wait(ends, num_returns=count, timeout=max(0.0, began_s + at_s - time.monotonic()))
        for number in range(left, nodes):
            peer_nodes.kill(number)
        nodes = left
    found = api.get(ends)
    return {
        "lengths": [end["count"] for end in found],
        "ended_s": [moment - began_s for end in found for moment in end["ended_s"]],
    }
