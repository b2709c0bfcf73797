"""Where the tasks of a node are: each is in exactly one place. For ``check()``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core.machine import invariant
from zray.ids import short

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler


def check(scheduler: LocalScheduler) -> None:
    """Raise ``InvariantError`` unless every task is in one place and waits for what it lacks (I6)."""
    places: dict[bytes, list[str]] = {task_id: [] for task_id in scheduler.tasks}
    for task_id, task in scheduler.tasks.items():
        if task.unmet:
            places[task_id].append("waiting")
    for task_class in scheduler.ready.values():
        for task in task_class.ready:
            places.setdefault(task.spec.task_id, ["unknown"]).append("ready")
    for worker in scheduler.pool.workers.values():
        for task_id in worker.queue:
            places.setdefault(task_id, ["unknown"]).append("worker")
    for task_id in scheduler.forwarded:
        places.setdefault(task_id, ["unknown"]).append("forwarded")
    for task_id in scheduler.away.tasks if scheduler.away is not None else ():
        places.setdefault(task_id, ["unknown"]).append("away")
    for task_id in scheduler.admission.held:
        if not scheduler.tasks[task_id].unmet:
            places[task_id].append("held")
    for task_id, found in places.items():
        invariant(len(found) == 1, "task", short(task_id), "is in", found)
    scheduler.admission.check()
