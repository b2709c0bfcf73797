"""A cluster of several real nodes on this machine, to test programs with: nodes come, leave and are killed.

The control store has processes of its own, so every node may die, the first one too; with several replicas
of each shard any of these processes may, as well. All processes end with the one that made the cluster, also
if that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from zray.api import session
from zray.api.local_control_store import LocalControlStore
from zray.config import Config
from zray.errors import ClusterUnavailableError
from zray.runtime import node_options, session_dir
from zray.runtime.joining import living_nodes
from zray.runtime.processes import end_process, wait_for_exit
from zray.runtime.spawning import Spawned, spawn

POLL_INTERVAL_S = 0.02
START_MARGIN_S = 10.0
"""How much longer a node may take to start than it waits for its control store."""


class ClusterNode:
    """One node of a :class:`LocalCluster`.

    Attributes:
        node_id: str, hex; of its life at the start: a node that begins anew has another one.
        pid: int, of its ``zray-node`` process.
    """

    def __init__(self, spawned: Spawned) -> None:
        self._first_address: str = spawned.ready["address"]
        self.node_id: str = spawned.ready["node_id"]
        self.pid = spawned.pid

    @property
    def address(self) -> str:
        """For drivers of this node: ``zray.init(address=node.address)``. One that began anew has another."""
        for found in session_dir.list_live():
            if found.info.processes[0].pid == self.pid and found.info.address:
                return found.info.address
        return self._first_address

    @property
    def unique_id(self) -> str:
        """Ray's name of :attr:`node_id`."""
        return self.node_id

    def alive(self) -> bool:
        """Whether its process runs."""
        return wait_for_exit(self.pid, 0.0) is None

    def __repr__(self) -> str:
        return f"ClusterNode(pid={self.pid}, address={self.address!r})"


class LocalCluster:
    """Nodes that share one control store, all on this machine; usable in ``with``, which ends them.

    Args:
        initialize_head: start a first node.
        connect: join it as a driver.
        head_node_args: what :meth:`add_node` takes, for the first node.
        gcs_shards: shards of the control store.
        gcs_replicas: processes of each shard; with 2 or more any one of them may die.
        global_schedulers: how many of the first shards have a global scheduler beside them; nodes go on with
            another if the process of theirs dies. Default: 2, or 1 on one shard.
        environment: more environment variables of all processes, such as ``ZRAY_NODE_DEATH_NS``.

    Raises:
        ValueError: for options without a node that they are for, or no shards.
        ClusterUnavailableError: if something does not start.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        *,
        gcs_shards: int = 1,
        gcs_replicas: int = 1,
        global_schedulers: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not initialize_head and (connect or head_node_args):
            raise ValueError("connect and head_node_args ask for initialize_head=True")
        self._config = Config.from_environment()
        self._environment = {**os.environ, **(environment or {})}
        self._session = session_dir.create("cluster")
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        self._control_store: LocalControlStore | None = None
        atexit.register(self.shutdown)
        try:
            self._control_store = LocalControlStore(
                self._session, self._environment, self._config, shards=gcs_shards, replicas=gcs_replicas,
                global_schedulers=global_schedulers,
            )  # fmt: skip
            self._control_store.open()
            if initialize_head:
                self.add_node(**dict(head_node_args or {}))
            if connect:
                self.connect()
        except BaseException:
            self.shutdown()
            raise

    @property
    def control_store(self) -> LocalControlStore:
        """The processes of the control store; they are there from the beginning."""
        assert self._control_store is not None
        return self._control_store

    @property
    def gcs_address(self) -> str:
        """Where the first shard of the control store is: what a node joins."""
        return self.control_store.endpoints[0]

    @property
    def address(self) -> str:
        """What a driver gives to ``zray.init(address=...)``: the first node that was added and is there.

        Raises:
            ClusterUnavailableError: if the cluster has no node.
        """
        for node in self.list_all_nodes():
            return node.address
        raise ClusterUnavailableError("the cluster has no node; add one with add_node()", 0.0)

    def list_all_nodes(self) -> list[ClusterNode]:
        """The nodes that were added and not removed, the first one first."""
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def connect(self, namespace: str | None = None) -> session.Context:
        """Join the first node as a driver."""
        return session.init(address=self.address, namespace=namespace)

    def add_node(
        self,
        wait: bool = True,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        resources: Mapping[str, float] | None = None,
        object_store_memory: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> ClusterNode:
        """Start one more node.

        Args:
            wait: until all nodes that were added are members of the cluster.
            num_cpus, num_gpus, resources, object_store_memory, labels: as in ``zray.init``.
        Raises:
            ClusterUnavailableError: if it does not start.
            ValueError, TypeError: for amounts that make no sense.
        """
        options = session.node_options_of(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            object_store_memory=object_store_memory,
            labels=labels,
        )
        options |= {"gcs": self.control_store.endpoints, "parent_pid": os.getpid(), "detached": True}
        timeout_s = self._config.init_timeout_ns / 1e9 + START_MARGIN_S
        command = node_options.command(options)
        node = ClusterNode(spawn(command, timeout_s, name="the node", environment=self._environment))
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        if wait:
            self.wait_for_nodes()
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node and wait for its end.

        Args:
            allow_graceful: ask it to end; otherwise it is killed, as by a failure.
        Raises:
            ValueError: if it is no node of this cluster.
        """
        if node is self.head_node:
            self.head_node = None
        elif node in self.worker_nodes:
            self.worker_nodes.remove(node)
        else:
            raise ValueError(f"{node} is no node of this cluster, or was removed before")
        first_signal = signal.SIGTERM if allow_graceful else signal.SIGKILL
        end_process(node.pid, self._patience_s, first_signal)

    def remaining_processes_alive(self) -> bool:
        """Whether every node that was not removed is alive."""
        return all(node.alive for node in self.list_all_nodes())

    def wait_for_nodes(self, timeout: float = 30.0) -> None:
        """Wait until the control store counts exactly the nodes that were added and not removed.

        Raises:
            ClusterUnavailableError: if that takes longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            expected = {node.pid for node in self.list_all_nodes() if node.alive()}
            found = {hello.pid for hello in living_nodes(self.gcs_address, self._config)}
            if found == expected:
                return
            if time.monotonic() > deadline:
                what = f"the cluster should have the nodes {sorted(expected)} and has {sorted(found)} (pids)"
                raise ClusterUnavailableError(what, timeout)
            time.sleep(POLL_INTERVAL_S)

    @property
    def _patience_s(self) -> float:
        """A node gives its workers, its disk and its links so long each, one after another."""
        return 3 * self._config.shutdown_timeout_ns / 1e9

    def shutdown(self) -> None:
        """End every process of the cluster; this process's connection to it first. Never fails twice."""
        atexit.unregister(self.shutdown)
        if session.is_connected_to([node.address for node in self.list_all_nodes()]):
            session.shutdown()
        nodes, self.head_node, self.worker_nodes = self.list_all_nodes(), None, []
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGTERM)  # all at once; each is waited for below
        for node in nodes:
            end_process(node.pid, self._patience_s, None)
        if self._control_store is not None:
            self._control_store.close()
        session_dir.remove(self._session.path)
        session_dir.sweep()  # what killed nodes left

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
