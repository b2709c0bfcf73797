"""Real processes write traces; the same machines, pumped again, give the same effects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.graph import load_graph
from sim.replay import replay
from sim.whatif import predict
from tests.clusters import PATIENCE_S, Place, finish, line_of, place
from tests.support import eventually

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys, time, zray
context = zray.init(num_cpus=2, trace={trace!r})

@zray.remote
def leaf(x):
    time.sleep(0.005)
    return x

@zray.remote
def tree(n):
    return sum(zray.get([leaf.remote(i) for i in range(n)]))

@zray.remote
def crash_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(7)
    return 1

@zray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n

assert zray.get([tree.remote(4) for _ in range(5)]) == [6] * 5
assert zray.get(crash_once.remote({mark!r})) == 1
counter = Counter.remote()
assert zray.get([counter.add.remote() for _ in range(20)])[-1] == 20
import numpy as np
refs = [zray.put(np.full(200_000, n)) for n in range(20)]
assert [int(zray.get(leaf.remote(ref))[3]) for ref in refs] == list(range(20))
for n in range(20):
    zray.get(leaf.remote(n))
print("done", flush=True)
{rest}
"""


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def program(here: Place, rest: str = "") -> tuple[str, Path]:
    trace = here.folder / "run.trace"
    return PROGRAM.format(trace=str(trace), mark=str(here.folder / "mark"), rest=rest), trace


def test_a_recorded_cluster_replays_without_a_difference(here: Place) -> None:
    text, trace = program(here)
    done = here.run(text)
    assert done.stdout == "done\n", done.stderr
    for path in (trace, Path(f"{trace}.gcs0")):
        found = replay(path)
        assert found.difference is None
        assert found.ended == "the process ended"
        assert found.messages > 20


def test_its_graph_predicts_what_it_took(here: Place) -> None:
    text, trace = program(here)
    assert here.run(text).stdout == "done\n"
    graph = load_graph([trace])
    names = [task.kind.name for task in graph.tasks.values()]
    assert names.count("tree") == 5
    assert names.count("leaf") >= 40
    assert graph.actors == 1
    prediction = predict([trace], cpus=8)
    # A test machine is busy: the ratio is measured with care by zray sim fidelity, not here.
    assert 0.1 < prediction.same_shape.makespan_ns / prediction.recorded_ns < 10
    assert prediction.other_shape.makespan_ns <= prediction.same_shape.makespan_ns * 1.1


def test_what_was_written_before_sigkill_replays(here: Place) -> None:
    text, trace = program(here, "print(context.pid, flush=True); sys.stdin.readline()")
    driver = here.start(text)
    assert line_of(driver) == "done"
    node_pid = int(line_of(driver))
    eventually(lambda: replay(trace).messages > 100, PATIENCE_S, "the trace")  # written when the node is idle
    os.kill(node_pid, signal.SIGKILL)
    finish(driver, "\n")
    found = replay(trace)
    assert found.difference is None
    assert found.ended == ""


def test_shards_record_what_they_recovered_from(here: Place) -> None:
    """A second life begins with what the log of the first says."""
    folder, endpoint = here.folder / "log", f"ipc://{here.folder}/gcs"
    environment = {**here.environment}
    command = [sys.executable, "-m", "zray.services.gcs", "--listen", endpoint, "--data-dir", str(folder)]
    for life in range(2):
        trace = here.folder / f"gcs.trace{life}"
        with subprocess.Popen([*command, "--trace", str(trace)], env=environment) as gcs:
            done = here.run(
                f"""
                import zray
                from zray.cli import main
                main(["start", "--address", {endpoint!r}, "--num-cpus", "1"])
                zray.init(address="auto")
                @zray.remote
                def f(x): return x
                zray.get([f.remote(i) for i in range(50)])
                zray.shutdown()
                main(["stop"])
                """
            )
            assert done.returncode == 0, done.stderr
            gcs.terminate()
            assert gcs.wait(PATIENCE_S) == 0
        found = replay(trace)
        assert found.difference is None
        assert found.pumps > 3


@pytest.mark.parametrize("where", ["/nowhere/run.trace", "/dev/full"])
def test_a_trace_that_cannot_be_written_is_an_error_at_the_start(where: str, here: Place) -> None:
    done = here.run(f"import zray\ntry: zray.init(trace={where!r})\nexcept Exception as e: print(e)")
    assert "No such file" in done.stdout or "No space left" in done.stdout


def test_with_an_address_a_trace_is_refused(here: Place) -> None:
    done = here.run("import zray\ntry: zray.init(address='x:1', trace='t')\nexcept ValueError as e: print(e)")
    assert "trace belongs to the node" in done.stdout


def test_a_delay_of_every_frame_is_seen_by_a_program(here: Place) -> None:
    done = here.run(
        """
        import os, time
        os.environ["ZRAY_SEND_DELAY_NS"] = "20000000"
        import zray
        zray.init(num_cpus=1)
        @zray.remote
        def f(x): return x
        zray.get(f.remote(0))
        started = time.monotonic()
        for n in range(5):
            assert zray.get(f.remote(n)) == n
        print((time.monotonic() - started) / 5)
        """
    )
    assert 0.04 <= float(done.stdout) < 1.0, done.stderr


def test_scheduling_policies_are_known_to_real_clusters(here: Place) -> None:
    ask = "import zray\nzray.init(num_cpus=1)\n@zray.remote\ndef f(): return 7\nprint(zray.get(f.remote()))"
    for name in ("centralised", "power_of_two", "random"):
        assert here.run(ask, environment={"ZRAY_SCHEDULING_POLICY": name}).stdout == "7\n"
    wrong = here.run(ask, environment={"ZRAY_SCHEDULING_POLICY": "magic"})
    assert "no scheduling policy 'magic'; there are centralised" in wrong.stderr
    assert os.environ.get("ZRAY_SCHEDULING_POLICY") is None
