"""Code in a worker does not take the same memory from the kernel again and again."""

from __future__ import annotations

import resource
import sys

import pytest

import zray
from tests import conformance

STEPS, ARRAYS, ARRAY_BYTES = 50, 10, 200_000


def faults_of_steps(steps: int) -> int:
    """Page faults of steps of a computation whose temporary arrays are of a few hundred kilobytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        arrays = [bytearray(ARRAY_BYTES) for _ in range(ARRAYS)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.not_simulated("what a worker's process does with its memory is the subject")
@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of the GNU C library")
def test_freed_arrays_are_used_again() -> None:
    with conformance.cluster(num_cpus=1):
        task = zray.remote(faults_of_steps)
        zray.get(task.remote(1))
        taken_again = zray.get(task.remote(STEPS))
    pages = STEPS * ARRAYS * ARRAY_BYTES // resource.getpagesize()
    assert taken_again < pages / 20, f"{taken_again} page faults for {pages} pages that were there before"
