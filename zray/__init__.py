"""zray: a decentralised, bottom-up task scheduler for Python, with the API of Ray Core.

The names are imported at their first use. So a command that only prints its help does not pay for sockets
and serialization, and ``zray.init()`` can start a node while this process still imports the rest.
"""

from zray._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zray import actor, cloudpickle, dag, exceptions, runtime_context, runtime_env, util
    from zray.api.actor import ActorHandle, get_actor, kill, method
    from zray.api.cluster import available_resources, cluster_resources, nodes
    from zray.api.context import get_gpu_ids, get_runtime_context
    from zray.api.generators import DynamicObjectRefGenerator, ObjectRefGenerator
    from zray.api.inquiries import timeline
    from zray.api.objects import cancel, get, put, wait
    from zray.api.refs import ObjectID, ObjectRef
    from zray.api.remote import remote
    from zray.api.session import init, is_initialized, shutdown
    from zray.api.simulation import simulate

__all__ = [
    "ActorHandle",
    "DynamicObjectRefGenerator",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cloudpickle",
    "cluster_resources",
    "dag",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "runtime_context",
    "runtime_env",
    "shutdown",
    "simulate",
    "timeline",
    "util",
    "wait",
]

_HOMES = {
    "actor": ("ActorHandle", "get_actor", "kill", "method"),
    "cluster": ("available_resources", "cluster_resources", "nodes"),
    "context": ("get_gpu_ids", "get_runtime_context"),
    "generators": ("DynamicObjectRefGenerator", "ObjectRefGenerator"),
    "inquiries": ("timeline",),
    "objects": ("cancel", "get", "put", "wait"),
    "refs": ("ObjectID", "ObjectRef"),
    "remote": ("remote",),
    "session": ("init", "is_initialized", "shutdown"),
    "simulation": ("simulate",),
}
_HOME_OF = {name: f"zray.api.{home}" for home, names in _HOMES.items() for name in names}
_MODULES = ("actor", "cloudpickle", "dag", "exceptions", "runtime_context", "runtime_env", "util")


def __getattr__(name: str) -> object:
    """Import a public name, once: afterwards it is a plain attribute of the module."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"zray.{name}")
    if name not in _HOME_OF:
        raise import_module("zray.api.refused").absent("zray", name)
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
