"""Placement groups and names of actors, of user code in virtual time."""

from __future__ import annotations

import pytest

import zray
from zray.errors import ActorGroupRemovedError, TaskGroupRemovedError
from zray.util import get_current_placement_group, placement_group, remove_placement_group
from zray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

Place = tuple[bytes | None, str]


@zray.remote
def where() -> Place:
    group = get_current_placement_group()
    return None if group is None else group.id, zray.get_runtime_context().get_node_id()


@zray.remote
class Member:
    def where(self) -> Place:
        group = get_current_placement_group()
        return None if group is None else group.id, zray.get_runtime_context().get_node_id()


def cluster(**options: object) -> zray.api.simulation.Simulation:
    return zray.simulate(nodes=2, cpus=2, seed=5, durations=lambda name, random: 0.1, **options)


def test_tasks_and_actors_are_in_their_bundles() -> None:
    with cluster():
        group = placement_group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
        assert zray.get(group.ready()) == group
        inside = [PlacementGroupSchedulingStrategy(group, index) for index in (0, 1)]
        member = Member.options(num_cpus=1, scheduling_strategy=inside[0]).remote()
        first, called, second, outside = zray.get(
            [
                where.options(num_cpus=0.5, scheduling_strategy=inside[1]).remote(),
                member.where.remote(),
                where.options(num_cpus=0.5, scheduling_strategy=inside[1]).remote(),
                where.remote(),
            ]
        )
        assert get_current_placement_group() is None
    assert first == second
    assert first[0] == called[0] == group.id
    assert first[1] != called[1]
    assert outside[0] is None


def test_what_does_not_fit_waits_in_virtual_time_until_another_is_removed() -> None:
    with cluster() as run:
        first = placement_group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
        assert first.wait(3)
        inside = PlacementGroupSchedulingStrategy(first, 0)
        member = Member.options(num_cpus=1, scheduling_strategy=inside).remote()
        zray.get(member.where.remote())
        second = placement_group([{"CPU": 2}, {"CPU": 2}], "STRICT_SPREAD")
        before_s = run.now_s
        assert not second.wait(3)
        assert 3 <= run.now_s - before_s < 3.1
        remove_placement_group(first)
        assert second.wait(3)
        with pytest.raises(ActorGroupRemovedError):
            zray.get(member.where.remote())
        with pytest.raises(TaskGroupRemovedError):
            zray.get(where.options(scheduling_strategy=inside).remote())


def test_a_run_with_groups_and_dying_workers_depends_on_its_seed_alone() -> None:
    def digest() -> str:
        with cluster(faults={"worker_crash": 2.0}) as run:
            group = placement_group([{"CPU": 1}, {"CPU": 1}], "SPREAD")
            inside = PlacementGroupSchedulingStrategy(group)
            again = where.options(max_retries=-1, scheduling_strategy=inside)
            places = zray.get([again.remote() for _ in range(20)])
            remove_placement_group(group)
        assert {place[0] for place in places} == {group.id}
        return run.digest

    assert digest() == digest()


def test_a_named_actor_is_found_and_its_name_is_taken() -> None:
    with cluster():
        made = Member.options(name="one").remote()
        assert zray.get(zray.get_actor("one").where.remote()) == zray.get(made.where.remote())
        with pytest.raises(ValueError, match="one"):
            Member.options(name="one").remote()
        with pytest.raises(ValueError, match="other"):
            zray.get_actor("other")
