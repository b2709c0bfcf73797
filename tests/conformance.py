"""The same tests on a cluster of one node and one shard, and on several small nodes and shards.

``pytest --nodes 3 --shards 2 FILES`` runs those tests of the files that use :func:`cluster` on that many: the
driver's node has what the test asks for, so that the test's own numbers hold, and the others have one CPU
each and take what it has no worker for. What a test says of one node only is marked ``one_node``, with the
reason.

``pytest --simulate FILES`` runs them in virtual time, in ``zray.simulate``: what that refuses by name is
skipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zray
from zray.cluster_utils import Cluster

STORE_BYTES = 256 << 20
EAGER = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
"""The second task of a kind that waits may go elsewhere."""
_JOB_OPTIONS = ("namespace", "runtime_env", "log_to_driver")


class _Size:
    """Of the clusters of this run; set by ``tests/conftest.py``."""

    nodes = 1
    shards = 1
    simulated = False
    wanted: dict[str, Any] | None = None  # of the module whose tests run, if in virtual time


def resize(nodes: int, shards: int) -> None:
    """Run on so many from now on."""
    _Size.nodes, _Size.shards = nodes, shards


def simulate() -> None:
    """Run in virtual time from now on."""
    _Size.simulated = True


@contextmanager
def virtual_time() -> Iterator[None]:
    """For one test, in a run with ``--simulate``: the cluster that its module wants, anew.

    So one that cannot end in virtual time does not spoil the next.
    """
    options = _Size.wanted
    if options is None:
        yield
        return
    resources = {"GPU": options.get("num_gpus", 0), **options.get("resources", {})}
    with (
        warnings.catch_warnings(),
        zray.simulate(
            cpus=options["num_cpus"],
            resources={name: amount for name, amount in resources.items() if amount},
            object_store_memory=options.get("object_store_memory", STORE_BYTES),
            namespace=options.get("namespace", "simulated"),
        ),
    ):
        warnings.filterwarnings("ignore", "[0-9]+ tasks? had not ended", RuntimeWarning)
        yield


def others() -> int:
    """How many nodes there are besides the driver's, each with one CPU."""
    return _Size.nodes - 1


@contextmanager
def cluster(**options: Any) -> Iterator[None]:
    """A cluster that this process is a driver of.

    Args:
        options: as ``zray.init`` takes them.
    """
    if _Size.simulated:
        _Size.wanted = options
        yield
        _Size.wanted = None
        return
    if _Size.nodes == 1 and _Size.shards == 1:
        with zray.init(**options):
            yield
        return
    job = {name: options.pop(name) for name in _JOB_OPTIONS if name in options}
    head = {"object_store_memory": STORE_BYTES, **options}
    with Cluster(True, head_node_args=head, environment=EAGER, gcs_shards=_Size.shards) as made:
        for _ in range(_Size.nodes - 1):
            made.add_node(wait=False, num_cpus=1, object_store_memory=STORE_BYTES)
        made.wait_for_nodes()
        with zray.init(made.address, **job):
            yield
