"""``zray.simulate``: unmodified user code in virtual time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zray
from sim.user_code import DeadlockError
from zray.runtime import own_client

REAL_SLEEP = time.sleep
ROOT = Path(__file__).resolve().parents[2]


@zray.remote
def add(a: int, b: int) -> int:
    return a + b


@zray.remote
def fib(n: int) -> Any:
    if n < 2:
        return n
    return sum(zray.get([fib.remote(n - 1), fib.remote(n - 2)]))


@zray.remote
def fail(text: str) -> None:
    raise KeyError(text)


@zray.remote(num_returns=2)
def two(x: Any) -> tuple[Any, Any]:
    return x, x


@zray.remote
def nested(refs: list[Any]) -> Any:
    return zray.get(refs)


@zray.remote
def sleeper(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@zray.remote
def spin(rounds: int) -> int:
    return sum(range(rounds))


@zray.remote
class Counter:
    def __init__(self, start: int) -> None:
        self.number = start

    def add(self, amount: int = 1) -> int:
        self.number += amount
        return self.number

    def sum_of(self, refs: list[Any]) -> int:
        return sum(zray.get(refs))

    def fail(self) -> None:
        raise ValueError("an actor's")


DURATIONS = {"add": 1.0, "fib": 0.01, "fail": 0.5, "two": 0.1, "nested": 0.1, "Counter": 0.2}
DURATIONS |= {"Counter.add": 0.5, "sum_of": 0.1, "sleeper": 0.0, "spin": 0.0, "Counter.fail": 0.0}


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Any:
    threads = threading.active_count()
    yield
    assert threading.active_count() == threads
    assert own_client.get() is None
    assert gc.isenabled()
    assert time.sleep is REAL_SLEEP
    assert not zray.is_initialized()


def test_tasks_take_as_long_as_declared_and_run_on_every_cpu() -> None:
    with zray.simulate(cpus=4, durations=DURATIONS) as cluster:
        assert zray.get([add.remote(i, 1) for i in range(8)]) == list(range(1, 9))
    assert cluster.makespan_s == pytest.approx(2.0, rel=0.02)
    assert cluster.utilisation == pytest.approx(1.0, abs=0.03)
    assert [event["name"] for event in cluster.events] == ["add"] * 8
    assert cluster.summary()["tasks"] == 8


def test_an_option_comes_before_the_mapping() -> None:
    with zray.simulate(durations=DURATIONS) as cluster:
        zray.get(add.options(_duration_s=7.0).remote(1, 2))
    assert cluster.makespan_s == pytest.approx(7.0, rel=0.01)


def test_a_blocking_get_inside_tasks_lends_its_cpu() -> None:
    with zray.simulate(cpus=1, durations=DURATIONS) as cluster:
        assert zray.get(fib.remote(7)) == 13
    assert cluster.makespan_s == pytest.approx(41 * 0.01, rel=1.0)


def test_errors_reach_get_with_their_class_and_traceback() -> None:
    with zray.simulate(durations=DURATIONS) as cluster:
        with pytest.raises(KeyError) as caught:
            zray.get(add.remote(fail.remote("gone"), 1))
        assert isinstance(caught.value, zray.exceptions.TaskError)
        assert "raise KeyError(text)" in str(caught.value)
        assert cluster.now_s == pytest.approx(0.5, rel=0.05)


def test_values_travel_by_copy_and_refs_inside_them_stay_refs() -> None:
    with zray.simulate(durations=DURATIONS):
        value = {"list": [1, 2]}
        ref = zray.put(value)
        value["list"].append(3)
        assert zray.get(ref) == {"list": [1, 2]}
        assert zray.get(nested.remote([ref, add.remote(1, 1)])) == [{"list": [1, 2]}, 2]
        assert zray.get(zray.get(zray.put([ref]))[0]) == {"list": [1, 2]}
        assert zray.get(list(two.remote(5))) == [5, 5]


def test_large_arrays_go_through_the_store() -> None:
    import numpy as np

    with zray.simulate(durations=DURATIONS, object_store_memory=16 << 20) as cluster:
        refs = [zray.put(np.full(500_000, number)) for number in range(8)]
        assert [int(zray.get(ref)[7]) for ref in refs] == list(range(8))
        left, right = two.remote(refs[3])
        assert int(zray.get(left)[0]) == 3
        assert int(zray.get(right)[0]) == 3
    assert cluster.makespan_s > 0


@zray.remote
def count(*values: int) -> int:
    return len(values)


def test_more_refs_than_a_byte_counts() -> None:
    with zray.simulate(durations={"count": 0.1}):
        ref = zray.put(1)
        assert zray.get(count.remote(*[ref] * 1000)) == 1000


def test_wait_and_timeouts_are_virtual() -> None:
    started_s = time.monotonic()
    with zray.simulate(durations=DURATIONS) as cluster:
        began_s = time.monotonic()
        refs = [add.options(_duration_s=float(seconds)).remote(1, 1) for seconds in (300, 100, 200)]
        ready, left = zray.wait(refs, num_returns=2)
        assert (ready, left) == (refs[1:], refs[:1])
        assert cluster.now_s == pytest.approx(200.0, rel=0.01)
        with pytest.raises(zray.exceptions.GetTimeoutError):
            zray.get(left, timeout=50)
        assert cluster.now_s == pytest.approx(250.0, rel=0.01)
        assert zray.wait(left, timeout=1000.0) == (left, [])
        assert time.monotonic() - began_s == pytest.approx(300.0, rel=0.01)
    assert time.monotonic() - started_s < 30


def test_sleep_passes_virtual_time_and_holds_the_cpu() -> None:
    with zray.simulate(cpus=1, durations=DURATIONS) as cluster:
        zray.get([sleeper.remote(60.0) for _ in range(3)])
        time.sleep(1000)
        with pytest.raises(ValueError, match="non-negative"):
            time.sleep(-1)
    assert cluster.makespan_s == pytest.approx(1180.0, rel=0.01)


def test_durations_can_be_drawn_and_measured() -> None:
    with zray.simulate(cpus=1, seed=4, durations=lambda name, random: random.uniform(1, 2)) as drawn:
        zray.get([add.remote(1, 1) for _ in range(10)])
    assert 10 < drawn.makespan_s < 20
    with zray.simulate(cpus=1) as measured:
        zray.get(spin.remote(3_000_000))
    (seconds,) = measured.measured["spin"]
    assert measured.makespan_s >= seconds > 0.001


def test_actors_keep_their_state_and_order() -> None:
    with zray.simulate(durations=DURATIONS) as cluster:
        counter = Counter.remote(10)
        assert zray.get([counter.add.remote(2) for _ in range(5)]) == [12, 14, 16, 18, 20]
        assert zray.get(counter.sum_of.remote([add.remote(1, 1), add.remote(2, 2)])) == 6
        with pytest.raises(ValueError, match="an actor's"):
            zray.get(counter.fail.remote())
        zray.kill(counter)
        with pytest.raises(zray.exceptions.ActorDiedError):
            zray.get(counter.add.remote())
    assert cluster.makespan_s == pytest.approx(0.2 + 2.5 + 1.1, rel=0.05)


PROGRAM = """
import sys; sys.path.insert(0, {root!r})
import zray
from tests.sim.test_simulate import Counter, DURATIONS, add, fib
with zray.simulate(nodes=2, cpus=2, seed=9, durations=DURATIONS, faults={{"worker_crash": 1.0}}) as cluster:
    refs = [add.options(max_retries=-1).remote(i, 1) for i in range(20)]
    counter = Counter.remote(1)
    zray.get([*refs, fib.options(max_retries=-1).remote(6), *[counter.add.remote() for _ in range(3)]][:21])
print(cluster.digest, cluster.makespan_s)
"""


@pytest.mark.slow
def test_a_seed_gives_the_same_run_in_every_process() -> None:
    said = []
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", PROGRAM.format(root=str(ROOT))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0]


def test_another_seed_gives_another_run() -> None:
    digests = []
    for seed in (1, 1, 2):
        with zray.simulate(seed=seed, durations=lambda name, random: random.random()) as cluster:
            zray.get([add.remote(i, 1) for i in range(10)])
        digests.append(cluster.digest)
    assert digests[0] == digests[1] != digests[2]


def test_workers_that_die_are_survived_by_retries() -> None:
    with zray.simulate(seed=5, durations=DURATIONS, faults={"worker_crash": 1.0}) as cluster:
        refs = [add.options(max_retries=-1).remote(i, 1) for i in range(30)]
        assert zray.get(refs) == list(range(1, 31))
    assert cluster.summary()["retries"] > 0


def test_results_told_together_outlive_workers_nodes_and_single_messages() -> None:
    faults = {"worker_crash": 0.5, "node_crash": 0.1, "message_death": 3.0}
    retried = 0
    for seed in range(4):
        with zray.simulate(nodes=3, cpus=2, seed=seed, durations=DURATIONS, faults=faults) as cluster:
            pairs = [two.options(max_retries=-1).remote(i) for i in range(12)]
            taken = [add.options(max_retries=-1).remote(first, second) for first, second in pairs[:6]]
            assert zray.get([ref for pair in pairs for ref in pair]) == [i for i in range(12) for _ in "ab"]
            assert zray.get(taken) == [2 * i for i in range(6)]
        retried += cluster.summary()["retries"]
    assert retried > 0


# --- what goes wrong ---------------------------------------------------------------------------------


def test_what_no_node_can_run_is_explained() -> None:
    with pytest.raises(DeadlockError) as caught, zray.simulate(durations=DURATIONS):
        zray.get(add.options(num_gpus=1).remote(1, 1))
    text = str(caught.value)
    assert "nobody can go on" in text
    assert "add() is forwarded" in text
    assert "GPU" in text
    assert any("virtual seconds" in note for note in caught.value.__notes__)


def test_actors_that_wait_for_each_other_are_explained() -> None:
    @zray.remote
    class Waiter:
        def ask(self, other: Any) -> Any:
            return zray.get(other.answer.remote(other))

        def answer(self, me: Any) -> Any:
            return zray.get(me.answer.remote(me))

    with pytest.raises(DeadlockError, match="the driver waits"), zray.simulate(durations=lambda *_: 0.1):
        zray.get(Waiter.remote().ask.remote(Waiter.remote()))


def test_results_that_nobody_got_are_told() -> None:
    cluster = zray.simulate(durations={"add": 1000.0})
    cluster.__enter__()
    refs = [add.remote(1, 1), add.remote(2, 2)]
    with pytest.warns(RuntimeWarning, match=r"2 of add\(\).*call zray.get"):
        cluster.__exit__(None, None, None)
    assert cluster.forgotten == {"add": len(refs)}


def run_and_divide(by: int) -> float:
    with zray.simulate(durations=DURATIONS):
        zray.get(add.remote(1, 1))
        add.remote(1, 1)
        return 1 / by


def test_an_error_of_the_driver_goes_through_and_says_when() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_and_divide(0)
    assert any("1.0" in note for note in caught.value.__notes__)


def test_a_task_that_swallows_everything_ends_with_the_simulation() -> None:
    @zray.remote
    def stubborn() -> None:
        while True:
            with suppress(Exception):
                time.sleep(3600)

    with pytest.raises(zray.exceptions.GetTimeoutError), zray.simulate(durations={"stubborn": 0.0}):
        zray.get(stubborn.remote(), timeout=10_000)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"nodes": 0}, "nodes"),
        ({"cpus": "four"}, "cpus"),
        ({"policy": "magic"}, "no policy 'magic'; there are centralised"),
        ({"faults": {"earthquake": 1.0}}, "earthquake"),
        ({"faults": {"driver_crash": 1.0}}, "driver_crash cannot strike"),
        ({"latency_s": -1}, "latency_us"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        zray.simulate(**options)


def test_another_thread_than_the_drivers_is_refused() -> None:
    seen: list[BaseException] = []

    def ask() -> None:
        try:
            zray.get(add.remote(1, 1))
        except DeadlockError as error:
            seen.append(error)

    with zray.simulate(durations=DURATIONS):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert zray.get(add.remote(1, 1)) == 2
    assert "another thread than the one that entered" in str(seen[0])


def test_two_at_once_are_refused() -> None:
    with zray.simulate(durations=DURATIONS):
        with pytest.raises(RuntimeError, match="uses zray already"), zray.simulate():
            pass
        assert zray.get(add.remote(1, 1)) == 2


def test_init_and_shutdown_inside_change_nothing() -> None:
    with zray.simulate(durations=DURATIONS):
        zray.shutdown()
        with pytest.raises(RuntimeError, match="called twice"):
            zray.init()
        assert zray.get(add.remote(1, 1)) == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), "soon"])
def test_durations_that_make_no_sense_are_refused(seconds: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        add.options(_duration_s=seconds)


def test_it_draws_a_trace_for_perfetto(tmp_path: Path) -> None:
    with zray.simulate(durations=DURATIONS) as cluster:
        zray.get([add.remote(1, 1) for _ in range(3)])
    cluster.chrome(tmp_path / "run.json")
    assert '"add"' in (tmp_path / "run.json").read_text()


def test_what_a_task_returns_a_ref_of_is_not_let_go_of_before_its_reply() -> None:
    """Time passes between the two if it was measured, and what a process lets go of leaves every 2 ms."""

    @zray.remote
    def busy() -> list[Any]:
        ref = zray.put("kept")
        until_s = time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass
        return [ref]

    with zray.simulate():
        assert zray.get(zray.get(busy.remote())[0]) == "kept"
