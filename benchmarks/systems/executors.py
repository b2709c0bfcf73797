"""Systems with the interface of ``concurrent.futures``. Most have tasks and nothing else."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.systems.base import System


class Pool(System):
    """What all share; an argument cannot be a Future, so chains and trees are unsupported."""

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


class IPyParallel(Pool):
    """ipyparallel: a local controller and engines, behind the executor of a load-balanced view."""

    def versions(self) -> dict[str, str]:
        import ipyparallel

        return {"ipyparallel": ipyparallel.__version__}

    def start(self, workers: int) -> None:
        import ipyparallel

        self.folder = tempfile.TemporaryDirectory()
        os.environ.setdefault("IPYTHONDIR", self.folder.name)
        self.cluster = ipyparallel.Cluster(n=workers, profile_dir=f"{self.folder.name}/profile", log_level=40)
        self.client = self.cluster.start_and_connect_sync()
        self.executor = self.client.executor()

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()
        self.folder.cleanup()


class Parsl(Pool):
    """Parsl's data-flow kernel over a HighThroughputExecutor, unencrypted; arguments may be futures."""

    def versions(self) -> dict[str, str]:
        import parsl

        return {"parsl": parsl.__version__}

    def start(self, workers: int) -> None:
        import parsl
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        # It finds its own programs by name.
        os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
        self.folder = tempfile.TemporaryDirectory()
        workers_here = HighThroughputExecutor(
            label="workers", address="127.0.0.1", max_workers_per_node=workers, cores_per_worker=1e-6,
            encrypted=False, provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )  # fmt: skip
        self.kernel = parsl.load(
            Config([workers_here], run_dir=self.folder.name, retries=3, strategy="none",
                   initialize_logging=False)
        )  # fmt: skip

    def stop(self) -> None:
        import parsl

        self.kernel.cleanup()
        parsl.clear()
        self.folder.cleanup()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import parsl

        app: Callable[..., Any] = parsl.python_app(function)
        return app

    bind_dependent = bind_retried = bind


def _submit_and_count(client: Any, count: int) -> int:
    return len([future.result() for future in [client.submit(workload.noop) for _ in range(count)]])


class Scaler(Pool):
    """OpenGRIS Scaler: a scheduler, an object storage and workers on this machine."""

    def versions(self) -> dict[str, str]:
        import scaler

        return {"opengris-scaler": scaler.__version__}

    def start(self, workers: int) -> None:
        from scaler import Client, SchedulerClusterCombo

        self.cluster = SchedulerClusterCombo(n_workers=workers, logging_level="ERROR")
        self.executor = Client(address=self.cluster.get_address())

    def stop(self) -> None:
        self.executor.disconnect()
        self.cluster.shutdown()

    def submit_nested(self, count: int) -> Any:
        return self.executor.submit(_submit_and_count, self.executor, count)
