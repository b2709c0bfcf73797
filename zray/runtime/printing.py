"""What workers printed, as the driver shows it: ``(name pid=..., ip=...) line``.

On a terminal, lines that several workers print alike within a moment are folded into one with a count; a
file or a pipe gets all of them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque

from zray.protocol.user_messages import STDERR, Printed

FOLD_S = 5.0
"""Lines alike that come within this long are folded."""
CYAN, PLAIN = "\033[36m", "\033[0m"
HOST = "127.0.0.1"

OTHERS_S = 1.0
"""How long a thread waits for what another one is showing; a terminal may be stopped."""

_lock = threading.Lock()
_shower = 0  # the thread that has it
_folder: LineFolder | None = None


class LineFolder:
    """Folds repeated lines of different workers. For one thread at a time.

    Args:
        fold_s: how long a line is remembered.
    """

    def __init__(self, fold_s: float) -> None:
        self._fold_s = fold_s
        self._seen: dict[str, tuple[float, int]] = {}  # line -> (until when, how often since shown)

    def shown(self, now_s: float, line: str) -> list[str]:
        """What to show for one more line: it, nothing, or first how often others came."""
        notes = self.overdue(now_s)
        if line in self._seen:
            until_s, count = self._seen[line]
            self._seen[line] = until_s, count + 1
            return notes
        self._seen[line] = now_s + self._fold_s, 0
        return [*notes, line]

    def overdue(self, now_s: float) -> list[str]:
        """How often lines came again whose time is over."""
        notes = []
        while self._seen:
            line, (until_s, count) = next(iter(self._seen.items()))
            if until_s > now_s:
                break
            del self._seen[line]
            if count:
                notes.append(f"{line} [repeated {count}x]")
        return notes

    def rest(self) -> list[str]:
        """All that was not said yet, at the end."""
        return self.overdue(float("inf"))


def finish() -> None:
    """Say how often lines were repeated that are still remembered."""
    global _folder
    folder, _folder = _folder, None
    if folder is not None and sys.stdout is not None:
        for line in folder.rest():
            sys.stdout.write(line + "\n")


def is_showing() -> bool:
    """Whether a thread is about to write what came."""
    return _shower != 0


def show(printed: deque[Printed]) -> None:
    """Write messages to this process's own streams, in their order.

    What another thread writes meanwhile is waited for: who has a result may print that it is there.
    """
    global _folder, _shower
    me = threading.get_ident()
    if _shower == me or not _lock.acquire(timeout=OTHERS_S):  # a handler in the midst of it, or a slow reader
        return
    _shower = me
    try:
        while printed:
            message = printed.popleft()
            stream = sys.stderr if message.stream == STDERR else sys.stdout
            if stream is None:  # closed before this process began
                continue
            on_terminal = stream.isatty()
            if on_terminal and _folder is None:
                _folder = LineFolder(FOLD_S)
            for line in message.text.split("\n"):
                prefix = f"({message.name or 'worker'} pid={message.pid}, ip={message.ip or HOST})"
                if not on_terminal or _folder is None:
                    stream.write(f"{prefix} {line}\n")
                    continue
                for shown in _folder.shown(time.monotonic(), line):
                    stream.write(f"{CYAN}{prefix}{PLAIN} {shown}\n")
            stream.flush()
    except (OSError, ValueError):  # closed, or its reader is gone: the worker's file has everything
        printed.clear()
    finally:
        _shower = 0
        _lock.release()
