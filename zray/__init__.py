"""zray: a decentralised, bottom-up task scheduler for Python, with the API of Ray Core."""

from zray import exceptions
from zray.api.actor import ActorHandle, kill, method
from zray.api.cluster import available_resources, cluster_resources, nodes
from zray.api.objects import get, put, wait
from zray.api.refs import ObjectRef
from zray.api.remote import remote
from zray.api.session import init, is_initialized, shutdown

__version__ = "0.1.0.dev0"

__all__ = [
    "ActorHandle",
    "ObjectRef",
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
    "wait",
]
