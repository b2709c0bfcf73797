"""``zray.util``: helpers on top of tasks and actors, under Ray's names."""

from zray.api.actor import list_named_actors
from zray.api.helpers import get_node_ip_address, inspect_serializability
from zray.util.actor_pool import ActorPool
from zray.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
from zray.util.iteration import as_completed, map_unordered
from zray.util.placement_group import (  # the function takes the place of the module, as in Ray
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from zray.util.serialization import deregister_serializer, register_serializer

_MODULES = (
    "accelerators",
    "actor_pool",
    "debug",
    "executor",
    "joblib",
    "metrics",
    "multiprocessing",
    "queue",
    "scheduling_strategies",
    "serialization",
    "state",
)


def __getattr__(name: str) -> object:
    """A submodule, imported when it is first asked for."""
    from importlib import import_module

    if name == "Executor":
        return import_module("zray.util.executor").Executor
    if name not in _MODULES:
        raise import_module("zray.api.refused").absent(__name__, name)
    return import_module(f"zray.util.{name}")


__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]
