"""``zray-gcs``: one shard of the global control store; the first ones also host a global scheduler each.

Only wiring: it recovers the shard from its log, serves it on one socket, and ends cleanly. What it decides
is in ``core/control_shard.py`` and ``core/global_scheduler.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from zray.config import Config
from zray.core import flushing_shard
from zray.core.beside_shard import has_scheduler, machines_beside
from zray.core.control_shard import ControlShard
from zray.core.machine import LOG, ROWS, RUNTIME, Address
from zray.core.placement import configured, placement_of
from zray.errors import ZrayError
from zray.ids import random_id
from zray.protocol.chain import ChainPosition, Command, Logged, RewriteLog, ShardOpened, ShardState
from zray.protocol.cluster import LinkLost, ToDirectory, ToScheduler
from zray.protocol.codec import batch_decoder, decode_for_gcs, encode_batch
from zray.protocol.messages import ToShard, Warn
from zray.runtime.endpoints import knock, shard_address
from zray.runtime.gcs_options import GcsOptions
from zray.runtime.link_watch import LinkWatch
from zray.runtime.loop import Loop
from zray.runtime.record_log import LogCorruptError, LogUnavailableError, RecordLog
from zray.runtime.transport import Decoder, Transport
from zray.services import rows

if TYPE_CHECKING:  # a shard that is not replicated or recorded need not load them
    from zray.core.chain import ChainReplica
    from zray.protocol.messages import TaskRecord
    from zray.runtime.row_file import RowFile
    from zray.runtime.trace import Recorder

log = logging.getLogger("zray.gcs")

SNAPSHOT_RECORD_MESSAGES = 64
"""Messages of a snapshot in one record of the log."""

_decode_record = msgspec.msgpack.Decoder(list[Logged]).decode


# --- the log -------------------------------------------------------------------------------------


class Journal:
    """The service behind ``LOG``: one record per turn, and a compaction when the log has grown."""

    def __init__(
        self, record_log: RecordLog, machine: ControlShard | ChainReplica, row_file: RowFile | None
    ) -> None:
        self._log = record_log
        self._machine = machine
        self._row_file = row_file

    def __call__(self, commands: list[Logged | RewriteLog]) -> None:
        """Write what one turn changed.

        Raises:
            LogWriteError: if it could not be written; the process must end, since the machine is ahead of
                its log and the replies of this turn must not leave.
        """
        if any(isinstance(command, RewriteLog) for command in commands):
            self.compact()  # with all that this turn changed
            return
        payload = encode_batch(commands)
        if len(payload) > self._log.record_bytes_max and len(commands) > 1:
            half = len(commands) // 2
            self(commands[:half])
            self(commands[half:])
            return
        self._log.append(payload)
        if self._log.wants_compaction:
            self.compact()

    def compact(self) -> None:
        """Write the state of the shard in the place of its history."""
        started_ns = time.monotonic_ns()
        if self._log.compact(snapshot_records(self._machine, self._row_file)):
            log.info("the compaction took %.1f ms", (time.monotonic_ns() - started_ns) / 1e6)


def snapshot_records(
    machine: ControlShard | ChainReplica, row_file: RowFile | None = None
) -> Iterator[bytes]:
    """The records of a new log that rebuilds ``machine``; its ``ShardState`` comes first."""
    flushed: Iterable[TaskRecord] = () if row_file is None else row_file.all_rows()
    messages: Iterator[Command | Logged] = machine.snapshot(flushed)
    while batch := list(islice(messages, SNAPSHOT_RECORD_MESSAGES)):
        yield encode_batch(batch)


def recover(
    record_log: RecordLog, options: GcsOptions, config: Config, row_file: RowFile | None = None
) -> ControlShard:
    """The shard that a log describes; a new one if the log is empty. Rows beyond its memory are flushed.

    Raises:
        LogUnavailableError: if the log belongs to another shard or cluster.
        LogCorruptError: if it is damaged, or of another version.
    """
    machine: ControlShard | None = None
    commands = 0
    for batch in records_of(record_log):
        if machine is None:
            cluster_id = check_owner(record_log, options, batch)
            machine = new_shard(replace(options, cluster_id=cluster_id), config)
        if any(isinstance(command.message, ChainPosition) for command in batch):
            raise LogUnavailableError(
                record_log.path, "this is the log of a replica; start it with --replica"
            )
        for command in batch:
            machine.replay(command.source, command.message)
        rows.settle(machine, row_file)
        commands += len(batch)
    if machine is None:
        machine = new_shard(options, config)
        record_log.append(next(snapshot_records(machine)))
        log.info("new log in %s", record_log.path)
    else:
        log.info(
            "recovered %d records (%d messages, %d bytes) from %s",
            machine.tasks.count + sum(len(table.entries) for table in machine.values.values()),
            commands, record_log.size_bytes, record_log.path,
        )  # fmt: skip
    return machine


def new_shard(options: GcsOptions, config: Config) -> ControlShard:
    """An empty shard."""
    cluster_id = options.cluster_id or random_id()
    return flushing_shard.new_shard(
        cluster_id=cluster_id, shard=options.shard, shard_count=options.shard_count, config=config
    )


def records_of(record_log: RecordLog) -> Iterator[list[Logged]]:
    """What each record of a log holds.

    Raises:
        LogCorruptError: if the log is damaged, or of another version.
    """
    for payload in record_log.replay():
        try:
            yield _decode_record(payload)
        except msgspec.DecodeError as error:
            detail = f"a record is not of this version of zray ({error})"
            raise LogCorruptError(record_log.path, 0, detail) from None


def check_owner(record_log: RecordLog, options: GcsOptions, first: Sequence[Logged]) -> bytes:
    """The cluster that the head of a log names, if the log is what was asked for.

    Raises:
        LogUnavailableError: if the log belongs to another shard or cluster.
        LogCorruptError: if it does not start like one.
    """
    head = first[0].message if first else None
    if not isinstance(head, ShardState):
        raise LogCorruptError(record_log.path, 0, "it does not start with the state of a shard")
    asked = options.shard, options.shard_count, options.cluster_id or head.cluster_id
    if asked != (head.shard, head.shard_count, head.cluster_id):
        raise LogUnavailableError(
            record_log.path,
            f"this is shard {head.shard}/{head.shard_count} of cluster {head.cluster_id.hex()}; "
            f"asked for shard {asked[0]}/{asked[1]} of cluster {asked[2].hex()}",
        )
    return head.cluster_id


# --- the process ---------------------------------------------------------------------------------


def serve(options: GcsOptions) -> int:
    """Run a shard in this process until a signal, or the end of the parent; returns the exit code.

    For the main thread of a process of its own: it installs handlers for SIGINT and SIGTERM.
    """
    try:
        config = configured(Config.from_environment())
        if options.global_schedulers is not None:
            config = config._replace(global_schedulers=options.global_schedulers)
        if options.memory_max is not None:
            config = config._replace(gcs_memory_max=options.memory_max)
        with contextlib.ExitStack() as stack:
            _serve(options, config, stack)
    except (ZrayError, OSError, ValueError) as error:
        log.critical("%s", error)
        return 1
    except KeyboardInterrupt:
        log.info("interrupted before it listened")
        return 0
    log.info("ended")
    return 0


def _serve(options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> None:
    if options.replica is not None or options.master_of:
        from zray.services import chains  # only here: most clusters have none

        loop = chains.listen(options, config, stack)
    else:
        loop = _open(options, config, stack)
    _end_on_signals(loop)
    if options.parent_pid is not None:
        _watch_parent(options.parent_pid, loop, stack)
    loop.run()


def _open(options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> Loop:
    """A shard that is not replicated, with its log read."""
    journal: Journal | None = None
    if options.trace is not None and config.gcs_memory_max:
        log.warning("a shard whose decisions are recorded keeps all task rows in memory")
        config = config._replace(gcs_memory_max=0)
    record_log = open_log(options, config, stack)
    row_file = open_rows(options, config, stack)
    if record_log is None:
        machine = new_shard(options, config)
    else:
        machine = recover(record_log, options, config, row_file)
        journal = Journal(record_log, machine, row_file)
        if record_log.wants_compaction:
            journal.compact()
    recorder = _recorder(options, config, machine, stack) if options.trace is not None else None
    loop = _listen(options, config, machine, journal, stack, recorder)
    if row_file is not None:
        loop.services[ROWS] = rows.service_of(row_file, loop)
    if journal is not None:
        loop.post(RUNTIME, ShardOpened())
    return loop


def open_log(options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> RecordLog | None:
    """The log that a shard was told to keep; ``None``: memory only. ``stack`` closes it.

    Raises:
        LogError: if it cannot be used.
    """
    opened: RecordLog
    if options.storage is not None:
        from zray.runtime.redis_log import RedisLog  # only here: most clusters have none

        name = f"{options.shard}" if options.replica is None else f"{options.shard}.{options.replica}"
        opened = RedisLog(options.storage, name, sync=options.sync, config=config)
    elif options.data_dir is not None:
        from zray.runtime.append_log import AppendLog

        opened = AppendLog(options.data_dir, sync=options.sync, compact_bytes=config.log_compact_bytes)
    else:
        return None
    stack.callback(opened.close)
    return opened


def open_rows(options: GcsOptions, config: Config, stack: contextlib.ExitStack) -> RowFile | None:
    """The file of flushed rows, if there is a limit of memory. ``stack`` closes it.

    Raises:
        RowFileError: if there can be none.
        ValueError: if the shard has no log to find its rows in again.
    """
    if not config.gcs_memory_max:
        return None
    if options.storage is None and options.data_dir is None:
        raise ValueError(rows.NO_LOG)
    row_file = rows.open_file(options.flush_dir or options.data_dir or "", config)
    stack.callback(row_file.close)
    return row_file


def _listen(
    options: GcsOptions,
    config: Config,
    machine: ControlShard,
    journal: Journal | None,
    stack: contextlib.ExitStack,
    recorder: Recorder | None,
) -> Loop:
    """A loop that serves the shard and what lives beside it."""
    decode = _decoder(options, config)
    address = shard_address(options.shard)
    machines: list[Any] = [machine]
    machines += machines_beside(machine, address, Random(config.scheduling_seed + options.shard))
    transport, endpoint = bind(options, address, decode, config, stack, watches=options.shard == 0)
    loop = Loop(machines, transport, {LOG: journal or forget, RUNTIME: tell_operator}, recorder)
    if transport.links is not None:
        watch_links(transport.links, loop)
    loop.services[address] = lambda messages: loop.post_all(address, messages)
    stack.callback(loop.close)
    log.info(
        "shard %d/%d of cluster %s listens on %s (%s)",
        options.shard, options.shard_count, machine.cluster_id.hex(), endpoint, durability(options),
    )  # fmt: skip
    return loop


def _decoder(options: GcsOptions, config: Config) -> Decoder:
    """What a shard, and what lives beside it, can be told."""
    if options.shard == 0:
        return decode_for_gcs
    if has_scheduler(options.shard, config):
        return batch_decoder(ToShard | ToDirectory | ToScheduler)
    return batch_decoder(ToShard | ToDirectory)


def _recorder(
    options: GcsOptions, config: Config, machine: ControlShard, stack: contextlib.ExitStack
) -> Recorder:
    """What writes the trace of the machines of :func:`_listen`; the shard starts as it was recovered."""
    from zray.protocol.trace import (
        DirectoryStart,
        GlobalStart,
        GroupsStart,
        MachineStart,
        MembershipStart,
        ShardStart,
        encode,
    )  # fmt: skip
    from zray.runtime.trace import Recorder

    restored = [(command.source, command.message) for command in machine.snapshot()]
    shard = ShardStart(machine.cluster_id, options.shard, options.shard_count, msgspec.Raw(encode(restored)))
    machines: list[MachineStart] = [shard, DirectoryStart()]
    if has_scheduler(options.shard, config):
        seed, returning = config.scheduling_seed + options.shard, machine.life > 0
        machines.append(GlobalStart(placement_of(config), seed, returning))
    if options.shard == 0:
        machines.append(MembershipStart(shard_address(options.shard)))
        machines.append(GroupsStart(shard_address(options.shard)))
    assert options.trace is not None
    recorder = Recorder(options.trace, machines, config)
    stack.callback(recorder.close)
    return recorder


def bind(
    options: GcsOptions, address: Address, decode: Decoder, config: Config, stack: contextlib.ExitStack,
    *, watches: bool = False,
) -> tuple[Transport, str]:  # fmt: skip
    """A socket that listens where it was told to, and where that is.

    Args:
        watches: whether it must notice lost links.
    Raises:
        OSError: if it cannot listen there.
    """
    _refuse_live_socket(options.listen)
    transport = Transport(address, decode, config)
    stack.callback(transport.close)
    if watches:
        transport.watch_links()
    return transport, transport.bind(options.listen)


def watch_links(links: LinkWatch, loop: Loop) -> None:
    """Tell the machines whose link is lost."""

    def look() -> None:
        for peer in links.lost():
            loop.post(RUNTIME, LinkLost(peer))

    loop.watch_fd(links.fileno(), look)


def durability(options: GcsOptions) -> str:
    """What a write survives, in a few words for the operator."""
    if options.storage is not None:
        return "log in a Redis server, " + ("synced to disk" if options.sync else "as durable as that is")
    if options.data_dir is None:
        return "memory only"
    return f"log in {options.data_dir}, " + ("synced to disk" if options.sync else "not synced")


def forget(commands: list[Logged | RewriteLog]) -> None:
    """The log of a shard without a data directory."""


def tell_operator(notices: list[Any]) -> None:
    """Write the notices of a machine into the log of the process."""
    for notice in notices:
        log.info("%s", notice.text if isinstance(notice, Warn) else notice)


def _refuse_live_socket(endpoint: str) -> None:
    """ZeroMQ takes an ipc path away from whoever listens there: ask first.

    Raises:
        OSError: if somebody does.
    """
    if not endpoint.startswith("ipc://"):
        return
    try:
        knock(endpoint)
    except OSError:
        return
    raise OSError(f"cannot listen on {endpoint}: another process does")


def _end_on_signals(loop: Loop) -> None:
    """SIGINT and SIGTERM stop the loop; later ones change nothing while the process cleans up."""
    both = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        for each in both:
            signal.signal(each, signal.SIG_IGN)
        loop.stop()

    for number in both:
        signal.signal(number, stop)


def _watch_parent(pid: int, loop: Loop, stack: contextlib.ExitStack) -> None:
    """Stop the loop once the process ``pid`` is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        log.info("process %d is gone already", pid)
        loop.stop()
        return
    except (AttributeError, OSError) as error:
        log.warning("process %d cannot be watched here (%s): stop this one by a signal", pid, error)
        return
    stack.callback(os.close, fd)

    def ended() -> None:
        log.info("process %d is gone", pid)
        loop.unwatch_fd(fd)
        loop.stop()

    loop.watch_fd(fd, ended)


# --- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The console command ``zray-gcs``; returns the exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    return serve(options)


def _parse(argv: Sequence[str]) -> GcsOptions:
    if len(argv) == 2 and argv[0] == "--options":
        return msgspec.json.decode(argv[1], type=GcsOptions)
    from zray.services.gcs_arguments import options_from  # argparse: one that a node starts need not load it

    return options_from(argv)


if __name__ == "__main__":
    sys.exit(main())
