"""What a cluster has and does, as lists of dicts, under Ray's names (``zray.util.state``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zray.api.cluster import nodes, report
from zray.api.inquiries import collect_metrics, prometheus_text, stacks

Filter = tuple[str, str, Any]
"""``(key, "=" or "!=", value)``."""
LIMIT = 100


def _chosen(rows: list[dict[str, Any]], filters: Sequence[Filter] | None, limit: int) -> list[dict[str, Any]]:
    for key, predicate, value in filters or ():
        if predicate not in ("=", "!="):
            raise ValueError(f"a filter compares with '=' or '!=', not {predicate!r}")
        if rows and key not in rows[0]:
            raise ValueError(f"there is no key {key!r}; there are {', '.join(rows[0])}")
        rows = [row for row in rows if (str(row[key]) == str(value)) == (predicate == "=")]
    return rows[:limit]


def list_tasks(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Unfinished tasks: name, attempt, state, what they wait for and ask for."""
    return _chosen(report("tasks"), filters, limit)


def list_actors(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Actors: class, state, process."""
    return _chosen(report("actors"), filters, limit)


def list_objects(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Objects: where they are, how large, who needs them."""
    return _chosen(report("objects"), filters, limit)


def list_workers(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Worker processes: state, tasks."""
    return _chosen(report("workers"), filters, limit)


def list_nodes(filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Nodes: resources, store, counts."""
    return _chosen(nodes(), filters, limit)


def get_task(id: str) -> dict[str, Any] | None:
    """One unfinished task by its hex id; ``None`` if there is none."""
    return next(iter(_chosen(report("tasks"), [("task_id", "=", id)], 1)), None)


def get_actor(id: str) -> dict[str, Any] | None:
    """One actor by its hex id; ``None`` if there is none."""
    return next(iter(_chosen(report("actors"), [("actor_id", "=", id)], 1)), None)


def summarize_tasks() -> dict[str, dict[str, int]]:
    """Unfinished tasks counted by name and state."""
    return _summary(report("tasks"))


def summarize_actors() -> dict[str, dict[str, int]]:
    """Actors counted by class and state."""
    return _summary(report("actors"))


def summarize_objects() -> dict[str, int]:
    """Objects counted by place."""
    return dict(Counter(row["place"] for row in report("objects")))


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
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
