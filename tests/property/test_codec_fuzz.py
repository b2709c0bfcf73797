"""Whatever bytes arrive, a decoder returns messages of its link or raises ``RemoteProtocolError``."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol import shapes
from zray.errors import RemoteProtocolError
from zray.protocol import codec

LINKS = sorted(shapes.LINKS)


def decode_or_refuse(link: str, frame: bytes) -> list[Any] | None:
    """The messages of ``frame``, all of the link's union, or ``None`` where it was refused properly."""
    decode, union = shapes.LINKS[link]
    try:
        batch = decode(frame)
    except RemoteProtocolError:
        return None
    accepted = typing.get_args(union)
    assert all(type(message) in accepted for message in batch)
    return batch


@st.composite
def mutated_frames(draw: st.DrawFn, link: str) -> bytes:
    """A valid frame after a few edits: bytes overwritten, cut out, doubled or inserted."""
    frame = bytearray(codec.encode_batch(draw(shapes.batches(link))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(frame)))
        stop = draw(st.integers(start, min(len(frame), start + 8)))
        frame[start:stop] = draw(st.one_of(st.binary(max_size=8), st.just(bytes(frame[start:stop]) * 2)))
    return bytes(frame)


@pytest.mark.parametrize("link", LINKS)
@given(frame=st.binary(max_size=200))
@example(frame=b"")
@example(frame=b"\xc0")
@example(frame=b"\x91\xc0")
@example(frame=b"\xdd\xff\xff\xff\xff")  # an array of four billion elements that never come
@example(frame=b"\x91\x92\x06\xdd\xff\xff\xff\xff")  # the same inside a message
@example(frame=b"\x91\xc6\xff\xff\xff\xff")  # four gigabytes of bytes that never come
@example(frame=b"\x91" * 100_000)  # nested without end
@example(frame=b"\x91\x92\x06" + b"\x91" * 100_000)
@example(frame=b"\x91\x92\x38\xa2\xff\xfe")  # a string that is not UTF-8
@example(frame=b"\x91\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # a tag nobody has
@example(frame=b"\x90\x90")  # a second value after the batch
def test_random_bytes(link: str, frame: bytes) -> None:
    decode_or_refuse(link, frame)


@pytest.mark.parametrize("link", LINKS)
@given(data=st.data())
def test_mutated_frames(link: str, data: st.DataObject) -> None:
    decode_or_refuse(link, data.draw(mutated_frames(link)))


@pytest.mark.parametrize("link", LINKS)
@given(data=st.data())
def test_truncated_frames_are_refused(link: str, data: st.DataObject) -> None:
    frame = codec.encode_batch(data.draw(shapes.batches(link)))
    cut = data.draw(st.integers(0, len(frame) - 1))
    assert decode_or_refuse(link, frame[:cut]) is None


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("length", [0, 1, 3])
def test_valid_frames_are_not_refused(link: str, length: int) -> None:
    """The tests above would pass if everything were refused."""
    accepted = typing.get_args(shapes.LINKS[link][1])
    batch = [shapes.example(struct) for struct in accepted[:length]]
    assert decode_or_refuse(link, codec.encode_batch(batch)) == batch
