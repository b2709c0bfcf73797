"""Hosts that ssh reaches, on this machine: one sshd each, at a loopback address of its own.

The servers are those of the distribution, run by this user with keys and a configuration made for the test.
Each gives its sessions another directory for sessions of zray, so nothing is shared but the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clusters import MARK, PATIENCE_S, ROOT, Place
from tests.support import eventually

CONFIGURATION = """
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
SetEnv PYTHONPATH={root} ZRAY_TMPDIR={home} {mark}={value}
"""


class SshHost:
    """One host: where it is, and the server."""

    def __init__(self, here: Place, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.home = here.folder / address
        self.home.mkdir()
        path = self.home / "sshd_config"
        path.write_text(
            CONFIGURATION.format(
                address=address, port=port, folder=here.folder, root=ROOT, home=self.home, mark=MARK,
                value=here.mark,
            )
        )  # fmt: skip
        server = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.defpath)
        assert server is not None
        with (self.home / "sshd.log").open("wb") as log:
            self.server = subprocess.Popen([server, "-D", "-e", "-f", str(path)], stderr=log)

    def await_listening(self) -> None:
        """Wait until the server takes connections."""
        eventually(self._listens, PATIENCE_S, f"sshd at {self.address}")

    def _listens(self) -> bool:
        log = (self.home / "sshd.log").read_text()
        assert self.server.poll() is None, f"sshd ended: {log}"
        try:
            socket.create_connection((self.address, self.port), 1.0).close()
        except OSError:
            return False
        return True

    def sessions(self) -> list[Path]:
        """The sessions of zray on it."""
        return [path for path in self.home.glob("zray-*/*") if path.is_dir()]

    def close(self) -> None:
        """End the server; what runs in its connections ends or goes on by itself."""
        if self.server.poll() is None:
            self.server.terminate()
        self.server.wait(PATIENCE_S)


def require_sshd() -> None:
    """Skip the test, saying why, where there is no OpenSSH server or client."""
    for program in ("sshd", "ssh", "ssh-keygen"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is None:
            pytest.skip(f"{program} is not installed: the packages openssh-server and openssh-client have it")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # where a server of root locks its children in


@contextmanager
def ssh_hosts(here: Place, count: int) -> Iterator[list[SshHost]]:
    """That many hosts, at 127.0.0.11 and on."""
    require_sshd()
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(here.folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    hosts: list[SshHost] = []
    try:
        for number in range(count):
            address = f"127.0.0.{11 + number}"
            with socket.socket() as probe:
                probe.bind((address, 0))
                port = probe.getsockname()[1]
            hosts.append(SshHost(here, address, port))
        for host in hosts:
            host.await_listening()
        yield hosts
    finally:
        for host in hosts:
            host.close()


def known_hosts(here: Place, hosts: Sequence[SshHost]) -> Path:
    """A file by which the client knows the hosts: nothing is trusted blindly, here either."""
    key = (here.folder / "host_key.pub").read_text()
    path = here.folder / "known_hosts"
    path.write_text("".join(f"[{host.address}]:{host.port} {key}" for host in hosts))
    return path
