"""The graph of a recorded run, and what it would take elsewhere."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from sim.command import main
from sim.graph import SUBMITTED, WAITED, load_graph
from sim.whatif import WhatIfError, estimate, predict
from tests.traces import lone_node, record_scenario, records_of, rewrite
from zray import ids
from zray.protocol.messages import DRIVER, PROTOCOL_VERSION, Describe, Hello, Submit, TaskDone, Value
from zray.protocol.trace import Booted, Pumped, TraceError, TraceStart, encode

MS = 1_000_000
JOB = b"job00000" + bytes(8)
KIND = Describe(b"k" * 16, b"f" * 16, "work", 1, (("CPU", 10_000),), 3)


def task_id(number: int) -> bytes:
    return ids.task_id(ids.child_prefix(JOB), number)


class Story:
    """The trace of a node, written by hand: times in milliseconds."""

    def __init__(self, path: Path) -> None:
        _, start = lone_node()
        self.path = path
        head = TraceStart("0", PROTOCOL_VERSION, "other", "commit", "here", 1, "now", {}, (start,))
        self.records: list[object] = [head, Booted(1, 2)]
        self.pump(1, Hello(PROTOCOL_VERSION, DRIVER, 1, JOB), KIND)

    def pump(self, now_ms: float, *messages: object) -> None:
        batch = [(b"d" * 16, message) for message in messages]
        self.records.append(Pumped(0, int(now_ms * MS), msgspec.Raw(encode(batch)), 0, b""))

    def submit(self, now_ms: float, *numbers: int, deps: tuple[bytes, ...] = (), parent: bytes = JOB) -> None:
        self.pump(now_ms, *(Submit(task_id(one), parent, KIND.descriptor_id, b"", deps) for one in numbers))

    def done(self, now_ms: float, number: int, run_ms: float) -> None:
        self.pump(now_ms, TaskDone(task_id(number), 0, (Value(0, b"12345"),), int(run_ms * MS)))

    def write(self) -> Path:
        rewrite(self.path, self.records)
        return self.path


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "node.trace")


def test_tasks_their_times_and_sizes_are_found(story: Story) -> None:
    story.submit(10, 1, 2)
    story.done(110, 1, 100)
    story.done(111, 2, 100)
    graph = load_graph([story.write()])
    assert [task.work_ns // MS for task in graph.tasks.values()] == [100, 100]
    assert graph.makespan_ns == 101 * MS
    assert graph.tasks[task_id(1)].sizes == (5,)
    assert graph.cpus == 2


def test_a_driver_that_went_on_after_everything_was_done_has_waited(story: Story) -> None:
    story.submit(10, 1, 2)
    story.done(110, 1, 100)
    story.done(111, 2, 100)
    story.submit(131, 3)
    story.done(140, 3, 9)
    steps, _ = load_graph([story.write()]).steps_of(JOB)
    assert [(step.think_ns // MS, step.what, len(step.tasks)) for step in steps] == [
        (0, SUBMITTED, 1), (0, SUBMITTED, 1), (0, WAITED, 2), (20, SUBMITTED, 1),
    ]  # fmt: skip


def test_independent_tasks_gain_from_more_cpus_and_a_chain_does_not(story: Story) -> None:
    story.submit(10, *range(1, 9))
    for number in range(1, 9):
        story.done(10 + 100 * ((number + 1) // 2), number, 100)
    path = story.write()
    prediction = predict([path], cpus=8)
    assert prediction.recorded_ns == 400 * MS
    assert prediction.same_shape.makespan_ns == pytest.approx(400 * MS, rel=0.05)
    assert prediction.other_shape.makespan_ns == pytest.approx(100 * MS, rel=0.1)

    chain = Story(path.with_name("chain.trace"))
    deps: tuple[bytes, ...] = ()
    for number in range(1, 5):
        chain.submit(10, number, deps=deps)
        deps = (ids.first_return_id(task_id(number)),)
    for number in range(1, 5):
        chain.done(10 + 100 * number, number, 100)
    found = predict([chain.write()], cpus=8)
    assert found.other_shape.makespan_ns == pytest.approx(400 * MS, rel=0.05)


def test_a_prediction_can_be_repeated(story: Story) -> None:
    story.submit(10, *range(1, 30))
    for number in range(1, 30):
        story.done(20 + number, number, 1)
    path = story.write()
    assert predict([path], nodes=3, seed=5) == predict([path], nodes=3, seed=5)


def test_nested_tasks_are_submitted_by_their_parents(story: Story) -> None:
    story.submit(10, 1)
    story.submit(30, 2, 3, parent=task_id(1))
    story.done(70, 2, 40)
    story.done(70, 3, 40)
    story.done(80, 1, 70)
    graph = load_graph([story.write()])
    steps, rest_ns = graph.steps_of(task_id(1))
    assert [step.think_ns // MS for step in steps] == [20, 0]
    assert rest_ns == 50 * MS
    assert estimate(graph, nodes=1, cpus=4).makespan_ns == pytest.approx(70 * MS, rel=0.05)


def test_what_no_node_can_run_is_told(story: Story) -> None:
    story.submit(10, 1)
    story.done(110, 1, 100)
    graph = load_graph([story.write()])
    kind = graph.tasks[task_id(1)].kind
    graph.tasks[task_id(1)].kind = replace(kind, demand=(("CPU", 990_000),))
    with pytest.raises(WhatIfError, match=r"1 tasks wait and none can run.*nodes had \[{'CPU': 2\.?0?}\]"):
        estimate(graph, nodes=1, cpus=4)


def test_an_empty_trace_and_a_shards_trace_are_refused(story: Story) -> None:
    with pytest.raises(TraceError, match="no task was submitted"):
        load_graph([story.write()])


def test_a_recorded_scenario_is_predicted_close_to_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.trace"
    record_scenario(path, "tree", monkeypatch)
    assert any(isinstance(record, Pumped) for record in records_of(path))
    prediction = predict([path])
    assert prediction.tasks > 20
    assert prediction.same_shape == prediction.other_shape
    assert 0.5 < prediction.same_shape.makespan_ns / prediction.recorded_ns < 1.5
    assert main(["whatif", str(path), "--nodes", "4", "--cpus", "2", "--policy", "centralised"]) == 0
    said = capsys.readouterr().out
    assert "recorded" in said
    assert "4 nodes of 2 CPUs, centralised" in said


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["whatif", "x", "--nodes", "0"])
    with pytest.raises(SystemExit):
        main(["whatif", "x", "--policy", "magic"])
