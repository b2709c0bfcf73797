"""Several nodes of one system on this machine, for a peer: zray and Ray have the same ``cluster_utils``.

Every node has a resource of its own, ``node0`` and so on, so that a program can say where. The first node is
the driver's, and stays. Needs nothing of zray where the system is not zray.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

SEATS = 1_000_000
"""Of the resource that names a node: never what is scarce."""
_clusters: list[tuple[Any, list[Any]]] = []
"""The cluster and its nodes in their order, the driver's not among them."""


def on_node(number: int) -> dict[str, float]:
    """The ``resources`` of a task or actor that is to be on one node."""
    return {f"node{number}": 1}


@contextlib.contextmanager
def started(system: str, count: int, of_node: dict[str, Any]) -> Iterator[str]:
    """A cluster of ``count`` nodes; its address."""
    cluster_utils: Any = importlib.import_module(f"{system}.cluster_utils")
    quiet = {"include_dashboard": False} if system == "ray" else {}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**of_node, **quiet, "resources": {"node0": SEATS}}
    )
    try:
        others = [
            cluster.add_node(**of_node, resources={f"node{number}": SEATS}) for number in range(1, count)
        ]
        cluster.wait_for_nodes()
        _clusters.append((cluster, others))
        yield cluster.address
    finally:
        _clusters.clear()
        cluster.shutdown()


def kill(number: int) -> None:
    """Kill one of the nodes, but not the first, with all that is on it."""
    [(cluster, others)] = _clusters
    cluster.remove_node(others[number - 1], allow_graceful=False)
