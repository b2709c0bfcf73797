"""The rows of ``zray.util.state``: reports of nodes, with Ray's keys and states beside zray's own."""

from __future__ import annotations

from typing import Any

TASK_STATES = {
    "waiting for inputs": "PENDING_ARGS_AVAIL",
    "ready": "PENDING_NODE_ASSIGNMENT",
    "forwarded": "PENDING_NODE_ASSIGNMENT",
    "on another node": "SUBMITTED_TO_WORKER",
    "queued on its worker": "SUBMITTED_TO_WORKER",
    "running": "RUNNING",
}
ACTOR_STATES = {
    "pending": "PENDING_CREATION",
    "alive": "ALIVE",
    "dead": "DEAD",
    "restarting": "RESTARTING",
}


class Row(dict[str, Any]):
    """A dict whose values are attributes too, as of Ray's states."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}; there are {', '.join(self)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Row, (dict(self),)


def task_row(row: dict[str, Any]) -> Row:
    """``state`` is Ray's, ``detail`` what zray calls it."""
    detail = row["state"]
    return Row(
        {
            "task_id": row["task_id"],
            "name": row["name"],
            "state": TASK_STATES.get(detail.partition(",")[0], detail),
            "detail": detail,
            "attempt_number": row["attempt"],
            "missing": row["missing"],
            "required_resources": row["demand"],
            "node_id": row["node_id"],
        }
    )


def actor_row(row: dict[str, Any]) -> Row:
    """``name`` is what the actor was called when it was made, ``class_name`` its class.

    ``home_node_id`` decides about it; if that node dies, ``successor_node_id`` does, of a detached one.
    """
    return Row(
        {
            "actor_id": row["actor_id"],
            "class_name": row["name"],
            "state": ACTOR_STATES[row["state"]],
            "name": row["actor_name"],
            "ray_namespace": row["namespace"],
            "job_id": row["job_id"],
            "pid": row["pid"],
            "node_id": row["node_id"],
            "num_restarts": row["restarts"],
            "home_node_id": row["home"],
            "successor_node_id": row["successor"],
            "waits_for": row["waits_for"],
        }
    )


def object_row(row: dict[str, Any]) -> Row:
    """With its size under Ray's name."""
    return Row({**row, "object_size": row["size_bytes"]})


def worker_row(row: dict[str, Any]) -> Row:
    """Workers that are reported are alive."""
    return Row({**row, "worker_type": "WORKER", "is_alive": True})


def node_row(row: dict[str, Any]) -> Row:
    """With what Ray's list of nodes calls its fields."""
    return Row(
        {
            **row,
            "state": "ALIVE" if row["alive"] else "DEAD",
            "node_ip": row["NodeManagerAddress"],
            "node_name": row["host"],
            "resources_total": row["Resources"],
        }
    )


def job_row(row: dict[str, Any]) -> Row:
    """``status`` is Ray's."""
    return Row({**row, "status": "RUNNING" if row["state"] == "running" else "SUCCEEDED"})
