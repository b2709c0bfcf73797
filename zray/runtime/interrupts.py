"""Ctrl-C while the main thread is inside the link to the node.

``KeyboardInterrupt`` may be raised between any two instructions: with half a frame sent, or a batch received
and not handled, and then messages are lost for good. So inside the link it is put off until the thread is out
of it, a moment later. Where the thread waits nothing is half done, and the wait ends at once.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from _signal import getsignal  # type: ignore[import-not-found]  # the other tries an enumeration: 5 us
from collections.abc import Callable
from types import FrameType

from zray.runtime.spinning import Spinning
from zray.runtime.stream_links import StreamLinks

LATER_S = 0.002
_LINK_MODULES = ("zray.runtime.link", "zray.runtime.client")
_WAITING = (StreamLinks.wait.__code__, Spinning.wait.__code__)


class InterruptGuard:
    """Stands in for Python's own handler of SIGINT; other handlers are left alone.

    Args:
        followers: the condition at which threads wait that do not wait at the socket themselves.
        is_inside: whether the present thread holds the lock of that condition.
    """

    def __init__(self, followers: threading.Condition, is_inside: Callable[[], bool]) -> None:
        self._followers = followers
        self._is_inside = is_inside
        self._put_off = False
        self._repeated = False
        self._meant: object = None  # what ran when the interrupt that is put off came
        self.gate: Callable[[], object] = _anything
        """What runs now and may be interrupted; ``None``: nothing, and the interrupt is ignored."""

    def install(self) -> None:
        """Take over from Python's handler, if it is in place. Does nothing outside the main thread.

        Cost: 0.1 us if it is in place already. A notebook puts Python's back before each of its cells.
        """
        if getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_interrupt)

    def remove(self) -> None:
        """Give the signal back to Python, if that is where it came from."""
        is_ours = getsignal(signal.SIGINT) == self._on_interrupt
        if is_ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def raise_put_off(self) -> None:
        """Raise an interrupt that was put off. For the main thread, where nothing is half done."""
        if self._put_off and self.gate() != self._meant:
            self._put_off = False
        if self._put_off and threading.current_thread() is threading.main_thread():
            self._put_off = False
            raise KeyboardInterrupt

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        repeated, self._repeated = self._repeated, False
        if repeated and not self._put_off:
            return  # it has been raised meanwhile
        runs_now = self.gate()
        if runs_now is None or (repeated and runs_now != self._meant):
            self._put_off = False
            return
        self._meant = runs_now
        if frame is None or frame.f_code in _WAITING or not _is_in_link(frame):
            self._put_off = False
            raise KeyboardInterrupt
        self._put_off = True
        # If this thread waits as a follower, it does not hold the lock now.
        if not self._is_inside() and self._followers.acquire(blocking=False):
            self._followers.notify_all()
            self._followers.release()
        _thread.start_new_thread(self._repeat, ())  # threading.Thread takes locks that this thread may hold

    def _repeat(self) -> None:
        time.sleep(LATER_S)
        if self._put_off:
            self._repeated = True
            # A signal and not interrupt_main(): the thread may be in a call of the system by now.
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)


def _anything() -> object:
    return True


def _is_in_link(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") in _LINK_MODULES:
            return True
        frame = frame.f_back
    return False
