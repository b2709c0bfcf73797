"""Figure 12b: what a slower scheduler costs a ring allreduce of many short rounds.

The ring is that of figure 12a; the added latency is spent in each of its calls.
"""

from __future__ import annotations

import os

import numpy as np

import zray
from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig12a_allreduce.workload import RING, allreduce, start

ADDED_MS = (0, 1, 5, 10)
OBJECT_BYTES = 100_000_000
LINK_BYTES_PER_S = 1.4e9
"""Effective transfer between two nodes of the paper, from figure 8a and not from the figure predicted."""
PAPER_PARTICIPANTS = 16
WORKLOAD = "paper_experiments.fig12b_scheduler_latency.workload:measure"


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """Actors on one node: the injected latency is real, the network between them is shared memory."""
    count = run.pick("participants", small=4, paper=PAPER_PARTICIPANTS)
    object_bytes = run.pick("object_bytes", small=OBJECT_BYTES // 100, paper=OBJECT_BYTES)
    repetitions = run.pick("repetitions", tiny=2, small=15, paper=15)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    taken: dict[str, dict[int, list[float]]] = {}
    with run.peers(systems, count, store_bytes=max(256 << 20, 8 * object_bytes)) as running:
        for _ in run.steps(range(repetitions), "repetition"):
            for system, peer in running.items():
                found = peer.ask(WORKLOAD, count=count, size_bytes=object_bytes, added_ms=ADDED_MS)
                for added, taken_s in zip(ADDED_MS, found, strict=True):
                    taken.setdefault(system, {}).setdefault(added, []).append(1000 * taken_s)
    medians = {
        system: {
            added: run.point(
                "latency", f"{SYSTEMS[system]}, {count} participants on one node", added, samples
            )
            for added, samples in by_added.items()
        }
        for system, by_added in taken.items()
    }
    _conclude(run, medians["zray"], count)
    _compare(run, taken)
    run.note("All participants are on one machine, so chunks go through shared memory, not 25 Gbps.")
    cores = os.cpu_count() or 1
    if count > cores:
        reason = (
            f"{count} participants share {cores} CPUs: what a round costs also depends on who computes "
            "while others wait, and who else is busy"
        )
        for quantity in ("r_squared", "slope_per_round", "slowdown_at_5_ms"):
            run.beyond(quantity, reason)


def _compare(run: ExperimentRun, taken: dict[str, dict[int, list[float]]]) -> None:
    """Without added latency: the time of Ray over that of zray."""
    if "ray" in taken:
        run.compare("ray_over_ours", taken["ray"][0], taken["zray"][0])
    else:
        run.beyond("ray_over_ours", f"{SYSTEMS['ray']} was not run beside it")


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """The same program in virtual time; a step takes the transfer of its chunk and the added latency."""
    count = run.pick("participants", small=PAPER_PARTICIPANTS, paper=PAPER_PARTICIPANTS)
    transfer_s = OBJECT_BYTES / count / LINK_BYTES_PER_S
    run.parameter("transfer_ms_per_round", round(1000 * transfer_s, 3))
    taken, slowed = {}, {}
    for added in run.steps(ADDED_MS, "added ms"):
        taken[added] = _simulate(count, transfer_s, added / 1000, None)
        run.point("latency", f"{count} participants", added, taken[added])
        # The counterfactual: not the tasks but every message between two processes is late.
        slowed[added] = _simulate(count, transfer_s, 0.0, added / 1000) if added else taken[added]
        run.point("latency", "every message late instead", added, slowed[added])
    _conclude(run, taken, count)
    rounds = 2 * (count - 1)
    messages = _slope(slowed) / rounds
    run.quantity("messages_per_round", messages)
    run.note(
        f"If every message is late instead, a round waits for {messages:.2f} of them, one after the other."
    )


def _simulate(count: int, transfer_s: float, added_s: float, latency_s: float | None) -> float:
    """One allreduce in virtual milliseconds."""
    step_s = {"RingParticipant.step": transfer_s}
    with zray.simulate(
        cpus=count, latency_s=latency_s, durations=lambda name, _: step_s.get(name, 0.0)
    ) as cluster:
        return 1000 * allreduce(zray, start(zray, count), 1, RING, added_s, lambda: cluster.now_s)


def _slope(taken: dict[int, float]) -> float:
    """Milliseconds of allreduce per millisecond added."""
    return float(np.polyfit(list(taken), list(taken.values()), 1)[0])


def _conclude(run: ExperimentRun, taken: dict[int, float], count: int) -> None:
    rounds = 2 * (count - 1)
    run.parameter("rounds", rounds)
    run.quantity("slope_per_round", _slope(taken) / rounds)
    line = np.polyval(np.polyfit(list(taken), list(taken.values()), 1), list(taken))
    spread = np.array(list(taken.values())) - np.mean(list(taken.values()))
    run.quantity(
        "r_squared", 1 - float(np.sum((np.array(list(taken.values())) - line) ** 2) / np.sum(spread**2))
    )
    run.quantity("slowdown_at_5_ms", taken[5] / taken[0])
