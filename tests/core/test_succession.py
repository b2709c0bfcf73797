"""Detached actors between a home and its successor, message by message: one real node, the others played."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.core.test_admission import HERE, OTHER, PEER
from tests.core.test_local_scheduler import DRIVER_ADDRESS, GLOBAL
from tests.core.test_node import NodeBench
from zray import ids
from zray.core import reports
from zray.core.machine import pump
from zray.ids import first_return_id
from zray.protocol import faults
from zray.protocol.actor_messages import (
    ActorAt,
    ActorRow,
    EndLife,
    PastKept,
    Posted,
    PostTaken,
    ToPast,
    WatchFrom,
    Will,
    WillVoid,
)
from zray.protocol.cluster import Claim, Grant, JobOver, Members, ObjectFound, ShareAcked, ShareUpdates, Taken
from zray.protocol.documents import decode_value, encode_value
from zray.protocol.local_messages import KillWorker, StartWorker
from zray.protocol.messages import (
    ACTOR,
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_PENDING,
    ACTOR_RESTARTING,
    INLINE,
    TABLE_ACTOR,
    Acked,
    Acquire,
    ActorState,
    Call,
    Create,
    Created,
    Describe,
    JobContext,
    KillActor,
    NodeHello,
    ObjectReady,
    Place,
    Recorded,
    RecordTasks,
    Seal,
    Submit,
    TableCas,
    TableDelete,
    TableGet,
    TablePut,
    TableReply,
    TableSubscribe,
    Value,
    WatchActor,
)
from zray.protocol.user_messages import (
    CheckpointFound,
    FindCheckpoint,
    Leaving,
    RecordCall,
    RepeatCall,
    SaveCheckpoint,
)
from zray.runtime.packages import uri_of

THEIRS = ids.task_id(b"q" * 8, 1)  # an actor that was made on another node
NAME = ("bank", "teller")


class TwoNodes(NodeBench):
    """A node with two peers, and a shard that keeps rows of actors; posts are numbered by the test."""

    def __init__(self, *, is_alone: bool = False) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.is_away = False  # the shard does not answer
        self.unanswered: list[Any] = []
        self.to_shard: list[Any] = []
        self.posts: list[tuple[bytes, Any]] = []
        self.numbers: dict[bytes, int] = {}
        self.epoch = 0
        super().__init__()
        if not is_alone:
            self.members(PEER, OTHER)

    def members(self, *peers: bytes) -> None:
        self.epoch += 1
        self.say(GLOBAL, Members(self.epoch, tuple((node, "") for node in (HERE, *peers))))

    def say(self, source: bytes, *messages: Any) -> None:
        assert not self.effects, f"effects that no test looked at: {self.effects}"
        batch, is_first = [(source, message) for message in messages], True
        while batch or is_first:
            is_first = False
            pump(self.node, batch, self.now_ns)
            self.node.check()
            effects, batch = list(self.node.out), []
            self.node.out.clear()
            for destination, message in effects:
                if destination == GLOBAL:
                    batch += [(GLOBAL, answer) for answer in self.answers(message)]
                elif isinstance(message, Posted):
                    self.posts.append((destination, message.message))
                elif not isinstance(message, PostTaken | JobOver) and destination != b"@runtime":
                    self.effects.append((destination, message))

    def answers(self, message: Any) -> list[Any]:
        """What the shard says at once."""
        if isinstance(message, ShareUpdates):
            return [ShareAcked(message.stream, message.sequence)]
        if isinstance(message, RecordTasks):
            return [Recorded(message.sequence)]
        if isinstance(message, TablePut):
            return [TableReply(message.token, True, message.value)]
        if isinstance(message, TableCas | TableGet) and message.table == TABLE_ACTOR:
            if self.is_away:
                self.unanswered.append(message)
                return []
            return [self.of_table(message)]
        if not isinstance(message, NodeHello):
            self.to_shard.append(message)
        return []

    def of_table(self, message: TableCas | TableGet) -> TableReply:
        current = self.rows.get(message.key)
        if isinstance(message, TableGet):
            return TableReply(message.token, current is not None, current)
        if current != message.expected:
            return TableReply(message.token, False, current)
        self.rows[message.key] = message.value
        return TableReply(message.token, True, message.value)

    def shard_answers(self) -> None:
        self.is_away = False
        unanswered, self.unanswered = self.unanswered, []
        self.say(GLOBAL, *[self.of_table(message) for message in unanswered])

    def post(self, source: bytes, *messages: Any) -> None:
        """Another node posts something."""
        for message in messages:
            self.numbers[source] = self.numbers.get(source, 0) + 1
            self.say(source, Posted(self.numbers[source], message))

    def posted(self, *kinds: type) -> list[tuple[bytes, Any]]:
        """What this node posted; what is not of these kinds is dropped."""
        posts, self.posts = self.posts, []
        return [post for post in posts if isinstance(post[1], kinds)]

    def row(self, actor_id: bytes) -> ActorRow:
        return decode_value(self.rows[actor_id], ActorRow)

    # --- an actor of this node ---------------------------------------------------------------------

    def make(self, **fields: Any) -> tuple[bytes, bytes]:
        """A detached actor whose constructor has just returned, and its worker."""
        known = {"detached": True, "actor_name": NAME, "max_restarts": -1, "records_calls": True}
        kind = self.describe(
            kind=ACTOR, demand=(), max_retries=0, checkpoint_interval=0, **{**known, **fields}
        )
        worker, actor_id = self.running(kind)
        self.done(worker, actor_id)
        self.take(ObjectReady)
        return worker, actor_id

    def made(self, **fields: Any) -> tuple[bytes, bytes, bytes]:
        """The same with a successor: the actor, its worker, its successor."""
        worker, actor_id = self.make(**fields)
        ((successor, _),) = self.posted(Will)
        self.post(successor, PastKept(actor_id, 0, first_return_id(actor_id)))
        self.all()
        return worker, actor_id, successor

    def state(self, actor_id: bytes) -> int:
        return self.node.actors.entries[actor_id].state.state

    # --- an actor of another node ------------------------------------------------------------------

    def will(self, actor_id: bytes = THEIRS, **fields: Any) -> Will:
        known = {"max_restarts": -1, "checkpoint_interval": 0, "records_calls": True, "actor_name": NAME}
        descriptor = Describe(
            b"d" * 16, b"f" * 16, "Teller", 1, (), 0, ACTOR, detached=True, **{**known, **fields}
        )
        spec = Submit(actor_id, b"", b"d" * 16, b"args") if descriptor.max_restarts else None
        return Will(actor_id, 0, descriptor, JobContext(actor_id, (), "", detached=True), b"code", spec)

    def their_row(self, state: int = ACTOR_ALIVE, successor: bytes = HERE, **more: Any) -> None:
        row = ActorRow(THEIRS, state, more.pop("home", PEER), successor=successor, detached=True, **more)
        self.rows[THEIRS] = encode_value(row)


@pytest.fixture
def bench() -> Iterator[TwoNodes]:
    made = TwoNodes()
    yield made
    assert not made.effects, f"effects that no test looked at: {made.effects}"


def call(number: int, *deps: bytes) -> RecordCall:
    task_id = ids.task_id(b"caller--", number)
    return RecordCall(Call(task_id, THEIRS, number, "add", 1, b"x", deps), (Value(INLINE, b"r"),))


# --- the home ------------------------------------------------------------------------------------------


def test_no_life_begins_before_the_deed_says_so(bench: TwoNodes) -> None:
    kind = bench.describe(kind=ACTOR, demand=(), max_retries=0, detached=True, actor_name=NAME)
    bench.is_away = True
    (actor_id,) = bench.submit(kind)
    assert bench.take(StartWorker) == []
    (report,) = json.loads(reports.report(bench.node, "actors"))
    assert report["waits_for"] == "the control store, which is to know of its next life first"
    bench.shard_answers()
    assert bench.row(actor_id) == ActorRow(actor_id, ACTOR_PENDING, HERE, name="f", detached=True)
    assert len(bench.take(StartWorker)) == 1


def test_it_is_shown_once_its_successor_has_everything_and_the_deed_names_it(bench: TwoNodes) -> None:
    _, actor_id = bench.make()
    bench.say_more(DRIVER_ADDRESS, WatchActor(actor_id))
    assert [state.state for _, state in bench.take(ActorState)] == [ACTOR_PENDING]
    bench.all()
    ((successor, will),) = bench.posted(Will)
    assert successor in (PEER, OTHER)
    assert (will.actor_id, will.descriptor.actor_name, will.context.detached) == (actor_id, NAME, True)
    assert will.spec.task_id == actor_id
    (report,) = json.loads(reports.report(bench.node, "actors"))
    assert "which is to have all that it takes to make it again" in report["waits_for"]
    bench.is_away = True
    bench.post(successor, PastKept(actor_id, 0, first_return_id(actor_id)))
    assert bench.take(ActorState) == []
    (report,) = json.loads(reports.report(bench.node, "actors"))
    assert report["waits_for"] == "the control store, which is to know its successor first"
    bench.shard_answers()
    (report,) = json.loads(reports.report(bench.node, "actors"))
    assert (report["successor"], report["waits_for"]) == (successor.hex(), "")
    assert bench.row(actor_id).successor == successor
    assert [state.state for _, state in bench.take(ActorState)] == [ACTOR_ALIVE]
    bench.all()


def test_what_it_records_counts_once_the_successor_has_it(bench: TwoNodes) -> None:
    worker, actor_id, successor = bench.made()
    said = call(1)
    bench.say(worker, said, Acquire((), 7))
    assert bench.posted(ToPast) == [(successor, ToPast(actor_id, 0, said))]
    assert bench.take(Acked) == []
    bench.post(successor, PastKept(actor_id, 0))
    assert bench.take(Acked) == [(worker, Acked(7))]
    bench.say(worker, Acquire((), 8))
    assert bench.take(Acked) == [(worker, Acked(8))]


def test_a_checkpoint_is_kept_here_until_the_successor_has_a_copy(bench: TwoNodes) -> None:
    worker, actor_id, successor = bench.made()
    first, second = (ids.put_id(b"checkpts", number) for number in (1, 2))
    for state in (first, second):
        bench.say(worker, Create(state, 2000))
        bench.take(Created)
        bench.say(worker, Seal(state), SaveCheckpoint(state))
    assert bench.posted(ToPast)[-1] == (successor, ToPast(actor_id, 0, SaveCheckpoint(second)))
    objects = bench.node.store.objects
    assert (objects[first].pins, objects[second].pins) == (1, 2)
    bench.post(successor, PastKept(actor_id, 0, first), PastKept(actor_id, 0, second))
    assert (objects[first].pins, objects[second].pins) == (0, 1)
    bench.all()


def test_another_successor_is_told_all_that_was_recorded(bench: TwoNodes) -> None:
    worker, actor_id, successor = bench.made()
    bench.say(worker, call(1), Acquire((), 7))
    bench.posted()
    other = OTHER if successor == PEER else PEER
    bench.members(other)
    told = bench.posted(Will, ToPast)
    assert [(node, type(message)) for node, message in told] == [(other, Will), (other, ToPast)]
    assert bench.take(Acked) == []
    bench.post(other, PastKept(actor_id, 0, first_return_id(actor_id)))
    assert bench.row(actor_id).successor == successor
    bench.post(other, PastKept(actor_id, 0))
    assert bench.row(actor_id).successor == other
    assert bench.take(Acked) == [(worker, Acked(7))]


def test_nobody_is_waited_for_when_nobody_is_left(bench: TwoNodes) -> None:
    worker, actor_id, _ = bench.made()
    bench.say(worker, call(1), Acquire((), 7))
    bench.members()
    assert bench.take(Acked) == [(worker, Acked(7))]
    assert bench.row(actor_id).successor == b""
    bench.members(b"q" * 16)
    assert [node for node, _ in bench.posted(Will)] == [b"q" * 16]


def test_an_actor_from_before_there_were_others_gets_a_successor(bench: TwoNodes) -> None:
    alone = TwoNodes(is_alone=True)
    worker, actor_id = alone.make()
    alone.say(worker, call(1), Acquire((), 7))
    assert alone.take(Acked) == [(worker, Acked(7))]
    assert (alone.row(actor_id).state, alone.row(actor_id).successor) == (ACTOR_ALIVE, b"")
    alone.members(PEER)
    told = alone.posted(Will, ToPast)
    assert [type(message) for _, message in told] == [Will, ToPast]
    alone.post(PEER, PastKept(actor_id, 0, first_return_id(actor_id)), PastKept(actor_id, 0))
    assert alone.row(actor_id).successor == PEER


def test_a_name_is_free_once_the_deed_says_that_it_is_dead(bench: TwoNodes) -> None:
    worker, actor_id, successor = bench.made()
    bench.to_shard.clear()
    bench.is_away = True
    bench.say(DRIVER_ADDRESS, KillActor(actor_id))
    assert bench.take(KillWorker)
    ((_, void),) = bench.posted(WillVoid)
    assert "zray.kill()" in str(faults.fault_error(void.cause.data))
    assert not [message for message in bench.to_shard if isinstance(message, TableDelete)]
    bench.shard_answers()
    assert bench.row(actor_id).state == ACTOR_DEAD
    assert [message for message in bench.to_shard if isinstance(message, TableDelete)]
    assert bench.posted(WillVoid) == [(successor, WillVoid(actor_id))]
    bench.exit(worker)
    bench.all()


def test_an_actor_that_its_creator_made_before_on_another_node_is_found_there(bench: TwoNodes) -> None:
    kind = bench.describe(kind=ACTOR, demand=(), max_retries=0, detached=True, actor_name=NAME)
    spec = bench.spec(kind)
    row = ActorRow(spec.task_id, ACTOR_ALIVE, OTHER, successor=PEER, detached=True)
    bench.rows[spec.task_id] = encode_value(row)
    bench.is_away = True
    bench.say(DRIVER_ADDRESS, spec, WatchActor(spec.task_id))
    bench.all()
    bench.shard_answers()
    assert spec.task_id not in bench.node.actors.entries
    assert bench.take(StartWorker) == []
    bench.all()
    question = next(message for message in bench.to_shard if isinstance(message, TableSubscribe))
    bench.say(GLOBAL, TableReply(question.token, True, encode_value(row)))
    assert bench.posted(WatchFrom) == [(OTHER, WatchFrom(spec.task_id))]
    bench.post(OTHER, ActorAt(spec.task_id, ACTOR_ALIVE, 0, PEER))
    assert bench.take(ActorState) == [(DRIVER_ADDRESS, ActorState(spec.task_id, ACTOR_ALIVE))]


# --- the successor ------------------------------------------------------------------------------------------


def test_a_successor_makes_it_again_from_what_it_was_told(bench: TwoNodes) -> None:
    bench.post(PEER, bench.will())
    assert bench.posted(PastKept) == [(PEER, PastKept(THEIRS, 0, first_return_id(THEIRS)))]
    state = ids.put_id(b"checkpts", 1)
    bench.post(PEER, ToPast(THEIRS, 0, call(1)), ToPast(THEIRS, 0, SaveCheckpoint(state)))
    bench.post(PEER, ToPast(THEIRS, 0, call(2)))
    assert [kept.object_id for _, kept in bench.posted(PastKept)] == [b"", b""]
    bench.say(GLOBAL, ObjectFound(state, Value(INLINE, b"saved")))
    assert bench.posted(PastKept) == [(PEER, PastKept(THEIRS, 0, state))]
    bench.their_row(host=PEER)
    bench.members(OTHER)
    assert [bench.row(THEIRS).home, bench.row(THEIRS).life, bench.row(THEIRS).state] == [
        HERE, 1, ACTOR_RESTARTING,
    ]  # fmt: skip
    worker = bench.add_worker()
    assert bench.runs() == [(worker, THEIRS, 1)]
    bench.say(worker, FindCheckpoint(5))
    repeats = [(repeat.call.sequence, repeat.covered) for _, repeat in bench.take(RepeatCall)]
    assert repeats == [(1, True), (2, False)]
    assert bench.take(CheckpointFound) == [(worker, CheckpointFound(5, state))]
    assert [node for node, _ in bench.posted(Will)] == [OTHER], "it has a successor of its own"


def test_a_successor_has_copies_of_arguments_and_packages(bench: TwoNodes) -> None:
    argument, other = (ids.put_id(b"elsewher", number) for number in (1, 3))
    package, uri = ids.package_id(b"files"), uri_of(b"files")
    will = bench.will(environment=f'{{"working_dir":"{uri}"}}')
    spec = replace(will.spec, deps=(argument,), borrowed=(package, other))
    bench.post(PEER, replace(will, spec=spec))
    assert bench.posted(PastKept) == []
    bench.say(GLOBAL, ObjectFound(argument, Value(INLINE, b"N.")))
    assert bench.posted(PastKept) == []
    bench.say(GLOBAL, ObjectFound(package, Value(INLINE, b"N.")))
    assert len(bench.posted(PastKept)) == 1
    pins = [bench.node.store.objects[object_id].pins for object_id in (argument, package, other)]
    assert pins == [1, 1, 1]


def test_a_successor_waits_until_the_deed_names_it_or_somebody_else(bench: TwoNodes) -> None:
    """What a dead home still wrote may come late."""
    bench.post(PEER, bench.will())
    bench.their_row(successor=OTHER)
    bench.members(OTHER)
    assert THEIRS in bench.node.cluster.actors.wills.wills
    bench.their_row(successor=HERE)
    bench.wait(1_000_000_000)
    assert bench.row(THEIRS).home == HERE
    assert bench.take(StartWorker)
    bench.all()


@pytest.mark.parametrize("row", [{"home": OTHER}, {"state": ACTOR_DEAD}])
def test_a_will_of_no_use_is_thrown_away(bench: TwoNodes, row: dict[str, Any]) -> None:
    bench.post(PEER, bench.will())
    bench.their_row(**row)
    before = dict(bench.rows)
    bench.members(OTHER)
    assert not bench.node.cluster.actors.wills.wills
    assert bench.rows == before
    assert bench.take(StartWorker) == []


def test_of_two_who_want_to_be_the_home_one_wins(bench: TwoNodes) -> None:
    bench.post(PEER, bench.will())
    bench.their_row()
    bench.is_away = True
    bench.members(OTHER)
    (read,) = [message for message in bench.unanswered if isinstance(message, TableGet)]
    bench.say(GLOBAL, bench.of_table(read))
    bench.their_row(home=OTHER)
    bench.shard_answers()
    assert bench.row(THEIRS).home == OTHER
    assert THEIRS not in bench.node.actors.entries
    assert not bench.node.cluster.actors.wills.wills


def test_one_that_may_not_be_made_again_is_over(bench: TwoNodes) -> None:
    bench.post(PEER, bench.will(max_restarts=0))
    bench.their_row(host=PEER)
    bench.members(OTHER)
    assert bench.row(THEIRS).state == ACTOR_DEAD
    assert "which was its home, died" in str(faults.fault_error(bench.row(THEIRS).cause.data))
    assert [message for message in bench.to_shard if isinstance(message, TableDelete)]


def test_one_that_its_home_had_killed_is_not_made_again(bench: TwoNodes) -> None:
    cause = faults.fault_value(faults.ACTOR_DIED, "x", "it was ended by zray.kill()")
    bench.post(PEER, bench.will(), WillVoid(THEIRS, cause))
    bench.their_row(host=PEER)
    bench.members(OTHER)
    assert (bench.row(THEIRS).state, bench.row(THEIRS).cause) == (ACTOR_DEAD, cause)


def test_who_is_no_successor_any_more_keeps_nothing(bench: TwoNodes) -> None:
    before = bench.objects
    bench.post(PEER, bench.will(), ToPast(THEIRS, 0, call(1)))
    bench.post(OTHER, WillVoid(THEIRS))
    assert bench.node.cluster.actors.wills.wills
    bench.post(PEER, WillVoid(THEIRS))
    assert not bench.node.cluster.actors.wills.wills
    assert not bench.node.scheduler.lives.checkpoints.pasts
    assert bench.objects == before or bench.node.cluster.sharing.shared
    bench.post(PEER, EndLife(THEIRS, 0))


def hosted(bench: TwoNodes, **fields: Any) -> bytes:
    """A life of the other node's actor that runs here, whose will is here as well; its worker."""
    will = bench.will(**fields)
    bench.say(GLOBAL, Place(Submit(THEIRS, b"", b"d" * 16, b"args"), will.descriptor, 1, origin=PEER))
    assert [claim for _, claim in bench.take(Claim)] == [Claim(THEIRS)]
    spec = Submit(THEIRS, b"", b"d" * 16, b"args")
    bench.say(PEER, will.context, will.descriptor, Grant(spec, 0, THEIRS, (), PEER, 1, 1))
    worker = bench.add_worker()
    assert bench.runs() == [(worker, THEIRS, 0)]
    bench.done(worker, THEIRS)
    bench.all()
    bench.say(PEER, Taken(THEIRS, 0))
    bench.post(PEER, will)
    assert bench.posted(PastKept) == [(PEER, PastKept(THEIRS, 0, first_return_id(THEIRS)))]
    return worker


@pytest.mark.parametrize("max_restarts", [0, -1])
def test_a_life_that_runs_at_the_successor_goes_on(bench: TwoNodes, max_restarts: int) -> None:
    worker = hosted(bench, max_restarts=max_restarts)
    bench.say(worker, call(1), Acquire((), 7))
    assert bench.posted(ToPast) == [(PEER, ToPast(THEIRS, 0, call(1)))]
    bench.their_row(host=HERE)
    bench.members(OTHER)
    assert bench.take(KillWorker) == []
    row = bench.row(THEIRS)
    assert (row.home, row.host, row.life, row.state) == (HERE, HERE, 0, ACTOR_ALIVE)
    told = [type(message) for _, message in bench.posted(Will, ToPast)]
    assert told == ([Will, ToPast] if max_restarts else [Will])
    assert bench.take(Acked) == [], "its next successor has not kept what it recorded"
    kept = [PastKept(THEIRS, 0, first_return_id(THEIRS)), PastKept(THEIRS, 0)]
    bench.post(OTHER, *kept[: len(told)])
    assert bench.row(THEIRS).successor == OTHER
    assert bench.take(Acked) == [(worker, Acked(7))]
    bench.say(DRIVER_ADDRESS, WatchActor(THEIRS))
    ((_, state),) = bench.take(ActorState)
    assert (state.state, bool(state.address)) == (ACTOR_ALIVE, True)
    bench.exit(worker)
    assert bench.row(THEIRS).state == (ACTOR_RESTARTING if max_restarts else ACTOR_DEAD)
    bench.all()


def test_a_life_whose_deed_names_another_home_ends(bench: TwoNodes) -> None:
    worker = hosted(bench)
    bench.their_row(host=HERE, home=OTHER)
    bench.members(OTHER)
    assert bench.take(KillWorker) == [(b"@worker-pool", KillWorker(worker))]
    bench.exit(worker)
    assert THEIRS not in bench.node.actors.entries
    bench.all()


def test_one_that_left_while_nobody_was_its_home_is_not_made_again(bench: TwoNodes) -> None:
    worker = hosted(bench)
    bench.their_row(host=HERE)
    bench.is_away = True
    bench.members(OTHER)
    bench.say(worker, Leaving("exit_actor()"))
    bench.exit(worker, exit_code=0)
    bench.shard_answers()
    assert bench.row(THEIRS).state == ACTOR_DEAD
    assert "exit_actor()" in str(faults.fault_error(bench.row(THEIRS).cause.data))
    bench.all()
