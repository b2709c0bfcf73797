"""Allreduce by actors, for any system with the API of zray: a ring, and a few large rounds for small objects.

One actor per participant holds what it contributes, cut into one chunk per participant. *Ring*: in each of
the 2(n-1) rounds every participant gets the chunk that its left neighbour has just made, adds its own share
(first half) or keeps it (second half), and hands it on. *Doubling*: in each of the log2(n) rounds everybody
exchanges the sum so far with a partner twice as far away; more bytes, fewer rounds. In both, the refs of one
round are the arguments of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

RING, DOUBLING = ALGORITHMS = ("ring", "doubling")
Array = np.ndarray[Any, Any]


class RingParticipant:
    """One of ``count`` participants, with its share of each chunk."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count
        self.shares: list[Array] = []
        self.total: Array = np.zeros(0)

    def renew(self, length: int) -> None:
        """Forget all sums; chunks have ``length`` items from now on."""
        self.shares = [np.full(length, share_of(self.number, chunk)) for chunk in range(self.count)]
        self.total = np.concatenate(self.shares)

    def begin(self, chunk: int) -> Array:
        """The first chunk that leaves this participant in a ring."""
        return self.shares[chunk]

    def step(self, chunk: int, incoming: Array, adds: bool, delay_s: float) -> Array:
        """One round of a ring: take a chunk from the left neighbour, and give what goes to the right one."""
        if delay_s:
            time.sleep(delay_s)
        total: Array = incoming + self.shares[chunk] if adds else incoming
        self.shares[chunk] = total
        return total

    def whole(self) -> Array:
        """All chunks at once."""
        return self.total

    def exchange(self, incoming: Array) -> Array:
        """One round of doubling: add what a partner has added up so far."""
        self.total = self.total + incoming
        return self.total

    def sums(self, algorithm: str) -> list[float]:
        """One number of every chunk."""
        shares = self.shares if algorithm == RING else np.split(self.total, self.count)
        return [float(share[-1]) for share in shares]


def share_of(number: int, chunk: int) -> float:
    """What a participant contributes to a chunk: the sums of chunks differ."""
    return float((number + 1) * (chunk + 1))


def ring(participants: list[Any], delay_s: float = 0.0) -> list[Any]:
    """Start a ring; what the participants end with."""
    count = len(participants)
    chunks = [actor.begin.remote(number) for number, actor in enumerate(participants)]
    for number in range(2 * (count - 1)):
        chunks = [
            actor.step.remote((place - number - 1) % count, chunks[place - 1], number < count - 1, delay_s)
            for place, actor in enumerate(participants)
        ]
    return chunks


def doubling(participants: list[Any]) -> list[Any]:
    """Start an exchange by doubling; what the participants end with.

    Raises:
        ValueError: unless their number is a power of two.
    """
    count = len(participants)
    if count & (count - 1):
        raise ValueError(f"doubling needs a power of two of participants, not {count}; use the ring")
    totals = [actor.whole.remote() for actor in participants]
    for number in range(count.bit_length() - 1):
        totals = [
            actor.exchange.remote(totals[place ^ 1 << number]) for place, actor in enumerate(participants)
        ]
    return totals


def allreduce(
    api: Any, participants: list[Any], length: int, algorithm: str = RING, delay_s: float = 0.0,
    clock_s: Callable[[], float] = time.monotonic,
) -> float:  # fmt: skip
    """One allreduce of chunks of ``length`` items; how long it took, in seconds.

    Raises:
        AssertionError: if a participant ends with anything but the sum.
    """
    api.get([actor.renew.remote(length) for actor in participants])
    started = clock_s()
    last = ring(participants, delay_s) if algorithm == RING else doubling(participants)
    api.wait(last, num_returns=len(last))
    taken_s = clock_s() - started
    check(api, participants, algorithm)
    return taken_s


def check(api: Any, participants: list[Any], algorithm: str) -> None:
    """Every participant has the sum of every chunk."""
    count = len(participants)
    wanted = [sum(share_of(number, chunk) for number in range(count)) for chunk in range(count)]
    for found in api.get([actor.sums.remote(algorithm) for actor in participants]):
        assert found == wanted, f"{algorithm} gives {found} and not {wanted}"


def start(api: Any, count: int) -> list[Any]:
    """The participants, ready."""
    actor = api.remote(RingParticipant)
    participants = [actor.remote(number, count) for number in range(count)]
    api.get([participant.renew.remote(1) for participant in participants])
    return participants


_started: dict[int, list[Any]] = {}


def measure(api: Any, count: int, size_bytes: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of some allreduces by algorithm, after one of each; participants stay for the next time."""
    if count not in _started:
        _started[count] = start(api, count)
    participants, length = _started[count], max(1, size_bytes // count // 8)
    found: dict[str, list[float]] = {}
    for algorithm in ALGORITHMS:
        taken = [allreduce(api, participants, length, algorithm) for _ in range(1 + repetitions)]
        found[algorithm] = taken[1:]
    return found
