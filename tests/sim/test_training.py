"""Workloads of distributed training do what they are named after, also on nodes that are not equal."""

from __future__ import annotations

import pytest

from sim.cluster import Cluster, root_task_of
from sim.kernel import stream
from sim.oracle import Oracle
from sim.scenario import ClusterPart, Scenario, ScenarioError, WorkloadPart, parse
from sim.training import PARTICIPANTS_MAX, allreduce
from sim.workload import programs_of


@pytest.mark.parametrize("tasks", [20, 50, 1_000])
def test_after_an_allreduce_everybody_has_the_sum_of_all(tasks: int) -> None:
    work = WorkloadPart("allreduce", tasks=tasks, object_kib=1)
    count = max(2, min(PARTICIPANTS_MAX, tasks // 10))
    expected = sum(1 + 100 * participant + chunk for participant in range(count) for chunk in range(count))
    totals = Oracle(root_task_of(0)).run(allreduce(work, stream(0, "workload")))
    assert totals == [expected] * count


def test_nodes_may_be_unequal() -> None:
    scenario = Scenario("unequal", cluster=ClusterPart(nodes=3, cpus=8, node_cpus=(4, 1)))
    cluster = Cluster(scenario, 0, programs_of(scenario, 0))
    assert [node.cpus for node in cluster.nodes] == [4, 1, 8]
    with pytest.raises(ScenarioError, match=r"cluster\.node_cpus"):
        parse('name = "x"\n[cluster]\nnode_cpus = [0]', "x.toml")
