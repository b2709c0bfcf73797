"""Pump a recorded process again and compare: same machines, same batches, same times, same effects.

A trace of this code must give equal digests to its end; a difference is a bug of determinism, of the
recorder, or a trace that somebody changed. With ``other_code`` a trace of other code may be replayed, to see
what a change of the machines makes different first. The protocol must be the same in any case, because the
messages could not be read.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec

from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.global_scheduler import GlobalScheduler
from zray.core.identity import NodeIdentity
from zray.core.machine import pump
from zray.core.membership import Membership
from zray.core.node import Node
from zray.core.object_directory import ObjectDirectory
from zray.core.placement_groups import PlacementGroups
from zray.ids import short
from zray.protocol import provenance
from zray.protocol.messages import PROTOCOL_VERSION
from zray.protocol.trace import (
    Booted,
    DirectoryStart,
    GlobalStart,
    GroupsStart,
    MachineStart,
    MembershipStart,
    NodeStart,
    Pumped,
    Record,
    ShardStart,
    TraceEnd,
    TraceError,
    TraceReader,
    TraceStart,
    batch_decoder_of,
    digest_of,
)

STORY_PUMPS = 6
EFFECTS_SHOWN = 12
TEXT_MAX = 160


class TraceVersionError(TraceError):
    """A trace was recorded by other code than this."""


class Difference(NamedTuple):
    """The first pump that did not give what was recorded."""

    pump: int
    machine: str
    now_ns: int
    detail: str
    story: tuple[str, ...]
    """The last pumps before it, what went in, and what came out this time."""


class Replayed(NamedTuple):
    """How far a replay went."""

    pumps: int
    messages: int
    effects: int
    torn_bytes: int
    ended: str
    """Why the recording ended; empty if its process was killed."""
    difference: Difference | None


def open_trace(path: str | Path) -> tuple[TraceStart, TraceReader, Iterator[Record]]:
    """A trace and its first record.

    Raises:
        TraceError: if it cannot be read, is none, or has no beginning; with the name of the file.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    try:
        reader = TraceReader(content)
        records = iter(reader)
        start = next(records, None)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    if not isinstance(start, TraceStart):
        raise TraceError(f"{path}: it does not say what was recorded; record the run again")
    if start.protocol != PROTOCOL_VERSION:
        raise TraceVersionError(
            f"{path}: recorded with protocol version {start.protocol} by zray {start.zray} (commit "
            f"{start.commit[:12]}); this is version {PROTOCOL_VERSION}: use that zray to replay it"
        )
    return start, reader, records


def check_code(start: TraceStart, path: str | Path) -> None:
    """Refuse a trace of other code.

    Raises:
        TraceVersionError: naming both.
    """
    ours = provenance.code_digest()
    if start.code != ours:
        raise TraceVersionError(
            f"{path}: recorded by code {start.code} (zray {start.zray}, commit {start.commit[:12]}), and "
            f"this is code {ours} (commit {provenance.commit()[:12]}): check that commit out, or pass "
            "--other-code to see what is different"
        )


def config_of(start: TraceStart) -> Config:
    """The settings of the recorded process; fields that are gone are left out, new ones are as usual."""
    return Config(**{name: value for name, value in start.config.items() if name in Config._fields})


class Machines:
    """The machines of a recorded process, made again.

    Args:
        start: the first record.
    """

    def __init__(self, start: TraceStart) -> None:
        config = config_of(start)
        self.machines: list[Any] = []
        for one in start.machines:
            machine = _machine_of(one, config, self.machines)
            self.machines.append(machine)
            if isinstance(one, ShardStart):  # before those beside it are made, which ask for its life
                pump(machine, batch_decoder_of(machine.HANDLERS)(one.restored), 0)
                machine.out.clear()
        self.names = [type(machine).__name__ for machine in self.machines]
        self._decoders: list[Callable[[msgspec.Raw], list[tuple[bytes, Any]]]] = [
            batch_decoder_of(machine.HANDLERS) for machine in self.machines
        ]

    def batch(self, record: Pumped) -> list[tuple[bytes, Any]]:
        """What went into a machine.

        Raises:
            TraceError: if that machine takes no such message.
        """
        try:
            return self._decoders[record.machine](record.batch)
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise TraceError(f"a pump cannot be read: {error}") from None

    def boot(self, record: Booted) -> None:
        """Introduce the node, as its process did."""
        node = self.machines[0]
        node.introduce()
        for _ in range(record.workers):
            node.pool.start(record.now_ns)


def _machine_of(start: MachineStart, config: Config, before: list[Any]) -> Any:
    """A machine; those of a control store follow their shard."""
    match start:
        case NodeStart():
            identity = NodeIdentity(
                node_id=start.node_id, arena_bytes=start.arena_bytes, incarnation=start.incarnation,
                pid=start.pid, host=start.host, endpoint=start.endpoint, arena_path=start.arena_path,
                spill_dir=start.spill_dir, labels=start.labels,
            )  # fmt: skip
            return Node(
                identity, total=start.total, shards=start.shards, config=config, replicas=start.replicas
            )
        case ShardStart():
            return ControlShard(
                cluster_id=start.cluster_id, shard=start.shard, shard_count=start.shard_count, config=config
            )
        case GlobalStart():
            return GlobalScheduler(
                config=config, policy=start.policy, random=Random(start.seed), returning=start.returning
            )
        case DirectoryStart():
            shard = before[0]
            return ObjectDirectory(config=config, record_of=shard.record_of)
        case MembershipStart():
            return Membership(store=start.store, life=lambda: before[0].life, config=config)
        case GroupsStart():
            return PlacementGroups(store=start.store, life=lambda: before[0].life, config=config)


def replay(path: str | Path, *, other_code: bool = False) -> Replayed:
    """Pump a trace again, up to its end or the first difference.

    Raises:
        TraceError: if the file cannot be used.
    """
    start, reader, records = open_trace(path)
    if not other_code:
        check_code(start, path)
    replaying = _Replaying(Machines(start))
    try:
        for record in records:
            if isinstance(record, TraceEnd):
                replaying.ended = record.reason
            elif isinstance(record, Booted):
                replaying.machines.boot(record)
            elif isinstance(record, Pumped) and not replaying.pump(record):
                break
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    return Replayed(
        replaying.pumps, replaying.messages, replaying.effects, reader.torn_bytes, replaying.ended,
        replaying.difference,
    )  # fmt: skip


class _Replaying:
    """A replay and its story."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.pumps = self.messages = self.effects = 0
        self.ended = ""
        self.difference: Difference | None = None
        self.story: deque[str] = deque(maxlen=STORY_PUMPS)

    def pump(self, record: Pumped) -> bool:
        """Pump once; whether the outbox is what it was."""
        machine = self._machine(record)
        batch = self.machines.batch(record)
        problem = ""
        try:
            pump(machine, batch, record.now_ns)
        except Exception as error:  # whatever a machine may raise at what it never got before
            problem = f"the machine raised {type(error).__name__}: {error}"
        effects = machine.out[:]
        machine.out.clear()
        if not problem and digest_of(effects) != record.digest:
            problem = f"{len(effects)} effects with another digest; {record.effects} were recorded"
        self.pumps += 1
        self.messages += len(batch)
        self.effects += len(effects)
        name = self.machines.names[record.machine]
        went_in = _kinds_of(batch) or "its tick"
        self.story.append(
            f"pump {self.pumps} of {name} at {record.now_ns}: {went_in} -> {_kinds_of(effects)}"
        )
        if problem:
            story = [*self.story, *_shown("in", batch), *_shown("out", effects)]
            self.difference = Difference(self.pumps, name, record.now_ns, problem, tuple(story))
        return not problem

    def _machine(self, record: Pumped) -> Any:
        machines = self.machines.machines
        if not 0 <= record.machine < len(machines):
            raise TraceError(f"it pumps machine {record.machine}, and there are {len(machines)}")
        return machines[record.machine]


def _kinds_of(messages: list[tuple[bytes, Any]]) -> str:
    counts = Counter(type(message).__name__ for _, message in messages)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _shown(way: str, messages: list[tuple[bytes, Any]]) -> list[str]:
    lines = []
    for peer, message in messages[:EFFECTS_SHOWN]:
        name = peer.decode() if peer.startswith(b"@") else short(peer)
        text = repr(message)
        lines.append(f"  {way} {name}: {text[:TEXT_MAX]}{'...' if len(text) > TEXT_MAX else ''}")
    if len(messages) > EFFECTS_SHOWN:
        lines.append(f"  {way} ... and {len(messages) - EFFECTS_SHOWN} more")
    return lines
