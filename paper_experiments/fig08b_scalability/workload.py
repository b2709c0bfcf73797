"""Empty tasks by submitters on every node, nested as in the paper; for zray and Ray. No code of zray."""

from __future__ import annotations

import time
from typing import Any

from paper_experiments.common.peer_nodes import on_node

WINDOW = 500
_submitters: list[Any] = []


def nothing() -> None:
    """An empty task."""


class NodeSubmitter:
    """Submits tasks from its own node.

    Args:
        api: how, by name: zray or Ray.
    """

    def __init__(self, api: str) -> None:
        module: Any = __import__(api)
        self.api = module
        self.task = module.remote(nothing)

    def submit(self, tasks: int) -> int:
        """So many, in windows, each of them waited for."""
        for first in range(0, tasks, WINDOW):
            self.api.get([self.task.remote() for _ in range(min(WINDOW, tasks - first))])
        return tasks


def measure(api: Any, nodes: int, tasks: int) -> float:
    """Tasks per second of all nodes together; submitters stay for the next time."""
    if not _submitters:
        kind = api.remote(NodeSubmitter)
        _submitters.extend(
            kind.options(num_cpus=0, resources=on_node(number)).remote(api.__name__)
            for number in range(nodes)
        )
        api.get([submitter.submit.remote(WINDOW) for submitter in _submitters])
    started = time.perf_counter()
    ran = api.get([submitter.submit.remote(tasks) for submitter in _submitters])
    return float(sum(ran)) / (time.perf_counter() - started)
