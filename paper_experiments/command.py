"""``python -m paper_experiments``, or ``zray paper``: list, run, replay and report.

Exit codes: 0, 1 if a claim is not reproduced (with ``--check``: any more) or a run fails, 2 for a command
line that makes no sense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paper_experiments.common import catalogue, report, results, verdicts
from paper_experiments.common.catalogue import Experiment, UnknownExperimentError
from paper_experiments.common.expected import ExpectedError, Mode, PaperClaim
from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.results import Result
from paper_experiments.common.run import SCALES
from paper_experiments.common.verdicts import ClaimVerdict
from paper_experiments.replay import description
from paper_experiments.replay import run as replay_run
from paper_experiments.replay.description import WorkloadFileError
from zray.errors import ZrayError

REPORT_FOLDER = Path("docs") / "paper-report"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = _parser().parse_args(argv)
    try:
        code: int = given.function(given)
        return code
    except (UnknownExperimentError, ExpectedError, WorkloadFileError) as error:
        print(f"zray paper: {error}", file=sys.stderr)
        return 2
    except (ZrayError, OSError, TimeoutError) as error:
        print(f"zray paper: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zray paper", description="Run the paper's evaluation again.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="which experiments there are, and what is stored of each")
    listing.set_defaults(function=_list)

    running = commands.add_parser("run", help="run one, several or all, and store what they find")
    running.add_argument("names", nargs="+", metavar="NAME", help="of experiments, or 'all'")
    how = running.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_const", const="live", dest="mode", help="only real processes")
    how.add_argument("--sim", action="store_const", const="sim", dest="mode", help="only in virtual time")
    running.add_argument("--scale", choices=SCALES, default="small", help="default: %(default)s")
    what = running.add_mutually_exclusive_group()
    what.add_argument("--dry", action="store_true", help="store nothing")
    what.add_argument(
        "--check", action="store_true",
        help="store nothing, and fail only for claims that the stored run of this scale reproduced",
    )  # fmt: skip
    _add_python(running)
    running.set_defaults(function=_run)

    replaying = commands.add_parser(
        "replay", help="run a workload of yours on zray, on Ray and in virtual time"
    )
    replaying.add_argument("workload", type=Path, metavar="WORKLOAD.toml")
    replaying.add_argument(
        "--system",
        action="append",
        choices=replay_run.SYSTEMS,
        help="may be repeated (default: zray and sim)",
    )
    replaying.add_argument("--repetitions", type=int, default=3, metavar="N", help="default: %(default)s")
    _add_python(replaying)
    replaying.set_defaults(function=_replay)

    reporting = commands.add_parser("report", help="write one HTML page of everything that is stored")
    reporting.add_argument("--scale", choices=SCALES, default="small", help="default: %(default)s")
    reporting.add_argument(
        "--output", type=Path, default=catalogue.ROOT.parent / REPORT_FOLDER, metavar="FOLDER"
    )
    reporting.set_defaults(function=_report)
    return parser


def _add_python(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--python", action="append", default=[], metavar="SYSTEM=PATH", type=_interpreter,
        help=f"interpreter for a system out of {', '.join(SYSTEMS)}, may be repeated (default: this one)",
    )  # fmt: skip


def _interpreter(text: str) -> tuple[str, str]:
    system, equals, path = text.partition("=")
    if system not in SYSTEMS or not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not SYSTEM=PATH with one of {', '.join(SYSTEMS)}")
    return system, path


# --- list ----------------------------------------------------------------------------------------


def _list(given: argparse.Namespace) -> int:
    for name in catalogue.names():
        experiment = catalogue.get(name)
        stored = [f"{result.mode}-{result.scale}" for result in results.load_all(experiment.folder)]
        modes = "+".join(experiment.runners)
        print(f"{name:32} {modes:9} {experiment.expected.title}")
        print(f"{'':32} {'stored:':9} {', '.join(stored) or 'nothing'}")
    return 0


# --- run -----------------------------------------------------------------------------------------


def _run(given: argparse.Namespace) -> int:
    chosen = catalogue.names() if "all" in given.names else given.names
    experiments = [catalogue.get(name) for name in chosen]
    plan = [(one, _modes_of(one, given.mode, everything="all" in given.names)) for one in experiments]
    failed = 0
    for experiment, modes in plan:
        for mode in modes:
            try:
                failed += _run_one(experiment, mode, given)
            except (ZrayError, OSError, AssertionError) as error:  # the others are run all the same
                failed += 1
                print(f"{experiment.name}, {mode}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _modes_of(experiment: Experiment, wanted: Mode | None, *, everything: bool) -> list[Mode]:
    """The modes to run; one that an experiment does not have is refused, or left out of everything."""
    if wanted is None:
        return list(experiment.runners)
    if not everything:
        catalogue.runner_of(experiment, wanted)
    return [wanted] if wanted in experiment.runners else []


def _run_one(experiment: Experiment, mode: Mode, given: argparse.Namespace) -> int:
    """Run, store, and say what came out; how many claims were not reproduced."""
    result = catalogue.run(experiment, mode, given.scale, pythons=dict(given.python))
    print(f"{experiment.name}, {mode}, {given.scale}: {result.took_s:.1f} s")
    before = results.load_if_stored(experiment.folder, mode, given.scale) if given.check else None
    failed = 0
    for claim in experiment.expected.claims:
        if mode not in claim.modes:
            continue
        verdict = verdicts.judge(claim, result)
        failed += _is_failure(claim, verdict, before)
        value = "" if verdict.value is None else f"{verdict.value:.4g} {claim.unit}".strip()
        print(f"  {verdict.kind:20} {claim.name}: {value or '-'} ({claim.bounds})")
        if verdict.reason:
            print(f"  {'':20} {verdict.reason}")
    if not given.dry and not given.check:
        print(f"  stored in {results.save(result, experiment.folder)}")
    return failed


def _is_failure(claim: PaperClaim, verdict: ClaimVerdict, before: Result | None) -> bool:
    """Not reproduced; where there is a run to compare with, only what that one reproduced counts."""
    if before is None:
        return verdict.kind == verdicts.NOT_REPRODUCED
    was_reproduced = verdicts.judge(claim, before).kind == verdicts.REPRODUCED
    return was_reproduced and verdict.kind != verdicts.REPRODUCED


# --- replay --------------------------------------------------------------------------------------


def _replay(given: argparse.Namespace) -> int:
    workload = description.load(given.workload)
    systems = given.system or ["zray", replay_run.SIM]
    print(f"{workload.name}: {workload.about}")
    found, missing = replay_run.replay(workload, systems, max(1, given.repetitions), dict(given.python))
    for times in found:
        print(times.line())
    for system, reason in missing.items():
        print(f"without {system}: {reason}", file=sys.stderr)
    return 1 if missing else 0


# --- report --------------------------------------------------------------------------------------


def _report(given: argparse.Namespace) -> int:
    print(report.write(given.output, given.scale))
    return 0
