"""Pickles that are equal wherever they are made: of equal texts inside, one is written.

A pickle says of a text that it had before "the one from there", but only if it *is* the same object. Which
texts are one object is an accident: of the compiler or the ``.pyc`` file that they came from, of what the
process interned, of whether the function was itself unpickled. So one function would have other bytes, and
another id, in each worker that submits it. Here every ``str`` and ``bytes`` is written once and referred to
afterwards, which is what a pickler would have done had it compared by value.
"""

from __future__ import annotations

from struct import pack

_TEXTS = frozenset({
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
})  # fmt: skip
_GETS = frozenset({"BINGET", "LONG_BINGET"})
_OF_OLDER_PROTOCOLS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "GET"})
_BINGET_MAX = 255


def canonical_pickle(data: bytes) -> bytes:
    """The same pickle with every text in it once; ``data`` itself if its protocol is older than 4.

    Loading it gives what ``data`` gives, but for the identity of equal texts.
    Cost: about 1 us per opcode, 0.5 ms for an ordinary function.
    """
    from pickletools import genops  # 1.5 ms, and only who submits something pays it

    ops = list(genops(data))
    if any(op.name in _OF_OLDER_PROTOCOLS for op, _, _ in ops):
        return data
    ends = [start or 0 for _, _, start in ops[1:]]
    rewriting = _Rewriting()
    for (op, argument, start), end in zip(ops, [*ends, len(data)], strict=True):
        rewriting.take(op.name, argument, data[start:end])
    return b"".join(rewriting.pieces)


class _Rewriting:
    """One pass over a pickle: what is written, and where the old memo is in the new one."""

    __slots__ = ("memo_size", "moved", "pieces", "places", "text_at")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.memo_size = 0
        self.places: dict[object, int] = {}  # a text -> its place in the new memo; no str equals a bytes
        self.moved: list[int] = []  # a place in the old memo -> the new place
        self.text_at: int | None = None  # the new place of the text that the last opcode was, if it was one

    def take(self, name: str, argument: object, piece: bytes) -> None:
        """Write what stands for one opcode."""
        text_at, self.text_at = self.text_at, None
        if name in _TEXTS:
            self.text_at = self._text(argument, piece)
        elif name == "MEMOIZE":
            self.moved.append(self._memoized() if text_at is None else text_at)
        elif name in _GETS:
            assert isinstance(argument, int)
            self.pieces.append(_get(self.moved[argument]))
        elif name != "FRAME":  # a hint for readers, with a size that is none any more
            self.pieces.append(piece)

    def _text(self, text: object, piece: bytes) -> int:
        place = self.places.get(text)
        if place is None:
            self.pieces.append(piece)
            place = self.places[text] = self._memoized()
        else:
            self.pieces.append(_get(place))
        return place

    def _memoized(self) -> int:
        self.pieces.append(b"\x94")
        self.memo_size += 1
        return self.memo_size - 1


def _get(place: int) -> bytes:
    return pack("<cB", b"h", place) if place <= _BINGET_MAX else pack("<cI", b"j", place)
