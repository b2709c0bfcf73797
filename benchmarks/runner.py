"""Runs the rounds: one child process per system and round, watched, and cleaned up after.

A case that takes longer than its limit costs its system that case of that round: the child is killed with
everything it started, and a new one runs the remaining cases. The same after a crash.
"""

from __future__ import annotations

import compileall
import json
import os
import select
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from benchmarks import child, processes
from benchmarks.cases import Scale
from benchmarks.parts import ALL_CASES, cases_of

ROOT = Path(__file__).resolve().parents[1]
LIMITS_S = {case.name: case.limit_s for case in ALL_CASES}
STOP_LIMIT_S = 30.0
CASE_FAILURES_MAX = 2
"""A case that failed in this many rounds of a system is not tried again, nor one that once took too long."""
TIMED_OUT = "timed out"
LEAVE_GRACE_S = 5.0
"""How long the processes of a system may outlive its driver before they are killed and counted."""


class Outcome(NamedTuple):
    """One case of one round of one system: ``values`` per metric, ``unsupported``, or why it ``failed``."""

    system: str
    round_number: int
    case: str
    values: dict[str, float] | None = None
    failed: str = ""
    unsupported: bool = False


class Plan(NamedTuple):
    """What to run. ``pythons`` holds an interpreter per system; ``root`` has the benchmarks, and zray."""

    systems: list[str]
    cases: list[str]
    rounds: int
    scale: Scale
    pythons: dict[str, str]
    limit_factor: float
    rounds_of: dict[str, int] = {}  # noqa: RUF012 - nobody changes it
    """Fewer for some systems."""
    root: Path = ROOT


class Results:
    """Everything measured so far."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.leftovers: dict[str, int] = {}
        """Processes of each system that had to be killed after a clean stop, over all rounds."""

    def failures(self, system: str, case: str) -> int:
        return sum(o.system == system and o.case == case and bool(o.failed) for o in self.outcomes)

    def is_hopeless(self, system: str, case: str) -> bool:
        mine = [o for o in self.outcomes if o.system == system and o.case == case]
        if any(o.unsupported or o.failed.startswith(TIMED_OUT) for o in mine):
            return True
        return self.failures(system, case) >= CASE_FAILURES_MAX


class ChildProcess:
    """One running child with its events; ends it and all that it started when left."""

    def __init__(self, plan: Plan, system: str, cases: list[str]) -> None:
        self.run = uuid.uuid4().hex
        self.errors: IO[bytes] = TemporaryFile()  # noqa: SIM115 - end() closes it
        self.events_fd, write_fd = os.pipe()
        self.buffer = b""
        order = child.Order(system, cases, plan.scale._asdict(), time.monotonic_ns(), write_fd)
        command = [plan.pythons[system], "-m", "benchmarks.child", json.dumps(order._asdict())]
        environment = {**os.environ, "PYTHONPATH": str(plan.root), processes.MARKER: self.run}
        try:
            self.process = subprocess.Popen(
                command, cwd=plan.root, env=environment, stdin=subprocess.DEVNULL, stdout=self.errors,
                stderr=self.errors, pass_fds=[write_fd], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_fd)
        self.pid_fd = os.pidfd_open(self.process.pid)

    def events(self, timeout_s: float) -> list[dict[str, Any]] | None:
        """The events that arrive next; empty on timeout, ``None`` once the child has ended and said all."""
        readable, _, _ = select.select([self.events_fd, self.pid_fd], [], [], max(0.0, timeout_s))
        if self.events_fd not in readable:
            return None if readable else []
        data = os.read(self.events_fd, 1 << 16)
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines] or self.events(timeout_s)

    def explain_end(self) -> str:
        """Why the child is gone: its exit status and the last thing it printed."""
        code = self.process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"crashed: {how}" + (f", {child.one_line(lines[-1])}" if lines else "")

    def end(self, grace_s: float) -> int:
        """Wait for, then kill, the family. Returns how many processes did not end by themselves."""
        if grace_s == 0:
            self.process.kill()
        try:
            self.process.wait(timeout=max(grace_s, 1.0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        killed = processes.end_family(self.run, grace_s)
        os.close(self.events_fd)
        os.close(self.pid_fd)
        self.errors.close()
        return killed


class Watcher:
    """Follows one child: turns its events, its silence or its end into outcomes."""

    def __init__(
        self, plan: Plan, results: Results, system: str, round_number: int, *, restarted: bool
    ) -> None:
        self.plan, self.results = plan, results
        self.system, self.round_number = system, round_number
        self.restarted = restarted
        self.case, self.deadline = "start", self._deadline("start")
        self.done: list[str] = []
        self.has_started = self.has_said_why = False

    def _deadline(self, case: str) -> float:
        limit_s = LIMITS_S.get(case, STOP_LIMIT_S) * self.plan.limit_factor
        return time.monotonic() + limit_s

    def _record(self, case: str, **outcome: Any) -> None:
        self.done.append(case)
        self.has_said_why = "failed" in outcome
        self.has_started |= "values" in outcome
        # A restart is warm in the page cache and not part of the plan: its start is not a sample.
        if case == "start" and self.restarted and "values" in outcome:
            return
        self.results.outcomes.append(Outcome(self.system, self.round_number, case, **outcome))

    def _take(self, event: dict[str, Any]) -> None:
        match event.pop("event"):
            case "begin":
                self.case, self.deadline = event["case"], self._deadline(event["case"])
            case "end":
                self._record(event.pop("case"), **event)
            case "versions":
                self.results.versions[self.system] = event["versions"]

    def follow(self, process: ChildProcess) -> bool:
        """Until the child ended or was given up. Returns whether it stopped in good order."""
        while True:
            events = process.events(self.deadline - time.monotonic())
            if events is None:
                break
            if not events:
                limit_s = LIMITS_S.get(self.case, STOP_LIMIT_S) * self.plan.limit_factor
                self._record(self.case, failed=f"{TIMED_OUT}, more than {limit_s:g} s")
                return False
            for event in events:
                self._take(event)
        in_order = process.process.wait() == 0
        if self.case not in self.done or not (in_order or self.has_said_why):
            self._record(self.case, failed=process.explain_end())
        return in_order


def run_system(plan: Plan, results: Results, system: str, round_number: int) -> None:
    """One round of one system, in as many children as crashes and timeouts make necessary."""
    compile_bytecode(plan.root)
    # Every child begins with a start, so that is always in the list; an attempt without progress ends it.
    asked = [case.name for case in cases_of(system) if case.name in plan.cases and case.name != "start"]
    chosen = [case for case in asked if not results.is_hopeless(system, case)]
    remaining, restarted = ["start", *chosen], False
    while remaining:
        watcher = Watcher(plan, results, system, round_number, restarted=restarted)
        try:
            process = ChildProcess(plan, system, remaining)
        except OSError as error:
            what = "no such interpreter" if isinstance(error, FileNotFoundError) else child.reason_of(error)
            results.outcomes.append(Outcome(system, round_number, "start", failed=what))
            return
        in_order = False
        try:
            in_order = watcher.follow(process)
        finally:
            killed = process.end(LEAVE_GRACE_S if in_order else 0)
        if in_order:
            results.leftovers[system] = results.leftovers.get(system, 0) + killed
        left = [case for case in remaining if case not in watcher.done and case != "start"]
        if not watcher.has_started or len(left) == len(remaining):  # leave it alone until the next round
            return
        remaining, restarted = left, True


@cache
def compile_bytecode(root: Path) -> None:
    """What an installation has done for the others; a checkout may be told to write none as it runs."""
    compileall.compile_dir(root / "zray", quiet=1)
    compileall.compile_dir(root / "sim", quiet=1)


def schedule(plan: Plan) -> Iterator[tuple[int, str]]:
    """``(round, system)``, every system once per round, each round beginning with another one.

    Those of fewer rounds are in the first ones.
    """
    for round_number in range(plan.rounds):
        first = round_number % len(plan.systems)
        for system in plan.systems[first:] + plan.systems[:first]:
            if round_number < plan.rounds_of.get(system, plan.rounds):
                yield round_number, system


def run(plan: Plan, say: Callable[[str], None]) -> Results:
    """Run the whole plan; ``say`` gets one line per round and system."""
    results = Results()
    for round_number, system in schedule(plan):
        if results.failures(system, "start") >= CASE_FAILURES_MAX:
            continue
        began, load = time.monotonic(), os.getloadavg()[0]
        already = len(results.outcomes)
        run_system(plan, results, system, round_number)
        failed = [f"{o.case}: {o.failed}" for o in results.outcomes[already:] if o.failed]
        say(f"round {round_number + 1} of {plan.rounds}, {system}: {time.monotonic() - began:.0f} s "
            f"(load before {load:.1f}){''.join(chr(10) + '    ' + line for line in failed)}")  # fmt: skip
    return results
