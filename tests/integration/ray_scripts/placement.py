"""Placement groups, GPUs, custom resources, strategies, what nodes() says."""

import zray as ray
from zray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

ray.init(num_cpus=4, num_gpus=2, resources={"custom": 3})
pg = placement_group([{"CPU": 1}, {"CPU": 1, "GPU": 1}], strategy="PACK", name="mine")
ray.get(pg.ready(), timeout=10)
print(placement_group_table(pg)["state"], pg.bundle_specs, pg.bundle_count, pg.id)
ready, _ = ray.wait([pg.ready()], timeout=5)
assert ready


@ray.remote(num_cpus=1)
class Actor:
    def where(self):
        return ray.util.get_current_placement_group()


a = Actor.options(
    scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=pg, placement_group_bundle_index=0)
).remote()
assert ray.get(a.where.remote()) == pg


@ray.remote(num_gpus=1, num_cpus=0)
def gpu():
    import os

    return (
        ray.get_gpu_ids(),
        os.environ["CUDA_VISIBLE_DEVICES"],
        ray.get_runtime_context().get_accelerator_ids(),
    )


print(ray.get(gpu.options(scheduling_strategy=PlacementGroupSchedulingStrategy(pg)).remote()))
print(ray.get(gpu.remote()))
p2 = placement_group([{"CPU": 100}])
assert not p2.wait(timeout_seconds=0.2)
remove_placement_group(p2)
remove_placement_group(pg)
assert placement_group_table(pg)["state"] == "REMOVED"


@ray.remote(resources={"custom": 1})
def where():
    return ray.get_runtime_context().get_node_id()


nid = ray.get(
    where.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            node_id=ray.get_runtime_context().get_node_id(), soft=False
        )
    ).remote()
)
assert nid == ray.nodes()[0]["NodeID"]
assert ray.get(where.options(scheduling_strategy="SPREAD").remote()) == nid
try:
    ray.get(a.where.remote(), timeout=5)
except ray.exceptions.RayActorError as e:
    print(type(e).__name__)
try:
    Actor.options(foo=1)
except ValueError as e:
    print(e)
n = ray.nodes()[0]
print(
    {
        k: n[k]
        for k in (
            "NodeID",
            "Alive",
            "NodeManagerAddress",
            "NodeManagerHostname",
            "NodeManagerPort",
            "Resources",
            "Labels",
        )
    }
)
