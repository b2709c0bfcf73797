"""GPUs by number: whole ones to oneself, shares of the fullest, and none twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_local_scheduler import Bench
from zray.core.gpus import Gpus
from zray.core.resources import demand_from
from zray.protocol.messages import RESOURCE_UNIT, Demand, ObjectReady
from zray.protocol.user_messages import SeeGpus


def gpus(amount: float) -> Demand:
    return demand_from({"GPU": amount, "CPU": 1})


def test_whole_ones_and_shares() -> None:
    pool = Gpus(gpus(3))
    first = pool.take(gpus(0.5))
    assert first == ((0, RESOURCE_UNIT // 2),)
    assert pool.take(gpus(2)) == ((1, RESOURCE_UNIT), (2, RESOURCE_UNIT))
    assert not pool.fits(gpus(1))
    assert pool.take(gpus(0.25)) == ((0, RESOURCE_UNIT // 4),), "the fullest that has room"
    assert pool.fits(demand_from({"CPU": 1}))
    pool.give(first)
    assert pool.fits(gpus(0.75))
    assert not pool.fits(gpus(1))


def test_halves_of_two_are_no_gpu() -> None:
    pool = Gpus(gpus(2))
    shares = [pool.take(gpus(0.6)) for _ in range(2)]
    assert [number for ((number, _),) in shares] == [0, 1]
    assert not pool.fits(gpus(0.8)), "although 0.8 are free in sum"
    pool.give(shares[0])
    assert pool.take(gpus(1)) == ((0, RESOURCE_UNIT),)


def test_a_fraction_is_the_last() -> None:
    pool = Gpus(gpus(1.5))
    assert pool.take(gpus(1)) == ((0, RESOURCE_UNIT),)
    assert not pool.fits(gpus(0.6))
    assert pool.take(gpus(0.5)) == ((1, RESOURCE_UNIT // 2),)


@given(st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0.1, 0.3, 0.5, 0.9, 1, 2]))))
def test_nothing_is_lost_and_nothing_is_given_twice(count: int, steps: list[tuple[bool, float]]) -> None:
    pool = Gpus(gpus(count))
    held = []
    for takes, amount in steps:
        demand = gpus(amount)
        if takes and pool.fits(demand):
            shares = pool.take(demand)
            assert sum(part for _, part in shares) == dict(demand).get("GPU", 0)
            assert len(dict(shares)) == len(shares)
            held.append(shares)
        elif held:
            pool.give(held.pop(len(held) // 2))
        pool.check(held)
    for shares in held:
        pool.give(shares)
    assert pool.free == pool.total


def test_pieces_start_no_workers() -> None:
    """What would fit in sum only must not fork one worker after the other."""
    bench = Bench(cpus=4, GPU=2)
    for _ in range(2):
        (first,) = bench.submit(bench.kind("holds", GPU=0.6))
        worker = bench.add_worker()
        bench.take(SeeGpus)
        bench.runs()
    (task,) = bench.submit(bench.kind("waits", GPU=0.8))
    assert bench.node.pool.resources.fits(gpus(0.8))
    for _ in range(3):
        bench.wait(1)
        assert not bench.effects
    bench.done(worker, first)
    bench.take(ObjectReady)
    assert bench.take(SeeGpus) == [], "it sees the same one as before"
    assert bench.runs() == [(worker, task, 0)]
