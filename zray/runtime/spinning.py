"""Wait for an answer that comes soon without going to sleep, where that is faster.

To wake a core that sleeps takes time, and an interpreter takes up to twice as long for the same steps after
it, in a virtual machine at least. Who looks again and again instead is at full speed when the answer comes,
but takes the core from whoever was to give it, if no other is free. Which of the two it is nobody can tell
beforehand: both are tried, and sleeps are for where looking took much longer lately (decision 25).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

Ready = list[tuple[int, int]]

TRY_OTHER_EVERY = 64
"""Short waits between two in which the other way is tried."""
_WEIGHT = 1 / 16  # of the newest wait in the averages
_FAVOUR = 1.5
"""What spinning may take, in sleeps: it makes what follows the wait faster, too, and that is not measured."""


class Spinning:
    """The waits of one process at one place. For one thread at a time.

    Args:
        spin_ns: longest time to look before a sleep; 0: always sleep. Where sleeps take longer than that
            nobody looks: it would be in vain.
    """

    __slots__ = ("_asleep_ns", "_spin_ns", "_spinning_ns", "_waits")

    def __init__(self, spin_ns: int) -> None:
        self._spin_ns = spin_ns
        self._asleep_ns = 2.0 * spin_ns  # averages of what a wait took, in either way
        self._spinning_ns = 0.0
        self._waits = 0

    def wait(self, poll: Callable[[float | None], Ready], timeout_s: float | None) -> Ready:
        """What ``poll`` finds within ``timeout_s``; ``None``: without end."""
        spin_ns = self._spin_ns
        if not spin_ns or (timeout_s is not None and timeout_s * 1e9 <= spin_ns):
            return poll(timeout_s)
        spins = self.chooses_to_spin()
        began_ns = time.monotonic_ns()
        ready: Ready = []
        if spins:
            ends_ns = began_ns + spin_ns
            while not (ready := poll(0)) and time.monotonic_ns() < ends_ns:
                os.sched_yield()  # to whoever is to give the answer, if it waits for this core
        if not ready:
            ready = poll(timeout_s)
        self.note(spins, time.monotonic_ns() - began_ns)
        return ready

    def chooses_to_spin(self) -> bool:
        """Whether the wait that begins is to look before it sleeps."""
        if self._asleep_ns >= self._spin_ns:
            self._spinning_ns = 0.0  # nothing is known of it once waits are short again
            return False
        self._waits += 1
        is_faster = self._spinning_ns < _FAVOUR * self._asleep_ns
        return is_faster != (self._waits % TRY_OTHER_EVERY == 0)

    def note(self, spun: bool, took_ns: int) -> None:
        """Learn from a wait."""
        took = float(min(took_ns, 2 * self._spin_ns))  # a pause of the user's says no more than that
        if spun:
            self._spinning_ns += _WEIGHT * (took - self._spinning_ns)
        else:
            self._asleep_ns += _WEIGHT * (took - self._asleep_ns)
