"""What may be said about a task or an actor, checked at once: an unknown option is an error."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from zray import ids
from zray.api.groups import place_of
from zray.api.strategies import check_selector, check_strategy, strategy_of
from zray.core.resources import demand_from
from zray.protocol.codec import encode_batch
from zray.protocol.messages import ACTOR, TASK, Demand, Describe, InGroup
from zray.protocol.user_messages import DYNAMIC, STREAM, VALUES
from zray.runtime.actor_class import SAVE
from zray.runtime.environment import canonical
from zray.serialize.values import dump

CHECKPOINT_INTERVAL = 100
"""Calls between the checkpoints of an actor that can be saved and does not say how many."""
COMMON_DEFAULTS: dict[str, Any] = {
    "num_gpus": 0,
    "accelerator_type": None,
    "memory": 0,
    "resources": None,
    "name": None,
    "runtime_env": None,
    "_metadata": None,
    "scheduling_strategy": None,
    "label_selector": None,
}
TASK_DEFAULTS: dict[str, Any] = {
    **COMMON_DEFAULTS,
    "num_cpus": 1,
    "num_returns": None,
    "max_retries": 3,
    "retry_exceptions": False,
    "max_calls": None,
    "_generator_backpressure_num_objects": None,
    "_duration_s": None,
}
ACTOR_DEFAULTS: dict[str, Any] = {
    **COMMON_DEFAULTS,
    "num_cpus": 0,
    "namespace": None,
    "lifetime": None,
    "get_if_exists": False,
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_concurrency": None,
    "max_pending_calls": -1,
    "concurrency_groups": None,
    "checkpoint_interval": CHECKPOINT_INTERVAL,
}
METHOD_DEFAULTS: dict[str, Any] = {
    "num_returns": None,
    "concurrency_group": "",
    "max_task_retries": None,
    "_generator_backpressure_num_objects": None,
    "retry_exceptions": False,
}
CALL_DEFAULTS: dict[str, Any] = {**METHOD_DEFAULTS, "name": None}
del CALL_DEFAULTS["retry_exceptions"]
REFUSED = {
    "fallback_strategy": "name labels that are only wanted in NodeLabelSchedulingStrategy(soft=...)",
    "object_store_memory": "the store spills to disk; a task cannot reserve part of it",
    "placement_group": "give scheduling_strategy=PlacementGroupSchedulingStrategy(group, ...)",
    "placement_group_bundle_index": "give scheduling_strategy=PlacementGroupSchedulingStrategy(group, ...)",
    "placement_group_capture_child_tasks": "it is an argument of PlacementGroupSchedulingStrategy",
    "enable_task_events": "every task is recorded, in batches",
    "allow_out_of_order_execution": "calls of one caller start in their order",
    "tensor_transport": "values travel through the object store",
    "enable_tensor_transport": "values travel through the object store",
    "retry_exceptions": "of an actor's calls: @zray.method(max_task_retries=..., retry_exceptions=...)",
    "_actor_generator_backpressure_num_objects": "give the method _generator_backpressure_num_objects",
    "_num_objects_per_yield": "each item of a generator is one object",
    "_labels": "tasks have no labels",
}
"""Options of Ray that zray refuses, with the reason."""
ASYNC_CONCURRENCY = 1000
"""Calls at once of an actor with coroutine methods that does not say how many."""
RETRIES_MAX = 0x7FFF_FFFF

ACCELERATOR_PREFIX = "accelerator_type:"
"""In front of the name of an accelerator, it is a resource, of which a node that has such ones has 1."""
ACCELERATOR_AMOUNT = 0.001
"""Asked of it, so that it never runs out."""

_RESOURCE_OPTIONS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``defaults`` overridden by ``given``, checked.

    Raises:
        ValueError: for an option that does not exist, or a value out of range.
        TypeError: for a value of the wrong type.
    """
    unknown = [name for name in given if name not in defaults]
    if unknown:
        if unknown[0] in REFUSED:
            raise ValueError(f"zray refuses the option {unknown[0]!r}: {REFUSED[unknown[0]]}")
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
    if options["accelerator_type"]:
        wanted[ACCELERATOR_PREFIX + options["accelerator_type"]] = ACCELERATOR_AMOUNT
    return demand_from(wanted)


def max_calls_of(options: Mapping[str, Any]) -> int:
    """After how many tasks a worker ends; one with GPUs after the first, which gives their memory back."""
    if options["max_calls"] is None:
        return int(bool(options["num_gpus"]))
    return int(options["max_calls"])


def returns_of(num_returns: Any, is_generator: bool) -> tuple[int, int]:
    """``(number of return objects, kind)`` for ``num_returns``; ``None``: what the function is like."""
    if num_returns is None:
        num_returns = "streaming" if is_generator else 1
    if num_returns == "streaming":
        return 1, STREAM
    if num_returns == "dynamic":
        return 1, DYNAMIC
    return num_returns, VALUES


def is_generator(function: Any) -> bool:
    """Whether a function yields."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _with_id(descriptor: Describe) -> Describe:
    """The descriptor under the digest of its content."""
    return replace(descriptor, descriptor_id=ids.content_id(encode_batch([descriptor])))


def describe_task(
    function_id: bytes,
    name: str,
    options: Mapping[str, Any],
    *,
    is_generator: bool,
    environment: str,
    outer_group: InGroup | None = None,
) -> Describe:
    """The descriptor of a task; ``outer_group`` is that of the task that submits it.

    Raises:
        ValueError: if it does not fit its bundle of a placement group.
    """
    count, returns = returns_of(options["num_returns"], is_generator)
    retry = options["retry_exceptions"]
    demand, in_group = place_of(options["scheduling_strategy"], outer_group, demand_of(options))
    retry_on = b"" if isinstance(retry, bool) else dump(tuple(retry), "retry_exceptions").to_bytes()
    return _with_id(
        Describe(
            ids.NIL_ID,
            function_id,
            options["name"] or name,
            count,
            demand,
            options["max_retries"],
            TASK,
            bool(retry),
            retry_on=retry_on,
            returns=returns,
            unconsumed_max=options["_generator_backpressure_num_objects"] or 0,
            max_calls=max_calls_of(options),
            environment=environment,
            spread=options["scheduling_strategy"] == "SPREAD",
            strategy=strategy_of(options["scheduling_strategy"], options["label_selector"]),
            in_group=in_group,
        )
    )


def describe_actor(
    function_id: bytes,
    name: str,
    options: Mapping[str, Any],
    *,
    is_async: bool,
    environment: str,
    actor_name: tuple[str, str],
    handle: bytes,
    is_saved: bool = False,
    outer_group: InGroup | None = None,
) -> Describe:
    """The descriptor of an actor's creation task.

    Raises:
        ValueError: if it is to be saved and runs several calls at once: there is no state between them.
    """
    groups = options["concurrency_groups"] or {}
    concurrency = options["max_concurrency"] or (ASYNC_CONCURRENCY if is_async else 1)
    if is_saved and (is_async or groups or concurrency > 1):
        raise ValueError(
            f"actor class {name} has {SAVE}() and runs several calls at once; only an actor that runs its "
            "calls one after the other has a state between them that can be saved"
        )
    is_saved = is_saved and options["max_restarts"] != 0
    demand, in_group = place_of(options["scheduling_strategy"], outer_group, demand_of(options))
    return _with_id(
        Describe(
            ids.NIL_ID,
            function_id,
            name,
            1,
            demand,
            0,
            ACTOR,
            max_restarts=options["max_restarts"],
            max_concurrency=concurrency,
            concurrency_groups=tuple(sorted(groups.items())),
            actor_name=actor_name,
            handle=handle,
            detached=options["lifetime"] == "detached",
            environment=environment,
            checkpoint_interval=options["checkpoint_interval"] if is_saved else -1,
            records_calls=is_saved and options["max_task_retries"] not in (0, None),
            spread=options["scheduling_strategy"] == "SPREAD",
            strategy=strategy_of(options["scheduling_strategy"], options["label_selector"]),
            in_group=in_group,
        )
    )


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not 0 <= value <= ids.RETURNS_MAX:
        raise ValueError(f"{name} is between 0 and {ids.RETURNS_MAX}, not {value}")


def _check_returns(name: str, value: Any) -> None:
    if value is None or (isinstance(value, str) and value in ("dynamic", "streaming")):
        return
    if isinstance(value, str):
        raise TypeError(f"{name} is a number, 'dynamic' or 'streaming', not {value!r}")
    _check_count(name, value)


def _check_optional_count(name: str, value: Any) -> None:
    if value is not None:
        _check_count(name, value)
        if not value:
            raise ValueError(f"{name} is at least 1, or None")


def _check_retry_exceptions(name: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} is True, False or a list of exception classes, not {value!r}")
    for cls in value:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"{name} is a list of exception classes; this one has {cls!r}")


def _check_lifetime(name: str, value: Any) -> None:
    if value not in (None, "detached", "non_detached"):
        raise ValueError(f"{name} is 'detached', 'non_detached' or None, not {value!r}")


def _check_groups(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict of limits by group, not {value!r}")
    for group, limit in value.items():
        if not isinstance(group, str) or not group:
            raise TypeError(f"a concurrency group has a name, not {group!r}")
        _check_optional_count(f"the limit of group {group!r}", limit)


def _check_environment(name: str, value: Any) -> None:
    canonical(value)


def _check_metadata(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict, not {value!r}")


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


def _check_gpus(name: str, value: Any) -> None:
    """More is left to what all amounts are checked by."""
    if isinstance(value, float) and value > 1 and not value.is_integer():
        raise ValueError(f"{name} is a whole number, or a share of one GPU below 1, not {value}")


def _check_accelerator(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise TypeError(f"{name} is the name of one, such as 'A100', not {value!r}")


def _check_duration(name: str, value: Any) -> None:
    """How long a simulated task takes (``zray.simulate``)."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name} is not negative, and finite: {value}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "num_returns": _check_returns,
    "max_retries": _check_retries,
    "max_restarts": _check_retries,
    "max_task_retries": lambda name, value: None if value is None else _check_retries(name, value),
    "max_calls": lambda name, value: None if value is None else _check_count(name, value),
    "num_gpus": _check_gpus,
    "accelerator_type": _check_accelerator,
    "checkpoint_interval": _check_count,
    "max_concurrency": _check_optional_count,
    "max_pending_calls": _check_retries,
    "retry_exceptions": _check_retry_exceptions,
    "name": _check_name,
    "namespace": _check_name,
    "concurrency_group": _check_name,
    "concurrency_groups": _check_groups,
    "lifetime": _check_lifetime,
    "get_if_exists": _check_bool,
    "resources": _check_resources,
    "_duration_s": _check_duration,
    "runtime_env": _check_environment,
    "_metadata": _check_metadata,
    "scheduling_strategy": check_strategy,
    "label_selector": check_selector,
    "_generator_backpressure_num_objects": _check_optional_count,
}
