"""Figure 13: synchronous gradient descent with a sharded parameter server of actors.

Live, a small network really trains, and its weights are compared bit by bit with those of one process. In the
simulation a step has the sizes of ResNet-101, and the server is compared with a ring, with and without
computing and sending at the same time.
"""

from __future__ import annotations

import os
from statistics import median
from typing import Any

import zray
from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun, paired_ratio
from paper_experiments.fig13_sgd import pipeline
from paper_experiments.fig13_sgd.pipeline import AT_ONCE, PIPELINED, RING, WAYS

WORKLOAD = "paper_experiments.fig13_sgd.workload:measure"
SHARDS = 2
NODES = (1, 2, 4, 8, 16)
GPUS_PER_NODE = 4
BUCKETS = 8
GRADIENT_BYTES = 44_500_000 * 4
"""Of ResNet-101: its number of parameters, four bytes each."""
BATCH_PER_GPU = 64
COMPUTE_S = BATCH_PER_GPU / 150
"""An assumption, 150 images per second and GPU: heights of the paper's bars are not known."""
LINK_BYTES_PER_S = 1.4e9
"""Effective transfer between two nodes of the paper, from its figure 8a."""
ADD_BYTES_PER_S = 10e9
"""What a shard adds up."""


# --- live ----------------------------------------------------------------------------------------


def live(run: ExperimentRun) -> None:
    """One and two replicas on this machine, beside Ray; systems take turns."""
    steps = run.pick("steps", tiny=60, small=60, paper=1_000)
    batch = run.pick("batch", tiny=64, small=1_024, paper=2_048)
    rounds = run.pick("rounds", tiny=1, small=3, paper=7)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    counts = (1, 2)
    rates: dict[tuple[str, int], list[float]] = {}
    different, losses = 0, [1.0]
    with run.peers(systems, 2) as running:
        for number in run.steps(range(rounds), "round"):
            for count in counts:
                for system, peer in running.items():
                    check = number == 0 and system == "zray"
                    found: dict[str, Any] = peer.ask(
                        WORKLOAD, replicas=count, shards=SHARDS, batch=batch, steps=steps, check=check
                    )
                    rates.setdefault((system, count), []).append(found["rate"])
                    if system == "zray":
                        different, losses = different + found["different"], found["losses"]
    for (system, count), samples in rates.items():
        run.point("live", SYSTEMS[system], count, samples)
    for step in range(0, steps, max(1, steps // 50)):
        run.point("loss", "2 replicas", step, losses[step])
    run.quantity("different_weights", different)
    run.quantity("loss_left", median(losses[-10:]) / losses[0])
    run.quantity("efficiency_2", paired_ratio(rates["zray", 2], rates["zray", 1]) / 2)
    _explain(run, rates)


def _explain(run: ExperimentRun, rates: dict[tuple[str, int], list[float]]) -> None:
    cores = os.cpu_count() or 1
    if cores < 2 + SHARDS + 2:
        run.beyond(
            "efficiency_2",
            f"two replicas, {SHARDS} shards, the node and the driver share {cores} CPUs: one replica leaves "
            "less than one of them idle",
        )
    if ("ray", 2) in rates:
        run.compare("ours_over_ray", rates["zray", 2], rates["ray", 2])
    else:
        run.beyond("ours_over_ray", "Ray was not run beside it")


# --- simulated -----------------------------------------------------------------------------------


def sim(run: ExperimentRun) -> None:
    """1 to 16 nodes of four GPUs; computing and transfers take their time on actors of one node of zray."""
    nodes = run.pick("nodes", tiny=(1, 2), small=NODES, paper=NODES)
    steps = run.pick("steps", tiny=2, small=2, paper=10)
    run.parameter("compute_s", round(COMPUTE_S, 4))
    run.parameter("gradient_bytes", GRADIENT_BYTES)
    run.parameter("link_bytes_per_s", LINK_BYTES_PER_S)
    run.parameter("buckets", BUCKETS)
    rates: dict[tuple[str, int], float] = {}
    for count in run.steps(nodes, "nodes"):
        for way in WAYS:
            images = count * GPUS_PER_NODE * BATCH_PER_GPU
            rate = images / simulate(count, way, steps)
            rates[way, count] = run.point("rates", way, count * GPUS_PER_NODE, rate)
    most = max(nodes)
    run.quantity("server_over_ring", rates[PIPELINED, most] / rates[RING, most])
    run.quantity("pipelining_gain", rates[PIPELINED, most] / rates[AT_ONCE, most])
    run.quantity("efficiency", rates[PIPELINED, most] / rates[PIPELINED, 1] / most)
    run.note(
        "The time to compute a step is an assumption (150 images per second and GPU), so only ratios mean "
        "something."
    )


def simulate(nodes: int, way: str, steps: int) -> float:
    """Virtual seconds of one step."""
    bucket_bytes = GRADIENT_BYTES / BUCKETS
    one_way_s = bucket_bytes * (nodes - 1) / nodes / LINK_BYTES_PER_S
    durations = {
        "GpuNode.compute": COMPUTE_S / BUCKETS, "SharedLink.push": one_way_s, "SharedLink.pull": one_way_s,
        "SharedLink.ring": 2 * one_way_s, "SumShard.combine": bucket_bytes / ADD_BYTES_PER_S,
    }  # fmt: skip
    with zray.simulate(cpus=3 * nodes, durations=lambda name, _: durations.get(name, 0.0)) as cluster:
        return pipeline.train(zray, nodes, BUCKETS, steps, way, lambda: cluster.now_s)
