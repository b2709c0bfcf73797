"""What the paper says of the global scheduler, one test per claim."""

from __future__ import annotations

from collections import Counter

from zray.config import Config
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import pump
from zray.core.resources import demand_from
from zray.protocol.messages import Describe, Forward, NodeReport, Place, Submit

MS = 1_000_000
MB = 1_000_000
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
NODES = (A, B, C)
Inputs = tuple[tuple[bytes, int, tuple[bytes, ...]], ...]


def scheduler(policy: str = "paper") -> GlobalScheduler:
    # The paper places a task once: what is offloaded later is not its claim.
    return GlobalScheduler(config=Config(offload_patience_ns=-1), policy=policy)


def heartbeat(
    machine: GlobalScheduler,
    node_id: bytes,
    *,
    resources: dict[str, float] | None = None,
    idle: bool = True,
    queue: int = 0,
    run_ns: int = 10 * MS,
    bandwidth: int = 1_000 * MB,
) -> None:
    total = demand_from(resources or {"CPU": 1})
    report = NodeReport(node_id, 1, total, total if idle else (), queue, run_ns, bandwidth)
    pump(machine, [(node_id, report)], 0)


def where(machine: GlobalScheduler, number: int, demand: dict[str, float], inputs: Inputs = ()) -> bytes:
    """Forward one task and return the node it was placed on."""
    descriptor = Describe(b"d" * 16, b"f" * 16, "f", 1, demand_from(demand), 0)
    spec = Submit(number.to_bytes(16, "big"), b"p" * 16, b"d" * 16, b"")
    pump(machine, [(b"forwarder", Forward(spec, descriptor, 0, inputs))], 0)
    machine.check()
    [(node_id, message)] = machine.out
    assert isinstance(message, Place)
    machine.out.clear()
    return node_id


def test_only_nodes_with_the_requested_type_of_resource_are_considered() -> None:
    """Reference: section 4.2.2: the nodes with enough resources of the type requested by the task."""
    machine = scheduler()
    heartbeat(machine, A, resources={"CPU": 64})
    heartbeat(machine, B, resources={"CPU": 1, "GPU": 1}, idle=False, queue=1000)
    assert where(machine, 1, {"GPU": 1}) == B


def test_the_node_with_the_lowest_estimated_waiting_time_is_chosen() -> None:
    """Reference: section 4.2.2: of these nodes, the one with the lowest estimated waiting time."""
    machine = scheduler()
    for node_id, queue in zip(NODES, (7, 3, 5), strict=True):
        heartbeat(machine, node_id, idle=False, queue=queue)
    assert where(machine, 1, {"CPU": 1}) == B


def test_queueing_time_is_queue_size_times_average_run_time() -> None:
    """Reference: section 4.2.2: task queue size times average task execution."""
    machine = scheduler()
    heartbeat(machine, A, idle=False, queue=2, run_ns=50 * MS)
    heartbeat(machine, B, idle=False, queue=20, run_ns=5 * MS)
    assert where(machine, 1, {"CPU": 1}) == B
    heartbeat(machine, B, idle=False, queue=40, run_ns=5 * MS)
    assert where(machine, 2, {"CPU": 1}) == A


def test_transfer_time_is_the_size_of_remote_inputs_over_the_bandwidth() -> None:
    """Reference: section 4.2.2: total size of remote inputs divided by average bandwidth."""
    machine = scheduler()
    for node_id in NODES:
        heartbeat(machine, node_id)
    inputs = ((b"x" * 16, 10 * MB, (A,)), (b"y" * 16, 30 * MB, (C,)))
    assert where(machine, 1, {"CPU": 1}, inputs) == C


def test_waiting_is_the_sum_of_queueing_and_transfer() -> None:
    """Reference: section 4.2.2: (i) the time queued at the node and (ii) the transfer of its inputs."""
    for size_bytes, chosen in ((99 * MB, B), (101 * MB, A)):
        machine = scheduler()
        heartbeat(machine, A, idle=False, queue=9)  # 100 ms behind nine tasks and the one that runs
        heartbeat(machine, B)  # 1 ms per MB
        assert where(machine, 1, {"CPU": 1}, ((b"x" * 16, size_bytes, (A,)),)) == chosen


def test_with_equal_bytes_the_least_loaded_node_wins() -> None:
    """Reference: section 4.2.2: locality alone does not decide."""
    machine = scheduler()
    for node_id, queue in zip(NODES, (3, 2, 1), strict=True):
        heartbeat(machine, node_id, idle=False, queue=queue)
    assert where(machine, 1, {"CPU": 1}, ((b"x" * 16, 100 * MB, (A, B)),)) == B


def test_run_times_and_bandwidth_are_averaged_exponentially() -> None:
    """Reference: section 4.2.2: simple exponential averaging of execution time and bandwidth."""
    machine = scheduler()
    for _ in range(60):
        heartbeat(machine, A, idle=False, queue=9, run_ns=2 * MS)
    heartbeat(machine, B, idle=False, queue=10, run_ns=0)  # measured nothing: taken for average
    heartbeat(machine, C, idle=False, queue=1, run_ns=12 * MS)
    assert where(machine, 1, {"CPU": 1}) == A
    heartbeat(machine, A, idle=False, queue=11, run_ns=2 * MS)
    assert where(machine, 2, {"CPU": 1}) == B


def test_a_stale_heartbeat_does_not_attract_a_herd() -> None:
    """Reference: section 4.2.2: load comes by heartbeats, so between two of them it has to be estimated."""
    machine = scheduler()
    for node_id in NODES:
        heartbeat(machine, node_id, resources={"CPU": 8})
    heartbeat(machine, B, resources={"CPU": 8}, idle=False, queue=4)
    chosen = Counter(where(machine, n, {"CPU": 1}) for n in range(100))
    assert chosen == {A: 38, B: 25, C: 37}  # B: twelve fewer, for eight run there and four wait


def test_aware_placement_finds_every_input_and_blind_placement_does_not() -> None:
    """Reference: section 5.1, figure 8a: tasks that each depend on one object of one of two nodes."""
    found = {}
    for policy in ("paper", "locality_blind"):
        machine = scheduler(policy)
        hits = 0
        for n in range(200):
            heartbeat(machine, A)
            heartbeat(machine, B)
            holder = NODES[n % 2]
            hits += where(machine, n, {"CPU": 1}, ((n.to_bytes(16, "big"), 10 * MB, (holder,)),)) == holder
        found[policy] = hits
    assert found["paper"] == 200
    assert found["locality_blind"] < 120
