"""Places the tasks that a node forwarded: because it was overloaded, or can never run them itself.

A task that is feasible somewhere leaves at the end of the batch it came in, also when every node is busy:
it queues at the node, not here. A task that is infeasible everywhere is parked, is reported to its
forwarder after a grace, and leaves as soon as a report makes it feasible. So this holds between batches:
a task is parked if and only if no node that is alive could ever run it. Two are not left waiting: one that is
bound to a node which is dead or never was, and, if ``unschedulable_after_ns`` is set, one that was parked
for so long.

All that is kept here is soft: the nodes' next reports and forwards rebuild it after a restart
(paper, section 4.2.2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from zray.config import Config
from zray.core import checks
from zray.core.labels import unmet_text
from zray.core.machine import RUNTIME, Address, Effect, Handler, invariant
from zray.core.placement import (
    HOPS_MAX,
    POLICIES,
    RANDOMISED,
    ClusterAverages,
    NodeLoad,
    eligible,
    most_room,
)
from zray.core.rebalancing import excess, idle_slots, shares
from zray.core.resources import shortage_text
from zray.ids import short
from zray.protocol.cluster import AskScheduler, Members, Offload, SchedulerHere
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    Demand,
    Forward,
    Infeasible,
    NodeHello,
    NodeReport,
    Place,
    Refused,
    Warn,
    Withdraw,
)
from zray.protocol.strategies import Strategy

if TYPE_CHECKING:
    from random import Random

SILENT_DEADLINES = 10
"""An idle node reports only once a second: it may be silent for this many liveness deadlines."""

FENCED_MAX = 10_000
"""Dead nodes whose incarnation is remembered; the longest dead go first."""

NEEDS_CACHED_MAX = 1_000
"""Needs whose feasible nodes are remembered between two changes of the cluster."""

FOR_EVER = 1 << 63
"""An incarnation that no node has."""

NODES_NAMED_MAX = 20
"""Living nodes that a sentence names, of those that there are."""

Need = tuple[Demand, Strategy | None]
"""What decides on which nodes a task can ever run."""


def _need_of(forward: Forward) -> Need:
    return forward.descriptor.demand, forward.descriptor.strategy


class ParkedTask:
    """A task that no node can run, since when, and whom to tell."""

    __slots__ = ("forward", "since_ns", "source", "tell_at_ns")

    def __init__(self, now_ns: int, source: Address, forward: Forward, grace_ns: int) -> None:
        self.source, self.forward = source, forward
        self.since_ns = now_ns - max(0, forward.parked_ns)  # also with another scheduler
        self.tell_at_ns = now_ns + grace_ns


class GlobalScheduler:
    """Picks a node for each forwarded task (paper, section 4.2.2). Pure.

    Args:
        policy: a name in ``placement.POLICIES``.
        random: where a randomised policy draws from.
        returning: whether there were nodes before it, which may be on their way back.
    """

    __slots__ = (
        "_averages", "_changed", "_feasible", "_policy", "_random", "_silence_ns", "arrived", "config",
        "epoch", "fenced", "idle", "introduced", "met", "nodes", "out", "overloaded", "parked",
        "parked_by_need", "return_by_ns", "returning", "untold",
    )  # fmt: skip

    def __init__(
        self,
        *,
        config: Config,
        policy: str = "paper",
        random: Random | None = None,
        returning: bool = False,
    ) -> None:
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
        self.parked: OrderedDict[bytes, ParkedTask] = OrderedDict()  # task id -> task, oldest first
        self.parked_by_need: dict[Need, dict[bytes, ParkedTask]] = {}  # the same, none of them empty
        # Those whose forwarder is to be told, by ``tell_at_ns``.
        self.untold: OrderedDict[bytes, ParkedTask] = OrderedDict()
        self.epoch = 0  # of the newest word on who is alive
        self.met: dict[bytes, None] = {}  # who was alive then
        self.introduced: dict[bytes, None] = {}  # who said hello and may not be in that word yet
        self.returning = returning
        self.return_by_ns: int | None = None  # set with the first batch
        self._policy = POLICIES[policy]
        self._random = random
        self._averages = ClusterAverages(config.run_average_alpha)
        # need -> feasible nodes by id; emptied whenever the cluster changes
        self._feasible: dict[Need, list[NodeLoad]] = {}
        self._changed = False  # whether the cluster changed in this batch
        # By their last reports, by node id: who has nothing to do, and who has more than enough.
        self.idle: dict[bytes, NodeLoad] = {}
        self.overloaded: dict[bytes, NodeLoad] = {}
        # how long a node may be silent before it counts as dead
        self._silence_ns = config.heartbeat_interval_ns * config.heartbeat_liveness_count * SILENT_DEADLINES

    # --- messages ----------------------------------------------------------------------------------

    def on_node_hello(self, now_ns: int, source: Address, hello: NodeHello) -> None:
        """A node introduces itself, before anybody can have heard of it and bind a task to it."""
        if source != hello.node_id or hello.version != PROTOCOL_VERSION:
            return
        self.out.append((source, SchedulerHere()))
        if hello.node_id not in self.met:
            self.introduced[hello.node_id] = None
            if len(self.introduced) > FENCED_MAX:
                del self.introduced[next(iter(self.introduced))]

    def on_ask_scheduler(self, now_ns: int, source: Address, message: AskScheduler) -> None:
        """A node wants to know whether its forwards are in good hands."""
        self.out.append((source, SchedulerHere(message.token)))

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
            node = self.nodes[node_id] = NodeLoad(now_ns, source, report, self._averages)
            self._classify(node)
            self._cluster_changed(now_ns)
            return
        if report.incarnation < node.incarnation:
            return
        if report.incarnation > node.incarnation and source != node.address:
            self._drop_forwarded_by(node.address)
        self._averages.absorb(report)
        pool, labels = node.pool, node.labels
        node.absorb(now_ns, source, report, self._averages)
        self.nodes[node_id] = self.nodes.pop(node_id)  # now the last to fall silent
        self._classify(node)
        if node.pool is not pool or node.labels != labels:
            self._cluster_changed(now_ns)

    def on_forward(self, now_ns: int, source: Address, forward: Forward) -> None:
        """Take a task in; a known one changes nothing but whom to answer and what is known of it."""
        if self._refused(source, checks.problem_of_descriptor(forward.descriptor)):
            return
        if source in self.nodes:
            self.nodes[source].believe_kept(forward)
        task_id = forward.spec.task_id
        parked = self.parked.get(task_id)
        if parked is None:
            self.arrived[task_id] = source, forward
        elif parked.source == source and _need_of(parked.forward) == _need_of(forward):
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
        if message.epoch <= self.epoch or not checks.speaks_for_itself(source, message):
            return
        self.epoch = message.epoch
        alive = {node_id: None for node_id, _ in message.nodes}
        for node in [node for node in self.nodes.values() if node.node_id in self.met]:
            if node.node_id not in alive:
                self._drop_forwarded_by(node.address)
                self._node_dead(now_ns, node, fence=node.incarnation + 1)
        for node_id in self.met:
            if node_id not in alive:  # also one that did not report in this life
                self._fence(node_id, FOR_EVER)
        self.met = alive
        self.introduced = {node_id: None for node_id in self.introduced if node_id not in alive}
        self._changed = True

    def on_client_gone(self, now_ns: int, source: Address, message: ClientGone) -> None:
        """A link is lost: the node behind it is dead for good, and so is what it waited for."""
        self._drop_forwarded_by(message.client)
        for node in [node for node in self.nodes.values() if node.address == message.client]:
            self._node_dead(now_ns, node, fence=node.incarnation + 1)

    # --- time --------------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """When the next node was silent, or a task parked, for too long, or a forwarder is to be told."""
        wishes = [node.heard_ns + self._silence_ns for node in islice(self.nodes.values(), 1)]
        wishes += [parked.tell_at_ns for parked in islice(self.untold.values(), 1)]
        if self.returning and self.return_by_ns is not None:
            wishes.append(self.return_by_ns)
        if self.config.unschedulable_after_ns:
            oldest = islice(self.parked.values(), 1)
            wishes += [parked.since_ns + self.config.unschedulable_after_ns for parked in oldest]
        return min(wishes, default=None)

    def on_tick(self, now_ns: int) -> None:
        """Bury nodes that fell silent, and tell the forwarders of tasks that stayed infeasible.

        A silent node may only have been paused. Nobody else is told that it is dead, so its next report
        brings the same incarnation back; one whose link was lost stays dead.
        """
        if self.return_by_ns is not None and self.return_by_ns <= now_ns:
            self._changed |= self.returning
            self.returning = False
        silent_since_ns = now_ns - self._silence_ns
        for node in list(self.nodes.values()):
            if node.heard_ns > silent_since_ns:
                break
            self._node_dead(now_ns, node, fence=node.incarnation)
        self._tell(now_ns)
        if self.config.unschedulable_after_ns:
            self._give_up(now_ns - self.config.unschedulable_after_ns)

    def flush(self, now_ns: int) -> None:
        """Place or park all that came, and what a change of the cluster made feasible."""
        if self.return_by_ns is None:
            self.return_by_ns = now_ns + self.config.node_return_ns
        if self._changed:
            self._changed = False
            self._place_parked()
        if self.arrived:
            self._place_arrived(now_ns)
        if self.idle and self.overloaded:
            self._rebalance()

    def _place_arrived(self, now_ns: int) -> None:
        arrived, self.arrived = self.arrived, {}
        for task_id, (source, forward) in arrived.items():
            nodes = self._feasible_nodes(_need_of(forward))
            if nodes:
                self._place(nodes, source, forward)
            elif verdict := self._verdict(forward.descriptor.strategy):
                self._refuse(source, forward, verdict)
            else:
                self._park(now_ns, task_id, source, forward)
        if any(forward.parked_ns for _, forward in arrived.values()):  # they may be older than those here
            self.parked = OrderedDict(sorted(self.parked.items(), key=lambda item: item[1].since_ns))

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

    def _feasible_nodes(self, need: Need) -> list[NodeLoad]:
        """The nodes that could ever run such a task, by node id; if it wants some of them, those."""
        nodes = self._feasible.get(need)
        if nodes is None:
            nodes = self._compute_feasible(need)
            if len(self._feasible) >= NEEDS_CACHED_MAX:
                self._feasible.clear()
            self._feasible[need] = nodes
        return nodes

    def _compute_feasible(self, need: Need) -> list[NodeLoad]:
        demand, strategy = need
        nodes = eligible([node for node in self.nodes.values() if node.pool.feasible(demand)], strategy)
        nodes.sort(key=lambda node: node.node_id)
        return nodes

    def _place_parked(self) -> None:
        """Place, or end, every parked task for which there is a word now, oldest first within its need."""
        for need in list(self.parked_by_need):
            nodes = self._feasible_nodes(need)
            verdict = "" if nodes else self._verdict(need[1])
            if not nodes and not verdict:
                continue
            for task_id, parked in list(self.parked_by_need[need].items()):
                self._unpark(task_id)
                if nodes:
                    self._place(nodes, parked.source, parked.forward)
                else:
                    self._refuse(parked.source, parked.forward, verdict)

    # --- tasks that no node will ever run ------------------------------------------------------------

    def _verdict(self, strategy: Strategy | None) -> str:
        """Why tasks of a strategy can never run, whoever joins; empty if they might."""
        if strategy is None or not strategy.node_id or strategy.soft:
            return ""
        node_id = strategy.node_id
        if node_id in self.nodes or node_id in self.met or node_id in self.introduced:
            return ""
        if node_id in self.fenced:
            what = f"node {node_id.hex()}, to which it is bound, is dead"
        elif self.epoch and not self.returning:
            what = f"node {node_id.hex()}, to which it is bound, is none of this cluster"
        else:  # in a new life: the nodes say in a moment who they are, and the first may not know of all
            return ""
        alive = [each.hex() for each in sorted({**self.met, **self.nodes})]
        more = f" and {len(alive) - NODES_NAMED_MAX} more" if len(alive) > NODES_NAMED_MAX else ""
        return f"{what}; alive: {', '.join(alive[:NODES_NAMED_MAX])}{more}"

    def _refuse(self, source: Address, forward: Forward, verdict: str) -> None:
        """Tell a forwarder that its task must end. It asks again if this is lost."""
        descriptor, task_id = forward.descriptor, forward.spec.task_id
        refusal = Infeasible(task_id, descriptor.name, descriptor.demand, (), verdict)
        self.out.append((source, refusal))

    def _give_up(self, parked_before_ns: int) -> None:
        """End the tasks that were parked for as long as one may be."""
        while self.parked:
            task_id, parked = next(iter(self.parked.items()))
            if parked.since_ns > parked_before_ns:
                return
            sentences = self._why_infeasible(_need_of(parked.forward))
            grace_s = self.config.unschedulable_after_ns / 1e9
            verdict = f"no node could run it for {grace_s:g} s. {'; '.join(sentences)}"
            self._unpark(task_id)
            self._refuse(parked.source, parked.forward, verdict)

    # --- parking -----------------------------------------------------------------------------------

    def _park(self, now_ns: int, task_id: bytes, source: Address, forward: Forward) -> None:
        parked = ParkedTask(now_ns, source, forward, self.config.infeasible_grace_ns)
        self.parked[task_id] = self.untold[task_id] = parked
        self.parked_by_need.setdefault(_need_of(forward), {})[task_id] = parked

    def _unpark(self, task_id: bytes) -> None:
        need = _need_of(self.parked.pop(task_id).forward)
        self.untold.pop(task_id, None)
        same = self.parked_by_need[need]
        del same[task_id]
        if not same:
            del self.parked_by_need[need]

    def _drop_forwarded_by(self, source: Address) -> None:
        """Forget the tasks of a forwarder that is gone: who reconstructs them forwards them again."""
        self.arrived = {key: value for key, value in self.arrived.items() if value[0] != source}
        for task_id in [key for key, parked in self.parked.items() if parked.source == source]:
            self._unpark(task_id)

    def _tell(self, now_ns: int) -> None:
        """Send what each overdue task lacks; every one once, until the cluster changes."""
        sentences: dict[Need, tuple[str, ...]] = {}
        while self.untold:
            task_id, parked = next(iter(self.untold.items()))
            if parked.tell_at_ns > now_ns:
                return
            del self.untold[task_id]
            descriptor, need = parked.forward.descriptor, _need_of(parked.forward)
            if descriptor.in_group is not None:  # it is the group that waits, and says why
                continue
            if need not in sentences:
                sentences[need] = self._why_infeasible(need)
            infeasible = Infeasible(task_id, descriptor.name, descriptor.demand, sentences[need])
            self.out.append((parked.source, infeasible))

    def _why_infeasible(self, need: Need) -> tuple[str, ...]:
        """One sentence per node, by node id, such as ``node 3fa2: has 0 of 2 GPU``."""
        if not self.nodes:
            return ("the cluster has no nodes",)
        return tuple(
            f"node {short(node_id)}: {_why_not(self.nodes[node_id], need)}" for node_id in sorted(self.nodes)
        )

    # --- tasks that would wait while others are idle ---------------------------------------------------

    def _classify(self, node: NodeLoad) -> None:
        """A node reported: whether it has nothing to do, or more than it can work off in a moment."""
        self.idle.pop(node.node_id, None)
        self.overloaded.pop(node.node_id, None)
        if idle_slots(node):
            self.idle[node.node_id] = node
        elif excess(node, self.config.offload_patience_ns):
            self.overloaded[node.node_id] = node

    def _rebalance(self) -> None:
        """Ask nodes with long queues for a part of them; each at most once per report."""
        patience_ns = self.config.offload_patience_ns
        for node, tasks in shares(self.overloaded.values(), self.idle.values(), patience_ns):
            node.undo_backlog(tasks)
            del self.overloaded[node.node_id]
            self.out.append((node.address, Offload(tasks)))

    # --- the cluster -------------------------------------------------------------------------------

    def _node_dead(self, now_ns: int, node: NodeLoad, fence: int) -> None:
        """Place nothing there any more, and believe only incarnations from ``fence`` on."""
        del self.nodes[node.node_id]
        self.idle.pop(node.node_id, None)
        self.overloaded.pop(node.node_id, None)
        self._fence(node.node_id, fence)
        self._cluster_changed(now_ns)

    def _fence(self, node_id: bytes, fence: int) -> None:
        self.fenced[node_id] = max(fence, self.fenced.get(node_id, 0))
        if len(self.fenced) > FENCED_MAX:
            del self.fenced[next(iter(self.fenced))]

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
        for known in (self.idle, self.overloaded):
            invariant(all(self.nodes.get(key) is node for key, node in known.items()), "a stale load")
        heard = [node.heard_ns for node in self.nodes.values()]
        invariant(heard == sorted(heard), "nodes are not in the order of their reports:", heard)
        invariant(not self.nodes.keys() & self.fenced.keys(), "a node is both alive and fenced")
        invariant(len(self.fenced) <= FENCED_MAX, "too many fenced nodes:", len(self.fenced))
        for need, nodes in self._feasible.items():
            invariant(nodes == self._compute_feasible(need), "stale feasible nodes of", need)
        for node_id, node in self.nodes.items():
            invariant(node.node_id == node_id, "node", node_id, "is filed under", node.node_id)
            invariant(node.backlog >= 0 and node.load >= 0, "negative load of node", node_id)

    def _check_parked(self, parked: Mapping[bytes, ParkedTask]) -> None:
        """Parked if and only if infeasible; the three tables of parked tasks agree."""
        filed = {task_id: task for tasks in self.parked_by_need.values() for task_id, task in tasks.items()}
        invariant(filed == parked, "parked tasks are filed wrongly")
        invariant(all(self.parked_by_need.values()), "an empty class of parked tasks")
        for need in self.parked_by_need:
            invariant(not self._compute_feasible(need), "parked and feasible:", need)
            invariant(not self._verdict(need[1]), "parked for ever:", need)
        since = [task.since_ns for task in parked.values()]
        invariant(since == sorted(since), "parked tasks are not in the order of time:", since)
        overdue = [task.tell_at_ns for task in self.untold.values()]
        invariant(overdue == sorted(overdue), "notices are not in the order of time:", overdue)
        invariant(all(parked.get(key) is task for key, task in self.untold.items()), "a stale notice")

    HANDLERS: ClassVar[dict[type, Handler]] = {
        NodeHello: on_node_hello,
        AskScheduler: on_ask_scheduler,
        NodeReport: on_node_report,
        Forward: on_forward,
        Withdraw: on_withdraw,
        ClientGone: on_client_gone,
        Members: on_members,
    }


def _why_not(node: NodeLoad, need: Need) -> str:
    """Why a node can never run a task."""
    demand, strategy = need
    missing = node.pool.missing(demand)
    reasons = [shortage_text(missing)] if missing else []
    if strategy is not None:
        unmet = unmet_text(strategy.hard, node.labels)
        reasons += [unmet] if unmet else []
        if strategy.node_id not in (b"", node.node_id) and not strategy.soft:
            reasons.append(f"is not node {short(strategy.node_id)}")
    return ", ".join(reasons)
