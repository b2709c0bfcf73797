"""A worker has as many threads for linear algebra as its first task has CPUs, unless it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import zray

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)  # it would be inherited
        with zray.init(num_cpus=8):
            yield


class Asked:
    def threads(self) -> str:
        return os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({"num_cpus": 1}, "1"),
        ({"num_cpus": 2}, "2"),
        ({"num_cpus": 0.5}, "1"),
        ({"num_cpus": 2, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "7"}}}, "7"),
    ],
)
def test_in_a_worker_of_its_own(options: dict[str, Any], threads: str) -> None:
    asked = zray.remote(**options)(Asked).remote()
    assert zray.get(asked.threads.remote(), timeout=PATIENCE_S) == threads
