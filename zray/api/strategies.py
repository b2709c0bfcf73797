"""Which nodes a task may run on: strategies and label selectors as users write them, checked at once."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from zray.core.labels import check_name, check_value
from zray.ids import ID_BYTES
from zray.protocol.strategies import ABSENT, NONE_OF, ONE_OF, PRESENT, LabelRule, Strategy

NAMES = (None, "DEFAULT", "SPREAD")
"""Strategies that are plain strings, as in Ray."""

_SET = re.compile(r"(!?)in\((.*)\)")


class LabelCondition:
    """What the label of a node must be; see :class:`In` and the others."""

    kind = PRESENT

    def __init__(self, *values: str) -> None:
        self.values = values

    def rule(self, name: str) -> LabelRule:
        """The condition for one label.

        Raises:
            TypeError, ValueError: if there is no such label or value.
        """
        check_name(name)
        for value in self.values:
            check_value(name, value)
        if self.kind in (ONE_OF, NONE_OF) and not self.values:
            raise ValueError(f"{type(self).__name__}() of label {name!r} names no value")
        return LabelRule(name, self.kind, self.values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(LabelCondition):
    """The node has the label, with one of these values."""

    kind = ONE_OF


class NotIn(LabelCondition):
    """The node has not got the label, or with none of these values."""

    kind = NONE_OF


class Exists(LabelCondition):
    """The node has the label."""

    kind = PRESENT

    def __init__(self) -> None:
        super().__init__()


class DoesNotExist(LabelCondition):
    """The node has not got the label."""

    kind = ABSENT

    def __init__(self) -> None:
        super().__init__()


class SchedulingStrategy(ABC):
    """Base of the strategies below."""

    @abstractmethod
    def to_wire(self) -> Strategy | None:
        """The strategy as it travels in a descriptor; ``None``: it says nothing of nodes."""


class NodeAffinitySchedulingStrategy(SchedulingStrategy):
    """Run on one node.

    Args:
        node_id: 32 hexadecimal digits, as ``zray.nodes()`` shows them.
        soft: run elsewhere if the node is dead or can never run it; otherwise that is an error.
    Raises:
        ValueError: for what is no id of a node, or an option that zray refuses, with the reason.
    """

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        if _spill_on_unavailable or _fail_on_unavailable:
            raise ValueError("zray refuses the options of a busy node: a task waits until its node has room")
        if not isinstance(soft, bool):
            raise TypeError(f"soft is True or False, not {soft!r}")
        self.node_id, self.soft = node_id, soft
        self._node = _node_id_of(node_id)

    def to_wire(self) -> Strategy:
        """See :class:`SchedulingStrategy`."""
        return Strategy(self._node, self.soft)


class NodeLabelSchedulingStrategy(SchedulingStrategy):
    """Run on a node with certain labels.

    Args:
        hard: conditions by label that the node satisfies, such as ``{"zone": In("a", "b")}``.
        soft: conditions that it satisfies if there is such a node.
    Raises:
        TypeError, ValueError: for what is no condition or no label, or if there are none at all.
    """

    def __init__(
        self,
        hard: Mapping[str, LabelCondition] | None = None,
        *,
        soft: Mapping[str, LabelCondition] | None = None,
    ) -> None:
        if not hard and not soft:
            raise ValueError("a strategy of labels has conditions in hard, soft or both")
        self.hard, self.soft = dict(hard or {}), dict(soft or {})
        self._strategy = Strategy(hard=_rules_of(self.hard), wanted=_rules_of(self.soft))

    def to_wire(self) -> Strategy:
        """See :class:`SchedulingStrategy`."""
        return self._strategy


def strategy_of(scheduling_strategy: Any, label_selector: Mapping[str, str] | None) -> Strategy | None:
    """What both options say together; ``None`` if any node will do."""
    strategy = None
    if isinstance(scheduling_strategy, SchedulingStrategy):
        strategy = scheduling_strategy.to_wire()
    if not label_selector:
        return strategy
    selected = rules_of_selector(label_selector)
    strategy = strategy or Strategy()
    return Strategy(strategy.node_id, strategy.soft, strategy.hard + selected, strategy.wanted)


def check_strategy(name: str, value: Any) -> None:
    """Refuse what is no ``scheduling_strategy``."""
    if isinstance(value, SchedulingStrategy) or (isinstance(value, str | None) and value in NAMES):
        return
    raise ValueError(
        f"{name} is 'DEFAULT', 'SPREAD' or a strategy of zray.util.scheduling_strategies, not {value!r}"
    )


def check_selector(name: str, value: Any) -> None:
    """Refuse what is no ``label_selector``."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict of conditions by label, not {value!r}")
    rules_of_selector(value)


def rules_of_selector(selector: Mapping[str, str]) -> tuple[LabelRule, ...]:
    """The rules of ``{"label": "value" | "!value" | "in(a, b)" | "!in(a, b)"}``.

    Raises:
        TypeError, ValueError: for anything else.
    """
    return _rules_of({name: _condition_of(name, text) for name, text in selector.items()})


def _condition_of(name: str, text: object) -> LabelCondition:
    if not isinstance(text, str):
        raise TypeError(f"the condition for label {name!r} is a string, not {type(text).__name__}: {text!r}")
    found = _SET.fullmatch(text.strip())
    if found is not None:
        values = [value.strip() for value in found[2].split(",")]
        return (NotIn if found[1] else In)(*values)
    return NotIn(text[1:]) if text.startswith("!") else In(text)


def _rules_of(conditions: Mapping[str, LabelCondition]) -> tuple[LabelRule, ...]:
    if not isinstance(conditions, Mapping):
        raise TypeError(f"conditions are a dict by label, not {conditions!r}")
    return tuple(_rule_of(name, condition) for name, condition in _sorted(conditions.items()))


def _sorted(items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return sorted(items, key=lambda item: str(item[0]))


def _rule_of(name: str, condition: object) -> LabelRule:
    if not isinstance(condition, LabelCondition):
        kinds = "In(), NotIn(), Exists() or DoesNotExist()"
        raise TypeError(f"the condition for label {name!r} is {kinds}, not {condition!r}")
    return condition.rule(name)


def _node_id_of(node_id: object) -> bytes:
    if not isinstance(node_id, str):
        raise TypeError(f"the id of a node is a string, not {type(node_id).__name__}: {node_id!r}")
    try:
        found = bytes.fromhex(node_id)
    except ValueError:
        found = b""
    if len(found) != ID_BYTES or len(node_id) != 2 * ID_BYTES:
        raise ValueError(
            f"{node_id!r} is no id of a node: {2 * ID_BYTES} hexadecimal digits, as zray.nodes() shows them"
        )
    return found
