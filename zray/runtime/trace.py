"""Record what the machines of this process are pumped with, so that it can be pumped again.

A turn is recorded after its effects have left, in the thread of the loop: an effect is never late by more
than the turn before it took to record. A thread of its own would not make that cheaper, because encoding
holds the interpreter's lock, and a loop that comes back from the socket would wait for it by whole switch
intervals (5 ms). What is encoded gathers in a buffer, which is written when it is full, when it is old, and
whenever the loop has nothing to do; a process that is killed loses that much.

The one invariant: recording changes nothing of what is recorded. A disk that is full ends the recording, with
a warning, and not the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from zray.config import Config
from zray.core.machine import Address, Effect
from zray.protocol import trace
from zray.protocol.provenance import description

log = logging.getLogger("zray.trace")

BUFFER_BYTES_MAX = 256 * 1024
BUFFER_AGE_NS_MAX = 50_000_000


class Recorder:
    """Writes the trace of one process.

    Args:
        path: of the file, which is replaced.
        machines: the arguments of the machines that will be pumped, in the order of the loop.
        config: of the machines; it also bounds the file.
    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(self, path: str, machines: Sequence[trace.MachineStart], config: Config) -> None:
        self.path = os.path.abspath(path)
        self._bytes_max = config.trace_bytes_max
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._pumps: list[tuple[int, int, list[tuple[Address, Any]], list[Effect]]] = []
        self._buffer: list[bytes] = [trace.MAGIC]
        self._buffered_bytes = len(trace.MAGIC)
        self._written_bytes = 0
        self._written_ns = 0
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        code = description()
        self._append(
            trace.TraceStart(
                str(code["zray"]), int(code["protocol"]), str(code["code"]), str(code["commit"]),
                socket.gethostname(), os.getpid(), started, config._asdict(), tuple(machines),
            )
        )  # fmt: skip
        try:
            self._write()
        except OSError:
            os.close(self._fd)
            raise

    @property
    def is_on(self) -> bool:
        """Whether anything is still recorded."""
        return self._fd >= 0

    def note_boot(self, now_ns: int, workers: int) -> None:
        """A node introduced itself and asked for so many workers."""
        self._append(trace.Booted(now_ns, workers))

    def note_pump(
        self, machine: int, now_ns: int, batch: list[tuple[Address, Any]], effects: list[Effect]
    ) -> None:
        """A machine was pumped. Only remembered; :meth:`end_turn` does the work."""
        if self._fd >= 0:
            self._pumps.append((machine, now_ns, batch, list(effects)))

    def end_turn(self) -> None:
        """The effects of this turn have left: encode it, and write what is due."""
        for machine, now_ns, batch, effects in self._pumps:
            digest = trace.digest_of(effects)
            encoded = msgspec.Raw(trace.encode(batch))
            self._append(trace.Pumped(machine, now_ns, encoded, len(effects), digest))
            if self._buffered_bytes >= BUFFER_BYTES_MAX or now_ns - self._written_ns > BUFFER_AGE_NS_MAX:
                self._written_ns = now_ns
                self.flush()
        self._pumps.clear()

    def flush(self) -> None:
        """Write what has gathered. The loop calls it before it waits."""
        if self._buffer and self._fd >= 0:
            try:
                self._write()
            except OSError as error:
                self._stop(f"cannot be written: {error.strerror}")

    def close(self, reason: str = "the process ended") -> None:
        """End the trace."""
        if self._fd < 0:
            return
        self.end_turn()
        self._append(trace.TraceEnd(reason))
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, record: Any) -> None:
        framed = trace.frame(record)
        self._buffer.append(framed)
        self._buffered_bytes += len(framed)

    def _write(self) -> None:
        content = b"".join(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        if self._written_bytes + len(content) > self._bytes_max:
            self._stop(f"has reached {self._bytes_max} bytes (ZRAY_TRACE_BYTES_MAX)")
            return
        view = memoryview(content)
        while view:
            view = view[os.write(self._fd, view) :]
        self._written_bytes += len(content)

    def _stop(self, why: str) -> None:
        log.warning("the trace %s %s; nothing is recorded from now on", self.path, why)
        self._pumps.clear()
        self._buffer.clear()
        with contextlib.suppress(OSError):  # a full disk has no room for it either
            os.write(self._fd, trace.frame(trace.TraceEnd(why)))
        os.close(self._fd)
        self._fd = -1
