"""Timelines, metrics and stacks of real processes; one of them stopped, one killed, one ended."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests import clusters
from tests.support import eventually
from zray.util import state
from zray.util.metrics import Counter, Gauge, Histogram

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with zray.init(num_cpus=2):
        yield


@zray.remote
def work(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


@zray.remote
class Overlapping:
    async def wait(self, seconds: float) -> int:
        import asyncio

        await asyncio.sleep(seconds)
        return os.getpid()

    def hold(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.01)


class TestTimeline:
    def test_tasks_and_calls_are_in_it(self, tmp_path: Path) -> None:
        pids = zray.get([work.remote(0.01) for _ in range(4)])
        zray.get(work.remote(0.01))  # perhaps on a lease
        actor = Overlapping.remote()
        actor_pid = zray.get([actor.wait.remote(0.05) for _ in range(3)])[0]
        events = zray.timeline()
        assert events is not None
        spans = [event for event in events if event["ph"] == "X"]
        worked = [span for span in spans if span["name"].endswith("work") and span["dur"] >= 10_000]
        assert len(worked) >= 5
        assert {span["pid"] for span in worked} >= set(pids)
        calls = [span for span in spans if span["pid"] == actor_pid]
        assert len({span["tid"] for span in calls}) == 3, "calls at once have a track each"
        zray.timeline(filename=tmp_path / "trace.json")
        assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) >= len(events)

    def test_a_worker_that_has_ended_is_in_it_and_one_that_is_stopped_is_not_waited_for(self) -> None:
        pid = zray.get(work.options(max_calls=1).remote())
        eventually(lambda: not os.path.exists(f"/proc/{pid}"), PATIENCE_S)
        assert pid in {event["pid"] for event in zray.timeline() or ()}
        actor = Overlapping.remote()
        stopped = zray.get(actor.wait.remote(0))
        os.kill(stopped, signal.SIGSTOP)
        try:
            assert stopped in state.list_stacks()["silent"]
        finally:
            os.kill(stopped, signal.SIGCONT)


@zray.remote
def measured(counter: Counter, histogram: Histogram, gauge: Gauge, number: int) -> None:
    counter.inc(number, tags={"kind": "even" if number % 2 == 0 else "odd"})
    histogram.observe(number)
    gauge.set(number)


class TestMetrics:
    def test_they_add_up_over_processes_also_those_that_ended(self) -> None:
        counter = Counter("test_items", 'with "quotes"', tag_keys=("kind",))
        histogram = Histogram("test_sizes", boundaries=[1, 10])
        gauge = Gauge("test_level")
        once = measured.options(max_calls=1)
        zray.get([once.remote(counter, histogram, gauge, number) for number in (1, 2, 3, 20)])
        counter.inc(0.5, tags={"kind": "odd"})
        zray.get(measured.remote(counter, histogram, gauge, 4))

        def series() -> dict[str, Any]:
            return {row["name"]: row["series"] for row in state.list_metrics()}

        def complete() -> bool:  # those that end say so on their way out
            return sum(row["values"][1] for row in series().get("test_sizes", ())) == 5

        eventually(complete, PATIENCE_S)
        found = series()
        assert {row["tags"]["kind"]: row["values"][0] for row in found["test_items"]} == {
            "even": 26, "odd": 4.5,
        }  # fmt: skip
        assert found["test_level"][0]["values"][0] == 4
        text = state.metrics_text()
        assert '# HELP test_items with "quotes"\n# TYPE test_items counter\n' in text
        assert 'test_items{kind="even"} 26\n' in text
        assert 'test_sizes_bucket{le="1"} 1\ntest_sizes_bucket{le="10"} 4\n' in text
        assert 'test_sizes_bucket{le="+Inf"} 5\ntest_sizes_sum 30\ntest_sizes_count 5\n' in text

    def test_tags_have_defaults_and_are_checked(self) -> None:
        counter = Counter("test_tagged", tag_keys=("a", "b"))
        counter.set_default_tags({"a": "1"})
        counter.inc(tags={"b": "2"})
        again = pickle.loads(pickle.dumps(counter))
        assert again.info == counter.info
        with pytest.raises(ValueError, match="needs a value"):
            counter.inc()
        with pytest.raises(ValueError, match="has no tag"):
            counter.inc(tags={"c": "3"})
        with pytest.raises(TypeError, match="is a string"):
            counter.inc(tags={"b": 2})  # type: ignore[dict-item]

    def test_nonsense(self) -> None:
        with pytest.raises(ValueError, match="name of a metric"):
            Counter("no spaces")
        with pytest.raises(ValueError, match="grows"):
            Counter("test_shrinks").inc(-1)
        with pytest.raises(TypeError, match="numbers"):
            Gauge("test_text").set("high")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="boundaries"):
            Histogram("test_unsorted", boundaries=[3, 1])
        with pytest.raises(ValueError, match="another metric"):
            Gauge("test_shrinks")

    def test_series_are_bounded(self) -> None:
        counter = Counter("test_many", tag_keys=("user",))
        for number in range(1_100):
            counter.inc(tags={"user": str(number)})
        (family,) = [row for row in state.list_metrics() if row["name"] == "test_many"]
        assert len(family["series"]) == 1_001
        assert {"tags": {"overflow": "true"}, "values": [100.0, 0.0]} in family["series"]


class TestStacks:
    def test_user_code_that_runs_is_seen(self, tmp_path: Path) -> None:
        path = str(tmp_path / "go")
        actor = Overlapping.remote()
        held = actor.hold.remote(path)
        eventually(lambda: "in hold\n" in json.dumps(state.list_stacks()).replace("\\n", "\n"), PATIENCE_S)
        Path(path).touch()
        zray.get(held, timeout=PATIENCE_S)


def test_commands(tmp_path: Path) -> None:
    with clusters.place() as place:
        assert place.zray("start", "--head", "--num-cpus", "1").returncode == 0
        driver = place.start("""
            import sys, time, zray
            zray.init(address="auto")
            counter = zray.util.metrics.Counter("from_command", "counted")

            @zray.remote
            def sleeps_here():
                counter.inc(2)
                print("asleep")
                time.sleep(60)

            ref = sleeps_here.remote()
            sys.stdin.readline()
        """)
        try:
            assert "asleep" in clusters.line_of(driver)
            stack = place.zray("stack", "--no-py-spy")
            assert "in sleeps_here" in stack.stdout, stack.stderr
            assert "from_command 2\n" in place.zray("metrics").stdout
            done = place.zray("timeline", str(tmp_path / "t.json"))
            assert "perfetto" in done.stdout, done.stderr
            assert "traceEvents" in json.loads((tmp_path / "t.json").read_text())
        finally:
            clusters.tell(driver)
            clusters.finish(driver)
            place.zray("stop")
