"""One command that measures zray beside its peers: ``python -m benchmarks.compare``.

Prints one table, and writes ``docs/benchmarks.md`` and a JSON file under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

if not __package__:  # run as a file: its own folder is on the path, the project's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import parts, report, runner
from benchmarks.cases import QUICK, Scale
from benchmarks.systems import HOMES

PROBE_S = 60
PROBE = "import sys; from benchmarks import systems; systems.load(sys.argv[1]).versions()"
RESULTS = runner.ROOT / "benchmarks" / "results"
DOCS = runner.ROOT / "docs" / "benchmarks.md"


def missing_reason(system: str, python: str) -> str:
    """Why ``system`` cannot be imported by the interpreter ``python``; empty if it can."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE, system], cwd=runner.ROOT, capture_output=True, text=True, timeout=PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def choose_systems(wanted: str | None, pythons: dict[str, str]) -> list[str]:
    """The systems asked for, missing or not; by default all that can be imported, saying which cannot."""
    if wanted:
        return wanted.split(",")
    present = []
    for system in HOMES:
        reason = missing_reason(system, pythons[system])
        if reason:
            print(f"without {system}: {reason}", flush=True)
        else:
            present.append(system)
    return present


def parse_interpreters(given: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """``SYSTEM=PATH`` to an interpreter per system; a bare ``PATH`` is for all that are not named."""
    named = dict(item.split("=", 1) for item in given if "=" in item)
    bare = [item for item in given if "=" not in item]
    unknown = [name for name in named if name not in HOMES]
    if unknown or len(bare) > 1:
        parser.error(f"--python takes SYSTEM=PATH, with a system out of {', '.join(HOMES)}")
    default = bare[0] if bare else sys.executable
    return {system: named.get(system, default) for system in HOMES}


def parse_rounds(given: list[str], parser: argparse.ArgumentParser) -> dict[str, int]:
    """``SYSTEM=N`` to rounds of a system."""
    named = dict(item.partition("=")[::2] for item in given)
    if any(name not in HOMES or not count.isdigit() or not int(count) for name, count in named.items()):
        parser.error(f"--rounds-of takes SYSTEM=N, with a system out of {', '.join(HOMES)}")
    return {name: int(count) for name, count in named.items()}


def parse_names(text: str | None, known: list[str], what: str, parser: argparse.ArgumentParser) -> None:
    """Refuse names that do not exist, listing those that do."""
    unknown = [name for name in (text or "").split(",") if name and name not in known]
    if unknown:
        parser.error(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--systems", help=f"out of {','.join(HOMES)} (default: those that can be imported)")
    parser.add_argument(
        "--cases", help=f"out of {','.join(case.name for case in parts.ALL_CASES)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default: 5; 1 with --quick)")
    parser.add_argument("--rounds-of", action="append", default=[], metavar="SYSTEM=N",
                        help="fewer rounds for a slow system, may be repeated")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="for every system (default: 2)")
    parser.add_argument("--seconds", type=float, metavar="S", help="time to measure a rate (default: 1.5)")
    parser.add_argument(
        "--idle-seconds", type=float, metavar="S", help="time to look at idle CPU (default: 10)"
    )
    parser.add_argument("--limit-factor", type=float, default=1.0, metavar="X",
                        help="stretch the time limit of every case (default: 1)")  # fmt: skip
    parser.add_argument("--python", action="append", default=[], metavar="SYSTEM=PATH",
                        help="interpreter for a system, may be repeated (default: this one)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny counts, one round, writes no files")
    parser.add_argument("--docs", type=Path, help="the Markdown file (default: docs/benchmarks.md)")
    parser.add_argument("--json", type=Path, help="the JSON file (default: benchmarks/results/<date>.json)")
    return parser


def make_plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> runner.Plan:
    """What to run, with every name checked."""
    names = [case.name for case in parts.ALL_CASES]
    parse_names(options.systems, list(HOMES), "system", parser)
    parse_names(options.cases, names, "case", parser)
    pythons = parse_interpreters(options.python, parser)
    scale = (QUICK if options.quick else Scale())._replace(workers=options.workers)
    if options.seconds:
        scale = scale._replace(seconds=options.seconds)
    if options.idle_seconds:
        scale = scale._replace(idle_s=options.idle_seconds)
    systems = choose_systems(options.systems, pythons)
    if not systems:
        parser.error("none of the systems can be imported; name interpreters with --python")
    return runner.Plan(
        systems=systems,
        cases=[name for name in names if not options.cases or name in options.cases.split(",")],
        rounds=options.rounds or (1 if options.quick else 5),
        scale=scale,
        pythons=pythons,
        limit_factor=options.limit_factor,
        rounds_of=parse_rounds(options.rounds_of, parser),
    )


def repeatable_command() -> str:
    """The command line as given, without the paths of this machine."""
    shown = []
    for argument in sys.argv[1:]:
        name, equals, path = argument.rpartition("=")
        shown.append(f"{name}{equals}…" if "/" in path else argument)
    return " ".join(["python -m benchmarks.compare", *shown])


def write(path: Path, text: str) -> None:
    """Write a file and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path.relative_to(runner.ROOT) if path.is_relative_to(runner.ROOT) else path}")


def main() -> int:
    """Run everything, print the table, write the files. Returns the exit code."""
    parser = make_parser()
    options = parser.parse_args()
    plan = make_plan(options, parser)
    when = datetime.datetime.now(datetime.UTC)
    results = runner.run(plan, say=lambda line: print(line, flush=True))
    for header, lines in report.tables(plan, results):
        print("\n" + report.plain_table(header, lines))
    for line in report.notes(plan, results):
        print(f"note: {line}")

    command = repeatable_command()
    docs = options.docs or (None if options.quick else DOCS)
    raw = options.json or (None if options.quick else RESULTS / f"{when:%Y-%m-%dT%H%M%SZ}.json")
    if docs:
        write(docs, report.markdown(plan, results, command, when))
    if raw:
        write(raw, json.dumps(report.as_json(plan, results, command, when), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
