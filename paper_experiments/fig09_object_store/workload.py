"""One client that writes objects into the store of zray or Ray, beside a plain copy. No code of zray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PUT, MEMCPY = "put", "memcpy"
SAMPLE_S = 0.2
WARM_UPS = 3
"""zray maps pages into the writer at the second write to them."""
FRESH_BYTES_MAX = 100 * 10**6
TOUCH_BYTES = 100 * 10**6
_buffers: dict[int, tuple[Any, Any]] = {}


def measure_fresh(api: Any, sizes: Sequence[int], store_bytes: int) -> list[float]:
    """Seconds per object by size, each on pages that nobody has used; afterwards all of them have been used.

    To be asked once, of a store that is new.
    """
    kept: list[Any] = []
    taken_s = []
    for size in sizes:
        source = _random_bytes(size)
        calls = max(1, min(1_000, FRESH_BYTES_MAX // size))
        started = time.perf_counter()
        kept += [api.put(source) for _ in range(calls)]
        taken_s.append((time.perf_counter() - started) / calls)
    kept.clear()
    source = _random_bytes(TOUCH_BYTES)
    for _ in range(store_bytes // TOUCH_BYTES):
        api.put(source)
    return taken_s


def measure(api: Any, size: int) -> dict[str, float]:
    """Seconds per object of ``size`` bytes, by variant."""
    is_new = size not in _buffers
    if is_new:
        _buffers.clear()
        source = _random_bytes(size)
        _buffers[size] = source, np.zeros_like(source)
    source, destination = _buffers[size]
    variants: dict[str, Callable[[], Any]] = {
        PUT: lambda: api.put(source),
        MEMCPY: lambda: np.copyto(destination, source),
    }
    if is_new:
        for action in variants.values():
            for _ in range(WARM_UPS):
                _seconds_per_call(action)
    return {name: _seconds_per_call(action) for name, action in variants.items()}


def _random_bytes(size: int) -> Any:
    return np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)


def _seconds_per_call(action: Callable[[], Any]) -> float:
    """Over enough calls to be above the clock's noise."""
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < SAMPLE_S or not calls:
        action()
        calls += 1
    return taken / calls
