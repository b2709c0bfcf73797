"""Reports of all nodes of the cluster, as one."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from zray.api.cluster import report

log = logging.getLogger("zray.state")

PREFIX = "everywhere/"
AT = "at/"


def documents(what: str) -> list[tuple[str, Any]]:
    """``(node id in hex, its report)`` for every node that answers, this driver's own first.

    A node that does not answer within three seconds is named in a warning and left out.

    Raises:
        ValueError: for an unknown report.
    """
    found = report(PREFIX + what)
    if found["silent"]:
        log.warning("these nodes do not answer and are left out: %s", ", ".join(found["silent"]))
    told = [(row["node_id"], msgspec.json.decode(row["body"])) for row in found["nodes"]]
    for _, document in told:
        if isinstance(document, dict) and "error" in document:
            raise ValueError(document["error"])
    return told


def rows(what: str) -> list[dict[str, Any]]:
    """The rows of a report that is a list, of all nodes; each says in ``node_id`` whose it is."""
    return [{**row, "node_id": node_id} for node_id, found in documents(what) for row in found]


def processes(what: str) -> dict[str, list[dict[str, Any]]]:
    """What all processes say: ``processes`` and ``former`` with their node, ``silent`` with pids."""
    gathered: dict[str, list[dict[str, Any]]] = {"processes": [], "former": [], "silent": []}
    for node_id, found in documents(what):
        for kind in ("processes", "former"):
            gathered[kind] += [{**row, "node_id": node_id} for row in found[kind]]
        gathered["silent"] += [{"pid": pid, "node_id": node_id} for pid in found["silent"]]
    return gathered
