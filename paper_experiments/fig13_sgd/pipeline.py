"""One training step as actors whose calls take as long as computing and transfers do; for virtual time only.

A node computes the gradient bucket by bucket, last layer first. Its link carries what it sends as a replica
and what it sends as a shard of the server: (n-1)/n of every bucket each way. *Pipelined*: a bucket is pushed
while the next is computed. *Ring*: the link carries twice (n-1)/n of a bucket once every node has it, and no
scheduler takes part in its rounds, as in a library for collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PIPELINED, AT_ONCE, RING = WAYS = (
    "parameter server, pipelined",
    "parameter server, at once",
    "ring, pipelined",
)


class GpuNode:
    """Computes."""

    def compute(self, *before: None) -> None:
        """The gradient of one bucket."""


class SharedLink:
    """Carries one thing at a time."""

    def push(self, *before: None) -> None:
        """A bucket to all shards."""

    def pull(self, *before: None) -> None:
        """The sum of a bucket from all shards."""

    def ring(self, *before: None) -> None:
        """A bucket around a ring, both halves."""


class SumShard:
    """Adds up its part of every bucket."""

    def combine(self, *pushed: None) -> None:
        """One bucket."""


def train(api: Any, nodes: int, buckets: int, steps: int, way: str, clock_s: Callable[[], float]) -> float:
    """Seconds per step, without the first."""
    gpus = [api.remote(GpuNode).remote() for _ in range(nodes)]
    links = [api.remote(SharedLink).remote() for _ in range(nodes)]
    shards = [api.remote(SumShard).remote() for _ in range(nodes)]
    step = ring_step if way == RING else server_step
    last: list[list[Any]] = [[] for _ in range(nodes)]
    last = step(gpus, links, shards, last, buckets, way)
    api.get([ref for refs in last for ref in refs])
    began_s = clock_s()
    for _ in range(steps):
        last = step(gpus, links, shards, last, buckets, way)
    api.get([ref for refs in last for ref in refs])
    return (clock_s() - began_s) / steps


def server_step(
    gpus: list[Any], links: list[Any], shards: list[Any], last: list[list[Any]], buckets: int, way: str
) -> list[list[Any]]:
    """One step through the parameter server; what every node has to have before the next."""
    gradients = [
        [gpu.compute.remote(*before) for _ in range(buckets)] for gpu, before in zip(gpus, last, strict=True)
    ]
    pulled: list[list[Any]] = [[] for _ in gpus]
    waiting: list[list[Any]] = []  # sums of buckets that nobody has pulled yet
    for bucket in range(buckets):
        needed = slice(bucket, bucket + 1) if way == PIPELINED else slice(buckets)
        pushed = [link.push.remote(*mine[needed]) for link, mine in zip(links, gradients, strict=True)]
        if (
            way == PIPELINED and waiting
        ):  # calls of an actor run in order: pull before the push after the next
            _pull(links, waiting.pop(), pulled)
        waiting.append([shard.combine.remote(*pushed) for shard in shards])
    for sums in waiting:
        _pull(links, sums, pulled)
    return pulled


def _pull(links: list[Any], sums: list[Any], pulled: list[list[Any]]) -> None:
    for link, mine in zip(links, pulled, strict=True):
        mine.append(link.pull.remote(*sums))


def ring_step(
    gpus: list[Any], links: list[Any], shards: list[Any], last: list[list[Any]], buckets: int, way: str
) -> list[list[Any]]:
    """One step around rings."""
    gradients = [
        [gpu.compute.remote(*before) for _ in range(buckets)] for gpu, before in zip(gpus, last, strict=True)
    ]
    done: list[list[Any]] = [[] for _ in gpus]
    for bucket in zip(*gradients, strict=True):
        for link, mine in zip(links, done, strict=True):
            mine.append(link.ring.remote(*bucket))
    return done
