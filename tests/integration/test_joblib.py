"""joblib on zray, where joblib is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import conformance

joblib = pytest.importorskip("joblib", reason="joblib is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    from zray.util.joblib import register_ray

    register_ray()
    with conformance.cluster(num_cpus=2):
        yield


def reciprocal(x: int) -> float:
    return 1 / x


def test_results_and_their_order() -> None:
    with joblib.parallel_config(backend="ray", n_jobs=2):
        pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(10))
        assert os.getpid() not in pids
        found = joblib.Parallel()(joblib.delayed(reciprocal)(x) for x in range(1, 101))
    assert found == [1 / x for x in range(1, 101)]


def test_all_cpus_and_errors() -> None:
    with joblib.parallel_config(backend="zray", n_jobs=-1):
        assert joblib.effective_n_jobs(-1) == 2 + conformance.others()
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel()(joblib.delayed(reciprocal)(x) for x in (1, 0, 2))
        assert joblib.Parallel()(joblib.delayed(reciprocal)(x) for x in (1, 2)) == [1, 0.5]
