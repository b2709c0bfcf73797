"""The task graph of a recorded run: data, control and stateful edges (section 4.1 and figure 4).

It is read off what the node of the run was told: submissions, with who submitted them and what they take,
and the calls that actors ran, in the order in which they ran them. Tasks and calls are named by what they run
and by their place among those of their kind, so two runs of one program give the same names.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sim.replay import Machines, open_trace
from zray import ids
from zray.protocol.messages import ACTOR, Call, Describe, LeasedDone, Submit
from zray.protocol.trace import Pumped
from zray.protocol.user_messages import RecordCall

DATA, CONTROL, STATEFUL = KINDS = ("data", "control", "stateful")


class GraphEdge(NamedTuple):
    """``source -> target``; objects are written like ``{the task that makes them}``."""

    kind: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.source} -> {self.target}"


class LineageReader:
    """Collects submissions and calls.

    Attributes:
        kinds: descriptor id -> what it says.
        submitted: task id -> its spec; a parent that runs again submits the same.
        calls: actor id -> its calls by task id, in the order in which they ran first.
    """

    def __init__(self) -> None:
        self.kinds: dict[bytes, Describe] = {}
        self.submitted: dict[bytes, Submit] = {}
        self.calls: dict[bytes, dict[bytes, Call]] = {}

    def absorb(self, message: Any) -> None:
        """One message that a node got."""
        match message:
            case Describe():
                self.kinds[message.descriptor_id] = message
            case Submit():
                self.submitted.setdefault(message.task_id, message)
            case LeasedDone():
                self.submitted.setdefault(message.spec.task_id, message.spec)
            case RecordCall(call):
                self.calls.setdefault(call.actor_id, {}).setdefault(call.task_id, call)

    # --- names -------------------------------------------------------------------------------------

    def names(self) -> dict[bytes, str]:
        """Task id -> name. Siblings are numbered in the order of submission, calls in that of running."""
        found: dict[bytes, str] = {}
        counts: dict[str, int] = {}
        for task_id in sorted(self.submitted):  # a parent's counter is behind its prefix
            kind = self.kinds[self.submitted[task_id].descriptor_id]
            number = counts[kind.name] = counts.get(kind.name, -1) + 1
            found[task_id] = f"{kind.name}[{number}]"
        for actor_id, calls in self.calls.items():
            counts.clear()
            for task_id, call in calls.items():
                number = counts[call.method] = counts.get(call.method, -1) + 1
                found[task_id] = f"{found[actor_id]}.{call.method}[{number}]"
        return found

    # --- edges -------------------------------------------------------------------------------------

    def edges(self) -> list[GraphEdge]:
        """All edges, sorted. An object that nobody takes is left out, as in the figure."""
        names = self.names()
        inputs = {task_id: spec.deps for task_id, spec in self.submitted.items()}
        inputs |= {task_id: call.deps for calls in self.calls.values() for task_id, call in calls.items()}
        found = [*self._control(names), *self._stateful(names)]
        for task_id, deps in inputs.items():
            for producer in dict.fromkeys(map(ids.producer_of, deps)):
                if producer in names:  # else it was put
                    found.append(GraphEdge(DATA, names[producer], f"{{{names[producer]}}}"))
                    found.append(GraphEdge(DATA, f"{{{names[producer]}}}", names[task_id]))
        return sorted(dict.fromkeys(found))

    def _control(self, names: dict[bytes, str]) -> list[GraphEdge]:
        parents = {ids.child_prefix(task_id): name for task_id, name in names.items()}
        return [
            GraphEdge(CONTROL, parents[task_id[: ids.PREFIX_BYTES]], name)
            for task_id, name in names.items()
            if task_id[: ids.PREFIX_BYTES] in parents  # else a driver submitted it
        ]

    def _stateful(self, names: dict[bytes, str]) -> list[GraphEdge]:
        found = []
        for task_id, spec in self.submitted.items():
            if self.kinds[spec.descriptor_id].kind == ACTOR:  # the creation is the first of its chain
                chain = [task_id, *self.calls.get(task_id, ())]
                pairs = pairwise(chain)
                found += [GraphEdge(STATEFUL, names[one], names[other]) for one, other in pairs]
        return found


def recorded_edges(path: Path) -> list[GraphEdge]:
    """The task graph of the trace of a node.

    Raises:
        TraceError: if it cannot be read.
    """
    start, _, records = open_trace(path)
    machines, reader = Machines(start), LineageReader()
    for record in records:
        if isinstance(record, Pumped):
            for _, message in machines.batch(record):
                reader.absorb(message)
    return reader.edges()
