"""A control store of its own process and somebody who gives it the records of tasks that stay live.

Millions of live tasks would fill the memory of their own node and driver long before that of the control
store, so the node is played: it sends what a node sends, in batches, and waits as a node does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from zray.config import Config
from zray.ids import return_ids, task_id
from zray.protocol.cluster import FromScheduler, Members
from zray.protocol.codec import batch_decoder
from zray.protocol.documents import encode_value
from zray.protocol.messages import (
    PROTOCOL_VERSION,
    TABLE_TASK,
    FromShard,
    NodeHello,
    Recorded,
    RecordTasks,
    ShardWelcome,
    TableGet,
    TableReply,
    TaskRecord,
)
from zray.runtime.endpoints import shard_address
from zray.runtime.transport import Transport

BATCH = 512
BATCHES_UNDER_WAY = 16
PATIENCE_S = 120.0
NODE_ID = b"feeder".ljust(16, b".")
PARENTS = 100
ARGUMENT_BYTES = 40


class Feeder:
    """A node as far as a shard can tell."""

    def __init__(self, endpoint: str) -> None:
        self.shard = shard_address(0)
        self.transport = Transport(NODE_ID, batch_decoder(FromShard | FromScheduler | Members), Config())
        self.transport.connect(self.shard, endpoint)
        self.inbox: deque[Any] = deque()
        self.waits: deque[int] = deque()
        self.transport.send(self.shard, [_hello()])
        self._await(ShardWelcome)

    def _await(self, kind: type[Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while self.inbox:
                message = self.inbox.popleft()
                if isinstance(message, kind):
                    return message
            if not self.transport.readable():
                self.transport.wait(100)
            self.inbox.extend(message for _, message in self.transport.receive(100))
            if time.monotonic() > deadline:
                raise TimeoutError(f"the control store says no {kind.__name__} for {PATIENCE_S} s")

    def feed(self, count: int, every: int, sample: Callable[[int], None]) -> float:
        """Records of ``count`` tasks; how many seconds it took until the last one was acknowledged."""
        started = time.monotonic()
        for sequence, first in enumerate(range(0, count, BATCH), 1):
            records = tuple(record_of(number) for number in range(first, min(count, first + BATCH)))
            self._tell(sequence, records)
            if first // every != (first + BATCH) // every:
                sample(first + BATCH)
        while self.waits:
            self._acknowledged()
        return time.monotonic() - started

    def deliver(self, batches: Sequence[tuple[TaskRecord, ...]]) -> None:
        """Records that were made before, until the last one is acknowledged."""
        for sequence, records in enumerate(batches, 1):
            self._tell(sequence, records)
        while self.waits:
            self._acknowledged()

    def _tell(self, sequence: int, records: tuple[TaskRecord, ...]) -> None:
        self.transport.send(self.shard, [RecordTasks(sequence, records)])
        self.waits.append(sequence)
        while len(self.waits) >= BATCHES_UNDER_WAY:
            self._acknowledged()

    def _acknowledged(self) -> None:
        done = self._await(Recorded).sequence
        while self.waits and self.waits[0] <= done:
            self.waits.popleft()

    def wrong_rows(self, numbers: list[int]) -> int:
        """How many of these rows are not what was recorded."""
        wrong = 0
        for number in numbers:
            record = record_of(number)
            self.transport.send(self.shard, [TableGet(number, TABLE_TASK, record.task_id)])
            wrong += self._await(TableReply) != TableReply(number, True, encode_value(record))
        return wrong

    def close(self) -> None:
        """Leave."""
        self.transport.close(linger_ms=0)


def _hello() -> NodeHello:
    return NodeHello(PROTOCOL_VERSION, NODE_ID, 1, os.getpid(), "feeder", "", (("CPU", 10_000),))


def record_of(number: int) -> TaskRecord:
    """The record of one of the live tasks, which read what another one made."""
    prefix = b"%08d" % (number % PARENTS)
    made_before = return_ids(task_id(prefix, max(0, number // PARENTS - 1)), 1)
    return TaskRecord(
        task_id(prefix, number // PARENTS), prefix + bytes(8), b"descriptor......",
        b"%0*d" % (ARGUMENT_BYTES, number), made_before, NODE_ID, 0, 0, job_id=b"job.............",
    )  # fmt: skip


@contextmanager
def control_store(memory_max: int) -> Iterator[tuple[str, psutil.Process]]:
    """A real one with a log; ``memory_max`` 0: it flushes nothing. Where it listens, and its process."""
    with tempfile.TemporaryDirectory(prefix="zf") as folder:
        endpoint = f"ipc://{folder}/gcs"
        environment = {**os.environ, "ZRAY_TABLE_ENTRIES_MAX": str(1 << 40)}
        with (Path(folder) / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "zray.services.gcs", "--listen", endpoint,
                 "--data-dir", f"{folder}/log", "--memory-max", str(memory_max),
                 "--parent-pid", str(os.getpid())],
                env=environment, stderr=output,
            )  # fmt: skip
        try:
            yield endpoint, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()
