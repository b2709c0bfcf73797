"""HyperQueue: a local server and one worker, through its Python interface.

Its tasks are programs: they return no values, and a Python function would start an interpreter each time. The
empty task is ``true``, therefore, and whatever needs a value is unsupported.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.systems.base import System, Unsupported

PROGRAMS: dict[Callable[..., Any], str] = {workload.noop: "true", workload.pause: "sleep"}


class HyperQueue(System):
    """A Ref is a submitted job."""

    def versions(self) -> dict[str, str]:
        importlib.import_module("hyperqueue")
        return {"hyperqueue": importlib.metadata.version("hyperqueue")}

    def start(self, workers: int) -> None:
        from hyperqueue import LocalCluster
        from hyperqueue.cluster import WorkerConfig

        self.folder = tempfile.TemporaryDirectory()
        self.cluster = LocalCluster(self.folder.name, WorkerConfig(cores=workers))
        self.client = self.cluster.client()

    def stop(self) -> None:
        self.cluster.stop()
        self.folder.cleanup()

    def _submit(self, arguments: list[str], count: int) -> Any:
        from hyperqueue import Job

        job = Job()
        for _ in range(count):
            job.program(arguments, stdout=None, stderr=None)
        return self.client.submit(job)

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in PROGRAMS:
            raise Unsupported
        return lambda *arguments: self._submit([PROGRAMS[function], *map(str, arguments)], 1)

    def submit_many(self, function: Callable[..., Any], count: int) -> list[Any]:
        return [self._submit([PROGRAMS[function]], count)]

    def get(self, ref: Any) -> Any:
        self.client.wait_for_jobs([ref])

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        self.client.wait_for_jobs(refs)
        return [None] * len(refs)

    def wait_any(self, refs: list[Any]) -> tuple[Any, Any]:
        raise Unsupported
