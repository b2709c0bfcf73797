"""Event loops of ``asyncio`` in virtual time, for drivers, tasks and actors inside :func:`zray.simulate`."""

from __future__ import annotations

import asyncio
import math
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from sim.operations import WaitFor
from sim.user_code import CrashedHereError
from zray.runtime import own_client
from zray.runtime.actor_code import Outcome

if TYPE_CHECKING:
    from sim.process import Process
    from sim.strands import Strand
    from zray.api.simulation import Simulation

NS_PER_S = 1_000_000_000


class VirtualLoop(BaseEventLoop):
    """A loop that waits in virtual time, in the simulated process whose thread runs it.

    There are no sockets, pipes, signals or subprocesses in it.

    Args:
        simulation: the run.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation
        self._selector = self
        self._process: Any = None
        self._clock_resolution = 1 / NS_PER_S

    def time(self) -> float:
        """Virtual seconds."""
        return self._simulation.run.now_ns / NS_PER_S

    def select(self, timeout: float | None) -> list[Any]:
        """Wait until a callback is due, or the time is over."""
        client: Any = own_client.get()
        self._process = client.process
        ready = self._ready  # type: ignore[attr-defined]
        if not ready and (timeout is None or timeout > 0):
            run = self._simulation.run
            until_ns = None if timeout is None else run.now_ns + math.ceil(timeout * NS_PER_S)
            if until_ns is not None:
                run.deadline_ns = max(run.deadline_ns, until_ns)
            client.hand_over(WaitFor(lambda: bool(ready), until_ns, may_lend=False))
        return []

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Somebody else has put a callback here."""
        self.rouse()

    def rouse(self) -> None:
        """Let the process see whether what it waits for has come."""
        if self._process is not None:
            self._simulation.run.cluster.kernel.after(0, self._process.look)

    def begin(self, process: Process) -> Strand:
        """Run from now on in a thread of a simulated process, until that ends."""
        program = self._simulation.run.program(lambda _process, _perform: self._serve(), "zray-actor-loop")
        return process.begin(process.drive(program), process.context)

    def _serve(self) -> None:
        try:
            self._run_or_end()
        except CrashedHereError:
            for task in asyncio.all_tasks(self):  # while their thread is marked: they can call nothing
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close(task.get_coro())
            raise
        finally:
            self._ready.clear()  # type: ignore[attr-defined]
            self._scheduled.clear()  # type: ignore[attr-defined]
            self.close()

    def _run_or_end(self) -> None:
        try:
            self.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # of a coroutine that is no call
            self._simulation.processes.end_worker(error)

    def finish(self, coroutine: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run a coroutine in the loop, and wait for it, in another thread of its process."""
        outcomes: list[Outcome] = []
        tasks: list[asyncio.Task[None]] = []

        async def run() -> None:
            outcomes.append(await coroutine)
            self.rouse()

        self.call_soon_threadsafe(lambda: tasks.append(self.create_task(run())))
        client: Any = own_client.get()
        client.hand_over(WaitFor(lambda: bool(outcomes)))
        return outcomes[0]

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in a simulated thread of the process; there is no other executor."""
        future: asyncio.Future[Any] = self.create_future()

        def body(process: Any, perform: Any) -> None:
            try:
                result = func(*args)
            except CrashedHereError:
                raise
            except BaseException as error:
                self.call_soon_threadsafe(_set, future, future.set_exception, error)
            else:
                self.call_soon_threadsafe(_set, future, future.set_result, result)

        client: Any = own_client.get()
        process = client.process
        process.begin(process.drive(self._simulation.run.program(body)), client.context)
        return future


def _set(future: asyncio.Future[Any], setter: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        setter(value)


def _close(coroutine: Any) -> None:
    try:
        coroutine.close()
    except BaseException:  # whatever its cleanup tried to do, its process is dead
        return


class _Policy(asyncio.DefaultEventLoopPolicy):
    """New loops wait in virtual time."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """For ``asyncio.run`` and the like."""
        return VirtualLoop(self._simulation)


def install(simulation: Simulation) -> Any:
    """Make new loops wait in virtual time; returns what :func:`remove` takes."""
    former = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy(simulation))
    return former


def remove(former: Any) -> None:
    """Take :func:`install` back."""
    asyncio.set_event_loop_policy(former)
