"""The coordinator of placement groups and the bundles of nodes, message by message."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from tests.nonsense import invented, types_of
from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.identity import NodeIdentity
from zray.core.machine import LOG, RUNTIME, pump
from zray.core.node import Node
from zray.core.placement_groups import PlacementGroups
from zray.errors import RemoteProtocolError
from zray.protocol.chain import Logged, ShardOpened
from zray.protocol.cluster import Members, ToDirectory
from zray.protocol.codec import decode_for_gcs, encode_batch
from zray.protocol.group_messages import (
    PACK,
    STRICT_SPREAD,
    AskBundles,
    Bundle,
    BundlesHeld,
    BundlesListed,
    CreateGroup,
    EndGroups,
    GroupAnswer,
    GroupGone,
    GroupSpec,
    GroupWaits,
    HoldBundles,
    ListGroups,
    RemoveGroup,
    ToCoordinator,
)
from zray.protocol.messages import NodeReport, ToGcs

S = 1_000_000_000
STORE = b"gcs-0000"
CPU = (("CPU", 10_000),)
GROUP = b"g" * 16
JOB = b"j" * 16


def spec_of(bundles: int = 2, strategy: int = STRICT_SPREAD, **more: Any) -> GroupSpec:
    return GroupSpec(GROUP, (CPU,) * bundles, strategy, job_id=JOB, home=b"n0", **more)


class Control:
    """A coordinator beside its shard. Messages to nodes wait in ``sent``; the log survives ``crash``."""

    def __init__(self) -> None:
        self.log: list[Logged] = []
        self.now_ns = 0
        self.epoch = 0
        self.alive: list[bytes] = []
        self.open()

    def open(self) -> None:
        self.shard = ControlShard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=Config())
        pump(self.shard, [(one.source, one.message) for one in self.log], 0)
        self.shard.out.clear()
        self.groups = PlacementGroups(store=STORE, life=lambda: self.shard.life, config=Config())
        self.sent: list[tuple[bytes, Any]] = []
        self.turn([(RUNTIME, ShardOpened())])

    def turn(self, batch: list[tuple[bytes, Any]]) -> None:
        """Pump until nothing is left that the process says to itself."""
        while True:
            own = []
            for machine in (self.shard, self.groups):
                pump(machine, [pair for pair in batch if type(pair[1]) in machine.HANDLERS], self.now_ns)
                machine.check()
                for destination, message in machine.out:
                    if destination == LOG:
                        self.log.append(message)
                    elif destination == STORE:
                        own.append((STORE, message))
                    elif destination != RUNTIME:
                        self.sent.append((destination, message))
                machine.out.clear()
            if not own:
                return
            batch = own

    def members(self, *alive: bytes) -> None:
        self.alive = list(alive)
        self.epoch += 1
        epoch = (self.shard.life << 32) + self.epoch
        self.say(alive[0], Members(epoch, tuple((node, "") for node in alive)))

    def report(self, node: bytes, free: int = 10_000) -> None:
        total = (("CPU", 10_000),)
        self.say(node, NodeReport(node, 1, total, (("CPU", free),) if free else (), 0, 0, 0))

    def say(self, source: bytes, message: Any) -> None:
        self.turn([(source, message)])

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)
        self.turn([])

    def take(self, kind: type, node: bytes | None = None) -> list[Any]:
        """What was sent of a kind, once."""
        found = [pair for pair in self.sent if type(pair[1]) is kind and node in (None, pair[0])]
        self.sent = [pair for pair in self.sent if pair not in found]
        return [message for _, message in found]

    def held(self, node: bytes, ok: bool = True) -> HoldBundles:
        """A node answers the newest that it was told."""
        message: HoldBundles = self.take(HoldBundles, node)[-1]
        self.say(node, BundlesHeld(message.version, message.group_id, ok))
        return message

    def state(self) -> str:
        self.say(b"n0", ListGroups(99, GROUP))
        rows = msgspec.json.decode(self.take(GroupAnswer)[-1].body)
        return str(rows[0]["state"]) if rows else "unknown"


@pytest.fixture
def control() -> Control:
    """Two nodes of one CPU."""
    made = Control()
    made.members(b"n0", b"n1")
    for node in made.alive:
        made.say(node, BundlesListed(made.take(AskBundles, node)[-1].version, (), 0))
        made.report(node)
    return made


def flags(message: HoldBundles) -> list[tuple[int, bool]]:
    return [(bundle.index, bundle.committed) for bundle in message.bundles]


def create(control: Control, spec: GroupSpec | None = None) -> None:
    control.say(b"n0", CreateGroup(1, spec or spec_of()))
    assert control.take(GroupAnswer) == [GroupAnswer(1, True)]


def test_all_prepare_before_any_commits(control: Control) -> None:
    create(control)
    assert flags(control.held(b"n0")) == [(0, False)]
    assert control.take(HoldBundles, b"n0") == []
    assert control.state() == "PENDING"
    assert flags(control.held(b"n1")) == [(1, False)]
    assert [flags(control.held(node)) for node in (b"n0", b"n1")] == [[(0, True)], [(1, True)]]
    assert control.state() == "CREATED"


def test_one_refusal_calls_the_attempt_off(control: Control) -> None:
    create(control)
    control.held(b"n0")
    control.held(b"n1", ok=False)
    assert flags(control.held(b"n0")) == []
    assert control.state() == "PENDING"
    control.report(b"n1")
    control.report(b"n0")
    assert flags(control.held(b"n1")) == [(1, False)]


def test_a_node_that_dies_before_the_decision_leaves_nothing(control: Control) -> None:
    create(control)
    control.held(b"n0")
    control.members(b"n0")
    assert flags(control.held(b"n0")) == []
    assert not control.groups.wishes.wishes


def test_a_node_that_dies_later_is_replaced(control: Control) -> None:
    create(control)
    for node in (b"n0", b"n1", b"n0", b"n1"):
        control.held(node)
    control.members(b"n0", b"n2")
    assert control.state() == "RESCHEDULING"
    control.report(b"n2")
    assert flags(control.held(b"n2")) == [(1, False)]
    assert flags(control.held(b"n2")) == [(1, True)]
    assert control.take(HoldBundles, b"n0") == []
    assert control.state() == "CREATED"


def test_lost_words_are_said_again_and_late_answers_mean_nothing(control: Control) -> None:
    create(control)
    first = control.take(HoldBundles, b"n0")[-1]
    control.pass_s(1.1)
    second = control.take(HoldBundles, b"n0")[-1]
    assert second.bundles == first.bundles
    assert second.version > first.version
    control.held(b"n1")
    control.say(b"n0", BundlesHeld(first.version, GROUP, True))
    assert control.state() == "PENDING"
    control.say(b"n0", BundlesHeld(second.version, GROUP, True))
    control.say(b"n0", BundlesHeld(second.version, GROUP, True))
    assert control.state() == "CREATED"


@pytest.mark.parametrize("decided", [False, True])
def test_a_new_life_knows_what_was_decided(control: Control, decided: bool) -> None:
    create(control)
    control.held(b"n0")
    if decided:
        control.held(b"n1")
    control.open()
    control.members(b"n0", b"n1")
    assert control.state() == ("CREATED" if decided else "PENDING")
    version = control.take(AskBundles, b"n0")[-1].version
    told = control.take(HoldBundles, b"n0")
    control.say(b"n0", BundlesListed(version, (GROUP, b"x" * 16), version - 1))
    told += control.take(HoldBundles, b"n0")
    assert [message.group_id for message in told if not message.bundles] == (
        [b"x" * 16] if decided else [GROUP, b"x" * 16]
    )
    assert not decided or flags(told[0]) == [(0, True)]


def test_a_table_of_a_former_life_buries_nobody(control: Control) -> None:
    create(control)
    for node in (b"n0", b"n1", b"n0", b"n1"):
        control.held(node)
    control.open()
    control.say(b"n1", Members(control.epoch, ((b"n1", ""),)))
    control.members(b"n0", b"n1")
    assert control.state() == "CREATED"


def test_a_removed_group_is_gone_everywhere(control: Control) -> None:
    create(control)
    for node in (b"n0", b"n1", b"n0", b"n1"):
        control.held(node)
    control.say(b"n1", RemoveGroup(2, GROUP))
    assert control.take(GroupAnswer, b"n1") == [GroupAnswer(2, True)]
    assert [flags(control.held(node)) for node in (b"n0", b"n1")] == [[], []]
    assert control.take(GroupGone) == [GroupGone(GROUP)] * 2
    assert control.state() == "REMOVED"
    control.say(b"n1", RemoveGroup(3, GROUP))
    assert control.take(GroupAnswer, b"n1") == [GroupAnswer(3, True)]


@pytest.mark.parametrize("detached", [False, True])
def test_the_end_of_a_job_and_of_its_home(control: Control, detached: bool) -> None:
    create(control, spec_of(1, PACK, detached=detached))
    control.say(b"n0", EndGroups(2, JOB))
    assert control.take(GroupAnswer) == [GroupAnswer(2, True)]
    assert (control.state() == "REMOVED") != detached
    control.say(b"n0", CreateGroup(3, spec_of(1, PACK)))
    assert control.take(GroupAnswer)[-1].ok == detached  # known, or of a job that is over


def test_a_dead_home_takes_its_groups_along(control: Control) -> None:
    create(control, spec_of(1, PACK))
    control.members(b"n1")
    assert not control.groups.book.groups


def test_names_are_unique_in_their_namespace(control: Control) -> None:
    create(control, spec_of(1, PACK, name="a", namespace="s"))
    other = GroupSpec(b"h" * 16, (CPU,), PACK, "s", "a", job_id=JOB, home=b"n0")
    control.say(b"n0", CreateGroup(2, other))
    [answer] = control.take(GroupAnswer)
    assert not answer.ok
    assert "is taken" in answer.detail


def test_nonsense_is_answered(control: Control) -> None:
    control.say(b"n0", CreateGroup(2, GroupSpec(GROUP, ((),), PACK, home=b"n0")))
    assert control.take(GroupAnswer) == [GroupAnswer(2, False, detail="a bundle asks for nothing")]


def test_what_no_cluster_like_this_can_hold_is_told_once(control: Control) -> None:
    create(control, spec_of(3))
    for _ in range(5):
        control.pass_s(1.1)
        for node in control.alive:
            control.report(node)
    [told] = control.take(GroupWaits, b"n0")
    assert "3 bundles ask for as many different nodes" in told.text


@pytest.mark.parametrize("seed", range(20))
def test_no_nonsense_breaks_an_invariant(control: Control, seed: int) -> None:
    dice = random.Random(seed)
    types = types_of(ToGcs | ToDirectory | ToCoordinator)
    create(control)
    for _ in range(200):
        with suppress(RemoteProtocolError, UnicodeEncodeError):
            batch = decode_for_gcs(encode_batch([invented(dice, dice.choice(types))]))
            source = dice.choice((b"n0", b"n1", b"stranger"))
            pump(control.groups, [(source, m) for m in batch if type(m) in control.groups.HANDLERS], S)
            control.groups.check()


# --- the node's side -----------------------------------------------------------------------------


@pytest.fixture
def node() -> Node:
    identity = NodeIdentity(node_id=b"n" * 16, arena_bytes=1 << 20)
    return Node(identity, total=(("CPU", 20_000),), shards=(STORE,), config=Config())


def tell(node: Node, version: int, *bundles: Bundle, source: bytes = STORE) -> list[BundlesHeld]:
    pump(node, [(source, HoldBundles(version, GROUP, bundles))], version)
    node.check()
    answers = [message for _, message in node.out if type(message) is BundlesHeld]
    node.out.clear()
    return answers


def test_a_prepared_bundle_is_for_nobody(node: Node) -> None:
    assert tell(node, 1, Bundle(0, CPU, False)) == [BundlesHeld(1, GROUP, True)]
    assert node.pool.resources.free == {"CPU": 10_000}
    assert tell(node, 2, Bundle(0, CPU, True)) == [BundlesHeld(2, GROUP, True)]
    assert node.pool.resources.free[f"CPU_group_0_{GROUP.hex()}"] == 10_000
    assert tell(node, 3) == [BundlesHeld(3, GROUP, True)]
    assert node.pool.resources.free == node.pool.resources.total == {"CPU": 20_000}


def test_what_does_not_fit_is_refused_whole(node: Node) -> None:
    many = [Bundle(index, CPU, False) for index in range(3)]
    assert tell(node, 1, *many) == [BundlesHeld(1, GROUP, False)]
    assert node.pool.resources.free == {"CPU": 20_000}
    assert tell(node, 2, *many[:2]) == [BundlesHeld(2, GROUP, True)]
    assert tell(node, 3, *many) == [BundlesHeld(3, GROUP, False)]
    assert node.pool.resources.free == {"CPU": 0}


def test_old_versions_and_strangers_change_nothing(node: Node) -> None:
    assert tell(node, 5, Bundle(0, CPU, True))
    assert tell(node, 5) == []
    assert tell(node, 4) == []
    assert tell(node, 9, source=b"stranger") == []
    assert node.groups.bundles.held
