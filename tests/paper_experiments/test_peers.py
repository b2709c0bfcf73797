"""Systems in processes of their own: asked, missing, wrong, dead, silent."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paper_experiments import command
from paper_experiments.common import peer_child, peers
from paper_experiments.common.peers import Peer, PeerError, missing_reason
from paper_experiments.fig12a_allreduce import workload

HERE = "tests.paper_experiments.test_peers"


def add(api: Any, one: int, other: int) -> int:
    """What a peer is asked here."""
    double = api.remote(lambda number: 2 * number)
    return sum(api.get([double.remote(one), double.remote(other)]))


def refuse(api: Any) -> None:
    raise LookupError("nothing there")


def die(api: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(api: Any) -> None:
    time.sleep(3600)


@pytest.mark.slow
def test_a_peer_answers_says_what_went_wrong_and_goes_on() -> None:
    peer = Peer("zray", sys.executable, 1)
    try:
        assert peer.ask(f"{HERE}:add", one=1, other=2) == 6
        with pytest.raises(PeerError, match="nothing there"):
            peer.ask(f"{HERE}:refuse")
        assert peer.ask(f"{HERE}:add", one=3, other=2) == 10
        with pytest.raises(PeerError, match="it ended"):
            peer.ask(f"{HERE}:die")
        with pytest.raises(PeerError, match="it ended"):
            peer.ask(f"{HERE}:add", one=1, other=2)
    finally:
        peer.end()


@pytest.mark.slow
def test_a_silent_peer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ANSWER_S", 0.3)
    monkeypatch.setattr(peers, "END_S", 0.3)
    peer = Peer("zray", sys.executable, 1)
    with pytest.raises(PeerError, match="no answer within"):
        peer.ask(f"{HERE}:hang")
    peer.end()
    assert peer._process.returncode == -signal.SIGKILL


def test_who_is_missing_is_said_with_what_to_do(tmp_path: Path) -> None:
    assert missing_reason("zray", sys.executable) == ""
    assert "does not run" in missing_reason("zray", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho No module named ray >&2; exit 1\n")
    (tmp_path / "python").chmod(0o755)
    assert missing_reason("ray", str(tmp_path / "python")).endswith("--python ray=PATH")
    with pytest.raises(PeerError), peers.started(["zray"], {"zray": str(tmp_path / "no")}, 1):
        pass


def test_no_mpirun_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "openmpi-bin" in missing_reason(peer_child.OPENMPI, sys.executable)


NO_OPENMPI = missing_reason(peer_child.OPENMPI, sys.executable)


class Idle:
    """How long this rank had computed when it was last left alone."""

    since_s = 0.0


def leave_alone(api: Any) -> None:
    Idle.since_s = time.process_time()


def computed_since_s(api: Any) -> list[float]:
    """Of each rank, seconds since it was left alone."""
    computed = time.process_time() - Idle.since_s
    found: list[float] = api.allgather(computed)
    return found


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_OPENMPI), reason=NO_OPENMPI)
def test_ranks_that_are_not_asked_leave_the_cpus_to_others() -> None:
    peer = Peer(peer_child.OPENMPI, sys.executable, 2)
    try:
        peer.ask(f"{HERE}:computed_since_s")  # all have imported this module
        peer.ask(f"{HERE}:leave_alone")
        time.sleep(1.0)  # the time that is measured
        computed_s = peer.ask(f"{HERE}:computed_since_s")
    finally:
        peer.end()
    assert len(computed_s) == 2
    assert max(computed_s) < 0.3


class Communicator:
    """Of a rank that is not the first: the requests come after it has looked some times, and then end."""

    def __init__(self, *requests: str) -> None:
        self.requests, self.looks = [*requests, ""], 0

    def Get_rank(self) -> int:
        return 1

    def Ibarrier(self) -> Communicator:
        self.looks = 0
        return self

    def Test(self) -> bool:
        self.looks += 1
        return self.looks > 3

    def bcast(self, line: None) -> str:
        assert self.looks > 3, "waits inside OpenMPI, which polls"
        return self.requests.pop(0)


def test_a_rank_sleeps_between_two_looks_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(peer_child.time, "sleep", naps.append)
    monkeypatch.setattr(peer_child, "answer", lambda api, request: naps.clear())
    peer_child.serve_together(Communicator("{}"), io.StringIO(), io.StringIO())
    assert naps == [peer_child.NAP_S] * 3


@pytest.mark.parametrize("given", ["ray", "ray=", "spark=python"])
def test_an_interpreter_of_nobody_is_refused(given: str) -> None:
    with pytest.raises(SystemExit):
        command.main(["run", "fig12a", "--python", given])


def test_doubling_wants_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        workload.doubling([None] * 3)
