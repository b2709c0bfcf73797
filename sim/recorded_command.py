"""The commands about real runs: ``replay``, ``whatif``, ``calibrate`` and ``fidelity``.

Exit codes: 0 done, 1 a replay differs from what was recorded, 2 a wrong command line or a file of no use.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.costs import SHIPPED, Costs, load_costs
from zray.core.placement import SCHEDULING
from zray.errors import ZrayError

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.whatif import Estimate, Prediction

DONE, DIFFERS, USAGE_ERROR = 0, 1, 2
SCHEDULERS = sorted(SCHEDULING)


def add_commands(commands: Any) -> None:
    """Add them to the parser of ``zray sim``; each sets ``function``."""
    replay = commands.add_parser("replay", help="pump a recorded process again and compare")
    replay.add_argument("trace", type=Path, help="what zray.init(trace=...) or zray-node --trace wrote")
    replay.add_argument("--other-code", action="store_true", help="also a trace of other code")
    replay.set_defaults(function=_replay)

    whatif = commands.add_parser("whatif", help="predict a recorded run on another cluster")
    whatif.add_argument("traces", type=Path, nargs="+", metavar="TRACE", help="one per node of the run")
    whatif.add_argument("--nodes", type=_positive, metavar="N", help="default: as recorded")
    whatif.add_argument("--cpus", type=_positive, metavar="N", help="of each node (default: as recorded)")
    whatif.add_argument("--policy", choices=SCHEDULERS, default="paper", help="default: %(default)s")
    whatif.add_argument("--latency-us", type=_positive, metavar="US", help="between processes")
    whatif.add_argument("--seed", type=int, default=0)
    whatif.add_argument("--costs", type=Path, default=SHIPPED, metavar="FILE", help="what calibrate wrote")
    whatif.set_defaults(function=_whatif)

    calibrate = commands.add_parser("calibrate", help="measure what zray costs on this machine")
    calibrate.add_argument("--out", type=Path, default=SHIPPED, metavar="FILE", help="default: %(default)s")
    calibrate.add_argument("--rounds", type=_positive, default=25, help="default: %(default)s")
    calibrate.set_defaults(function=_calibrate)

    fidelity = commands.add_parser("fidelity", help="run programs for real and simulated, and compare")
    fidelity.add_argument("--rounds", type=_positive, default=15, help="default: %(default)s")
    fidelity.add_argument("--costs", type=Path, default=SHIPPED, metavar="FILE", help="what calibrate wrote")
    fidelity.set_defaults(function=_fidelity)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(function: Callable[[argparse.Namespace], int], given: argparse.Namespace) -> int:
    """Run one of these commands; what cannot be used is told in a sentence."""
    try:
        return function(given)
    except (ZrayError, OSError) as error:
        print(f"zray sim {given.command}: {error}", file=sys.stderr)
        return USAGE_ERROR


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _replay(given: argparse.Namespace) -> int:
    from sim.replay import replay

    found = replay(given.trace, other_code=given.other_code)
    print(f"{given.trace}: {found.pumps} pumps, {found.messages} messages in, {found.effects} effects out")
    if found.torn_bytes:
        print(f"  the last {found.torn_bytes} bytes are an unfinished record: its process was killed")
    elif not found.ended:
        print("  the recording has no end: its process was killed")
    else:
        print(f"  the recording ended because {found.ended}")
    if found.difference is None:
        print("  every pump gave what was recorded")
        return DONE
    difference = found.difference
    print(f"  pump {difference.pump}, of {difference.machine}, is different: {difference.detail}")
    for line in difference.story:
        print(f"    {line}")
    return DIFFERS


def _costs_of(given: argparse.Namespace) -> Costs:
    return load_costs(given.costs).costs


def _whatif(given: argparse.Namespace) -> int:
    from sim.scenario import NetworkPart
    from sim.whatif import predict

    costs = _costs_of(given)
    latency_us = given.latency_us or max(1, costs.link_ns // 1000)

    def watch(cluster: Cluster) -> None:
        _say(f"\r{cluster.tasks_run} tasks at {cluster.kernel.now_ns / 1e9:.1f} s\x1b[K")

    prediction = predict(
        given.traces, nodes=given.nodes, cpus=given.cpus, policy=given.policy, seed=given.seed,
        network=NetworkPart(latency_us=latency_us, jitter_us=0), costs=costs,
        watch=watch if sys.stderr.isatty() else None,
    )  # fmt: skip
    print(prediction_text(prediction))
    return DONE


def prediction_text(prediction: Prediction) -> str:
    """A prediction for people."""
    same, other = prediction.same_shape, prediction.other_shape
    ratio = same.makespan_ns / max(1, prediction.recorded_ns)
    return "\n".join(
        (
            f"{prediction.tasks} tasks, {prediction.work_ns / 1e9:.3f} s of work",
            f"  recorded   {prediction.recorded_ns / 1e9:10.3f} s",
            f"  simulated  {_estimate_text(same)}  the recorded shape, {ratio:.2f} of what was recorded",
            f"  predicted  {_estimate_text(other)}  {same.makespan_ns / max(1, other.makespan_ns):.2f} times "
            "as fast as the recorded shape",
            *(f"  note: {note}" for note in prediction.notes),
        )
    )


def _estimate_text(estimate: Estimate) -> str:
    return (
        f"{estimate.makespan_ns / 1e9:10.3f} s  {estimate.nodes} nodes of {estimate.cpus} CPUs, "
        f"{estimate.policy}, {estimate.utilisation:.0%} used, {estimate.forwards} forwards;"
    )


def _calibrate(given: argparse.Namespace) -> int:
    from sim.calibrate import calibrate, write

    write(calibrate(given.rounds, _say), given.out)
    print(f"wrote {given.out}")
    return DONE


def _fidelity(given: argparse.Namespace) -> int:
    from sim.fidelity import compare, table

    file = load_costs(given.costs)
    before = os.getloadavg()[0]
    print(table(compare(rounds=given.rounds, costs=file.costs, progress=_say)))
    day, machine = file.measured.get("day", "some day"), file.measured.get("machine", "a machine")
    print(f"\ncosts measured {day} on {machine}; load {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    return DONE
