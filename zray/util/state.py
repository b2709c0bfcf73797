"""What a cluster has and does, on all of its nodes, as lists of dicts under Ray's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zray.api.cluster import nodes, with_ray_keys
from zray.api.everywhere import documents, rows
from zray.api.inquiries import collect_metrics, prometheus_text, stacks
from zray.api.logs import get_log as get_log
from zray.api.logs import list_logs as list_logs

Filter = tuple[str, str, Any]
"""``(key, "=" or "!=", value)``."""
LIMIT = 100
AWAY = "on another node"


def _chosen(
    found: list[dict[str, Any]], filters: Sequence[Filter] | None, limit: int
) -> list[dict[str, Any]]:
    for key, predicate, value in filters or ():
        if predicate not in ("=", "!="):
            raise ValueError(f"a filter compares with '=' or '!=', not {predicate!r}")
        if found and key not in found[0]:
            raise ValueError(f"there is no key {key!r}; there are {', '.join(found[0])}")
        found = [row for row in found if (str(row.get(key)) == str(value)) == (predicate == "=")]
    return found[:limit]


def list_tasks(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Unfinished tasks: name, attempt, state, what they wait for and ask for."""
    return _chosen(_tasks(), filters, limit)


def _tasks() -> list[dict[str, Any]]:
    """The rows of all nodes; of a task that runs on another node than its submitter's, the row from there."""
    found = rows("tasks")
    here = {row["task_id"] for row in found if row["state"] != AWAY}
    return [row for row in found if row["state"] != AWAY or row["task_id"] not in here]


def list_actors(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Actors: class, state, process."""
    return _chosen(rows("actors"), filters, limit)


def list_objects(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Objects: where they are, how large, who needs them."""
    return _chosen(rows("objects"), filters, limit)


def list_workers(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Worker processes: state, tasks."""
    return _chosen(rows("workers"), filters, limit)


def list_nodes(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Nodes, alive and dead: address, labels, resources; of the living ones also store and counts."""
    details = {node["node_id"]: with_ray_keys(node) for _, node in documents("node")}
    return _chosen([details.get(row["node_id"], row) for row in nodes()], filters, limit)


def list_jobs(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Jobs, each on the node of its driver: process, namespace, environment, unfinished tasks."""
    return _chosen(rows("jobs"), filters, limit)


def get_task(id: str) -> dict[str, Any] | None:
    """One unfinished task by its hex id; ``None`` if there is none."""
    return next(iter(list_tasks([("task_id", "=", id)])), None)


def get_actor(id: str) -> dict[str, Any] | None:
    """One actor by its hex id; ``None`` if there is none."""
    return next(iter(list_actors([("actor_id", "=", id)])), None)


def get_node(id: str) -> dict[str, Any] | None:
    """One living node by its hex id; ``None`` if there is none."""
    return next(iter(list_nodes([("node_id", "=", id)])), None)


def get_worker(id: str) -> dict[str, Any] | None:
    """One worker by its hex id; ``None`` if there is none."""
    return next(iter(list_workers([("worker_id", "=", id)])), None)


def get_job(id: str) -> dict[str, Any] | None:
    """One job by its hex id; ``None`` if there is none."""
    return next(iter(list_jobs([("job_id", "=", id)])), None)


def get_objects(id: str) -> list[dict[str, Any]]:
    """An object by its hex id: a row for each node that knows it."""
    return list_objects([("object_id", "=", id)])


def summarize_tasks() -> dict[str, dict[str, int]]:
    """Unfinished tasks counted by name and state."""
    return _summary(_tasks())


def summarize_actors() -> dict[str, dict[str, int]]:
    """Actors counted by class and state."""
    return _summary(rows("actors"))


def summarize_objects() -> dict[str, int]:
    """Objects counted by place."""
    return dict(Counter(row["place"] for row in rows("objects")))


def _summary(found: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in found:
        counts.setdefault(row["name"], Counter())[row["state"]] += 1
    return {name: dict(states) for name, states in sorted(counts.items())}


def list_metrics() -> list[dict[str, Any]]:
    """Every metric of ``zray.util.metrics``, added up over all processes."""
    return collect_metrics()


def metrics_text() -> str:
    """The same in Prometheus' text format."""
    return prometheus_text()


def list_stacks() -> dict[str, Any]:
    """The stacks of all processes; those that did not answer are in ``silent``."""
    return stacks()
