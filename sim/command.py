"""The command ``zray sim``: ``run`` one scenario, ``swarm`` over seeds, ``list`` what is shipped.

The commands about real runs are in ``recorded_command.py``.

Exit codes: 0 passed, 1 a replay differs, 2 a wrong command line or scenario, 3 crash, 4 liveness,
5 correctness.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sim import chrome, recorded_command
from sim.cluster import Cluster
from sim.costs import SHIPPED, CostsError, load_costs
from sim.plots import SUFFIXES, MissingExtraError, draw_all, require
from sim.run import PASSED, VERDICTS, Verdict, run_scenario
from sim.scenario import Scenario, ScenarioError, load, shipped
from sim.swarm import Failure, as_toml, describe_failure, run_seeds, scenario_of, shrink, worst

PROGRAM = "zray sim"
USAGE_ERROR = 2
SHRUNK_MAX = 3
"""Failing seeds of one swarm that are made smaller; the others are told as they are."""


class ProgressBar:
    """A line on a terminal that shows how far it is; nothing anywhere else."""

    def __init__(self, total: int, what: str) -> None:
        self.total = max(1, total)
        self.what = what
        self.shown = sys.stderr.isatty()
        self.last_s = 0.0

    def show(self, done: int, note: str = "") -> None:
        """Draw it, at most ten times a second."""
        now_s = time.monotonic()
        if not self.shown or (now_s - self.last_s < 0.1 and done < self.total):
            return
        self.last_s = now_s
        filled = 30 * min(done, self.total) // self.total
        bar = "#" * filled + "." * (30 - filled)
        sys.stderr.write(f"\r[{bar}] {done}/{self.total} {self.what} {note}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the line empty."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Run zray's state machines in virtual time, with faults and judges."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="one scenario with one seed")
    run.add_argument("scenario", help="a shipped name, a TOML file, or swarm: what the swarm draws")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--trace", type=Path, metavar="FILE", help="write the whole verdict and story as JSON")
    run.add_argument("--chrome", type=Path, metavar="FILE", help="write a Chrome trace for Perfetto")
    run.add_argument("--plots", type=Path, metavar="DIR", help="draw what ran, queues and throughput there")
    run.add_argument("--format", choices=[suffix[1:] for suffix in SUFFIXES], default="png", help="of plots")
    run.add_argument("--policy", choices=recorded_command.SCHEDULERS, help="instead of the scenario's")
    run.add_argument("--costs", type=Path, default=SHIPPED, metavar="FILE", help="what calibrate wrote")
    swarm = commands.add_parser("swarm", help="many seeds, each with a scenario of its own")
    swarm.add_argument("--seeds", type=_range, default=range(50), metavar="A..B", help="default: 0..49")
    swarm.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    swarm.add_argument("--no-shrink", action="store_true", help="do not make failing scenarios smaller")
    swarm.add_argument("--keep", type=Path, metavar="DIR", help="write shrunk scenarios there")
    commands.add_parser("list", help="shipped scenarios")
    recorded_command.add_commands(commands)
    return parser


def _range(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        found = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A..B, such as 0..99") from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is empty")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = _parser().parse_args(argv)
    try:
        if given.command == "run":
            return _run(given)
        if given.command == "swarm":
            return _swarm(given)
        if given.command == "list":
            return _list()
        return recorded_command.run(given.function, given)
    except (ScenarioError, CostsError, MissingExtraError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR


def _list() -> int:
    for name in shipped():
        print(f"{name:20} {load(name).about}")
    return PASSED


def _run(given: argparse.Namespace) -> int:
    seed: int = given.seed
    scenario = scenario_of(seed) if given.scenario == "swarm" else load(given.scenario)
    if given.policy is not None:
        scenario = msgspec.structs.replace(scenario, policy=given.policy)
    if given.plots is not None:
        require(f".{given.format}")
    total = scenario.workload.tasks * scenario.cluster.drivers
    bar = ProgressBar(total, "tasks")

    def watch(cluster: Cluster) -> None:
        bar.show(cluster.tasks_run, f"at {cluster.kernel.now_ns / 1e9:.2f} s")

    started_s = time.perf_counter()
    verdict, cluster = run_scenario(
        scenario,
        seed,
        costs=load_costs(given.costs).costs,
        keep_spans=given.chrome is not None or given.plots is not None,
        watch=watch if bar.shown else None,
    )
    took_s = time.perf_counter() - started_s
    bar.clear()
    print(summary_text(scenario, seed, verdict, took_s))
    if given.chrome is not None:
        chrome.write(cluster, given.chrome)
    if given.plots is not None:
        for path in draw_all(cluster, given.plots, f".{given.format}"):
            print(f"  drew         {path}")
    if given.trace is not None:
        given.trace.write_bytes(
            msgspec.json.format(msgspec.json.encode([*verdict[:-1], list(cluster.story)]))
        )
    if verdict.kind != PASSED:
        replay = f"{PROGRAM} run {given.scenario} --seed {seed}"
        replay += "" if given.costs == SHIPPED else f" --costs {given.costs}"
        print(describe_failure(Failure(seed, scenario, verdict), replay))
    return verdict.kind


def summary_text(scenario: Scenario, seed: int, verdict: Verdict, took_s: float) -> str:
    """The numbers of a run for people. Times are virtual unless they say real."""
    numbers = verdict.summary
    rate = numbers.events / took_s if took_s > 0 else 0.0
    return "\n".join(
        (
            f"{scenario.name}, seed {seed}: {VERDICTS[verdict.kind]}",
            f"  makespan     {numbers.makespan_ns / 1e9:.6f} s   utilisation {numbers.utilisation:.1%}",
            f"  run time     p50 {numbers.p50_ns / 1e3:.0f} us   p99 {numbers.p99_ns / 1e3:.0f} us",
            f"  tasks        {numbers.tasks}   retries {numbers.retries}   forwards {numbers.forwards}   "
            f"spillbacks {numbers.spillbacks}",
            f"  network      {numbers.messages} messages in {numbers.frames} frames, {numbers.bytes} bytes, "
            f"{numbers.lost_frames} frames lost",
            f"  faults       {verdict.strikes or 'none'}, seen by programs: {numbers.faults_seen}",
            f"  simulation   {numbers.events} events in {took_s:.2f} s real ({rate:,.0f}/s)",
            f"  digest       {verdict.digest}",
        )
    )


def _swarm(given: argparse.Namespace) -> int:
    seeds: range = given.seeds
    bar = ProgressBar(len(seeds), "seeds")
    failures: list[Failure] = []
    strikes: dict[str, int] = {}
    tasks = 0
    started_s = time.perf_counter()
    for done, (seed, verdict) in enumerate(run_seeds(seeds, max(1, given.jobs)), 1):
        tasks += verdict.summary.tasks
        for name, count in verdict.strikes.items():
            strikes[name] = strikes.get(name, 0) + count
        if verdict.kind != PASSED:
            failures.append(Failure(seed, scenario_of(seed), verdict))
        bar.show(done, f"{len(failures)} failed")
    bar.clear()
    for number, failure in enumerate(sorted(failures, key=lambda failure: failure.seed)):
        print(describe_failure(failure, f"{PROGRAM} run swarm --seed {failure.seed}"))
        if number < SHRUNK_MAX and not given.no_shrink:
            _shrink(failure, given.keep)
        print()
    kinds = {VERDICTS[kind]: sum(f.verdict.kind == kind for f in failures) for kind in (3, 4, 5)}
    print(
        f"{len(seeds)} seeds, {len(seeds) - len(failures)} passed, failed {kinds}, {tasks} tasks, "
        f"{time.perf_counter() - started_s:.1f} s; strikes: {strikes}"
    )
    return worst(failure.verdict.kind for failure in failures)


def _shrink(failure: Failure, folder: Path | None) -> None:
    smaller = shrink(failure.scenario, failure.seed, failure.verdict.kind, lambda _: None)
    folder = folder or Path()
    path = folder / f"swarm-{failure.seed}.toml"
    path.write_text(as_toml(smaller), encoding="utf-8")
    print(f"smaller: {PROGRAM} run {path} --seed {failure.seed}")


if __name__ == "__main__":
    sys.exit(main())
