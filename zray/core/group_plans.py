"""Where the bundles of a placement group could go: one plain function for each of the four strategies.

A plan is made from what nodes have free, or, to tell *infeasible* from *busy*, from what they have in
total. Larger bundles are placed first, which is what fills nodes best among simple rules; ``STRICT_SPREAD``
is solved exactly, as a matching of bundles and nodes. Nothing is changed here: a plan is only a wish until
every node of it has reserved its part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from zray.core.resources import shortage_text, shortages
from zray.ids import short
from zray.protocol.group_messages import PACK, STRATEGY_NAMES, STRICT_PACK, STRICT_SPREAD, GroupSpec
from zray.protocol.messages import Demand

Plan = dict[int, bytes]
"""Index of a bundle -> node."""

SHARE_UNIT = 1_000_000
NODES_TOLD_MAX = 8
"""Nodes that an explanation names."""


class Room:
    """What one node could still give; found in a list that is sorted by preference."""

    __slots__ = ("free", "node_id", "used")

    def __init__(self, node_id: bytes, free: Mapping[str, int], used: int) -> None:
        self.node_id = node_id
        self.free = dict(free)
        self.used = used  # bundles of the group that are there

    def fits(self, demand: Demand) -> bool:
        """Whether the demand could be taken."""
        free = self.free
        return all(free.get(name, 0) >= amount for name, amount in demand)

    def take(self, demand: Demand) -> None:
        """Count a bundle as placed here."""
        for name, amount in demand:
            self.free[name] -= amount
        self.used += 1


def plan(spec: GroupSpec, placed: Plan, nodes: Mapping[bytes, Mapping[str, int]]) -> Plan | None:
    """Nodes for every bundle that has none.

    Args:
        spec: the group.
        placed: bundles that stay where they are.
        nodes: amounts by resource name, of each node that may be used.
    Returns:
        a node for each index that is not in ``placed``; ``None`` if they do not all fit.
    Cost: ``PACK`` O(bundles^2 x nodes), the others O(bundles x nodes), ``STRICT_SPREAD`` times bundles.
    """
    wanted = [(index, demand) for index, demand in enumerate(spec.bundles) if index not in placed]
    rooms = _rooms(spec, placed, nodes)
    if spec.strategy == STRICT_PACK:
        return _on_one(wanted, rooms, bool(placed))
    wanted = _largest_first(wanted, rooms)
    if spec.strategy == PACK:
        return _on_few(wanted, rooms)
    if spec.strategy == STRICT_SPREAD:
        return _each_apart(wanted, [room for room in rooms if not room.used])
    return _on_many(wanted, rooms)


def _rooms(spec: GroupSpec, placed: Plan, nodes: Mapping[bytes, Mapping[str, int]]) -> list[Room]:
    """Those that have some of the group already, then the creator's own node, then by id."""
    used: dict[bytes, int] = {}
    for node_id in placed.values():
        used[node_id] = used.get(node_id, 0) + 1
    rooms = [Room(node_id, free, used.get(node_id, 0)) for node_id, free in nodes.items()]
    rooms.sort(key=lambda room: (-room.used, room.node_id != spec.home, room.node_id))
    return rooms


def _largest_first(wanted: list[tuple[int, Demand]], rooms: Sequence[Room]) -> list[tuple[int, Demand]]:
    """By the largest share of a resource that a bundle asks for, of what the best node has."""
    most: dict[str, int] = {}
    for room in rooms:
        for name, amount in room.free.items():
            most[name] = max(amount, most.get(name, 0))

    def share(demand: Demand) -> int:
        return max((amount * SHARE_UNIT // max(1, most.get(name, 0)) for name, amount in demand), default=0)

    return sorted(wanted, key=lambda pair: -share(pair[1]))  # stable: equal ones stay in their order


def _on_one(wanted: list[tuple[int, Demand]], rooms: Iterable[Room], is_begun: bool) -> Plan | None:
    whole = total_of(demand for _, demand in wanted)
    for room in rooms:
        if (room.used or not is_begun) and room.fits(whole):
            return {index: room.node_id for index, _ in wanted}
    return None


def _on_few(wanted: list[tuple[int, Demand]], rooms: list[Room]) -> Plan | None:
    """The node that takes the most of what is left, until nothing is."""
    found: Plan = {}
    while wanted:
        best: Room | None = None
        taken: Plan = {}
        for room in rooms:
            takes = _as_many_as_fit(wanted, room)
            if len(takes) > len(taken):
                best, taken = room, takes
        if best is None:
            return None
        for index, demand in wanted:
            if index in taken:
                best.take(demand)
        found.update(taken)
        wanted = [pair for pair in wanted if pair[0] not in taken]
    return found


def _as_many_as_fit(wanted: list[tuple[int, Demand]], room: Room) -> Plan:
    trial = Room(room.node_id, room.free, room.used)
    taken: Plan = {}
    for index, demand in wanted:
        if trial.fits(demand):
            trial.take(demand)
            taken[index] = room.node_id
    return taken


def _on_many(wanted: list[tuple[int, Demand]], rooms: list[Room]) -> Plan | None:
    """Each on the node with the fewest bundles of the group among those where it fits."""
    found: Plan = {}
    rooms.sort(key=lambda room: room.used)  # stable: otherwise as preferred
    for index, demand in wanted:
        fitting = [room for room in rooms if room.fits(demand)]
        if not fitting:
            return None
        room = min(fitting, key=lambda room: room.used)
        room.take(demand)
        found[index] = room.node_id
    return found


def _each_apart(wanted: list[tuple[int, Demand]], rooms: list[Room]) -> Plan | None:
    """A node for each, none twice: augmenting paths (Kuhn), so that a plan is found if there is one."""
    holder: dict[bytes, int] = {}  # node -> position in ``wanted``
    fitting = [[room.node_id for room in rooms if room.fits(demand)] for _, demand in wanted]

    def settle(position: int, tried: dict[bytes, None]) -> bool:
        preferred = fitting[position]
        for node_id in preferred:
            if node_id not in holder:
                holder[node_id] = position
                return True
        for node_id in preferred:  # all are taken: whoever has one may have another instead
            if node_id not in tried:
                tried[node_id] = None
                if settle(holder[node_id], tried):
                    holder[node_id] = position
                    return True
        return False

    if len(wanted) > len(rooms) or not all(settle(position, {}) for position in range(len(wanted))):
        return None
    return {wanted[position][0]: node_id for node_id, position in holder.items()}


def total_of(demands: Iterable[Demand]) -> Demand:
    """The sum of several demands."""
    sums: dict[str, int] = {}
    for demand in demands:
        for name, amount in demand:
            sums[name] = sums.get(name, 0) + amount
    return tuple(sorted(sums.items()))


# --- explanations --------------------------------------------------------------------------------


def obstacle(spec: GroupSpec, placed: Plan, nodes: Mapping[bytes, Mapping[str, int]]) -> str:
    """Why :func:`plan` finds nothing: which bundle, and of each node what it lacks."""
    if not nodes:
        return "the cluster has no nodes"
    wanted = [(index, demand) for index, demand in enumerate(spec.bundles) if index not in placed]
    if spec.strategy == STRICT_PACK and len(wanted) > 1:
        whole = total_of(demand for _, demand in wanted)
        return f"all {len(wanted)} bundles on one node: {_lacks(whole, nodes)}"
    for index, demand in wanted:
        if all(shortages(free, demand) for free in nodes.values()):
            return f"bundle {index}: {_lacks(demand, nodes)}"
    if spec.strategy == STRICT_SPREAD:
        return f"{len(spec.bundles)} bundles ask for as many different nodes, of {len(nodes)} that there are"
    return f"each bundle would fit some node, but not all {len(wanted)} together"


def _lacks(demand: Demand, nodes: Mapping[bytes, Mapping[str, int]]) -> str:
    told = sorted(nodes)[:NODES_TOLD_MAX]
    lines = [f"node {short(node_id)} {shortage_text(shortages(nodes[node_id], demand))}" for node_id in told]
    if len(nodes) > len(told):
        lines.append(f"and {len(nodes) - len(told)} more nodes")
    return "; ".join(lines)


def name_of(spec: GroupSpec) -> str:
    """A group for people."""
    called = f" {spec.name!r}" if spec.name else ""
    return f"placement group{called} {short(spec.group_id)} ({STRATEGY_NAMES[spec.strategy]})"
