"""``scheduling_strategies``: which nodes a task may run on, under Ray's names."""

from __future__ import annotations

from typing import Any

from zray.api.strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)


class PlacementGroupSchedulingStrategy:
    """Refused, with the reason, when it is made."""

    def __init__(self, placement_group: Any, **options: Any) -> None:
        raise NotImplementedError(
            "zray refuses PlacementGroupSchedulingStrategy: placement groups do not exist yet; "
            "ask for a custom resource, or labels, that only the wanted nodes have"
        )


__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]
