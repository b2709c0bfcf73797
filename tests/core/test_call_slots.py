"""Which calls of an actor run at once: limits, groups, order, withdrawal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray import ids
from zray.core.call_slots import CallSlots
from zray.errors import InvariantError
from zray.protocol.messages import Call

CALLER = b"caller"


def call(number: int, method: str = "plain", group: str = "") -> Call:
    return Call(ids.task_id(b"caller__", number), b"a" * 16, number, method, 1, b"", group=group)


def started(slots: CallSlots) -> list[int]:
    """Start all that may; their numbers."""
    found = []
    while (item := slots.next()) is not None:
        found.append(item[1].sequence)
        slots.check()
    return found


def test_one_at_a_time_in_order() -> None:
    slots = CallSlots()
    for number in range(3):
        assert slots.arrived(CALLER, call(number))
    assert started(slots) == [0]
    assert not slots.may_start()
    slots.ended(call(0).task_id)
    assert started(slots) == [1]


def test_groups_do_not_delay_each_other() -> None:
    slots = CallSlots(1, {"io": 2}, {"read": "io"})
    assert slots.limit == 3
    for number in range(4):
        slots.arrived(CALLER, call(number, "read"))
    slots.arrived(CALLER, call(4))
    slots.arrived(CALLER, call(5, "plain", "io"))
    assert sorted(started(slots)) == [0, 1, 4]
    slots.ended(call(0).task_id)
    slots.ended(call(1).task_id)
    assert started(slots) == [2, 3]


def test_an_unknown_group_is_refused() -> None:
    slots = CallSlots()
    assert not slots.arrived(CALLER, call(0, "plain", "nonsense"))
    assert slots.next() is None
    slots.check()


def test_what_is_withdrawn_never_starts() -> None:
    slots = CallSlots()
    for number in range(4):
        slots.arrived(CALLER, call(number))
    assert started(slots) == [0]
    assert slots.withdraw(call(2).task_id) == (CALLER, call(2))
    assert slots.withdraw(call(2).task_id) is None
    assert slots.withdraw(call(0).task_id) is None  # it runs
    slots.ended(call(0).task_id)
    assert started(slots) == [1]
    assert [item[1].sequence for item in slots.withdraw_all()] == [3]
    slots.check()


def test_a_wrong_count_is_seen() -> None:
    slots = CallSlots()
    slots.free[""] = 0
    with pytest.raises(InvariantError, match="slots"):
        slots.check()


@given(st.lists(st.sampled_from(["plain", "io", "start", "end", "withdraw"]), max_size=60))
def test_any_order_of_events(events: list[str]) -> None:
    """Within a group calls start in order of arrival, never more at once than its limit."""
    slots = CallSlots(2, {"io": 1}, {"io": "io"})
    begun: dict[str, list[int]] = {"plain": [], "io": []}
    running: list[Call] = []
    for number, event in enumerate(events):
        if event in begun:
            slots.arrived(CALLER, call(number, event))
        elif event == "start" and (item := slots.next()) is not None:
            running.append(item[1])
            begun[item[1].method].append(item[1].sequence)
        elif event == "end" and running:
            slots.ended(running.pop(0).task_id)
        elif event == "withdraw":
            slots.withdraw(call(number // 2).task_id)
        slots.check()
        for method, limit in (("plain", 2), ("io", 1)):
            assert sum(one.method == method for one in running) <= limit
    for numbers in begun.values():
        assert numbers == sorted(numbers)


def test_a_call_that_is_made_again_starts_when_its_former_run_has_ended() -> None:
    """Its caller died and runs again: both runs have the same id."""
    slots = CallSlots(3)
    for each in (call(0), call(0), call(1)):
        slots.arrived(CALLER, each)
    assert started(slots) == [0]
    assert not slots.may_start()
    slots.ended(call(0).task_id)
    assert slots.may_start()
    assert started(slots) == [0, 1]
    slots.ended(call(0).task_id)
    slots.check()
