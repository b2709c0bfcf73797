"""Measure what zray costs on this machine, from real processes: ``python -m sim.calibrate``.

Three programs are run: a *burst* of empty tasks, in which frames are full, *pings*, in which every frame
holds one message, and a *chain*, whose links go through the node. What a handler costs is measured on
recorded batches, pumped again. What submitting, hearing and running cost follows from the processor time of
driver and worker in a burst; what it costs to be woken, and a link, from the time that pings and chains take,
because a part of the processor time that waking costs is spent beside the way of a message. What a busy node
pays per message is raised until a simulated burst takes as long as a real one. Other programs are predictions
(see ``fidelity.py``).
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from sim.costs import Costs, CostsFile
from sim.fidelity import Case, simulate_case
from sim.real.clusters import Measured, real_cluster
from sim.replay import Machines, open_trace
from zray.protocol import provenance
from zray.protocol.trace import Booted, Pumped

BURST_TASKS = 20_000
PING_TASKS = 1_000
FRAME_NS = 6_000
"""A frame in or out of a process that does not sleep (bare ZeroMQ over ipc, both ends 12 us)."""
TRANSPORT_NS = 2_000
"""One message inside a frame, encoded and decoded; a first guess."""
LINK_NS_MIN = 2_000
FIT_STEPS = 4
SAMPLES_MIN = 200
"""Types that came less often cost what a message usually does: a few say little, and differ in size."""
RUN_NS_MIN = 500


class Sample(NamedTuple):
    """Medians of a program, per task."""

    tasks: int
    makespan_ns: float
    spent_ns: dict[str, float]


def calibrate(rounds: int, progress: Callable[[str], None] | None = None) -> CostsFile:
    """Run the programs, in turn, on real processes, and derive the costs.

    Args:
        rounds: of each. Pings take one of two times, by where the kernel puts the processes, so that the
            median of a few is luck.
    Raises:
        RealRunError: if the real cluster does not work.
    """
    say = progress or (lambda _: None)
    programs = {"burst": BURST_TASKS, "ping": PING_TASKS, "chain": PING_TASKS}
    runs: dict[str, list[Measured]] = {name: [] for name in programs}
    with ExitStack() as stack:
        # A cluster for each: a node that has run a burst is busy with its records for a while.
        clusters = {name: stack.enter_context(real_cluster(nodes=1, cpus=1)) for name in programs}
        for number in range(rounds):
            for name, tasks in programs.items():
                say(f"{name}, round {number + 1} of {rounds}")
                runs[name].append(clusters[name].run(name, tasks))
    say("recording and pumping again")
    handlers = _handlers_of("burst", BURST_TASKS)
    samples = {name: _median(runs[name], tasks) for name, tasks in programs.items()}
    costs = derive(samples["burst"], samples["ping"], samples["chain"], handlers)
    costs = fit_burst(costs, samples["burst"].makespan_ns * BURST_TASKS, BURST_TASKS)
    return CostsFile(_provenance(rounds), costs)


def _median(runs: Sequence[Measured], tasks: int) -> Sample:
    spent = {role: statistics.median(run.spent_ns[role] for run in runs) / tasks for role in runs[0].spent_ns}
    return Sample(tasks, statistics.median(run.makespan_ns for run in runs) / tasks, spent)


def derive(burst: Sample, ping: Sample, chain: Sample, handlers: dict[str, int]) -> Costs:
    """The costs that explain the programs, but for what a busy node pays per message (:func:`fit_burst`)."""
    submit_ns = burst.spent_ns["submitted"]
    heard_ns = max(0.0, burst.spent_ns["driver"] - submit_ns)
    run_ns = max(RUN_NS_MIN, burst.spent_ns["worker"] - heard_ns)
    # On the way of a ping are two frames that wake a process, the driver's and the worker's, and two links.
    spent_ns = ping.spent_ns["driver"] + ping.spent_ns["worker"] - submit_ns - run_ns - 2 * heard_ns
    way_ns = ping.makespan_ns - submit_ns - run_ns - 2 * heard_ns
    link_ns = max(LINK_NS_MIN, (way_ns - spent_ns) / 2)
    hear_ns = max(FRAME_NS, way_ns / 2 - link_ns)
    # On that of a link of a chain: a frame that wakes the worker, a turn of the node, and two links.
    turn_ns = chain.makespan_ns - run_ns - heard_ns - hear_ns - 2 * link_ns
    turn_ns = max(FRAME_NS, turn_ns - handlers["TaskDone"] - TRANSPORT_NS)
    return Costs(
        turn_ns=FRAME_NS,
        node_wake_ns=round(turn_ns - FRAME_NS),
        message_ns=(handlers["Submit"] + handlers["TaskDone"]) // 2,
        transport_ns=TRANSPORT_NS,
        handlers=dict(sorted(handlers.items())),
        submit_ns=round(submit_ns),
        hear_ns=FRAME_NS,
        wake_ns=round(hear_ns - FRAME_NS),
        heard_ns=round(heard_ns),
        run_ns=round(run_ns),
        link_ns=round(link_ns),
    )


def fit_burst(costs: Costs, makespan_ns: float, tasks: int) -> Costs:
    """Let a simulated burst take as long as a real one.

    Where driver, node and worker have to share processors, a message costs its node more than the processor
    time that it uses.
    """
    case = Case("burst", "burst", tasks)
    for _ in range(FIT_STEPS):
        off_ns = makespan_ns - simulate_case(case, costs=costs)
        # Every task is two messages of its node.
        transport_ns = max(0, round(costs.transport_ns + off_ns / tasks / 2))
        costs = replace(costs, transport_ns=transport_ns)
    return costs


def _handlers_of(program: str, tasks: int) -> dict[str, int]:
    """Record a program, and pump the trace again with a clock in hand."""
    with real_cluster(nodes=1, cpus=1, trace=True) as cluster:
        cluster.run(program, tasks)
        trace = cluster.nodes[0].trace
        assert trace is not None
        return measure_handlers(trace)


def measure_handlers(path: Path) -> dict[str, int]:
    """What a message costs the machine of a node, with its share of the decision after it, by type.

    Types that came less often than :data:`SAMPLES_MIN` are left out.
    """
    start, _, records = open_trace(path)
    machines = Machines(start)
    node = machines.machines[0]
    times: dict[str, list[int]] = {}
    flush_ns = messages = 0
    clock = time.perf_counter_ns
    for record in records:
        if isinstance(record, Booted):
            machines.boot(record)
        if not isinstance(record, Pumped):
            continue
        batch = machines.batch(record)
        messages += len(batch)
        for source, message in batch:
            handler = node.HANDLERS[type(message)]
            before_ns = clock()
            handler(node, record.now_ns, source, message)
            times.setdefault(type(message).__name__, []).append(clock() - before_ns)
        before_ns = clock()
        if node.wake_at_ns is not None and node.wake_at_ns <= record.now_ns:
            node.on_tick(record.now_ns)
        node.flush(record.now_ns)
        flush_ns += clock() - before_ns
        node.out.clear()
    share_ns = flush_ns // max(1, messages)
    return {
        name: round(statistics.median(found)) + share_ns
        for name, found in times.items() if len(found) >= SAMPLES_MIN
    }  # fmt: skip


def _provenance(rounds: int) -> dict[str, str | int]:
    return {
        **provenance.description(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {_processor()}, {platform.system()} "
        f"{platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pyzmq": version("pyzmq"),
        "msgspec": version("msgspec"),
        "rounds": rounds,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def write(found: CostsFile, path: Path) -> None:
    """Write a file of costs, for people to read, too."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def main() -> int:
    """The same as ``zray sim calibrate``, for ``python -m sim.calibrate``; the exit code."""
    from sim.command import main as command

    return command(["calibrate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
