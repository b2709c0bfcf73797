"""Figure 10a: what a client of a replicated shard notices when a replica dies and another one joins.

A client writes and reads in turn, one request in flight, as fast as it gets answers. A member of the chain of
two is killed; at once an empty replica is started in its place and gets the state while the client is served.
Afterwards every acknowledged key is read back. Runs kill head and tail in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench_failover import Chain, Client
from paper_experiments.common.run import ExperimentRun
from zray.protocol.messages import TABLE_KV, TableGet, TablePut, TableReply

REPLICAS = 2
KEY_BYTES, VALUE_BYTES = 25, 512
LIMIT_MS = 30.0
BIN_S = 0.05
PATIENCE_S = 60.0
ASK_AROUND_EVERY = 500


class Request(NamedTuple):
    """One answered request."""

    at_s: float
    kind: str
    taken_s: float


class Timeline(NamedTuple):
    """One run: requests, and when a member was killed and the chain was whole again, from its start."""

    requests: list[Request]
    killed_s: float
    whole_s: float
    stale_reads: int
    lost: int
    acknowledged: int


class ClosedLoop:
    """Writes a key, reads it, writes the next one.

    Args:
        client: knows the chain, and finds its head again.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.started = time.monotonic()
        self.requests: list[Request] = []
        self.written: dict[bytes, bytes] = {}
        self.stale_reads = 0

    def elapsed_s(self) -> float:
        """Since it was made."""
        return time.monotonic() - self.started

    def turn(self) -> None:
        """One write and one read of what was written."""
        client = self.client
        client.tokens += 1
        key = b"%0*d" % (KEY_BYTES, client.tokens)
        value = key.ljust(VALUE_BYTES, b".")
        reply = self._timed("write", TablePut(client.tokens, TABLE_KV, key, value))
        assert reply.ok, f"the write of {key!r} is refused"
        self.written[key] = value
        client.tokens += 1
        found = self._timed("read", TableGet(client.tokens, TABLE_KV, key))
        self.stale_reads += found.value != value
        if client.tokens % ASK_AROUND_EVERY == 0:
            client.ask_around()

    def _timed(self, kind: str, message: TablePut | TableGet) -> TableReply:
        asked = time.monotonic()
        reply = self.client.ask(message)
        answered = time.monotonic()
        self.requests.append(Request(asked - self.started, kind, answered - asked))
        assert isinstance(reply, TableReply)
        return reply

    def until(self, moment_s: float) -> None:
        """Go on until so long after the start."""
        while self.elapsed_s() < moment_s:
            self.turn()

    def until_members(self, count: int) -> float:
        """Go on until the chain has so many members; when that was."""
        deadline_s = self.elapsed_s() + PATIENCE_S
        self.client.ask_around()
        while len(self.client.members) != count:
            self.turn()
            if self.elapsed_s() > deadline_s:
                raise TimeoutError(
                    f"the chain is {self.client.members} and not of {count} after {PATIENCE_S} s"
                )
        return self.elapsed_s()


def live(run: ExperimentRun) -> None:
    """Real replicas, in processes of their own."""
    kill_at_s = run.pick("kill_at_s", tiny=0.5, small=2.0, paper=4.2)
    ends_s = run.pick("ends_s", tiny=1.0, small=5.0, paper=10.0)
    repetitions = run.pick("repetitions", tiny=2, small=4, paper=10)
    run.parameter("replicas", REPLICAS)
    found = [
        _record(kill_at_s, ends_s, place=(0, -1)[number % 2])
        for number in run.steps(range(repetitions), "repetition")
    ]
    _draw(run, found[0], ends_s)
    _conclude(run, found)


def _record(kill_at_s: float, ends_s: float, place: int) -> Timeline:
    """One run; ``place`` in the chain of who is killed: 0 the head, -1 the tail."""
    with tempfile.TemporaryDirectory(prefix="zf") as folder:
        chain = Chain(Path(folder), REPLICAS)
        client = Client(chain.endpoints)
        try:
            client.ask_around()
            ClosedLoop(client).until_members(REPLICAS)
            loop = ClosedLoop(client)
            loop.until(kill_at_s)
            replica = client.members[place]
            killed_s = loop.elapsed_s()
            chain.kill(replica)
            chain.start(replica)
            loop.until_members(REPLICAS - 1)
            whole_s = loop.until_members(REPLICAS)
            loop.until(max(ends_s, whole_s + 1.0))
            kept = client.read_back()
        finally:
            client.close()
            chain.close()
    lost = sum(kept.get(key) != value for key, value in loop.written.items())
    return Timeline(loop.requests, killed_s, whole_s, loop.stale_reads, lost, len(loop.written))


def _draw(run: ExperimentRun, timeline: Timeline, ends_s: float) -> None:
    """The worst request of every short while, as the eye sees it in the figure."""
    for kind in ("write", "read"):
        worst: dict[int, list[float]] = {}
        for request in timeline.requests:
            if request.kind == kind and request.at_s < ends_s:
                worst.setdefault(int(request.at_s / BIN_S), []).append(1e6 * request.taken_s)
        for number, taken_us in worst.items():
            run.point("timeline", f"{kind}, worst of {BIN_S * 1000:.0f} ms", number * BIN_S, max(taken_us))
    run.note(
        f"In the drawn run the head is killed {timeline.killed_s:.2f} s after the start, and the chain "
        f"has two members again after {timeline.whole_s:.2f} s."
    )


def _conclude(run: ExperimentRun, found: list[Timeline]) -> None:
    worst, quiet, before, after = [], [], [], []
    for timeline in found:
        disturbed = timeline.killed_s - 0.05, timeline.whole_s + 0.5
        amid = [r.taken_s for r in timeline.requests if disturbed[0] <= r.at_s <= disturbed[1]]
        early = [r.taken_s for r in timeline.requests if r.at_s < disturbed[0]]
        late = [r.taken_s for r in timeline.requests if r.at_s > disturbed[1]]
        worst.append(1000 * max(amid))
        quiet.append(1000 * max(early))
        before.append(statistics.median(early))
        after.append(statistics.median(late))
    run.quantity("worst_ms", statistics.median(worst))
    run.quantity("worst_quiet_ms", statistics.median(quiet))
    run.quantity("after_over_before", statistics.median(after) / statistics.median(before))
    run.quantity("acknowledged", sum(timeline.acknowledged for timeline in found))
    run.quantity("lost_writes", sum(timeline.lost for timeline in found))
    run.quantity("stale_reads", sum(timeline.stale_reads for timeline in found))
    run.note(
        f"Worst request around a death, by run (head and tail in turn): {_list_ms(worst)}; worst "
        f"request of the undisturbed time before it: {_list_ms(quiet)}."
    )
    if statistics.median(quiet) > LIMIT_MS / 2:
        run.beyond(
            "worst_ms",
            f"without any death a request already takes up to {statistics.median(quiet):.0f} ms here, "
            f"because the chain, its client and others share {os.cpu_count()} CPUs",
        )


def _list_ms(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values) + " ms"
