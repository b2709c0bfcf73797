"""The task graph of a recorded run: who submitted what when, what it took, what it waited for.

A node sees every submission, dependency, run time and size, and when a task blocks. It does not see a ``get``
of a result that was sent to the submitter anyway. So a wait of a driver is inferred: it went on only after
everything that it had submitted was done. What a program *decided* is not decided again: the graph is what
was submitted. Calls of actors go past the node and are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sim.replay import Machines, config_of, open_trace
from zray.config import Config
from zray.core.resources import amounts_of
from zray.protocol.messages import (
    ACTOR,
    DRIVER,
    Blocked,
    Create,
    Demand,
    Describe,
    Hello,
    LeasedDone,
    Submit,
    TaskDone,
    Unblocked,
)
from zray.protocol.trace import NodeStart, Pumped, TraceError

SUBMITTED, WAITED = 0, 1
LEASED_REPORT_NS_MAX = 50_000_000
"""A submitter that waits for the result of a leased task tells the node of earlier ones within this time."""


class RecordedTask:
    """One task as it was submitted and ran."""

    __slots__ = ("blocked_ns", "done_ns", "kind", "number", "run_ns", "sizes", "spec", "submitted_ns")

    def __init__(self, number: int, spec: Submit, kind: Describe, submitted_ns: int) -> None:
        self.number = number
        self.spec = spec
        self.kind = kind
        self.submitted_ns = submitted_ns
        self.done_ns = 0  # 0: it did not end while the trace was recorded
        self.run_ns = 0  # with the time in which it was blocked
        self.blocked_ns = 0
        self.sizes: tuple[int, ...] = ()

    @property
    def work_ns(self) -> int:
        """How long it used its processor."""
        return max(0, self.run_ns - self.blocked_ns)


class Step(NamedTuple):
    """What a context did next: submitted a task, or waited for some. ``think_ns``: since it could go on."""

    think_ns: int
    what: int
    tasks: tuple[bytes, ...]


class Submitter:
    """A driver or a task that submits: its events in the order of time."""

    __slots__ = ("blocked_since_ns", "events", "first_ns", "trace")

    def __init__(self, trace: int) -> None:
        self.trace = trace
        self.first_ns = 0
        self.blocked_since_ns = 0
        self.events: list[tuple[int, int, bytes, int]] = []  # (time, what, task, end of the wait)


class Graph:
    """All that was submitted to some nodes.

    Attributes:
        tasks: by task id, in the order of submission.
        drivers: root tasks, in the order of their nodes.
        sizes: bytes of objects that were stored, by object id.
        actors: how many actors were created, whose calls are not part of the graph.
    """

    def __init__(self) -> None:
        self.tasks: dict[bytes, RecordedTask] = {}
        self.kinds: dict[bytes, Describe] = {}
        self.submitters: dict[bytes, Submitter] = {}
        self.drivers: list[bytes] = []
        self.sizes: dict[bytes, int] = {}
        self.nodes: list[Demand] = []
        self.config = Config()
        self.leases_heard_ns: dict[int, int] = {}  # node -> when it last heard of leased tasks
        self.actors = 0

    @property
    def cpus(self) -> int:
        """CPUs of the widest recorded node."""
        return max(1, *(round(amounts_of(total).get("CPU", 1)) for total in self.nodes))

    @property
    def first_ns(self) -> int:
        """The first submission."""
        return min(task.submitted_ns for task in self.tasks.values())

    @property
    def makespan_ns(self) -> int:
        """From the first submission to the end of the last task."""
        return max(task.done_ns for task in self.tasks.values()) - self.first_ns

    @property
    def work_ns(self) -> int:
        """Processor time of all tasks."""
        return sum(task.work_ns for task in self.tasks.values())

    @property
    def unfinished(self) -> int:
        """Tasks that did not end while the trace was recorded."""
        return sum(not task.done_ns for task in self.tasks.values())

    # --- reading -----------------------------------------------------------------------------------

    def absorb(self, number: int, now_ns: int, message: Any) -> None:
        """One message that a node got."""
        match message:
            case Submit():
                self._submitted(number, now_ns, message)
            case TaskDone():
                self._done(now_ns, message)
            case Describe():
                self.kinds[message.descriptor_id] = message
            case Hello() if message.role == DRIVER and message.job_id not in self.drivers:
                self.drivers.append(message.job_id)
                self.submitters[message.job_id] = Submitter(number)
            case Create(object_id, size):
                self.sizes[object_id] = size
            case Blocked(task_id):
                self._submitter(number, task_id).blocked_since_ns = now_ns
            case Unblocked(task_id):
                self._unblocked(number, now_ns, task_id)

    def absorb_leased(self, number: int, now_ns: int, batch: list[tuple[bytes, Any]]) -> None:
        """Tasks that went past the node, on a lease; it hears of them later, several at once.

        They ran one after the other, each submitted when the one before had ended: here evenly since the
        last report of their submitter.
        """
        reports = [
            message for _, message in batch
            if type(message) is LeasedDone and message.spec.task_id not in self.tasks
        ]  # fmt: skip
        reports = list({message.spec.task_id: message for message in reports}.values())
        since_ns = max(self.leases_heard_ns.get(number, 0), now_ns - LEASED_REPORT_NS_MAX)
        self.leases_heard_ns[number] = now_ns
        run_ns = sum(message.run_ns for message in reports)
        pause_ns = max(0, now_ns - since_ns - run_ns) // max(1, len(reports))
        at_ns = now_ns - run_ns - pause_ns * len(reports)
        for message in reports:
            self._submitted(number, at_ns + pause_ns, message.spec)
            at_ns += pause_ns + message.run_ns
            task = self.tasks.get(message.spec.task_id)
            if task is not None:
                task.done_ns, task.run_ns = at_ns, message.run_ns
                task.sizes = (len(message.value.data) if message.value is not None else 0,)

    def _submitter(self, number: int, task_id: bytes) -> Submitter:
        found = self.submitters.get(task_id)
        if found is None:
            found = self.submitters[task_id] = Submitter(number)
        return found

    def _submitted(self, number: int, now_ns: int, spec: Submit) -> None:
        kind = self.kinds.get(spec.descriptor_id)
        if kind is None or spec.task_id in self.tasks:  # its parent ran again
            return
        if kind.kind == ACTOR:
            self.actors += 1
            return
        self.tasks[spec.task_id] = RecordedTask(len(self.tasks), spec, kind, now_ns)
        self._submitter(number, spec.parent_id).events.append((now_ns, SUBMITTED, spec.task_id, 0))

    def _done(self, now_ns: int, done: TaskDone) -> None:
        task = self.tasks.get(done.task_id)
        if task is not None:
            task.done_ns, task.run_ns = now_ns, done.run_ns
            task.sizes = tuple(value.size or len(value.data) for value in done.values)

    def _unblocked(self, number: int, now_ns: int, task_id: bytes) -> None:
        submitter = self._submitter(number, task_id)
        since_ns, submitter.blocked_since_ns = submitter.blocked_since_ns, 0
        if not since_ns:
            return
        task = self.tasks.get(task_id)
        if task is not None:
            task.blocked_ns += now_ns - since_ns
        submitter.events.append((since_ns, WAITED, b"", now_ns))

    # --- what a submitter did ----------------------------------------------------------------------

    def steps_of(self, task_id: bytes) -> tuple[list[Step], int]:
        """What a driver or task did, and how long it went on after the last step, in nanoseconds."""
        submitter = self.submitters.get(task_id)
        task = self.tasks.get(task_id)
        if submitter is None or not submitter.events:
            return [], task.work_ns if task is not None else 0
        since_ns = min(event[0] for event in submitter.events)
        if task is not None and task.done_ns:
            since_ns = min(since_ns, task.done_ns - task.run_ns)
        else:
            since_ns = min(since_ns, self.first_ns)
        steps: list[Step] = []
        open_tasks: dict[bytes, None] = {}
        for now_ns, what, submitted, end_ns in sorted(submitter.events, key=lambda event: event[0]):
            if what == WAITED:
                done = self._done_by(open_tasks, end_ns)
                steps.append(Step(max(0, now_ns - since_ns), WAITED, done))
                since_ns = end_ns
            else:
                if task is None and (done := self._waited_for(open_tasks, now_ns)):
                    last_ns = max(self.tasks[one].done_ns for one in done)
                    if last_ns > since_ns:
                        steps.append(Step(0, WAITED, done))
                        since_ns = last_ns
                steps.append(Step(max(0, now_ns - since_ns), SUBMITTED, (submitted,)))
                since_ns = now_ns
                open_tasks[submitted] = None
                continue
            for one in done:
                del open_tasks[one]
        return steps, 0 if task is None else max(0, task.done_ns - since_ns)

    def _done_by(self, open_tasks: dict[bytes, None], time_ns: int) -> tuple[bytes, ...]:
        return tuple(one for one in open_tasks if 0 < self.tasks[one].done_ns <= time_ns)

    def _waited_for(self, open_tasks: dict[bytes, None], now_ns: int) -> tuple[bytes, ...]:
        """What a driver must have waited for before it went on at ``now_ns``; clears what is over."""
        newest = next(reversed(open_tasks), None)
        if newest is None or not 0 < self.tasks[newest].done_ns < now_ns:
            return ()
        done = self._done_by(open_tasks, now_ns)
        if len(done) < len(open_tasks):
            return ()
        open_tasks.clear()
        return done


def load_graph(paths: Sequence[str | Path]) -> Graph:
    """The graph of the traces of the nodes of one run.

    Raises:
        TraceError: if one cannot be read, is not of a node, or nothing was submitted.
    """
    graph = Graph()
    for number, path in enumerate(paths):
        start, _, records = open_trace(path)
        node = start.machines[0]
        if not isinstance(node, NodeStart):
            raise TraceError(f"{path}: the trace of a control store has no tasks; give that of a node")
        graph.nodes.append(node.total)
        graph.config = config_of(start)
        machines = Machines(start)
        try:
            for record in records:
                if isinstance(record, Pumped):
                    batch = machines.batch(record)
                    for _, message in batch:
                        graph.absorb(number, record.now_ns, message)
                    graph.absorb_leased(number, record.now_ns, batch)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None
    if not graph.tasks:
        raise TraceError(f"{paths[0]}: no task was submitted while it was recorded")
    return graph
