"""What the user's code prints in a worker: to the worker's own file, and whole lines to the driver.

Lines travel on the worker's link to its node, in front of the result of the task that printed them, so a
driver that has the result has shown what came before it. (A call of an actor replies past the node, and so
first asks it whether it has the lines.) What C code writes to its descriptors is in the file only.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from zray.protocol.user_messages import STDERR, STDOUT, Output

if TYPE_CHECKING:
    from zray.runtime.client import Client

log = logging.getLogger("zray.worker")

TEXT_MAX = 64 * 1024
"""Characters of one message; a longer line travels in pieces."""
TITLE_MAX = 200
"""Characters of what an actor calls itself in front of its lines."""


class LineForwarder(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``: writes to the stream behind it and tells the node.

    The node, and with it the driver, gets every line, also when the disk of the file is full.

    Args:
        behind: the stream of the worker's file.
        number: ``STDOUT`` or ``STDERR``.
        client: the worker's link.
    """

    def __init__(self, behind: io.TextIOBase, number: int, client: Client) -> None:
        super().__init__()
        self._behind = behind
        self._number = number
        self._client = client
        self._parts: list[str] = []
        self._lock = threading.RLock()
        self._bytes: ByteForwarder | None = None
        self.title = ""  # in place of the name of the task or call

    def write(self, text: str) -> int:
        """Write text; what ends with a newline is told at once."""
        with self._lock:
            with contextlib.suppress(OSError):  # a full disk costs lines of the file, and no task its result
                self._behind.write(text)
            head, newline, tail = text.rpartition("\n")
            lines = "".join((*self._parts, head)) if newline else None
            if newline:
                self._parts.clear()
            if tail:
                self._parts.append(tail)
        if lines is not None:  # the link's lock is never taken inside ours: who holds it may print too
            self._tell(lines)
        return len(text)

    def _tell(self, text: str) -> None:
        client = self._client
        if os.getpid() != client.pid:  # a process that the user's code forked has the file, and no link
            return
        if not text.isascii():  # half of a surrogate pair travels in no message
            text = text.encode("utf-8", "backslashreplace").decode()
        nested = client.is_inside()  # zray's own log, from inside the link: it goes with what follows
        name = self.title or client.context.name
        with client.lock:
            for start in range(0, max(1, len(text)), TEXT_MAX):
                client.out.append((client.node, Output(self._number, name, text[start : start + TEXT_MAX])))
            client.lines_told += 1
            if not nested:
                client.after_append()

    def flush(self) -> None:
        """Flush the file; an unfinished line stays here until it is finished."""
        with contextlib.suppress(OSError):
            self._behind.flush()

    def finish(self) -> None:
        """Tell an unfinished line too."""
        with self._lock:
            rest = "".join(self._parts)
            self._parts.clear()
            self.flush()
        if rest:
            self._tell(rest)

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._behind.fileno()

    def isatty(self) -> bool:
        """No terminal."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the file."""
        return self._behind.encoding or "utf-8"

    @property
    def buffer(self) -> ByteForwarder:
        """For those who write bytes."""
        if self._bytes is None:
            self._bytes = ByteForwarder(self)
        return self._bytes

    def reconfigure(self, **options: Any) -> None:
        """Taken for the sake of who calls it: what is written is told line by line anyway."""


class ByteForwarder(io.BufferedIOBase):
    """The ``buffer`` of a :class:`LineForwarder`: what is no text in its encoding is shown escaped."""

    def __init__(self, forwarder: LineForwarder) -> None:
        super().__init__()
        self._forwarder = forwarder
        self._decode = codecs.getincrementaldecoder(forwarder.encoding)("backslashreplace").decode

    def write(self, data: Any) -> int:
        """Write bytes, or anything that has a buffer."""
        data = bytes(data)
        self._forwarder.write(self._decode(data))
        return len(data)

    def flush(self) -> None:
        """Like that of the text."""
        self._forwarder.flush()

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._forwarder.fileno()

    def writable(self) -> bool:
        """Yes."""
        return True


def redirect(client: Client) -> None:
    """Forward the lines that this worker prints from now on."""
    for name, number in (("stdout", STDOUT), ("stderr", STDERR)):
        setattr(sys, name, LineForwarder(getattr(sys, name), number, client))


def entitle(actor: object) -> None:
    """Show the lines of this worker from now on as those of ``repr(actor)``, if that works."""
    try:
        title = " ".join(repr(actor).split())[:TITLE_MAX]
    except Exception as error:
        log.warning("%s.__repr__() raised %r", type(actor).__name__, error)
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LineForwarder):
            stream.title = title


def flush() -> None:
    """Tell what is left, at the end of the worker."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LineForwarder):
            stream.finish()
