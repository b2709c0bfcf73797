"""User code inside the simulation: threads that hand control to the kernel, one at a time.

A function that was not written for the simulator blocks in the midst of its stack, wherever it calls ``get``.
So each simulated task has a thread, and exactly one thread of the run is awake at any time: that of the task
whose turn it is, or the one that turns the kernel, which is the driver's own. Nothing is decided by the
system's scheduler, so a run depends on its seed alone. See ``docs/decisions/0011``.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sim.cluster import Cluster
from sim.kernel import S
from sim.operations import WhoAmI
from sim.programs import Program, ProgramError
from sim.scenario import Scenario
from zray.core.reports import tasks_of
from zray.errors import ZrayError

if TYPE_CHECKING:
    from sim.process import Process

Perform = Callable[[Any], Any]
"""Hands an operation over and returns its result."""
PATIENCE_NS = 120 * S
"""Virtual time without any progress after which nobody is believed to go on."""
ROWS_SHOWN = 10
STALL_S = 5.0
"""Real time after which it is looked whether user code waits for a thread that cannot go on."""
_WAITING_FILES = (threading.__file__, queue.__file__)


class DeadlockError(ZrayError):
    """Nobody in a simulated cluster can go on: who waits for what."""


class CrashedHereError(BaseException):
    """Ends the thread of a task whose simulated process was killed; user code must not catch it."""


class SimulatedThread(threading.Thread):
    """A thread that runs code of the simulation."""


class UserThread:
    """One call of user code, awake only between :meth:`resume` and its next operation.

    Args:
        body: the call; it gets ``perform``, which hands an operation over and returns its result.
        before: called in the kernel's thread each time this one is about to wake.
        name: of the thread, as the user's code sees it.
    """

    def __init__(
        self, body: Callable[[Perform], Any], before: Callable[[Perform], None], name: str
    ) -> None:  # fmt: skip
        self._before = before
        self._body = body
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._operation: Any = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._raised: BaseException | None = None
        self.ended = False
        self._crashed = self._stalled = False
        self._thread = SimulatedThread(target=self._run, name=name, daemon=True)

    def start(self) -> Any:
        """Run until the first operation, which is returned; ``None``, and ``ended``, if there is none."""
        self._before(self._perform)
        self._thread.start()
        return self._await()

    def resume(self, result: Any, error: BaseException | None = None) -> Any:
        """Run until the next operation."""
        self._result, self._error = result, error
        self._before(self._perform)
        self._go.release()
        return self._await()

    def _await(self) -> Any:
        while not self._back.acquire(timeout=STALL_S):
            self._check_stall()
        if self.ended:
            self._thread.join()
            raised, self._raised = self._raised, None
            if raised is not None:
                try:
                    raise raised
                finally:
                    del raised  # its traceback refers to this frame, and to what user code held
            return self._result
        return self._operation

    def _check_stall(self) -> None:
        """
        Raises:
            DeadlockError: if user code waits for another thread, of which none is awake.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None or frame.f_code.co_filename not in _WAITING_FILES:
            return
        where = frame
        while where.f_back is not None and where.f_code.co_filename in _WAITING_FILES:
            where = where.f_back
        self._stalled = True
        raise DeadlockError(
            f"{where.f_code.co_name}() waits at {where.f_code.co_filename}:{where.f_lineno} for another "
            "thread, and in zray.simulate() none goes on meanwhile; let tasks and calls wait for refs instead"
        )

    def kill(self) -> None:
        """End the thread, wherever it is, unless nothing can."""
        while self._thread.is_alive() and not self.ended and not self._stalled:
            self._crashed = True
            self._before(self._perform)  # what it still calls ends it, and is nobody else's
            self._go.release()
            self._back.acquire()

    def _perform(self, operation: Any) -> Any:
        """For the thread itself: hand over and wait."""
        if self._crashed:
            raise CrashedHereError
        if threading.current_thread() is not self._thread:
            raise DeadlockError(
                "a thread that a simulated task started calls zray; only the task's own thread can"
            )
        self._operation = operation
        self._back.release()
        self._go.acquire()
        if self._crashed:
            raise CrashedHereError
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._body(self._perform)
        except BaseException as error:
            self._raised = error
        self.ended = True
        self._back.release()


class UserRun:
    """A cluster in virtual time whose driver is the calling thread.

    Args:
        scenario: what there is and what goes wrong; its workload is not used.
        seed: of everything that is drawn.
        before: called with a process, and what performs its operations, before its user code goes on.
        cluster_options: of ``Cluster``.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        before: Callable[[Process, Perform], None],
        **cluster_options: Any,
    ) -> None:
        self.before = before
        self.codes: dict[str, Callable[..., Any]] = {}
        self.working = [0]
        self.deadline_ns = 0  # the latest time at which a wait with a timeout ends
        self._thread = threading.current_thread()
        self._requests: deque[Any] = deque()
        self._reply: list[Any] = []
        self._progress = (0, 0)
        self._progress_ns = 0
        shape = replace(scenario.cluster, drivers=1)
        self.cluster = Cluster(
            replace(scenario, cluster=shape), seed, [self._driver], keep_spans=True, functions=self.codes,
            **cluster_options,
        )  # fmt: skip
        self.cluster.boot()
        self.driver: Process = self.cluster.drivers[0]
        self.operations = 0

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self.cluster.kernel.now_ns

    # --- the driver ----------------------------------------------------------------------------------

    def _driver(self) -> Program:
        """What the simulated driver does: what the calling thread asks for, one after the other."""
        while True:
            operation = yield _NextRequest(self._requests)
            if operation is None:
                return
            try:
                self._reply.append((yield operation))
            except ProgramError as error:
                self._reply.append(error)

    def perform(self, operation: Any) -> Any:
        """For the driver's thread: turn the kernel until the operation is performed.

        Raises:
            DeadlockError: if that never happens, or in another thread.
        """
        if threading.current_thread() is not self._thread:
            raise DeadlockError("another thread than the one that entered zray.simulate() calls zray")
        self.operations += 1
        self._requests.append(operation)
        self.driver.look()
        kernel = self.cluster.kernel
        while not self._reply:
            if not kernel.step():
                raise self._deadlock(operation)
            if kernel.now_ns > self._progress_ns + PATIENCE_NS and self._is_stuck():
                raise self._deadlock(operation)
        reply = self._reply.pop()
        self.before(self.driver, self.perform)
        if isinstance(reply, ProgramError):
            raise reply
        return reply

    def _is_stuck(self) -> bool:
        cluster = self.cluster
        progress = cluster.tasks_run, self.operations
        busy = self.working[0] > 0 or cluster.kernel.now_ns <= self.deadline_ns
        if busy or progress != self._progress:
            self._progress, self._progress_ns = progress, cluster.kernel.now_ns
            return False
        return True

    def _deadlock(self, operation: Any) -> DeadlockError:
        lines = [
            f"nobody can go on: in {PATIENCE_NS // S} virtual seconds no task ended and none computes.",
            f"  the driver waits in {type(operation).__name__.lower()}",
        ]
        for node in self.cluster.nodes:
            rows = tasks_of(node.node)
            lines += [
                f"  {row['name']}() is {row['state']}, asks for {row['demand'] or 'nothing'}"
                + (f", misses {', '.join(row['missing'])}" if row["missing"] else "")
                for row in rows[:ROWS_SHOWN]
            ]
            if len(rows) > ROWS_SHOWN:
                lines.append(f"  and {len(rows) - ROWS_SHOWN} more tasks of node {node.number}")
            lines.append(f"  node {node.number} has free {node.node.pool.resources.free}")
        lines.append("  The last it heard: " + "; ".join(list(self.cluster.story)[-3:]))
        return DeadlockError("\n".join(lines))

    def end(self) -> None:
        """The driver is done: let it leave, and end every thread that is left."""
        self.cluster.ending = True
        self._requests.append(None)
        self.driver.look()
        kernel = self.cluster.kernel
        kernel.run_until(kernel.now_ns + S, lambda: not self.cluster.unfinished)
        self.abandon()

    def abandon(self) -> None:
        """End every thread, without letting time pass."""
        for node in self.cluster.nodes:
            for worker in list(node.workers.values()):
                worker.crash()

    # --- tasks ---------------------------------------------------------------------------------------

    def program(self, body: Callable[[Any, Perform], Any], name: str = "") -> Program:
        """The program of a task or call: ``body(process, perform)`` in a thread of its own."""
        process = yield WhoAmI()
        thread = UserThread(
            lambda perform: body(process, perform), lambda perform: self.before(process, perform),
            name or process.thread_name,
        )  # fmt: skip
        try:
            operation = thread.start()
            while not thread.ended:
                self.operations += 1
                try:
                    result = yield operation
                except ProgramError as error:
                    operation = thread.resume(None, error)
                else:
                    operation = thread.resume(result)
            return operation
        finally:
            if not thread.ended:
                thread.kill()
            self.before(self.driver, self.perform)


class _NextRequest:
    """The driver of a :class:`UserRun` waits for what its thread asks for next; nothing is sent for that."""

    def __init__(self, requests: deque[Any]) -> None:
        self._requests = requests

    def perform(self, process: Process) -> Generator[Any, None, Any]:
        """Without letting time pass: the kernel stands while the driver's thread runs."""
        if not self._requests:
            yield lambda: bool(self._requests)
        return self._requests.popleft()
