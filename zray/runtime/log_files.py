"""The log files of a session, for whoever asks its node. Nothing outside their folder is ever opened."""

from __future__ import annotations

import base64
import os
import stat
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

from zray.core.machine import RUNTIME, Address
from zray.protocol.cluster import LogRead, ReadLog
from zray.protocol.documents import encode_report

FILES_MAX = 10_000
"""Named in one listing."""


def answer_in_thread(folder: str, question: ReadLog, post: Callable[[Address, LogRead], None]) -> None:
    """Read, and post what was read: a disk may be slow."""
    threading.Thread(target=_answer, args=(folder, question, post), name="zray-logs", daemon=True).start()


def _answer(folder: str, question: ReadLog, post: Callable[[Address, LogRead], None]) -> None:
    try:
        if question.name:
            found: Any = piece(folder, question.name, question.start, question.size)
        else:
            found = listing(folder)
    except OSError as error:
        found = {"error": f"log file {question.name!r} cannot be read: {error.strerror}"}
    post(RUNTIME, LogRead(question.token, encode_report(found)))


def listing(folder: str) -> list[dict[str, Any]]:
    """``name`` and ``size_bytes`` of every file, by name."""
    with os.scandir(folder) as entries:
        files = [each for each in islice(entries, FILES_MAX) if each.is_file(follow_symlinks=False)]
        rows = [{"name": each.name, "size_bytes": each.stat(follow_symlinks=False).st_size} for each in files]
    return sorted(rows, key=lambda row: str(row["name"]))


def piece(folder: str, name: str, start: int, size: int) -> dict[str, Any]:
    """Bytes of one file in base64, with where they begin and how large the file is.

    Args:
        folder: of the log files.
        name: of a regular file in it; links are not followed.
        start: of the first byte; negative: from the end.
        size: in bytes.
    Raises:
        OSError: if there is no such file.
    """
    if "/" in name:
        raise OSError(0, "it is a path")
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Without O_NONBLOCK a pipe that somebody left here would hold the thread up for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=within)
    finally:
        os.close(within)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "it is no file")
        begin = start if start >= 0 else max(0, about.st_size + start)
        data = os.pread(descriptor, size, begin)
    finally:
        os.close(descriptor)
    return {"start": begin, "size_bytes": about.st_size, "data": base64.b64encode(data).decode()}
