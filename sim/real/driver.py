"""A driver of a real cluster: runs one small program and prints what it took, as one line of JSON.

``python -m sim.real.driver PROGRAM NUMBER --address ADDRESS``; all programs are also known to
``sim/real/programs.py``, which runs them in virtual time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zray
from zray.util.state import list_workers

WARM_UP_TASKS = 20
marks: dict[str, int] = {}
"""Processor time of this process at places that a program names."""


@zray.remote
def nothing() -> None:
    """An empty task."""


@zray.remote
def after(_: object) -> None:
    """An empty task that takes the result of another."""


@zray.remote
def pause(seconds: float) -> None:
    """A task that waits without using a processor: so many run at once as have a CPU of their node."""
    time.sleep(seconds)


def burst(count: int) -> None:
    """Many empty tasks at once."""
    refs = [nothing.remote() for _ in range(count)]
    marks["submitted"] = processor_ns(os.getpid())
    zray.get(refs)


def ping(count: int) -> None:
    """Empty tasks, one after the other: each is submitted when the one before is done."""
    for _ in range(count):
        zray.get(nothing.remote())


def chain(count: int) -> None:
    """Tasks of which each takes the result of the one before, submitted at once."""
    ref = nothing.remote()
    for _ in range(count):
        ref = after.remote(ref)
    zray.get(ref)


def pauses(count: int) -> None:
    """Tasks of 1, 10 and 100 ms in equal numbers."""
    zray.get([pause.remote((0.001, 0.01, 0.1)[number % 3]) for number in range(count)])


PROGRAMS: dict[str, Callable[[int], None]] = {
    "burst": burst, "ping": ping, "chain": chain, "pauses": pauses,
}  # fmt: skip


def processor_ns(pid: int | str) -> int:
    """Processor time of all living threads of a process; 0 of one that has ended, as idle workers do."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total


def _pids() -> dict[str, list[int]]:
    """Our node's process and those of its workers."""
    ours = zray.get_runtime_context().get_node_id()
    return {
        "node": [row["pid"] for row in zray.nodes() if row["node_id"] == ours],
        "worker": [row["pid"] for row in list_workers() if row["node_id"] == ours and row["pid"]],
        "driver": [os.getpid()],
    }


def main() -> None:
    """Run one program between two looks at the clocks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("number", type=int)
    parser.add_argument("--address", required=True)
    parser.add_argument("--wait", action="store_true", help="begin when a line arrives on the input")
    given = parser.parse_args()
    with zray.init(address=given.address):
        zray.get([nothing.remote() for _ in range(WARM_UP_TASKS)])
        ref = nothing.remote()
        zray.get([after.remote(ref), pause.remote(0.0)])
        pids = _pids()
        if given.wait:
            print("ready", flush=True)
            sys.stdin.readline()
        before = {pid: processor_ns(pid) for found in pids.values() for pid in found}
        started_ns = time.monotonic_ns()
        PROGRAMS[given.program](given.number)
        took_ns = time.monotonic_ns() - started_ns
        spent = {
            role: sum(max(0, processor_ns(pid) - before[pid]) for pid in found)
            for role, found in pids.items()
        }
        spent |= {name: mark_ns - before[os.getpid()] for name, mark_ns in marks.items()}
    print(json.dumps({"started_ns": started_ns, "makespan_ns": took_ns, "spent_ns": spent}), flush=True)


if __name__ == "__main__":
    main()
