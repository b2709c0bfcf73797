"""What a bare node asks other nodes, and how long it waits for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.test_local_scheduler import DRIVER_ADDRESS
from tests.core.test_node import NodeBench
from zray.core import everywhere, logs
from zray.core.machine import RUNTIME, pump
from zray.protocol.cluster import AskPeer, LogRead, PeerAnswer, ReadLog
from zray.protocol.messages import Answer, Query
from zray.protocol.user_messages import Tell, Told

PEERS = (b"p" * 16, b"q" * 16)


@pytest.fixture
def bench() -> Iterator[NodeBench]:
    made = NodeBench()
    made.node.cluster.peers.alive = dict.fromkeys(PEERS, "tcp://x")
    yield made
    made.node.check()


def ask(bench: NodeBench, what: str) -> dict[bytes, int]:
    bench.say(DRIVER_ADDRESS, Query(5, f"everywhere/{what}"))
    asked = bench.take(AskPeer)
    assert all(message.what == what for _, message in asked)
    return {to: message.number for to, message in asked}


def answer(bench: NodeBench) -> Any:
    ((to, message),) = bench.take(Answer)
    assert (to, message.token) == (DRIVER_ADDRESS, 5)
    return json.loads(message.body)


def test_every_node_is_asked_and_answers_once(bench: NodeBench) -> None:
    numbers = ask(bench, "workers")
    assert tuple(numbers) == PEERS
    number = numbers[PEERS[0]]
    bench.say(PEERS[0], PeerAnswer(number, b"[1]"), PeerAnswer(number, b"[2]"), PeerAnswer(99, b"[3]"))
    bench.say(b"stranger", PeerAnswer(number, b"[4]"))
    assert bench.take(Answer) == []
    bench.say(PEERS[1], PeerAnswer(number, b"\xff"))
    found = answer(bench)
    own = bench.node.identity.node_id.hex()
    assert [row["node_id"] for row in found["nodes"]] == [own, PEERS[0].hex(), PEERS[1].hex()]
    assert [row["body"] for row in found["nodes"]][1:] == ["[1]", "\ufffd"]
    assert found["silent"] == []


def test_the_silent_are_named_after_a_while(bench: NodeBench) -> None:
    number = ask(bench, "node")[PEERS[0]]
    bench.say(PEERS[0], PeerAnswer(number, b"{}"))
    due = bench.node.everywhere.wake_at_ns
    assert due is not None
    bench.node.on_tick(due)
    (body,) = [message.body for _, message in bench.node.out if isinstance(message, Answer)]
    bench.node.out.clear()
    assert json.loads(body)["silent"] == [PEERS[1].hex()]
    bench.say(PEERS[1], PeerAnswer(number, b"{}"))
    assert bench.take(Answer) == []


def test_what_processes_say_is_waited_for(bench: NodeBench) -> None:
    number = ask(bench, "spans")[PEERS[0]]
    ((_, tell),) = bench.take(Tell)
    bench.say(DRIVER_ADDRESS, Told(tell.token, b"{}"))
    for peer in PEERS:
        bench.say(peer, PeerAnswer(number, b"{}"))
    assert len(answer(bench)["nodes"]) == 3


def test_a_node_answers_its_peers_and_no_stranger(bench: NodeBench) -> None:
    bench.say(b"stranger", AskPeer(7, "node"))
    assert bench.take(PeerAnswer) == []
    bench.say(PEERS[0], AskPeer(7, "node"), AskPeer(8, "nonsense"))
    (one, two) = bench.take(PeerAnswer)
    assert (one[0], one[1].number, json.loads(one[1].body)["alive"]) == (PEERS[0], 7, True)
    assert "no report" in json.loads(two[1].body)["error"]
    bench.say(PEERS[0], AskPeer(9, "stacks"))
    ((_, tell),) = bench.take(Tell)
    bench.say(DRIVER_ADDRESS, Told(tell.token, b"{}"))
    ((to, message),) = bench.take(PeerAnswer)
    assert (to, message.number) == (PEERS[0], 9)


def test_questions_are_bounded_and_end_with_who_asked(
    bench: NodeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everywhere, "QUESTIONS_MAX", 1)
    ask(bench, "node")
    bench.say(DRIVER_ADDRESS, Query(5, "everywhere/node"))
    assert "1 questions are open already" in answer(bench)["error"]
    bench.node.everywhere.client_gone(DRIVER_ADDRESS)
    assert bench.node.everywhere.wake_at_ns is None
    pump(bench.node, [], 1)


class TestOneNode:
    def test_only_it_is_asked(self, bench: NodeBench) -> None:
        bench.say(DRIVER_ADDRESS, Query(5, f"at/{PEERS[1].hex()}/workers"))
        ((to, asked),) = bench.take(AskPeer)
        assert (to, asked.what) == (PEERS[1], "workers")
        bench.say(PEERS[0], PeerAnswer(asked.number, b"{}"))
        assert bench.take(Answer) == []
        bench.say(PEERS[1], PeerAnswer(asked.number, b"[]"))
        assert [row["body"] for row in answer(bench)["nodes"]] == ["[]"]

    def test_a_node_of_itself_and_an_unknown_one(self, bench: NodeBench) -> None:
        own = bench.node.identity.node_id.hex()
        bench.say(DRIVER_ADDRESS, Query(5, f"at/{own}/node"))
        assert bench.take(AskPeer) == []
        assert [row["node_id"] for row in answer(bench)["nodes"]] == [own]
        for nobody in ("at/beef/node", "at/", "at//node"):
            bench.say(DRIVER_ADDRESS, Query(5, nobody))
            assert "no living node" in answer(bench)["error"]


class TestLogs:
    def ask(self, bench: NodeBench, what: str) -> list[ReadLog]:
        bench.say(DRIVER_ADDRESS, Query(5, what))
        return [message for _, message in bench.take(ReadLog)]

    def test_the_process_reads_and_the_answer_is_handed_on(self, bench: NodeBench) -> None:
        (listing,) = self.ask(bench, "logs")
        (piece,) = self.ask(bench, "logs/-5/100/node.log")
        assert (listing.name, piece.name, piece.start, piece.size) == ("", "node.log", -5, 100)
        bench.say(DRIVER_ADDRESS, LogRead(piece.token, b"[0]"))  # only the node's own process says so
        assert bench.take(Answer) == []
        bench.say(RUNTIME, LogRead(piece.token, b"[1]"), LogRead(piece.token, b"[2]"))
        assert answer(bench) == [1]
        bench.say(PEERS[0], AskPeer(7, "logs"))
        ((_, asked),) = bench.take(ReadLog)
        bench.say(RUNTIME, LogRead(asked.token, b"[3]"))
        assert bench.take(PeerAnswer) == [(PEERS[0], PeerAnswer(7, b"[3]"))]

    @pytest.mark.parametrize(
        "rest",
        [
            "0/1/../a", "0/1/a/b", "0/1/..", "0/1/", "0/1/.", "0/1/a\0b", "0/1", "x/1/a", "0/x/a", "0/-1/a",
            "--1/1/a",
            f"0/{logs.PIECE_BYTES_MAX + 1}/a", f"{10**20}/1/a", "0/1/" + 256 * "a", "\u0661/1/a",
        ],
    )  # fmt: skip
    def test_nonsense_never_reaches_the_disk(self, bench: NodeBench, rest: str) -> None:
        assert self.ask(bench, f"logs/{rest}") == []
        assert "log file" in answer(bench)["error"]

    def test_reads_are_bounded_until_they_end(
        self, bench: NodeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "READS_MAX", 1)
        (first,) = self.ask(bench, "logs")
        assert self.ask(bench, "logs") == []
        assert "already" in answer(bench)["error"]
        bench.node.logs.client_gone(DRIVER_ADDRESS)
        assert self.ask(bench, "logs") == []  # its thread reads all the same
        assert "already" in answer(bench)["error"]
        bench.say(RUNTIME, LogRead(first.token, b"[]"))
        assert bench.take(Answer) == []
        assert len(self.ask(bench, "logs")) == 1
