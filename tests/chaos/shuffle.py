"""A shuffle over several nodes while nodes and replicas of the control store are killed.

``python -m tests.chaos.shuffle --size 1G --runs 20`` is the acceptance run: ten nodes, one of which is killed
every five seconds and replaced, on shards of three replicas, one of which is killed every ten seconds and
started again. Every run shuffles until all its killers have struck, and is judged by its sums and orders, and
by the history of what everybody saw meanwhile (``history.py``): tasks that shuffle, callers of actors, and
clients of the control store that write and read keys.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import zray
from tests.chaos.history import Checked, judge, read_history
from tests.chaos.witnesses import Calls, note_attempt, note_reads, store_clients
from tests.clusters import MARK, place
from zray.cluster_utils import Cluster
from zray.types import ObjectRef

GET_TIMEOUT_S = 300
SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
FOR_ALL = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}


class Shape(NamedTuple):
    """What is shuffled where, and what dies how often; an interval of 0: it does not."""

    size_bytes: int = 48 << 20
    parts: int = 24
    nodes: int = 10
    shards: int = 1
    replicas: int = 1
    store_bytes: int = 256 << 20
    node_kill_s: float = 2.0
    replica_kill_s: float = 0.0
    rounds: int = 1
    strikes: int = 3
    """Of each killer, before a run may end."""

    @property
    def part_count(self) -> int:
        """Numbers in one part."""
        return self.size_bytes // self.parts // 8 // self.parts * self.parts


class Report(NamedTuple):
    """What a run did."""

    seed: int
    rounds: int
    seconds: float
    nodes_killed: int
    replicas_killed: int
    checked: Checked


@zray.remote(max_retries=-1)
def mapped(history: str, number: int, round_: int, count: int, parts: int) -> list[np.ndarray]:
    """The values ``number * count .. (number + 1) * count`` in an order of their own, cut by remainder."""
    note_attempt(history)
    values = np.random.default_rng([number, round_]).permutation(count) + number * count
    return [values[values % parts == part] for part in range(parts)]


@zray.remote(max_retries=-1)
def reduced(history: str, parts: int, names: list[str], *pieces: np.ndarray) -> tuple[int, int, bool]:
    """How many values one remainder has, their sum, and whether they are a whole sequence."""
    note_attempt(history)
    note_reads(history, names, pieces)
    whole = np.sort(np.concatenate(pieces))
    return len(whole), int(whole.sum()), bool((np.diff(whole) == parts).all())


@zray.remote(max_retries=-1, scheduling_strategy="SPREAD")
def read_again(history: str, names: list[str], *pieces: np.ndarray) -> None:
    """Another reader of what a ``reduced`` reads, on whichever node."""
    note_attempt(history)
    note_reads(history, names, pieces)


class Killer(threading.Thread):
    """Strikes every few seconds until it is told to stop; what goes wrong meanwhile is kept for the judge."""

    def __init__(self, strike: Callable[[], None], interval_s: float) -> None:
        super().__init__(daemon=True)
        self.strike, self.interval_s = strike, interval_s
        self.over = threading.Event()
        self.killed = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.wait(self.interval_s):
                self.strike()
                self.killed += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Returns when the last strike is over.

        Raises:
            BaseException: the one that ended it before.
        """
        self.over.set()
        self.join()
        if self.error is not None:
            raise self.error


def killers_of(cluster: Cluster, shape: Shape, seed: int) -> list[Killer]:
    """One for nodes other than the driver's, one for replicas; each with a random stream of its own."""

    of_nodes, draw = random.Random(f"{seed}/nodes"), random.Random(f"{seed}/replicas")

    def kill_node() -> None:
        cluster.remove_node(of_nodes.choice(cluster.worker_nodes), allow_graceful=False)
        cluster.add_node(wait=False, num_cpus=2, object_store_memory=shape.store_bytes)

    def kill_replica() -> None:
        store = cluster.control_store
        store.wait_for_chains()  # one failure of a chain at a time is what is promised
        shard, replica = draw.randrange(store.shards), draw.randrange(store.replicas)
        store.kill(shard, replica)
        time.sleep(draw.uniform(0.0, min(1.0, shape.replica_kill_s / 4)))  # the fault: how long it is away
        store.start(shard, replica)

    killers = []
    if shape.node_kill_s:
        killers.append(Killer(kill_node, shape.node_kill_s))
    if shape.replica_kill_s:
        killers.append(Killer(kill_replica, shape.replica_kill_s))
    return killers


def shuffle_once(shape: Shape, round_: int, history: str) -> None:
    """One shuffle, of which one column is read twice.

    Raises:
        AssertionError: if a value is lost, doubled or out of order.
    """
    parts, count = shape.parts, shape.part_count
    maps = [mapped.options(num_returns=parts).remote(history, n, round_, count, parts) for n in range(parts)]
    columns: list[list[ObjectRef]] = [[pieces[part] for pieces in maps] for part in range(parts)]
    names = [[ref.hex() for ref in column] for column in columns]
    reduces = [reduced.remote(history, parts, names[n], *column) for n, column in enumerate(columns)]
    again = read_again.remote(history, names[round_ % parts], *columns[round_ % parts])
    results = zray.get(reduces, timeout=GET_TIMEOUT_S)
    zray.get(again, timeout=GET_TIMEOUT_S)
    total = parts * count
    assert all(ordered for _, _, ordered in results)
    assert sum(length for length, _, _ in results) == total
    assert sum(value for _, value, _ in results) == total * (total - 1) // 2


def run(shape: Shape, seed: int, history: Path) -> Report:
    """A cluster, its killers, and shuffles until all of them have struck often enough.

    Args:
        history: a new file.
    Raises:
        AssertionError: see :func:`shuffle_once`; :class:`HistoryError` if none may see such a history.
    """
    sizes = {"num_cpus": 2, "object_store_memory": shape.store_bytes}
    with Cluster(
        True, head_node_args=sizes, environment=FOR_ALL, gcs_shards=shape.shards, gcs_replicas=shape.replicas
    ) as cluster:
        for _ in range(shape.nodes - 1):
            cluster.add_node(wait=False, **sizes)
        cluster.wait_for_nodes()
        killers = killers_of(cluster, shape, seed)
        started = time.monotonic()
        with (
            cluster.connect(),
            store_clients(cluster.control_store.endpoints, history, seed),
            Calls(str(history), seed),
        ):
            rounds = shuffle_among(killers, shape, str(history))
        seconds = time.monotonic() - started
    killed = {killer.strike.__name__: killer.killed for killer in killers}
    checked = judge(read_history(history))
    assert min(checked.operations, checked.calls, checked.attempts, checked.reads), f"only {checked}"
    return Report(seed, rounds, seconds, killed.get("kill_node", 0), killed.get("kill_replica", 0), checked)


def shuffle_among(killers: list[Killer], shape: Shape, history: str) -> int:
    """Shuffle until all killers have struck often enough, and stop them; how many shuffles that took."""
    round_ = 0
    for killer in killers:
        killer.start()
    try:
        while round_ < shape.rounds or any(killer.killed < shape.strikes for killer in killers):
            shuffle_once(shape, round_, history)
            round_ += 1
            for killer in killers:
                assert killer.error is None, killer.error
    finally:
        for killer in killers:
            killer.stop()
    return round_


def size_of(text: str) -> int:
    """``48M``, ``1G`` or a number of bytes."""
    digits, unit = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    if not digits.isascii() or not digits.isdigit() or not int(digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 48M or 1G")
    return int(digits) * unit


def run_elsewhere(shape: Shape, seed: int) -> Report:
    """The same in a place of its own, where nothing may be left; the history is kept if it fails."""
    with place() as here:
        os.environ |= {"ZRAY_TMPDIR": str(here.folder), MARK: here.mark}
        history = here.folder / "history"
        try:
            return run(shape, seed, history)
        except BaseException:
            kept = Path(tempfile.gettempdir(), f"zray-chaos-{seed}.history")
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(history, kept)
                print(f"seed {seed}: its history is kept in {kept}", flush=True)
            raise


def main() -> int:
    """The acceptance run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.shuffle", description=__doc__)
    add = parser.add_argument
    add("--size", type=size_of, default=size_of("1G"), help="what is shuffled (default: 1G)")
    add("--runs", type=int, default=1, help="default: 1")
    add("--nodes", type=int, default=10, help="default: 10")
    add("--shards", type=int, default=1, help="of the control store (default: 1)")
    add("--replicas", type=int, default=3, help="of each shard (default: 3)")
    add("--node-kill-s", type=float, default=5.0, help="seconds between deaths of nodes (default: 5)")
    add("--replica-kill-s", type=float, default=10.0, help="the same of replicas (default: 10)")
    add("--strikes", type=int, default=1, help="of each kind before a run may end (default: 1)")
    add("--store", type=size_of, default=size_of("256M"), help="memory of each node (default: 256M)")
    add("--seed", type=int, default=0, help="of the first run (default: drawn)")
    given = parser.parse_args()
    shape = Shape(
        given.size, nodes=given.nodes, shards=given.shards, replicas=given.replicas,
        store_bytes=given.store, node_kill_s=given.node_kill_s, replica_kill_s=given.replica_kill_s,
        strikes=given.strikes,
    )  # fmt: skip
    first = given.seed or random.randrange(1, 1 << 31)
    failed = 0
    for seed in range(first, first + given.runs):
        try:
            report = run_elsewhere(shape, seed)
        except Exception as error:
            failed += 1
            print(f"seed {seed}: FAILED: {type(error).__name__}: {error}", flush=True)
        else:
            print(
                f"seed {seed}: right after {report.seconds:.1f} s, {report.rounds} shuffles, "
                f"{report.nodes_killed} nodes and {report.replicas_killed} replicas killed; "
                f"a history that can be: {report.checked}", flush=True,
            )  # fmt: skip
    print(f"{given.runs - failed} of {given.runs} runs right", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
