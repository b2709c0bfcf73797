"""One process's links, to its node and others: send, receive, and wait, shared by all of its threads.

All state is behind one lock; no lock is held while a thread waits. Whichever user thread has to wait *leads*:
it polls the links and handles what comes for everybody; others that wait follow, and one of them takes
over when the leader leaves. A background thread (``IdleDuty``) does the same only when no user thread does,
so that a program that computes still sends its last tasks and hears of its cluster, and the path of a call
in a loop costs no hand-over between threads.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from zray.config import Config
from zray.core.client import ClientMachine
from zray.core.machine import Address, bound_handlers, take_effects
from zray.errors import ClusterUnavailableError, LocalProtocolError
from zray.protocol.codec import decode_for_process
from zray.runtime.idle_duty import IdleDuty
from zray.runtime.interrupts import InterruptGuard
from zray.runtime.stream_links import StreamLinks

log = logging.getLogger("zray.link")

NAP_S_MAX = 86_400.0
"""A wait with a longer timeout looks at the world once a day: the system's calls have limits."""

LinkHandler = Callable[[int, Address, Any], None]
"""Of ``(now_ns, source, message)``, called with the lock held."""


class NodeLink:
    """The socket of one process, its machine, and whoever waits for what comes.

    Args:
        identity: routing id of this process.
        machine: what it hears first, and whose outbox it sends.
        config: limits.
    """

    def __init__(self, identity: Address, machine: ClientMachine, config: Config) -> None:
        self.identity = identity
        self.machine = machine
        self.config = config
        self.lock = threading.RLock()  # held once at a time; it knows by whom, which a plain lock does not
        self.is_inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]
        self.out = machine.out
        self.handlers: dict[type, LinkHandler] = bound_handlers(machine)
        self.links = StreamLinks(identity, decode_for_process, config)
        """To its node, to actors and leased workers that it calls, and of whoever calls this process."""
        self._broken: Exception | None = None
        self._closed = False
        self._leading = threading.Lock()
        self._leader = 0  # the thread that has it
        self._followers = threading.Condition(self.lock)
        self._followers_waiting = 0
        self._leader_sleeps = False
        self._sleeper_woken = False  # for what gathered; one wake is enough
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.links.watch(self._wake_read)
        self._node_pid_fd = -1
        self.before_waiting: Callable[[], bool] | None = None  # worker: may lend its CPU
        self.after_waiting: Callable[[], None] | None = None
        self.duty = IdleDuty(self)
        self.interrupts = InterruptGuard(self._followers, self.is_inside)

    def watch_node(self, pid_fd: int) -> None:
        """Learn at once when the node is gone; ``pid_fd`` becomes readable then."""
        self._node_pid_fd = pid_fd
        self.links.watch(pid_fd)

    def serve(self, endpoint: str) -> None:
        """Take direct calls at ``endpoint`` from now on."""
        with self.lock:
            if not self.links.is_bound:
                self.links.bind(endpoint)

    def close_sockets(self) -> None:
        """Let go of sockets and descriptors; nobody may sleep. Lock held."""
        self.links.close()
        fds = (self._wake_read, self._wake_write, self._node_pid_fd)
        self._wake_read = self._wake_write = self._node_pid_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def fail(self, error: Exception) -> None:
        """The cluster cannot be used any more: everybody who waits gets this error. Lock held."""
        if self._broken is None:
            self._broken = error
        self._followers.notify_all()

    # --- sending and receiving; the lock is held in all of these -----------------------------------

    def before_sending(self) -> None:
        """For a subclass: put into the outbox what gathers elsewhere."""

    def has_gathered(self) -> bool:
        """For a subclass: whether :meth:`before_sending` has something to put."""
        return False

    def show_output(self) -> None:
        """For a subclass: show what others printed. The lock is free."""

    def rouse_sleeper(self) -> None:
        """Make a thread that sleeps at the socket send what has gathered. Takes no lock, in any thread."""
        if self._leader_sleeps and not self._sleeper_woken:
            self._sleeper_woken = True
            self._wake_leader()

    def flush(self) -> None:
        """Send what is in the outbox. Takes the lock."""
        with self.lock:
            self._send_all()

    def _send_all(self, now_ns: int = 0) -> None:
        self.before_sending()
        if not self.out:
            return
        by_peer: dict[Address, list[Any]] = {}
        take_effects(self.out, by_peer)
        for destination, messages in by_peer.items():
            self.links.send(destination, messages)
        self.machine.sent(now_ns or time.monotonic_ns())

    def _receive(self) -> bool:
        """Handle what has arrived, as far as one turn goes; whether anything had."""
        batch = self.links.receive()
        if not batch:
            return False
        handlers, now_ns = self.handlers, time.monotonic_ns()
        for source, message in batch:
            handlers.get(type(message), self._on_unexpected)(now_ns, source, message)
        if self._followers_waiting:
            self._followers.notify_all()
        if self._leader_sleeps:  # what it waits for may be among this
            self._wake_leader()
        return True

    def _on_unexpected(self, now_ns: int, source: Address, message: Any) -> None:
        log.warning("unexpected %s from %s", type(message).__name__, source.hex())

    def do_idle_duty(self) -> None:
        """One visit of the background thread while no user thread leads."""
        self._send_all()
        self._receive()
        self._send_all()  # what came may have let go of something, which is not in the outbox yet

    # --- waiting ---------------------------------------------------------------------------------

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None, *, may_lend: bool = True) -> bool:
        """Wait until ``done()`` (called with the lock held), in turn with other threads.

        Args:
            done: whether the wait is over.
            timeout_s: seconds; ``None``: without end.
            may_lend: in a worker, give the CPU of the running task to others meanwhile.
        Returns:
            whether it is done; False once the time is over.
        Raises:
            ClusterUnavailableError: if the node is gone.
            KeyboardInterrupt: at once, in the main thread; nothing is lost by it.
        """
        try:
            return self._wait_until(done, timeout_s, may_lend)
        finally:
            self.show_output()

    def _wait_until(self, done: Callable[[], bool], timeout_s: float | None, may_lend: bool) -> bool:
        may_lend = may_lend and self.before_waiting is not None
        with self.lock:
            self._send_all()
            if done():
                return True
            if may_lend:  # not for what is there already
                self._receive()
                if done():
                    self._send_all()
                    return True
        self.interrupts.install()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lent = may_lend and self.before_waiting is not None and self.before_waiting()
        try:
            while True:
                if self._lead_or_follow(done, deadline):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
        finally:
            if lent and self.after_waiting is not None:
                self.after_waiting()

    def _lead_or_follow(self, done: Callable[[], bool], deadline: float | None) -> bool:
        me = threading.get_ident()
        if self._leader == me:
            return self._lead_inside(done, deadline)
        if self._leading.acquire(blocking=False):
            self._leader = me
            try:
                return self._lead(done, deadline)
            finally:
                with self.lock:
                    self._leader = 0
                    self._leading.release()
                    if self._followers_waiting:
                        self._followers.notify_all()
                    self.duty.note_activity()
        with self.lock:
            self._check_usable()
            if done():
                return True
            if self.duty.leads:
                self._wake_leader()
            if self._leading.locked():
                self._followers_waiting += 1
                try:
                    self._followers.wait(_nap_s(deadline))
                    self.interrupts.raise_put_off()
                finally:
                    self._followers_waiting -= 1
            return done()

    def _lead_inside(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """For a destructor that was called where this thread leads: nobody else can."""
        slept = self._leader_sleeps
        try:
            return self._lead(done, deadline)
        finally:
            if slept:
                self._wake_leader()  # what it was about to sleep for may have come meanwhile

    def _lead(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Poll and handle for everybody until ``done()`` or the time is over.

        What has arrived is looked at once a sleep says that there is something, for a look costs as much as
        a sleep that ends at once; or first, if there may be no time to sleep.
        """
        looks = deadline is not None
        while True:
            with self.lock:
                self._check_usable()
                if looks:
                    self._receive()
                self._send_all()
                if done():
                    return True
                looks = True
                if not self.may_sleep():
                    continue
            self.show_output()
            try:
                nap_s = _nap_s(deadline)
                if nap_s is not None and nap_s <= 0:
                    return False
                self.sleep(None if nap_s is None else math.ceil(nap_s * 1000))
            finally:
                self.end_sleep()

    def may_sleep(self) -> bool:
        """Whether nothing is to be done. Then :meth:`sleep` follows; who makes work wakes it. Lock held."""
        self._sleeper_woken = False
        self._leader_sleeps = True  # before the look: what comes after it wakes the sleeper
        ended = self._broken is not None or self._closed  # by what was just received, perhaps
        if ended or self.out or self.has_gathered():
            self._leader_sleeps = False
        return self._leader_sleeps

    def end_sleep(self) -> None:
        """Take :meth:`may_sleep` back."""
        self._leader_sleeps = False

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise copy.copy(self._broken)  # each thread its own: an error collects tracebacks
        if self._closed:
            raise LocalProtocolError("this connection is closed: zray was shut down")

    def sleep(self, timeout_ms: int | None) -> None:
        """Block until something may have arrived. For the thread that leads; the lock is free."""
        for fd in self.links.wait(timeout_ms):
            if fd == self._wake_read:
                self._drain_wakes()
            elif fd == self._node_pid_fd:
                with self.lock:
                    self._receive()
                    self.fail(ClusterUnavailableError("the node of this process is gone", 0.0))
                    self.links.unwatch(fd)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _wake_leader(self) -> None:
        with contextlib.suppress(OSError):  # full of wakes already, or closed
            os.write(self._wake_write, b"\0")

    def wake(self) -> None:
        """Make the thread that leads look at the world again."""
        self._wake_leader()


def left_s(deadline: float | None) -> float | None:
    """Seconds until ``deadline``, not below zero; ``None``: without end."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _nap_s(deadline: float | None) -> float | None:
    """The same, but not longer than one call of the system may take."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), NAP_S_MAX)
