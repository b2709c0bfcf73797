"""A node and two global schedulers: what becomes of its forwards when one of them is lost or comes back."""

from __future__ import annotations

from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core import reports
from zray.core.global_scheduler import GlobalScheduler
from zray.core.guests import Guests
from zray.core.identity import NodeIdentity
from zray.core.machine import RUNTIME, pump
from zray.core.node import Node
from zray.core.resources import demand_from
from zray.errors import TaskUnschedulableError
from zray.protocol import faults
from zray.protocol.cluster import Claim, Deny, LinkLost, Members, Offload
from zray.protocol.messages import (
    DRIVER,
    PROTOCOL_VERSION,
    TASK,
    Describe,
    Forward,
    Hello,
    Infeasible,
    NodeHello,
    NodeReport,
    ObjectReady,
    Place,
    Refused,
    ShardWelcome,
    Submit,
    Warn,
    Withdraw,
)

S, BEAT_NS = 1_000_000_000, 50_000_000
SHARDS = (b"gcs-0000", b"gcs-0001")
DRIVER_ADDRESS, JOB = b"driver", b"j" * 8 + bytes(8)
NODE, B, C = (letter * 16 for letter in (b"n", b"b", b"c"))
GPU = demand_from({"GPU": 1})


class Duo:
    """A node of two CPUs, and two global schedulers that are up; what goes to others is kept in ``told``."""

    def __init__(self, **settings: Any) -> None:
        self.config = Config(**settings)
        identity = NodeIdentity(node_id=NODE, arena_bytes=1 << 20)
        self.node = Node(identity, total=demand_from({"CPU": 2}), shards=SHARDS, config=self.config)
        self.schedulers = {shard: GlobalScheduler(config=self.config) for shard in SHARDS}
        self.cut: list[bytes] = []  # schedulers that hear nothing and are not heard
        self.now_ns = 0
        self.told: list[tuple[bytes, Any]] = []
        self.counter = 0
        self.node.introduce()
        self.settle()
        self.say(DRIVER_ADDRESS, Hello(PROTOCOL_VERSION, DRIVER, 1, JOB))
        self.say(SHARDS[0], Members(1, ((NODE, ""), (B, ""), (C, ""))))
        self.told.clear()

    @property
    def current(self) -> bytes:
        return self.node.schedulers.address

    @property
    def other(self) -> bytes:
        return SHARDS[1 - SHARDS.index(self.current)]

    def say(self, source: bytes, *messages: Any) -> None:
        """Say something to the node, and let all words that follow arrive."""
        pump(self.node, [(source, message) for message in messages], self.now_ns)
        self.node.check()
        self.settle()

    def settle(self) -> None:
        """Deliver what the three have for each other."""
        while self.node.out:
            out, self.node.out[:] = list(self.node.out), []
            for address, message in out:
                machine = self.schedulers.get(address)
                if machine is None or address in self.cut or type(message) not in machine.HANDLERS:
                    self.told.append((address, message))
                else:
                    self.feed(address, NODE, message)

    def feed(self, shard: bytes, source: bytes, *messages: Any) -> None:
        """Say something to a scheduler, or let time pass for it, and the node hears what it says."""
        machine = self.schedulers[shard]
        pump(machine, [(source, message) for message in messages], self.now_ns)
        machine.check()
        out, machine.out[:] = list(machine.out), []
        heard = [message for address, message in out if address == NODE and shard not in self.cut]
        self.told += [effect for effect in out if effect[0] != NODE]
        if heard:
            pump(self.node, [(shard, message) for message in heard], self.now_ns)
            self.node.check()

    def pass_time(self, duration_ns: int) -> None:
        """Beats of the node and of the schedulers that can be heard."""
        until_ns = self.now_ns + duration_ns
        while self.now_ns < until_ns:
            self.now_ns = min(until_ns, self.now_ns + BEAT_NS)
            for shard in SHARDS:
                if shard not in self.cut:
                    self.feed(shard, RUNTIME)
            self.say(RUNTIME)

    def lose(self, shard: bytes) -> None:
        """A scheduler's process is gone, and its link with it."""
        self.cut.append(shard)
        self.say(RUNTIME, LinkLost(shard))

    def begin_anew(self, shard: bytes) -> None:
        """It is there again, in a new life that knows nothing."""
        self.cut.remove(shard)
        self.schedulers[shard] = GlobalScheduler(config=self.config)
        self.say(shard, ShardWelcome(PROTOCOL_VERSION, b"c" * 16, SHARDS.index(shard), len(SHARDS)))

    def submit(self, **fields: Any) -> bytes:
        """One task that this node can never run."""
        self.counter += 1
        kind = Describe(b"d" * 16, b"f" * 16, "learn", 1, GPU, 3, TASK)
        task_id = ids.task_id(ids.child_prefix(JOB), self.counter)
        self.say(DRIVER_ADDRESS, kind, Submit(task_id, JOB, kind.descriptor_id, b"", ()))
        return task_id

    def take(self, kind: type) -> list[tuple[bytes, Any]]:
        found = [effect for effect in self.told if isinstance(effect[1], kind)]
        self.told = [effect for effect in self.told if not isinstance(effect[1], kind)]
        return found

    def warnings(self) -> int:
        """Of the driver."""
        return sum(address == DRIVER_ADDRESS for address, _ in self.take(Warn))

    def node_with_gpu(self, node_id: bytes, *shards: bytes) -> None:
        """A node reports to these schedulers that it has what is missing."""
        for shard in shards:
            self.feed(shard, node_id, NodeReport(node_id, 1, GPU, GPU, 0, 0, 0))


def test_every_scheduler_knows_the_load_and_one_has_the_task() -> None:
    duo = Duo()
    task_id = duo.submit()
    assert [list(machine.nodes) for machine in duo.schedulers.values()] == [[NODE], [NODE]]
    assert list(duo.schedulers[duo.current].parked) == [task_id]
    assert not duo.schedulers[duo.other].parked


def test_what_waits_goes_to_another_one_at_once_and_its_driver_is_told_once() -> None:
    duo = Duo()
    first, second = duo.current, duo.other
    task_id = duo.submit()
    duo.pass_time(2 * S)
    assert duo.warnings() == 1
    duo.lose(first)
    assert (duo.current, list(duo.schedulers[second].parked)) == (second, [task_id])
    assert (first, Withdraw(task_id)) in duo.told, "it may live, and be heard again"
    duo.pass_time(5 * S)
    assert duo.warnings() == 0
    duo.node_with_gpu(B, second)
    assert [address for address, _ in duo.take(Place)] == [B]


def test_a_scheduler_without_an_answer_is_left_after_its_patience() -> None:
    duo = Duo()
    first, second = duo.current, duo.other
    duo.cut.append(first)
    duo.submit()
    duo.pass_time(S)
    assert duo.current == first
    duo.pass_time(S)
    assert duo.current == second
    assert len(duo.schedulers[second].parked) == 1


def test_the_preferred_one_gets_its_nodes_back_and_the_other_forgets_their_tasks() -> None:
    duo = Duo()
    first, second = duo.current, duo.other
    task_id = duo.submit()
    duo.lose(first)
    duo.begin_anew(first)
    duo.pass_time(S // 2)
    assert duo.current == second, "it has not heard of all nodes yet"
    duo.pass_time(S)
    assert duo.current == first
    assert [list(duo.schedulers[shard].parked) for shard in (first, second)] == [[task_id], []]


def test_the_grace_of_a_task_that_nobody_can_run_goes_on_with_the_next_scheduler() -> None:
    duo = Duo(unschedulable_after_ns=6 * S)
    task_id = duo.submit()
    duo.pass_time(4 * S)
    duo.lose(duo.current)
    duo.pass_time(S)
    assert not duo.take(ObjectReady)
    duo.pass_time(S + 2 * BEAT_NS)
    [(address, ready)] = duo.take(ObjectReady)
    assert (address, ready.object_id) == (DRIVER_ADDRESS, ids.first_return_id(task_id))
    assert isinstance(faults.fault_error(ready.value.data), TaskUnschedulableError)
    assert not duo.schedulers[duo.current].parked


def test_a_late_verdict_of_the_former_scheduler_ends_nothing() -> None:
    duo = Duo()
    first = duo.current
    task_id = duo.submit()
    duo.lose(first)
    duo.say(first, Infeasible(task_id, "learn", GPU, (), verdict="nobody could"))
    assert not duo.take(ObjectReady)
    assert task_id in duo.node.scheduler.forwarded


def test_a_task_that_two_schedulers_placed_is_granted_once() -> None:
    duo = Duo()
    first, second = duo.current, duo.other
    duo.node_with_gpu(B, first)
    duo.node_with_gpu(C, second)
    task_id = duo.submit()
    assert [address for address, _ in duo.take(Place)] == [B]
    duo.lose(first)
    assert [address for address, _ in duo.take(Place)] == [C]
    duo.say(C, Claim(task_id))
    duo.say(B, Claim(task_id))
    assert {task: host for task, (_, host) in duo.node.cluster.away.tasks.items()} == {task_id: C}
    assert duo.take(Deny) == [(B, Deny(task_id))]


def test_a_task_is_spilled_back_to_who_placed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its origin has it, too, and can withdraw it."""
    monkeypatch.setattr(Guests, "_is_full", lambda self: True)
    duo = Duo()
    kind = Describe(b"d" * 16, b"f" * 16, "learn", 1, (), 3, TASK)
    spec = Submit(ids.task_id(ids.child_prefix(JOB), 1), JOB, kind.descriptor_id, b"", ())
    duo.cut += SHARDS
    duo.say(duo.other, Place(spec, kind, 1, B))
    assert duo.take(Forward) == [(duo.other, Forward(spec, kind, 1, (), B))]


def test_a_node_gives_tasks_away_for_one_of_them_only() -> None:
    """Both see the same idle nodes and the same queue."""
    duo = Duo()
    kind = Describe(b"e" * 16, b"f" * 16, "f", 1, demand_from({"CPU": 1}), 3, TASK)
    specs = [Submit(ids.task_id(ids.child_prefix(JOB), n), JOB, kind.descriptor_id, b"", ()) for n in (1, 2)]
    duo.say(DRIVER_ADDRESS, kind, *specs)
    duo.cut += SHARDS
    ready = duo.node.scheduler.backlog()
    assert ready == 2, "no worker is there yet"
    duo.say(duo.other, Offload(1))
    assert duo.node.scheduler.backlog() == ready
    duo.say(duo.current, Offload(1))
    assert duo.node.scheduler.backlog() == ready - 1
    assert [address for address, _ in duo.take(Forward)] == [duo.current]


@pytest.mark.parametrize("version", [PROTOCOL_VERSION, PROTOCOL_VERSION + 1])
def test_a_scheduler_greets_nodes_of_its_version(version: int) -> None:
    duo = Duo()
    duo.feed(SHARDS[1], B, NodeHello(version, B, 1, 7, "host", "b", ()))
    assert len(duo.told) == (version == PROTOCOL_VERSION)
    assert not duo.take(Refused), "the shard beside it does that"


def test_with_no_scheduler_left_the_state_of_a_task_says_so() -> None:
    duo = Duo()
    duo.submit()
    assert [row["state"] for row in reports.tasks_of(duo.node)] == ["forwarded"]
    for shard in SHARDS:
        duo.lose(shard)
    assert [row["state"] for row in reports.tasks_of(duo.node)] == [
        "forwarded, and no global scheduler answers"
    ]
    duo.begin_anew(SHARDS[0])
    assert [row["state"] for row in reports.tasks_of(duo.node)] == ["forwarded"]
    assert len(duo.schedulers[SHARDS[0]].parked) == 1
