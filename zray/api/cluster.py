"""What the cluster has and what is free."""

from __future__ import annotations

from typing import Any

import msgspec

from zray.api import session


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
    """Amounts by resource name, of all nodes."""
    return dict(report("resources")["total"])


def available_resources() -> dict[str, float]:
    """What nobody holds of them now."""
    return {name: amount for name, amount in report("resources")["available"].items() if amount > 0}


def nodes() -> list[dict[str, Any]]:
    """One dict per node, with Ray's keys (``NodeID``, ``Alive``, ``Resources``, ...) and zray's own."""
    return [with_ray_keys(report("node"))]


def with_ray_keys(node: dict[str, Any]) -> dict[str, Any]:
    """The report of a node, with what Ray calls its fields beside."""
    return {
        "NodeID": node["node_id"],
        "Alive": node["alive"],
        "NodeManagerHostname": node["host"],
        "NodeName": node["host"],
        "RayletSocketName": node["endpoint"],
        "Resources": node["total"],
        "alive": node["alive"],
        **node,
    }
