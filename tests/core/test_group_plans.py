"""Where bundles go: the four strategies, alone."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.core.group_plans import Plan, obstacle, plan, total_of
from zray.protocol.group_messages import PACK, SPREAD, STRICT_PACK, STRICT_SPREAD, GroupSpec

ALL = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)


def spec_of(strategy: int, *cpus: int, home: bytes = b"") -> GroupSpec:
    return GroupSpec(b"g" * 16, tuple((("CPU", amount),) for amount in cpus), strategy, home=home)


def nodes(*cpus: int) -> dict[bytes, dict[str, int]]:
    return {b"n%d" % number: {"CPU": amount} for number, amount in enumerate(cpus)}


def numbers(found: Plan | None) -> list[int] | None:
    return None if found is None else [int(found[index][1:]) for index in sorted(found)]


@pytest.mark.parametrize(
    ("strategy", "cpus", "free", "expected"),
    [
        (PACK, (1, 1, 1), (2, 3), [1, 1, 1]),
        (PACK, (1, 2), (2, 1), [1, 0]),
        (PACK, (3,), (2, 2), None),
        (SPREAD, (1, 1, 1), (2, 2), [0, 1, 0]),
        (SPREAD, (2, 1), (1, 2), [1, 0]),
        (STRICT_PACK, (1, 1), (1, 2), [1, 1]),
        (STRICT_PACK, (1, 2), (2, 2), None),
        (STRICT_SPREAD, (1, 1), (2, 2), [0, 1]),
        (STRICT_SPREAD, (1, 1), (4,), None),
    ],
)
def test_small_plans(strategy: int, cpus: tuple[int, ...], free: tuple[int, ...], expected: object) -> None:
    assert numbers(plan(spec_of(strategy, *cpus), {}, nodes(*free))) == expected


def test_the_home_of_the_creator_comes_first() -> None:
    for strategy in (PACK, STRICT_PACK):
        assert numbers(plan(spec_of(strategy, 1, 1, home=b"n2"), {}, nodes(4, 4, 4))) == [2, 2]


def test_what_is_lost_goes_where_the_strategy_lets_it() -> None:
    placed = {0: b"n0", 1: b"n1"}
    assert plan(spec_of(STRICT_SPREAD, 1, 1, 1), placed, nodes(4, 4, 4)) == {2: b"n2"}
    assert plan(spec_of(STRICT_SPREAD, 1, 1, 1), placed, nodes(4, 4)) is None
    assert plan(spec_of(PACK, 1, 1, 1), {0: b"n1"}, nodes(4, 4)) == {1: b"n1", 2: b"n1"}
    assert plan(spec_of(STRICT_PACK, 1, 1), {0: b"n1"}, nodes(4, 1)) == {1: b"n1"}


@given(
    st.sampled_from(ALL), st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(0, 6), max_size=4),
)  # fmt: skip
def test_plans_fit_and_keep_their_strategy(strategy: int, cpus: list[int], free: list[int]) -> None:
    spec, rooms = spec_of(strategy, *cpus), nodes(*free)
    found = plan(spec, {}, rooms)
    if found is None:
        assert obstacle(spec, {}, rooms)
        return
    assert sorted(found) == list(range(len(cpus)))
    for node_id, room in rooms.items():
        taken = total_of(spec.bundles[index] for index, place in found.items() if place == node_id)
        assert dict(taken).get("CPU", 0) <= room["CPU"]
    used = len(set(found.values()))
    assert strategy != STRICT_PACK or used == 1
    assert strategy != STRICT_SPREAD or used == len(cpus)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(st.integers(0, 5), max_size=4))
def test_a_strict_spread_is_found_if_there_is_one(cpus: list[int], free: list[int]) -> None:
    exists = any(
        all(cpu <= room for cpu, room in zip(cpus, chosen, strict=True))
        for chosen in permutations(free, len(cpus))
    )
    assert (plan(spec_of(STRICT_SPREAD, *cpus), {}, nodes(*free)) is not None) == exists


def test_explanations() -> None:
    unit = 10_000
    assert obstacle(spec_of(PACK, unit), {}, {}) == "the cluster has no nodes"
    assert "bundle 1: node" in obstacle(spec_of(PACK, unit, 3 * unit), {}, nodes(2 * unit))
    assert "has 2 of 3 CPU" in obstacle(spec_of(PACK, 3 * unit), {}, nodes(2 * unit))
    assert "all 2 bundles on one node" in obstacle(spec_of(STRICT_PACK, 2, 2), {}, nodes(3, 3))
    assert "2 bundles ask for as many different nodes" in obstacle(spec_of(STRICT_SPREAD, 1, 1), {}, nodes(4))
    assert "not all 3 together" in obstacle(spec_of(PACK, 2, 2, 2), {}, nodes(3, 3))
    assert "and 12 more nodes" in obstacle(spec_of(PACK, 9), {}, nodes(*[1] * 20))
