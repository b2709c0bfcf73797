"""What may be said about a task or an actor, checked at once: an unknown option is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from zray import ids
from zray.core.resources import demand_from
from zray.protocol.codec import encode_batch
from zray.protocol.messages import ACTOR, TASK, Demand, Describe

TASK_DEFAULTS: dict[str, Any] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "memory": 0,
    "resources": None,
    "num_returns": 1,
    "max_retries": 3,
    "retry_exceptions": False,
    "name": None,
    "_duration_s": None,
}
ACTOR_DEFAULTS: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "memory": 0, "resources": None}
METHOD_DEFAULTS: dict[str, Any] = {"num_returns": 1}
RETRIES_MAX = 0x7FFF_FFFF

_RESOURCE_OPTIONS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``defaults`` overridden by ``given``, checked.

    Raises:
        ValueError: for an option that does not exist, or a value out of range.
        TypeError: for a value of the wrong type.
    """
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise ValueError(f"{what} has no option {unknown[0]!r}; there are: {', '.join(sorted(defaults))}")
    options = {**defaults, **given}
    for name, value in given.items():
        check = _CHECKS.get(name)
        if check is not None:
            check(name, value)
    if "num_cpus" in options:
        demand_of(options)
    return options


def demand_of(options: Mapping[str, Any]) -> Demand:
    """The resources that options ask for."""
    wanted: dict[str, float] = {}
    for option, name in _RESOURCE_OPTIONS.items():
        if options[option] is not None:
            wanted[name] = options[option]
    for name, amount in (options["resources"] or {}).items():
        if name in ("CPU", "GPU"):
            raise ValueError(f"ask for {name} with num_{name.lower()}s, not inside resources")
        wanted[name] = amount
    return demand_from(wanted)


def describe(kind: int, function_id: bytes, name: str, options: Mapping[str, Any]) -> Describe:
    """The descriptor of a task or actor class; its id is the digest of its content."""
    fields = (
        function_id,
        name,
        options.get("num_returns", 1),
        demand_of(options),
        options.get("max_retries", 0),
        kind,
        bool(options.get("retry_exceptions", False)),
    )
    blank = Describe(ids.NIL_ID, *fields)
    return Describe(ids.content_id(encode_batch([blank])), *fields)


def describe_task(function_id: bytes, name: str, options: Mapping[str, Any]) -> Describe:
    """The descriptor of a task."""
    return describe(TASK, function_id, options["name"] or name, options)


def describe_actor(function_id: bytes, name: str, options: Mapping[str, Any]) -> Describe:
    """The descriptor of an actor's creation task."""
    return describe(ACTOR, function_id, name, options)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not 0 <= value <= ids.RETURNS_MAX:
        raise ValueError(f"{name} is between 0 and {ids.RETURNS_MAX}, not {value}")


def _check_retries(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not -1 <= value <= RETRIES_MAX:
        raise ValueError(f"{name} is -1 (without end), or between 0 and {RETRIES_MAX}, not {value}")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}")


def _check_name(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is a string, not {value!r}")


def _check_resources(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict of amounts by resource name, not {value!r}")


def _check_duration(name: str, value: Any) -> None:
    """How long a simulated task takes (``zray.simulate``)."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name} is not negative, and finite: {value}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "num_returns": _check_count,
    "max_retries": _check_retries,
    "retry_exceptions": _check_bool,
    "name": _check_name,
    "resources": _check_resources,
    "_duration_s": _check_duration,
}
