"""What the cluster has and what is free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from zray.api import session
from zray.errors import ClusterUnavailableError

_PATIENCE_S = 5.0
"""How long a node asks the control store which nodes there are."""


def report(what: str) -> Any:
    """One of the node's reports: ``node``, ``resources``, ``tasks``, ``workers``, ``actors``, ``objects``.

    Raises:
        ValueError: for an unknown report.
    """
    document = msgspec.json.decode(session.current().query(what))
    if isinstance(document, dict) and "error" in document:
        raise ValueError(document["error"])
    return document


def cluster_resources() -> dict[str, float]:
    """Amounts by resource name, of all living nodes."""
    return _sum(node["Resources"] for node in nodes() if node["alive"])


def available_resources() -> dict[str, float]:
    """What nobody holds of them now; of other nodes as they reported last, a tenth of a second ago."""
    found = _sum(node["available"] for node in nodes() if node["alive"])
    return {name: amount for name, amount in found.items() if amount > 0}


def nodes() -> list[dict[str, Any]]:
    """One dict per node, with Ray's keys (``NodeID``, ``Alive``, ``Resources``, ...) and zray's own.

    The node of this process comes first, with its store and counts; then the other living ones, then the
    newest of the dead.

    Raises:
        ClusterUnavailableError: if the control store does not say which other nodes there are.
    """
    document = report("nodes")
    if "unavailable" in document:
        raise ClusterUnavailableError(document["unavailable"], _PATIENCE_S)
    return [with_ray_keys(node) for node in (document["own"], *document["nodes"])]


def _sum(amounts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in amounts:
        for name, amount in some.items():
            total[name] = round(total.get(name, 0) + amount, 4)  # amounts are multiples of 1/10,000
    return total


def with_ray_keys(node: dict[str, Any]) -> dict[str, Any]:
    """The report of a node, with what Ray calls its fields beside."""
    tcp, local = "", ""
    for endpoint in node["endpoint"].split(","):
        tcp, local = (endpoint, local) if endpoint.startswith("tcp://") else (tcp, endpoint)
    ip, _, port = tcp.removeprefix("tcp://").rpartition(":")
    return {
        "NodeID": node["node_id"],
        "Alive": node["alive"],
        "NodeManagerAddress": ip.strip("[]") or "127.0.0.1",
        "NodeManagerHostname": node["host"],
        "NodeManagerPort": int(port) if port.isdecimal() else 0,
        "ObjectManagerPort": int(port) + 1 if port.isdecimal() else 0,  # see runtime/endpoints.py
        "NodeName": node["host"],
        "RayletSocketName": local or node["endpoint"],
        "ObjectStoreSocketName": local or node["endpoint"],
        "Resources": node["total"] if node["alive"] else {},
        "Labels": node["labels"],
        **node,
    }
