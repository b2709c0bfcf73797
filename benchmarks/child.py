"""One round of one system in a process of its own: ``python -m benchmarks.child <JSON order>``.

Writes one JSON line per event to the file descriptor named in the order, so that whatever the system
prints cannot disturb it and everything finished before a crash or a timeout is kept:

- ``{"event": "begin", "case": name}``
- ``{"event": "end", "case": name, "values": {metric: number}}``
- ``{"event": "end", "case": name, "unsupported": true}``
- ``{"event": "end", "case": name, "failed": "reason"}``
- ``{"event": "versions", "versions": {package: version}}``

Nothing heavy is imported before the system is started: the cold start is measured here.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any, NamedTuple

from benchmarks import systems
from benchmarks.systems.base import System, Unsupported

REASON_LENGTH_MAX = 200
FOLDERS = re.compile(r"(?<![\w.…:/])(?:/[\w.+-]+)+/")


class Order(NamedTuple):
    """What the parent asks for; travels as JSON."""

    system: str
    cases: list[str]
    scale: dict[str, float]
    spawned_ns: int
    """``time.monotonic_ns()`` of the parent when it started this process; the clock is shared."""
    events_fd: int


def emit(order: Order, **event: Any) -> None:
    """Send one event to the parent."""
    os.write(order.events_fd, (json.dumps(event) + "\n").encode())


def one_line(text: str) -> str:
    """``text`` on one line, not too long, without the folders of this machine: reasons get published."""
    return FOLDERS.sub("…/", " ".join(text.split()))[:REASON_LENGTH_MAX]


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    return one_line(f"{type(error).__name__}: {error}")


def start(order: Order) -> System:
    """Start the system and run its first task; that is the first case."""
    emit(order, event="begin", case="start")
    system = systems.load(order.system)
    system.start(int(order.scale["workers"]))
    system.first_result()
    cold_ms = (time.monotonic_ns() - order.spawned_ns) / 1e6
    emit(order, event="end", case="start", values={"cold": cold_ms})
    emit(order, event="versions", versions={"python": sys.version.split()[0], **system.versions()})
    return system


def run_cases(order: Order, system: System) -> None:
    """Run the ordered cases one after the other; an exception ends only its case."""
    from benchmarks import cases, parts

    scale = cases.Scale(**order.scale)  # type: ignore[arg-type]
    known = {case.name: case for case in parts.ALL_CASES}
    for name in order.cases:
        if name == "start":
            continue
        emit(order, event="begin", case=name)
        try:
            outcome: dict[str, Any] = {"values": known[name].run(system, scale)}
        except Unsupported:
            outcome = {"unsupported": True}
        except Exception as error:
            outcome = {"failed": reason_of(error)}
        emit(order, event="end", case=name, **outcome)


def main() -> int:
    """Start, run, stop. Returns the exit code."""
    order = Order(**json.loads(sys.argv[1]))
    os.set_inheritable(order.events_fd, False)
    try:
        system = start(order)
    except Exception as error:
        emit(order, event="end", case="start", failed=reason_of(error))
        return 1
    run_cases(order, system)
    emit(order, event="begin", case="stop")
    try:
        system.stop()
    except Exception as error:
        emit(order, event="end", case="stop", failed=reason_of(error))
        return 1
    emit(order, event="end", case="stop", values={})
    return 0


if __name__ == "__main__":
    sys.exit(main())
