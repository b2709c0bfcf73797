"""One run: a scenario and a seed, judged, with a summary."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import NamedTuple

from sim.checkers import ViolationError
from sim.cluster import Cluster, oracle_of
from sim.costs import Costs
from sim.kernel import S
from sim.programs import Program, ProgramError, pack
from sim.scenario import Scenario
from sim.workload import programs_of
from zray.config import Config
from zray.errors import InvariantError

PASSED, CRASH, LIVENESS, CORRECTNESS = 0, 3, 4, 5
VERDICTS = {PASSED: "passed", CRASH: "crash", LIVENESS: "liveness", CORRECTNESS: "correctness"}
STORY_SHOWN = 25
OBJECTS_PER_COLLECTION = 100_000
"""What is simulated is dropped by count: to look for cycles as often as usual costs a fifth of a run."""


class Summary(NamedTuple):
    """Numbers of one run; times are virtual."""

    makespan_ns: int = 0
    tasks: int = 0
    utilisation: float = 0.0
    p50_ns: int = 0
    p99_ns: int = 0
    messages: int = 0
    frames: int = 0
    bytes: int = 0
    lost_frames: int = 0
    retries: int = 0
    forwards: int = 0
    spillbacks: int = 0
    faults_seen: int = 0
    events: int = 0


class Verdict(NamedTuple):
    """How a run ended. ``kind`` is an exit code."""

    kind: int
    detail: str
    digest: str
    summary: Summary
    strikes: dict[str, int]
    story: list[str]


def run_scenario(
    scenario: Scenario, seed: int, *, config: Config | None = None, costs: Costs | None = None,
    keep_spans: bool = False, watch: Callable[[Cluster], None] | None = None,
) -> tuple[Verdict, Cluster]:  # fmt: skip
    """Run and judge.

    Args:
        costs: other ones than were shipped: they move every schedule.
        keep_spans: remember every task for a trace.
        watch: called now and then with the cluster, for progress.
    """
    programs = programs_of(scenario, seed)
    cluster = Cluster(scenario, seed, programs, config=config, costs=costs, keep_spans=keep_spans)
    kind, detail = PASSED, ""
    thresholds = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    try:
        kind, detail = _run(cluster, programs, watch)
    except (ViolationError, InvariantError) as error:
        kind, detail = CORRECTNESS, f"{error}\n{_where(error)}"
    except Exception as error:
        kind, detail = CRASH, f"{type(error).__name__}: {error}\n{_where(error)}"
    finally:
        gc.set_threshold(*thresholds)
    story = list(cluster.story)[-STORY_SHOWN:]
    digest = cluster.kernel.digest()
    return Verdict(kind, detail, digest, summary_of(cluster), dict(cluster.faults.strikes), story), cluster


def _where(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-3:])


def _run(
    cluster: Cluster, programs: list[Callable[[], Program]], watch: Callable[[Cluster], None] | None
) -> tuple[int, str]:
    expected = _consult_oracle(cluster, programs)
    phases = cluster.scenario.phases
    cluster.boot()
    bound_ns = int((phases.faulty_s + phases.liveness_s) * S)
    step_ns = bound_ns if watch is None else S // 20
    until_ns = 0
    while cluster.unfinished and until_ns < bound_ns:
        until_ns = min(bound_ns, until_ns + step_ns)
        cluster.kernel.run_until(until_ns, lambda: not cluster.unfinished)
        if watch is not None:
            watch(cluster)
    if cluster.unfinished:
        return LIVENESS, _who_waits(cluster)
    _check_results(cluster, expected)
    _settle(cluster, _time_to_rest_ns(cluster))
    return PASSED, ""


def _consult_oracle(cluster: Cluster, programs: list[Callable[[], Program]]) -> list[bytes | None]:
    """The packed result of every program run in sequence; ``None``: not asked."""
    if not cluster.scenario.strict:
        return [None] * len(programs)
    expected: list[bytes | None] = []
    for number, program in enumerate(programs):
        oracle, result = oracle_of(number, program)
        if isinstance(result, ProgramError):
            raise ViolationError(f"the program fails even in sequence: {result}")
        cluster.judge.oracle.update(oracle.values)
        expected.append(pack(result).data)
    return expected


def _check_results(cluster: Cluster, expected: list[bytes | None]) -> None:
    for driver, result in zip(cluster.drivers, expected, strict=True):
        if driver.finished_ns is None or result is None:
            continue  # it crashed, or nobody knows better
        if isinstance(driver.result, ProgramError):
            if driver.result.origin == "user":
                cluster.judge.fail(f"driver {driver.number} ends with {driver.result}")
        elif pack(driver.result).data != result:
            cluster.judge.fail(f"driver {driver.number} has another result than in sequence: {driver.result}")


def _time_to_rest_ns(cluster: Cluster) -> int:
    """How long everything may take to come to rest: a worker that hangs at its start is given up late."""
    quiet_ns = int(cluster.scenario.phases.quiet_s * S)
    if not cluster.scenario.faults.worker_start_hang:
        return quiet_ns
    config = cluster.config
    return max(quiet_ns, config.worker_start_timeout_ns + 2 * config.worker_idle_ns)


def _settle(cluster: Cluster, quiet_ns: int) -> None:
    """Let everything come to rest, look at what is left, then let the drivers leave and look again."""
    kernel, judge = cluster.kernel, cluster.judge
    if cluster.scenario.workload.kind == "detached":
        kernel.run_until(max(kernel.now_ns, cluster.faults.faulty_ns) + quiet_ns // 4)
        cluster.end_detached_actors()
    kernel.run_until(max(kernel.now_ns, cluster.faults.faulty_ns) + quiet_ns)
    for node in cluster.nodes:
        judge.check_at_rest(node)
    for shard in cluster.shards:
        judge.check_confirmed(shard)
        judge.check_directory(shard)
        judge.check_schedulers(shard)
    for coordinator in cluster.coordinators():
        judge.groups.check_reserved(coordinator, cluster.nodes)
    for chain in cluster.chains:
        judge.check_chain(chain.hosts, chain.members())
    shards = range(cluster.scenario.cluster.shards)
    judge.check_names([cluster.serving(number)[0] for number in shards])
    judge.check_calls([driver.address for driver in cluster.drivers if not driver.gone])
    cluster.ending = True
    for driver in cluster.drivers:
        driver.look()
    kernel.run_until(kernel.now_ns + 2 * S)
    for node in cluster.nodes:
        judge.check_at_rest(node)
    judge.check_jobs(cluster.nodes)
    for coordinator in cluster.coordinators():
        judge.groups.check_reserved(coordinator, cluster.nodes)
        judge.groups.check_gone(coordinator)


def _who_waits(cluster: Cluster) -> str:
    """What an operator would look at first."""
    lines = [f"{cluster.unfinished} programs did not end in time"]
    for node in cluster.nodes:
        machine = node.node
        tasks = len(machine.scheduler.tasks)
        lines.append(
            f"node {node.number}: {tasks} unfinished tasks, {machine.scheduler.backlog()} ready, "
            f"{len(machine.pool.busy)} busy workers, {len(machine.store.waiting_creates)} waiting creators, "
            f"free {machine.pool.resources.free}"
        )
    return "\n".join(lines)


def summary_of(cluster: Cluster) -> Summary:
    """The numbers of a run so far."""
    finished = [driver.finished_ns for driver in cluster.drivers if driver.finished_ns is not None]
    makespan_ns = max(finished, default=cluster.kernel.now_ns)
    cpus = sum(node.cpus for node in cluster.nodes)
    network = cluster.network
    return Summary(
        makespan_ns=makespan_ns,
        tasks=cluster.tasks_run,
        utilisation=cluster.work_ns / max(1, makespan_ns * cpus),
        p50_ns=cluster.run_times.quantile(0.5),
        p99_ns=cluster.run_times.quantile(0.99),
        messages=network.messages,
        frames=network.frames,
        bytes=network.bytes,
        lost_frames=network.lost_frames,
        retries=sum(node.node.scheduler.retried for node in cluster.nodes),
        forwards=cluster.forwards,
        spillbacks=cluster.spillbacks,
        faults_seen=cluster.judge.faults_seen,
        events=cluster.kernel.events + network.messages,
    )
