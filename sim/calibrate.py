"""Measure what zray costs on this machine, from real processes: ``python -m sim.calibrate``.

Three programs are run: a *burst* of empty tasks, in which frames are full, *pings*, in which every frame holds
one message, and a *chain*. What a handler costs is measured on recorded batches, pumped again. What is left of the
node's processor time is shared out to turns and messages, so that both programs come out right; likewise for
drivers and workers. In pings every turn begins with a sleep, which costs several times the turn itself. How much of that is on the way of a message, and what a link takes,
follows from the time of a ping and of a link of the chain, and what a busy node pays per message is raised
until a simulated burst takes as long as a real one. Other programs are predictions (see ``fidelity.py``).
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import statistics
import sys
import tempfile
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
from sim.real.clusters import Measured, RealCluster, real_cluster
from sim.replay import Machines, open_trace
from zray.protocol import provenance
from zray.protocol.trace import Booted, Pumped

BURST_TASKS = 20_000
PING_TASKS = 1_000
ROUNDS = 5
TURN_NS = 6_000
"""A frame in or out of a process that does not sleep (bare ZeroMQ over ipc, both ends 12 us)."""
LINK_NS_MIN = 2_000
FIT_STEPS = 4
SAMPLES_MIN = 200
"""Types that came less often cost what a message usually does: a few say little, and differ in size."""
RUN_NS_MIN = 500


class Counted(NamedTuple):
    """What a trace shows of one program."""

    pumps: int
    messages: int
    handler_ns: dict[str, int]
    """Mean time of one message by its type, with its share of the decision after it."""
    decided_ns: int
    """Sum over all messages."""


class Sample(NamedTuple):
    """Medians of a program, per task."""

    tasks: int
    makespan_ns: float
    spent_ns: dict[str, float]


def calibrate(rounds: int = ROUNDS, progress: Callable[[str], None] | None = None) -> CostsFile:
    """Run the programs, in turn, on real processes, and derive the costs.

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
    counted = {name: _count(name, programs[name]) for name in ("burst", "ping")}
    samples = {name: _median(runs[name], tasks) for name, tasks in programs.items()}
    costs = derive(samples["burst"], samples["ping"], samples["chain"], counted)
    costs = fit_burst(costs, samples["burst"].makespan_ns * BURST_TASKS, BURST_TASKS)
    return CostsFile(_provenance(rounds), costs)


def _median(runs: Sequence[Measured], tasks: int) -> Sample:
    spent = {role: statistics.median(run.spent_ns[role] for run in runs) / tasks for role in runs[0].spent_ns}
    return Sample(tasks, statistics.median(run.makespan_ns for run in runs) / tasks, spent)


def derive(burst: Sample, ping: Sample, chain: Sample, counted: dict[str, Counted]) -> Costs:
    """The costs that explain the programs."""
    handlers = {**counted["ping"].handler_ns, **counted["burst"].handler_ns}
    turn_ns, transport_ns = _node_costs(burst, ping, counted)
    submit_ns = burst.spent_ns["submitted"]
    heard_ns = burst.spent_ns["driver"] - submit_ns
    run_ns = max(RUN_NS_MIN, burst.spent_ns["worker"] - heard_ns)
    hear_ns = statistics.mean(
        (ping.spent_ns["driver"] - submit_ns - heard_ns, ping.spent_ns["worker"] - run_ns - heard_ns)
    )
    handled_ns = 2 * transport_ns + handlers["Submit"] + handlers["TaskDone"]
    costs = Costs(
        turn_ns=min(TURN_NS, round(turn_ns)),
        node_wake_ns=max(0, round(turn_ns) - TURN_NS),
        message_ns=(handlers["Submit"] + handlers["TaskDone"]) // 2,
        transport_ns=round(transport_ns),
        handlers=dict(sorted(handlers.items())),
        submit_ns=round(submit_ns),
        hear_ns=min(TURN_NS, max(0, round(hear_ns))),
        wake_ns=max(0, round(hear_ns) - TURN_NS),
        heard_ns=max(0, round(heard_ns)),
        run_ns=round(run_ns),
    )
    # On the way of a ping the driver submits, the node has two turns, worker and driver each hear a frame; on
    # that of a link of a chain the node has one turn and the worker hears one frame.
    ping_ns = ping.makespan_ns - submit_ns - run_ns - 2 * heard_ns - handled_ns
    chain_ns = chain.makespan_ns - run_ns - heard_ns - transport_ns - handlers["TaskDone"]
    return _with_links(costs, statistics.mean((ping_ns / 2, chain_ns)))


def _with_links(costs: Costs, pair_ns: float) -> Costs:
    """Share out what one turn of a node, one frame heard and two links take together."""
    awake_ns = costs.turn_ns + costs.hear_ns
    asleep_ns = costs.node_wake_ns + costs.wake_ns
    link_ns = (pair_ns - awake_ns - asleep_ns) / 2
    if link_ns >= LINK_NS_MIN:
        return replace(costs, link_ns=round(link_ns))
    # A part of what waking costs is spent beside the way, after the frame has left.
    share = max(0.0, pair_ns - awake_ns - 2 * LINK_NS_MIN) / max(1, asleep_ns)
    node_wake_ns, wake_ns = round(costs.node_wake_ns * share), round(costs.wake_ns * share)
    return replace(costs, link_ns=LINK_NS_MIN, node_wake_ns=node_wake_ns, wake_ns=wake_ns)


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


def _node_costs(burst: Sample, ping: Sample, counted: dict[str, Counted]) -> tuple[float, float]:
    """Of the node's time beyond its handlers: per turn, and per message, so that both programs fit."""
    one, many = counted["ping"], counted["burst"]
    rest_one = ping.spent_ns["node"] * ping.tasks - one.decided_ns
    rest_many = burst.spent_ns["node"] * burst.tasks - many.decided_ns
    determinant = one.pumps * many.messages - many.pumps * one.messages
    turn_ns = (rest_one * many.messages - rest_many * one.messages) / determinant
    transport_ns = (rest_many * one.pumps - rest_one * many.pumps) / determinant
    if transport_ns < 0:
        return rest_one / one.pumps, 0.0
    return turn_ns, transport_ns


def _count(program: str, tasks: int) -> Counted:
    """Record a program, and pump the trace again with a clock in hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "node.trace"
        with real_cluster(nodes=1, cpus=1, trace=True) as cluster:
            _record(cluster, program, tasks)
            trace = cluster.nodes[0].trace
            assert trace is not None
            shutil.copy(trace, path)
        return count_trace(path)


def _record(cluster: RealCluster, program: str, tasks: int) -> None:
    cluster.run(program, tasks)


def count_trace(path: Path) -> Counted:
    """Pump the trace of a node again and measure each handler."""
    start, _, records = open_trace(path)
    machines = Machines(start)
    node = machines.machines[0]
    times: dict[str, list[int]] = {}
    flush_ns = pumps = messages = 0
    clock = time.perf_counter_ns
    for record in records:
        if isinstance(record, Booted):
            machines.boot(record)
        if not isinstance(record, Pumped):
            continue
        batch = machines.batch(record)
        pumps += 1
        messages += len(batch)
        for source, message in batch:
            handler = node.HANDLERS[type(message)]
            before_ns = clock()
            handler(node, record.now_ns, source, message)
            spent_ns = clock() - before_ns
            times.setdefault(type(message).__name__, []).append(spent_ns)
        before_ns = clock()
        if node.wake_at_ns is not None and node.wake_at_ns <= record.now_ns:
            node.on_tick(record.now_ns)
        node.flush(record.now_ns)
        flush_ns += clock() - before_ns
        node.out.clear()
    share_ns = flush_ns // max(1, messages)
    handlers = {
        name: round(statistics.median(found)) + share_ns
        for name, found in times.items() if len(found) >= SAMPLES_MIN
    }  # fmt: skip
    decided_ns = flush_ns + sum(sum(found) for found in times.values())
    return Counted(pumps, messages, handlers, decided_ns)


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
