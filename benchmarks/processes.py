"""All processes of one system, found and measured through /proc (Linux).

They are found by a variable in the environment that they inherit, and as descendants of such processes:
some rename themselves by overwriting their environment, and some leave their parent's group and session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARKER = "ZRAY_BENCHMARK_RUN"
"""Name of the variable; its value is unique to one child of the harness."""

PROC = Path("/proc")
TRACKER_S = 2.0
"""How long resource trackers have, after the others were killed, to clean up."""
KILL_S = 5.0
"""How long killed processes may take to disappear."""


def _parent_pid(pid: int) -> int:
    # The command name, in parentheses, may contain anything: fields are counted from its end.
    return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def _is_zombie(pid: int) -> bool:
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _living() -> Iterator[tuple[int, int, bytes]]:
    """``(pid, parent pid, environment)`` of every process that is not a zombie."""
    for entry in os.scandir(PROC):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            if not _is_zombie(pid):
                yield pid, _parent_pid(pid), (PROC / entry.name / "environ").read_bytes()
        except OSError:  # ended meanwhile, or not ours
            continue


def family(run: str) -> list[int]:
    """Pids of the processes marked with ``run`` and of all their descendants."""
    needle = f"{MARKER}={run}".encode()
    parents: dict[int, int] = {}
    members: dict[int, None] = {}
    for pid, parent, environment in _living():
        parents[pid] = parent
        if needle in environment:
            members[pid] = None
    grown = True
    while grown:
        children = [pid for pid, parent in parents.items() if parent in members and pid not in members]
        members.update(dict.fromkeys(children))
        grown = bool(children)
    return list(members)


def own_run() -> str:
    """The mark of the family that this process belongs to."""
    return os.environ[MARKER]


def pss_bytes(pids: list[int]) -> int:
    """Proportional set size: private memory plus a fair share of what is shared. Ended ones count zero."""
    total = 0
    for pid in pids:
        try:
            rollup = (PROC / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def cpu_ns(pids: list[int]) -> dict[int, int]:
    """CPU time so far of each process, all of its threads, from the scheduler's own nanosecond counters."""
    used: dict[int, int] = {}
    for pid in pids:
        try:
            threads = list((PROC / str(pid) / "task").iterdir())
            used[pid] = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)
        except OSError:
            continue
    return used


def cpu_share(run: str, seconds: float) -> float:
    """CPU used by the family of ``run`` over ``seconds`` of sleep, as a share of one core."""
    before, started = cpu_ns(family(run)), time.perf_counter_ns()
    time.sleep(seconds)
    # The same processes first: looking for new ones costs CPU that would otherwise count as the system's.
    after, ended = cpu_ns(list(before)), time.perf_counter_ns()
    newborn = cpu_ns([pid for pid in family(run) if pid not in before])
    used = sum(after[pid] - before[pid] for pid in after) + sum(newborn.values())
    return used / (ended - started)


def end_family(run: str, grace_s: float) -> int:
    """Wait up to ``grace_s`` for the family to end by itself, then kill it. Returns how many were killed.

    Python's resource trackers go last: they remove the semaphores of the others once those are gone.
    """
    left = _wait_for_end(run, grace_s)
    _kill([pid for pid in left if not _is_tracker(pid)])
    deadline = time.monotonic() + KILL_S
    spare_s = TRACKER_S
    while (still := _wait_for_end(run, spare_s)) and time.monotonic() < deadline:
        _kill(still)  # again: a killed parent may have had a child meanwhile
        spare_s = 0.05
    return len(left)


def _wait_for_end(run: str, seconds: float) -> list[int]:
    """The family's pids, once it has ended (none) or ``seconds`` have passed."""
    deadline = time.monotonic() + seconds
    while (left := family(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_tracker(pid: int) -> bool:
    try:
        return b"resource_tracker" in (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
