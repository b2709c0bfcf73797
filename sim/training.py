"""Programs of distributed training: a ring allreduce of tasks, and a parameter server of actors.

Paper, sections 5.1 (figure 12a) and 5.2.1 (figure 13), with sums in the place of gradients: every value
has one right answer.
"""
# ruff: noqa: PERF401 - a comprehension cannot yield

from __future__ import annotations

from random import Random
from typing import Any

from sim.kernel import US
from sim.programs import Blob, CallActor, Compute, Fetch, Forget, MakeActor, Program, Spawn, actor, task
from sim.scenario import WorkloadPart

PARTICIPANTS_MAX = 6
ROUNDS_MAX = 8
SAVE_EVERY = 3  # calls of a server between two checkpoints


@task
def chunk_of(participant: int, chunk: int, size: int) -> Program:
    """What a participant brings along."""
    yield Compute(20 * US)
    return Blob(size, 1 + 100 * participant + chunk)


@task
def reduced(mine: Blob, received: Blob) -> Program:
    """One step of the first round of a ring: what came from the neighbour is added."""
    yield Compute(mine.size)
    return Blob(mine.size, mine.tag + received.tag)


@task
def gathered(received: Blob) -> Program:
    """One step of the second round: what came from the neighbour is kept."""
    yield Compute(received.size // 4)
    return Blob(received.size, received.tag)


@task
def total_of(*chunks: Blob) -> Program:
    """What a participant has in the end."""
    yield Compute(20 * US)
    return sum(chunk.tag for chunk in chunks)


@task
def gradient(example: int, duration_ns: int, *weights: int) -> Program:
    """What a worker learns from one example and the weights of all servers."""
    yield Compute(duration_ns)
    return example + sum(weights) % 1000


@actor
class ServerActor:
    """One shard of the weights, which can be saved."""

    def __init__(self) -> None:
        self.weights = 0

    def save(self) -> int:
        """The state."""
        return self.weights

    def load(self, weights: int) -> None:
        """Take :meth:`save` back."""
        self.weights = weights

    def push(self, *gradients: int) -> Program:
        """Learn from gradients."""
        yield Compute(10 * US)
        self.weights += sum(gradients)
        return len(gradients)

    def pull(self) -> int:
        """The weights as they are."""
        return self.weights


def allreduce(work: WorkloadPart, random: Random) -> Program:
    """Reduce-scatter, then allgather: in each step everybody takes one chunk of the neighbour."""
    count = max(2, min(PARTICIPANTS_MAX, work.tasks // 10))
    size = work.object_kib * 1024
    have: list[list[Any]] = []
    for participant in range(count):
        row = []
        for chunk in range(count):
            row.append((yield Spawn("chunk_of", (participant, chunk, size), 1, work.retries)))
        have.append(row)
    for name in ("reduced", "gathered"):
        for step in range(count - 1):
            taken = []
            for participant in range(count):
                giver = (participant - 1) % count
                chunk = (giver - step + (name == "gathered")) % count
                arguments = (have[participant][chunk], have[giver][chunk])[name == "gathered" :]
                taken.append((participant, chunk, (yield Spawn(name, arguments, 1, work.retries))))
            for participant, chunk, ref in taken:
                yield Forget([have[participant][chunk]])
                have[participant][chunk] = ref
    totals = []
    for row in have:
        totals.append((yield Spawn("total_of", tuple(row), 1, work.retries)))
    return (yield Fetch(totals))


def parameter_server(work: WorkloadPart, random: Random) -> Program:
    """Workers compute gradients of the newest weights; servers add them up, round by round.

    With retries without end servers are saved and made again without end, too. With fewer a fault may be
    the argument of a push, which then adds nothing, and later weights are not those of the sequence.
    """
    endless = work.retries == -1
    made = ("ServerActor", (), 0.0, -1, SAVE_EVERY) if endless else ("ServerActor",)
    repeats = -1 if endless else 0
    servers = []
    for _ in range(work.actors):
        servers.append((yield MakeActor(*made)))
    workers = max(1, work.fan_out)
    rounds = max(1, min(ROUNDS_MAX, work.tasks // workers))
    for number in range(rounds):
        weights = []
        for server in servers:
            weights.append((yield CallActor(server, "pull", (), 1, repeats)))
        gradients = []
        for worker in range(workers):
            arguments = (number * workers + worker, random.randint(1, 1 + 2 * work.task_us) * US, *weights)
            gradients.append((yield Spawn("gradient", arguments, 1, work.retries)))
        pushed = []
        for server in servers:
            pushed.append((yield CallActor(server, "push", tuple(gradients), 1, repeats)))
        yield Forget(weights)
        yield Forget(gradients)
        if random.random() < 0.3:
            yield Fetch(pushed)
        yield Forget(pushed)
    last = []
    for server in servers:
        last.append((yield CallActor(server, "pull", (), 1, repeats)))
    return (yield Fetch(last))
