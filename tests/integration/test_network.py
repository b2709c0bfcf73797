"""Nodes that reach each other over tcp: on one machine, and as hosts of a network of their own.

The hosts are network namespaces with a bridge between them, which takes root and iproute2.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Place, finish, line_of, place, tell
from tests.network_hosts import SMALL, Host, hosts_of_network, ip
from tests.support import eventually
from zray.runtime import cluster_key
from zray.runtime.endpoints import free_ports

pytestmark = pytest.mark.slow

PROGRAM = """
import os, time, zray
import numpy as np
zray.init(address="ADDRESS")
@zray.remote(max_retries=-1)
def make(number):
    time.sleep(0.05)
    return os.getppid(), np.full(1 << 17, number, dtype=np.float64)
@zray.remote(max_retries=-1)
def total(made):
    return float(made[1].sum())
def all_right(count):
    refs = [make.remote(number) for number in range(count)]
    totals = [total.remote(ref) for ref in refs]
    right = zray.get(totals) == [float(number << 17) for number in range(count)]
    made = zray.get(refs)
    return right and [int(array[0]) for _, array in made] == list(range(count)), len({pid for pid, _ in made})
print(*all_right(40), flush=True)
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place() as found:
        yield found


def _listening(pid: int) -> list[str]:
    """The addresses on which a process listens for tcp."""
    import psutil

    connections = psutil.Process(pid).net_connections("tcp")
    return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]


def test_a_cluster_over_tcp_of_one_machine(here: Place) -> None:
    head, other = Host(here), Host(here)
    port = free_ports("127.0.0.1")
    said = head.start("--head", "--port", str(port))
    key_file = re.search(r"--key-file (\S+)", said)
    assert key_file is not None
    assert Path(key_file[1]).stat().st_mode & 0o777 == 0o600
    other.start("--address", f"127.0.0.1:{port}", "--key-file", key_file[1])
    assert _listening(other.pid) == ["127.0.0.1", "127.0.0.1"]  # control and bulk
    assert finish(head.driver(PROGRAM)).stdout.split() == ["True", "2"]
    assert finish(other.driver(PROGRAM)).stdout.split() == ["True", "2"]
    here.zray("stop")
    os.unlink(key_file[1])


def test_a_port_that_is_taken_or_an_address_of_nobody_is_refused(here: Place) -> None:
    """And no second control store that gives up, whose node would be in the first one's cluster."""
    port = free_ports("127.0.0.1")
    arguments = ("start", "--head", "--num-cpus", "1", "--port", str(port))
    with socket.create_server(("127.0.0.1", port)):
        taken = here.zray(*arguments)
        assert f"zray start --address tcp://127.0.0.1:{port}; or give another --port" in taken.stderr
        own = here.zray(*arguments[:-1], str(port + 2), "--node-port", str(port))
    assert f"tcp://127.0.0.1:{port}: Address already in use; give another --node-port" in own.stderr
    elsewhere = here.zray(*arguments, "--node-ip-address", "192.0.2.1")
    assert "--node-ip-address is an address of this machine" in elsewhere.stderr
    assert [each.returncode for each in (taken, own, elsewhere)] == [1, 1, 1]
    assert "no cluster" in here.zray("stop").stdout


def test_replicated_shards_listen_for_other_machines_and_come_back(here: Place) -> None:
    head, other = Host(here), Host(here)
    port = free_ports("127.0.0.1")
    key = str(here.folder / "key")
    chains = ("--gcs-shards", "2", "--gcs-replicas", "2")
    said = head.start("--head", "--port", str(port), "--key-file", key, *chains)
    told = re.search(r"zray start ((?:--address \S+ )+)--key-file", said)
    assert told is not None, said
    endpoints = [chain.split(",") for chain in told[1].split()[1::2]]
    assert [len(chain) for chain in endpoints] == [2, 2]
    other.start(*told[1].split(), "--key-file", key)
    more = "for _ in range(3):\n    input()\n    print(*all_right(40), flush=True)\n"
    driver = head.driver(PROGRAM + more)
    assert line_of(driver) == "True 2"
    for chain in (endpoints[0], endpoints[1], endpoints[0]):
        _kill_listener(head.pid, chain[0])
        tell(driver)
        assert line_of(driver).startswith("True")
    finish(driver)
    here.zray("stop")


def _kill_listener(node_pid: int, endpoint: str) -> None:
    """Kill the process of a node that listens at a tcp endpoint, once there is one."""
    import psutil

    port = int(endpoint.rpartition(":")[2])

    def listener() -> psutil.Process | None:
        for child in psutil.Process(node_pid).children():
            ports = [each.laddr.port for each in child.net_connections("tcp") if each.status == "LISTEN"]
            if port in ports:
                return child
        return None

    eventually(listener, 10.0).kill()


def test_without_the_key_nobody_joins(here: Place) -> None:
    head, stranger = Host(here), Host(here)
    port = free_ports("127.0.0.1")
    said = head.start("--head", "--port", str(port), "--key-file", str(here.folder / "key"))
    assert str(here.folder / "key") in said
    quick = {"ZRAY_INIT_TIMEOUT_NS": "1000000000"}
    cluster_key.ensure(str(here.folder / "other"))
    for extra in ((), ("--key-file", str(here.folder / "other"))):
        failed = here.zray("start", *SMALL, "--address", f"127.0.0.1:{port}", *extra, environment=quick)
        assert failed.returncode == 1
        assert "the key of that cluster" in failed.stderr
    failed = here.zray("start", *SMALL, "--address", f"127.0.0.1:{port}", "--key-file", "nowhere")
    assert failed.returncode == 1
    assert "nowhere" in failed.stderr
    assert stranger.pid == 0
    here.zray("stop")


@pytest.fixture
def hosts(here: Place) -> Iterator[list[Host]]:
    """Three namespaces on one bridge: 10.97.0.1 to 10.97.0.3."""
    with hosts_of_network(here, 3) as found:
        yield found


def test_hosts_of_a_network_form_a_cluster_and_one_is_cut_off(here: Place, hosts: list[Host]) -> None:
    head, *others = hosts
    key = str(here.folder / "key")
    head.start("--head", "--port", "6480", "--node-ip-address", "10.97.0.1", "--key-file", key)
    for host in others:
        host.start("--address", "10.97.0.1:6480", "--key-file", key)
    driver = head.driver(
        PROGRAM
        + """
refs = [make.remote(number) for number in range(40)]
zray.wait(refs, num_returns=20)
print("made", flush=True)
input()
totals = [total.remote(ref) for ref in refs]
print(zray.get(totals) == [float(number << 17) for number in range(40)], flush=True)
input()
print(*all_right(60), flush=True)
"""
    )
    assert line_of(driver) == "True 3"
    assert line_of(driver) == "made"
    others[1].plug_out()
    tell(driver)
    assert line_of(driver) == "True"
    others[1].plug_in()
    log = eventually(lambda: _lives(others[1]) > 1, 20.0, "the life of the node that was cut off")
    assert log
    tell(driver)
    assert line_of(driver).startswith("True")
    finish(driver)
    here.zray("stop")


def _lives(host: Host) -> int:
    """How often the node of a host was a member, the present life included."""
    nodes = host.run(sys.executable, "-c", COUNT.replace("PID", str(host.pid)))
    return int(nodes.stdout or 0)


COUNT = """
import os
from zray.config import Config
from zray.runtime.joining import _keys
from zray.protocol.messages import TABLE_NODE, NodeHello
import msgspec
config = Config(key_file=os.environ["ZRAY_TMPDIR"] + "/key")
rows = _keys("tcp://10.97.0.1:6480", TABLE_NODE, b"", config)
print(sum(msgspec.msgpack.decode(row, type=NodeHello).pid == PID for row in rows.values()))
"""


# --- zray doctor -----------------------------------------------------------------------------------


def _doctor(host: Host, port: int, key: str, *more: str, address: str = "127.0.0.1") -> tuple[int, str]:
    """The exit code of ``zray doctor`` and what it said."""
    arguments = ("doctor", "--address", f"{address}:{port}", "--key-file", key, *more)
    done = host.run(sys.executable, "-m", "zray.cli", *arguments)
    return done.returncode, done.stdout + done.stderr


def test_a_doctor_finds_nothing_wrong_or_the_wrong_key(here: Place) -> None:
    head = Host(here)
    port = free_ports("127.0.0.1")
    key, other = str(here.folder / "key"), str(here.folder / "other")
    code, said = _doctor(head, port, key)
    assert code == 1
    assert "refused: nothing listens" in said
    head.start("--head", "--port", str(port), "--key-file", key)
    code, said = _doctor(head, port, key)
    assert (code, said.count("ok "), "nothing is wrong" in said) == (0, 6, True), said
    cluster_key.ensure(other)
    code, said = _doctor(head, port, other)
    assert code == 1
    assert "the key of that cluster" in said
    assert _doctor(head, 0, key)[0] == 1
    here.zray("stop")


def _forbid(host: Host, *what: str) -> None:
    """Packets of this kind do not leave a host any more."""
    ip("-n", host.name, "rule", "add", *what, "prohibit")


def test_a_doctor_names_the_port_and_the_direction_that_are_blocked(here: Place, hosts: list[Host]) -> None:
    head, node, guest = hosts
    key = str(here.folder / "key")
    head.start("--head", "--port", "6480", "--node-ip-address", "10.97.0.1", "--node-port", "7000",
               "--key-file", key)  # fmt: skip
    node.start("--address", "10.97.0.1:6480", "--node-port", "7100", "--key-file", key)
    look = ("--node-port", "7200")
    code, said = _doctor(guest, 6480, key, *look, address="10.97.0.1")
    assert code == 0, said
    _forbid(guest, "to", "10.97.0.2", "ipproto", "tcp", "dport", "7101")  # its bulk port, outwards
    _forbid(head, "to", "10.97.0.3", "ipproto", "tcp", "dport", "7200")  # our control port, inwards
    code, said = _doctor(guest, 6480, key, *look, address="10.97.0.1")
    wrong = [line for line in said.splitlines() if line.startswith("WRONG")]
    assert code == 1
    assert len(wrong) == 2, said
    assert any("this machine -> node" in line and "bulk tcp://10.97.0.2:7101" in line for line in wrong)
    assert any("-> this machine, control tcp://10.97.0.3:7200" in line for line in wrong)
    _forbid(guest, "to", "10.97.0.1", "ipproto", "tcp", "dport", "6480")
    code, said = _doctor(guest, 6480, key, *look, address="10.97.0.1")
    assert (code, said.count("WRONG")) == (1, 1)
    assert "control store, tcp://10.97.0.1:6480" in said
    here.zray("stop")


def test_a_doctor_names_a_node_that_hangs(here: Place) -> None:
    head, other = Host(here), Host(here)
    port = free_ports("127.0.0.1")
    key = str(here.folder / "key")
    patient = {"ZRAY_NODE_DEATH_NS": "60000000000"}
    here.environment.update(patient)
    head.start("--head", "--port", str(port), "--key-file", key)
    other.start("--address", f"127.0.0.1:{port}", "--key-file", key)
    os.kill(other.pid, signal.SIGSTOP)
    try:
        code, said = _doctor(head, port, key)
    finally:
        os.kill(other.pid, signal.SIGCONT)
    assert code == 1
    assert said.count("WRONG") == 1
    assert "does not answer: another key, or it is stopped" in said
    here.zray("stop")
