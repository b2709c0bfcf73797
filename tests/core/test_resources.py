"""Exact amounts, and free + held = total (I4)."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.core.resources import AMOUNT_MAX, ResourcePool, amounts_of, demand_from, shortage_text
from zray.errors import InvariantError

TOTAL = demand_from({"CPU": 4, "GPU": 1, "memory": 1 << 36})
ONE_CPU = demand_from({"CPU": 1})


def test_a_demand_is_sorted_and_without_zeros() -> None:
    demand = demand_from({"GPU": 0.5, "CPU": 2, "custom": 0, "also": 0.0})
    assert demand == (("CPU", 20_000), ("GPU", 5_000))
    assert demand_from({}) == ()


@pytest.mark.parametrize(
    ("value", "units"),
    [
        (0.0001, 1),
        (0.0003, 3),  # 0.0003 * 10000 is 2.9999999999999996
        (0.1 + 0.2, 3_000),
        (1 - 0.9, 1_000),
        (64 << 30, (64 << 30) * 10_000),
        (float(1 << 40), (1 << 40) * 10_000),
        (np.float32(0.5), 5_000),
        (np.int64(3), 30_000),
        (Fraction(1, 4), 2_500),
        (AMOUNT_MAX // 10_000, AMOUNT_MAX // 10_000 * 10_000),
    ],
)
def test_amounts_convert_exactly(value: float, units: int) -> None:
    assert demand_from({"CPU": value}) == (("CPU", units),)


@pytest.mark.parametrize(
    ("value", "error", "what"),
    [
        (-1, ValueError, "negative"),
        (-0.5, ValueError, "negative"),
        (float("nan"), ValueError, "not finite"),
        (float("inf"), ValueError, "not finite"),
        (1e300, ValueError, "too large"),
        (1e308, ValueError, "too large"),
        (10**30, ValueError, "too large"),
        (0.00001, ValueError, "finer than 1/10000"),
        (1.00005, ValueError, "finer than 1/10000"),
        (1_000_000.00005, ValueError, "finer than 1/10000"),
        (True, TypeError, "bool"),
        ("1", TypeError, "str"),
        (None, TypeError, "NoneType"),
        (1j, TypeError, "complex"),
        (Decimal(1), TypeError, "Decimal"),
    ],
)
def test_other_amounts_are_refused_by_name(value: float, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what) as caught:
        demand_from({"CPU": 1, "accelerator": value})
    assert "'accelerator'" in str(caught.value)


def test_names_must_be_strings_and_not_empty() -> None:
    with pytest.raises(TypeError, match="int: 7"):
        demand_from({7: 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="empty name"):
        demand_from({"": 1})


def test_amounts_for_people() -> None:
    amounts = amounts_of((("CPU", 20_000), ("GPU", 5_000)))
    assert amounts == {"CPU": 2, "GPU": 0.5}
    assert str(amounts) == "{'CPU': 2, 'GPU': 0.5}"


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 10**12)))
def test_people_and_machines_mean_the_same(units: dict[str, int]) -> None:
    demand = tuple(sorted(units.items()))
    assert demand_from(amounts_of(demand)) == demand


def test_taking_and_giving() -> None:
    pool = ResourcePool(TOTAL)
    pool.take(ONE_CPU)
    pool.take(demand_from({"CPU": 2.5, "GPU": 1}))
    assert pool.free_demand() == (("CPU", 5_000), ("memory", (1 << 36) * 10_000))
    assert pool.as_demand() == TOTAL
    assert not pool.fits(ONE_CPU)
    assert pool.feasible(ONE_CPU)
    pool.give(ONE_CPU)
    assert pool.fits(ONE_CPU)


def test_an_empty_demand_fits_everywhere() -> None:
    pool = ResourcePool(())
    assert pool.fits(())
    assert pool.feasible(())
    assert pool.missing(()) == []


def test_a_resource_the_node_does_not_have() -> None:
    pool = ResourcePool(ONE_CPU)
    demand = demand_from({"CPU": 2, "GPU": 1.5})
    assert not pool.fits(demand)
    assert not pool.feasible(demand)
    assert pool.missing(demand) == [("CPU", 20_000, 10_000), ("GPU", 15_000, 0)]
    assert shortage_text(pool.missing(demand)) == "has 1 of 2 CPU, 0 of 1.5 GPU"
    for change in (pool.take, pool.give, pool.oversubscribe):
        with pytest.raises(InvariantError, match="GPU"):
            change(demand_from({"GPU": 1}))


def test_only_oversubscribe_drives_free_below_zero() -> None:
    pool = ResourcePool(ONE_CPU)
    pool.take(ONE_CPU)
    with pytest.raises(InvariantError, match="0 were free"):
        pool.take(ONE_CPU)
    pool.oversubscribe(ONE_CPU)
    assert pool.free_demand() == (("CPU", -10_000),)
    assert not pool.fits(demand_from({"CPU": 0.0001}))
    pool.check([ONE_CPU, ONE_CPU])
    pool.give(ONE_CPU)
    pool.give(ONE_CPU)
    pool.check([])


def test_more_cannot_come_back_than_there_is() -> None:
    with pytest.raises(InvariantError, match="20000 of CPU free"):
        ResourcePool(ONE_CPU).give(ONE_CPU)


def test_a_mirror_of_a_report() -> None:
    pool = ResourcePool(TOTAL, (("CPU", -10_000), ("unknown", 10_000)))
    assert pool.free == {"CPU": -10_000, "GPU": 0, "memory": 0}


def test_check_notices_a_leak() -> None:
    pool = ResourcePool(TOTAL)
    pool.take(ONE_CPU)
    pool.check([ONE_CPU])
    with pytest.raises(InvariantError, match="I4"):
        pool.check([])
    with pytest.raises(InvariantError, match="I4"):
        pool.check([ONE_CPU, demand_from({"TPU": 1})])


@given(st.lists(st.tuples(st.sampled_from(("CPU", "GPU")), st.integers(1, 25_000), st.booleans())))
def test_whatever_is_taken_and_given_the_sum_stays(steps: list[tuple[str, int, bool]]) -> None:
    pool = ResourcePool(TOTAL)
    held = []
    for name, amount, give in steps:
        demand = ((name, amount),)
        if give and held:
            pool.give(held.pop(0))
        elif pool.fits(demand):
            pool.take(demand)
            held.append(demand)
        pool.check(held)
        assert min(pool.free.values()) >= 0
