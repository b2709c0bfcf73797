"""``zray up`` and ``zray down`` over real ssh servers: clusters that come up, and those that cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.clusters import Place, finish, line_of, place
from tests.ssh_hosts import SshHost, known_hosts, ssh_hosts
from tests.support import eventually
from zray.launch.orders import HostReport, encode_report, find_report
from zray.runtime.endpoints import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NODE_ID = re.compile(r"(\S+): (started|runs already), node ([0-9a-f]{32})")
MEMORY_BYTES = 64 << 20
PROGRAM = """
import os, time, zray
zray.init()
@zray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where(number):
    time.sleep(0.05)
    return os.environ["ZRAY_TMPDIR"], os.environ.get("COLOUR")
found = zray.get([where.remote(number) for number in range(30)])
there = where.options(label_selector={"zone": "far"})
print({os.path.basename(home) for home, _ in zray.get([there.remote(number) for number in range(4)])})
print(len({home for home, _ in found}), {colour for _, colour in found})
"""


class Hosts(list[SshHost]):
    """The hosts of a test and the file that names them."""

    here: Place

    @property
    def file(self) -> Path:
        return self.here.folder / "lab.toml"

    def write(self, top: str = "", **changes: str) -> None:
        """The file; ``changes`` are further lines of a host by number: ``h1='...'``."""
        options = f"UserKnownHostsFile={known_hosts(self.here, self)}"
        lines = [
            top, f"port = {self.port}", "timeout_s = 20", f"python = '{sys.executable}'",
            f"identity_file = '{self.here.folder / 'user_key'}'", f"ssh_options = ['{options}']",
            "environment = { COLOUR = 'green', ZRAY_BACKLOG_PER_SLOT_MAX = '0' }",
        ]  # fmt: skip
        for number, host in enumerate(self):
            lines += ["[[nodes]]" if number else "[head]", f"host = '{host.address}'"]
            lines += [f"ssh_port = {host.port}", "num_cpus = 1", f"object_store_memory = {MEMORY_BYTES}"]
            lines.append(changes.get(f"h{number}", ""))
        self.file.write_text("\n".join(lines))

    def __init__(self, here: Place, hosts: list[SshHost]) -> None:
        super().__init__(hosts)
        self.here = here
        self.port = free_ports(hosts[0].address)
        self.write()

    def up(self, *, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.here.zray("up", str(self.file))
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def down(self, *, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.here.zray("down", str(self.file))
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def assert_nothing_runs(self) -> None:
        """No node, no session and no key on any host."""
        left = [str(session) for host in self for session in host.sessions()]
        left += [str(path) for host in self for path in host.home.glob("zray-*/*.key*")]
        left += [text for text in self.here.remains() if text.startswith(("process", "socket"))]
        assert not left


def nodes_of(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """How each host came to its node, and the node, by address."""
    return {host: (how, node) for host, how, node in NODE_ID.findall(done.stdout)}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with place() as here, ssh_hosts(here, 3) as found:
        yield Hosts(here, found)


def test_a_cluster_comes_up_works_and_goes_down(hosts: Hosts) -> None:
    hosts.write("gcs_shards = 2\ngcs_replicas = 2", h2='labels = { zone = "far" }')
    first = hosts.up()
    nodes = nodes_of(first)
    assert {how for how, _ in nodes.values()} == {"started"}
    assert len({node for _, node in nodes.values()}) == 3
    keys = [path for host in hosts for path in host.home.glob("zray-*/lab.key")]
    assert len(keys) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    secret = keys[0].read_bytes().splitlines()[2].decode()
    assert not [p for p in hosts.here.processes() if secret in f"{p.cmdline()} {p.environ()}"]

    again = nodes_of(hosts.up())
    assert again == {host: ("runs already", node) for host, (_, node) in nodes.items()}

    script = hosts.here.folder / "script.py"
    script.write_text(PROGRAM)
    address = re.search(r"--address (\S+) SCRIPT", first.stdout)
    assert address is not None
    environment = {"ZRAY_TMPDIR": str(hosts[0].home)}
    ran = hosts.here.zray("run", "--address", address[1], str(script), environment=environment)
    assert ran.stdout == f"{{{hosts[2].address!r}}}\n3 {{'green'}}\n", ran.stderr

    assert hosts.down().stdout.count(": stopped\n") == 3
    assert hosts.down().stdout.count(": nothing ran there\n") == 3
    hosts.assert_nothing_runs()


def test_what_died_is_started_again_and_the_rest_left_alone(hosts: Hosts) -> None:
    nodes = nodes_of(hosts.up())
    (session,) = hosts[1].sessions()
    pid = json.loads((session / "session.json").read_text())["processes"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    again = nodes_of(hosts.up())
    assert [again[host.address][0] for host in hosts] == ["runs already", "started", "runs already"]
    assert again[hosts[1].address][1] != nodes[hosts[1].address][1]
    hosts.down()
    hosts.assert_nothing_runs()


def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(hosts: Hosts) -> None:
    hosts[2].close()
    failed = hosts.up(code=1)
    assert "could not look at 1 of 3 hosts:" in failed.stderr
    assert f"{hosts[2].address}: ssh failed: " in failed.stderr
    assert "Connection refused" in failed.stderr
    assert failed.stdout == ""
    hosts.assert_nothing_runs()


@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        ("/nowhere/python", "/nowhere/python ended with code 127 there and made no report"),
        (f"{sys.executable} -I -S", "has no zray, or an older one, there"),  # no packages at all
        ("SCRIPT", "it has zray 0.0.old and this machine has"),
        ("echo zray-host-report: {;:", "and made no report"),
    ],
)
def test_a_host_without_this_zray_is_named(hosts: Hosts, python: str, complaint: str) -> None:
    script = hosts.here.folder / "old"
    script.write_text(
        f"#!/bin/sh\ncat > /dev/null\ncat <<'END'{encode_report(HostReport(version='0.0.old'))}END\n"
    )
    script.chmod(0o700)
    hosts.write(h1=f"python = '{python.replace('SCRIPT', str(script))}'")
    failed = hosts.up(code=1)
    assert f"{hosts[1].address}: " in failed.stderr
    assert complaint in failed.stderr
    hosts.assert_nothing_runs()


def test_a_node_that_fails_takes_the_others_with_it(hosts: Hosts) -> None:
    hosts.write(h2="address = '192.0.2.1'")  # of documentation: no host has it
    failed = hosts.up(code=1)
    assert f"{hosts[1].address}: started" in failed.stdout
    assert "could not start nodes on 1 of 2 hosts:" in failed.stderr
    assert f"{hosts[2].address}: zray start failed: " in failed.stderr
    assert "192.0.2.1" in failed.stderr
    hosts.assert_nothing_runs()


def test_what_ran_before_outlives_a_failure(hosts: Hosts) -> None:
    hosts.write(h2="address = '192.0.2.1'\npython = 'echo hello;" + sys.executable + "'")
    whole = hosts.file.read_text()
    hosts.file.write_text(whole[: whole.rindex("[[nodes]]")])
    before = nodes_of(hosts.up())
    hosts.file.write_text(whole)
    failed = hosts.up(code=1)
    assert f"stopping what was started on {hosts[2].address}\n" in failed.stdout
    hosts.write()
    after = nodes_of(hosts.up())
    assert {host: node for host, (how, node) in after.items() if how == "runs already"} == {
        host: node for host, (_, node) in before.items()
    }
    hosts.down()
    hosts.assert_nothing_runs()


def test_ctrl_c_half_way_leaves_nothing(hosts: Hosts) -> None:
    looked, slow = hosts.here.folder / "looked", hosts.here.folder / "slow"
    wait = f"if [ -e {looked} ]; then sleep 1; fi; touch {looked}"  # what comes after the look takes its time
    slow.write_text(f'#!/bin/sh\n{wait}\nexec {sys.executable} "$@"\n')
    slow.chmod(0o700)
    hosts.write(h2=f"python = '{slow}'")
    command = hosts.here.start_command(
        [sys.executable, "-m", "zray.cli", "up", str(hosts.file)], start_new_session=True
    )
    assert "with the control store at" in line_of(command)
    os.killpg(command.pid, signal.SIGINT)
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert "stopping what was started on" in done.stdout
    hosts.assert_nothing_runs()


def test_down_stops_the_others_if_one_is_away(hosts: Hosts) -> None:
    hosts.up()
    away = hosts[1]
    away.close()
    failed = hosts.down(code=1)
    assert f"could not stop nodes on 1 of 3 hosts:\n  {away.address}: ssh failed" in failed.stderr
    assert failed.stdout.count(": stopped\n") == 2
    assert not hosts[0].sessions()
    assert away.sessions()
    environment = {"ZRAY_TMPDIR": str(away.home)}
    hosts.here.zray("stop", "--cluster", "lab", environment=environment)


def test_an_order_that_makes_no_sense_is_reported(hosts: Hosts) -> None:
    for order in ("", "garbage", '{"action": "reboot", "cluster": "lab"}', '{"action": "look"}'):
        agent = hosts.here.start_command([sys.executable, "-m", "zray.launch.host"])
        done = finish(agent, order)
        report = find_report(done.stdout)
        assert report is not None
        assert (done.returncode, bool(report.error), done.stderr) == (1, True, "")


def test_a_key_that_is_none_is_refused_and_not_kept(hosts: Hosts) -> None:
    order = '{"action": "start", "cluster": "lab", "control_store": ["tcp://127.0.0.1:1"], "key": "short"}'
    agent = hosts.here.start_command([sys.executable, "-m", "zray.launch.host"])
    report = find_report(finish(agent, order).stdout)
    assert report is not None
    assert "is not a cluster key" in report.error
    assert not list(hosts.here.folder.glob("zray-*/*"))
