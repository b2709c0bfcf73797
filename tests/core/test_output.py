"""Where the lines of workers go, and what becomes of a flood that nobody takes."""

from __future__ import annotations

from typing import Any

import pytest

from zray.core.identity import ClientEntry, NodeIdentity
from zray.core.jobs import Job
from zray.core.machine import Effect
from zray.core.output import UNACKED_CHARACTERS_MAX, OutputRelay
from zray.core.worker_pool import Worker
from zray.protocol.actor_messages import OutputAway
from zray.protocol.messages import DRIVER, WORKER, JobContext
from zray.protocol.user_messages import STDOUT, Output, Printed

HOME, WORKER_ID = b"home", b"worker"
PIECE = "x" * (1 << 20)


class Posts:
    """Stands for the couriers: what was posted, and how much of it was taken."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.taken = 0

    def post(self, node: bytes, message: Any) -> None:
        assert node == HOME
        self.posted.append(message)

    def progress(self, node: bytes) -> tuple[int, int]:
        return len(self.posted), self.taken


def relay(home: bytes) -> tuple[OutputRelay, Posts, list[Effect]]:
    """One worker of a job, whose driver is here or at another node; a driver of another job, too."""
    out: list[Effect] = []
    worker = Worker(WORKER_ID, 0)
    worker.job_id = b"job"
    clients = {WORKER_ID: ClientEntry(WORKER_ID, WORKER, 7, b"", worker)}
    for address, job_id in ((b"driver", b"job"), (b"stranger", b"another")):
        clients[address] = ClientEntry(address, DRIVER, 8, job_id, None)
        clients[address].wants_output = True
    job = Job(JobContext(b"job", (), ""))
    job.home = home
    posts: Any = Posts()
    made = OutputRelay(out, ip="10.0.0.1", clients=clients, jobs={b"job": job}, couriers=posts)
    return made, posts, out


def test_a_driver_here_and_one_elsewhere() -> None:
    printed = Printed(STDOUT, "f", 7, "line", "10.0.0.1")
    here, posts, out = relay(b"")
    here.on_output(WORKER_ID, Output(STDOUT, "f", "line"))
    assert (out, posts.posted) == ([(b"driver", printed)], [])
    here.on_output(b"driver", Output(STDOUT, "f", "line"))  # only workers print
    here.on_output_away(OutputAway(b"job", printed))
    assert out == [(b"driver", printed)] * 2
    away, posts, out = relay(HOME)
    away.on_output(WORKER_ID, Output(STDOUT, "f", "line"))
    assert (out, posts.posted) == ([], [OutputAway(b"job", printed)])


def test_what_nobody_takes_is_bounded_and_counted() -> None:
    away, posts, _ = relay(HOME)
    for _ in range(40):
        away.on_output(WORKER_ID, Output(STDOUT, "f", PIECE + "\nsecond"))
        away.check()
    kept = len(posts.posted)
    assert kept * len(PIECE) <= UNACKED_CHARACTERS_MAX + 2 * len(PIECE)
    posts.taken = kept
    away.on_output(WORKER_ID, Output(STDOUT, "f", "again"))
    away.check()
    notice, again = posts.posted[kept:]
    assert f"[{2 * (40 - kept)} lines are left out" in notice.printed.text
    assert again.printed.text == "again"
    away.node_dead(HOME)
    assert not away.outgoing


@pytest.mark.parametrize(
    ("endpoint", "ip"),
    [("tcp://10.0.0.1:64,ipc:///a", "10.0.0.1"), ("tcp://[::1]:64", "::1"), ("ipc:///a", ""), ("", "")],
)
def test_the_address_of_a_node(endpoint: str, ip: str) -> None:
    assert NodeIdentity(node_id=b"n", arena_bytes=0, endpoint=endpoint).ip == ip
