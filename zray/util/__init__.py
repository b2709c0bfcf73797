"""``zray.util``: helpers on top of tasks and actors, under Ray's names."""

from zray.api.actor import list_named_actors
from zray.util.actor_pool import ActorPool
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
        raise AttributeError(f"module 'zray.util' has no attribute {name!r}")
    return import_module(f"zray.util.{name}")


__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_placement_group",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]
