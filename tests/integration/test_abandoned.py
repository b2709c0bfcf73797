"""A program that ends with work still running says so, once, and names it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from tests import clusters
from zray.api.abandoned import sentence

BEGIN = """
    import os, signal, sys, time, zray, zray.util.state
    zray.init(num_cpus=1)

    @zray.remote
    def slow(seconds=60):
        time.sleep(seconds)

    @zray.remote
    class Slow:
        def work(self, seconds=60):
            time.sleep(seconds)

    def await_running():
        while not any(task.state == "RUNNING" for task in zray.util.state.list_tasks()):
            time.sleep(0.01)
"""


@pytest.fixture
def here() -> Iterator[clusters.Place]:
    with clusters.place() as place:
        yield place


def said(here: clusters.Place, rest: str) -> list[str]:
    done = here.run(BEGIN + rest)
    return [line for line in done.stderr.splitlines() if "abandoned" in line]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("refs = [slow.remote() for _ in range(3)]",
         "3 tasks were abandoned (slow x3); use zray.wait or zray.get"),
        ("ref = slow.remote(); zray.shutdown()", "1 task was abandoned (slow); use zray.wait or zray.get"),
        ("zray.get(slow.remote(0)); zray.get(slow.remote(0)); zray.get(slow.remote(0)); ref = slow.remote()",
         "1 task was abandoned (slow); use zray.wait or zray.get"),
        ("slow_one = Slow.remote(); refs = [slow_one.work.remote(), slow.remote()]",
         "2 tasks were abandoned (slow, work); use zray.wait or zray.get"),
    ],
)  # fmt: skip
def test_work_that_nobody_waited_for(here: clusters.Place, rest: str, expected: str) -> None:
    assert said(here, f"    {rest}") == [f"zray: {expected}"]


@pytest.mark.parametrize(
    "rest",
    [
        "pass",
        "zray.get([slow.remote(0) for _ in range(3)])",
        "actor = Slow.remote(); zray.get(actor.work.remote(0))",
        "ref = slow.remote(); zray.cancel(ref)",
        "ref = slow.remote(); await_running(); zray.cancel(ref)",
        "zray.shutdown(); zray.shutdown()",
        "ref = slow.remote(); os.kill(zray.nodes()[0]['pid'], signal.SIGKILL)",
    ],
)
def test_nothing_is_said_of_nothing(here: clusters.Place, rest: str) -> None:
    assert said(here, f"    {rest}") == []


def test_a_node_that_does_not_answer_is_not_waited_for(here: clusters.Place) -> None:
    rest = "    ref = slow.remote(); print(zray.nodes()[0]['pid'], flush=True); input()"
    program = here.start(BEGIN + rest)
    node = int(clusters.line_of(program))

    os.kill(node, signal.SIGSTOP)
    try:
        clusters.tell(program)
        done = clusters.finish(program)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(node, signal.SIGCONT)
    assert "abandoned" not in done.stderr
    assert done.returncode == 0


def test_many_names_are_counted() -> None:
    names = Counter({f"f{number}": number for number in range(1, 9)})
    assert sentence(names) == (
        "zray: 36 tasks were abandoned (f1, f2 x2, f3 x3, f4 x4, f5 x5, 3 more kinds); "
        "use zray.wait or zray.get"
    )
