"""Reports of a node for people and tools, as JSON: what it has, what runs, what waits and for what."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from zray.core.labels import rule_text
from zray.core.node_store import SEALED
from zray.core.resources import amounts_of
from zray.core.worker_pool import DEDICATED, IDLE, LEASED, STARTING
from zray.protocol.documents import encode_report
from zray.protocol.messages import ACTOR, DRIVER, Infeasible, NodeReport
from zray.protocol.strategies import Strategy

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler
    from zray.core.node import Node


ROWS_MAX = 10_000


def report(node: Node, what: str) -> bytes:
    """The JSON document for ``what``; an unknown name is answered with the known ones."""
    make = _REPORTS.get(what)
    if make is None:
        return encode_report({"error": f"no report {what!r}; there are {sorted(_REPORTS)}"})
    return encode_report(make(node))


def abandoned(node: Node, job_id: bytes) -> bytes:
    """How many tasks of a job, by name, have neither ended nor been cancelled."""
    counts: dict[str, int] = {}
    for task in node.scheduler.tasks.values():
        if (
            task.task_class.job_id == job_id
            and task.task_class.descriptor.kind != ACTOR
            and task.verdict is None
        ):
            name = task.task_class.descriptor.name
            counts[name] = counts.get(name, 0) + 1
    return encode_report(counts)


def load_of(node: Node) -> NodeReport:
    """What a node tells the global scheduler of its load."""
    scheduler, resources = node.scheduler, node.pool.resources
    transfers = node.cluster.transfers
    return NodeReport(
        node.identity.node_id, node.identity.incarnation, resources.as_demand(), resources.free_demand(),
        scheduler.backlog(), _run_ns(scheduler), transfers.bandwidth, node.cluster.peers.epoch,
        transfers.wanted_bytes(), node.identity.labels,
    )  # fmt: skip


def _run_ns(scheduler: LocalScheduler) -> int:
    """Run time of the tasks of this node: the mean of the averages of their classes.

    A queue that was kept because its tasks are brief, and stands, tells that these no longer are.
    """
    known = [each.run_ns for each in scheduler.classes.values() if each.run_ns]
    return max(sum(known) // len(known) if known else 0, scheduler.admission.standing_ns())


def _resources(node: Node) -> dict[str, Any]:
    pool = node.pool.resources
    own = dict(pool.own)  # what bundles of placement groups add is not more of anything
    free = tuple(part for part in pool.free_demand() if part[0] in own)
    return {"total": amounts_of(pool.own), "available": amounts_of(free)}


def node_report(node: Node) -> dict[str, Any]:
    """A node of itself."""
    identity, store = node.identity, node.store
    return {
        "node_id": identity.node_id.hex(),
        "host": identity.host,
        "pid": identity.pid,
        "endpoint": identity.endpoint,
        "labels": dict(identity.labels),
        "alive": True,
        **_resources(node),
        "store": {
            "capacity_bytes": store.extents.capacity_bytes,
            "used_bytes": store.extents.used_bytes,
            "spilled_bytes": store.spilled_bytes,
            "objects": len(store.objects),
        },
        "tasks": {
            "unfinished": len(node.scheduler.tasks),
            "finished": node.scheduler.finished,
            "retried": node.scheduler.retried,
            "forwarded": len(node.scheduler.forwarded),
        },
        "global_scheduler": {
            "shard": node.schedulers.current,
            "known": list(node.schedulers.known),
            "answers": node.schedulers.answers,
        },
        "to_other_nodes": {
            "waiting": len(node.cluster.sharing.gate),
            "held_back_by_shards": node.cluster.sharing.held_back_by(node.now_ns),
        },
        "lineage": {
            "followed": len(node.references.lineage),
            "truncated": node.references.lineage_truncated,
            "unacknowledged": node.lineage.unacked_records,
            "dropped": node.lineage.dropped,
        },
    }


def _workers(node: Node) -> list[dict[str, Any]]:
    names = {STARTING: "starting", IDLE: "idle", DEDICATED: "actor", LEASED: "leased"}
    rows = []
    for worker in list(node.pool.workers.values())[:ROWS_MAX]:
        client = node.clients.get(worker.worker_id)
        state = "blocked" if worker.blocked else names.get(worker.state, "busy")
        rows.append(
            {
                "worker_id": worker.worker_id.hex(),
                "pid": client.pid if client is not None else None,
                "state": state,
                "tasks": [task_id.hex() for task_id in worker.queue],
                "actor_id": worker.actor_id.hex() or None,
                "job_id": worker.job_id.hex() or None,
                "demand": amounts_of(worker.held),
                "gpus": [number for number, _ in worker.gpus],
                "busy_s": round(max(0, node.now_ns - worker.progress_ns) / 1e9, 3) if worker.held else 0.0,
            }
        )
    return rows


def tasks_of(node: Node) -> list[dict[str, Any]]:
    """Every unfinished task: its name, where it is, what it misses and asks for."""
    places: dict[bytes, str] = {}
    for worker in node.pool.workers.values():
        for position, task_id in enumerate(worker.queue):
            places[task_id] = "queued on its worker" if position else "running"
    forwarded = "forwarded" if node.schedulers.answers else "forwarded, and no global scheduler answers"
    places.update(dict.fromkeys(node.scheduler.forwarded, forwarded))
    places.update(dict.fromkeys(node.cluster.away.tasks, _away(node)))
    places.update(dict.fromkeys(node.scheduler.admission.held, "waiting for the control store"))
    rows = []
    for task_id, task in list(node.scheduler.tasks.items())[:ROWS_MAX]:
        objects = node.store.objects
        missing = [dep.hex() for dep in task.spec.deps if objects[dep].state != SEALED]
        rows.append(
            {
                "task_id": task_id.hex(),
                "name": task.task_class.descriptor.name,
                "attempt": task.attempt,
                "state": places.get(task_id) or ("waiting for inputs" if missing else "ready"),
                "missing": missing,
                "demand": amounts_of(task.task_class.demand),
            }
        )
    return rows


def _away(node: Node) -> str:
    """Where a granted task is; its grant, and all that it needs there, may still wait in this node."""
    shards = node.cluster.sharing.held_back_by(node.now_ns)
    if not shards:
        return "on another node"
    numbers = ", ".join(map(str, shards))
    return f"on another node, or on its way there: shard {numbers} of the control store does not answer"


def _actors(node: Node) -> list[dict[str, Any]]:
    names = ("pending", "alive", "dead", "restarting")
    rows = []
    for actor_id, entry in list(node.actors.entries.items())[:ROWS_MAX]:
        client = node.clients.get(entry.worker.worker_id) if entry.worker is not None else None
        rows.append(
            {
                "actor_id": actor_id.hex(),
                "name": entry.name,
                "actor_name": entry.descriptor.actor_name[1] if entry.descriptor is not None else "",
                "namespace": entry.descriptor.actor_name[0] if entry.descriptor is not None else "",
                "job_id": entry.job_id.hex(),
                "state": names[entry.state.state],
                "pid": client.pid if client is not None else None,
                "node_id": (entry.host or (node.identity.node_id if entry.worker is not None else b"")).hex(),
                "restarts": entry.restarts,
                "home": node.identity.node_id.hex(),
                "successor": node.cluster.actors.succession.successor_of(actor_id).hex(),
                "waits_for": node.cluster.actors.succession.waits_for(actor_id),
            }
        )
    return rows


def _objects(node: Node) -> list[dict[str, Any]]:
    places = ("inline", "error", "arena", "disk", "fault")
    store, rows = node.store, []
    for object_id, entry in list(store.objects.items())[:ROWS_MAX]:
        rows.append(
            {
                "object_id": object_id.hex(),
                "place": places[entry.value.kind] if entry.value is not None else "pending",
                "size_bytes": entry.size if entry.size or entry.value is None else len(entry.value.data),
                "holders": entry.holders,
                "pins": entry.pins,
                "maps": entry.maps,
                "copies": store.kept.get(object_id, 0),
            }
        )
    return rows


def _jobs(node: Node) -> list[dict[str, Any]]:
    """The jobs whose home is this node: drivers, and detached actors, which are jobs of their own."""
    drivers = {client.job_id: client.pid for client in node.clients.values() if client.role == DRIVER}
    tasks = Counter(task.task_class.job_id for task in node.scheduler.tasks.values())
    rows = []
    for job_id, job in list(node.scheduler.jobs.items())[:ROWS_MAX]:
        if not job.home:
            rows.append(
                {
                    "job_id": job_id.hex(),
                    "state": "ended" if job.ended else "running",
                    "pid": drivers.get(job_id),
                    "namespace": job.context.namespace,
                    "working_dir": job.context.working_dir,
                    "runtime_env": job.context.environment,
                    "tasks": tasks[job_id],
                }
            )
    return rows


_REPORTS = {
    "resources": _resources,
    "node": node_report,
    "workers": _workers,
    "tasks": tasks_of,
    "actors": _actors,
    "objects": _objects,
    "jobs": _jobs,
}


def infeasible_text(message: Infeasible, strategy: Strategy | None) -> str:
    """What the submitter of a task is told that no node can run."""
    asked = [f"{amount:g} {name}" for name, amount in amounts_of(message.demand).items()]
    if strategy is not None:
        asked += [rule_text(rule) for rule in strategy.hard]
        if strategy.node_id and not strategy.soft:
            asked.append(f"node {strategy.node_id.hex()}")
    return (
        f"{message.name}() asks for {', '.join(asked)}, which no node can provide; it stays "
        f"pending until one joins that can. {'; '.join(message.nodes) or 'no node is known'}"
    )
