"""Places the tasks that a node forwarded: because it was overloaded, or can never run them itself.

A task that is feasible somewhere leaves at the end of the batch it came in, also when every node is busy:
it queues at the node, not here. A task that is infeasible everywhere is parked, is reported to its
forwarder after a grace, and leaves as soon as a report makes it feasible. So this holds between batches:
a task is parked if and only if no node that is alive could ever run it.

All that is kept here is soft: the nodes' next reports and forwards rebuild it after a restart
(paper, section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from zray.config import Config
from zray.core import checks
from zray.core.machine import RUNTIME, Address, Effect, Handler, invariant
from zray.core.placement import HOPS_MAX, POLICIES, RANDOMISED, ClusterAverages, NodeLoad, most_room
from zray.core.resources import shortage_text
from zray.ids import short
from zray.protocol.cluster import Members
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    Demand,
    Forward,
    Infeasible,
    NodeReport,
    Place,
    Refused,
    Warn,
    Withdraw,
)

if TYPE_CHECKING:
    from random import Random

SILENT_DEADLINES = 10
"""An idle node reports only once a second: it may be silent for this many liveness deadlines."""

FENCED_MAX = 10_000
"""Dead nodes whose incarnation is remembered; the longest dead go first."""

DEMANDS_CACHED_MAX = 1_000
"""Demands whose feasible nodes are remembered between two changes of the cluster."""


class ParkedTask:
    """A task that no node can run, and whom to tell."""

    __slots__ = ("forward", "source", "tell_at_ns")

    def __init__(self, source: Address, forward: Forward, tell_at_ns: int) -> None:
        self.source, self.forward, self.tell_at_ns = source, forward, tell_at_ns


class GlobalScheduler:
    """Picks a node for each forwarded task (paper, section 4.2.2). Pure.

    Args:
        policy: a name in ``placement.POLICIES``.
        random: where a randomised policy draws from.
    """

    __slots__ = (
        "_averages", "_changed", "_feasible", "_policy", "_random", "_silence_ns", "arrived", "config",
        "epoch", "fenced", "met", "nodes", "out", "parked", "parked_by_demand", "untold",
    )  # fmt: skip

    def __init__(self, *, config: Config, policy: str = "paper", random: Random | None = None) -> None:
        if policy not in POLICIES:
            raise ValueError(f"no placement policy {policy!r}; there are {', '.join(POLICIES)}")
        if policy in RANDOMISED and random is None:
            raise ValueError(f"placement policy {policy!r} draws random numbers; pass a random.Random")
        self.config = config
        self.out: list[Effect] = []
        # node id -> what is known of it, the longest silent first; alive nodes only
        self.nodes: dict[bytes, NodeLoad] = {}
        # node id -> least incarnation that is still believed; nodes that are not in ``nodes``
        self.fenced: dict[bytes, int] = {}
        # task id -> (forwarder, task); what this batch brought, decided in ``flush``
        self.arrived: dict[bytes, tuple[Address, Forward]] = {}
        self.parked: dict[bytes, ParkedTask] = {}  # task id -> task, oldest first
        self.parked_by_demand: dict[Demand, dict[bytes, ParkedTask]] = {}  # the same, none of them empty
        self.untold: dict[bytes, ParkedTask] = {}  # those whose forwarder is to be told, by ``tell_at_ns``
        self.epoch = 0  # of the newest word on who is alive
        self.met: dict[bytes, None] = {}  # who was alive then
        self._policy = POLICIES[policy]
        self._random = random
        self._averages = ClusterAverages(config.run_average_alpha)
        # demand -> feasible nodes by id; emptied whenever the cluster changes
        self._feasible: dict[Demand, list[NodeLoad]] = {}
        self._changed = False  # whether the cluster changed in this batch
        # how long a node may be silent before it counts as dead
        self._silence_ns = config.heartbeat_interval_ns * config.heartbeat_liveness_count * SILENT_DEADLINES

    # --- messages ----------------------------------------------------------------------------------

    def on_node_report(self, now_ns: int, source: Address, report: NodeReport) -> None:
        """Believe the load of a node, unless it comes from an incarnation that is over (I9)."""
        if self._refused(source, checks.problem_of_report(report)):
            return
        node_id = report.node_id
        node = self.nodes.get(node_id)
        if node is None:
            if report.incarnation < self.fenced.get(node_id, 0):
                return
            self.fenced.pop(node_id, None)
            self._averages.absorb(report)
            self.nodes[node_id] = NodeLoad(now_ns, source, report, self._averages)
            self._cluster_changed(now_ns)
            return
        if report.incarnation < node.incarnation:
            return
        if report.incarnation > node.incarnation and source != node.address:
            self._drop_forwarded_by(node.address)
        self._averages.absorb(report)
        pool = node.pool
        node.absorb(now_ns, source, report, self._averages)
        self.nodes[node_id] = self.nodes.pop(node_id)  # now the last to fall silent
        if node.pool is not pool:
            self._cluster_changed(now_ns)

    def on_forward(self, now_ns: int, source: Address, forward: Forward) -> None:
        """Take a task in; a known one changes nothing but whom to answer and what is known of it."""
        if self._refused(source, checks.problem_of_descriptor(forward.descriptor)):
            return
        task_id = forward.spec.task_id
        parked = self.parked.get(task_id)
        if parked is None:
            self.arrived[task_id] = source, forward
        elif parked.source == source and parked.forward.descriptor.demand == forward.descriptor.demand:
            parked.forward = forward
        else:
            self._unpark(task_id)
            self.arrived[task_id] = source, forward

    def _refused(self, source: Address, problem: str) -> bool:
        """Tell the sender of nonsense so; whether it was any."""
        if problem:
            self.out.append((source, Refused("garbage", problem)))
            self.out.append((RUNTIME, Warn(f"refused a message from {source.hex()}: {problem}")))
        return bool(problem)

    def on_withdraw(self, now_ns: int, source: Address, message: Withdraw) -> None:
        """Forget a task, if it was not placed before."""
        if self.arrived.pop(message.task_id, None) is None and message.task_id in self.parked:
            self._unpark(message.task_id)

    def on_members(self, now_ns: int, source: Address, message: Members) -> None:
        """A node passes on who is alive: place nothing on the others."""
        if message.epoch <= self.epoch:
            return
        self.epoch = message.epoch
        alive = {node_id: None for node_id, _ in message.nodes}
        for node in [node for node in self.nodes.values() if node.node_id in self.met]:
            if node.node_id not in alive:
                self._drop_forwarded_by(node.address)
                self._node_dead(now_ns, node, fence=node.incarnation + 1)
        self.met = alive

    def on_client_gone(self, now_ns: int, source: Address, message: ClientGone) -> None:
        """A link is lost: the node behind it is dead for good, and so is what it waited for."""
        self._drop_forwarded_by(message.client)
        for node in [node for node in self.nodes.values() if node.address == message.client]:
            self._node_dead(now_ns, node, fence=node.incarnation + 1)

    # --- time --------------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """When the next node has been silent for too long, or the next forwarder is to be told."""
        node = next(iter(self.nodes.values()), None)
        parked = next(iter(self.untold.values()), None)
        if node is None:
            return None if parked is None else parked.tell_at_ns
        silent_at_ns = node.heard_ns + self._silence_ns
        return silent_at_ns if parked is None else min(silent_at_ns, parked.tell_at_ns)

    def on_tick(self, now_ns: int) -> None:
        """Bury nodes that fell silent, and tell the forwarders of tasks that stayed infeasible.

        A silent node may only have been paused. Nobody else is told that it is dead, so its next report
        brings the same incarnation back; one whose link was lost stays dead.
        """
        silent_since_ns = now_ns - self._silence_ns
        for node in list(self.nodes.values()):
            if node.heard_ns > silent_since_ns:
                break
            self._node_dead(now_ns, node, fence=node.incarnation)
        self._tell(now_ns)

    def flush(self, now_ns: int) -> None:
        """Place or park all that came, and what a change of the cluster made feasible."""
        if self._changed:
            self._changed = False
            self._place_parked()
        if not self.arrived:
            return
        arrived, self.arrived = self.arrived, {}
        for task_id, (source, forward) in arrived.items():
            nodes = self._feasible_nodes(forward.descriptor.demand)
            if nodes:
                self._place(nodes, source, forward)
            else:
                self._park(now_ns, task_id, source, forward)

    # --- placing -----------------------------------------------------------------------------------

    def _place(self, nodes: list[NodeLoad], source: Address, forward: Forward) -> None:
        """Send a task to one of its feasible nodes, and count it there."""
        hops = forward.hops
        policy = POLICIES["spread"] if forward.descriptor.spread else self._policy
        if not hops:
            node = policy(nodes, forward, self._random)
        elif hops < HOPS_MAX:
            # The node that spilled it back knows its load better than its last report: try the others.
            others = [node for node in nodes if node.address != source]
            node = policy(others or nodes, forward, self._random)
        else:
            node = most_room(nodes, forward)
        node.debit(forward)
        origin = forward.origin or source
        place = Place(forward.spec, forward.descriptor, hops + 1, b"" if origin == node.address else origin)
        self.out.append((node.address, place))

    def _feasible_nodes(self, demand: Demand) -> list[NodeLoad]:
        """The nodes that could ever run such a task, by node id."""
        nodes = self._feasible.get(demand)
        if nodes is None:
            nodes = self._compute_feasible(demand)
            if len(self._feasible) >= DEMANDS_CACHED_MAX:
                self._feasible.clear()
            self._feasible[demand] = nodes
        return nodes

    def _compute_feasible(self, demand: Demand) -> list[NodeLoad]:
        nodes = [node for node in self.nodes.values() if node.pool.feasible(demand)]
        nodes.sort(key=lambda node: node.node_id)
        return nodes

    def _place_parked(self) -> None:
        """Place every parked task that has a feasible node now, oldest first within its demand."""
        for demand in list(self.parked_by_demand):
            nodes = self._feasible_nodes(demand)
            if nodes:
                for task_id, parked in list(self.parked_by_demand[demand].items()):
                    self._unpark(task_id)
                    self._place(nodes, parked.source, parked.forward)

    # --- parking -----------------------------------------------------------------------------------

    def _park(self, now_ns: int, task_id: bytes, source: Address, forward: Forward) -> None:
        parked = ParkedTask(source, forward, now_ns + self.config.infeasible_grace_ns)
        self.parked[task_id] = self.untold[task_id] = parked
        self.parked_by_demand.setdefault(forward.descriptor.demand, {})[task_id] = parked

    def _unpark(self, task_id: bytes) -> None:
        demand = self.parked.pop(task_id).forward.descriptor.demand
        self.untold.pop(task_id, None)
        same = self.parked_by_demand[demand]
        del same[task_id]
        if not same:
            del self.parked_by_demand[demand]

    def _drop_forwarded_by(self, source: Address) -> None:
        """Forget the tasks of a forwarder that is gone: who reconstructs them forwards them again."""
        self.arrived = {key: value for key, value in self.arrived.items() if value[0] != source}
        for task_id in [key for key, parked in self.parked.items() if parked.source == source]:
            self._unpark(task_id)

    def _tell(self, now_ns: int) -> None:
        """Send what each overdue task lacks; every one once, until the cluster changes."""
        sentences: dict[Demand, tuple[str, ...]] = {}
        while self.untold:
            task_id, parked = next(iter(self.untold.items()))
            if parked.tell_at_ns > now_ns:
                return
            del self.untold[task_id]
            descriptor = parked.forward.descriptor
            demand = descriptor.demand
            if demand not in sentences:
                sentences[demand] = self._why_infeasible(demand)
            self.out.append((parked.source, Infeasible(task_id, descriptor.name, demand, sentences[demand])))

    def _why_infeasible(self, demand: Demand) -> tuple[str, ...]:
        """One sentence per node, by node id, such as ``node 3fa2: has 0 of 2 GPU``."""
        if not self.nodes:
            return ("the cluster has no nodes",)
        return tuple(
            f"node {short(node_id)}: {shortage_text(self.nodes[node_id].pool.missing(demand))}"
            for node_id in sorted(self.nodes)
        )

    # --- the cluster -------------------------------------------------------------------------------

    def _node_dead(self, now_ns: int, node: NodeLoad, fence: int) -> None:
        """Place nothing there any more, and believe only incarnations from ``fence`` on."""
        del self.nodes[node.node_id]
        self.fenced[node.node_id] = fence
        if len(self.fenced) > FENCED_MAX:
            del self.fenced[next(iter(self.fenced))]
        self._cluster_changed(now_ns)

    def _cluster_changed(self, now_ns: int) -> None:
        """A node came, went or has other totals: what is feasible, and what is missing, may differ."""
        self._changed = True
        self._feasible.clear()
        tell_at_ns = now_ns + self.config.infeasible_grace_ns
        for task_id, parked in self.parked.items():
            if task_id not in self.untold:
                parked.tell_at_ns = tell_at_ns
                self.untold[task_id] = parked

    def check(self) -> None:
        """Raise ``InvariantError`` unless the state is consistent; between batches."""
        invariant(not self.arrived, "undecided tasks between batches:", list(self.arrived))
        invariant(not self._changed, "a change of the cluster was not acted on")
        self._check_parked(self.parked)
        heard = [node.heard_ns for node in self.nodes.values()]
        invariant(heard == sorted(heard), "nodes are not in the order of their reports:", heard)
        invariant(not self.nodes.keys() & self.fenced.keys(), "a node is both alive and fenced")
        invariant(len(self.fenced) <= FENCED_MAX, "too many fenced nodes:", len(self.fenced))
        for demand, nodes in self._feasible.items():
            invariant(nodes == self._compute_feasible(demand), "stale feasible nodes of", demand)
        for node_id, node in self.nodes.items():
            invariant(node.node_id == node_id, "node", node_id, "is filed under", node.node_id)
            invariant(node.backlog >= 0 and node.load >= 0, "negative load of node", node_id)

    def _check_parked(self, parked: Mapping[bytes, ParkedTask]) -> None:
        """Parked if and only if infeasible; the three tables of parked tasks agree."""
        filed = {task_id: task for tasks in self.parked_by_demand.values() for task_id, task in tasks.items()}
        invariant(filed == parked, "parked tasks are filed wrongly")
        invariant(all(self.parked_by_demand.values()), "an empty class of parked tasks")
        for demand in self.parked_by_demand:
            invariant(not self._compute_feasible(demand), "parked and feasible:", demand)
        overdue = [task.tell_at_ns for task in self.untold.values()]
        invariant(overdue == sorted(overdue), "notices are not in the order of time:", overdue)
        invariant(all(parked.get(key) is task for key, task in self.untold.items()), "a stale notice")

    HANDLERS: ClassVar[dict[type, Handler]] = {
        NodeReport: on_node_report,
        Forward: on_forward,
        Withdraw: on_withdraw,
        ClientGone: on_client_gone,
        Members: on_members,
    }
