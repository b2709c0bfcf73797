"""The control store of a cluster that begins with this node: its shards, one process for each replica.

Replicated shards have one process more, the master of their chains.

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
from typing import TYPE_CHECKING, NoReturn

import msgspec
from msgspec.structs import replace

from zray.errors import ClusterUnavailableError
from zray.ids import random_id
from zray.runtime.endpoints import ports_from
from zray.runtime.gcs_options import REPLICAS_MAX, SHARDS_MAX, GcsOptions
from zray.runtime.processes import end_process, watch_pid
from zray.runtime.session_dir import Session
from zray.runtime.spawning import launch, python_command
from zray.runtime.zygote import close_inherited_files

if TYPE_CHECKING:
    from zray.runtime.loop import Loop

log = logging.getLogger("zray.node")

_ENDING = (signal.SIGINT, signal.SIGTERM)
SHORT_LIFE_S = 1.0
SHORT_LIVES_MAX = 3
"""After so many short lives in a row a shard is given up: its log or its disk is at fault."""


class LocalShard:
    """One process: what it is, where it listens, its newest life, and when that was started."""

    __slots__ = ("endpoint", "lives", "name", "options", "pid", "short_lives", "started_s", "watch_fd")

    def __init__(self, name: str, options: GcsOptions) -> None:
        self.name = name
        self.endpoint = options.listen
        self.options = options
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
        replicas: of each; with several a chain master is started, too.
        log_level: of processes that are started later; a forked one has the node's.
        listen: where the first process listens, the others at the next ports; empty: in the session.
        global_schedulers: how many of the first shards have one beside them; ``None``: as ``Config`` says.
        memory_max: bytes of memory for the task rows of each shard.
        trace: the file of the node; each life of a shard that is not replicated has one beside it.

    Raises:
        ValueError: if it is to have more shards or replicas than a control store can.
    """

    def __init__(
        self, session: Session, count: int, replicas: int, log_level: str, trace: str | None = None,
        listen: str = "", global_schedulers: int | None = None, memory_max: int | None = None,
    ) -> None:  # fmt: skip
        if not (1 <= count <= SHARDS_MAX and 1 <= replicas <= REPLICAS_MAX):
            raise ValueError(
                f"a control store has 1 to {SHARDS_MAX} shards with 1 to {REPLICAS_MAX} replicas each, "
                f"not {count} with {replicas}"
            )
        self._session = session
        self._public = [each.split(",") for each in ports_from(listen, count, replicas)] if listen else []
        self._trace = trace
        self._count, self._replicas = count, replicas
        self._common = GcsOptions(
            shard_count=count,
            cluster_id=random_id(),
            parent_pid=os.getpid(),
            global_schedulers=global_schedulers,
            memory_max=memory_max,
            log_level=log_level,
        )
        self._loop: Loop | None = None
        if replicas == 1:
            self._shards = [self._single(number) for number in range(count)]
        else:
            self._shards = [self._master()]
            self._shards += [self._replica(n, r) for n in range(count) for r in range(replicas)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the shards listen, by number: all replicas of one, with commas between them."""
        found = [shard.endpoint for shard in self._shards if shard.endpoint != self._master_endpoint()]
        width = self._replicas
        return tuple(",".join(found[n * width : (n + 1) * width]) for n in range(self._count))

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self._session.socket_path(name)}"

    def _data(self, name: str) -> str:
        return os.path.join(self._session.path, f"{name}.log")

    def _single(self, number: int) -> LocalShard:
        name = f"gcs{number}"
        endpoint = self._public_endpoint(number, 0) or self._endpoint(name)
        options = replace(self._common, listen=endpoint, shard=number, data_dir=self._data(name))
        return LocalShard(f"shard {number} of the control store", options)

    def _public_endpoint(self, number: int, replica: int) -> str:
        return self._public[number][replica] if self._public else ""

    def _replica(self, number: int, replica: int) -> LocalShard:
        name = f"gcs{number}.{replica}"
        endpoint = self._public_endpoint(number, replica) or self._endpoint(name)
        options = replace(
            self._common, listen=endpoint, shard=number, data_dir=self._data(name),
            replica=replica, master=self._master_endpoint(),
        )  # fmt: skip
        return LocalShard(f"replica {replica} of shard {number} of the control store", options)

    def _master_endpoint(self) -> str:
        return self._endpoint("gcsmaster")

    def _master(self) -> LocalShard:
        options = replace(self._common, listen=self._master_endpoint(), master_of=self._replicas)
        return LocalShard("the master of the chains", options)

    def fork(self) -> None:
        """Start all of them; only while this process has a single thread."""
        for shard in self._shards:
            options = self._next_life(shard)
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

    def _next_life(self, shard: LocalShard) -> GcsOptions:
        """What the process that is started next is told."""
        shard.lives += 1
        if not self._trace or self._replicas > 1:
            return shard.options
        life = f"-{shard.lives}" if shard.lives > 1 else ""
        return replace(shard.options, trace=f"{self._trace}.{os.path.basename(shard.endpoint)}{life}")

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
        name = shard.name
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        shard.short_lives = shard.short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        if shard.short_lives >= SHORT_LIVES_MAX:
            log.error("%s %s again and is given up; tasks run on, without lineage", name, how)
            return
        log.warning("%s %s; it starts again from its log", name, how)
        try:
            document = msgspec.json.encode(self._next_life(shard)).decode()
            pid = launch(python_command("zray.services.gcs", "--options", document))
        except (ClusterUnavailableError, UnicodeEncodeError) as error:  # the latter: a path that is not UTF-8
            log.error("%s cannot be started again: %s", name, error)
            return
        self._note_start(shard, pid)
        self._watch(shard)


def _be_shard(options: GcsOptions) -> NoReturn:
    """In the forked child."""
    code = 1
    try:
        os.setsid()  # Ctrl-C at the node's terminal is for the node, which ends its shards last
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        close_inherited_files()
        from zray.services import gcs  # only here: the node need not wait for it

        code = gcs.serve(options)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
