"""``zray.cluster_utils``: clusters of several nodes on this machine, for tests. Ray's name for it."""

from zray.api.local_cluster import ClusterNode
from zray.api.local_cluster import LocalCluster as Cluster

__all__ = ["Cluster", "ClusterNode"]
