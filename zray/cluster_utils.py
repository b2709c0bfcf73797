"""``zray.cluster_utils``: clusters of several nodes on this machine, for tests. Ray's name for it."""

from zray.api.local_cluster import Cluster, ClusterNode

__all__ = ["Cluster", "ClusterNode"]
