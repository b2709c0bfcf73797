"""The control store of a ``LocalCluster``: processes that may be killed, and come back when they are told to.

One process for each shard; of a replicated one one for each replica, and the master of the chains. None of
them is started again by itself: who tests what their death does wants to say when they return.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping

from zray.config import Config
from zray.errors import ClusterUnavailableError
from zray.ids import random_id
from zray.runtime import session_dir
from zray.runtime.endpoints import knock
from zray.runtime.joining import members_of_chain
from zray.runtime.processes import end_process, wait_for_exit
from zray.runtime.spawning import launch, python_command

POLL_INTERVAL_S = 0.02
MASTER = "master"

Name = tuple[int, int] | str
"""Shard and replica, or :data:`MASTER`."""


class LocalControlStore:
    """Shards of a control store on this machine, and the master of their chains.

    Args:
        session: sockets and logs go there.
        environment: of all processes.
        shards, replicas: how many shards, and processes of each.
        global_schedulers: how many of the first shards have one beside them; ``None``: as ``Config`` says.
    Raises:
        ValueError: if one of them is not at least 1, or there are not so many shards.
    """

    def __init__(
        self,
        session: session_dir.Session,
        environment: Mapping[str, str],
        config: Config,
        *,
        shards: int = 1,
        replicas: int = 1,
        global_schedulers: int | None = None,
    ) -> None:
        if shards < 1 or replicas < 1:
            raise ValueError(f"a control store has at least 1 shard of 1 replica, not {shards} of {replicas}")
        if global_schedulers is not None and not 1 <= global_schedulers <= shards:
            raise ValueError(
                f"there are 1 to {shards} global schedulers on {shards} shards, not {global_schedulers}"
            )
        self._schedulers = (
            () if global_schedulers is None else ("--global-schedulers", str(global_schedulers))
        )
        self._session = session
        self._environment = environment
        self._config = config
        self._cluster_id = random_id().hex()
        self._pids: dict[Name, int] = {}
        self.shards, self.replicas = shards, replicas

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the shards listen, by number: all replicas of one, with commas between them."""
        return tuple(
            ",".join(self._endpoint((shard, replica)) for replica in range(self.replicas))
            for shard in range(self.shards)
        )

    def _names(self) -> Iterator[Name]:
        if self.replicas > 1:
            yield MASTER
        for shard in range(self.shards):
            for replica in range(self.replicas):
                yield shard, replica

    def _file(self, name: Name) -> str:
        if isinstance(name, str):
            return f"gcs{name}"
        shard, replica = name
        if self.replicas > 1:
            return f"gcs{shard}.{replica}"
        return f"gcs{shard}" if self.shards > 1 else "gcs"

    def _endpoint(self, name: Name) -> str:
        return f"ipc://{self._session.socket_path(self._file(name))}"

    def _options(self, name: Name) -> list[str]:
        if isinstance(name, str):
            return ["--shard", f"0/{self.shards}", "--master-of", str(self.replicas)]
        shard, replica = name
        options = ["--shard", f"{shard}/{self.shards}"]
        options += ["--data-dir", os.path.join(self._session.path, f"{self._file(name)}.log")]
        if self.replicas > 1:
            options += ["--replica", str(replica), "--master", self._endpoint(MASTER)]
        return options

    # --- processes ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Start all of them and wait until each listens.

        Raises:
            ClusterUnavailableError: if one does not.
        """
        for name in self._names():
            self._launch(name)
        for name in self._names():
            self._await(name)

    def start(self, shard: int = 0, replica: int = 0) -> None:
        """Start a process again that was killed; it finds its log, and joins its chain.

        Raises:
            ValueError: if there is no such process, or it runs.
            ClusterUnavailableError: if it does not start.
        """
        self._start(self._checked(shard, replica))

    def start_master(self) -> None:
        """The same of the master of the chains."""
        self._start(self._checked_master())

    def kill(self, shard: int = 0, replica: int = 0) -> None:
        """End a process as a failure does, and wait for its end; one that is gone already stays so.

        Raises:
            ValueError: if there is no such process.
        """
        self._kill(self._checked(shard, replica))

    def kill_master(self) -> None:
        """The same of the master of the chains."""
        self._kill(self._checked_master())

    def pid(self, shard: int = 0, replica: int = 0) -> int:
        """The process that serves a shard, as this replica of it; 0: it was killed."""
        return self._pids.get(self._checked(shard, replica), 0)

    def _checked(self, shard: int, replica: int) -> Name:
        if not (0 <= shard < self.shards and 0 <= replica < self.replicas):
            what = f"replica {replica} of shard {shard}"
            raise ValueError(f"there is no {what}: there are {self.shards} shards of {self.replicas}")
        return shard, replica

    def _checked_master(self) -> Name:
        if self.replicas == 1:
            raise ValueError("shards of one replica have no master")
        return MASTER

    def _start(self, name: Name) -> None:
        if name in self._pids:
            raise ValueError(f"{self._file(name)} runs already, as process {self._pids[name]}")
        self._launch(name)
        self._await(name)

    def _launch(self, name: Name) -> None:
        command = python_command(
            "zray.services.gcs", "--listen", self._endpoint(name), "--parent-pid", str(os.getpid()),
            "--log-level", "WARNING", "--cluster-id", self._cluster_id, *self._schedulers,
            *self._options(name),
        )  # fmt: skip
        self._pids[name] = launch(command, self._environment)
        self._session.add_process(self._pids[name])

    def _await(self, name: Name) -> None:
        """Wait until it listens, and not the process before it."""
        deadline = time.monotonic() + self._config.init_timeout_ns / 1e9
        while True:
            with contextlib.suppress(OSError):
                if knock(self._endpoint(name)) in (self._pids[name], 0):
                    return
            if time.monotonic() > deadline or wait_for_exit(self._pids[name], 0.0) is not None:
                what = (
                    f"{self._file(name)} of the control store does not start; its error is on standard error"
                )
                raise ClusterUnavailableError(what, self._config.init_timeout_ns / 1e9)
            time.sleep(POLL_INTERVAL_S)

    def _kill(self, name: Name) -> None:
        pid = self._pids.pop(name, 0)
        if pid:
            end_process(pid, self._patience_s, signal.SIGKILL)
            self._session.drop_process(pid)

    @property
    def _patience_s(self) -> float:
        return self._config.shutdown_timeout_ns / 1e9

    def close(self) -> None:
        """End all of them. May be called more than once."""
        pids, self._pids = self._pids, {}
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # all at once; each is waited for below
        for pid in pids.values():
            end_process(pid, self._patience_s, None)

    # --- chains ------------------------------------------------------------------------------------

    def members(self, shard: int = 0) -> list[int]:
        """The numbers of the replicas that are in the chain of a shard, the head first.

        Raises:
            ClusterUnavailableError: if none of them answers.
        """
        return members_of_chain(shard, self.endpoints[shard], self._config)

    def wait_for_chains(self, timeout: float = 30.0) -> None:
        """Wait until every replica that runs has a place in its chain.

        Raises:
            ClusterUnavailableError: if that takes longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        for shard in range(self.shards if self.replicas > 1 else 0):
            running = [replica for replica in range(self.replicas) if self.pid(shard, replica)]
            while sorted(found := self.members(shard)) != running:
                if time.monotonic() > deadline:
                    what = f"the chain of shard {shard} should have the replicas {running} and has {found}"
                    raise ClusterUnavailableError(what, timeout)
                time.sleep(POLL_INTERVAL_S)
