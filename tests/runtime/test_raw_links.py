"""Raw links between two nodes of one process: sockets, memory and files, and what goes wrong with them."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import eventually
from zray.protocol.cluster import ChunkArrived, ChunkSent, OfferRawLink, SendChunk
from zray.protocol.messages import EXTENT, FILE
from zray.runtime import raw_links as module
from zray.runtime.raw_links import MAGIC, STRANGERS_MAX, RawLinks
from zray.runtime.rooms import Rooms
from zray.store.arena import Arena, ArenaView
from zray.store.spill import SpillDirectory

MIB = 1 << 20
CAPACITY = 64 * MIB
OBJECT = b"o" * 16
SIZE = 24 * MIB
WAIT_S = 10.0


class End:
    """What a node has of its raw links."""

    def __init__(self, name: bytes, endpoint: str, folder: Path) -> None:
        self.node_id = name * 16
        self.arena = Arena(CAPACITY)
        self.view = ArenaView(self.arena.path, CAPACITY, huge_pages=False)
        spilled = folder / name.decode()
        spilled.mkdir()
        self.files = SpillDirectory(str(spilled))
        self.rooms = Rooms(self.view, self.files)
        self.told: list[Any] = []
        self.raw_links = RawLinks(endpoint, self.view, self.files, self.rooms, self.told.extend)

    def fill(self, offset: int, size: int) -> bytes:
        data = random.Random(offset).randbytes(size)
        self.view.copy_in(offset, data)
        return data

    def bytes(self, offset: int, size: int) -> bytes:
        return bytes(self.view.write(offset, size))

    def send(self, peer: End, start: int, size: int, *, kind: int = EXTENT, offset: int = 0) -> None:
        self.raw_links.send(SendChunk(peer.node_id, OBJECT, kind, offset, start, size))

    def came(self) -> list[int]:
        return [each.start for each in list(self.told) if isinstance(each, ChunkArrived)]

    def sent(self) -> list[int]:
        return [each.start for each in list(self.told) if isinstance(each, ChunkSent)]

    def close(self) -> None:
        self.raw_links.close()
        self.view.close()
        self.arena.close()


Pair = tuple[End, End]


@pytest.fixture(params=["tcp", "ipc"])
def apart(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two ends without a raw link."""
    ends = []
    for name in (b"a", b"b"):
        endpoint = "tcp://127.0.0.1:1" if request.param == "tcp" else f"ipc://{tmp_path}/s{name.decode()}"
        ends.append(End(name, endpoint, tmp_path))
    yield ends[0], ends[1]
    for end in ends:
        end.close()
    assert not list(tmp_path.glob("*-bulk"))


def link(ends: Pair) -> None:
    offer = ends[1].raw_links.offer(ends[0].node_id)
    ends[0].raw_links.dial(OfferRawLink(ends[1].node_id, offer.endpoint, offer.ticket, offer.receipt))
    for one, other in (ends, ends[::-1]):
        eventually(lambda one=one, other=other: one.raw_links.reaches(other.node_id), WAIT_S)


@pytest.fixture
def ends(apart: Pair) -> Pair:
    """Two ends with a raw link between them."""
    link(apart)
    return apart


def stranger(end: End) -> socket.socket:
    """Somebody who connects to where an end listens."""
    endpoint = end.raw_links.offer(b"s" * 16).endpoint
    if endpoint.startswith("ipc://"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(endpoint.removeprefix("ipc://"))
    else:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        made = socket.create_connection((host, int(port)))
    made.settimeout(WAIT_S)
    return made


def is_hung_up_on(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("kind", [EXTENT, FILE])
def test_bytes_arrive_where_they_belong(ends: Pair, kind: int, in_file: bool) -> None:
    a, b = ends
    data = a.fill(MIB, SIZE)
    if kind == FILE:
        a.files.write(OBJECT, data)
    b.rooms.open(OBJECT, 5 * MIB + 3, SIZE, in_file=in_file)
    starts = list(range(0, SIZE, 5 * MIB))
    for start in starts:
        a.send(b, start, min(5 * MIB, SIZE - start), kind=kind, offset=MIB if kind == EXTENT else 0)
    eventually(lambda: len(b.came()) == len(starts), WAIT_S)
    assert b.came() == starts
    eventually(lambda: a.sent() == starts, WAIT_S)
    b.rooms.close(OBJECT)
    found = b.files.open_view(OBJECT, SIZE) if in_file else b.view.write(5 * MIB + 3, SIZE)
    assert bytes(found) == data


def test_both_directions_at_once(ends: Pair) -> None:
    for end in ends:
        end.fill(0, SIZE)
        end.rooms.open(OBJECT, SIZE, SIZE, in_file=False)
    for end, other in (ends, ends[::-1]):
        for start in range(0, SIZE, MIB):
            end.send(other, start, MIB)
    for end, other in (ends, ends[::-1]):
        eventually(lambda end=end: len(end.came()) == SIZE // MIB, WAIT_S)
        assert end.bytes(SIZE, SIZE) == other.bytes(0, SIZE)


def test_what_nobody_waits_for_goes_nowhere(ends: Pair) -> None:
    a, b = ends
    a.fill(0, SIZE)
    a.send(b, 0, SIZE)
    eventually(a.sent, WAIT_S)
    b.rooms.open(OBJECT, 0, MIB, in_file=False)
    a.send(b, 0, MIB)  # behind the other
    eventually(b.came, WAIT_S)
    assert b.told == [ChunkArrived(OBJECT, 0, MIB)]
    assert not any(b.bytes(MIB, SIZE))


def test_a_copy_that_is_called_off_while_it_comes_writes_nothing_any_more(ends: Pair) -> None:
    """Its memory is another object's at once."""
    a, b = ends
    a.view.copy_in(0, b"\1" * SIZE)
    for _ in range(20):
        b.told.clear()
        b.view.copy_in(0, bytes(SIZE))
        b.rooms.open(OBJECT, 0, SIZE, in_file=False)
        a.send(b, 0, SIZE)
        while not b.bytes(0, 1)[0]:
            pass
        b.rooms.close(OBJECT)
        b.view.copy_in(0, b"\2" * SIZE)
        b.rooms.open(b"next" * 4, SIZE, MIB, in_file=False)
        a.raw_links.send(SendChunk(b.node_id, b"next" * 4, EXTENT, 0, 0, MIB))
        eventually(b.came, WAIT_S)  # so all that was on its way is through
        b.rooms.close(b"next" * 4)
        assert b.bytes(0, SIZE) == b"\2" * SIZE


def test_a_file_that_is_called_off_leaves_nothing(ends: Pair) -> None:
    a, b = ends
    a.fill(0, SIZE)
    b.rooms.open(OBJECT, 0, SIZE, in_file=True)
    a.send(b, 0, SIZE - MIB)
    eventually(b.came, WAIT_S)
    b.rooms.close(OBJECT)
    assert not os.listdir(b.files.path)


def test_a_chunk_that_comes_twice_completes_no_file(ends: Pair) -> None:
    a, b = ends
    data = a.fill(0, 2 * MIB)
    b.rooms.open(OBJECT, 0, 2 * MIB, in_file=True)
    for start in (0, 0, MIB):
        a.send(b, start, MIB)
    eventually(lambda: b.came() == [0, 0, MIB], WAIT_S)
    assert bytes(b.files.open_view(OBJECT, 2 * MIB)) == data


def test_a_file_that_was_deleted_is_reported_as_done_with(ends: Pair) -> None:
    a, b = ends
    a.send(b, 0, MIB, kind=FILE)
    assert a.sent() == [0]


@pytest.mark.parametrize("where", ["head", "bytes"])
def test_an_end_that_dies_in_the_middle_of_a_chunk(apart: Pair, where: str) -> None:
    """Nothing of it is reported; a new raw link takes the place of the old one."""
    a, b = apart
    offer = b.raw_links.offer(a.node_id)
    with stranger(b) as peer:
        peer.sendall(MAGIC + offer.ticket)
        assert peer.recv(100) == MAGIC + offer.receipt
        b.rooms.open(OBJECT, 0, SIZE, in_file=False)
        head = module._HEAD.pack(OBJECT, 0, SIZE)
        peer.sendall(head[:9] if where == "head" else head + b"x" * MIB)
        eventually(lambda: where == "head" or b.bytes(MIB - 1, 1) == b"x", WAIT_S)
    eventually(lambda: not b.raw_links.reaches(a.node_id), WAIT_S)
    assert not b.told
    link(apart)
    data = a.fill(0, SIZE)
    a.send(b, 0, SIZE)
    eventually(b.came, WAIT_S)
    assert b.bytes(0, SIZE) == data


def test_an_end_that_stops_reading_is_hung_up_on(apart: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be sent is let go of."""
    monkeypatch.setattr(module, "STALL_PATIENCE_S", 0.2)
    monkeypatch.setattr(module, "GREETING_PATIENCE_S", 0.4)
    a, b = apart
    offer = b.raw_links.offer(a.node_id)
    with stranger(b) as peer:
        peer.sendall(MAGIC + offer.ticket)
        eventually(lambda: b.raw_links.reaches(a.node_id), WAIT_S)
        for start in range(0, SIZE, 4 * MIB):
            b.send(a, start, 4 * MIB)
        eventually(lambda: len(b.sent()) == SIZE // (4 * MIB), WAIT_S)
        assert not b.raw_links.reaches(a.node_id)


def test_garbage_on_a_raw_link_ends_it(apart: Pair) -> None:
    a, b = apart
    offer = b.raw_links.offer(a.node_id)
    b.rooms.open(OBJECT, 0, SIZE, in_file=False)
    with stranger(b) as peer:
        peer.sendall(MAGIC + offer.ticket)
        assert peer.recv(100) == MAGIC + offer.receipt
        peer.sendall(module._HEAD.pack(OBJECT, SIZE - 1, 2))
        assert is_hung_up_on(peer)
    assert not b.told


def test_strangers_are_hung_up_on(apart: Pair) -> None:
    b = apart[1]
    dice = random.Random(1)
    for said in (
        b"\xff\0\0\0",
        dice.randbytes(1),
        dice.randbytes(5000),
        MAGIC + dice.randbytes(16),
        MAGIC[:-1] + b"x",
    ):
        with stranger(b) as guest:
            guest.sendall(said)
            assert is_hung_up_on(guest)
    assert not b.raw_links._links
    link(apart)


def test_a_ticket_is_of_use_once_and_only_the_newest_one_of_a_node(apart: Pair) -> None:
    a, b = apart
    former = b.raw_links.offer(a.node_id)
    newest = b.raw_links.offer(a.node_id)
    with stranger(b) as first, stranger(b) as second, stranger(b) as third:
        first.sendall(MAGIC + former.ticket)
        assert is_hung_up_on(first)
        second.sendall(MAGIC + newest.ticket)
        assert second.recv(100) == MAGIC + newest.receipt
        third.sendall(MAGIC + newest.ticket)
        assert is_hung_up_on(third)


def test_a_ticket_is_of_use_for_a_while_and_dies_with_its_node(
    apart: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = apart
    dead = b.raw_links.offer(a.node_id)
    b.raw_links.drop(a.node_id)
    monkeypatch.setattr(module, "GREETING_PATIENCE_S", 0.0)
    late = b.raw_links.offer(a.node_id)
    monkeypatch.undo()
    for offer in (dead, late):
        with stranger(b) as guest:
            guest.sendall(MAGIC + offer.ticket)
            assert is_hung_up_on(guest)


def test_who_says_nothing_is_hung_up_on(apart: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREETING_PATIENCE_S", 0.1)
    with stranger(apart[1]) as silent, stranger(apart[1]) as halfway:
        halfway.sendall(MAGIC)
        assert is_hung_up_on(silent)
        assert is_hung_up_on(halfway)


def test_too_many_that_say_nothing_make_room_and_keep_nobody_out(apart: Pair) -> None:
    guests = [stranger(apart[1]) for _ in range(STRANGERS_MAX + 20)]
    link(apart)
    assert len(apart[1].raw_links._strangers) <= STRANGERS_MAX
    for guest in guests[:20]:
        assert is_hung_up_on(guest)
    for guest in guests:
        guest.close()


def test_who_listens_without_the_receipt_is_no_peer(apart: Pair) -> None:
    """Somebody took the place of the other end."""
    a, b = apart
    with socket.create_server(("127.0.0.1", 0)) as false:
        port = false.getsockname()[1]
        a.raw_links.dial(OfferRawLink(b.node_id, f"tcp://127.0.0.1:{port}", b"t" * 16, b"r" * 16))
        connection, _ = false.accept()
        with connection:
            assert connection.recv(100) == MAGIC + b"t" * 16
            connection.sendall(MAGIC + b"x" * 16)
            assert is_hung_up_on(connection)
    assert not a.raw_links.reaches(b.node_id)


def test_nobody_there_and_no_such_place(apart: Pair) -> None:
    a, b = apart
    with socket.create_server(("127.0.0.1", 0)) as false:
        port = false.getsockname()[1]
    for endpoint in (f"tcp://127.0.0.1:{port}", "ipc:///nowhere/at/all"):
        a.raw_links.dial(OfferRawLink(b.node_id, endpoint, b"t" * 16, b"r" * 16))
    eventually(lambda: not a.raw_links._orders and not a.raw_links._strangers, WAIT_S)
    link(apart)


def test_a_node_that_is_dead_is_hung_up_on(ends: Pair) -> None:
    a, b = ends
    a.raw_links.drop(b.node_id)
    for end, other in (ends, ends[::-1]):
        eventually(lambda end=end, other=other: not end.raw_links.reaches(other.node_id), WAIT_S)
    a.send(b, 0, MIB)
    eventually(lambda: a.sent() == [0], WAIT_S)


def test_the_thread_ends_and_tells_what_was_not_sent(ends: Pair) -> None:
    a, b = ends
    for start in range(0, SIZE, MIB):
        a.send(b, start, MIB)
    a.raw_links.close()
    assert sorted(a.sent()) == list(range(0, SIZE, MIB))
    assert [each.name for each in threading.enumerate()].count("zray-links") == 1
