"""``scheduling_strategies``: Ray's names. zray places tasks by queueing and transfer time (paper, 4.2.2)."""

from __future__ import annotations

from typing import Any, NoReturn

_REASON = "zray refuses {}: ask for a custom resource that only the wanted nodes have"


class NodeAffinitySchedulingStrategy:
    """Refused, with the reason, when it is made."""

    def __init__(self, node_id: str, soft: bool, **options: Any) -> None:
        _refuse(type(self).__name__)


class NodeLabelSchedulingStrategy:
    """Refused, with the reason, when it is made."""

    def __init__(self, hard: Any = None, soft: Any = None) -> None:
        _refuse(type(self).__name__)


class PlacementGroupSchedulingStrategy:
    """Refused, with the reason, when it is made."""

    def __init__(self, placement_group: Any, **options: Any) -> None:
        _refuse(type(self).__name__)


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(_REASON.format(name))
