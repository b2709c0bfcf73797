"""The service that moves chunks: over ZeroMQ as long as there is no raw link, and again when one is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.runtime.test_raw_links import CAPACITY, MIB, OBJECT, WAIT_S
from tests.support import eventually
from zray.config import Config
from zray.errors import OutOfDiskError
from zray.protocol.cluster import (
    AskRawLink,
    Chunk,
    ChunkArrived,
    ChunkSent,
    OfferRawLink,
    ReceiveInto,
    SendChunk,
)
from zray.protocol.codec import encode_batch
from zray.protocol.messages import EXTENT, FILE
from zray.runtime import data_link as module
from zray.runtime.chunk_transport import ChunkTransport, decode_chunks
from zray.runtime.data_link import DATA_SUFFIX, DataLink
from zray.runtime.endpoints import beside
from zray.runtime.raw_links import RawLinks
from zray.runtime.rooms import Rooms
from zray.store.arena import Arena, ArenaView
from zray.store.spill import SpillDirectory

A, B = b"a" * 16, b"b" * 16
HELLO = b"h" * 16


class Side:
    """The data link of one node, without its machine."""

    def __init__(self, node_id: bytes, folder: Path, *, in_clear: bool) -> None:
        self.node_id = node_id
        self.endpoint = f"ipc://{folder}/{node_id[:1].decode()}"
        self.arena = Arena(CAPACITY)
        self.view = ArenaView(self.arena.path, CAPACITY, huge_pages=False)
        spilled = folder / f"files-{node_id[:1].decode()}"
        spilled.mkdir()
        self.files = SpillDirectory(str(spilled))
        self.rooms = Rooms(self.view, self.files)
        self.told: list[Any] = []
        transport = ChunkTransport(node_id + DATA_SUFFIX, decode_chunks, Config())
        transport.bind(beside(self.endpoint))
        raw_links = None
        if in_clear:
            raw_links = RawLinks(self.endpoint, self.view, self.files, self.rooms, self.told.extend)
        self.link = DataLink(
            node_id, transport, self.view, self.files, self.rooms, raw_links, self.told.append
        )

    def take(self, kind: type) -> list[Any]:
        """What it was told of a kind, drained before."""
        self.link.drain()
        found = [each for each in self.told if isinstance(each, kind)]
        self.told[:] = [each for each in self.told if not isinstance(each, kind)]
        return found

    def close(self) -> None:
        self.link.close()
        self.link.transport.close()
        self.view.close()
        self.arena.close()


@pytest.fixture(autouse=True)
def _asks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)


@pytest.fixture
def sides(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Side]]:
    """Two nodes that know each other; ``param`` says which of them do without encryption."""
    in_clear = getattr(request, "param", (True, True))
    made = [Side(node_id, tmp_path, in_clear=clear) for node_id, clear in zip((A, B), in_clear, strict=True)]
    for one, other in (made, made[::-1]):
        one.link.link(other.node_id, other.endpoint)
    a, b = made
    b.rooms.open(HELLO, CAPACITY - 1, 1, in_file=False)
    a.link.serve([SendChunk(B, HELLO, EXTENT, 0, 0, 1)])
    eventually(lambda: b.take(ChunkArrived), WAIT_S)  # one of two connects, and now the other can send, too
    a.take(ChunkSent)
    yield made
    for side in made:
        side.close()


def carry(sides: list[Side], start: int, kind: int = EXTENT) -> None:
    """A chunk goes from the second to the first."""
    a, b = sides
    b.link.serve([SendChunk(A, OBJECT, kind, 0, start, MIB)])
    assert eventually(lambda: a.take(ChunkArrived), WAIT_S) == [ChunkArrived(OBJECT, start, MIB)]
    assert eventually(lambda: b.take(ChunkSent), WAIT_S) == [ChunkSent(A, OBJECT, start)]


def arrange(sides: list[Side]) -> None:
    """What the machines do: the ask and the offer cross the control link."""
    a, b = sides
    assert a.take(AskRawLink)[0] == AskRawLink(B)
    b.link.serve([AskRawLink(A)])
    [offer] = b.take(OfferRawLink)
    a.link.serve([OfferRawLink(B, offer.endpoint, offer.ticket, offer.receipt)])


def test_chunks_go_over_any_way_that_there_is(sides: list[Side]) -> None:
    a, b = sides
    data = os.urandom(4 * MIB)
    b.view.copy_in(0, data)
    b.files.write(OBJECT, data)
    a.link.serve([ReceiveInto(OBJECT, EXTENT, 0, 4 * MIB)])
    carry(sides, 0)  # over ZeroMQ: nobody has asked for more yet
    carry(sides, MIB, FILE)
    arrange(sides)
    for one, other in ((a, b), (b, a)):
        eventually(lambda one=one, other=other: one.link.raw_links.reaches(other.node_id), WAIT_S)
    carry(sides, 2 * MIB)
    assert not a.take(AskRawLink)
    b.link.raw_links.drop(A)
    eventually(lambda: not b.link.raw_links.reaches(A) and not a.link.raw_links.reaches(B), WAIT_S)
    carry(sides, 3 * MIB, FILE)
    assert a.take(AskRawLink) == [AskRawLink(B)]
    assert bytes(a.view.write(0, 4 * MIB)) == data


@pytest.mark.parametrize("sides", [(True, False), (False, True), (False, False)], indirect=True)
def test_one_that_encrypts_is_enough(sides: list[Side]) -> None:
    a, _ = sides
    if a.link.raw_links is not None:
        arrange(sides)
    a.link.serve([ReceiveInto(OBJECT, EXTENT, 0, 2 * MIB)])
    for start in (0, MIB):
        carry(sides, start)
    assert not a.take(AskRawLink)


def test_a_full_disk_lets_copies_wait(sides: list[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine says where they belong again and again."""
    a, b = sides
    full = OutOfDiskError(MIB, "no space left")
    into = ReceiveInto(OBJECT, FILE, 0, MIB)
    with monkeypatch.context() as patch:
        patch.setattr(SpillDirectory, "create", _raising(full))
        a.link.serve([into])
    b.link.serve([SendChunk(A, OBJECT, EXTENT, 0, 0, MIB)])
    eventually(lambda: b.take(ChunkSent), WAIT_S)
    a.link.serve([into])
    carry(sides, 0)
    assert len(a.files.open_view(OBJECT, MIB)) == MIB


def _raising(error: Exception) -> Any:
    def raise_it(*_: Any) -> None:
        raise error

    return raise_it


def test_a_file_that_was_deleted_ends_its_chunk(sides: list[Side]) -> None:
    b = sides[1]
    b.link.serve([SendChunk(A, OBJECT, FILE, 0, 0, MIB)])
    assert b.take(ChunkSent) == [ChunkSent(A, OBJECT, 0)]


def test_what_is_no_chunk_is_refused_and_changes_nothing(sides: list[Side]) -> None:
    a, b = sides
    a.link.serve([ReceiveInto(OBJECT, EXTENT, 0, MIB)])
    head = encode_batch([Chunk(OBJECT, 0)])
    frames = [[b""], [b"\xc1", b"x"], [head], [head, b"x", b"x"], [encode_batch([]), b"x"], [b"\x90", b""]]
    frames += [[encode_batch([Chunk(OBJECT, start)]), b"xx"] for start in (-1, MIB - 1, 2**60)]
    with b.link.transport.context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(beside(a.endpoint))
        for each in frames:
            stranger.send_multipart(each)
        eventually(lambda: not a.link.drain() and a.link.transport.refused == 6, WAIT_S)
    assert not a.take(ChunkArrived)
    assert not any(a.view.write(0, 2 * MIB))
