"""The background thread of a link: it acts only while no user thread does.

After any activity it comes by every ``idle_duty_interval_ns``: it sends what was left in the outbox and
handles what has arrived. Once nothing has happened for ``idle_duty_linger_ns`` it stops ticking: it either
waits at the socket in the place of the user threads, or sleeps while one of them does that.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zray.runtime.link import NodeLink


class IdleDuty:
    """One daemon thread per link, started with the first activity."""

    def __init__(self, link: NodeLink) -> None:
        self._link = link
        self._interval_s = link.config.idle_duty_interval_ns / 1e9
        self._linger_ns = link.config.idle_duty_linger_ns
        self._thread: threading.Thread | None = None
        self._closed = False
        self._asleep = False
        self._alarm = threading.Event()
        self._active_ns = 0
        self.leads = False

    def note_activity(self, now_ns: int = 0) -> None:
        """Something was sent, or a user thread has stopped to lead. Lock held."""
        self._active_ns = now_ns or time.monotonic_ns()
        if self._asleep:
            self._alarm.set()
        elif self.leads:
            self._link.wake()
        elif self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="zray-idle-duty", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._alarm.set()
        self._link.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._closed and self._link._broken is None:  # a broken link has nothing to say any more
            time.sleep(self._interval_s)
            quiet = time.monotonic_ns() - self._active_ns > self._linger_ns
            if self._link._leading.acquire(blocking=False):
                self._link._leader = threading.get_ident()
                self._visit(quiet)
            elif quiet:
                self._sleep()

    def _visit(self, quiet: bool) -> None:
        link = self._link
        try:
            with link.lock:
                if self._closed or link._closed:
                    return
                link.do_idle_duty()
                self.leads = quiet and link._broken is None and link.may_sleep()
            link.show_output()
            if self.leads:
                link.sleep(None)
        finally:
            self.leads = False
            link.end_sleep()
            with link.lock:
                link._leader = 0
                link._leading.release()
                if link._followers_waiting:
                    link._followers.notify_all()

    def _sleep(self) -> None:
        """A user thread waits at the socket: nothing to do here until it leaves."""
        with self._link.lock:
            if not self._closed and not self._link._closed:
                self._link.do_idle_duty()
        self._alarm.clear()
        self._asleep = True
        if time.monotonic_ns() - self._active_ns > self._linger_ns and not self._closed:
            self._alarm.wait()
        self._asleep = False
