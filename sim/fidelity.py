"""How far the simulation is off: the same programs on real processes and in virtual time.

The real runs of all configurations are interleaved, so that a slow moment of the machine does not hit one of
them alone; each number is a median. A burst and pings are what the costs were calibrated with; the other
configurations are predictions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from sim.cluster import Cluster
from sim.costs import Costs, default_costs
from sim.kernel import S
from sim.real.clusters import RealCluster, real_cluster
from sim.real.programs import CODE, warmed
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.config import Config
from zray.errors import ZrayError

LIMIT_S = 3_600


class FidelityError(ZrayError):
    """The simulated half of a comparison did not come to an end."""


class Case(NamedTuple):
    """One program on one cluster."""

    name: str
    program: str
    number: int
    nodes: int = 1
    cpus: int = 1
    delay_us: int = 0
    """Latency that is added to every frame, in both worlds."""


class Compared(NamedTuple):
    """What it took."""

    case: Case
    real_ns: int
    real_all_ns: tuple[int, ...]
    simulated_ns: int

    @property
    def ratio(self) -> float:
        """Simulated over real."""
        return self.simulated_ns / self.real_ns


CASES = (
    Case("20,000 empty tasks", "burst", 20_000),
    Case("1,000 empty tasks, one by one", "ping", 1_000),
    Case("chain of 1,000", "chain", 1_000),
    Case("chain of 1,000, 1 ms per frame", "chain", 1_000, delay_us=1_000),
    Case("100 one by one, 5 ms per frame", "ping", 100, delay_us=5_000),
    Case("4 nodes, 90 tasks each of 1/10/100 ms", "pauses", 90, nodes=4, cpus=2),
)


def simulate_case(case: Case, *, costs: Costs | None = None, seed: int = 0) -> int:
    """The makespan of a case in virtual time, in nanoseconds.

    Raises:
        FidelityError: if it does not end.
    """
    costs = costs or default_costs()
    scenario = Scenario(
        "fidelity", strict=False, check_every=10_000_000,
        cluster=ClusterPart(nodes=case.nodes, cpus=case.cpus, drivers=case.nodes),
        network=NetworkPart(latency_us=costs.link_ns // 1000 + case.delay_us, jitter_us=0),
        phases=PhasesPart(liveness_s=LIMIT_S),
    )  # fmt: skip
    started: list[int] = []

    def begun() -> None:
        started.append(cluster.kernel.now_ns)

    def program() -> Callable[[], object]:
        return lambda: warmed(case.program, case.number, begun)

    programs = [program() for _ in range(case.nodes)]
    cluster = Cluster(
        scenario, seed, programs, config=Config(), costs=costs, functions=CODE,  # type: ignore[arg-type]
    )  # fmt: skip
    cluster.boot()
    cluster.kernel.run_until(LIMIT_S * S, lambda: not cluster.unfinished)
    finished = [driver.finished_ns for driver in cluster.drivers if driver.finished_ns is not None]
    if len(finished) < case.nodes:
        raise FidelityError(f"{case.name}: the simulated programs do not end")
    return max(finished) - min(started)


def compare(
    cases: Sequence[Case] = CASES, *, rounds: int, costs: Costs | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Compared]:  # fmt: skip
    """Run every case in both worlds.

    Raises:
        RealRunError, FidelityError: if one does not end.
    """
    say = progress or (lambda _: None)
    simulated = [simulate_case(case, costs=costs) for case in cases]
    real: list[list[int]] = [[] for _ in cases]
    with ExitStack() as stack:
        clusters = [stack.enter_context(_cluster_of(case)) for case in cases]
        for number in range(rounds):
            for case, cluster, found in zip(cases, clusters, real, strict=True):
                say(f"{case.name}, round {number + 1} of {rounds}")
                found.append(_run(case, cluster))
    return [
        Compared(case, round(statistics.median(found)), tuple(found), virtual_ns)
        for case, found, virtual_ns in zip(cases, real, simulated, strict=True)
    ]


def _cluster_of(case: Case):  # type: ignore[no-untyped-def]
    settings = {"ZRAY_SEND_DELAY_NS": str(case.delay_us * 1000)} if case.delay_us else {}
    return real_cluster(nodes=case.nodes, cpus=case.cpus, settings=settings)


def _run(case: Case, cluster: RealCluster) -> int:
    return cluster.run(case.program, case.number).makespan_ns


def table(compared: Sequence[Compared]) -> str:
    """The comparison for a document."""
    lines = ["| configuration | real (median, range) | simulated | simulated / real |", "|---|---|---|---|"]
    for one in compared:
        least, most = min(one.real_all_ns), max(one.real_all_ns)
        lines.append(
            f"| {one.case.name} | {_ms(one.real_ns)} ({_ms(least)} to {_ms(most)}) | "
            f"{_ms(one.simulated_ns)} | {one.ratio:.2f} |"
        )
    return "\n".join(lines)


def _ms(time_ns: int) -> str:
    return f"{time_ns / 1e6:,.1f} ms"
