"""A shard that flushes against one that does not: the same words in the same order, only later.

The file answers when the test wants, in order, and refuses some writes. A shard dies with messages in line; a
follower is asked for copies of itself while some wait; a joiner is fed while rows come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.rows import ModelRowFile, settle
from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.flushing_shard import FlushingShard
from zray.core.machine import LOG, ROWS, RUNTIME, pump
from zray.core.tables import FLUSHED
from zray.protocol.chain import Command, Logged, ShardOpened
from zray.protocol.codec import encode_batch
from zray.protocol.flushing import FlushRows
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_TASK,
    TASK_FINISHED,
    TASK_PENDING,
    RecordTasks,
    ReleaseLineage,
    ShardWelcome,
    TableGet,
    TablePut,
    TableScan,
    TableSubscribe,
    TableUnsubscribe,
    TaskRecord,
)

RELEASED_MAX = 2
PLAIN = Config(released_records_max=RELEASED_MAX)
FLUSHING = PLAIN._replace(gcs_memory_max=1_400)
"""Room for two rows."""
decode_commands = msgspec.msgpack.Decoder(list[Logged]).decode

sources = st.sampled_from([b"a", b"b"])
task_ids = st.sampled_from([b"t%d" % number for number in range(10)])
records = st.builds(
    TaskRecord, task_ids, st.just(b"p"), st.just(b"d"), st.sampled_from([b"", b"x"]), st.just(()),
    st.just(b"n"), st.integers(0, 2), st.sampled_from([TASK_FINISHED, TASK_PENDING]), released=st.booleans(),
)  # fmt: skip
ROW = partial(
    TaskRecord, parent_id=b"p", descriptor_id=b"d", args=b"", deps=(), node_id=b"n", attempt=0, state=0
)
mutations = st.one_of(
    st.builds(RecordTasks, st.just(0), st.lists(records, min_size=1, max_size=3).map(tuple)),
    st.builds(ReleaseLineage, st.lists(task_ids, min_size=1, max_size=3).map(tuple)),
    st.builds(TablePut, st.just(1), st.just(TABLE_KV), st.sampled_from([b"k", b"l"]), st.binary(max_size=1)),
)
looks = st.one_of(
    st.builds(TableGet, st.integers(1, 99), st.just(TABLE_TASK), task_ids),
    st.builds(TableSubscribe, st.integers(1, 99), st.just(TABLE_TASK), task_ids),
    st.builds(TableUnsubscribe, st.just(TABLE_TASK), task_ids),
    st.builds(
        TableScan, st.integers(1, 99), st.just(TABLE_TASK), task_ids | st.just(b""), st.integers(-1, 9)
    ),
    st.builds(TableGet, st.integers(1, 99), st.just(TABLE_KV), st.sampled_from([b"k", b"l"])),
)


def empty(kind: type[ControlShard]) -> ControlShard:
    config = FLUSHING if kind is FlushingShard else PLAIN
    return kind(cluster_id=b"c" * 16, shard=0, shard_count=1, config=config)


class Side:
    """A shard and its file, which answers when it is told to."""

    def __init__(self, shard: ControlShard) -> None:
        self.shard = shard
        self.file = ModelRowFile()
        self.requests: deque[Any] = deque()
        self.said: list[tuple[bytes, Any]] = []
        self.log: list[Logged] = list(shard.snapshot())  # type: ignore[arg-type]

    def feed(self, source: bytes, message: Any, now_ns: int = 0) -> None:
        pump(self.shard, [(source, message)], now_ns)
        self.take_out()

    def replay(self, source: bytes, message: Any) -> None:
        self.shard.replay(source, message)
        self.shard.out.clear()
        self.log.append(Logged(source, message))
        self.shard.flush(0)
        self.take_out()

    def take_out(self) -> None:
        self.shard.check()
        for destination, message in self.shard.out:
            if destination == ROWS:
                self.requests.append(message)
            elif destination != RUNTIME and type(message) is not ShardWelcome:  # which comes by the clock
                self.said.append((destination, message))
                if destination == LOG:
                    self.log.append(message)
        self.shard.out.clear()

    def answer(self, *, fails: bool = False) -> None:
        """The file does the next thing."""
        request = self.requests.popleft()
        error = "no room" if fails and isinstance(request, FlushRows) else ""
        answer = self.file.carry_out(request, error)
        if answer is not None:
            self.feed(ROWS, answer, now_ns=10**12)

    def settle(self) -> None:
        while self.requests:
            self.answer()

    def tables(self) -> tuple[Any, ...]:
        shard = self.shard
        values = {number: dict(table.entries) for number, table in shard.values.items()}
        peers = {address: (peer.sequence, peer.seen) for address, peer in shard.peers.items()}
        return self.file.records_of(shard.tasks), list(shard.tasks.released), values, peers

    def rebuilt(self, kind: type[ControlShard], commands: list[Any]) -> Side:
        """A new shard from commands that went through the codec."""
        side = Side(empty(kind))
        for command in decode_commands(encode_batch(commands)):
            side.shard.replay(command.source, command.message)
            settle(side.shard, side.file)
        side.log = list(commands)
        return side


class FlushingAgainstPlain(RuleBasedStateMachine):
    """One that serves clients."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.flushing = Side(empty(ControlShard)), Side(empty(FlushingShard))
        self.sequences: dict[bytes, int] = {}

    def both(self, source: bytes, message: Any) -> None:
        self.plain.feed(source, message)
        self.flushing.feed(source, message)

    @rule(source=sources, message=mutations | looks)
    def say(self, source: bytes, message: Any) -> None:
        self.both(source, message)

    @rule(source=sources, batch=st.lists(records, min_size=1, max_size=3).map(tuple))
    def record(self, source: bytes, batch: tuple[TaskRecord, ...]) -> None:
        sequence = self.sequences[source] = self.sequences.get(source, 0) + 1
        self.both(source, RecordTasks(sequence, batch))

    @rule(source=sources)
    def leave(self, source: bytes) -> None:
        self.both(RUNTIME, ClientGone(source))
        self.sequences.pop(source, None)

    @precondition(lambda self: self.flushing.requests)
    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        self.flushing.answer(fails=fails)

    @rule()
    def settle(self) -> None:
        self.flushing.settle()
        assert self.flushing.said == self.plain.said
        assert self.flushing.tables() == self.plain.tables()
        assert not self.flushing.shard.line
        assert not self.flushing.shard.rows.at_hand

    @rule(task_id=task_ids)
    def look_beside(self, task_id: bytes) -> None:
        """What lives beside the shard looks a row up: at once, or with the next rows that are read."""
        self.flushing.settle()
        known = self.plain.shard.record_of(task_id)
        found = self.flushing.shard.record_of(task_id)
        self.flushing.take_out()
        if found is FLUSHED:
            [read] = [request for request in self.flushing.requests if hasattr(request, "task_ids")]
            assert self.flushing.file.carry_out(read).rows == (known,)
        else:
            assert found == known

    @rule(from_snapshot=st.booleans())
    def restart(self, from_snapshot: bool) -> None:
        """Die with all that waits in line; both begin anew from what is in the log."""
        side = self.flushing
        log = list(side.shard.snapshot(side.file.all_rows())) if from_snapshot else side.log
        self.plain, self.flushing = side.rebuilt(ControlShard, log), side.rebuilt(FlushingShard, log)
        assert self.flushing.tables() == self.plain.tables()
        self.both(RUNTIME, ShardOpened())
        self.sequences = {address: peer[0] for address, peer in self.plain.tables()[-1].items()}

    @invariant()
    def says_the_same(self) -> None:
        assert self.plain.said[: len(self.flushing.said)] == self.flushing.said


class FollowerAgainstPlain(RuleBasedStateMachine):
    """One that repeats what its head did, and is copied meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.follower = Side(empty(ControlShard)), Side(empty(FlushingShard))
        self.joiner: Side | None = None
        self.pieces: Iterator[Command | None] = iter(())
        self.since: list[Command] = []  # what the joiner is told after its state
        self.replay(b"a", RecordTasks(0, tuple(ROW(b"t%d" % number) for number in range(8))))
        self.follower.settle()

    @precondition(lambda self: self.joiner is not None)
    @rule()
    def leave(self) -> None:
        self.follower.shard.forget_joiner()
        self.joiner = None

    @rule(source=sources, message=mutations)
    def replay(self, source: bytes, message: Any) -> None:
        self.plain.replay(source, message)
        self.follower.replay(source, message)
        self.since.append(Command(source, message))
        assert not self.follower.said

    @precondition(lambda self: self.follower.requests)
    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        self.follower.answer(fails=fails)

    @rule()
    def restart(self) -> None:
        """A copy that is made at once has everything, also what waits in line."""
        side = self.follower
        log = list(side.shard.snapshot(side.file.all_rows()))
        assert side.rebuilt(ControlShard, log).tables() == self.plain.tables()

    @precondition(lambda self: self.joiner is None)
    @rule()
    def admit(self) -> None:
        self.pieces = self.follower.shard.state_for_joiner()
        self.joiner = Side(empty(FlushingShard))
        self.since.clear()

    @precondition(lambda self: self.joiner is not None)
    @rule(count=st.integers(1, 4))
    def feed_joiner(self, count: int) -> None:
        """Some more of the state; at its end what came since."""
        assert self.joiner is not None
        for _ in range(count):
            command = next(self.pieces, self)
            self.follower.shard.flush(0)
            self.follower.take_out()
            if command is self:
                self._is_complete(self.joiner)
                return
            if command is None:
                return
            assert isinstance(command, Command)
            self.joiner.replay(command.source, command.message)
            self.joiner.settle()

    def _is_complete(self, joiner: Side) -> None:
        for command in self.since:
            joiner.replay(command.source, command.message)
            joiner.settle()
        assert joiner.tables() == self.plain.tables()
        assert self.follower.shard.transfer is None
        self.joiner = None

    def teardown(self) -> None:
        self.follower.settle()
        assert self.follower.tables() == self.plain.tables()
        assert not self.follower.said


FlushingAgainstPlain.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
FollowerAgainstPlain.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestFlushingAgainstPlain = FlushingAgainstPlain.TestCase
TestFollowerAgainstPlain = FollowerAgainstPlain.TestCase
