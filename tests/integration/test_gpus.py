"""Numbered GPUs on real workers: who sees which, shares, processes of their own, accelerators by name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import zray
from tests import conformance
from tests.support import eventually
from zray.util import state

PATIENCE_S = 30
Sight = tuple[list[int | str], str | None, int]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6")
        with conformance.cluster(num_cpus=4, num_gpus=3, resources={"accelerator_type:T4": 1}):
            yield


@pytest.fixture(autouse=True)
def all_gpus_are_free(cluster: None) -> None:
    """Actors of the test before may be on their way out."""
    eventually(lambda: zray.available_resources().get("GPU") == 3, PATIENCE_S, "that all GPUs are free")


@zray.remote(num_gpus=1, num_cpus=0)
def sight() -> Sight:
    return zray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


@zray.remote(num_cpus=0)
class Seer:
    def sight(self) -> Sight:
        return zray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()

    def accelerators(self) -> dict[str, list[str]]:
        return zray.get_runtime_context().get_accelerator_ids()


def test_a_driver_has_none_and_a_task_sees_what_it_asked_for() -> None:
    assert zray.get_gpu_ids() == []
    assert zray.get(sight.remote(), timeout=PATIENCE_S)[:2] == ([4], "4")
    found, visible, _ = zray.get(sight.options(num_gpus=3).remote(), timeout=PATIENCE_S)
    assert found == [4, 5, "GPU-6"]
    assert visible == "4,5,GPU-6"
    assert zray.get(sight.options(num_gpus=0).remote(), timeout=PATIENCE_S)[:2] == ([], "")


def test_at_once_everybody_sees_another() -> None:
    seers = [Seer.options(num_gpus=1).remote() for _ in range(3)]
    sights = zray.get([seer.sight.remote() for seer in seers], timeout=PATIENCE_S)
    assert sorted(visible for _, visible, _ in sights) == ["4", "5", "GPU-6"]
    assert zray.get(seers[0].accelerators.remote()) == {"GPU": [str(sights[0][0][0])]}
    waiting = sight.remote()
    assert zray.wait([waiting], timeout=0.1) == ([], [waiting])
    held = {gpu for row in state.list_workers() for gpu in row["gpus"]}
    assert held == {0, 1, 2}
    zray.kill(seers[1])  # its GPU is free for the next
    assert zray.get(waiting, timeout=PATIENCE_S)[0] == sights[1][0]


def test_shares_of_one() -> None:
    seers = [Seer.options(num_gpus=0.5).remote() for _ in range(4)]
    sights = [
        visible for _, visible, _ in zray.get([seer.sight.remote() for seer in seers], timeout=PATIENCE_S)
    ]
    assert sorted(map(sights.count, set(sights))) == [2, 2]
    assert zray.get(sight.remote(), timeout=PATIENCE_S)[1] not in sights


def test_a_task_with_gpus_has_a_process_of_its_own() -> None:
    pids = [zray.get(sight.remote(), timeout=PATIENCE_S)[2] for _ in range(3)]
    assert len(set(pids)) == 3
    kept = sight.options(max_calls=0)
    assert len({zray.get(kept.remote(), timeout=PATIENCE_S)[2] for _ in range(3)}) == 1


def test_a_worker_that_is_used_again_sees_others() -> None:
    kept = sight.options(max_calls=0)
    seer = None
    first = zray.get(kept.remote(), timeout=PATIENCE_S)
    seer = Seer.options(num_gpus=1).remote()
    taken = zray.get(seer.sight.remote(), timeout=PATIENCE_S)
    second = zray.get(kept.remote(), timeout=PATIENCE_S)
    assert taken[1] != second[1]
    assert first[2] == second[2] or first[2] == taken[2]
    eventually(lambda: not [row for row in state.list_workers() if row["state"] == "busy"], PATIENCE_S)


def test_an_accelerator_by_name() -> None:
    refs = [sight.options(num_gpus=0, accelerator_type="T4").remote() for _ in range(3)]
    assert len(zray.get(refs, timeout=PATIENCE_S)) == 3
    none = sight.options(accelerator_type="A100").remote()
    assert zray.wait([none], timeout=0.1) == ([], [none])
    zray.cancel(none)


def test_more_than_this_process_may_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from zray.api.session import node_options_of

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match="names 1: 0"):
        node_options_of(num_cpus=1, num_gpus=2, resources=None, object_store_memory=None)
