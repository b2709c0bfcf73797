"""The placement groups of a cluster, by id, by name and by what becomes of them.

A group is *waiting* (some bundle has no node), *preparing* (a plan is asked for), *recording* (all nodes have
prepared, the decision is being written), *created*, or *removing*. One that lost a node is waiting again, and
what it has left may be used meanwhile.
"""

from __future__ import annotations

from typing import Any

from zray.core.machine import Address, invariant
from zray.core.resources import amounts_of
from zray.ids import short
from zray.protocol.group_messages import STRATEGY_NAMES, Bundle, GroupRow, GroupSpec

WAITING, PREPARING, RECORDING, CREATED, REMOVING = 0, 1, 2, 3, 4
GROUPS_MAX = 10_000
"""Groups of a cluster; more are refused."""
REMOVED_MAX = 1_000
"""Removed groups that are remembered for people to look at."""
JOBS_OVER_MAX = 10_000
"""Ended jobs that are remembered, so that a late request makes no group for one."""


class Group:
    """One placement group; found in ``GroupBook.groups``.

    Attributes:
        places: index of a bundle -> node; committed there, or to be as soon as the node hears of it.
        planned: the same for bundles that are being prepared; none of them is in ``places``.
        askers: who waits for an answer, as (node, token).
        tell_at_ns: when its driver is told that it cannot be placed; ``None``: it was.
    """

    __slots__ = ("askers", "places", "planned", "spec", "state", "tell_at_ns", "was_created")

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.state = WAITING
        self.was_created = False
        self.places: dict[int, bytes] = {}
        self.planned: dict[int, bytes] = {}
        self.askers: dict[tuple[Address, int], None] = {}
        self.tell_at_ns: int | None = None

    def row(self) -> GroupRow:
        """What the table says of it once every plan has succeeded."""
        places = {**self.places, **self.planned}
        return GroupRow(self.spec, tuple(places.get(index, b"") for index in range(len(self.spec.bundles))))

    def bundles_on(self, node_id: bytes) -> tuple[Bundle, ...]:
        """What a node should hold of it now."""
        bundles = self.spec.bundles
        held = [Bundle(index, bundles[index], True) for index, node in self.places.items() if node == node_id]
        held += [
            Bundle(index, bundles[index], False) for index, node in self.planned.items() if node == node_id
        ]
        return tuple(sorted(held, key=lambda bundle: bundle.index))

    @property
    def state_name(self) -> str:
        """The state in Ray's words."""
        if self.state == REMOVING:
            return "REMOVED"
        if self.state == CREATED:
            return "CREATED"
        return "RESCHEDULING" if self.was_created else "PENDING"


class GroupBook:
    """All groups, and the removed ones for a while. Decides nothing but what there is room for."""

    def __init__(self) -> None:
        self.groups: dict[bytes, Group] = {}
        self.waiting: dict[bytes, Group] = {}  # those in that state, the longest waiting first
        self.names: dict[tuple[str, str], Group] = {}
        self.removed: dict[bytes, GroupSpec] = {}  # oldest first
        self.jobs_over: dict[bytes, None] = {}  # oldest first
        self.endings: dict[tuple[Address, int], bytes] = {}  # who waits for the groups of a job to be gone

    def problem_of(self, spec: GroupSpec) -> str:
        """Why there is no room for a new group; empty for a known one."""
        if spec.group_id in self.groups:
            return ""
        if spec.job_id in self.jobs_over and not spec.detached:
            return "its job has ended"
        if spec.name and (spec.namespace, spec.name) in self.names:
            return f"the name {spec.name!r} is taken by another placement group of this namespace"
        if len(self.groups) >= GROUPS_MAX:
            return f"there are {GROUPS_MAX} placement groups; remove some"
        return ""

    def add(self, spec: GroupSpec) -> Group:
        """A new group, which waits."""
        group = self.groups[spec.group_id] = self.waiting[spec.group_id] = Group(spec)
        self.removed.pop(spec.group_id, None)
        if spec.name:
            self.names[spec.namespace, spec.name] = group
        return group

    def set_state(self, group: Group, state: int) -> None:
        """A group goes on."""
        group.state = state
        group.was_created |= state == CREATED
        if state == WAITING:
            self.waiting[group.spec.group_id] = group
        else:
            self.waiting.pop(group.spec.group_id, None)

    def drop(self, group: Group) -> None:
        """There is no such group any more."""
        spec = group.spec
        del self.groups[spec.group_id]
        self.waiting.pop(spec.group_id, None)
        if self.names.get((spec.namespace, spec.name)) is group:
            del self.names[spec.namespace, spec.name]
        self.removed[spec.group_id] = spec
        if len(self.removed) > REMOVED_MAX:
            del self.removed[next(iter(self.removed))]

    def called(self, namespace: str, name: str) -> Group | None:
        """The group with a name, unless it is being removed."""
        group = self.names.get((namespace, name))
        return None if group is None or group.state == REMOVING else group

    def end_job(self, job_id: bytes) -> list[Group]:
        """The groups that end with their job."""
        self.jobs_over[job_id] = None
        if len(self.jobs_over) > JOBS_OVER_MAX:
            del self.jobs_over[next(iter(self.jobs_over))]
        return [group for group in self.groups.values() if self._ends_with(group, job_id)]

    def has_any_of(self, job_id: bytes) -> bool:
        """Whether a group is left that ends with this job."""
        return any(self._ends_with(group, job_id) for group in self.groups.values())

    @staticmethod
    def _ends_with(group: Group, job_id: bytes) -> bool:
        return group.spec.job_id == job_id and not group.spec.detached

    def report(self, group_id: bytes) -> list[dict[str, Any]]:
        """Rows for people, with the ``Group`` as ``group``; of one group, or of all."""
        rows = [
            _row(group.spec, group.state_name, {**group.places}, group)
            for group in self.groups.values()
            if group_id in (b"", group.spec.group_id)
        ]
        rows += [
            _row(spec, "REMOVED", {}, None)
            for spec in self.removed.values()
            if group_id in (b"", spec.group_id)
        ]
        return rows

    def check(self) -> None:
        """Every group is in one state, and its bundles are in one place."""
        invariant(len(self.groups) <= GROUPS_MAX, "I15: groups", len(self.groups))
        for group_id, group in self.groups.items():
            name = short(group_id)
            waits = group.state == WAITING
            invariant(waits == (group_id in self.waiting), "group", name, "waits:", waits)
            invariant(not group.places.keys() & group.planned.keys(), "two places of a bundle of", name)
            under_way = group.state in (PREPARING, RECORDING)
            invariant(
                bool(group.planned) == under_way or group.state == REMOVING,
                "plan of group",
                name,
                group.state,
            )
            complete = len(group.places) == len(group.spec.bundles)
            invariant(group.state != CREATED or complete, "group", name, "is created and not complete")


def _row(spec: GroupSpec, state: str, places: dict[int, bytes], group: Group | None) -> dict[str, Any]:
    return {
        "placement_group_id": spec.group_id.hex(),
        "name": spec.name,
        "namespace": spec.namespace,
        "bundles": {str(index): amounts_of(demand) for index, demand in enumerate(spec.bundles)},
        "bundles_to_node_id": {str(index): node_id.hex() for index, node_id in sorted(places.items())},
        "strategy": STRATEGY_NAMES[spec.strategy],
        "state": state,
        "detached": spec.detached,
        "group": group,
    }
