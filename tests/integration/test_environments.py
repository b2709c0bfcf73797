"""Runtime environments, the runtime context, options of init, and what workers print."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests import clusters, conformance
from zray.runtime_env import RuntimeEnv

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(
        num_cpus=2, namespace="here", runtime_env={"env_vars": {"JOB": "job", "BOTH": "job"}}
    ):
        yield


@zray.remote
def variable(name: str) -> str | None:
    return os.environ.get(name)


@zray.remote
def pid() -> int:
    return os.getpid()


@zray.remote
class Asker:
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def context(self) -> dict[str, Any]:
        return zray.get_runtime_context().get()


class TestEnvironments:
    def test_of_the_job(self) -> None:
        assert zray.get(variable.remote("JOB")) == "job"
        assert zray.get(Asker.remote().variable.remote("JOB")) == "job"

    def test_of_a_task_adds_to_it(self) -> None:
        mine = variable.options(runtime_env={"env_vars": {"BOTH": "task", "OWN": "1"}})
        assert zray.get([mine.remote(name) for name in ("JOB", "BOTH", "OWN")]) == ["job", "task", "1"]
        assert zray.get([variable.remote(name) for name in ("BOTH", "OWN")]) == ["job", None]

    def test_of_an_actor(self) -> None:
        asker = Asker.options(runtime_env=RuntimeEnv(env_vars={"OWN": "actor"})).remote()
        assert zray.get(asker.variable.remote("OWN")) == "actor"

    def test_what_a_task_submits_inherits_it(self) -> None:
        @zray.remote(num_cpus=0)
        def outer() -> list[Any]:
            return zray.get([variable.options(num_cpus=0).remote(name) for name in ("OWN", "JOB")])

        assert zray.get(outer.options(runtime_env={"env_vars": {"OWN": "o"}}).remote()) == ["o", "job"]

    def test_workers_are_shared_only_by_equals(self) -> None:
        one = {"env_vars": {"KIND": "one"}}
        pids = [
            zray.get([pid.options(runtime_env=env).remote() for _ in range(20)])
            for env in (one, {"env_vars": {"KIND": "two"}}, None)
        ]
        for position, found in enumerate(pids):
            for other in pids[position + 1 :]:
                assert not [number for number in found if number in other]
        again = zray.get([pid.options(runtime_env=dict(one)).remote() for _ in range(20)])
        assert [number for number in again if number in pids[0]]

    @pytest.mark.parametrize(
        ("environment", "error", "what"),
        [
            ({"conda": ["x"]}, ValueError, "conda"),
            ({"nonsense": 1}, ValueError, "nonsense"),
            ({"env_vars": {"A": 1}}, TypeError, "strings"),
            ({"env_vars": {"A=B": "1"}}, ValueError, "A=B"),
            ({"working_dir": "/no/such/folder"}, ValueError, "not a directory"),
            ("text", TypeError, "dict"),
        ],
    )
    def test_refused(self, environment: Any, error: type[Exception], what: str) -> None:
        with pytest.raises(error, match=what):
            pid.options(runtime_env=environment)


class TestContext:
    def test_of_a_driver(self) -> None:
        context = zray.get_runtime_context()
        assert context.get_task_id() is None
        assert context.get_actor_id() is None
        assert context.namespace == "here"
        assert context.get_node_id() == zray.nodes()[0]["NodeID"]
        assert context.get_assigned_resources() == {}
        assert context.runtime_env == {"env_vars": {"JOB": "job", "BOTH": "job"}}

    def test_of_a_task(self) -> None:
        @zray.remote(num_cpus=0.5, name="asks")
        def asks() -> dict[str, Any]:
            context = zray.get_runtime_context()
            return {
                **context.get(),
                "name": context.get_task_name(),
                "attempt": context.get_attempt_number(),
                "resources": context.get_assigned_resources(),
            }

        ref = asks.remote()
        found = zray.get(ref)
        driver = zray.get_runtime_context()
        assert found["job_id"] == driver.get_job_id()
        assert found["node_id"] == driver.get_node_id()
        assert found["task_id"] == ref.task_id().hex()
        assert found["name"] == "asks"
        assert found["attempt"] == 0
        assert found["resources"] == {"CPU": 0.5}

    def test_of_an_attempt(self, tmp_path: Path) -> None:
        @zray.remote(retry_exceptions=[KeyError])
        def fails_once() -> int:
            attempt = zray.get_runtime_context().get_attempt_number()
            if not attempt:
                raise KeyError
            return attempt

        assert zray.get(fails_once.remote()) == 1

    def test_of_an_actor(self) -> None:
        asker = Asker.options(name="asker").remote()
        found = zray.get(asker.context.remote())
        assert found["actor_id"] == asker._actor_id.hex()
        assert found["namespace"] == "here"

    def test_gpus(self) -> None:
        assert zray.get_gpu_ids() == []


class TestRetriesAndCalls:
    def test_only_the_listed_exceptions_are_retried(self, tmp_path: Path) -> None:
        @zray.remote(retry_exceptions=[KeyError], max_retries=3)
        def fails(path: str, kind: type[Exception]) -> None:
            with open(path, "a") as file:
                file.write("x")
            raise kind

        for kind, attempts in ((KeyError, 4), (ValueError, 1)):
            path = tmp_path / kind.__name__
            with pytest.raises(kind):
                zray.get(fails.remote(str(path), kind))
            assert len(path.read_text()) == attempts

    def test_max_calls_wears_a_worker_out(self) -> None:
        worn = pid.options(max_calls=1)
        pids = [zray.get(worn.remote()) for _ in range(5)]
        assert len(dict.fromkeys(pids)) == 5
        pids = zray.get([pid.options(max_calls=2).remote() for _ in range(8)])
        assert max(pids.count(one) for one in pids) <= 2

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"retry_exceptions": [3]}, TypeError),
            ({"max_calls": -1}, ValueError),
            ({"num_returns": "many"}, TypeError),
            ({"accelerator_type": 4}, TypeError),
            ({"num_gpus": 1.5}, ValueError),
            ({"object_store_memory": 1}, ValueError),
            ({"scheduling_strategy": "MAGIC"}, ValueError),
            ({"scheduling_strategy": ["SPREAD"]}, ValueError),
            ({"nonsense": 1}, ValueError),
        ],
    )
    def test_refused(self, options: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            pid.options(**options)


class TestInit:
    def test_twice(self) -> None:
        with pytest.raises(RuntimeError, match="twice"):
            zray.init()
        assert zray.init(ignore_reinit_error=True).address

    @pytest.mark.parametrize("name", ["local_mode", "job_config", "dashboard_port", "_temp_dir"])
    def test_refused_with_the_reason(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            zray.init(**{name: 1})

    def test_unknown(self) -> None:
        with pytest.raises(TypeError, match="nonsense"):
            zray.init(nonsense=1)
        with pytest.raises(ValueError, match="dashboard"):
            zray.init(include_dashboard=True)

    def test_reports(self) -> None:
        nodes = zray.nodes()
        assert all(node["Alive"] for node in nodes)
        cpus = sorted(node["Resources"]["CPU"] for node in nodes)
        assert cpus == [1] * conformance.others() + [2]
        assert zray.cluster_resources()["CPU"] == sum(cpus)


PRINTING = """
    import logging, sys, zray
    zray.init(num_cpus=1, log_to_driver={log})

    @zray.remote
    def speak(text):
        print(text)
        print("to stderr", file=sys.stderr)
        return 1

    @zray.remote
    class Speaker:
        def speak(self):
            print("from an actor")

    @zray.remote
    class Named(Speaker._class):
        def __repr__(self):
            return "Named\\n[1]"

        def speak(self):
            sys.stdout.buffer.write(b"no text: \\xff\\n")
            print("half a pair: \\ud800", file=sys.stderr)

    @zray.remote
    def log_lines():
        logging.getLogger("library").warning("of a library")
        logging.basicConfig(level=logging.INFO, format="%(name)s says %(message)s")
        logging.getLogger("user").info("of a user")

    assert zray.get(speak.remote("first\\nsecond")) == 1
    print("after the first")
    zray.get(Speaker.remote().speak.remote())
    zray.get(Named.remote().speak.remote())
    zray.get(log_lines.remote())
    print("the end")
"""


@pytest.mark.slow
class TestOutput:
    def test_it_reaches_the_driver_before_the_result(self) -> None:
        with clusters.place() as place:
            done = place.run(PRINTING.format(log=True))
        lines = done.stdout.splitlines()
        assert [line.partition(") ")[2] or line for line in lines] == [
            "first",
            "second",
            "after the first",
            "from an actor",
            "no text: \\xff",
            "the end",
        ]
        assert lines[0].startswith("(speak pid=")
        assert ", ip=" in lines[0]
        assert lines[3].startswith("(Speaker.speak pid=")
        assert lines[4].startswith("(Named [1] pid=")
        assert "to stderr" in done.stderr
        assert ") half a pair: \\ud800\n" in done.stderr
        assert ") of a library\n" in done.stderr
        assert ") user says of a user\n" in done.stderr

    def test_it_may_be_kept_away(self) -> None:
        with clusters.place() as place:
            done = place.run(PRINTING.format(log=False))
        assert done.stdout.splitlines() == ["after the first", "the end"]

    def test_a_flood_is_complete(self) -> None:
        program = """
            import zray
            zray.init(num_cpus=1)

            @zray.remote
            def flood():
                for number in range(5000):
                    print(number)

            zray.get(flood.remote())
        """
        with clusters.place() as place:
            lines = place.run(program).stdout.splitlines()
        assert [int(line.rpartition(" ")[2]) for line in lines] == list(range(5000))

    def test_of_another_node(self) -> None:
        """Complete, in order, in front of the result; from tasks, and from an actor that one of them made."""
        program = """
            import zray
            from zray.cluster_utils import Cluster
            small = {"num_cpus": 1, "object_store_memory": 1 << 26}
            cluster = Cluster(True, head_node_args=small)
            cluster.add_node(**small, resources={"there": 1})
            zray.init(cluster.address)

            @zray.remote(num_cpus=0, resources={"there": 0.1})
            class Speaker:
                def speak(self):
                    print("from an actor")

            @zray.remote(num_cpus=0, resources={"there": 0.1})
            def flood(count):
                for number in range(count):
                    print(number)
                speaker = Speaker.remote()
                zray.get(speaker.speak.remote())

            zray.get(flood.remote(3000))
            print("the end")
        """
        with clusters.place() as place:
            lines = place.run(program).stdout.splitlines()
        said = [line.partition(") ")[2] or line for line in lines]
        assert said == [*map(str, range(3000)), "from an actor", "the end"]


@pytest.mark.slow
def test_a_detached_actor_outlives_its_driver() -> None:
    make = """
        import sys, zray
        zray.init(address=sys.argv[1], namespace="shared")

        @zray.remote
        class Counter:
            def __init__(self):
                self.value = 0
            def next(self):
                self.value += 1
                return self.value
            def child(self):
                return zray.get(double.remote(21))

        @zray.remote(num_cpus=0)
        def double(value):
            return 2 * value

        counter = Counter.options(name="counter", lifetime="detached").remote()
        print(zray.get(counter.next.remote()))
    """
    use = """
        import json, sys, zray
        from zray.util import list_named_actors
        zray.init(address=sys.argv[1], namespace="shared")
        counter = zray.get_actor("counter")
        found = [zray.get(counter.next.remote()), zray.get(counter.child.remote()), list_named_actors()]
        zray.kill(counter)
        print(json.dumps(found))
    """
    with clusters.place() as place:
        started = place.zray("start", "--head", "--num-cpus", "1")
        assert started.returncode == 0, started.stderr
        try:
            assert _output(place, make) == "1\n"
            assert json.loads(_output(place, use)) == [2, 42, ["counter"]]
        finally:
            place.zray("stop")


def _output(place: clusters.Place, program: str) -> str:
    done = place.command(sys.executable, "-c", textwrap.dedent(program), "auto")
    assert done.returncode == 0, done.stderr
    return done.stdout
