"""``zray list``, ``summary``, ``get``, ``memory``, ``why`` and ``logs`` of a running cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    while len([t for t in zray.util.state.list_tasks() if t["state"] == "RUNNING"]) < 1:
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
        assert sorted(row["state"] for row in rows) == ["PENDING_NODE_ASSIGNMENT", "RUNNING"]
        table = said(here, "list", "tasks", "--filter", "state=running").splitlines()
        assert table[0].startswith("TASK_ID")
        assert len(table) == 2
        assert said(here, "list", "tasks", "--filter", "state!=running").count("ready") == 1
        assert 'class_name: "Kept"' in said(here, "list", "actors", "--format", "yaml")
        for kind in ("objects", "workers", "nodes"):
            assert len(said(here, "list", kind).splitlines()) >= 2

    def test_summary(self, here: clusters.Place) -> None:
        assert said(here, "summary", "tasks").startswith("holds: 1 ")
        assert said(here, "summary", "actors") == "Kept: 1 ALIVE\n"
        assert "arena: 1" in said(here, "summary", "objects")

    def test_why(self, here: clusters.Place) -> None:
        (ready,) = json.loads(said(here, "list", "tasks", "--filter", "detail=ready", "--format", "json"))
        lines = said(here, "why", ready["task_id"]).splitlines()
        assert lines[0] == "holds is ready"
        assert "it asks for 1 CPU; 0 of 1 are free" in lines[1]
        assert lines[2].strip().startswith("1 CPU is held by holds ")
        assert ready["task_id"] in said(here, "get", "tasks", ready["task_id"][:16] + ready["task_id"][16:])

    def test_memory_and_logs(self, here: clusters.Place) -> None:
        first, *_ = said(here, "memory").splitlines()[1:]
        assert "arena" in first
        files = said(here, "logs").split()
        assert "node.log" in files
        assert any("holding" in said(here, "logs", name) for name in files if name.endswith(".out"))

    @pytest.mark.parametrize(
        ("arguments", "next_step"),
        [
            (("list", "tasks", "--filter", "state"), "a filter is KEY=VALUE or KEY!=VALUE"),
            (("list", "tasks", "--filter", "nonsense=1"), "there is no key 'nonsense'; there are task_id, "),
            (("get", "nodes", "zz"), "no id of 1 nodes begins with zz; `zray list nodes` show"),
            (("get", "tasks", ""), "tasks have an id that begins with ''; say more of it"),
            (("why", "zz"), "`zray list tasks` and `zray list actors` show"),
            (("logs", "no-such.log"), "`zray logs` name what there is"),
            (("logs", "--task-id", "zz"), "no living worker runs task zz; list_logs() and `zray logs` name"),
            (("timeline", "/no/such/folder/x"), "/no/such/folder/x: No such file or directory"),
        ],
    )
    def test_mistakes(self, here: clusters.Place, arguments: tuple[str, ...], next_step: str) -> None:
        done = here.zray(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("zray: ")
        assert next_step in done.stderr


def node(node_id: str, total: int, free: int) -> dict[str, Any]:
    return {"available": {"CPU": free}, "total": {"CPU": total}, "host": "here", "node_id": node_id}


def test_reasons() -> None:
    base = {"name": "f", "detail": "ready", "missing": [], "required_resources": {"GPU": 1}}
    idle, full = node("aa", 2, 2), node("bb", 1, 0)
    assert "no node has more than 0" in reasons(base, [idle], [], {})[1]
    one = {**base, "required_resources": {"CPU": 1}}
    assert reasons(one, [idle], [], {})[1] == "  it waits for a worker"
    holder = {
        "node_id": "bb", "demand": {"CPU": 1}, "busy_s": 2.5, "actor_id": None, "tasks": ["cc"],
        "state": "busy", "pid": 7,
    }  # fmt: skip
    assert reasons(
        {**one, "detail": "forwarded"}, [full], [holder, {**holder, "node_id": "aa"}], {"cc": "g"}
    )[1:] == [
        "  it asks for 1 CPU; 0 of 1 are free on here (bb)",
        "    1 CPU is held by g cc (process 7) for 2.5 s",
    ]
    assert (
        "no node has more than 2"
        in reasons({**base, "required_resources": {"CPU": 3}}, [idle, full], [holder], {})[1]
    )
    waits = {**base, "detail": "waiting for inputs", "missing": ["ab"]}
    assert "it takes ab" in reasons(waits, [], [], {})[1]
    assert reasons({"class_name": "A", "name": "", "state": "ALIVE"}, [], [], {}) == ["A is alive"]


HOLDS_EVERYWHERE = """
    import sys, time, zray
    from zray.cluster_utils import Cluster
    from zray.util import state
    small = {"num_cpus": 1, "object_store_memory": 1 << 26}
    cluster = Cluster(True, head_node_args=small)
    for number in range(2):
        cluster.add_node(**small, resources={f"place{number}": 1})
    zray.init(cluster.address, namespace="everywhere")

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
    refs = [holds.options(resources={f"place{n}": 1}, name=f"at{n}").remote() for n in range(2)]
    refs += [holds.options(resources={"place1": 1}, name="waits").remote()]
    while len([t for t in state.list_tasks() if t["state"] == "RUNNING"]) < 2:
        time.sleep(0.01)
    print(cluster.address, cluster.worker_nodes[1].pid, flush=True)
    sys.stdin.readline()
"""


LOOK_AT_LOGS = """
    import sys, zray
    from pathlib import Path
    from zray.util import state
    address, task_id = sys.argv[1:]
    zray.init(address)

    def read(*arguments, **options):
        return "".join(state.get_log(*arguments, **options))

    (node_id,) = [row["node_id"] for row in state.list_tasks() if row["task_id"] == task_id]
    (socket,) = [row["endpoint"] for row in state.list_nodes() if row["node_id"] == node_id]
    logs = Path(socket.removeprefix("ipc://")).parent / "logs"
    paths = state.list_logs()["worker_out"]
    assert len({path.partition("/")[0] for path in paths}) == 3, paths
    (path,) = [path for path in paths if path.startswith(node_id[:8]) and read(path) == "holding\\n"]
    name = path.partition("/")[2]
    assert read(task_id=task_id) == read(name, node_id=node_id) == "holding\\n"
    assert path in state.list_logs(glob_filter="*.out")["worker_out"]
    assert "worker_out" not in state.list_logs(node_id, "*.err")

    (logs / "linked.out").symlink_to("/etc/hostname")
    (logs / "folder.out").mkdir()
    query = zray.api.session.current().query
    for nonsense in ("../session.json", "/etc/hostname", str(logs.parent / "session.json"), "..", ".", "",
                     "linked.out", "folder.out", "worker-99.out", "../logs/" + name):
        try:
            read(nonsense, node_id=node_id)
        except ValueError as error:
            assert "log file" in str(error)
        else:
            raise AssertionError(nonsense)
        answer = query(f"at/{node_id}/logs/0/100/{nonsense}").decode()  # past the checks of this process
        assert "error" in answer and "data" not in answer, (nonsense, answer)
    for nonsense in ("logs/0/999999999/" + name, "logs/x/1/" + name, "logs/0/1", "logs/0/-1/" + name):
        assert "error" in query(f"at/{node_id}/{nonsense}").decode()
    assert "no living node" in query("at/beef/logs").decode()

    with (logs / name).open("a") as file:
        file.writelines(f"line {number} \u00e9\\n" for number in range(100_000))
    whole = (logs / name).read_text()
    assert read(path) == whole and len(whole) > 1 << 20
    for count in (0, 1, 70_000, 200_000):
        lines = whole.splitlines(True)
        assert read(path, tail=count) == "".join(lines[len(lines) - min(count, len(lines)):]), count
    print(path, logs / name)
"""


def look_at_logs(place: clusters.Place, address: str, task_id: str) -> None:
    """Files of every node, through the node that is asked; and nothing that is no log file."""
    command = [sys.executable, "-c", textwrap.dedent(LOOK_AT_LOGS), address, task_id]
    looked = place.command(*command)
    assert looked.returncode == 0, looked.stderr
    path, real = looked.stdout.split()
    at = ("--address", address)
    assert path in said(place, "logs", *at).split()
    follower = place.start_command([sys.executable, "-m", "zray.cli", "logs", path, "-f", "--tail", "1", *at])
    assert clusters.line_of(follower) == "line 99999 \u00e9"
    with Path(real).open("a") as file:
        file.write("one more\n")
    assert clusters.line_of(follower) == "one more"
    follower.send_signal(signal.SIGINT)
    clusters.finish(follower)


@pytest.mark.slow
def test_over_several_nodes() -> None:
    """Whoever asks whichever node: the same rows, each with its node."""
    with clusters.place() as place:
        driver = place.start(HOLDS_EVERYWHERE)
        while (line := clusters.line_of(driver)) and not line.startswith("ipc://"):
            pass
        address, pid = line.split()

        def rows(*arguments: str) -> list[dict[str, Any]]:
            listed = said(place, "list", *arguments, "--format", "json", "--address", address)
            return list(json.loads(listed))

        tasks = {row["name"]: row for row in rows("tasks")}
        assert [tasks[name]["state"] for name in ("at0", "at1")] == ["RUNNING", "RUNNING"]
        nodes = rows("nodes")
        assert len(nodes) == 3
        assert len({tasks["at0"]["node_id"], tasks["at1"]["node_id"], rows("actors")[0]["node_id"]}) == 3
        assert len({row["node_id"] for row in rows("workers")}) == 3
        (job,) = rows("jobs", "--filter", "namespace=everywhere")
        assert (job["pid"], job["state"], job["tasks"]) == (driver.pid, "running", 3)
        assert said(place, "get", "jobs", job["job_id"], "--address", address).startswith("- job_id:")
        why = said(place, "why", tasks["waits"]["task_id"], "--address", address)
        assert f"1 CPU is held by at1 {tasks['at1']['task_id'][:24]}" in why
        stacks = said(place, "stack", "--no-py-spy", "--address", address)
        assert stacks.count("in holds") == 2
        look_at_logs(place, address, tasks["at1"]["task_id"])
        os.kill(int(pid), signal.SIGSTOP)  # a node that does not answer holds nobody up
        living = ("--filter", "Alive=True")
        done = place.zray("list", "nodes", *living, "--format", "json", "--address", address)
        os.kill(int(pid), signal.SIGCONT)
        assert len(json.loads(done.stdout)) == 2
        clusters.tell(driver)
        clusters.finish(driver)
