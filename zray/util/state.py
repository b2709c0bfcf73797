"""What a cluster has and does, on all of its nodes, as lists of dicts under Ray's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zray.api.cluster import nodes, with_ray_keys
from zray.api.everywhere import documents, rows
from zray.api.groups import placement_group_table
from zray.api.inquiries import collect_metrics, prometheus_text, stacks
from zray.api.logs import get_log as get_log
from zray.api.logs import list_logs as list_logs
from zray.api.refs import ObjectRef
from zray.api.refused import absent
from zray.api.session import current_address
from zray.api.state_rows import (
    Row,
    actor_row,
    job_row,
    node_row,
    object_row,
    task_row,
    worker_row,
)

Filter = tuple[str, str, Any]
"""``(key, "=" or "!=", value)``; letters of both cases are equal."""
LIMIT = 100
AWAY = "on another node"
_OPTIONS = ("address", "timeout", "detail", "raise_on_missing_output", "_explain")
"""Of Ray. Every row has all details, and a node that does not answer is named in a warning after 3 s."""


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)


def _chosen(
    found: list[Row], filters: Sequence[Filter] | None, limit: int, options: dict[str, Any]
) -> list[Row]:
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"there is no option {name!r}; there are filters, limit, {', '.join(_OPTIONS)}")
    if options.get("address") not in (None, "auto", current_address()):
        raise ValueError("what is listed is of the cluster that this process has joined: zray.init(address)")
    for key, predicate, value in filters or ():
        if predicate not in ("=", "!="):
            raise ValueError(f"a filter compares with '=' or '!=', not {predicate!r}")
        if found and key not in found[0]:
            raise ValueError(f"there is no key {key!r}; there are {', '.join(found[0])}")
        wanted = str(value).lower()
        found = [row for row in found if (str(row.get(key)).lower() == wanted) == (predicate == "=")]
    return found[:limit]


def _of(kind: str, make: Callable[[dict[str, Any]], Row]) -> list[Row]:
    return [make(row) for row in rows(kind)]


def list_tasks(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Unfinished tasks: name, attempt, state, what they wait for and ask for."""
    return _chosen([task_row(row) for row in _tasks()], filters, limit, options)


def _tasks() -> list[dict[str, Any]]:
    """The rows of all nodes; of a task that runs on another node than its submitter's, the row from there."""
    found = rows("tasks")
    here = {row["task_id"] for row in found if row["state"] != AWAY}
    return [row for row in found if row["state"] != AWAY or row["task_id"] not in here]


def list_actors(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Actors: class, name, state, process."""
    return _chosen(_of("actors", actor_row), filters, limit, options)


def list_objects(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Objects: where they are, how large, who needs them."""
    return _chosen(_of("objects", object_row), filters, limit, options)


def list_workers(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Worker processes: state, tasks."""
    return _chosen(_of("workers", worker_row), filters, limit, options)


def list_nodes(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Nodes, alive and dead: address, labels, resources; of the living ones also store and counts."""
    details = {node["node_id"]: with_ray_keys(node) for _, node in documents("node")}
    found = [node_row(details.get(row["node_id"], row)) for row in nodes()]
    return _chosen(found, filters, limit, options)


def list_jobs(filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any) -> list[Row]:
    """Jobs, each on the node of its driver: process, namespace, environment, unfinished tasks."""
    return _chosen(_of("jobs", job_row), filters, limit, options)


def list_placement_groups(
    filters: Sequence[Filter] | None = None, limit: int = LIMIT, **options: Any
) -> list[Row]:
    """Placement groups: state, bundles, nodes, what one waits for."""
    return _chosen([Row(row) for row in placement_group_table().values()], filters, limit, options)


def get_task(id: str | ObjectRef[Any], **options: Any) -> Row | None:
    """One unfinished task by its hex id, or the ref of its result; ``None`` if there is none."""
    task_id = id.task_id().hex() if isinstance(id, ObjectRef) else id
    return next(iter(list_tasks([("task_id", "=", task_id)], **options)), None)


def get_actor(id: str, **options: Any) -> Row | None:
    """One actor by its hex id; ``None`` if there is none."""
    return next(iter(list_actors([("actor_id", "=", id)], **options)), None)


def get_node(id: str, **options: Any) -> Row | None:
    """One node by its hex id; ``None`` if there is none."""
    return next(iter(list_nodes([("node_id", "=", id)], **options)), None)


def get_worker(id: str, **options: Any) -> Row | None:
    """One worker by its hex id; ``None`` if there is none."""
    return next(iter(list_workers([("worker_id", "=", id)], **options)), None)


def get_job(id: str, **options: Any) -> Row | None:
    """One job by its hex id; ``None`` if there is none."""
    return next(iter(list_jobs([("job_id", "=", id)], **options)), None)


def get_placement_group(id: str, **options: Any) -> Row | None:
    """One placement group by its hex id; ``None`` if there is none."""
    return next(iter(list_placement_groups([("placement_group_id", "=", id)], **options)), None)


def get_objects(id: str, **options: Any) -> list[Row]:
    """An object by its hex id: a row for each node that knows it."""
    return list_objects([("object_id", "=", id)], **options)


def summarize_tasks() -> dict[str, dict[str, int]]:
    """Unfinished tasks counted by name and state."""
    return _summary([task_row(row) for row in _tasks()], "name")


def summarize_actors() -> dict[str, dict[str, int]]:
    """Actors counted by class and state."""
    return _summary(_of("actors", actor_row), "class_name")


def summarize_objects() -> dict[str, int]:
    """Objects counted by place."""
    return dict(Counter(row["place"] for row in rows("objects")))


def _summary(found: list[Row], key: str) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in found:
        counts.setdefault(row[key], Counter())[row["state"]] += 1
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
