"""The task graph of a run is read off its lineage; the golden one is figure 4.

Reference: section 3.2, figure 4. The run itself is in ``test_runs.py``.
"""

from __future__ import annotations

from paper_experiments.fig04_task_graph.experiment import edges_of_figure
from paper_experiments.fig04_task_graph.task_graph import CONTROL, DATA, STATEFUL, GraphEdge, LineageReader
from zray import ids
from zray.protocol.messages import ACTOR, TASK, Call, Describe, Submit
from zray.protocol.user_messages import RecordCall

ROOT = bytes(range(16))
PARENT = ids.task_id(ids.child_prefix(ROOT), 0)
PREFIX = ids.child_prefix(PARENT)


def kind(name: str, what: int) -> Describe:
    return Describe(name.encode().ljust(16, b"-"), bytes(16), name, 1, (), 0, what)


def submit(task_id: bytes, parent: bytes, name: str, *deps: bytes) -> Submit:
    return Submit(task_id, parent, name.encode().ljust(16, b"-"), b"", deps)


def call(actor: bytes, counter: int, sequence: int, *deps: bytes) -> RecordCall:
    return RecordCall(Call(ids.task_id(PREFIX, counter), actor, sequence, "step", 1, b"", deps))


def reader() -> LineageReader:
    """A parent that makes one actor and calls it twice, the second time with the result of the first."""
    found = LineageReader()
    actor = ids.task_id(PREFIX, 0)
    first = ids.first_return_id(ids.task_id(PREFIX, 1))
    for message in (
        kind("parent", TASK), kind("Thing", ACTOR), submit(PARENT, ROOT, "parent"),
        submit(actor, PARENT, "Thing"), call(actor, 1, 0), call(actor, 2, 1, first, ids.put_id(PREFIX, 9)),
    ):  # fmt: skip
        found.absorb(message)
    return found


EDGES = [
    GraphEdge(CONTROL, "parent[0]", "Thing[0]"),
    GraphEdge(CONTROL, "parent[0]", "Thing[0].step[0]"),
    GraphEdge(CONTROL, "parent[0]", "Thing[0].step[1]"),
    GraphEdge(DATA, "Thing[0].step[0]", "{Thing[0].step[0]}"),
    GraphEdge(DATA, "{Thing[0].step[0]}", "Thing[0].step[1]"),
    GraphEdge(STATEFUL, "Thing[0]", "Thing[0].step[0]"),
    GraphEdge(STATEFUL, "Thing[0].step[0]", "Thing[0].step[1]"),
]


def test_the_three_kinds_of_edges() -> None:
    assert reader().edges() == EDGES


def test_what_runs_again_adds_nothing() -> None:
    found = reader()
    actor = ids.task_id(PREFIX, 0)
    found.absorb(submit(actor, PARENT, "Thing"))
    found.absorb(call(actor, 1, 0))
    assert found.edges() == EDGES


def test_calls_are_chained_in_the_order_in_which_they_ran() -> None:
    found = LineageReader()
    actor = ids.task_id(PREFIX, 0)
    for message in (
        kind("Thing", ACTOR),
        submit(actor, PARENT, "Thing"),
        call(actor, 2, 1),
        call(actor, 1, 0),
    ):
        found.absorb(message)
    assert found.names()[ids.task_id(PREFIX, 2)] == "Thing[0].step[0]"


def test_the_figure_is_sorted_and_holds_what_the_paper_names() -> None:
    lines = edges_of_figure()
    assert lines == sorted(lines)
    assert len(lines) == len(dict.fromkeys(lines)) == 29
