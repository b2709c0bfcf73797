"""What a recorded run would take on another cluster: its task graph, run again in virtual time.

The tasks take as long as they were measured to, drivers think as long as they were seen to, and objects have
the sizes that they had; where each task runs, and when, is decided anew by the machines. The recorded shape
is simulated as well, so that a prediction can be read as a ratio and not only as a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from sim.cluster import Cluster
from sim.costs import Costs
from sim.graph import SUBMITTED, Graph, RecordedTask, load_graph
from sim.kernel import MS, S
from sim.operations import SubmitAs
from sim.programs import Await, Blob, Compute, Program, Ref, Store
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.core.resources import amounts_of
from zray.errors import ZrayError
from zray.ids import return_ids

WARM_UP_NS = 200 * MS
"""The first workers of every node are there by then, as they were when the recorded run began."""
BLOB_BYTES_MIN = 1024
LIMIT_S = 1_000_000.0
CHECK_EVERY = 10_000_000


class WhatIfError(ZrayError):
    """A recorded graph cannot be run on the cluster that was asked for."""


class Estimate(NamedTuple):
    """One simulated run of the graph."""

    nodes: int
    cpus: int
    policy: str
    makespan_ns: int
    utilisation: float
    forwards: int
    nodes_used: int


class Prediction(NamedTuple):
    """What was recorded, the same shape simulated, and the cluster that was asked about."""

    tasks: int
    work_ns: int
    recorded_ns: int
    same_shape: Estimate
    other_shape: Estimate
    notes: tuple[str, ...]


class GraphRun:
    """A graph as programs of the simulator.

    Args:
        graph: what was recorded.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.by_number: list[RecordedTask] = list(graph.tasks.values())
        self.functions: dict[str, Callable[..., Any]] = {
            kind.name: self._run_task for kind in graph.kinds.values()
        }
        self.first_ns = -1
        self.clock: Callable[[], int] = lambda: 0

    def driver(self, root: bytes) -> Program:
        """The program of one driver."""
        yield Compute(WARM_UP_NS)
        yield from self._submit_all(root, {})

    def _run_task(self, number: int, borrowed: list[Ref], *inputs: Any) -> Program:
        task = self.by_number[number]
        known = dict(zip(task.spec.borrowed, borrowed, strict=True))
        yield from self._submit_all(task.spec.task_id, known)
        sizes = task.sizes or (0,) * task.kind.num_returns
        values = [Blob(size, number) if size >= BLOB_BYTES_MIN else None for size in sizes]
        return values[0] if task.kind.num_returns == 1 else values

    def _submit_all(self, context: bytes, known: dict[bytes, Ref]) -> Program:
        """Submit, wait and think as the context did; a driver waits for all at the end."""
        steps, rest_ns = self.graph.steps_of(context)
        refs = dict(known)
        open_tasks: dict[bytes, list[Ref]] = {}
        for step in steps:
            if step.think_ns:
                yield Compute(step.think_ns)
            if step.what == SUBMITTED:
                (task_id,) = step.tasks
                made = yield from self._submit(self.graph.tasks[task_id], refs)
                open_tasks[task_id] = made
            else:
                awaited = [ref for one in step.tasks for ref in open_tasks.pop(one, ())]
                if awaited:
                    yield Await(awaited, len(awaited))
        if context in self.graph.drivers:
            left = [ref for made in open_tasks.values() for ref in made]
            if left:
                yield Await(left, len(left))
        elif rest_ns:
            yield Compute(rest_ns)

    def _submit(self, task: RecordedTask, refs: dict[bytes, Ref]) -> Program:
        for object_id in (*task.spec.deps, *task.spec.borrowed):
            if object_id not in refs:  # put, or made by an actor, or known from a value: here it is put
                size = self.graph.sizes.get(object_id, 0)
                refs[object_id] = yield Store(Blob(size, task.number))
        if self.first_ns < 0:
            self.first_ns = self.clock()
        deps = (refs[object_id] for object_id in task.spec.deps)
        borrowed = [refs[object_id] for object_id in task.spec.borrowed]
        made: list[Ref] = yield SubmitAs(task.kind, (task.number, borrowed, *deps))
        refs.update(zip(return_ids(task.spec.task_id, task.kind.num_returns), made, strict=True))
        return made


def estimate(
    graph: Graph, *, nodes: int, cpus: int, policy: str = "paper", seed: int = 0,
    network: NetworkPart | None = None, costs: Costs | None = None,
    watch: Callable[[Cluster], None] | None = None,
) -> Estimate:  # fmt: skip
    """Run a graph on a cluster of ``nodes`` nodes of ``cpus`` CPUs each.

    Raises:
        WhatIfError: if it does not come to an end there, saying what waits.
    """
    scenario = Scenario(
        "whatif", check_every=CHECK_EVERY, strict=False, policy=policy,  # type: ignore[arg-type]
        cluster=ClusterPart(nodes=nodes, cpus=cpus, drivers=max(1, len(graph.drivers))),
        network=network or NetworkPart(), phases=PhasesPart(liveness_s=LIMIT_S),
    )  # fmt: skip
    resources = _other_resources(graph)
    scenario = replace(scenario, cluster=replace(scenario.cluster, resources=resources, arena_kib=2_000_000))
    run = GraphRun(graph)

    def program_of(root: bytes) -> Callable[[], Program]:
        return lambda: run.driver(root)

    cluster = Cluster(
        scenario, seed, [program_of(root) for root in graph.drivers], config=graph.config, costs=costs,
        keep_spans=True, functions=run.functions,
    )  # fmt: skip
    run.clock = lambda: cluster.kernel.now_ns
    cluster.boot()
    _run(cluster, graph, watch)
    spans = cluster.spans or []
    makespan_ns = max(span.end_ns for span in spans) - run.first_ns
    used = {span.worker[:12] for span in spans}
    forwards = cluster.forwards
    utilisation = cluster.work_ns / max(1, makespan_ns * nodes * cpus)
    return Estimate(nodes, cpus, policy, makespan_ns, utilisation, forwards, len(used))


def _run(cluster: Cluster, graph: Graph, watch: Callable[[Cluster], None] | None) -> None:
    """Until every driver has ended, or nothing has ended for longer than all work takes."""
    kernel = cluster.kernel
    patience_ns = 10 * S + 2 * max(graph.makespan_ns, graph.work_ns)
    while cluster.unfinished:
        before = cluster.tasks_run
        kernel.run_until(kernel.now_ns + patience_ns, lambda: not cluster.unfinished or _due(cluster, watch))
        if cluster.unfinished and cluster.tasks_run == before:
            waiting = sum(len(node.node.scheduler.tasks) for node in cluster.nodes)
            raise WhatIfError(
                f"{waiting} tasks wait and none can run: does every node have what they demand? Recorded "
                f"nodes had {[amounts_of(total) for total in graph.nodes]}"
            )


def _due(cluster: Cluster, watch: Callable[[Cluster], None] | None) -> bool:
    if watch is not None and cluster.kernel.events % 4096 == 0:
        watch(cluster)
    return False


def _other_resources(graph: Graph) -> dict[str, float]:
    """What recorded nodes had besides CPUs; every node of the other cluster has the most of each."""
    most: dict[str, float] = {}
    for total in graph.nodes:
        for name, amount in amounts_of(total).items():
            if name != "CPU" and amount > 0:
                most[name] = max(most.get(name, 0.0), amount)
    return most


def predict(
    paths: Sequence[str | Path], *, nodes: int | None = None, cpus: int | None = None,
    policy: str = "paper", seed: int = 0, network: NetworkPart | None = None, costs: Costs | None = None,
    watch: Callable[[Cluster], None] | None = None,
) -> Prediction:  # fmt: skip
    """Read the traces of the nodes of one run, and run its graph on their shape and on another.

    Args:
        paths: one trace per node.
        nodes, cpus: of the other cluster; default: as recorded.
        policy: of the other cluster, a name in ``zray.core.placement.SCHEDULING``.
    Raises:
        TraceError, WhatIfError: if that cannot be done.
    """
    graph = load_graph(paths)
    shape = len(graph.nodes), graph.cpus
    other = nodes or shape[0], cpus or shape[1]

    def run(nodes: int, cpus: int, policy: str) -> Estimate:
        return estimate(
            graph, nodes=nodes, cpus=cpus, policy=policy, seed=seed, network=network, costs=costs, watch=watch
        )

    same = run(*shape, graph.config.scheduling_policy)
    asked = (*other, policy)
    different = same if asked == (*shape, graph.config.scheduling_policy) else run(*asked)
    recorded_ns = graph.makespan_ns
    return Prediction(len(graph.tasks), graph.work_ns, recorded_ns, same, different, _notes(graph, different))


def _notes(graph: Graph, other: Estimate) -> tuple[str, ...]:
    notes = []
    if graph.unfinished:
        notes.append(f"{graph.unfinished} tasks had not ended when the recording did; here they take no time")
    if graph.actors:
        notes.append(f"{graph.actors} actors were created; their calls go past the node and are left out")
    if other.nodes_used < other.nodes:
        notes.append(
            f"{other.nodes_used} of {other.nodes} nodes ran tasks: a task leaves its node only if that is "
            "overloaded or can never run it, and its inputs can follow"
        )
    return tuple(notes)
