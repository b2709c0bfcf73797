"""Systems in processes of their own: asked, missing, wrong, dead, silent."""

from __future__ import annotations

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


@pytest.mark.parametrize("given", ["ray", "ray=", "spark=python"])
def test_an_interpreter_of_nobody_is_refused(given: str) -> None:
    with pytest.raises(SystemExit):
        command.main(["run", "fig12a", "--python", given])


def test_doubling_wants_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        workload.doubling([None] * 3)
