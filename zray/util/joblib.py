"""``zray.util.joblib``: joblib's batches as tasks, so that scikit-learn and others use the whole cluster.

After ``register_ray()``, ``with joblib.parallel_config(backend="ray")`` runs what is inside on zray.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

import zray
from zray.util.executor import Executor


def register_ray() -> None:
    """Let joblib know this backend, as ``"ray"`` and as ``"zray"``."""
    for name in ("ray", "zray"):
        register_parallel_backend(name, ZrayBackend)


class ZrayBackend(AutoBatchingMixin, ParallelBackendBase):
    """One task per batch; joblib decides how large batches are."""

    supports_retrieve_callback = True
    supports_timeout = True
    uses_threads = False
    supports_sharedmem = False

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Batches at once: as asked, or as many as the cluster has CPUs for a negative number."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        if n_jobs is None:
            return 1
        return max(1, int(zray.cluster_resources().get("CPU", 1)) + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **ignored: Any) -> int:
        """Get ready; returns how many batches run at once."""
        self.parallel = parallel
        self._executor = Executor()
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Run a batch; ``callback`` gets the future when it has ended."""
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A batch failed: the others are taken back."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if ensure_ready:
            self._executor = Executor()

    def terminate(self) -> None:
        """No more batches come."""
        self._executor.shutdown(wait=False)
