"""The model of the file that has a shard's flushed rows: what was asked for is done in order, and may fail.

It lives as long as its process. ``runtime/row_file.py`` is the real one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zray.core.flushing_shard import FlushingShard
from zray.core.flushing_table import FlushingTaskTable
from zray.core.machine import ROWS
from zray.core.tables import TaskTable
from zray.protocol.flushing import (
    ClearRows,
    DropRows,
    FlushRows,
    ReadRowPage,
    ReadRows,
    RowsFlushed,
    RowsRead,
)
from zray.protocol.messages import RecordTasks, TaskRecord

if TYPE_CHECKING:
    from sim.hosts import MachineHost
    from zray.core.control_shard import ControlShard


class ModelRowFile:
    """Rows by key."""

    def __init__(self) -> None:
        self.rows: dict[bytes, TaskRecord] = {}

    def carry_out(self, request: Any, error: str = "") -> RowsFlushed | RowsRead | None:
        """Do what a shard asks for; ``error``: a write that fails, for this reason.

        Raises:
            KeyError: if a row is asked for that is not there, which a real file refuses as damage.
        """
        match request:
            case FlushRows(number, rows):
                if not error:
                    self.rows.update((row.task_id, row) for row in rows)
                return RowsFlushed(number, error)
            case ReadRows(number, task_ids):
                return RowsRead(number, tuple(self.rows[task_id] for task_id in task_ids))
            case ReadRowPage(number, after, limit):
                keys = sorted(self.rows)
                start = bisect_right(keys, after)
                return RowsRead(number, tuple(self.rows[key] for key in keys[start : start + limit]))
            case DropRows(task_ids):
                for task_id in task_ids:
                    self.rows.pop(task_id, None)
            case ClearRows():
                self.rows.clear()
            case _:
                raise TypeError(f"a file of rows cannot {request!r}")
        return None

    def all_rows(self) -> Iterator[TaskRecord]:
        """Every row, in the order of keys."""
        return iter([self.rows[key] for key in sorted(self.rows)])

    def records_of(self, table: TaskTable) -> dict[bytes, TaskRecord]:
        """Every row of a shard, wherever it is."""
        if not isinstance(table, FlushingTaskTable):
            return dict(table.records)
        return {record.task_id: record for record in table.with_flushed(self.all_rows())}


def settle(shard: ControlShard, file: ModelRowFile) -> None:
    """Carry out what a shard that is being recovered wants of its file; its other effects are dropped."""
    while True:
        shard.flush(0)
        requests = [message for destination, message in shard.out if destination == ROWS]
        shard.out.clear()
        if not requests:
            return
        for request in requests:
            answer = file.carry_out(request)
            if answer is not None:
                shard.HANDLERS[type(answer)](shard, 0, ROWS, answer)


class SimRows:
    """The file of one life of a process, on a disk that takes its time."""

    def __init__(self, host: MachineHost) -> None:
        self.host = host
        self.file = ModelRowFile()
        self.random = host.kernel.stream("flushing")
        self._free_ns = 0

    def serve(self, requests: list[Any]) -> None:
        """One after the other, each some time after the one before it."""
        costs, faults = self.host.cluster.costs, self.host.cluster.faults
        for request in requests:
            took_ns = int(costs.disk_latency_ns * self.random.random()) * faults.disk_slowdown()
            self._free_ns = max(self._free_ns, self.host.kernel.now_ns) + took_ns
            self.host.kernel.at(self._free_ns, self._carry_out, (self.host.life, request))

    def _carry_out(self, planned: tuple[int, Any]) -> None:
        life, request = planned
        if life != self.host.life:
            return
        fails = isinstance(request, FlushRows) and self.host.cluster.faults.flush_fails(self.random)
        answer = self.file.carry_out(request, "the disk is full (a fault)" if fails else "")
        if answer is not None:
            self.host.deliver(ROWS, [answer])

    def find(self, shard: ControlShard, task_id: bytes) -> TaskRecord | None:
        """The newest that a shard has of a task: promised to its predecessor, in memory, or in the file."""
        table = shard.tasks
        if not isinstance(table, FlushingTaskTable) or not isinstance(shard, FlushingShard):
            return table.records.get(task_id)
        promised = [
            record
            for waiting in shard.line
            if waiting.replayed and isinstance(waiting.message, RecordTasks)
            for record in waiting.message.records
            if record.task_id == task_id
        ]
        here = self.file.rows[task_id] if task_id in table.flushed else table.records.get(task_id)
        return max([*promised, *([here] if here else [])], key=lambda record: record.attempt, default=None)

    def tables_of(self, shard: ControlShard) -> tuple[Any, ...]:
        """All that replicas must agree about, in an order of its own."""
        if not isinstance(shard, FlushingShard):
            return tuple(shard.snapshot())
        messages = [
            command.message for command in shard.snapshot() if not isinstance(command.message, RecordTasks)
        ]
        return messages, self.file.records_of(shard.tasks)
