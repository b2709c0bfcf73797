"""zray: a decentralised, bottom-up task scheduler for Python, with the API of Ray Core.

The names are imported at their first use. So a command that only prints its help does not pay for sockets
and serialization, and ``zray.init()`` can start a node while this process still imports the rest.
"""

from zray._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zray import exceptions
    from zray.api.actor import ActorHandle, kill, method
    from zray.api.cluster import available_resources, cluster_resources, nodes
    from zray.api.objects import get, put, wait
    from zray.api.refs import ObjectRef
    from zray.api.remote import remote
    from zray.api.session import init, is_initialized, shutdown
    from zray.api.simulation import simulate

__all__ = [
    "ActorHandle",
    "ObjectRef",
    "__version__",
    "available_resources",
    "cluster_resources",
    "exceptions",
    "get",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "simulate",
    "wait",
]

_HOMES = {
    "actor": ("ActorHandle", "kill", "method"),
    "cluster": ("available_resources", "cluster_resources", "nodes"),
    "objects": ("get", "put", "wait"),
    "refs": ("ObjectRef",),
    "remote": ("remote",),
    "session": ("init", "is_initialized", "shutdown"),
    "simulation": ("simulate",),
}
_HOME_OF = {name: f"zray.api.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name, once: afterwards it is a plain attribute of the module."""
    from importlib import import_module

    if name == "exceptions":
        return import_module("zray.exceptions")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'zray' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
