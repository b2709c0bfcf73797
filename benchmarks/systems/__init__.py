"""The systems under comparison, each behind the interface of ``base.System``."""

from __future__ import annotations

import importlib

from benchmarks.systems.base import System

HOMES = {
    "zray": ("benchmarks.systems.ray_like", "Zray"),
    "ray": ("benchmarks.systems.ray_like", "Ray"),
    "dask": ("benchmarks.systems.dask_cluster", "Dask"),
    "loky": ("benchmarks.systems.executors", "Loky"),
    "processpool": ("benchmarks.systems.executors", "ProcessPool"),
    "ipyparallel": ("benchmarks.systems.executors", "IPyParallel"),
    "parsl": ("benchmarks.systems.executors", "Parsl"),
    "scaler": ("benchmarks.systems.executors", "Scaler"),
    "hyperqueue": ("benchmarks.systems.hyperqueue_cluster", "HyperQueue"),
    "monarch": ("benchmarks.systems.monarch_actors", "Monarch"),
    "parts": ("benchmarks.parts", "Parts"),
}
"""Name on the command line: module and class. Nothing is imported before it is asked for."""

TITLES = {
    "zray": "zray", "ray": "Ray", "dask": "Dask", "loky": "loky", "processpool": "ProcessPool",
    "ipyparallel": "ipyparallel", "parsl": "Parsl", "scaler": "Scaler", "hyperqueue": "HyperQueue",
    "monarch": "Monarch", "parts": "zray",
}  # fmt: skip


def load(name: str) -> System:
    """The adapter called ``name``; it imports its system only when started."""
    module, class_name = HOMES[name]
    system: System = getattr(importlib.import_module(module), class_name)()
    return system
