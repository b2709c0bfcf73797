"""Placement groups: resources of one node or several that are reserved together, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from zray.api import session
from zray.api.strategies import SchedulingStrategy
from zray.core.checks import problem_of_group
from zray.core.group_resources import demand_in
from zray.core.resources import amounts_of, demand_from
from zray.errors import PlacementGroupError, TaskGroupRemovedError
from zray.protocol.base import InGroup
from zray.protocol.documents import decode_value
from zray.protocol.group_messages import (
    STRATEGY_NAMES,
    CreateGroup,
    FindGroup,
    GroupAnswer,
    GroupRequest,
    GroupSpec,
    ListGroups,
    RemoveGroup,
)
from zray.protocol.messages import Demand

if TYPE_CHECKING:
    from zray.api.refs import ObjectRef

Amounts = dict[str, float]


class PlacementGroup:
    """A handle of a placement group; may be passed to tasks and actors.

    Attributes:
        id: bytes, 16 of them.
    """

    def __init__(self, group_id: bytes, bundles: Sequence[Amounts] | None = None) -> None:
        self.id = group_id
        self._bundles = None if bundles is None else list(bundles)

    @property
    def bundle_specs(self) -> list[Amounts]:
        """What each bundle reserves, amounts by resource name.

        Raises:
            PlacementGroupError: if this handle must ask for it, and the group was removed.
        """
        if self._bundles is None:
            row = placement_group_table(self)
            self._bundles = [row["bundles"][index] for index in sorted(row["bundles"])]
        return [dict(bundle) for bundle in self._bundles]

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    @property
    def is_empty(self) -> bool:
        """Whether this is the handle of no group."""
        return not self.id

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A ref that becomes this handle once every bundle is reserved.

        If the group is removed before, ``get`` raises ``TaskPlacementGroupRemoved``.
        """
        from zray.api.remote import remote

        inside = PlacementGroupSchedulingStrategy(self)
        task = remote(_itself).options(
            num_cpus=0, max_retries=-1, scheduling_strategy=inside, _duration_s=0.0
        )
        return task.remote(self)

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Whether every bundle is reserved within so many seconds; ``None``: wait as long as it takes."""
        from zray.api import objects

        ref = self.ready()
        if not objects.wait([ref], timeout=timeout_seconds)[0]:
            objects.cancel(ref)
            return False
        try:
            objects.get(ref)
        except TaskGroupRemovedError:
            return False
        return True

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __eq__(self, other: object) -> bool:
        return type(other) is PlacementGroup and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self._bundles)


def _itself(group: PlacementGroup) -> PlacementGroup:
    """What runs once a group is there."""
    return group


class PlacementGroupSchedulingStrategy(SchedulingStrategy):
    """Where a task or actor runs: in a bundle of a placement group.

    Args:
        placement_group: the group.
        placement_group_bundle_index: of the bundle; -1: any.
        placement_group_capture_child_tasks: what it submits is in the group, too, unless it says otherwise.
    Raises:
        TypeError: for values of the wrong type.
        ValueError: for a bundle that the group has not got.
    """

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if not isinstance(placement_group, PlacementGroup):
            raise TypeError(f"placement_group is a PlacementGroup, not {placement_group!r}")
        index = placement_group_bundle_index
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"placement_group_bundle_index is a whole number, not {index!r}")
        if index < -1 or index >= placement_group.bundle_count:
            count = placement_group.bundle_count
            raise ValueError(
                f"placement_group_bundle_index {index}: the bundles are 0 to {count - 1}; -1: any"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = index
        self.placement_group_capture_child_tasks = bool(placement_group_capture_child_tasks)

    def to_wire(self) -> None:
        """The resources that a task asks for tie it to the nodes of its group: nothing else does."""

    @property
    def in_group(self) -> InGroup:
        """The place as it travels."""
        return InGroup(
            self.placement_group.id,
            self.placement_group_bundle_index,
            self.placement_group_capture_child_tasks,
        )

    def check_fits(self, demand: Demand) -> None:
        """Refuse at once what would wait for ever.

        Raises:
            ValueError: if no bundle that the task may use has what it asks for.
        """
        index, bundles = self.placement_group_bundle_index, self.placement_group.bundle_specs
        allowed = bundles if index < 0 else [bundles[index]]
        for bundle in allowed:
            amounts = dict(demand_from(bundle))
            if all(amounts.get(name, 0) >= amount for name, amount in demand):
                return
        where = "any bundle" if index < 0 else f"bundle {index}"
        raise ValueError(
            f"{amounts_of(demand)} does not fit {where} of the placement group, which has {allowed}; ask for "
            "less, or for a group with larger bundles"
        )


def place_of(strategy: Any, outer: InGroup | None, demand: Demand) -> tuple[Demand, InGroup | None]:
    """What a task or actor asks for, and the group that it is in.

    Args:
        strategy: the option ``scheduling_strategy``.
        outer: the group of the task that submits it.
        demand: what its options say.
    Raises:
        ValueError: if it does not fit its bundle.
    """
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        strategy.check_fits(demand)
        in_group = strategy.in_group
    elif strategy is None and outer is not None and outer.captures:
        in_group = InGroup(outer.group_id, -1, True)
    else:
        return demand, None
    return demand_in(demand, in_group), in_group


# --- functions -----------------------------------------------------------------------------------

_REFUSED = {
    "bundle_label_selector": "name what nodes have in resources",
    "_max_cpu_fraction_per_node": "reserve fewer CPUs",
    "_soft_target_node_id": "a group begins at the node of its creator where its strategy has a choice",
}


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    **refused: Any,
) -> PlacementGroup:
    """Reserve bundles of resources, all of them or none; returns at once, before they are.

    Args:
        bundles: amounts by resource name, each for one node; ``"CPU"``, ``"GPU"``, ``"memory"`` or custom.
        strategy: ``"PACK"`` (few nodes), ``"SPREAD"`` (many), ``"STRICT_PACK"`` (one node or none),
            ``"STRICT_SPREAD"`` (a node for each, or none).
        name: for ``get_placement_group``; unique in its namespace.
        lifetime: ``"detached"``: it outlives this job, until it is removed.
    Raises:
        ValueError, TypeError: for bundles that make no sense.
        PlacementGroupError: a ``ValueError``, if the name is taken or there is no room for more groups.
    """
    for option, value in refused.items():
        if option not in _REFUSED:
            raise TypeError(f"placement_group() has no option {option!r}")
        if value is not None:
            raise ValueError(f"placement_group() refuses {option!r}: {_REFUSED[option]}")
    demands = _demands_of(bundles)
    if strategy not in STRATEGY_NAMES:
        raise ValueError(f"strategy is one of {', '.join(STRATEGY_NAMES)}, not {strategy!r}")
    if not isinstance(name, str):
        raise TypeError(f"name is a string, not {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime is 'detached' or None, not {lifetime!r}")
    client = session.current()
    group_id = client.reserve_task_id()
    spec = GroupSpec(
        group_id, demands, STRATEGY_NAMES.index(strategy), client.namespace, name, lifetime == "detached"
    )
    problem = problem_of_group(spec)
    if problem:
        raise ValueError(problem)
    _ask(lambda token: CreateGroup(token, spec))
    return PlacementGroup(group_id, [amounts_of(demand) for demand in demands])


def _demands_of(bundles: Any) -> tuple[Demand, ...]:
    if not isinstance(bundles, Sequence) or isinstance(bundles, str | bytes):
        raise TypeError(f"bundles is a list of dicts of amounts by resource name, not {bundles!r}")
    if not bundles:
        raise ValueError("a placement group has at least one bundle")
    demands = []
    for bundle in bundles:
        if not isinstance(bundle, Mapping):
            raise TypeError(f"a bundle is a dict of amounts by resource name, not {bundle!r}")
        demand = demand_from(bundle)
        if not demand:
            raise ValueError(f"a bundle reserves something; {dict(bundle)!r} does not")
        demands.append(demand)
    return tuple(demands)


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give a group up: its tasks and actors end with an error that says so, and its resources are free.

    Returns once that is decided for good; removing a group twice does nothing.
    """
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group takes a PlacementGroup, not {placement_group!r}")
    _ask(lambda token: RemoveGroup(token, placement_group.id))


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this namespace with a name.

    Raises:
        PlacementGroupError: a ``ValueError``, if there is none.
    """
    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(f"the name of a placement group is a string, and not {placement_group_name!r}")
    namespace = session.current().namespace
    answer = _ask(lambda token: FindGroup(token, namespace, placement_group_name), may_fail=True)
    if not answer.ok:
        raise PlacementGroupError(
            answer.detail
            or f"no placement group of namespace {namespace!r} is called {placement_group_name!r}"
        )
    spec = decode_value(answer.body, GroupSpec)
    return PlacementGroup(spec.group_id, [amounts_of(demand) for demand in spec.bundles])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of a group, or of all by id: ``state``, ``bundles``, ``bundles_to_node_id``, ...

    States are ``PENDING``, ``CREATED``, ``RESCHEDULING`` (it lost a node) and ``REMOVED``. ``waits_for`` says
    why one is not created.

    Raises:
        PlacementGroupError: if there is no such group, and it is long since there was.
    """
    group_id = b"" if placement_group is None else placement_group.id
    rows = msgspec.json.decode(_ask(lambda token: ListGroups(token, group_id)).body)
    for row in rows:
        for field in ("bundles", "bundles_to_node_id"):
            row[field] = {int(index): value for index, value in row[field].items()}
    if placement_group is None:
        return {row["placement_group_id"]: row for row in rows}
    if not rows:
        raise PlacementGroupError(f"there is no placement group {group_id.hex()}")
    return dict(rows[0])


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the task or actor is in whose code asks; ``None`` outside groups and in drivers."""
    in_group = session.current().context.in_group
    return None if in_group is None else PlacementGroup(in_group.group_id)


def _ask(make: Callable[[int], GroupRequest], *, may_fail: bool = False) -> GroupAnswer:
    """
    Raises:
        ClusterUnavailableError: if the control store does not answer.
        PlacementGroupError: if it refuses.
    """
    client = session.current()
    answer: GroupAnswer = client.ask(make, client.config.init_timeout_ns / 1e9)
    if not answer.ok and not may_fail:
        raise PlacementGroupError(answer.detail)
    return answer
