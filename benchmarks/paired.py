"""This tree against another commit of zray, in pairs: ``python -m benchmarks.paired`` or ``make perf``.

Both run the benchmarks of *this* tree, in turns (A B, B A, ...), each round in a fresh process. A metric is a
regression if the median of the ratios of the rounds is beyond ``--tolerance`` *and* three quarters of the
rounds are worse: a busy machine makes single rounds wrong, but both trees alike. Nothing is said about
absolute times.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import cases, runner

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CASES = (
    "task_sync,task_async,actor_sync,actor_async,small_objects,chain,wait,many_returns,large_objects,idle"
)
AGREEMENT = 0.75


class Comparison(NamedTuple):
    """One metric: how much better this tree is than the other, round by round; above 1 is better."""

    title: str
    ratios: list[float]

    @property
    def median(self) -> float:
        """Of the ratios."""
        return statistics.median(self.ratios)

    def is_regression(self, tolerance: float) -> bool:
        """Whether this tree is worse, beyond the tolerance and in most rounds."""
        worse = sum(ratio < 1 for ratio in self.ratios)
        return self.median < 1 - tolerance and worse >= AGREEMENT * len(self.ratios)


def base_commit(asked: str | None) -> str:
    """The commit to compare with: the one asked for, else that of the last tag.

    Raises:
        SystemExit: if there is none.
    """
    command = ["git", "rev-parse", "--verify", f"{asked}^{{commit}}"] if asked else [
        "git", "describe", "--tags", "--abbrev=0"
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nothing to compare with ({done.stderr.strip()}); say --against COMMIT")
    return done.stdout.strip()


def unpack(commit: str, folder: Path) -> None:
    """The packages of ``commit``, and the benchmarks of this tree beside them."""
    command = ["git", "archive", commit, "zray", "sim"]
    packed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results"))


def measure(root: Path, plan: runner.Plan) -> dict[str, float]:
    """One round of the tree at ``root``: metric -> value."""
    results = runner.Results()
    runner.run_system(plan._replace(root=root), results, "zray", 0)
    values: dict[str, float] = {}
    for outcome in results.outcomes:
        if outcome.failed:
            print(f"    {outcome.case}: {outcome.failed}", file=sys.stderr)
        for key, value in (outcome.values or {}).items():
            values[f"{outcome.case}.{key}"] = value
    return values


def compare(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], chosen: Sequence[str]
) -> list[Comparison]:
    """The ratios of every metric that both trees have in some round."""
    found = []
    for case in cases.CASES:
        if case.name not in chosen:
            continue
        for metric in case.metrics:
            name = f"{case.name}.{metric.key}"
            pairs = [(our.get(name), their.get(name)) for our, their in zip(ours, theirs, strict=True)]
            both = [(our, their) for our, their in pairs if our and their]
            ratios = [our / their if metric.higher_is_better else their / our for our, their in both]
            if ratios:
                found.append(Comparison(cases.title(metric, cases.Scale()), ratios))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table; 1 if there are regressions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT", help="default: the last tag")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default=DEFAULT_CASES)
    parser.add_argument("--seconds", type=float, default=0.5, help="measuring time of each rate")
    parser.add_argument("--tolerance", type=float, default=0.1)
    given = parser.parse_args(argv)
    chosen = given.cases.split(",")
    unknown = [name for name in chosen if name not in {case.name for case in cases.CASES}]
    if unknown:
        parser.error(f"unknown cases: {', '.join(unknown)}")
    commit = base_commit(given.against)
    scale = cases.Scale(seconds=given.seconds, idle_s=1.0)
    plan = runner.Plan(["zray"], chosen, 1, scale, {"zray": sys.executable}, 1.0)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    print(f"this tree against {commit}, {given.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        other = Path(name)
        unpack(commit, other)
        for number in range(given.rounds):
            turns = [(ROOT, ours), (other, theirs)]
            for root, measured in turns if number % 2 == 0 else turns[::-1]:
                measured.append(measure(root, plan))
    return report(compare(ours, theirs, chosen), given.tolerance)


def report(comparisons: list[Comparison], tolerance: float) -> int:
    """Print one line for each metric; 1 if one of them is a regression."""
    regressions = 0
    for each in comparisons:
        bad = each.is_regression(tolerance)
        regressions += bad
        spread = f"{min(each.ratios):.2f} .. {max(each.ratios):.2f}"
        print(f"{each.title:36} {each.median:6.2f}x   ({spread}){'   REGRESSION' if bad else ''}")
    print(f"above 1 this tree is better; {regressions} regressions; load {os.getloadavg()[0]:.1f}")
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
