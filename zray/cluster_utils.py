"""``zray.cluster_utils``: clusters of several nodes on this machine, for tests. Ray's name for it."""

from typing import Any

from zray.api.local_cluster import ClusterNode
from zray.api.local_cluster import LocalCluster as Cluster
from zray.api.refused import absent

__all__ = ["Cluster", "ClusterNode"]


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
