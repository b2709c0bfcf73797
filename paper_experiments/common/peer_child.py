"""One system in a process of its own: ``python -m paper_experiments.common.peer_child SYSTEM``, and numbers.

Starts the system, then answers one line of JSON with one line of JSON: ``{"call": "module:function", "with":
{...}}`` calls the function with the system's API and these arguments, and ``{"value": ...}`` or ``{"error":
"..."}`` is the answer. The functions are the same for every system, so a ratio of two of them is about the
systems alone. Needs nothing of zray where the system is not zray.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

from paper_experiments.common import peer_nodes

OPENMPI = "openmpi"
NAP_S = 0.005
"""Between two looks for a request, where looking is all that a system can do."""


@contextlib.contextmanager
def zray_like(system: str, cpus: int, store_bytes: int, nodes: int) -> Iterator[Any]:
    """zray or Ray, started on this machine; its module.

    Args:
        cpus, store_bytes: of each node.
        nodes: of a cluster that :mod:`paper_experiments.common.peer_nodes` knows; 0: one that is no cluster.
    """
    api: Any = importlib.import_module(system)
    if system == "ray":
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    of_node = {"num_cpus": cpus, "object_store_memory": store_bytes}
    if nodes:
        with peer_nodes.started(system, nodes, of_node) as address:
            api.init(address=address, **_QUIET[system])
            try:
                yield api
            finally:
                api.shutdown()
        return
    local = {} if system == "ray" else {"address": "local"}
    dashboard = {"include_dashboard": False} if system == "ray" else {}
    api.init(**local, **of_node, **dashboard, **_QUIET[system])
    try:
        yield api
    finally:
        api.shutdown()


_QUIET: dict[str, dict[str, Any]] = {
    "zray": {},
    "ray": {"log_to_driver": False, "logging_level": logging.ERROR},
}


@contextlib.contextmanager
def openmpi() -> Iterator[Any]:
    """The communicator of all ranks."""
    yield importlib.import_module("mpi4py.MPI").COMM_WORLD


def answer(api: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What a request gives."""
    module, _, function = request["call"].partition(":")
    try:
        return {"value": getattr(importlib.import_module(module), function)(api, **request["with"])}
    except Exception:
        return {"error": traceback.format_exc()}


def serve(api: Any, requests: TextIO, answers: TextIO) -> None:
    """Until the requests end."""
    answers.write("{}\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(answer(api, json.loads(line))) + "\n")
        answers.flush()


def serve_together(api: Any, requests: TextIO, answers: TextIO) -> None:
    """The same for a system whose processes all take part: the first hears and answers for all."""
    is_first = api.Get_rank() == 0
    if is_first:
        answers.write("{}\n")
        answers.flush()
    while line := _heard_by_all(api, requests.readline() if is_first else None):
        found = answer(api, json.loads(line))
        if is_first:
            answers.write(json.dumps(found) + "\n")
            answers.flush()


def _heard_by_all(api: Any, line: str | None) -> str:
    """The first one's line. The others wait for it asleep.

    A rank that waits inside OpenMPI polls, which keeps a CPU busy on which other systems are measured.
    """
    everybody = api.Ibarrier()
    while not everybody.Test():
        time.sleep(NAP_S)
    heard: str = api.bcast(line)
    return heard


def main() -> None:
    """Answers go where the output went; what the system itself prints goes to the errors."""
    system, (cpus, store_bytes, nodes) = sys.argv[1], map(int, sys.argv[2:])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if system == OPENMPI:
        with openmpi() as api:
            serve_together(api, sys.stdin, answers)
        return
    with zray_like(system, cpus, store_bytes, nodes) as api:
        serve(api, sys.stdin, answers)


if __name__ == "__main__":
    main()
