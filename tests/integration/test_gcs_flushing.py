"""Shards that flush as real processes: what was flushed is there, however they end, and is used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.clusters import MARK, Place, finish, line_of, place
from tests.integration.test_gcs import connect, hello, records, scan, start  # noqa: F401  fixtures
from tests.support import eventually
from zray.cluster_utils import Cluster
from zray.protocol.documents import encode_value
from zray.protocol.messages import (
    TABLE_TASK,
    Recorded,
    RecordTasks,
    ReleaseLineage,
    ShardWelcome,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TINY = "--memory-max", "20000"
"""Room for about thirty rows."""
COUNT = 3_000


def recorded(client: Any, count: int = COUNT) -> None:
    """Say hello and give a shard that many records."""
    assert isinstance(client.ask(hello()), ShardWelcome)
    batches = range(0, count, 500)
    for number, first in enumerate(batches):
        client.send(RecordTasks(number + 1, records(first, 500)))
    assert client.take(len(batches)) == [Recorded(number + 1) for number in range(len(batches))]


def all_rows(client: Any) -> list[bytes]:
    """The keys of the task table, page by page."""
    found: list[bytes] = []
    while True:
        page = client.ask(TableScan(0, TABLE_TASK, found[-1] if found else b"", 100_000))
        assert isinstance(page, TablePage)
        found += [key for key, _ in page.entries]
        if not page.more:
            return found


def row_file_of(pid: int) -> str:
    """The file of flushed rows of a process, which has no name."""
    links = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    [found] = [link for link in links if ".rows" in os.readlink(link)]
    return found


def is_there(client: Any, number: int) -> bool:
    [row] = records(number, 1)
    return client.ask(TableGet(9, TABLE_TASK, row.task_id)) == TableReply(9, True, encode_value(row))


def test_flushed_rows_are_read_and_are_back_after_sigkill(start: Any, connect: Any) -> None:  # noqa: F811
    gcs = start(*TINY)
    client = connect(gcs.endpoint)
    recorded(client)
    assert os.stat(row_file_of(gcs.process.pid)).st_size > 100 * COUNT
    assert all(is_there(client, number) for number in (0, 1, COUNT // 2, COUNT - 1))
    assert not client.ask(TableGet(9, TABLE_TASK, b"nobody" + bytes(10))).ok
    client.send(ReleaseLineage(tuple(row.task_id for row in records(0, 100))))
    assert not is_there(client, 0)  # its arguments are gone
    gcs.end(signal.SIGKILL)

    gcs = start(*TINY)
    again = connect(gcs.endpoint, identity=b"again")
    keys = [row.task_id for row in records(0, COUNT)]
    assert all_rows(again) == keys
    assert os.stat(row_file_of(gcs.process.pid)).st_size > 100 * COUNT  # it flushed while it recovered
    assert not is_there(again, 99)
    assert is_there(again, 100)
    assert f"recovered {COUNT + 1} records" in gcs.log()  # and one of the node


def test_a_compacted_log_has_flushed_rows(start: Any, connect: Any) -> None:  # noqa: F811
    small = {**os.environ, "ZRAY_LOG_COMPACT_BYTES": "100000"}
    gcs = start(*TINY, env=small)
    recorded(connect(gcs.endpoint))
    assert "compacted" in gcs.log()
    gcs.end(signal.SIGKILL)
    again = connect(start().endpoint, identity=b"again")  # without a limit: its log is any shard's
    assert len(scan(again, TABLE_TASK)) == COUNT


def test_a_disk_without_room_costs_memory_and_no_row(start: Any, connect: Any) -> None:  # noqa: F811
    full = {**os.environ, "ZRAY_GCS_FLUSH_BYTES_MAX": "200000"}
    gcs = start(*TINY, env=full)
    client = connect(gcs.endpoint)
    recorded(client)
    assert len(all_rows(client)) == COUNT
    assert is_there(client, 0)
    assert is_there(client, COUNT - 1)
    assert "stay in memory, above the limit" in gcs.log()


def test_a_damaged_file_ends_the_shard_which_recovers_from_its_log(start: Any, connect: Any) -> None:  # noqa: F811
    gcs = start("--memory-max", "1000000")
    client = connect(gcs.endpoint)
    recorded(client, 60_000)  # more than is cached
    eventually(lambda: os.stat(row_file_of(gcs.process.pid)).st_size > 150 * 55_000, 20.0)
    with open(row_file_of(gcs.process.pid), "r+b", buffering=0) as file:
        for offset in range(4096 * 3, os.fstat(file.fileno()).st_size, 4096):
            os.pwrite(file.fileno(), b"\x7fgarbage" * 256, offset + 1024)
    client.send(*(TableGet(9, TABLE_TASK, row.task_id) for row in records(0, 30_000)[::1000]))
    assert gcs.process.wait(20) == 1
    assert "has all of them again from its log" in gcs.log()
    again = connect(start("--memory-max", "1000000").endpoint, identity=b"again")
    assert all(is_there(again, number) for number in range(0, 60_000, 6_000))


def test_a_limit_asks_for_a_log(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zray.services.gcs", "--listen", f"ipc://{tmp_path}/g", *TINY],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--data-dir" in done.stderr


def test_init_and_start_hand_the_limit_to_every_shard() -> None:
    """Two shards by ``zray.init``, two replicas of one by ``zray start``: each has a file of its own."""

    def files(here: Place) -> int:
        found = 0
        for process in here.processes():
            with suppress(OSError):
                links = [
                    os.readlink(f"/proc/{process.pid}/fd/{fd}")
                    for fd in os.listdir(f"/proc/{process.pid}/fd")
                ]
                found += any(".rows" in link for link in links)
        return found

    with place() as here:
        driver = here.start(
            "import zray; zray.init(num_cpus=1, gcs_shards=2, gcs_memory_max=1000); print(1); input()"
        )
        assert line_of(driver) == "1"
        eventually(lambda: files(here) == 2, 20.0)
        finish(driver, "\n")
        started = here.zray(
            "start", "--head", "--num-cpus", "1", "--gcs-replicas", "2", "--gcs-memory-max", "1000"
        )
        assert started.returncode == 0, started.stderr
        eventually(lambda: files(here) == 2, 20.0)
        assert here.zray("stop").returncode == 0


# --- clusters ------------------------------------------------------------------------------------

SMALL = {"num_cpus": 2, "object_store_memory": 64 << 20}
ENVIRONMENT = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0", "ZRAY_GCS_MEMORY_MAX": "3000"}


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes on one shard, of as many replicas as the test wants, with room for some four rows."""
    with place() as here:
        monkeypatch.setenv("ZRAY_TMPDIR", str(here.folder))
        monkeypatch.setenv(MARK, here.mark)
        with Cluster(
            True, head_node_args={**SMALL, "num_cpus": 1}, environment=ENVIRONMENT,
            gcs_replicas=request.param,
        ) as found:  # fmt: skip
            found.add_node(resources={"other": 2}, **SMALL)
            yield found


@zray.remote(max_retries=-1, num_cpus=0.1)
def link(before: tuple[int, bytes], number: int) -> tuple[int, bytes]:
    """One of a chain, too large to be inline: whoever loses it must run it again."""
    return before[0] + number, bytes(40_000)


@pytest.mark.parametrize("cluster", [1, 2], indirect=True, ids=["alone", "chain"])
def test_flushed_lineage_rebuilds_what_a_node_took_along(cluster: Cluster) -> None:
    """A chain of tasks whose rows were flushed, on a node that dies after each replica began anew."""
    elsewhere = link.options(resources={"other": 0.01})
    store = cluster.control_store
    with cluster.connect():
        chain = [elsewhere.remote((0, b""), 0)]
        for number in range(1, 30):
            chain.append(elsewhere.remote(chain[-1], number))
        assert len(zray.wait(chain, num_returns=30, timeout=60, fetch_local=False)[0]) == 30
        for replica in range(store.replicas):
            assert os.stat(row_file_of(store.pid(0, replica))).st_size > 3 * 4096
            store.kill(0, replica)
            store.start(0, replica)
            store.wait_for_chains()
        [victim] = cluster.worker_nodes
        cluster.add_node(resources={"other": 2}, **SMALL)
        cluster.remove_node(victim, allow_graceful=False)
        assert zray.get(chain[-1], timeout=60)[0] == sum(range(30))
        assert zray.get(chain[7], timeout=60)[0] == sum(range(8))
