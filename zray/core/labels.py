"""Labels of nodes: what they may be, and which rules hold of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zray.protocol.strategies import ABSENT, NONE_OF, ONE_OF, PRESENT, LabelRule, Labels

LABELS_MAX = 64
"""Labels of one node; each report of the node has them all."""
NAME_CHARACTERS_MAX = 253
VALUE_CHARACTERS_MAX = 63

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")


def labels_from(labels: Mapping[str, str]) -> Labels:
    """What a user wrote, such as ``{"zone": "a"}``, as it travels.

    Raises:
        TypeError: if a name or value is not a string.
        ValueError: if one has other characters than letters, digits, ``-``, ``_``, ``.`` (and, in names,
            ``/``), does not begin and end with a letter or digit, is too long, or if there are too many.
    """
    if len(labels) > LABELS_MAX:
        raise ValueError(f"a node has at most {LABELS_MAX} labels, not {len(labels)}")
    for name, value in labels.items():
        check_name(name)
        check_value(name, value)
    return tuple(sorted(labels.items()))


def check_name(name: object) -> None:
    """Refuse what is no name of a label; see :func:`labels_from`."""
    if not isinstance(name, str):
        raise TypeError(f"names of labels are strings, not {type(name).__name__}: {name!r}")
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a label: letters, digits and - _ . / inside")


def check_value(name: str, value: object) -> None:
    """Refuse what no label can be; see :func:`labels_from`."""
    if not isinstance(value, str):
        raise TypeError(f"the value of label {name!r} is a string, not {type(value).__name__}: {value!r}")
    if len(value) > VALUE_CHARACTERS_MAX or not _VALUE.fullmatch(value):
        raise ValueError(f"label {name!r} cannot be {value!r}: letters, digits and - _ . inside")


def holds(rule: LabelRule, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels satisfies a rule."""
    value = labels.get(rule.name)
    if rule.kind == ONE_OF:
        return value in rule.values
    if rule.kind == NONE_OF:
        return value not in rule.values
    return (value is not None) == (rule.kind == PRESENT)


def all_hold(rules: Iterable[LabelRule], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels satisfies all of them."""
    return all(holds(rule, labels) for rule in rules)


def rule_text(rule: LabelRule) -> str:
    """A rule for people, such as ``zone in (a, b)``."""
    match rule.kind:
        case k if k == ONE_OF:
            return f"{rule.name} in ({', '.join(rule.values)})"
        case k if k == NONE_OF:
            return f"{rule.name} not in ({', '.join(rule.values)})"
        case k if k == PRESENT:
            return f"{rule.name} present"
        case _:
            return f"{rule.name} absent"


def unmet_text(rules: Iterable[LabelRule], labels: Mapping[str, str]) -> str:
    """Why a node does not satisfy rules, such as ``zone in (a, b): it is c``; empty if it does."""
    sentences = []
    for rule in rules:
        if not holds(rule, labels):
            value = labels.get(rule.name)
            has = "it has no such label" if value is None else f"it is {value!r}"
            sentences.append(f"{rule_text(rule)}: {has}")
    return ", ".join(sentences)


def problem_of_rules(rules: Iterable[LabelRule]) -> str:
    """A sentence, or nothing if they could be asked of nodes."""
    for rule in rules:
        if rule.kind not in (ONE_OF, NONE_OF, PRESENT, ABSENT):
            return f"there is no kind {rule.kind} of label rule"
    return ""
