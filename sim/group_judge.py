"""Judges of placement groups, who look at what nodes hear and hold and not at how it was decided.

A group is usable only once every bundle of it was reserved; ``STRICT_PACK`` and ``STRICT_SPREAD`` hold;
what nodes have set aside is the sum of the groups that exist; a task ends with the error of a removed group
only if some program removed it, or its job is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zray.core.group_plans import total_of
from zray.ids import short
from zray.protocol.group_messages import (
    STRICT_PACK,
    STRICT_SPREAD,
    BundlesHeld,
    GroupSpec,
    HoldBundles,
)

if TYPE_CHECKING:
    from sim.hosts import SimNode
    from zray.core.placement_groups import PlacementGroups


class GroupJudge:
    """All that is known of groups in one run.

    Args:
        fail: raises the violation.
        ends_jobs: whether drivers die in this run, and their groups with them.
    """

    def __init__(self, fail: Callable[[str], None], *, ends_jobs: bool) -> None:
        self.fail = fail
        self.ends_jobs = ends_jobs
        self.specs: dict[bytes, GroupSpec] = {}
        self.given_up: dict[str, None] = {}  # hex of groups that a program removed
        self.asked: dict[tuple[bytes, int], HoldBundles] = {}  # (node, version) -> what it was told
        self.reserved: dict[bytes, dict[int, None]] = {}  # group -> bundles that some node reserved once
        self.usable: dict[tuple[bytes, bytes], None] = {}  # (node, group): it was committed there
        self.places: dict[bytes, dict[int, bytes]] = {}  # group -> committed bundles by index

    def made(self, spec: GroupSpec) -> None:
        """A program asks for a group."""
        self.specs[spec.group_id] = spec

    def removed(self, group_id: bytes) -> None:
        """A program removes a group."""
        self.given_up[group_id.hex()] = None

    def explains(self, text: str) -> bool:
        """Whether a task may end because its group is gone."""
        return self.ends_jobs or any(group_id in text for group_id in self.given_up)

    def node_gone(self, node_id: bytes) -> None:
        """A node and all that it held is no more."""
        for places in self.places.values():
            for index in [index for index, place in places.items() if place == node_id]:
                del places[index]

    def told(self, node_id: bytes, message: HoldBundles) -> None:
        """A node hears what it should hold."""
        self.asked[node_id, message.version] = message
        group_id, spec = message.group_id, self.specs.get(message.group_id)
        places = self.places.setdefault(group_id, {})
        for index in [index for index, place in places.items() if place == node_id]:
            del places[index]
        committed = [bundle.index for bundle in message.bundles if bundle.committed]
        if not committed or spec is None:
            return
        if len(self.reserved.get(group_id, {})) < len(spec.bundles):
            self.fail(f"group {short(group_id)} is committed before all of it is reserved")
        self.usable[node_id, group_id] = None
        places.update(dict.fromkeys(committed, node_id))
        self._check_strategy(spec, places)

    def used(self, node_id: bytes, group_id: bytes) -> None:
        """A task of a group starts on a node."""
        if (node_id, group_id) not in self.usable:
            self.fail(f"a task of group {short(group_id)} starts where nothing of it is committed")

    def _check_strategy(self, spec: GroupSpec, places: dict[int, bytes]) -> None:
        nodes = len(dict.fromkeys(places.values()))
        if spec.strategy == STRICT_PACK and nodes > 1:
            self.fail(f"group {short(spec.group_id)} is to be on one node and is on {nodes}")
        if spec.strategy == STRICT_SPREAD and nodes < len(places):
            self.fail(f"group {short(spec.group_id)} has two bundles on one node")

    def said(self, node_id: bytes, message: BundlesHeld) -> None:
        """A node says what it holds."""
        wished = self.asked.get((node_id, message.version))
        if wished is not None and message.ok:
            reserved = self.reserved.setdefault(message.group_id, {})
            reserved.update((bundle.index, None) for bundle in wished.bundles)

    def check_reserved(self, coordinator: PlacementGroups, nodes: list[SimNode]) -> None:
        """At rest nodes have set aside exactly what groups have that exist."""
        groups = coordinator.book.groups
        for host in nodes:
            bundles = host.node.groups.bundles
            expected = dict(
                total_of(
                    group.spec.bundles[index]
                    for group in groups.values()
                    for index, node_id in group.places.items()
                    if node_id == host.address
                )
            )
            if bundles.resources.aside != expected:
                self.fail(f"I4: node {host.number} has set aside {bundles.resources.aside}, not {expected}")
            if bundles.leaving or any(
                not b.committed for held in bundles.held.values() for b in held.values()
            ):
                self.fail(f"I14: node {host.number} has bundles at rest that are neither here nor gone")
        for group in groups.values():
            if len(group.places) not in (0, len(group.spec.bundles)):
                self.fail(f"group {short(group.spec.group_id)} is there in part at rest: {group.places}")

    def check_gone(self, coordinator: PlacementGroups) -> None:
        """No job is left: nor is a group."""
        left = [short(group_id) for group_id in coordinator.book.groups]
        if left:
            self.fail(f"I14: groups are left after every driver left: {left}")
