"""Hosts of a network for tests: network namespaces with a bridge between them, and what goes wrong there.

They take root and iproute2; faults of single packets take nftables, and delays ``tc netem``. Whatever is
missing on this machine skips the test with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.clusters import Place

EAGER = {"ZRAY_BACKLOG_PER_SLOT_MAX": "0"}
SMALL = ("--num-cpus", "2", "--object-store-memory", str(256 << 20))
STARTED = re.compile(r"runs at (\S+) \(process (\d+)\)")
TABLE = "faults"


class Host:
    """A machine, or a namespace that stands for one, and the node on it.

    Attributes:
        name: of the namespace; empty for this machine.
        number: the last of the four of its address, 10.97.0.NUMBER.
    """

    def __init__(self, here: Place, name: str = "", number: int = 0) -> None:
        self.here = here
        self.name, self.number = name, number
        self.prefix = ("ip", "netns", "exec", name) if name else ()
        self.address = ""
        self.pid = 0

    @property
    def ip_address(self) -> str:
        """Where the others reach it."""
        return f"10.97.0.{self.number}" if self.name else "127.0.0.1"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.here.command(*self.prefix, *command, environment=EAGER)

    def start(self, *arguments: str) -> str:
        """``zray start``; what it prints."""
        started = self.run(sys.executable, "-m", "zray.cli", "start", *SMALL, *arguments)
        found = STARTED.search(started.stdout)
        assert found is not None, started.stdout + started.stderr
        self.address, self.pid = found[1], int(found[2])
        return started.stdout

    def driver(self, program: str) -> subprocess.Popen[str]:
        command = [*self.prefix, sys.executable, "-u", "-c", program.replace("ADDRESS", self.address)]
        return self.here.start_command(command, environment=EAGER)

    # --- what goes wrong ---------------------------------------------------------------------------

    def plug_out(self) -> None:
        """Nothing goes in or out any more."""
        ip("-n", _hub(self.name), "link", "set", f"v{self.number}", "down")

    def plug_in(self) -> None:
        """All is well again."""
        ip("-n", _hub(self.name), "link", "set", f"v{self.number}", "up")

    def faulty(self, hook: str, rule: str) -> None:
        """A rule of nftables for what comes in (``input``) or goes out (``output``), until :meth:`heal`.

        ``drop`` loses everything, ``numgen random mod 100 < 5 drop`` every twentieth packet.
        """
        script = f"add table ip {TABLE}\nadd chain ip {TABLE} {hook} "
        script += f"{{ type filter hook {hook} priority 0; }}\nadd rule ip {TABLE} {hook} {rule}\n"
        done = subprocess.run(
            [*self.prefix, "nft", "-f", "-"], input=script, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"nftables cannot do {rule!r} here: {done.stderr.strip()}")

    def heal(self) -> None:
        """Take back all of :meth:`faulty` and :meth:`netem`."""
        queue = ("tc", "qdisc", "del", "dev", "eth0", "root")
        for command in (("nft", "delete", "table", "ip", TABLE), queue):
            subprocess.run([*self.prefix, *command], capture_output=True, check=False)

    def netem(self, *what: str) -> None:
        """What the network emulator of the kernel is to do to all that goes out, such as ``delay 20ms``."""
        command = ("tc", "qdisc", "add", "dev", "eth0", "root", "netem", *what)
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the kernel has no netem: {done.stderr.strip()}")


@contextmanager
def hosts_of_network(here: Place, count: int) -> Iterator[list[Host]]:
    """Namespaces on one bridge: 10.97.0.1 and so on."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("namespaces for networks take root and iproute2")
    with ExitStack() as stack:
        tag = f"z{os.getpid() % 100_000}"
        hub = _hub(tag)
        try:
            ip("netns", "add", hub)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no namespaces for networks here: {error.stderr.strip()}")
        stack.callback(ip, "netns", "del", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        yield [_host(here, stack, tag, number) for number in range(1, count + 1)]


def _host(here: Place, stack: ExitStack, tag: str, number: int) -> Host:
    name = f"{tag}h{number}"
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    hub = _hub(tag)
    ip("-n", hub, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("-n", hub, "link", "set", f"v{number}", "master", "bridge", "up")
    ip("-n", name, "addr", "add", f"10.97.0.{number}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", name, "link", "set", device, "up")
    return Host(here, name, number)


def _hub(name: str) -> str:
    """The namespace of the bridge that hosts of this tag, or with such a name, are on."""
    return name.partition("h")[0] + "hub"


def ip(*arguments: str) -> None:
    """``ip`` of iproute2, which must succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
