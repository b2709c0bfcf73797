"""Ctrl-C where the main thread waits in the link: at once, whether it sleeps or looks."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

from zray.config import Config
from zray.runtime.interrupts import InterruptGuard
from zray.runtime.spinning import Spinning
from zray.runtime.stream_links import StreamLinks

PATIENCE_MS = 20_000


@pytest.fixture
def guard() -> Iterator[InterruptGuard]:
    made = InterruptGuard(threading.Condition(), lambda: False)
    made.install()
    yield made
    made.remove()


class EndlessLook(Spinning):
    """One that looks for as long as the wait may take."""

    __slots__ = ()

    def chooses_to_spin(self) -> bool:
        return True


def _wait(links: StreamLinks) -> Any:
    return links.wait(PATIENCE_MS)


wait_in_link = FunctionType(_wait.__code__, {"__name__": "zray.runtime.link", "PATIENCE_MS": PATIENCE_MS})
"""Interrupts are put off in that module, but for where it waits."""


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("looks", [False, True])
def test_a_wait_ends_at_once(looks: bool) -> None:
    links = StreamLinks(b"x" * 16, list, Config(spin_ns=0))
    if looks:
        links._spinning = EndlessLook((PATIENCE_MS - 1) * 10**6)
    caller, ended = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        while sys._current_frames()[caller].f_code is not Spinning.wait.__code__:
            if ended.wait(0.001):
                return
        signal.pthread_kill(caller, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_in_link(links)
    finally:
        ended.set()
        other.join()
        links.close()
