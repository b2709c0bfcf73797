"""Small questions: where this node is, and what cannot be pickled."""

from __future__ import annotations

import socket
import sys
from typing import Any, TextIO

from zray.api.session import is_initialized
from zray.errors import SerializationError
from zray.serialize.values import dump


class FailureTuple:
    """What cannot be pickled: ``name`` is the way to it inside ``obj``, ``parent`` what that is called."""

    def __init__(self, obj: Any, name: str, parent: Any) -> None:
        self.obj = obj
        self.name = name
        self.parent = parent

    def __repr__(self) -> str:
        return f"FailureTuple({self.name})"


def get_node_ip_address() -> str:
    """The address at which other machines reach this one; ``127.0.0.1`` without a network."""
    if is_initialized():
        from zray.api.cluster import report, with_ray_keys

        own = with_ray_keys(report("node"))
        if own["NodeManagerPort"]:
            return str(own["NodeManagerAddress"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent; a way out is chosen (address of RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether a value can be passed to tasks; otherwise what is in the way, which is printed too.

    Args:
        base_obj: the value, or a function or class.
        name: what to call it.
        depth: taken for Ray's sake: the search goes as deep as it must.
        print_file: where to print; default: standard output.
    """
    name = name or str(getattr(base_obj, "__qualname__", type(base_obj).__name__))
    try:
        dump(base_obj, name)
    except SerializationError as error:
        print(error, file=print_file or sys.stdout)
        return False, {FailureTuple(base_obj, error.path, name)}
    print(f"{name} can be serialized", file=print_file or sys.stdout)
    return True, set()
