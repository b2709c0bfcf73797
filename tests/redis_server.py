"""A Redis or Valkey server of the distribution, run by this user in a directory of the test."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import eventually

PATIENCE_S = 20.0


class RedisServer:
    """One server, on a port of loopback; each write is on its disk before it is acknowledged."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.skip(
                "neither redis-server nor valkey-server is installed: the package redis-server has it"
            )
        self.redis: Any = pytest.importorskip("redis", reason="the extra dev has the package redis")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no", *options,
        ]  # fmt: skip
        self.client = self.redis.Redis(port=self.port, socket_timeout=PATIENCE_S)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on what it had, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._answers, PATIENCE_S, "the Redis server")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except self.redis.exceptions.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server that is gone at the end."""
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        server.close()
