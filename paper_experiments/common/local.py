"""A cluster of one node on this machine, for live experiments, and what its processes use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

import zray


@contextmanager
def local_cluster(settings: Mapping[str, str] | None = None, **options: Any) -> Iterator[None]:
    """Connect to a new cluster of this machine, which ends with the block.

    Args:
        settings: ``ZRAY_...`` variables of all its processes.
        options: of :func:`zray.init`.
    """
    before = dict(os.environ)
    os.environ.update(settings or {})
    try:
        zray.init(address="local", **options)
        yield
    finally:
        zray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def control_store_processes() -> list[psutil.Process]:
    """The processes of the control store that this process's own cluster started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "zray.services.gcs" in _command_of(child)]


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def own_memory_bytes(processes: list[psutil.Process]) -> int:
    """Memory that nobody else uses: what would be free if these processes ended."""
    return sum(process.memory_full_info().uss for process in processes)
