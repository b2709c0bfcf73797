"""Virtual time: one heap of events, one random stream per subsystem, one digest of all that was delivered.

The one invariant: what happens depends on the root seed and the code alone. Events that are due at the
same nanosecond happen in the order in which they were planned, streams are seeded from a stable digest of
their name (never from ``hash()``), and every delivery goes into the digest, so two runs are equal if
their digests are.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Any

US = 1_000
MS = 1_000_000
S = 1_000_000_000

Action = Callable[[Any], None]


def stream(root_seed: int, name: str) -> Random:
    """The random stream of one subsystem: a new subsystem does not reshuffle the others."""
    seed = blake2b(f"{root_seed}/{name}".encode(), digest_size=16).digest()
    return Random(int.from_bytes(seed, "big"))


class Kernel:
    """The clock and the heap.

    Args:
        root_seed: every random draw of a run follows from it.
    """

    __slots__ = ("_digest", "_heap", "_sequence", "_streams", "events", "now_ns", "root_seed")

    def __init__(self, root_seed: int) -> None:
        self.root_seed = root_seed
        self.now_ns = 0
        self.events = 0  # that have happened
        self._heap: list[tuple[int, int, Action, Any]] = []
        self._sequence = 0
        self._streams: dict[str, Random] = {}
        self._digest = blake2b(digest_size=16)

    def stream(self, name: str) -> Random:
        """The stream of a subsystem, made at its first use."""
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = stream(self.root_seed, name)
        return found

    def at(self, time_ns: int, action: Action, argument: Any = None) -> None:
        """Plan ``action(argument)``; the past is not open for planning, it happens now."""
        self._sequence += 1
        heappush(self._heap, (max(time_ns, self.now_ns), self._sequence, action, argument))

    def after(self, delay_ns: int, action: Action, argument: Any = None) -> None:
        """Plan ``action(argument)`` in ``delay_ns``."""
        self.at(self.now_ns + delay_ns, action, argument)

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._heap:
            return False
        self.now_ns, _, action, argument = heappop(self._heap)
        self.events += 1
        action(argument)
        return True

    def run_until(self, time_ns: int, done: Callable[[], bool] | None = None) -> bool:
        """Let events happen up to and including ``time_ns``, or until ``done()``; whether it is done.

        ``done`` is asked after every event. Without it the clock stands at ``time_ns`` afterwards.
        """
        heap = self._heap
        while heap and heap[0][0] <= time_ns:
            self.now_ns, _, action, argument = heappop(heap)
            self.events += 1
            action(argument)
            if done is not None and done():
                return True
        if done is None:
            self.now_ns = max(self.now_ns, time_ns)
            return False
        return done()

    def note_delivery(self, destination: bytes, encoded: bytes) -> None:
        """Mix one delivery into the digest."""
        self._digest.update(self.now_ns.to_bytes(8, "big") + destination + encoded)

    def digest(self) -> str:
        """What was delivered so far, when and to whom, in 32 hex digits."""
        return self._digest.hexdigest()
