"""Links over Unix stream sockets: real ones, whose other ends also come late, die and talk nonsense."""

from __future__ import annotations

import os
import random
import resource
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import eventually
from zray.config import Config
from zray.protocol.codec import decode_for_process, encode_batch
from zray.protocol.messages import Acked, ExportFunction, Refused
from zray.runtime import stream_links
from zray.runtime.stream_links import StreamLinks

LENGTH = struct.Struct("=I")
HELLO = b"zray-link "


def links(name: bytes, config: Config | None = None) -> StreamLinks:
    return StreamLinks(name, decode_for_process, config or Config())


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/actor"


@pytest.fixture
def actor(endpoint: str) -> Iterator[StreamLinks]:
    made = links(b"worker")
    made.bind(endpoint)
    yield made
    made.close()


@pytest.fixture
def caller() -> Iterator[StreamLinks]:
    made = links(b"caller")
    yield made
    made.close()


def heard(side: StreamLinks, count: int = 1) -> list[tuple[bytes, Any]]:
    came: list[tuple[bytes, Any]] = []
    eventually(lambda: came.extend(side.receive()) or len(came) >= count, 10.0)
    return came


def framed(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


def stranger(endpoint: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10.0)
    made.connect(endpoint.removeprefix("ipc://"))
    return made


def has_ended(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:  # it was closed with bytes that nobody had read
        return True


def large(number: int) -> ExportFunction:
    return ExportFunction(number.to_bytes(16), os.urandom(300_000))


def test_both_sides_speak_and_know_each_other(actor: StreamLinks, caller: StreamLinks, endpoint: str) -> None:
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1), Acked(2)])
    assert heard(actor, 2) == [(b"caller", Acked(1)), (b"caller", Acked(2))]
    assert actor.callers() == [b"caller"]
    assert caller.callers() == []
    actor.send(b"caller", [Acked(3)])
    assert heard(caller) == [(b"worker+", Acked(3))]


def test_two_that_call_each_other_have_two_links(
    actor: StreamLinks, caller: StreamLinks, endpoint: str, tmp_path: Path
) -> None:
    caller.bind(f"ipc://{tmp_path}/other")
    caller.connect(b"worker+", endpoint)
    actor.connect(b"caller+", f"ipc://{tmp_path}/other")
    caller.send(b"worker+", [Acked(1)])
    actor.send(b"caller+", [Acked(2)])
    assert heard(actor) == [(b"caller", Acked(1))]
    assert heard(caller) == [(b"worker", Acked(2))]
    actor.send(b"caller", [Acked(3)])
    assert heard(caller) == [(b"worker+", Acked(3))]


def test_who_does_not_read_blocks_nobody_and_misses_nothing(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    sent = [large(number) for number in range(40)]  # far more than the system keeps
    for message in sent:
        caller.send(b"worker+", [message])
    caller.send(b"worker+", [Acked(1)])
    assert caller.links[b"worker+"].waiting
    came: list[tuple[bytes, Any]] = []
    eventually(lambda: (caller.receive(), came.extend(actor.receive())) and len(came) > len(sent), 10.0)
    assert [message for _, message in came] == [*sent, Acked(1)]
    assert not caller.links[b"worker+"].waiting


def test_what_waits_to_be_sent_wakes_the_sender_once_there_is_room(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    for number in range(10):
        caller.send(b"worker+", [large(number)])
    caller.receive()
    poll = select.poll()
    poll.register(caller.fileno(), select.POLLIN)
    assert poll.poll(0) == []  # the actor has not read
    assert eventually(lambda: (actor.receive(), poll.poll(0))[1], 10.0)


def test_what_came_after_a_wait_is_there_too(actor: StreamLinks, caller: StreamLinks, endpoint: str) -> None:
    read_end, write_end = os.pipe()
    actor.watch(read_end)
    os.write(write_end, b"x")
    assert actor.wait(10_000) == [read_end]
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    assert actor.receive() == [(b"caller", Acked(1))]
    actor.unwatch(read_end)
    assert actor.wait(0) == []
    os.close(read_end)
    os.close(write_end)


def test_a_turn_that_has_enough_leaves_the_other_links_for_the_next(
    actor: StreamLinks, endpoint: str
) -> None:
    callers = [links(b"caller%d" % number) for number in range(3)]
    for caller in callers:
        caller.connect(b"worker+", endpoint)
    eventually(lambda: (actor.receive(), len(actor.callers()) == 3)[1], 10.0)
    for caller in callers:
        caller.send(b"worker+", [Acked(1), Acked(2)])
    turns = [actor.receive(messages_max=2) for _ in range(3)]
    assert [len(turn) for turn in turns] == [2, 2, 2]
    assert {source for turn in turns for source, _ in turn} == {caller.identity for caller in callers}
    for caller in callers:
        caller.close()


def test_frames_wait_for_who_is_not_there_yet(caller: StreamLinks, endpoint: str) -> None:
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    assert caller.until_due(None) is not None
    actor = links(b"worker")
    actor.bind(endpoint)
    eventually(lambda: (caller.receive(), caller.until_due(None) is None)[1], 10.0)
    assert heard(actor) == [(b"caller", Acked(1))]
    actor.close()


def test_the_end_of_a_caller_is_seen_and_what_it_said_before_is_heard(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [large(1), Acked(1)])
    came: list[tuple[bytes, Any]] = []
    eventually(lambda: (caller.receive(), came.extend(actor.receive())) and len(came) == 2, 10.0)
    caller.send(b"worker+", [Acked(2)])
    caller.disconnect(b"worker+")
    assert heard(actor) == [(b"caller", Acked(2))]
    eventually(lambda: (actor.receive(), not actor.callers())[1], 10.0)
    actor.send(b"caller", [Acked(3)])
    assert actor.unreachable == {b"caller": 1}


def test_a_caller_that_comes_again_is_the_caller(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    heard(actor)
    again = links(b"caller")
    again.connect(b"worker+", endpoint)
    again.send(b"worker+", [Acked(2)])
    assert heard(actor) == [(b"caller", Acked(2))]
    actor.send(b"caller", [Acked(3)])
    assert heard(again) == [(b"worker+", Acked(3))]
    again.close()


def test_a_broken_link_is_made_again_and_what_was_not_sent_arrives(
    caller: StreamLinks, endpoint: str
) -> None:
    first = links(b"worker")
    first.bind(endpoint)
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    heard(first)
    for number in range(20):
        caller.send(b"worker+", [large(number)])
    whole = len(caller.links[b"worker+"].waiting) - 1  # the first of them is cut
    first.close(linger_s=0.0)
    second = links(b"worker")
    second.bind(endpoint)
    came: list[tuple[bytes, Any]] = []
    eventually(lambda: (caller.receive(), came.extend(second.receive())) and len(came) == whole, 10.0)
    assert [message.function_id for _, message in came] == [
        number.to_bytes(16) for number in range(20 - whole, 20)
    ]
    assert caller.unreachable == {b"worker+": 1}
    second.close()


def test_the_last_words_of_who_closes_leave_before_the_end(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    for number in range(20):
        caller.send(b"worker+", [large(number)])
    came: list[tuple[bytes, Any]] = []
    reads = threading.Thread(
        target=lambda: eventually(lambda: came.extend(actor.receive()) or len(came) == 20, 10.0)
    )
    reads.start()
    caller.close(linger_s=10.0)
    reads.join()
    assert len(came) == 20


def test_a_frame_that_is_no_batch_is_refused_and_the_link_goes_on(actor: StreamLinks, endpoint: str) -> None:
    with stranger(endpoint) as peer:
        peer.sendall(framed(HELLO + b"peer") + framed(b"\xff\xff") + framed(encode_batch([Acked(1)])))
        assert heard(actor) == [(b"peer", Acked(1))]
        (size,) = LENGTH.unpack(peer.recv(LENGTH.size, socket.MSG_WAITALL))
        [refused] = decode_for_process(peer.recv(size, socket.MSG_WAITALL))
        assert isinstance(refused, Refused)
        assert actor.refused == 1


@pytest.mark.parametrize(
    "said",
    [
        framed(b"hello"),
        framed(b""),
        framed(HELLO),
        framed(HELLO + bytes(256)),
        framed(encode_batch([Acked(1)])),
        b"\xff" * 4,
        framed(HELLO + b"peer") + b"\xff" * 4,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_is_hung_up_on_and_others_are_served(
    actor: StreamLinks, caller: StreamLinks, endpoint: str, said: bytes
) -> None:
    with stranger(endpoint) as peer:
        peer.sendall(said)
        eventually(lambda: (actor.receive(), actor.refused == 1)[1], 10.0)
        assert has_ended(peer)
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    assert heard(actor) == [(b"caller", Acked(1))]
    assert actor.callers() == [b"caller"]


def test_random_bytes_harm_nobody(actor: StreamLinks, caller: StreamLinks, endpoint: str) -> None:
    dice = random.Random(1)
    for _ in range(50):
        with stranger(endpoint) as peer:
            peer.sendall(dice.choice((b"", framed(HELLO + b"peer"))) + dice.randbytes(dice.randint(1, 3_000)))
        actor.receive()
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    eventually(lambda: (b"caller", Acked(1)) in actor.receive(), 10.0)
    eventually(lambda: (actor.receive(), actor.callers() == [b"caller"])[1], 10.0)


def test_who_says_nothing_takes_no_place_for_ever(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    silent = [stranger(endpoint) for _ in range(stream_links.STRANGERS_MAX + 5)]
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    assert heard(actor) == [(b"caller", Acked(1))]
    assert actor.refused == 5
    assert all(has_ended(peer) for peer in silent[:5])
    for peer in silent:
        peer.close()


def test_who_calls_when_no_descriptor_is_left_is_heard_later(
    actor: StreamLinks, caller: StreamLinks, endpoint: str
) -> None:
    caller.connect(b"worker+", endpoint)
    caller.send(b"worker+", [Acked(1)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        assert actor.receive() == []
        due_ms = actor.until_due(None)
        assert due_ms is not None
        assert due_ms > 0  # it does not ask again and again meanwhile
        assert not select.select([actor.fileno()], [], [], 0)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert heard(actor) == [(b"caller", Acked(1))]


def test_a_delay_holds_frames_back_in_order(actor: StreamLinks, endpoint: str) -> None:
    late = links(b"late", Config(send_delay_ns=30_000_000))
    late.connect(b"worker+", endpoint)
    late.send(b"worker+", [Acked(1)])
    late.send(b"worker+", [Acked(2)])
    actor.receive()
    assert actor.receive() == []
    due_ms = late.until_due(None)
    assert due_ms is not None
    assert due_ms <= 30
    eventually(lambda: (late.receive(), late.until_due(None) is None)[1], 10.0)
    assert heard(actor, 2) == [(b"late", Acked(1)), (b"late", Acked(2))]
    late.close()


@given(
    st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=8),
    st.lists(st.integers(1, 40), max_size=40),
)
def test_however_the_bytes_are_cut_the_messages_are_the_same(
    batches: list[list[int]], cuts: list[int]
) -> None:
    reader = links(b"worker")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader._watch(stream_links.StreamLink(b"", "", None), ours)
    sent = [[Acked(number) for number in batch] for batch in batches]
    stream = framed(HELLO + b"peer") + b"".join(framed(encode_batch(batch)) for batch in sent)
    came = []
    for cut in (*cuts, len(stream)):
        theirs.sendall(stream[:cut])
        came += reader.receive()
        stream = stream[cut:]
    assert came == [(b"peer", message) for batch in sent for message in batch]
    assert reader.links[b"peer"].came == b""
    theirs.close()
    reader.close()
