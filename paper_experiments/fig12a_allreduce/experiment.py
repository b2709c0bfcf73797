"""Figure 12a: allreduce by actors, as a ring and by doubling, beside OpenMPI and Ray.

The program (``workload.py``) is one for zray, Ray and the simulation. On this machine participants share its
memory and its CPUs; in the simulation a step takes the transfer of its bytes over the paper's network.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

import zray
from paper_experiments.common import expected
from paper_experiments.common.peer_child import OPENMPI
from paper_experiments.common.peers import SYSTEMS, Peer
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig12a_allreduce import workload
from paper_experiments.fig12a_allreduce.workload import ALGORITHMS, DOUBLING, RING

KB, MB, GB = 10**3, 10**6, 10**9
LIVE_PARTICIPANTS = 4
PARTICIPANTS = 16
LINK_BYTES_PER_S = 1.4e9
"""Effective transfer between two nodes of the paper, from figure 8a and not from the figure predicted."""
WORKLOAD = "paper_experiments.fig12a_allreduce.workload:measure"
MPI_WORKLOAD = "paper_experiments.fig12a_allreduce.mpi_workload:measure"
Samples = dict[tuple[str, str], list[float]]
"""(system, algorithm) -> seconds."""


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Four participants on this machine; systems take turns, so that whoever is busy slows all alike."""
    sizes = run.pick("sizes", tiny=(10 * KB,), small=(10 * KB, 100 * KB, MB, 10 * MB, 100 * MB),
                     paper=(10 * KB, 100 * KB, MB, 10 * MB, 100 * MB))  # fmt: skip
    rounds = run.pick("rounds", tiny=1, small=3, paper=7)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray", OPENMPI),
                       paper=("zray", "ray", OPENMPI))  # fmt: skip
    run.parameter("participants", LIVE_PARTICIPANTS)
    best: dict[tuple[str, int], list[float]] = {}
    with run.peers(systems, LIVE_PARTICIPANTS) as running:
        for size in run.steps(sizes, "object of bytes"):
            samples: Samples = {}
            for _ in range(rounds):
                for system, peer in running.items():
                    for algorithm, taken_s in _measure(peer, system, size).items():
                        samples.setdefault((system, algorithm), []).extend(taken_s)
            for (system, algorithm), taken_s in samples.items():
                name = f"{SYSTEMS[system]}, {algorithm}"
                run.point("live", name, size, [1000 * taken for taken in taken_s])
                best[system, size] = min(taken_s, best.get((system, size), taken_s), key=median)
            _compare_algorithms(run, size, sizes[0], samples)
    _conclude_live(run, best, max(sizes))


def _measure(peer: Peer, system: str, size: int) -> dict[str, list[float]]:
    repetitions = 3 if size <= MB else 1
    if system == OPENMPI:
        found: dict[str, list[float]] = peer.ask(MPI_WORKLOAD, size_bytes=size, repetitions=repetitions)
    else:
        found = peer.ask(WORKLOAD, count=LIVE_PARTICIPANTS, size_bytes=size, repetitions=repetitions)
    return found


def _compare_algorithms(run: ExperimentRun, size: int, smallest: int, samples: Samples) -> None:
    if size == smallest:
        gain = median(samples["zray", RING]) / median(samples["zray", DOUBLING])
        run.quantity("small_gain", gain)


def _conclude_live(run: ExperimentRun, best: dict[tuple[str, int], list[float]], largest: int) -> None:
    for system, quantity in ((OPENMPI, "openmpi_over_ours_live"), ("ray", "ray_over_ours_live")):
        if (system, largest) in best:
            run.compare(quantity, best[system, largest], best["zray", largest])
        else:
            run.beyond(quantity, f"{SYSTEMS[system]} was not run beside it")
    run.beyond(
        "openmpi_over_ours_live",
        f"{LIVE_PARTICIPANTS} participants share {os.cpu_count()} CPUs and their memory: OpenMPI copies from "
        "process to process without a store between them, and there is no 25 Gbps link that one thread could "
        "not fill",
    )


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """16 participants in virtual time; a step takes the transfer of its bytes."""
    sizes = run.pick("sizes", tiny=(MB, 10 * MB, 100 * MB, GB), small=(100 * KB, MB, 10 * MB, 100 * MB, GB),
                     paper=(100 * KB, MB, 10 * MB, 100 * MB, GB))  # fmt: skip
    run.parameter("participants", PARTICIPANTS)
    run.parameter("link_bytes_per_s", LINK_BYTES_PER_S)
    best_ms: dict[int, float] = {}
    for size in run.steps(sizes, "object of bytes"):
        found = {algorithm: simulate(algorithm, size) for algorithm in ALGORITHMS}
        for algorithm, taken_ms in found.items():
            run.point("allreduce", f"zray, {algorithm}", size, taken_ms)
        run.point("allreduce", "zray, ring, one thread for both ways", size, simulate(RING, size, ways=2))
        best_ms[size] = min(found.values())
        if size == sizes[0]:
            run.quantity("small_gain", found[RING] / found[DOUBLING])
    _conclude_sim(run, best_ms)


def simulate(algorithm: str, size_bytes: int, ways: int = 1) -> float:
    """One allreduce in virtual milliseconds.

    Args:
        ways: 2 if sending and receiving follow each other.
    """
    sent_bytes = size_bytes / PARTICIPANTS if algorithm == RING else size_bytes
    step_s = ways * sent_bytes / LINK_BYTES_PER_S
    moving = {"RingParticipant.step": step_s, "RingParticipant.exchange": step_s}
    with zray.simulate(cpus=PARTICIPANTS, durations=lambda name, _: moving.get(name, 0.0)) as cluster:
        participants = workload.start(zray, PARTICIPANTS)
        return 1000 * workload.allreduce(zray, participants, 1, algorithm, 0.0, lambda: cluster.now_s)


def _conclude_sim(run: ExperimentRun, best_ms: dict[int, float]) -> None:
    series = expected.load(Path(__file__).parent).series
    openmpi = next(one for one in series if one.name == "paper, OpenMPI")
    for size, paper_ms in zip(openmpi.x, openmpi.y, strict=True):
        if size in best_ms:
            run.quantity(f"openmpi_over_ours_{int(size / MB)}_mb", paper_ms / best_ms[int(size)])
    run.note("Compared with the paper's own OpenMPI, as digitised: it was not run over such a network here.")
