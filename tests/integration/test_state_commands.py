"""``zray list``, ``summary``, ``get``, ``memory``, ``why`` and ``logs`` of a running cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import clusters
from zray.cli_state import reasons

HOLDS = """
    import sys, time, zray
    zray.init(address="auto")

    @zray.remote
    def holds():
        print("holding")
        time.sleep(60)

    @zray.remote
    class Kept:
        def read(self):
            return 1

    kept = Kept.remote()
    zray.get(kept.read.remote())
    large = zray.put(bytes(1_000_000))
    first, second = holds.remote(), holds.remote()
    while len([t for t in zray.util.state.list_tasks() if t["state"] == "running"]) < 1:
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def here() -> Iterator[clusters.Place]:
    """A cluster with one CPU that one task holds and another wants."""
    with clusters.place() as place:
        assert place.zray("start", "--head", "--num-cpus", "1").returncode == 0
        driver = place.start(HOLDS)
        try:
            while (line := clusters.line_of(driver)) and line != "ready":
                pass
            assert line == "ready"
            yield place
        finally:
            clusters.tell(driver)
            clusters.finish(driver)
            place.zray("stop")


def said(here: clusters.Place, *arguments: str) -> str:
    done = here.zray(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
class TestCommands:
    def test_list(self, here: clusters.Place) -> None:
        rows = json.loads(said(here, "list", "tasks", "--format", "json"))
        assert sorted(row["state"] for row in rows) == ["ready", "running"]
        table = said(here, "list", "tasks", "--filter", "state=running").splitlines()
        assert table[0].startswith("TASK_ID")
        assert len(table) == 2
        assert said(here, "list", "tasks", "--filter", "state!=running").count("ready") == 1
        assert 'name: "Kept"' in said(here, "list", "actors", "--format", "yaml")
        for kind in ("objects", "workers", "nodes"):
            assert len(said(here, "list", kind).splitlines()) >= 2

    def test_summary(self, here: clusters.Place) -> None:
        assert said(here, "summary", "tasks").startswith("holds: 1 ")
        assert said(here, "summary", "actors") == "Kept: 1 alive\n"
        assert "arena: 1" in said(here, "summary", "objects")

    def test_why(self, here: clusters.Place) -> None:
        (ready,) = json.loads(said(here, "list", "tasks", "--filter", "state=ready", "--format", "json"))
        lines = said(here, "why", ready["task_id"]).splitlines()
        assert lines[0] == "holds is ready"
        assert "it asks for 1 CPU; 0 of 1 are free" in lines[1]
        assert lines[2].strip() == "CPU is held by holds"
        assert ready["task_id"] in said(here, "get", "tasks", ready["task_id"][:16] + ready["task_id"][16:])

    def test_memory_and_logs(self, here: clusters.Place) -> None:
        first, *_ = said(here, "memory").splitlines()[1:]
        assert "arena" in first
        files = said(here, "logs").split()
        assert "node.log" in files
        assert any("holding" in said(here, "logs", name) for name in files if name.endswith(".out"))

    @pytest.mark.parametrize(
        "arguments",
        [
            ("list", "tasks", "--filter", "state"),
            ("list", "tasks", "--filter", "nonsense=1"),
            ("get", "tasks", "zz"),
            ("why", "zz"),
            ("logs", "no-such.log"),
        ],
    )
    def test_mistakes(self, here: clusters.Place, arguments: tuple[str, ...]) -> None:
        done = here.zray(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("zray: ")


def test_reasons() -> None:
    node = {"available": {"CPU": 2}, "total": {"CPU": 2}, "host": "here"}
    base = {"name": "f", "state": "ready", "missing": [], "demand": {"GPU": 1}}
    assert "no node has more than 0" in reasons(base, [], node)[1]
    assert reasons({**base, "demand": {"CPU": 1}}, [], node)[1] == "  it waits for a worker"
    waits = {**base, "state": "waiting for inputs", "missing": ["ab"]}
    assert "it takes ab" in reasons(waits, [], node)[1]
    assert reasons({"name": "A", "state": "alive"}, [], node) == ["A is alive"]
