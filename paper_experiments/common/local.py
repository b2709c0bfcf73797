"""Clusters of real processes on this machine, for live experiments, with this process as their driver."""

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
    with environment(settings or {}):
        zray.init(address="local", **options)
        try:
            yield
        finally:
            zray.shutdown()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, for this process and those that it starts, as long as the block lasts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def own_memory_bytes(pid: int) -> int:
    """Memory that no other process shares: what would be free if this one ended."""
    own: int = psutil.Process(pid).memory_full_info().uss
    return own
