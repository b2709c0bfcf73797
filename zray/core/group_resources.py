"""Resources of placement groups by name: a committed bundle is resources of its node with names of their own.

A bundle ``{CPU: 2}`` with index 1 takes two CPUs of its node and adds two ``CPU_group_<id>``, for tasks
that may be in any bundle, and two ``CPU_group_1_<id>``, for those of this bundle, which hold both. So
whatever knows resources (dispatching, placing, lending while a task is blocked) knows groups, too, and a
task of a group is feasible exactly where the group is. ``bundle_group_<id>`` is there in plenty: it ties
tasks that ask for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.ids import ID_BYTES
from zray.protocol.base import InGroup
from zray.protocol.messages import RESOURCE_UNIT, Demand

PRESENCE = "bundle"
PRESENCE_PER_BUNDLE = 1000 * RESOURCE_UNIT
PRESENCE_PER_TASK = 1
LENT_WHILE_BLOCKED = "CPU"
GROUP_DIGITS = 2 * ID_BYTES
"""Of the id of a group in a name."""


def resource_name(name: str, group_id: bytes, index: int = -1) -> str:
    """The name of a resource in a group, or in one of its bundles."""
    where = "" if index < 0 else f"{index}_"
    return f"{name}_group_{where}{group_id.hex()}"


def added_by(group_id: bytes, index: int, bundle: Demand) -> Demand:
    """What a committed bundle adds to its node."""
    return _named((*bundle, (PRESENCE, PRESENCE_PER_BUNDLE)), group_id, (-1, index))


def demand_in(demand: Demand, in_group: InGroup) -> Demand:
    """What a task asks for that runs in a group."""
    return _named((*demand, (PRESENCE, PRESENCE_PER_TASK)), in_group.group_id, _levels(in_group))


def plain_demand(demand: Demand, in_group: InGroup) -> Demand:
    """The demand whose :func:`demand_in` is ``demand``."""
    ending = resource_name("", in_group.group_id)
    plain = [(name[: -len(ending)], amount) for name, amount in demand if name.endswith(ending)]
    return tuple(pair for pair in plain if pair[0] != PRESENCE)


def lent_while_blocked(demand: Demand, in_group: InGroup | None) -> Demand:
    """The part of a task's demand that others may use while it waits in ``get``: its CPUs, of its bundle."""
    if in_group is None:
        return tuple(part for part in demand if part[0] == LENT_WHILE_BLOCKED)
    names = [resource_name(LENT_WHILE_BLOCKED, in_group.group_id, index) for index in _levels(in_group)]
    return tuple(part for part in demand if part[0] in names)


def amount_in(demand: Demand, resource: str) -> int:
    """How much of a resource of its node a task asks for, in a placement group or not."""
    inside = f"{resource}_group_"
    for name, amount in demand:
        if name == resource or (name.startswith(inside) and len(name) == len(inside) + GROUP_DIGITS):
            return amount
    return 0


def _levels(in_group: InGroup) -> tuple[int, ...]:
    return (-1,) if in_group.bundle < 0 else (-1, in_group.bundle)


def _named(demand: Iterable[tuple[str, int]], group_id: bytes, levels: tuple[int, ...]) -> Demand:
    return tuple(
        sorted((resource_name(name, group_id, index), amount) for name, amount in demand for index in levels)
    )
