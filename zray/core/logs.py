"""What people want of the log files of a node: which there are, or a piece of one.

The node's process reads; here is decided what it is asked for. A name is one of a file in the log folder of
the session, never a path, and a piece has a bound; so have the reads that are open, each of which costs the
process a thread (I15).
"""

from __future__ import annotations

from collections.abc import Callable

from zray.core.machine import RUNTIME, Address, Effect
from zray.protocol.cluster import LogRead, ReadLog
from zray.protocol.documents import encode_report

TOPIC = "logs"
"""``logs``: which files there are; ``logs/START/SIZE/NAME``: so many bytes of one."""
READS_MAX = 16
PIECE_BYTES_MAX = 256 << 10
NAME_CHARACTERS_MAX = 255


class Logs:
    """The open reads of a node. Pure; shares its outbox."""

    def __init__(self, out: list[Effect]) -> None:
        self.out = out
        self.open: dict[int, tuple[Address, Callable[[bytes], None]]] = {}
        self.asked = 0

    def ask(self, what: str, asker: Address, answer: Callable[[bytes], None]) -> None:
        """Somebody wants to know; ``answer`` is called with a JSON document, now or later."""
        _, *parts = what.split("/", 3)
        problem = _problem(parts)
        if not problem and len(self.open) >= READS_MAX:
            problem = f"the node reads {READS_MAX} log files already; ask again in a moment"
        if problem:
            answer(encode_report({"error": problem}))
            return
        self.asked += 1
        self.open[self.asked] = asker, answer
        start, size, name = (int(parts[0]), int(parts[1]), parts[2]) if parts else (0, 0, "")
        self.out.append((RUNTIME, ReadLog(self.asked, name, start, size)))

    def on_log_read(self, source: Address, message: LogRead) -> None:
        """The process has read."""
        if source == RUNTIME and message.token in self.open:
            asker, answer = self.open.pop(message.token)
            if asker:
                answer(message.body)

    def client_gone(self, address: Address) -> None:
        """A process is gone and wants no answer; what is read for it is under way."""
        for token, (asker, answer) in self.open.items():
            if asker == address:
                self.open[token] = b"", answer


def _problem(parts: list[str]) -> str:
    """A sentence, or nothing if this can be read."""
    if not parts:
        return ""
    if len(parts) != 3 or not _is_number(parts[0].removeprefix("-")) or not _is_number(parts[1]):
        return "a piece of a log file is logs/START/SIZE/NAME"
    if int(parts[1]) > PIECE_BYTES_MAX:
        return f"a piece of a log file has {PIECE_BYTES_MAX} bytes at most"
    name = parts[2]
    if not 0 < len(name) <= NAME_CHARACTERS_MAX or "/" in name or "\0" in name or name in (".", ".."):
        return f"{name[:NAME_CHARACTERS_MAX]!r} is not the name of a log file"
    return ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18
