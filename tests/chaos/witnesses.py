"""Programs that write down what they see while a cluster loses nodes and replicas; see ``history.py``."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import zray
from tests.chaos.history import Called, Did, Done, HistoryFile, Ran, Returned, Saw
from tests.clusters import line_of, tell
from zray.exceptions import ObjectLostError, WorkerCrashedError

TIMEOUT_S = 300
ACTORS = 3
BURST = 5
PAUSE_S = 0.05


# --- tasks -------------------------------------------------------------------------------------------


def note_attempt(history: str) -> None:
    """In a task: it runs."""
    context = zray.get_runtime_context()
    with HistoryFile(history) as file:
        file.add(Ran(context.get_task_id(), context.get_attempt_number(), context.get_task_name()))


def note_reads(history: str, names: Iterable[str], values: Iterable[np.ndarray]) -> None:
    """In a task: what it sees where the objects of these ids are."""
    reader = zray.get_runtime_context().get_task_id()
    with HistoryFile(history) as file:
        file.add(*[Saw(name, reader, zlib.crc32(value)) for name, value in zip(names, values, strict=True)])


# --- actors ------------------------------------------------------------------------------------------


@zray.remote(
    max_restarts=-1, max_task_retries=-1, checkpoint_interval=10, num_cpus=0, scheduling_strategy="SPREAD"
)
class Ledger:
    """Remembers what it did, in order, in whichever life."""

    def __init__(self, history: str) -> None:
        self.history = HistoryFile(history)
        self.life = uuid.uuid4().hex
        self.entries: list[tuple[str, int]] = []

    def __zray_save__(self) -> Any:
        return self.entries

    def __zray_load__(self, entries: Any) -> None:
        self.entries = list(entries)

    def do(self, caller: str, number: int) -> int:
        """The place of this call among all."""
        self.history.add(Did(self.life, caller, number))
        self.entries.append((caller, number))
        return len(self.entries) - 1

    def done(self) -> list[tuple[str, int]]:
        return self.entries


def call(ledger: Any, history: HistoryFile, actor: str, caller: str, numbers: Iterable[int]) -> None:
    """Make calls, one behind the other, then get their results."""
    refs = []
    for number in numbers:
        history.add(Called(actor, caller, number, time.monotonic_ns()))
        refs.append((number, ledger.do.remote(caller, number)))
    for number, ref in refs:
        place = zray.get(ref, timeout=TIMEOUT_S)
        history.add(Returned(actor, caller, number, place, time.monotonic_ns()))


@zray.remote(max_retries=0, num_cpus=0, scheduling_strategy="SPREAD")
def call_from_here(ledger: Any, history: str, actor: str, caller: str) -> None:
    """A caller on whichever node. It dies with it: another attempt would be another caller."""
    note_attempt(history)
    with HistoryFile(history) as file:
        for burst in range(3):
            call(ledger, file, actor, caller, range(burst * BURST, (burst + 1) * BURST))


class Calls(threading.Thread):
    """Actors, and calls of them by the driver and by tasks; on leaving they are asked for what they did."""

    def __init__(self, history: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.history, self.draw = history, random.Random(f"{seed}/calls")
        self.ledgers = {f"ledger{number}": Ledger.remote(history) for number in range(ACTORS)}
        self.over = threading.Event()
        self.error: BaseException | None = None
        self.made = 0

    def run(self) -> None:
        try:
            with HistoryFile(self.history) as file:
                while not self.over.wait(PAUSE_S):
                    self._step(file)
                for actor, ledger in self.ledgers.items():
                    file.add(Done(actor, zray.get(ledger.done.remote(), timeout=TIMEOUT_S)))
        except BaseException as error:
            self.error = error

    def _step(self, file: HistoryFile) -> None:
        """The driver calls each actor, while a task on some node calls one of them."""
        actor = self.draw.choice(list(self.ledgers))
        other = call_from_here.remote(self.ledgers[actor], self.history, actor, f"task{self.made}")
        for name, ledger in self.ledgers.items():
            call(ledger, file, name, "driver", range(self.made * BURST, (self.made + 1) * BURST))
        self.made += 1
        with suppress(
            WorkerCrashedError, ObjectLostError
        ):  # its node was killed: what it saw until then counts
            zray.get(other, timeout=TIMEOUT_S)

    def __enter__(self) -> Calls:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        self.join()
        if self.error is not None:
            raise self.error


# --- clients of the control store --------------------------------------------------------------------


def clients_command(shards: Iterable[str], history: Path, *options: str) -> list[str]:
    """How a process is started that works on keys of the shards at these endpoints."""
    command = [sys.executable, "-m", "tests.chaos.store_clients", "--history", str(history)]
    return [*command, *options, *shards]


@contextmanager
def store_clients(shards: Iterable[str], history: Path, seed: int = 0) -> Iterator[None]:
    """Such a process, at work; it reads all keys at the end."""
    command = clients_command(shards, history, "--seed", str(seed))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            tell(process, "read")
            assert line_of(process)
            yield
        except BaseException:
            process.kill()
            raise
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, f"the clients of the control store ended with {process.returncode}"
