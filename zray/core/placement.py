"""Which node a task should go to: what is known of each node, and one plain function per policy.

A policy gets the nodes on which the task is feasible and returns one of them. It changes nothing; the
caller then debits the chosen node (:meth:`NodeLoad.debit`), because reports are up to a heartbeat old and
a burst placed between two of them would otherwise herd onto the node that looked best in the first
(paper, section 4.2.2). What a forwarder keeps counts in the same way (:meth:`NodeLoad.believe_kept`).

Plain Python, no arrays: one forward measured 0.8, 1.6 and 10 us for 1, 10 and 100 nodes (batches of 64),
where the bare arithmetic of one choice in numpy took 4.8, 4.8 and 5.8 us before any bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zray.config import Config
from zray.core.labels import all_hold
from zray.core.machine import Address
from zray.core.resources import ResourcePool
from zray.protocol.messages import RESOURCE_UNIT, Demand, Forward, NodeReport
from zray.protocol.strategies import Labels, Strategy

if TYPE_CHECKING:
    from random import Random

HOPS_MAX = 4
"""A task that was placed this often is placed once more, for good: its node has to keep it."""

KEPT_KINDS_MAX = 1_000
"""Kinds of tasks of which a node is remembered to have kept some; after more they count anew."""

RUN_NS_PRIOR = 10_000_000
"""Run time of a task before any node reported one."""
BANDWIDTH_PRIOR = 1_000_000_000
"""Bytes per second of a transfer before any node reported one."""

_NS_PER_S = 1_000_000_000


class ClusterAverages:
    """Exponential averages over all reports; they stand in for a node that has none of its own.

    Attributes:
        run_ns: int, run time of a task.
        bandwidth: int, bytes per second of a transfer, > 0.
    """

    __slots__ = ("alpha", "bandwidth", "run_ns")

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.run_ns = RUN_NS_PRIOR
        self.bandwidth = BANDWIDTH_PRIOR

    def absorb(self, report: NodeReport) -> None:
        """Take in what a node measured; zero means that it measured nothing yet."""
        if report.run_ns > 0:
            self.run_ns += round(self.alpha * (report.run_ns - self.run_ns))
        if report.bandwidth > 0:
            self.bandwidth += round(self.alpha * (report.bandwidth - self.bandwidth))


class NodeLoad:
    """What the global scheduler believes of one node: its last report, less what was placed since.

    Attributes:
        pool: resources; ``free`` is debited by each placement until the next report.
        slots: int >= 1, CPUs: how many ordinary tasks run at once.
        backlog: int, tasks kept and not started, and those placed since that did not fit.
        queued_ns: int, run time of those tasks.
        slot_ns: int, run time of the task that gives the next slot.
        pulling: int, bytes that are on their way here, or will be for tasks placed since.
        queue_ns: int, how long a task waits here that does not fit now.
        kept: tasks, by kind, that the node itself said it kept since its last report; the others count them.
        load: float, tasks held or waiting per slot; breaks ties between equal waits.
        heard_ns: int, when the last report came.
    """

    __slots__ = (
        "address", "backlog", "bandwidth", "heard_ns", "incarnation", "kept", "labels", "load", "node_id",
        "pool", "pulling", "queue_ns", "queued_ns", "run_ns", "slot_ns", "slots",
    )  # fmt: skip

    def __init__(self, now_ns: int, address: Address, report: NodeReport, averages: ClusterAverages) -> None:
        self.node_id = report.node_id
        self.pool = ResourcePool(report.total)
        self.absorb(now_ns, address, report, averages)

    def absorb(self, now_ns: int, address: Address, report: NodeReport, averages: ClusterAverages) -> None:
        """Believe a report, and forget what was placed before it came."""
        self.address, self.incarnation, self.heard_ns = address, report.incarnation, now_ns
        if dict(report.total) != self.pool.total:
            self.pool = ResourcePool(report.total)
        self.pool.set_free(report.free)
        self.labels = dict(report.labels)
        cpus = self.pool.total.get("CPU", 0)
        self.slots = max(1, cpus // RESOURCE_UNIT)
        self.backlog = max(0, report.backlog)
        self.run_ns = report.run_ns if report.run_ns > 0 else averages.run_ns
        self.bandwidth = report.bandwidth if report.bandwidth > 0 else averages.bandwidth
        self.queued_ns = self.backlog * self.run_ns
        self.slot_ns = self.run_ns
        self.pulling = max(0, report.pulling)
        self.kept: dict[bytes, int] = {}
        held = max(0, cpus - self.pool.free.get("CPU", 0)) / RESOURCE_UNIT
        self.load = (held + self.backlog) / self.slots
        self._set_queue_ns()

    def debit(self, task: Forward) -> None:
        """Count a task that was just placed here: it holds resources or queues, and so do its bytes."""
        demand = task.descriptor.demand
        run_ns = task.run_ns if task.run_ns > 0 else self.run_ns
        if self.pool.fits(demand):
            self.pool.take(demand)
            self.slot_ns = min(self.slot_ns, run_ns)
        else:
            self.backlog += 1
            self.queued_ns += run_ns
        self._set_queue_ns()
        self.load += 1 / self.slots
        if task.inputs:
            total_bytes, held = held_bytes(task.inputs)
            self.pulling += total_bytes - held.get(self.node_id, 0)

    def believe_kept(self, task: Forward) -> None:
        """Count tasks that a forwarder kept since its last report, as if they had been placed there.

        Otherwise a node would get its share of a burst of which it has kept a part already.
        """
        kind, demand = task.spec.descriptor_id, task.descriptor.demand
        kept = task.kept - self.kept.get(kind, 0)
        if kept <= 0:
            return
        if len(self.kept) >= KEPT_KINDS_MAX:
            self.kept.clear()
        self.kept[kind] = task.kept
        run_ns = task.run_ns if task.run_ns > 0 else self.run_ns
        started = self.pool.room(demand, kept)
        if started:
            self.pool.take(tuple((name, started * amount) for name, amount in demand))
            self.slot_ns = min(self.slot_ns, run_ns)
        self.backlog += kept - started
        self.queued_ns += (kept - started) * run_ns
        self._set_queue_ns()
        self.load += kept / self.slots

    def undo_backlog(self, tasks: int) -> None:
        """Believe that so many of the tasks that wait here leave; 0 <= ``tasks`` <= ``backlog``."""
        self.queued_ns -= self.queued_ns * tasks // self.backlog
        self.backlog -= tasks
        self._set_queue_ns()

    def pull_ns(self, pull_bytes: int) -> int:
        """How long it takes to copy so many bytes here, behind those that are on their way."""
        return (self.pulling + pull_bytes) * _NS_PER_S // self.bandwidth if pull_bytes else 0

    def copies(self, demand: Demand) -> int:
        """How many tasks of this demand an empty node runs at once."""
        if not demand:
            return self.slots
        total = self.pool.total
        return min(total.get(name, 0) // amount for name, amount in demand)

    def _set_queue_ns(self) -> None:
        # The paper multiplies queue and run time. A node drains its queue through all of its slots, and
        # the task itself waits for one more of them, even behind an empty queue.
        self.queue_ns = (self.queued_ns + self.slot_ns) // self.slots


Inputs = tuple[tuple[bytes, int, tuple[bytes, ...]], ...]
"""``(object id, bytes, nodes that hold it)`` of each input of a task, as ``Forward`` has them."""

Policy = Callable[[Sequence[NodeLoad], Forward, "Random | None"], NodeLoad]
"""``(nodes, task, random) -> node``: ``nodes`` is not empty, sorted by node id, and all are feasible."""


# Whether a task stays where it is (fit_of).
MISFIT, SECOND_BEST, FITS, PINNED = 0, 1, 2, 3


def fit_of(strategy: Strategy, node_id: bytes, labels: Labels) -> int:
    """What a strategy says of one node to a node that does not know the others.

    Returns:
        ``MISFIT``: another node must run the task; ``SECOND_BEST``: another may be better; ``FITS``: as good
        as any; ``PINNED``: no other node will do as well.
    """
    own = dict(labels)
    if not all_hold(strategy.hard, own):
        return MISFIT
    if strategy.node_id:
        if strategy.node_id == node_id:
            return PINNED
        return SECOND_BEST if strategy.soft else MISFIT
    return FITS if all_hold(strategy.wanted, own) else SECOND_BEST


def eligible(nodes: Sequence[NodeLoad], strategy: Strategy | None) -> list[NodeLoad]:
    """Those of the nodes that a strategy leaves to a policy: if there are any, those that it wants."""
    if strategy is None:
        return list(nodes)
    allowed = [node for node in nodes if all_hold(strategy.hard, node.labels)]
    if strategy.node_id:
        on_it = [node for node in allowed if node.node_id == strategy.node_id]
        return on_it if on_it or not strategy.soft else allowed
    return [node for node in allowed if all_hold(strategy.wanted, node.labels)] or allowed


def queue_ns(node: NodeLoad, demand: Demand) -> int:
    """How long the task would wait for its resources on ``node``: not at all where it fits now."""
    return 0 if node.pool.fits(demand) else node.queue_ns


def held_bytes(inputs: Inputs) -> tuple[int, dict[bytes, int]]:
    """Bytes of all inputs of a task, and of those that each node holds: ``(total, {node_id: bytes})``.

    An input that is not made yet has no holders; it costs every node the same, whatever its size.
    """
    total = 0
    held: dict[bytes, int] = {}
    for _, size, holders in dict.fromkeys(inputs):  # an argument that is passed twice is pulled once
        total += size
        for node_id in holders:
            held[node_id] = held.get(node_id, 0) + size
    return total, held


def is_better_elsewhere(node_id: bytes, inputs: Inputs) -> bool:
    """Whether another node holds more bytes of a task's inputs than ``node_id`` does."""
    _, held = held_bytes(inputs)
    return max(held.values(), default=0) > held.get(node_id, 0)


def least_wait(nodes: Sequence[NodeLoad], task: Forward, random: Random | None = None) -> NodeLoad:
    """The node where the task can start first: least queueing plus transfer time.

    Equal waits go to the node with the least load per slot, then to the least node id.

    Cost: O(nodes + holders of inputs).
    Source: Moritz et al., "Ray", OSDI 2018, section 4.2.2.
    """
    if not task.inputs:
        return least_queue(nodes, task)
    demand = task.descriptor.demand
    total_bytes, held = held_bytes(task.inputs)
    best = nodes[0]
    best_wait_ns = -1
    for node in nodes:
        pull_bytes = total_bytes - held.get(node.node_id, 0)
        wait_ns = queue_ns(node, demand) + node.pull_ns(pull_bytes)
        if best_wait_ns < 0 or wait_ns < best_wait_ns or (wait_ns == best_wait_ns and node.load < best.load):
            best, best_wait_ns = node, wait_ns
    return best


def least_queue(nodes: Sequence[NodeLoad], task: Forward, random: Random | None = None) -> NodeLoad:
    """As :func:`least_wait`, blind to where the inputs are (the baseline of the paper's figure 8a)."""
    demand = task.descriptor.demand
    best = nodes[0]
    best_wait_ns = queue_ns(best, demand)
    for node in nodes:
        wait_ns = 0 if node.pool.fits(demand) else node.queue_ns
        if wait_ns < best_wait_ns or (wait_ns == best_wait_ns and node.load < best.load):
            best, best_wait_ns = node, wait_ns
    return best


def any_node(nodes: Sequence[NodeLoad], task: Forward, random: Random | None) -> NodeLoad:
    """Any feasible node, each with the same chance (what early releases of Ray did)."""
    return _given(random).choice(nodes)


def power_of_two(nodes: Sequence[NodeLoad], task: Forward, random: Random | None) -> NodeLoad:
    """The better of two nodes drawn at random: nearly as good as the best, and reports may be stale.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    if len(nodes) <= 2:
        return least_wait(nodes, task)
    first, second = sorted(_given(random).sample(range(len(nodes)), 2))
    return least_wait((nodes[first], nodes[second]), task)


def spread(nodes: Sequence[NodeLoad], task: Forward, random: Random | None = None) -> NodeLoad:
    """The node with the fewest tasks per slot, wherever the inputs are; then the least node id."""
    return min(nodes, key=lambda node: node.load)


def most_room(nodes: Sequence[NodeLoad], task: Forward) -> NodeLoad:
    """The node that runs the most such tasks at once; for a task that bounced :data:`HOPS_MAX` times."""
    demand = task.descriptor.demand
    most = max(node.copies(demand) for node in nodes)
    return least_wait([node for node in nodes if node.copies(demand) == most], task)


POLICIES: dict[str, Policy] = {
    "paper": least_wait,
    "locality_blind": least_queue,
    "random": any_node,
    "power_of_two": power_of_two,
    "spread": spread,
}
"""Policies by name. An experiment adds its own here, and runs it in both worlds."""

RANDOMISED = ("random", "power_of_two")
"""The policies that draw random numbers, and so need a ``random.Random``."""


class Scheduling(NamedTuple):
    """How a whole cluster schedules: what its global scheduler does, and when nodes ask it."""

    placement: str
    """A name in :data:`POLICIES`."""
    backlog_per_slot_max: int | None = None
    """Replaces the field of ``Config``; ``None`` leaves it. -1 forwards every task at once."""


SCHEDULING: dict[str, Scheduling] = {
    **{name: Scheduling(name) for name in POLICIES},
    "centralised": Scheduling("paper", -1),
    "threshold_zero": Scheduling("paper", 0),
}
"""The paper's scheduler and its counterfactuals, by the name that a scenario or ``Config`` gives:
every placement policy behind the usual threshold; one centralised scheduler that decides for every task;
and nodes that forward as soon as one task has to wait."""


def configured(config: Config) -> Config:
    """The settings of a cluster with the scheduling that they name.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    chosen = SCHEDULING.get(config.scheduling_policy)
    if chosen is None:
        known = ", ".join(sorted(SCHEDULING))
        raise ValueError(f"no scheduling policy {config.scheduling_policy!r}; there are {known}")
    if chosen.backlog_per_slot_max is None:
        return config
    return config._replace(backlog_per_slot_max=chosen.backlog_per_slot_max)


def placement_of(config: Config) -> str:
    """The placement policy behind the name of a scheduling.

    Raises:
        ValueError: like :func:`configured`.
    """
    configured(config)
    return SCHEDULING[config.scheduling_policy].placement


def _given(random: Random | None) -> Random:
    if random is None:
        raise ValueError("this policy draws random numbers; pass a random.Random")
    return random
