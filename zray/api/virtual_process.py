"""What code in a simulation sees of its process and of time.

``time.sleep``, the clocks of ``time``, ``os.getpid``, ``os.kill``, ``os._exit`` and ``atexit.register`` are
replaced while a simulation runs. In its code they mean virtual time and the simulated worker; in any other
thread, and for processes that are none of the simulation, they are the real ones.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from sim.operations import EndProcess, ExitWith, Work
from sim.process import Process
from sim.user_code import SimulatedThread
from zray.api.simulated_client import NS_PER_S, not_simulated
from zray.runtime import own_client
from zray.runtime.exit_codes import exit_code_of, print_ending

if TYPE_CHECKING:
    from zray.api.simulation import Simulation

FIRST_PID = 1 << 23
"""Above the pids of any Linux."""
CLOCKS = ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns")
FATAL = (signal.SIGKILL, signal.SIGTERM)


_current: VirtualProcesses | None = None


def _installed() -> VirtualProcesses:
    assert _current is not None
    return _current


class VirtualProcesses:
    """The replaced functions of one simulation.

    Args:
        simulation: the run.
        driver_thread: the one that entered it.
    """

    def __init__(self, simulation: Simulation, driver_thread: threading.Thread) -> None:
        self.simulation = simulation
        self._driver_thread = driver_thread
        self._processes: dict[int, Process] = {}
        self._pids: dict[bytes, int] = {}
        self._at_exit: dict[bytes, list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]] = {}
        self._former: list[tuple[Any, str, Callable[..., Any]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _installed, ()  # as a part of code that is pickled: ``time.sleep`` of whoever runs it

    def install(self) -> None:
        """Replace them."""
        global _current
        _current = self
        for module, name, function in (
            (time, "sleep", self.sleep),
            (os, "getpid", self.getpid),
            (os, "kill", self.kill),
            (os, "_exit", self.exit),
            (atexit, "register", self.register),
            *self._clocks(),
        ):
            self._former.append((module, name, getattr(module, name)))
            setattr(module, name, function)
        former = [one for _, _, one in self._former]
        self._sleep, self._getpid, self._kill, self._exit, self._register = former[:5]

    def _clocks(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Clocks go on from what they show now, in virtual time."""
        return [
            (time, name, self._clock(getattr(time, name), 1 if name.endswith("_ns") else 1 / NS_PER_S))
            for name in CLOCKS
        ]

    def _clock(self, real: Callable[[], Any], unit: float) -> Callable[[], Any]:
        first, run = real(), self.simulation.run
        first_ns = run.now_ns

        def now() -> Any:
            if threading.current_thread() is not self._driver_thread and not self._is_worker():
                return real()
            return first + (run.now_ns - first_ns) * unit

        return now

    def remove(self) -> None:
        """Take :meth:`install` back."""
        global _current
        _current = None
        for module, name, former in self._former:
            setattr(module, name, former)

    def pid_of(self, process: Process) -> int:
        """The number of a simulated worker, in the order in which they first ran code."""
        pid = self._pids.get(process.address)
        if pid is None:
            pid = self._pids[process.address] = FIRST_PID + len(self._pids)
            self._processes[pid] = process
        return pid

    def _is_worker(self) -> bool:
        return isinstance(threading.current_thread(), SimulatedThread)

    def sleep(self, seconds: float) -> None:
        """``time.sleep``."""
        if threading.current_thread() is not self._driver_thread and not self._is_worker():
            self._sleep(seconds)
            return
        if not seconds >= 0:
            raise ValueError("sleep length must be non-negative")
        client: Any = own_client.get()
        client.hand_over(Work(round(seconds * NS_PER_S), self.simulation.run.working))

    def getpid(self) -> int:
        """``os.getpid``."""
        client: Any = own_client.get() if self._is_worker() else None
        return self._getpid() if client is None else self.pid_of(client.process)

    def kill(self, pid: int, number: int) -> None:
        """``os.kill``; for a simulated worker only what ends it.

        Raises:
            NotImplementedError: for another signal to a simulated worker.
        """
        process = self._processes.get(pid)
        if process is None:
            self._kill(pid, number)
            return
        if number not in FATAL and number != 0:
            raise not_simulated(f"signal {number}")
        if not process.alive:
            raise ProcessLookupError(f"simulated process {pid} has ended")
        if number:
            client: Any = own_client.get()
            client.hand_over(EndProcess(process, -number))

    def exit(self, code: int) -> None:
        """``os._exit``."""
        if not self._is_worker():
            self._exit(code)
        client: Any = own_client.get()
        client.hand_over(EndProcess(client.process, code))

    def end_worker(self, error: BaseException) -> NoReturn:
        """End the simulated worker whose code runs because of ``error``: its exit handlers run."""
        client: Any = own_client.get()
        print_ending(error)
        client.process.bound_farewell()
        self.run_at_exit(client.process)
        client.hand_over(ExitWith(exit_code_of(error)))
        raise AssertionError("it goes on after its end")

    def register(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """``atexit.register``; of workers only actors come to their end with their code."""
        if not self._is_worker():
            self._register(function, *args, **kwargs)
        else:
            client: Any = own_client.get()
            self._at_exit.setdefault(client.process.address, []).append((function, args, kwargs))
        return function

    def run_at_exit(self, process: Process) -> None:
        """Call what was registered, the last first."""
        for function, args, kwargs in reversed(self._at_exit.pop(process.address, [])):
            with suppress(Exception):  # the real one prints it, to a terminal that nobody has here
                function(*args, **kwargs)
