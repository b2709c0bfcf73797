"""A shuffle over ten real nodes of which one is killed every few seconds: the right answer all the same,
and a history of what everybody saw that can be.

The same with the control store dying piece by piece besides. ``tests/chaos/shuffle.py`` runs it at any size.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.shuffle import Shape, run, size_of
from tests.clusters import MARK, place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sessions in a place of their own, where nothing may be left."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        yield


def a_seed() -> int:
    seed = int(os.environ.get("ZRAY_CHAOS_SEED", "0")) or random.randrange(1, 1 << 31)
    print(f"ZRAY_CHAOS_SEED={seed}")
    return seed


def test_a_shuffle_survives_nodes_that_are_killed(tmp_path: Path) -> None:
    report = run(Shape(rounds=4), a_seed(), tmp_path / "history")
    assert report.nodes_killed >= 3


def test_a_shuffle_survives_nodes_and_replicas_that_are_killed(tmp_path: Path) -> None:
    shape = Shape(nodes=6, parts=12, size_bytes=24 << 20, shards=2, replicas=3, replica_kill_s=3.0)
    report = run(shape, a_seed(), tmp_path / "history")
    assert report.nodes_killed >= 3
    assert report.replicas_killed >= 3


def test_sizes() -> None:
    assert [size_of("1G"), size_of("48M"), size_of("7")] == [1 << 30, 48 << 20, 7]
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        size_of("much")
