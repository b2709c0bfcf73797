"""The control store of a cluster that begins with this node: its shards, one process each.

They are forked before the node has a thread. One that dies is started again, from its log, as a program of
its own; meanwhile the node goes on and keeps what the shard has not confirmed. The one invariant: no shard
outlives its node, because each watches the node's pid.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from typing import NoReturn

from zray.errors import ClusterUnavailableError
from zray.ids import random_id
from zray.runtime.loop import Loop
from zray.runtime.processes import end_process, watch_pid
from zray.runtime.session_dir import Session
from zray.runtime.spawning import launch, python_command
from zray.runtime.zygote import close_inherited_files

log = logging.getLogger("zray.node")

_ENDING = (signal.SIGINT, signal.SIGTERM)
SHORT_LIFE_S = 1.0
SHORT_LIVES_MAX = 3
"""After so many short lives in a row a shard is given up: its log or its disk is at fault."""


class LocalShard:
    """One shard: where it listens, its newest process, and when that was started."""

    __slots__ = ("endpoint", "lives", "number", "pid", "short_lives", "started_s", "watch_fd")

    def __init__(self, number: int, endpoint: str) -> None:
        self.number = number
        self.endpoint = endpoint
        self.pid = 0
        self.lives = 0
        self.started_s = 0.0
        self.short_lives = 0
        self.watch_fd = -1


class LocalShards:
    """The shards of one node, for its loop's thread.

    Args:
        session: the node's; sockets and logs go there.
        count: how many shards.
        log_level: of processes that are started later; a forked one has the node's.
        trace: the file of the node; each life of a shard has one beside it.
    """

    def __init__(self, session: Session, count: int, log_level: str, trace: str | None = None) -> None:
        self._session = session
        self._trace = trace
        self._log_level = log_level
        self._loop: Loop | None = None
        self._cluster_id = random_id()
        self._shards = [
            LocalShard(number, f"ipc://{session.socket_path(f'gcs{number}')}") for number in range(count)
        ]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the shards listen, by number."""
        return tuple(shard.endpoint for shard in self._shards)

    def fork(self) -> None:
        """Start all of them; only while this process has a single thread."""
        for shard in self._shards:
            options = self._options(shard)
            # A signal that arrives before the child has forgotten the node's handlers waits until then.
            previous = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            pid = os.fork()
            if pid == 0:
                _be_shard(options)
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            self._note_start(shard, pid)

    def watch(self, loop: Loop) -> None:
        """From now on start again what dies."""
        self._loop = loop
        for shard in self._shards:
            self._watch(shard)

    def close(self, timeout_s: float) -> None:
        """End all of them."""
        for shard in self._shards:
            if shard.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(shard.pid, signal.SIGTERM)  # all at once; each is waited for below
        for shard in self._shards:
            self._unwatch(shard)
            if shard.pid:
                end_process(shard.pid, timeout_s, first_signal=None)

    def _options(self, shard: LocalShard) -> list[str]:
        """The command line of a shard."""
        shard.lives += 1
        life = f"-{shard.lives}" if shard.lives > 1 else ""
        recorded = ["--trace", f"{self._trace}.gcs{shard.number}{life}"] if self._trace else []
        return [
            *recorded,
            "--listen", shard.endpoint,
            "--shard", f"{shard.number}/{len(self._shards)}",
            "--data-dir", os.path.join(self._session.path, f"gcs{shard.number}.log"),
            "--cluster-id", self._cluster_id.hex(),
            "--parent-pid", str(os.getpid()),
            "--log-level", self._log_level,
        ]  # fmt: skip

    def _note_start(self, shard: LocalShard, pid: int) -> None:
        shard.pid = pid
        shard.started_s = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk, or a session that was cleaned away
            self._session.add_process(pid)

    def _watch(self, shard: LocalShard) -> None:
        assert self._loop is not None
        try:
            shard.watch_fd = watch_pid(shard.pid)
        except ProcessLookupError:
            self._ended(shard)
            return
        self._loop.watch_fd(shard.watch_fd, lambda: self._ended(shard))

    def _unwatch(self, shard: LocalShard) -> None:
        if self._loop is not None and shard.watch_fd >= 0:
            self._loop.unwatch_fd(shard.watch_fd)
            os.close(shard.watch_fd)
            shard.watch_fd = -1

    def _ended(self, shard: LocalShard) -> None:
        """Reap it and start the next one."""
        self._unwatch(shard)
        code = end_process(shard.pid, 0.0, first_signal=None)
        lived_s = time.monotonic() - shard.started_s
        with contextlib.suppress(OSError):
            self._session.drop_process(shard.pid)
        shard.pid = 0
        name = f"shard {shard.number} of the control store"
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        shard.short_lives = shard.short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        if shard.short_lives >= SHORT_LIVES_MAX:
            log.error("%s %s again and is given up; tasks run on, without lineage", name, how)
            return
        log.warning("%s %s; it starts again from its log", name, how)
        try:
            pid = launch(python_command("zray.services.gcs", *self._options(shard)))
        except ClusterUnavailableError as error:
            log.error("%s cannot be started again: %s", name, error)
            return
        self._note_start(shard, pid)
        self._watch(shard)


def _be_shard(arguments: list[str]) -> NoReturn:
    """In the forked child."""
    code = 1
    try:
        os.setsid()  # Ctrl-C at the node's terminal is for the node, which ends its shards last
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        close_inherited_files()
        from zray.services import gcs  # only here: the node need not wait for it

        code = gcs.main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
