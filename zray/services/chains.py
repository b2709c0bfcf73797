"""``zray-gcs`` as one replica of a shard, or as the master of all chains.

Only wiring: what they decide is in ``core/chain.py`` and ``core/chain_master.py``. Of two replicas the one
with the lower address connects, since two sockets must not shadow each other's link; all connect to the
master.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from random import Random
from typing import TYPE_CHECKING, Any

from zray.config import Config
from zray.core.beside_shard import machines_beside
from zray.core.chain import ChainReplica
from zray.core.chain_master import ChainMaster
from zray.core.machine import LOG, ROWS, RUNTIME, Address
from zray.protocol.chain import Admit, ReplicaHello, ReplicaLost, ToMaster, ToReplica
from zray.protocol.cluster import ToDirectory, ToScheduler
from zray.protocol.codec import batch_decoder
from zray.protocol.group_messages import ToCoordinator
from zray.protocol.messages import ChainEpoch, ChainMember, Refused, Warn
from zray.runtime.endpoints import CHAIN_MASTER, replica_address
from zray.runtime.gcs_options import GcsOptions
from zray.runtime.loop import Loop
from zray.runtime.processes import watch_pid
from zray.runtime.transport import Transport
from zray.services import gcs, rows

if TYPE_CHECKING:
    from zray.runtime.row_file import RowFile

log = logging.getLogger("zray.gcs")


def listen(options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> Loop:
    """The loop of a replica or of a master, which listens already."""
    if options.master_of:
        return MasterProcess(options, config, stack).loop
    return ReplicaProcess(options, config, stack).loop


class ReplicaProcess:
    """One replica: its machine, its log and its links.

    Args:
        stack: closes, at the end, what is opened here.
    """

    def __init__(self, options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> None:
        assert options.replica is not None
        self.address = replica_address(options.shard, options.replica)
        decode = batch_decoder(ToReplica | ToDirectory | ToScheduler | ToCoordinator)
        watches = options.shard == 0  # the head decides who is alive
        self.transport, endpoint = gcs.bind(options, self.address, decode, config, stack, watches=watches)
        self.transport.connect(CHAIN_MASTER, options.master, may_drop=True)
        me = ChainMember(self.address, time.time_ns(), endpoint)
        random = Random(config.scheduling_seed + options.shard)
        self.replica = ChainReplica(
            gcs.new_shard(options, config), me=me, master=CHAIN_MASTER, config=config,
            beside=lambda shard: machines_beside(shard, self.address, random),
            host=socket.gethostname(), pid=os.getpid(),
        )  # fmt: skip
        row_file = gcs.open_rows(options, config, stack)
        journal = _open_log(options, config, self.replica, row_file, stack)
        services = {LOG: journal or gcs.forget, RUNTIME: self._note}
        self.loop = Loop([self.replica], self.transport, services)
        if row_file is not None:
            self.loop.services[ROWS] = rows.service_of(row_file, self.loop)
        if self.transport.links is not None:
            gcs.watch_links(self.transport.links, self.loop)
        self.loop.services[self.address] = lambda messages: self.loop.post_all(self.address, messages)
        stack.callback(self.loop.close)
        log.info(
            "replica %d of shard %d/%d listens on %s (%s)",
            options.replica, options.shard, options.shard_count, endpoint, gcs.durability(options),
        )  # fmt: skip

    def _note(self, messages: list[Any]) -> None:
        """What concerns this process: whom it must reach, and what its operator must know."""
        for message in messages:
            if isinstance(message, ChainEpoch):
                for member in message.members:
                    self._reach(member)
            elif isinstance(message, Admit):
                self._reach(message.joiner)
            elif isinstance(message, Refused):
                log.error("the master refuses this replica, which ends: %s", message.detail)
                self.loop.stop()
            elif isinstance(message, Warn):
                log.info("%s", message.text)

    def _reach(self, member: ChainMember) -> None:
        if member.address > self.address and member.endpoint:
            self.transport.connect(member.address, member.endpoint, may_drop=True)


def _open_log(
    options: GcsOptions, config: Config, replica: ChainReplica, row_file: RowFile | None,
    stack: contextlib.ExitStack,
) -> gcs.Journal | None:  # fmt: skip
    """Make the replica what its log says, and begin a new one from there."""
    record_log = gcs.open_log(options, config, stack)
    if record_log is None:
        return None
    is_first = True
    for logged in gcs.records_of(record_log):
        if is_first:
            gcs.check_owner(record_log, options, logged)
            is_first = False
        replica.restore(logged)
        rows.settle(replica.shard, row_file)
    journal = gcs.Journal(record_log, replica, row_file)
    journal.compact()
    return journal


class MasterProcess:
    """The master of all chains; it watches the replicas of this machine itself."""

    def __init__(self, options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> None:
        self.transport: Transport
        decode = batch_decoder(ToMaster)
        self.transport, endpoint = gcs.bind(options, CHAIN_MASTER, decode, config, stack)
        machine = ChainMaster(
            life=time.time_ns(), shard_count=options.shard_count, replicas=options.master_of, config=config
        )
        self.loop = Loop([machine], self.transport, {RUNTIME: self._note})
        stack.callback(self.loop.close)
        self.watched: dict[Address, int] = {}  # replica -> descriptor that tells the end of its process
        log.info("master of %d chains listens on %s", options.shard_count, endpoint)

    def _note(self, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, ReplicaHello):
                if message.host == socket.gethostname():
                    self._watch(message)
            elif isinstance(message, Warn):
                log.info("%s", message.text)

    def _watch(self, hello: ReplicaHello) -> None:
        """Hear of the end of a process of this machine at once, not after missed heartbeats."""
        self._unwatch(hello.address)
        lost = ReplicaLost(hello.address, hello.incarnation)
        try:
            fd = watch_pid(hello.pid)
        except (OSError, OverflowError):  # of another machine that has the name of this one, or gone
            return
        self.watched[hello.address] = fd

        def ended() -> None:
            self._unwatch(hello.address)
            self.loop.post(RUNTIME, lost)

        self.loop.watch_fd(fd, ended)

    def _unwatch(self, address: Address) -> None:
        fd = self.watched.pop(address, None)
        if fd is not None:
            self.loop.unwatch_fd(fd)
            os.close(fd)
