"""Writes down the public names of Ray Core, for ``test_ray_api.py``.

``python record_ray_api.py > ray_api.json``.
To be run where Ray is installed and zray need not be. A module with ``__all__`` has those names; of another
one its own classes and functions count.
"""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

MODULES = (
    "ray", "ray.actor", "ray.cluster_utils", "ray.dag", "ray.exceptions", "ray.remote_function",
    "ray.runtime_context", "ray.runtime_env", "ray.types", "ray.util", "ray.util.accelerators",
    "ray.util.debug", "ray.util.metrics", "ray.util.multiprocessing", "ray.util.placement_group",
    "ray.util.queue", "ray.util.scheduling_strategies", "ray.util.serialization", "ray.util.state",
)  # fmt: skip
CLASSES = (
    "ray.ObjectRef", "ray.ObjectRefGenerator", "ray.actor.ActorClass", "ray.actor.ActorMethod",
    "ray.cluster_utils.Cluster", "ray.dag.DAGNode", "ray.dag.InputNode", 
    "ray.exceptions.RayTaskError", "ray.remote_function.RemoteFunction",
    "ray.runtime_context.RuntimeContext", "ray.util.ActorPool", "ray.util.metrics.Counter",
    "ray.util.multiprocessing.Pool", "ray.util.placement_group.PlacementGroup", "ray.util.queue.Queue",
)  # fmt: skip
FUNCTIONS = ("cancel", "get", "get_actor", "init", "kill", "nodes", "put", "shutdown", "timeline", "wait")


def names_of(module: str) -> list[str]:
    """Public names. What a module merely imports for itself is none."""
    found: Any = importlib.import_module(module)
    if module == "ray":
        return sorted(name for name in found.__all__ if not name.startswith("_") or name == "__version__")
    if hasattr(found, "__all__"):
        return sorted(found.__all__)
    return sorted(
        name
        for name, value in vars(found).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and (
            getattr(value, "__module__", None) == module
            or (module, name) == ("ray.types", "ObjectRef")
            or module == "ray.util.state"
        )
    )


def members_of(path: str) -> list[str]:
    """Public methods and attributes of a class."""
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return sorted(name for name in dir(cls) if not name.startswith("_"))


def parameters_of(function: str) -> list[str]:
    """Names of the parameters of ``ray.function``."""
    found = inspect.signature(getattr(importlib.import_module("ray"), function)).parameters.values()
    return [each.name for each in found if each.kind is not inspect.Parameter.VAR_KEYWORD]


def main() -> None:
    """Print everything as JSON."""
    import ray
    import ray._common.ray_option_utils as options
    from ray.runtime_env import RuntimeEnv

    found = {
        "version": ray.__version__,
        **{f"module {module}": names_of(module) for module in MODULES},
        **{f"class {path}": members_of(path) for path in CLASSES},
        **{f"function {function}": parameters_of(function) for function in FUNCTIONS},
        "options of tasks": sorted(options.task_options),
        "options of actors": sorted(options.actor_options),
        "runtime_env": sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_")),
    }
    text = {key: " ".join(value) if isinstance(value, list) else value for key, value in found.items()}
    print(json.dumps(text, indent=1))


if __name__ == "__main__":
    main()
