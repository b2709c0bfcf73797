"""Figure 9: how fast one client writes objects of every size, beside a plain copy of the same bytes.

The client calls ``put`` and lets go of the object, so the store settles on pages that it uses again; a second
series keeps its objects, so every one of them needs fresh pages. The ceiling is a copy between warm buffers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import zray
from paper_experiments.common.local import local_cluster
from paper_experiments.common.run import ExperimentRun

KB, MB, GB = 10**3, 10**6, 10**9
SMALL_SIZES = (KB, 10 * KB, 100 * KB, MB, 10 * MB, 100 * MB)
PAPER_SIZES = (*SMALL_SIZES, GB)
PAPER_CORES = 16
SAMPLE_S = 0.2
FRESH_BYTES_MAX = 400 * MB


def live(run: ExperimentRun) -> None:
    """The store of a real node. Variants are interleaved, so that a busy machine slows all of them alike."""
    sizes = run.pick("sizes", tiny=(KB, MB), small=SMALL_SIZES, paper=PAPER_SIZES)
    repetitions = run.pick("repetitions", tiny=1, small=5, paper=9)
    capacity = max(2 * GB, 4 * max(sizes))
    run.parameter("store_bytes", capacity)
    share = {}
    with local_cluster(object_store_memory=capacity):
        for size in run.steps(sizes, "object of bytes"):
            samples = _measure(size, repetitions)
            run.point("iops", "put", size, [1 / taken for taken in samples["put"]])
            rates = {
                what: run.point("throughput", what, size, [size / taken / GB for taken in taken_s])
                for what, taken_s in samples.items()
            }
            share[size] = rates["put"] / rates["memcpy"]
            if size == KB:
                run.quantity("small_iops", 1 / float(np.median(samples["put"])))
            if size == max(sizes):
                run.quantity("large_gb_per_s", rates["put"])
                _explain_ceiling(run, rates["memcpy"])
    run.quantity("share_of_memcpy", share[max(sizes)])
    run.note(
        "Values up to 32 KiB travel inside messages, and a value that nobody else has asked for stays in its "
        "process: the rate of small objects is that of making them, as a program sees it."
    )


def _explain_ceiling(run: ExperimentRun, memcpy_gb_per_s: float) -> None:
    cores = os.cpu_count() or 1
    reason = (
        f"a plain copy of these bytes runs at {memcpy_gb_per_s:.1f} GB/s here, and no store is faster; "
        f"the paper copied with 8 threads on {PAPER_CORES} cores, here are {cores}"
    )
    if memcpy_gb_per_s < 15:
        run.beyond("large_gb_per_s", reason)


def _measure(size: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds per object, by variant."""
    source = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    destination = np.empty_like(source)
    destination[:] = 0
    variants: dict[str, Callable[[], Any]] = {
        "put": lambda: zray.put(source),
        "memcpy": lambda: np.copyto(destination, source),
    }
    samples: dict[str, list[float]] = {name: [] for name in (*variants, "put on fresh pages")}
    for action in variants.values():
        _seconds_per_call(action)
    for _ in range(repetitions):
        for name, action in variants.items():
            samples[name].append(_seconds_per_call(action))
        samples["put on fresh pages"].append(_seconds_per_fresh(source))
    return samples


def _seconds_per_call(action: Callable[[], Any]) -> float:
    """Over enough calls to be above the clock's noise."""
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < SAMPLE_S or not calls:
        action()
        calls += 1
    return taken / calls


def _seconds_per_fresh(source: np.ndarray[Any, Any]) -> float:
    """All objects are kept until the end, so none gets the pages of another."""
    calls = max(1, min(1_000, FRESH_BYTES_MAX // source.nbytes))
    started = time.perf_counter()
    kept = [zray.put(source) for _ in range(calls)]
    taken = time.perf_counter() - started
    del kept
    return taken / calls
