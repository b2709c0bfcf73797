"""Placement groups on real processes: one node, several, and what is left of nodes and drivers that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.clusters import Place, finish, line_of, place
from tests.integration.remotes import wait_for_file
from tests.support import eventually
from zray.api.groups import PlacementGroupSchedulingStrategy as Inside
from zray.cluster_utils import Cluster
from zray.exceptions import (
    ActorPlacementGroupRemoved,
    PlacementGroupError,
    TaskPlacementGroupRemoved,
)
from zray.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from zray.util.placement_group import PlacementGroup

PATIENCE_S = 20.0


@zray.remote
def where() -> str:
    return zray.get_runtime_context().get_node_id()


@zray.remote
def current() -> tuple[PlacementGroup | None, dict[str, float]]:
    return get_current_placement_group(), zray.get_runtime_context().get_assigned_resources()


@zray.remote
def nested() -> list[PlacementGroup | None]:
    return [group for group, _ in zray.get([current.remote(), current.options(num_cpus=0).remote()])]


@zray.remote
def sleeps(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@zray.remote
class Keeper:
    """An actor."""

    def group(self) -> PlacementGroup | None:
        return get_current_placement_group()

    def node(self) -> str:
        return zray.get_runtime_context().get_node_id()

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"


def available_cpus() -> float:
    return zray.available_resources().get("CPU", 0)


@pytest.fixture(scope="class")
def node() -> Iterator[None]:
    """One node with four CPUs."""
    with place() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRAY_TMPDIR", str(here.folder))
        with zray.init(num_cpus=4, resources={"disk": 2}):
            yield


@pytest.mark.usefixtures("node")
class TestOneNode:
    @pytest.fixture(autouse=True)
    def _nothing_is_left(self) -> Iterator[None]:
        yield
        for group_id, row in placement_group_table().items():
            if row["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(bytes.fromhex(group_id)))
        eventually(lambda: available_cpus() == 4, PATIENCE_S)

    def test_ready(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 2, "disk": 1}])
        assert zray.get(group.ready(), timeout=PATIENCE_S) == group
        assert group.bundle_specs == [{"CPU": 1}, {"CPU": 2, "disk": 1}]
        assert group.bundle_count == 2
        assert group.wait(PATIENCE_S)
        assert available_cpus() == 1
        assert zray.cluster_resources()["CPU"] == 4

    def test_the_table(self) -> None:
        group = placement_group([{"CPU": 1}], strategy="SPREAD", name="mine")
        assert group.wait(PATIENCE_S)
        row = placement_group_table(group)
        assert (row["name"], row["state"], row["strategy"]) == ("mine", "CREATED", "SPREAD")
        assert row["bundles"] == {0: {"CPU": 1}}
        assert row["bundles_to_node_id"] == {0: zray.get_runtime_context().get_node_id()}
        assert placement_group_table()[group.id.hex()] == row
        remove_placement_group(group)
        assert placement_group_table(group)["state"] == "REMOVED"

    def test_tasks_draw_from_their_bundle(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 2}])
        inside = current.options(scheduling_strategy=Inside(group, 1), num_cpus=2)
        assert zray.get([inside.remote() for _ in range(3)]) == [(group, {"CPU": 2})] * 3
        assert zray.get(current.options(num_cpus=0, scheduling_strategy=Inside(group)).remote()) == (
            group,
            {},
        )
        busy = sleeps.options(scheduling_strategy=Inside(group, 0)).remote(1.0)
        one_more = sleeps.options(scheduling_strategy=Inside(group, 0)).remote(0)
        outside = current.remote()
        assert zray.wait([outside, one_more], timeout=PATIENCE_S) == ([outside], [one_more])
        assert zray.get([busy, one_more]) == ["slept", "slept"]

    def test_a_blocked_task_lends_its_bundle(self) -> None:
        group = placement_group([{"CPU": 1}])
        inside = Inside(group, placement_group_capture_child_tasks=True)
        assert zray.get(nested.options(scheduling_strategy=inside).remote(), timeout=PATIENCE_S) == [
            group,
            group,
        ]

    def test_children_are_outside_unless_they_are_captured(self) -> None:
        group = placement_group([{"CPU": 1}])
        assert zray.get(nested.options(scheduling_strategy=Inside(group)).remote()) == [None, None]

    def test_actors(self) -> None:
        group = placement_group([{"CPU": 1}])
        keeper = Keeper.options(num_cpus=1, scheduling_strategy=Inside(group, 0)).remote()
        assert zray.get(keeper.group.remote(), timeout=PATIENCE_S) == group
        second = Keeper.options(num_cpus=1, scheduling_strategy=Inside(group, 0)).remote()
        waiting = second.group.remote()
        assert zray.wait([waiting], timeout=0.3) == ([], [waiting])
        zray.kill(keeper)
        assert zray.get(waiting, timeout=PATIENCE_S) == group

    def test_removal_ends_what_is_inside(self) -> None:
        group = placement_group([{"CPU": 2}])
        inside = Inside(group)
        keeper = Keeper.options(scheduling_strategy=inside, max_restarts=-1).remote()
        assert zray.get(keeper.group.remote(), timeout=PATIENCE_S) == group
        calls = [keeper.sleep.remote(60)]
        tasks = [sleeps.options(scheduling_strategy=inside, max_retries=-1).remote(60) for _ in range(4)]
        eventually(lambda: len(_running("sleeps")) == 2, PATIENCE_S)
        remove_placement_group(group)
        for ref in tasks:
            with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
                zray.get(ref, timeout=PATIENCE_S)
        for ref in (*calls, keeper.group.remote()):
            with pytest.raises(ActorPlacementGroupRemoved, match=group.id.hex()):
                zray.get(ref, timeout=PATIENCE_S)
        with pytest.raises(TaskPlacementGroupRemoved):  # and what comes too late
            zray.get(sleeps.options(scheduling_strategy=inside).remote(0), timeout=PATIENCE_S)
        remove_placement_group(group)
        assert not group.wait(PATIENCE_S)

    def test_what_is_busy_now_is_placed_later(self) -> None:
        first = placement_group([{"CPU": 3}])
        assert first.wait(PATIENCE_S)
        second = placement_group([{"CPU": 2}])
        assert not second.wait(0.3)
        assert placement_group_table(second)["waits_for"].startswith("busy now: bundle 0")
        remove_placement_group(first)
        assert second.wait(PATIENCE_S)

    def test_what_can_never_be_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 8}], name="large")
        apart = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        assert not group.wait(0.1)
        assert "has 4 of 8 CPU" in placement_group_table(group)["waits_for"]
        assert "different nodes" in placement_group_table(apart)["waits_for"]
        assert available_cpus() == 4

        def warned() -> bool:
            zray.get(where.remote())
            return "placement group 'large'" in caplog.text and "bundle 1" in caplog.text

        eventually(warned, PATIENCE_S)

    def test_names(self) -> None:
        group = placement_group([{"CPU": 1}], name="called")
        assert get_placement_group("called") == group
        assert get_placement_group("called").bundle_specs == [{"CPU": 1}]
        with pytest.raises(PlacementGroupError, match="is taken"):
            placement_group([{"CPU": 1}], name="called")
        remove_placement_group(group)
        with pytest.raises(ValueError, match="no placement group"):
            get_placement_group("called")
        assert placement_group([{"CPU": 1}], name="called").wait(PATIENCE_S)

    @pytest.mark.parametrize(
        ("bundles", "options"),
        [
            ([], {}), ([{}], {}), ([{"CPU": 0}], {}), ([{"CPU": -1}], {}),
            ([{"CPU": 1}], {"strategy": "MAYBE"}),
            ([{"CPU": 1}], {"lifetime": "for ever"}), ([{"CPU": 1}] * 2000, {}),
            ([{"CPU": 1}], {"bundle_label_selector": [{}]}),
        ],
    )  # fmt: skip
    def test_nonsense_is_refused(self, bundles: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r".+"):
            placement_group(bundles, **options)

    def test_wrong_types_are_refused(self) -> None:
        for bundles in ("CPU", [("CPU", 1)], {"CPU": 1}):
            with pytest.raises(TypeError):
                placement_group(bundles)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="has no option"):
            placement_group([{"CPU": 1}], colour="red")
        with pytest.raises(TypeError):
            Inside("group")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            remove_placement_group("group")  # type: ignore[arg-type]

    def test_what_fits_no_bundle_is_refused_at_once(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 2}])
        for index in (-2, 2):
            with pytest.raises(ValueError, match="bundle_index"):
                Inside(group, index)
        with pytest.raises(ValueError, match="does not fit bundle 0"):
            sleeps.options(num_cpus=2, scheduling_strategy=Inside(group, 0)).remote(0)
        with pytest.raises(ValueError, match="does not fit any bundle"):
            Keeper.options(num_gpus=1, scheduling_strategy=Inside(group)).remote()

    def test_groups_travel(self) -> None:
        @zray.remote
        def makes() -> PlacementGroup:
            made = placement_group([{"CPU": 1}])
            assert made.wait(PATIENCE_S)
            return made

        made = zray.get(makes.remote())
        assert made.bundle_specs == [{"CPU": 1}]
        assert zray.get(current.options(scheduling_strategy=Inside(made)).remote())[0] == made


def _running(name: str) -> list[str]:
    from zray.util.state import list_tasks

    return [row["task_id"] for row in list_tasks() if row["name"] == name and row["state"] == "RUNNING"]


# --- drivers that end ----------------------------------------------------------------------------

MAKES_TWO = """
    import time, zray
    from zray.util import placement_group
    zray.init(address={address!r}, namespace="shared")
    mine = placement_group([{{"CPU": 1}}])
    kept = placement_group([{{"CPU": 1}}], name="kept", lifetime="detached")
    assert mine.wait(20) and kept.wait(20)
    print("made", flush=True)
    input()
"""


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "leave"])
def test_groups_end_with_their_driver(here: Place, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
    with zray.init(num_cpus=4, namespace="shared") as context:
        other = here.start(MAKES_TWO.format(address=context.address))
        assert line_of(other) == "made"
        assert available_cpus() == 2
        if how == "kill":
            other.send_signal(signal.SIGKILL)
            finish(other)
        else:
            assert finish(other, "\n").returncode == 0
        eventually(lambda: available_cpus() == 3, PATIENCE_S)
        remove_placement_group(get_placement_group("kept"))
        eventually(lambda: available_cpus() == 4, PATIENCE_S)


# --- several nodes -------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes of two CPUs; this process is a driver of the first."""
    with place() as found:
        for name, value in found.environment.items():
            if os.environ.get(name) != value and name != "PYTHONPATH":
                monkeypatch.setenv(name, value)
        with Cluster(True, head_node_args=_node()) as made:
            made.add_node(wait=False, **_node())
            made.add_node(**_node())
            with made.connect():
                yield made


def _node() -> dict[str, Any]:
    return {"num_cpus": 2, "object_store_memory": 128 << 20}


def nodes_of(group: PlacementGroup) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def tasks_in(group: PlacementGroup) -> list[str]:
    """The node on which a task of each bundle runs."""
    refs = [
        where.options(scheduling_strategy=Inside(group, index), max_retries=-1).remote()
        for index in range(group.bundle_count)
    ]
    return list(zray.get(refs, timeout=PATIENCE_S))


@pytest.mark.slow
class TestSeveralNodes:
    def on_so_many(self, strategy: str, bundles: list[dict[str, float]], nodes: int) -> PlacementGroup | None:
        """A group, unless it is on more nodes because another one was about to be given back."""
        group = placement_group(bundles, strategy=strategy)
        assert group.wait(PATIENCE_S), strategy
        if len(set(nodes_of(group))) == nodes:
            return group
        assert strategy == "PACK"
        remove_placement_group(group)
        return None

    def test_strategies(self, cluster: Cluster) -> None:
        for strategy, bundles, nodes in (
            ("STRICT_SPREAD", [{"CPU": 1}] * 3, 3), ("SPREAD", [{"CPU": 1}] * 3, 3),
            ("PACK", [{"CPU": 1}] * 4, 2), ("STRICT_PACK", [{"CPU": 1}] * 2, 1),
        ):  # fmt: skip
            group = eventually(lambda: self.on_so_many(strategy, bundles, nodes), PATIENCE_S, strategy)  # noqa: B023
            assert tasks_in(group) == nodes_of(group), strategy
            remove_placement_group(group)
        whole = placement_group([{"CPU": 2}] * 3)  # everything that was reserved is free again
        assert whole.wait(PATIENCE_S)

    def test_a_node_that_is_killed_before_a_group_is_there(self, cluster: Cluster) -> None:
        """A stopped node is asked to prepare and dies over it: nothing of the attempt is left."""
        victim = cluster.worker_nodes[0]
        os.kill(victim.pid, signal.SIGSTOP)
        group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
        assert not group.wait(0.3)
        cluster.remove_node(victim, allow_graceful=False)
        eventually(lambda: "different nodes" in placement_group_table(group)["waits_for"], PATIENCE_S)
        assert placement_group_table(group)["state"] == "PENDING"
        both = placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD")
        assert both.wait(PATIENCE_S)
        remove_placement_group(both)
        cluster.add_node(**_node())
        assert group.wait(PATIENCE_S)

    def test_a_node_that_is_killed_with_a_bundle(self, cluster: Cluster, tmp_path: Path) -> None:
        group = placement_group([{"CPU": 1}] * 3, strategy="SPREAD")
        assert group.wait(PATIENCE_S)
        before = nodes_of(group)
        victim = next(node for node in cluster.worker_nodes if node.node_id in before)
        lost = before.index(victim.node_id)
        strategy = Inside(group, lost)
        go = tmp_path / "go"
        options = {"scheduling_strategy": strategy, "max_retries": -1}
        running = wait_for_file.options(**options).remote(str(go))
        eventually(lambda: _running("wait_for_file"), PATIENCE_S)
        cluster.remove_node(victim, allow_graceful=False)
        go.touch()  # only now can it end: whoever returns it ran where the bundle is then
        assert zray.get(running, timeout=PATIENCE_S) == str(go)
        after = nodes_of(group)
        assert victim.node_id not in after
        assert [place for i, place in enumerate(after) if i != lost] == [
            place for i, place in enumerate(before) if i != lost
        ]
        assert placement_group_table(group)["state"] == "CREATED"
        assert tasks_in(group) == after

    def test_actors_live_where_their_bundle_is(self, cluster: Cluster) -> None:
        group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
        keepers = [
            Keeper.options(num_cpus=1, scheduling_strategy=Inside(group, index)).remote()
            for index in range(3)
        ]
        found = zray.get([keeper.node.remote() for keeper in keepers], timeout=PATIENCE_S)
        assert found == nodes_of(group)
        remove_placement_group(group)
        for keeper in keepers:
            with pytest.raises(ActorPlacementGroupRemoved):
                zray.get(keeper.node.remote(), timeout=PATIENCE_S)
        assert placement_group([{"CPU": 2}] * 3).wait(PATIENCE_S)

    def test_removal_reaches_every_node(self, cluster: Cluster) -> None:
        group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
        assert group.wait(PATIENCE_S)
        refs = [
            sleeps.options(num_cpus=2, scheduling_strategy=Inside(group, index), max_retries=-1).remote(60)
            for index in range(3)
        ]
        assert zray.wait(refs, timeout=0.5) == ([], refs)
        remove_placement_group(group)
        for ref in refs:
            with pytest.raises(TaskPlacementGroupRemoved):
                zray.get(ref, timeout=PATIENCE_S)
        assert placement_group([{"CPU": 2}] * 3).wait(PATIENCE_S)
