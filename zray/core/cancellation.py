"""Taking work back: a task that waits, is queued or runs, and what it submitted.

What has not reached a worker ends here and now. What has is the worker's to find: it removes the task from
its queue, or interrupts it, and reports the attempt as failed, which then is not tried again. With ``force``
the process ends instead; tasks that it held besides run elsewhere. Whoever finished before the word reached
it has finished: a value that is sealed stays (I1, I10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.core.machine import Address
from zray.core.worker_pool import TaskEntry, Worker
from zray.ids import short
from zray.protocol import faults
from zray.protocol.messages import ACTOR, Value
from zray.protocol.user_messages import Cancel, Interrupt

if TYPE_CHECKING:
    from zray.core.local_scheduler import LocalScheduler


def cancelled_value(task_id: bytes) -> Value:
    """What the return objects of a cancelled task hold."""
    return faults.fault_value(faults.CANCELLED, short(task_id))


class Cancellation:
    """Which tasks end because somebody said so. Pure; a room of the :class:`LocalScheduler` of its node."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self.scheduler = scheduler

    def cancel(self, source: Address, message: Cancel) -> None:
        """Take back a task, and with ``recursive`` the unfinished ones below it.

        A task that runs on a worker leased to ``source`` is not known here: its submitter tells the worker
        itself. To end a process is the node's part.
        """
        if message.force and message.lease_id:
            self._end_leased(source, message.lease_id)
        workers = {
            task_id: worker for worker in self.scheduler.pool.workers.values() for task_id in worker.queue
        }
        for task_id in self._wanted(message):
            task = self.scheduler.tasks.get(task_id)
            if task is not None and task.task_class.descriptor.kind != ACTOR:
                self._cancel(task, workers.get(task_id), message)

    def _end_leased(self, submitter: Address, lease_id: int) -> None:
        for lease in self.scheduler.leases.by_worker.values():
            if lease.submitter == submitter and lease.lease_id == lease_id:
                self.scheduler.pool.kill(lease.worker)

    def _wanted(self, message: Cancel) -> list[bytes]:
        """The task first, then what it submitted, level by level. Cost: O(unfinished tasks)."""
        wanted = {message.task_id: None}
        if message.recursive:
            children: dict[bytes, list[bytes]] = {}
            for task_id, task in self.scheduler.tasks.items():
                children.setdefault(task.spec.parent_id, []).append(task_id)
            level = [message.task_id]
            while level:
                level = [child for parent in level for child in children.pop(parent, ())]
                wanted.update(dict.fromkeys(level))
        return list(wanted)

    def _cancel(self, task: TaskEntry, worker: Worker | None, message: Cancel) -> None:
        if worker is None:
            if self.scheduler.away is not None:
                self.scheduler.away.cancel(message, task.spec.task_id)
            self.scheduler.withdraw(task, cancelled_value(task.spec.task_id))
            return
        task.verdict = cancelled_value(task.spec.task_id)
        if message.force:
            self.scheduler.pool.kill(worker)
        else:
            self.scheduler.out.append((worker.worker_id, Interrupt(task.spec.task_id, message.recursive)))
