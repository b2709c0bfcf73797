"""Runs a workload on several systems in turn, and says how long each took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import zray
from paper_experiments.common import peers
from paper_experiments.replay import program
from paper_experiments.replay.description import Workload

SIM = "sim"
SYSTEMS = ("zray", "ray", SIM)
PLAY = "paper_experiments.replay.program:play"


class SystemTimes(NamedTuple):
    """One system."""

    system: str
    makespans_s: tuple[float, ...]
    work_s: float
    tasks: int
    cpus: int

    @property
    def utilisation(self) -> float:
        """Share of all CPUs that the tasks used, in the median run; actors may make it more than 1."""
        return self.work_s / (self.cpus * median(self.makespans_s))

    def line(self) -> str:
        """For a terminal."""
        middle, least, most = median(self.makespans_s), min(self.makespans_s), max(self.makespans_s)
        rate = self.tasks / middle
        return (
            f"{self.system:6} {middle:10.3f} s ({least:.3f} to {most:.3f}) {rate:12,.0f} tasks/s "
            f"{100 * self.utilisation:6.1f} % of {self.cpus} CPUs"
        )


def simulate(workload: Workload) -> dict[str, float]:
    """One run in virtual time."""
    with zray.simulate(
        cpus=workload.cpus, seed=workload.seed, durations=lambda _name, _random: 0.0
    ) as cluster:
        return program.play(zray, workload.plain(), lambda: cluster.now_s)


def replay(
    workload: Workload, systems: Sequence[str], repetitions: int, pythons: Mapping[str, str]
) -> tuple[list[SystemTimes], dict[str, str]]:
    """Run a workload; real systems take turns.

    Returns:
        What came of it, and why other systems are missing.
    Raises:
        PeerError: if zray is asked for and does not start, or a system fails in the midst.
    """
    runs: dict[str, list[dict[str, float]]] = {}
    real = [system for system in systems if system != SIM]
    with peers.started(real, pythons, workload.cpus) as (running, missing):
        for _ in range(repetitions):
            for system, peer in running.items():
                runs.setdefault(system, []).append(peer.ask(PLAY, workload=workload.plain()))
    if SIM in systems:
        runs[SIM] = [simulate(workload)]
    found = [
        SystemTimes(
            system, tuple(one["makespan_s"] for one in each), each[0]["work_s"], int(each[0]["tasks"]),
            workload.cpus,
        )
        for system, each in runs.items()
    ]  # fmt: skip
    return found, missing
