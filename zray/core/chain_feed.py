"""What a replica remembers of those it feeds: the successor in its chain, and a joiner with its state.

Both are told again what they did not acknowledge, after a pause that doubles while they are silent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from zray.core.machine import Address
from zray.protocol.chain import Command, ReplicaAck
from zray.protocol.messages import ChainMember, RecordTasks, TablePut

PART_BYTES_MAX = 4 << 20
"""About the most bytes of commands in one message between replicas; a single command may be larger."""
PIECES_ON_THE_WAY = 4
"""Pieces of a joiner's state that are sent ahead of its acknowledgement."""
CLOSE = 64
"""A joiner this many numbers behind is waited for from now on: milliseconds, not seconds."""
PATIENCE_DOUBLINGS_MAX = 5

Piece = tuple[int, tuple[Command, ...], bool]
"""Number, commands, whether it is the last."""


def weight_of(command: Command) -> int:
    """About how many bytes a command has on the wire."""
    message = command.message
    if type(message) is TablePut:
        return 64 + len(message.value)
    if type(message) is RecordTasks:
        return sum(160 + len(record.args) + 20 * len(record.deps) for record in message.records)
    return 64


def parts_of(commands: Iterable[Command]) -> list[tuple[Command, ...]]:
    """Commands in order, as tuples of about ``PART_BYTES_MAX``; none of them empty."""
    return list(iterate_parts(iter(commands)))


def iterate_parts(commands: Iterator[Command | None]) -> Iterator[tuple[Command, ...]]:
    """:func:`parts_of`, one by one; an empty one where the next command is not there yet."""
    part: list[Command] = []
    size_bytes = 0
    for command in commands:
        if command is None:
            yield ()
            continue
        part.append(command)
        size_bytes += weight_of(command)
        if size_bytes >= PART_BYTES_MAX:
            yield tuple(part)
            part, size_bytes = [], 0
    if part:
        yield tuple(part)


class _Patience:
    """When to say something again to one who is silent."""

    __slots__ = ("due_ns", "pause_ns", "silences")

    def __init__(self, pause_ns: int) -> None:
        self.pause_ns = pause_ns
        self.silences = 0
        self.due_ns = 0

    def heard(self, now_ns: int) -> None:
        """There was an answer."""
        self.silences = 0
        self.due_ns = now_ns + self.pause_ns

    def is_over(self, now_ns: int) -> bool:
        """Whether it is time; the next time is later."""
        if self.due_ns > now_ns:
            return False
        self.due_ns = now_ns + (self.pause_ns << self.silences)
        self.silences = min(self.silences + 1, PATIENCE_DOUBLINGS_MAX)
        return True


class Downstream:
    """The next replica: what it was sent and what it has, in this epoch."""

    __slots__ = ("_patience", "address", "committed", "have", "sent", "synced")

    def __init__(self, address: Address, pause_ns: int) -> None:
        self.address = address
        self.sent = self.have = self.committed = 0
        self.synced = False  # it has said what it has
        self._patience = _Patience(pause_ns)

    def hear(self, now_ns: int, ack: ReplicaAck) -> None:
        """It acknowledges; the first time in an epoch this tells where to go on."""
        if not self.synced:
            self.synced = True
            self.sent = ack.have
        self.have = max(self.have, ack.have)
        self.committed = max(self.committed, ack.committed)
        self._patience.heard(now_ns)

    def is_overdue(self, now_ns: int, have: int) -> bool:
        """Whether it must be asked; what it did not acknowledge is sent again."""
        if (self.synced and self.committed >= have) or not self._patience.is_over(now_ns):
            return False
        if self.synced:
            self.sent = self.have
        return True


class Admission:
    """A joiner on its way into the chain.

    Args:
        joiner: that life of it.
        commands: what rebuilds the tables as they are now; ``None``: the next is there after a pump.
        base: the number of the last change in them.
        pause_ns: before something is sent again.
    """

    __slots__ = (
        "_patience", "_pause_ns", "_pieces", "_unacked", "base", "binding_from", "joiner", "link", "sent",
    )  # fmt: skip

    def __init__(
        self, joiner: ChainMember, commands: Iterator[Command | None], base: int, pause_ns: int
    ) -> None:
        self.joiner = joiner
        self.base = base
        self.sent = 0  # pieces
        self.link: Downstream | None = None  # once all pieces are there
        self.binding_from: int | None = None  # from this number on nothing is committed without it
        self._pieces = _numbered(iterate_parts(commands))
        self._unacked: deque[Piece] = deque()
        self._pause_ns = pause_ns
        self._patience = _Patience(pause_ns)

    def next_pieces(self) -> Iterator[Piece]:
        """Pieces to send now: those that are to be repeated, and new ones while there is room."""
        while self.sent < len(self._unacked):
            self.sent += 1
            yield self._unacked[self.sent - 1]
        while len(self._unacked) < PIECES_ON_THE_WAY:
            piece = next(self._pieces, None)
            if piece is None:  # that was the last one, or the next is not there yet
                return
            self._unacked.append(piece)
            self.sent += 1
            yield piece

    def hear(self, now_ns: int, pieces: int) -> None:
        """The joiner has that many pieces; with the last one it can follow."""
        self._patience.heard(now_ns)
        while self._unacked and self._unacked[0][0] < pieces:
            last = self._unacked.popleft()[2]
            self.sent = max(0, self.sent - 1)
            if last:
                self.link = Downstream(self.joiner.address, self._pause_ns)
                self.link.synced = True
                self.link.sent = self.link.have = self.base

    def repeat(self, now_ns: int, have: int) -> None:
        """Send again what was not acknowledged in time."""
        if self.link is not None:
            self.link.is_overdue(now_ns, have)
        elif self._patience.is_over(now_ns):
            self.sent = 0

    def needs_from(self) -> int:
        """The last number that the joiner has, or will have with its state."""
        return self.base if self.link is None else self.link.have

    def is_close(self, have: int) -> bool:
        """Whether waiting for the joiner would hardly be noticed."""
        return self.link is not None and have - self.link.have <= CLOSE


def _numbered(parts: Iterator[tuple[Command, ...]]) -> Iterator[Piece | None]:
    """Each part with its number, and whether another one follows; ``None`` for one that is not there yet."""
    number = 0
    current: tuple[Command, ...] = ()
    for following in parts:
        if not following:
            yield None
        elif current:
            yield number, current, False
            number, current = number + 1, following
        else:
            current = following
    yield number, current, True
