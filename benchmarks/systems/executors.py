"""The two process pools: loky and the standard library's. They have tasks and nothing else."""

from __future__ import annotations

import concurrent.futures
import functools
import platform
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.systems.base import System


class Pool(System):
    """What both share; an argument cannot be a Future, so chains and trees are unsupported."""

    executor: Any = None

    def stop(self) -> None:
        self.executor.shutdown()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(self.executor.submit, function)

    def get(self, ref: Any) -> Any:
        return ref.result()

    def get_many(self, refs: Sequence[Any]) -> list[Any]:
        return [ref.result() for ref in refs]

    def wait_any(self, refs: list[Any]) -> tuple[Any, Any]:
        return concurrent.futures.wait(refs, return_when=concurrent.futures.FIRST_COMPLETED)


class ProcessPool(Pool):
    """``concurrent.futures.ProcessPoolExecutor`` with the platform's default start method."""

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version()}

    def start(self, workers: int) -> None:
        self.executor = concurrent.futures.ProcessPoolExecutor(workers)


class Loky(Pool):
    """loky's executor; workers stay for as long as the run."""

    def versions(self) -> dict[str, str]:
        import loky

        return {"loky": loky.__version__}

    def start(self, workers: int) -> None:
        import loky

        self.executor = loky.ProcessPoolExecutor(max_workers=workers, timeout=None)

    def stop(self) -> None:
        self.executor.shutdown(kill_workers=True)
