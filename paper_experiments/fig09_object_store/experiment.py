"""Figure 9: how fast one client writes objects of every size, beside a plain copy of the same bytes.

First every object is kept, in a new store, so each needs fresh pages; then the client lets go of what it has
``put``, and the store uses pages again that all were used before. The ceiling is a copy between warm buffers.
"""

from __future__ import annotations

import os

import numpy as np

from paper_experiments.common.peers import SYSTEMS
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig09_object_store.workload import MEMCPY, PUT

KB, MB, GB = 10**3, 10**6, 10**9
SIZES = (KB, 10 * KB, 100 * KB, MB, 10 * MB, 100 * MB, GB)
PAPER_CORES = 16
WORKLOAD = "paper_experiments.fig09_object_store.workload:"


def live(run: ExperimentRun) -> None:
    """The store of a real node. Systems take turns, so that a busy machine slows all of them alike."""
    sizes = run.pick("sizes", tiny=(KB, MB), small=SIZES, paper=SIZES)
    repetitions = run.pick("repetitions", tiny=1, small=3, paper=5)
    systems = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    capacity = max(GB, 5 * max(sizes) // 2)
    run.parameter("store_bytes", capacity)
    share = {}
    beside: dict[int, tuple[list[float], list[float]]] = {}
    with run.peers(systems, 2, store_bytes=capacity) as running:
        for system, peer in running.items():
            fresh_s = peer.ask(WORKLOAD + "measure_fresh", sizes=sizes, store_bytes=capacity)
            for size, taken in zip(sizes, fresh_s, strict=True):
                run.point("throughput", f"{SYSTEMS[system]}, put on fresh pages", size, size / taken / GB)
        for size in run.steps(sizes, "object of bytes"):
            samples: dict[tuple[str, str], list[float]] = {}
            for _ in range(repetitions):
                for system, peer in running.items():
                    for what, taken_s in peer.ask(WORKLOAD + "measure", size=size).items():
                        samples.setdefault((system, what), []).append(taken_s)
            rates = _draw(run, size, samples)
            share[size] = rates["zray", PUT] / rates["zray", MEMCPY]
            if "ray" in running:
                beside[size] = samples["ray", PUT], samples["zray", PUT]
            if size == KB:
                run.quantity("small_iops", 1 / float(np.median(samples["zray", PUT])))
            if size == max(sizes):
                run.quantity("large_gb_per_s", rates["zray", PUT])
                _explain_ceiling(run, rates["zray", PUT], rates["zray", MEMCPY])
    run.quantity("share_of_memcpy", share[max(sizes)])
    _compare(run, beside)
    run.note(
        "Values up to 32 KiB travel inside messages, and a value that nobody else has asked for stays in its "
        "process: the rate of small objects is that of making them, as a program sees it."
    )


def _draw(
    run: ExperimentRun, size: int, samples: dict[tuple[str, str], list[float]]
) -> dict[tuple[str, str], float]:
    """GB/s by system and variant."""
    rates = {}
    for (system, what), taken_s in samples.items():
        if what == MEMCPY and system != "zray":
            continue  # the machine is the same
        name = what if what == MEMCPY else f"{SYSTEMS[system]}, {what}"
        rates[system, what] = run.point("throughput", name, size, [size / taken / GB for taken in taken_s])
        if what == PUT:
            run.point("iops", name, size, [1 / taken for taken in taken_s])
    return rates


def _compare(run: ExperimentRun, beside: dict[int, tuple[list[float], list[float]]]) -> None:
    """The time of Ray over that of zray, for the smallest and the largest objects."""
    for name, pick in (("ray_over_ours_small", min), ("ray_over_ours_large", max)):
        if beside:
            run.compare(name, *beside[pick(beside)])
        else:
            run.beyond(name, f"{SYSTEMS['ray']} was not run beside it")


def _explain_ceiling(run: ExperimentRun, put_gb_per_s: float, memcpy_gb_per_s: float) -> None:
    cores = os.cpu_count() or 1
    reason = (
        f"a plain copy of these bytes runs at {memcpy_gb_per_s:.1f} GB/s here, and no store is faster; "
        f"the paper copied with 8 threads on {PAPER_CORES} cores, here are {cores}"
    )
    run.absent(
        "large_gb_per_s",
        f"one thread copies, a plain copy by one at {memcpy_gb_per_s:.1f} GB/s here; the paper: 8",
    )
    run.absent("share_of_memcpy", f"{put_gb_per_s:.1f} against {memcpy_gb_per_s:.1f} GB/s of a plain copy")
    if memcpy_gb_per_s < 15:
        run.beyond("large_gb_per_s", reason)
