"""The global scheduler against a naive model that knows only who is alive and who still waits."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zray.config import Config
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import RUNTIME, pump
from zray.core.placement import HOPS_MAX, POLICIES
from zray.core.resources import shortages
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    Demand,
    Describe,
    Forward,
    Infeasible,
    NodeReport,
    Place,
    Submit,
    Withdraw,
)

CONFIG = Config()
SILENCE_NS = 10_000_000_000
NODES = [bytes([n]) * 16 for n in range(1, 5)]
DEMANDS: list[Demand] = [
    (),
    (("CPU", 10_000),),
    (("CPU", 40_000),),
    (("GPU", 5_000),),
    (("CPU", 10_000), ("GPU", 20_000)),
]
TOTALS: list[Demand] = [
    (("CPU", 10_000),),
    (("CPU", 40_000),),
    (("CPU", 20_000), ("GPU", 10_000)),
    (("CPU", 80_000), ("GPU", 20_000)),
]
TASKS = st.integers(0, 11)
A_NODE = st.sampled_from(NODES)


def can_run(total: Demand, demand: Demand) -> bool:
    return not shortages(dict(total), demand)


class GlobalSchedulerAgainstModel(RuleBasedStateMachine):
    """Every forwarded task leaves once for a node that can run it, or is parked because none can."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def start(self, policy: str) -> None:
        self.machine = GlobalScheduler(config=CONFIG, policy=policy, random=Random(0))
        self.now_ns = 0
        self.alive: dict[bytes, tuple[int, Demand, int]] = {}  # node -> incarnation, total, heard_ns
        self.least: dict[bytes, int] = dict.fromkeys(NODES, 0)  # node -> least incarnation believed
        self.parked: dict[bytes, tuple[bytes, Forward]] = {}
        self.told: dict[bytes, int] = {}  # parked task -> notices since the last change of the cluster
        self.batch: list[tuple[bytes, Any]] = []

    # Messages gather into a batch; ``step`` pumps it. The model acts on the batch as a whole.

    @rule(node=A_NODE, total=st.sampled_from(TOTALS), busy=st.booleans(), backlog=st.integers(0, 9),
          older=st.sampled_from((0, 0, 0, -1, 1)))  # fmt: skip
    def report(self, node: bytes, total: Demand, busy: bool, backlog: int, older: int) -> None:
        incarnation = max(0, self.least[node] + older)
        free = () if busy else total
        self.batch.append((node, NodeReport(node, incarnation, total, free, backlog, backlog, 0)))
        if incarnation < self.least[node]:
            return
        self.least[node] = incarnation
        known = self.alive.pop(node, None)
        if known is None or known[1] != total:
            self.told = {}
        self.alive[node] = incarnation, total, self.now_ns

    @rule(number=TASKS, demand=st.sampled_from(DEMANDS), source=A_NODE, hops=st.integers(0, HOPS_MAX + 1))
    def forward(self, number: int, demand: Demand, source: bytes, hops: int) -> None:
        task_id = number.to_bytes(16, "big")
        held = tuple((bytes([n]) * 16, 1000 * n, (NODES[n % 4],)) for n in range(number % 3))
        descriptor = Describe(b"d" * 16, b"f" * 16, "f", 1, demand, 0)
        forward = Forward(Submit(task_id, b"p" * 16, b"d" * 16, b""), descriptor, hops, held)
        self.batch.append((source, forward))
        before = self.parked.get(task_id)
        if before is None or before[0] != source or before[1].descriptor.demand != demand:
            self.told.pop(task_id, None)
        self.parked[task_id] = source, forward

    @rule(number=TASKS, source=A_NODE)
    def withdraw(self, number: int, source: bytes) -> None:
        task_id = number.to_bytes(16, "big")
        self.batch.append((source, Withdraw(task_id)))
        self.parked.pop(task_id, None)
        self.told.pop(task_id, None)

    @rule(node=A_NODE)
    def lose_link(self, node: bytes) -> None:
        self.batch.append((RUNTIME, ClientGone(node)))
        for task_id in [key for key, (source, _) in self.parked.items() if source == node]:
            del self.parked[task_id]
            self.told.pop(task_id, None)
        if node in self.alive:
            self.least[node] = self.alive.pop(node)[0] + 1
            self.told = {}

    @rule(later_ns=st.sampled_from((0, 1, 400_000_000, 1_000_000_000, 3_000_000_000, SILENCE_NS)))
    def step(self, later_ns: int) -> None:
        pump(self.machine, self.batch, self.now_ns)
        self.batch = []
        self.judge()
        self.now_ns += later_ns
        silent = [
            node for node, (_, _, heard_ns) in self.alive.items() if heard_ns + SILENCE_NS <= self.now_ns
        ]
        for node in silent:
            del self.alive[node]
            self.told = {}
        pump(self.machine, [], self.now_ns)
        self.judge()

    def judge(self) -> None:
        """Compare the outbox and the tables with the model."""
        self.machine.check()
        for destination, message in self.machine.out:
            task_id = message.spec.task_id if isinstance(message, Place) else message.task_id
            source, forward = self.parked[task_id]  # a second Place, or one after a Withdraw, fails here
            demand = forward.descriptor.demand
            if isinstance(message, Place):
                assert can_run(self.alive[destination][1], demand)
                origin = b"" if source == destination else source
                assert message == Place(forward.spec, forward.descriptor, forward.hops + 1, origin)
                del self.parked[task_id]
                self.told.pop(task_id, None)
            else:
                assert isinstance(message, Infeasible)
                assert destination == source
                assert len(message.nodes) == max(1, len(self.alive))
                self.told[task_id] = self.told.get(task_id, 0) + 1
                assert self.told[task_id] == 1
        self.machine.out.clear()
        totals = [total for _, total, _ in self.alive.values()]
        for _, forward in self.parked.values():
            assert not any(can_run(total, forward.descriptor.demand) for total in totals)
        assert self.machine.parked.keys() == self.parked.keys()
        assert {key: node.incarnation for key, node in self.machine.nodes.items()} == {
            node: incarnation for node, (incarnation, _, _) in self.alive.items()
        }

    @invariant()
    def wakes_in_time(self) -> None:
        if not hasattr(self, "machine") or self.batch:
            return
        wake_at_ns = self.machine.wake_at_ns
        assert (wake_at_ns is None) == (not self.alive and not self.machine.untold)
        assert wake_at_ns is None or wake_at_ns > self.now_ns


GlobalSchedulerAgainstModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None
)
TestGlobalScheduler = GlobalSchedulerAgainstModel.TestCase
