"""The microbenchmarks. A case takes a started system and a scale and returns its metrics.

A case whose count is its meaning (5,000 tasks, 1,000 returns) runs that count, again and again while its
time lasts; the others measure a rate over a fixed time, so that slow systems do fewer operations.
Setting up and checking results is never inside the timed part, except that every timed part ends with
the values in the driver.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import processes, workload
from benchmarks.systems.base import System

Values = dict[str, float]
clock_ns = time.perf_counter_ns

WARM_UP_CALLS = 30
OBJECT_BYTES = 100
OBJECTS_MAX = 5_000
VICTIM_S = 600.0
"""How long a task stays that is going to be killed."""
CRASHING_S = 5.0
"""No further crash once a case has taken so long."""
CALM_S = 0.5
"""Pause after a crash, outside the timed part."""
SETTLE_S = 0.05
"""Pause after dropping a large object, outside the timed part: systems free them in the background."""


class Scale(NamedTuple):
    """How much of everything; ``QUICK`` is for tests of the harness, its numbers mean little."""

    workers: int = 2
    seconds: float = 1.5
    """Measuring time of a rate; also how long a counted case is repeated."""
    tasks: int = 5_000
    tasks_many: int = 50_000
    actor_calls: int = 5_000
    array_bytes: int = 100_000_000
    array_repeats: int = 10
    arguments: int = 10_000
    returns: int = 1_000
    waited: int = 1_000
    chain: int = 1_000
    leaves: int = 1_024
    nested_outer: int = 10
    nested_inner: int = 100
    actors: int = 20
    idle_s: float = 10.0
    clients: int = 4
    client_tasks: int = 1_000
    crashes: int = 3
    records: int = 300_000
    simulated_tasks: int = 30_000
    transfer_bytes: int = 1 << 30
    growth_max: int = 1_000_000
    """Of tasks and objects; the other counts of the growth of costs follow from it."""
    nodes_max: int = 64


QUICK = Scale(
    seconds=0.1, tasks=200, tasks_many=1_000, actor_calls=200, array_bytes=5_000_000, array_repeats=4,
    arguments=200, returns=50, waited=50, chain=50, leaves=32, nested_outer=3, nested_inner=10, actors=3,
    idle_s=0.5, clients=2, client_tasks=50, crashes=1,
    records=2_000, simulated_tasks=500, transfer_bytes=1 << 24, growth_max=1_000, nodes_max=1,
)  # fmt: skip


class Metric(NamedTuple):
    """One row of the table. ``title`` may name fields of the scale."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = False


class Case(NamedTuple):
    """``run(system, scale)`` returns a value per metric; ``limit_s`` is its time per round and system."""

    name: str
    metrics: tuple[Metric, ...]
    run: Callable[[System, Scale], Values]
    limit_s: float = 20.0


def seconds_of(action: Callable[[], Any]) -> float:
    """How long ``action`` takes."""
    started = clock_ns()
    action()
    return (clock_ns() - started) / 1e9


def _median_seconds(action: Callable[[], Any], scale: Scale) -> float:
    """Median duration of ``action``, repeated while the measuring time lasts, at least once."""
    samples: list[float] = []
    ends = clock_ns() + scale.seconds * 1e9
    while not samples or clock_ns() < ends:
        samples.append(seconds_of(action))
    return statistics.median(samples)


def _one_at_a_time(call: Callable[[], Any], scale: Scale) -> Values:
    """Rate per second and latencies in microseconds of ``call``, over the measuring time."""
    ends = clock_ns() + scale.seconds * 1e9
    for _ in range(WARM_UP_CALLS):
        call()
        if clock_ns() > ends:  # each takes so long that it cannot be made faster by being asked before
            break
    samples: list[int] = []
    before = now = started = clock_ns()
    ends = started + int(scale.seconds * 1e9)
    while before < ends:
        call()
        now = clock_ns()
        samples.append(now - before)
        before = now
    samples.sort()
    return {
        "rate": len(samples) / ((now - started) / 1e9),
        "p50": statistics.median(samples) / 1e3,
        "p99": samples[min(len(samples) - 1, len(samples) * 99 // 100)] / 1e3,
    }


def _expect(value: object, expected: object) -> None:
    """A fast wrong answer is not a result."""
    if value != expected:
        raise AssertionError(f"wrong result: {value!r} instead of {expected!r}")


# --- starting and idling --------------------------------------------------------------------------


def idle(system: System, scale: Scale) -> Values:
    """What a system costs that has every worker up and nothing to do."""
    submit = system.bind(workload.pause)
    system.get_many([submit(0.2) for _ in range(scale.workers)])
    time.sleep(min(1.0, scale.idle_s))
    run = processes.own_run()
    members = processes.family(run)
    return {
        "pss": processes.pss_bytes(members) / (1 << 20),
        "processes": len(members),
        "cpu": 100 * processes.cpu_share(run, scale.idle_s),
    }


# --- tasks ----------------------------------------------------------------------------------------


def task_sync(system: System, scale: Scale) -> Values:
    """Submit one empty task, get it, again."""
    submit, get = system.bind(workload.noop), system.get
    return _one_at_a_time(lambda: get(submit()), scale)


def _task_async(system: System, scale: Scale, count: int) -> Values:
    def run() -> None:
        system.get_many(system.submit_many(workload.noop, count))

    system.get_many(system.submit_many(workload.noop, WARM_UP_CALLS))
    return {"rate": count / _median_seconds(run, scale)}


def task_async(system: System, scale: Scale) -> Values:
    """Submit many empty tasks, then get all."""
    return _task_async(system, scale, scale.tasks)


def task_async_many(system: System, scale: Scale) -> Values:
    """The same with ten times as many in flight."""
    return _task_async(system, scale, scale.tasks_many)


def multi_client(system: System, scale: Scale) -> Values:
    """Several clients submit empty tasks at once and get them, as in Ray's own microbenchmarks."""
    clients = system.make_clients(scale.clients)
    system.get_many([submit(1) for submit in clients])  # they are there, and know the function
    total = scale.clients * scale.client_tasks

    def run() -> None:
        _expect(sum(system.get_many([submit(scale.client_tasks) for submit in clients])), total)

    return {"rate": total / _median_seconds(run, scale)}


def many_arguments(system: System, scale: Scale) -> Values:
    """One task whose arguments are references."""
    submit = system.bind_dependent(workload.count_arguments)
    refs = system.put_many(list(range(scale.arguments)))
    taken_s = _median_seconds(lambda: _expect(system.get(submit(*refs)), len(refs)), scale)
    return {"time": taken_s * 1e3}


def many_returns(system: System, scale: Scale) -> Values:
    """One task with a reference per return value, all of them got."""

    def run() -> None:
        refs = system.submit_returning(workload.count_to, scale.returns)
        _expect(system.get_many(refs)[-1], scale.returns - 1)

    return {"time": _median_seconds(run, scale) * 1e3}


def wait_for_each(system: System, scale: Scale) -> Values:
    """Submit tasks and take them with ``wait`` as they finish, until none is left."""

    def run() -> None:
        pending: Any = system.submit_many(workload.noop, scale.waited)
        while pending:
            _, pending = system.wait_any(pending)

    return {"time": _median_seconds(run, scale) * 1e3}


def chain(system: System, scale: Scale) -> Values:
    """Each task takes the reference of the one before."""
    submit = system.bind_dependent(workload.increment)

    def run() -> None:
        ref = submit(0)
        for _ in range(scale.chain - 1):
            ref = submit(ref)
        _expect(system.get(ref), scale.chain)

    return {"time": _median_seconds(run, scale) * 1e3}


def tree(system: System, scale: Scale) -> Values:
    """Leaves added up in pairs, level by level."""
    leaf, pair = system.bind(workload.increment), system.bind_dependent(workload.add)

    def run() -> None:
        refs = [leaf(0) for _ in range(scale.leaves)]
        while len(refs) > 1:
            refs = [pair(left, right) for left, right in zip(refs[::2], refs[1::2], strict=True)]
        _expect(system.get(refs[0]), scale.leaves)

    return {"time": _median_seconds(run, scale) * 1e3}


def nested(system: System, scale: Scale) -> Values:
    """Tasks that submit tasks and get them."""

    def run() -> None:
        refs = [system.submit_nested(scale.nested_inner) for _ in range(scale.nested_outer)]
        _expect(sum(system.get_many(refs)), scale.nested_outer * scale.nested_inner)

    return {"time": _median_seconds(run, scale) * 1e3}


# --- actors ---------------------------------------------------------------------------------------


def actor_sync(system: System, scale: Scale) -> Values:
    """Call a method, get the result, again."""
    actor = system.make_actor(workload.Tally)
    call = system.bind_method(actor, "increment")
    try:
        return _one_at_a_time(lambda: system.get_calls([call()]), scale)
    finally:
        system.end_actor(actor)


def actor_async(system: System, scale: Scale) -> Values:
    """Call a method many times, then get all results."""
    return _actor_async(system, system.make_actor(workload.Tally), scale)


def actor_asyncio(system: System, scale: Scale) -> Values:
    """The same where the method is a coroutine."""
    return _actor_async(system, system.make_asyncio_actor(workload.AsyncTally), scale)


def _actor_async(system: System, actor: Any, scale: Scale) -> Values:
    call = system.bind_method(actor, "increment")

    def run() -> None:
        results = system.get_calls([call() for _ in range(scale.actor_calls)])
        _expect(results[-1] - results[0], scale.actor_calls - 1)

    try:
        system.get_calls([call() for _ in range(WARM_UP_CALLS)])
        return {"rate": scale.actor_calls / _median_seconds(run, scale)}
    finally:
        system.end_actor(actor)


def actors_ready(system: System, scale: Scale) -> Values:
    """Start actors and call each once."""
    made: list[Any] = []

    def run() -> None:
        made.extend(system.make_actor(workload.Tally) for _ in range(scale.actors))
        calls = [system.bind_method(actor, "increment")() for actor in made]
        _expect(system.get_calls(calls), [1] * scale.actors)

    taken_s = seconds_of(run)
    for actor in made:
        system.end_actor(actor)
    return {"time": taken_s * 1e3}


# --- objects --------------------------------------------------------------------------------------


def small_objects(system: System, scale: Scale) -> Values:
    """Put small values one by one, then get each once."""
    value = bytes(OBJECT_BYTES)
    for _ in range(WARM_UP_CALLS):
        system.get(system.put(value))
    refs: list[Any] = []
    started = clock_ns()
    ends = started + scale.seconds * 1e9
    while clock_ns() < ends and len(refs) < OBJECTS_MAX:
        refs.append(system.put(value))
    put_s = (clock_ns() - started) / 1e9
    started = clock_ns()
    got = 0
    while got < len(refs) and (got == 0 or clock_ns() < ends + scale.seconds * 1e9):
        system.get(refs[got])
        got += 1
    return {"put": len(refs) / put_s, "get": got / ((clock_ns() - started) / 1e9)}


def _array(size_bytes: int) -> Any:
    import numpy as np  # only here: importing it must not count into the cold start

    array = np.zeros(size_bytes, dtype=np.uint8)
    array[:] = 1  # touches every page: zeros() alone would leave them to the first reader
    return array


def large_objects(system: System, scale: Scale) -> Values:
    """Put one large array again and again, dropping the last one, and get each once.

    The first put of a process meets memory that nobody touched; "recycled" is the median of the later half.
    """
    array = _array(scale.array_bytes)
    put_s: list[float] = []
    get_s: list[float] = []
    for _ in range(scale.array_repeats):
        started = clock_ns()
        ref = system.put(array)
        between = clock_ns()
        value = system.get(ref)
        put_s.append((between - started) / 1e9)
        get_s.append((clock_ns() - between) / 1e9)
        _expect(len(value) + int(value[-1]), scale.array_bytes + 1)
        del ref, value
        time.sleep(SETTLE_S)
    recycled = put_s[len(put_s) // 2 :]
    return {
        "first": put_s[0] * 1e3,
        "recycled": statistics.median(recycled) * 1e3,
        "get": statistics.median(get_s) * 1e3,
    }


def copy_in_memory(system: System, scale: Scale) -> Values:
    """A plain copy of the same size, warm to warm: what the machine allows."""
    source, target = _array(scale.array_bytes), _array(scale.array_bytes)
    view = memoryview(target)

    def run() -> None:
        view[:] = memoryview(source)

    return {"time": _median_seconds(run, scale) * 1e3}


def large_argument(system: System, scale: Scale) -> Values:
    """A large array as a direct argument, a number back."""
    array, submit = _array(scale.array_bytes), system.bind(workload.length)
    system.get_many([submit(_array(1)) for _ in range(WARM_UP_CALLS)])  # the workers import numpy
    taken_s = _median_seconds(
        lambda: _expect(system.get(submit(array)), scale.array_bytes + 2), scale
    )  # fmt: skip
    return {"time": taken_s * 1e3}


def large_result(system: System, scale: Scale) -> Values:
    """A task that returns a large array."""
    submit = system.bind(workload.zeros)
    system.get_many([submit(1) for _ in range(WARM_UP_CALLS)])  # the workers import numpy
    taken_s = _median_seconds(
        lambda: _expect(len(system.get(submit(scale.array_bytes))), scale.array_bytes), scale
    )  # fmt: skip
    return {"time": taken_s * 1e3}


# --- crashes --------------------------------------------------------------------------------------


def worker_killed(system: System, scale: Scale) -> Values:
    """SIGKILL the process that runs a task: until the task has begun again, and until its value is here."""
    submit = system.bind_retried(workload.occupy_once)
    again_ms: list[float] = []
    result_ms: list[float] = []
    ends = time.monotonic() + CRASHING_S
    while len(again_ms) < scale.crashes and time.monotonic() < ends:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "process"
            ref = submit(str(path), VICTIM_S)
            _wait_until(path.exists)
            killed_s = time.monotonic()
            os.kill(int(path.read_text()), signal.SIGKILL)
            again_ms.append((system.get(ref) - killed_s) * 1e3)
            result_ms.append((time.monotonic() - killed_s) * 1e3)
        system.get_many([system.bind(workload.noop)() for _ in range(WARM_UP_CALLS)])
        time.sleep(CALM_S)  # who was lost is replaced: the next crash is no second one of the first
    return {"again": statistics.median(again_ms), "result": statistics.median(result_ms)}


def actor_killed(system: System, scale: Scale) -> Values:
    """SIGKILL an actor's process: until a call that is made at once is answered by the new one."""
    actor = system.make_restarting_actor(workload.Tally)
    call = system.bind_method(actor, "process_id")
    answered_ms: list[float] = []
    ends = time.monotonic() + CRASHING_S
    while len(answered_ms) < scale.crashes and time.monotonic() < ends:
        victim = system.get(call())
        killed_s = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while system.get(call()) == victim:  # answered before it died
            pass
        answered_ms.append((time.monotonic() - killed_s) * 1e3)
        time.sleep(CALM_S)
    system.end_actor(actor)
    return {"time": statistics.median(answered_ms)}


def _wait_until(is_true: Callable[[], bool]) -> None:
    """The time limit of the case is the bound."""
    while not is_true():
        time.sleep(0.001)


# --- the list -------------------------------------------------------------------------------------


def _rate(title: str, key: str = "rate") -> Metric:
    return Metric(key, title, "1/s", higher_is_better=True)


def _time(title: str) -> tuple[Metric]:
    return (Metric("time", title, "ms"),)


START = Case("start", (Metric("cold", "cold start to first result", "ms"),), lambda system, scale: {}, 60.0)
"""Measured by the child itself, which starts with it: interpreter, import, init and first task."""

CASES = (
    START,
    Case("idle", (
        Metric("pss", "idle memory (PSS)", "MiB"),
        Metric("processes", "processes", ""),
        Metric("cpu", "idle CPU over {idle_s:g} s, of one core", "%"),
    ), idle, 40.0),
    Case("task_sync", (
        _rate("task, one at a time"),
        Metric("p50", "task round trip, p50", "us"),
        Metric("p99", "task round trip, p99", "us"),
    ), task_sync),
    Case("task_async", (_rate("tasks, {tasks:,} in flight"),), task_async),
    Case("task_async_many", (_rate("tasks, {tasks_many:,} in flight"),), task_async_many, 60.0),
    Case("multi_client", (_rate("tasks, {clients} clients, {client_tasks:,} each"),), multi_client, 30.0),
    Case("actor_sync", (
        _rate("actor call, one at a time"),
        Metric("p50", "actor round trip, p50", "us"),
        Metric("p99", "actor round trip, p99", "us"),
    ), actor_sync),
    Case("actor_async", (_rate("actor calls, {actor_calls:,} in flight"),), actor_async),
    Case("actor_asyncio", (_rate("asyncio actor calls, {actor_calls:,} in flight"),), actor_asyncio),
    Case("small_objects", (_rate("put 100 B", "put"), _rate("get 100 B", "get")), small_objects),
    Case("chain", _time("chain of {chain:,} tasks"), chain),
    Case("tree", _time("tree over {leaves:,} leaves"), tree),
    Case("nested", _time("{nested_outer} tasks submit {nested_inner} each"), nested),
    Case("wait", _time("wait for {waited:,}, as they finish"), wait_for_each),
    Case("many_returns", _time("task with {returns:,} returns"), many_returns),
    Case("many_arguments", _time("task with {arguments:,} references"), many_arguments, 60.0),
    Case("actors_ready", _time("{actors} actors ready"), actors_ready, 60.0),
    Case("large_objects", (
        Metric("first", "put {array_mb} MB, first", "ms"),
        Metric("recycled", "put {array_mb} MB, recycled", "ms"),
        Metric("get", "get {array_mb} MB", "ms"),
    ), large_objects),
    Case("copy", _time("(copy {array_mb} MB in memory)"), copy_in_memory),
    Case("large_argument", _time("task with {array_mb} MB argument"), large_argument),
    Case("large_result", _time("task with {array_mb} MB result"), large_result),
    # Last, because a peer may not recover from them.
    Case("worker_killed", (
        Metric("again", "worker killed: until its task runs again", "ms"),
        Metric("result", "worker killed: until its task's result", "ms"),
    ), worker_killed, 40.0),
    Case("actor_killed", _time("actor killed: until a call is answered"), actor_killed, 60.0),
)  # fmt: skip


def title(metric: Metric, scale: Scale) -> str:
    """The row's title with the counts of this run in it."""
    return metric.title.format(**scale._asdict(), array_mb=scale.array_bytes // 1_000_000)
