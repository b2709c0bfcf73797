"""A hundred random programs on real processes; ``random_programs.py`` says how to run thousands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import conformance
from tests.integration.random_programs import STEPS, Interpreter, Step, program_of

STEP = st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 99), st.integers(0, 99))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@pytest.mark.slow
@pytest.mark.timeout(240)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=30))
def test_right_results_and_nothing_left_behind(steps: list[Step]) -> None:
    Interpreter().run(steps)


@pytest.mark.parametrize("seed", [1082, 2205])
def test_programs_that_failed_once(seed: int) -> None:
    Interpreter().run(program_of(seed))
