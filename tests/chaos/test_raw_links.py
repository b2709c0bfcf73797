"""Bytes of large objects that travel in the clear, between real nodes with a key that are told so."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.clusters import PATIENCE_S, Place, line_of, place, tell
from tests.network_hosts import Host, hosts_of_network
from tests.support import eventually
from zray.runtime.endpoints import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

OPEN, CLOSED = "0", "1"
"""Values of ZRAY_BULK_ENCRYPTION."""
DEATH_NS = str(1_500_000_000)
USED, LOST = "over a raw link", "is lost"
PROGRAM = """
import json, sys, zray
import numpy as np
zray.init(address="ADDRESS")

@zray.remote(resources={"far": 1}, max_retries=-1)
def make(number):
    return np.full(1 << 20, number, dtype=np.float64)

@zray.remote(resources={"far": 1}, max_retries=-1)
def total(array):
    return float(array.sum())

for line in sys.stdin:
    there = [make.remote(number) for number in range(8)]
    zray.wait(there, num_returns=8, fetch_local=False)
    print("begun", flush=True)
    right = all((array == number).all() for number, array in enumerate(zray.get(there, timeout=60)))
    here = [zray.put(np.full(1 << 20, number, dtype=np.float64)) for number in range(8)]
    right &= zray.get([total.remote(ref) for ref in here], timeout=60) == [float(n << 20) for n in range(8)]
    print(json.dumps([bool(right), sorted(n["node_id"] for n in zray.nodes() if n["alive"])]), flush=True)
    del there, here
"""


class Two:
    """Two nodes, and a driver at the first one that moves objects both ways."""

    def __init__(self, hosts: list[Host], driver: subprocess.Popen[str]) -> None:
        self.hosts, self.driver = hosts, driver

    def begin(self) -> None:
        tell(self.driver)
        assert line_of(self.driver) == "begun"

    def verdict(self) -> list[str]:
        """The living nodes; all bytes were right."""
        right, nodes = json.loads(line_of(self.driver))
        assert right
        return nodes

    def nodes(self) -> list[str]:
        self.begin()
        return self.verdict()


def start(here: Place, hosts: list[Host], settings: tuple[str, str] = (OPEN, OPEN)) -> Two:
    head, other = hosts
    key, port = str(here.folder / "key"), free_ports("127.0.0.1")
    here.environment["ZRAY_NODE_DEATH_NS"] = DEATH_NS
    here.environment["ZRAY_BULK_ENCRYPTION"] = settings[0]
    listens = ("--port", str(port), "--node-ip-address", head.ip_address)
    head.start("--head", *listens, "--key-file", key)
    here.environment["ZRAY_BULK_ENCRYPTION"] = settings[1]
    address = ("--address", f"{head.ip_address}:{port}")
    other.start(*address, "--key-file", key, "--resources", '{"far": 4}')
    return Two(hosts, head.driver(PROGRAM))


def finish(here: Place, two: Two) -> None:
    two.driver.communicate(timeout=PATIENCE_S)
    here.zray("stop")


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def logs(here: Place) -> list[str]:
    return [path.read_text() for session in here.sessions() for path in session.glob("logs/node.log")]


@pytest.mark.parametrize("settings", [(OPEN, OPEN), (OPEN, CLOSED), (CLOSED, OPEN), (CLOSED, CLOSED)])
def test_only_two_nodes_that_are_both_told_so_do_without_encryption(
    here: Place, settings: tuple[str, str]
) -> None:
    two = start(here, [Host(here), Host(here)], settings)
    assert len(two.nodes()) == 2
    assert [USED in log for log in logs(here)] == [settings == (OPEN, OPEN)] * 2
    finish(here, two)


def test_garbage_where_raw_links_begin(here: Place) -> None:
    """Noise, the beginning of a greeting, a greeting without a ticket, and connections that say nothing."""
    two = start(here, [Host(here), Host(here)])
    before = two.nodes()
    ports = _ports(two)
    assert len(ports) == 5
    dice = random.Random(1)
    silent = []
    for port in ports:
        for said in (b"", b"zrbulk1\n", b"zrbulk1\n" + bytes(16), dice.randbytes(5000)):
            for _ in range(30):
                stranger = socket.create_connection(("127.0.0.1", port))
                stranger.sendall(said)
                silent.append(stranger)
    assert two.nodes() == before
    for stranger in silent:
        stranger.close()
    assert two.nodes() == before
    finish(here, two)


def test_a_raw_link_that_is_cut_while_bytes_are_on_their_way(here: Place) -> None:
    """Both nodes live on, and what did not come is asked for again."""
    two = start(here, [Host(here), Host(here)])
    before = two.nodes()
    two.begin()
    _cut(two)
    assert two.verdict() == before
    eventually(lambda: two.nodes() == before and _count(here, USED) == 4, PATIENCE_S)  # each has a new one
    assert _count(here, LOST) == 2
    finish(here, two)


def _count(here: Place, text: str) -> int:
    return sum(log.count(text) for log in logs(here))


def _cut(two: Two) -> None:
    """End the raw link between the nodes, as a router between them may that forgets a connection."""
    ports = _ports(two)
    (port,) = (port for port in ports if not {port - 1, port + 1} & set(ports))
    connection = socket.create_connection(("127.0.0.1", port))
    subprocess.run(["ss", "-K", "sport", "=", f":{port}"], capture_output=True, check=False)
    connection.settimeout(1.0)
    try:
        connection.recv(1)
    except ConnectionResetError:
        pass
    except TimeoutError:
        pytest.skip("the kernel cannot end connections of others (ss -K)")
    finally:
        connection.close()


def _ports(two: Two) -> list[int]:
    """Where the two nodes listen: control and bulk of each, and where the raw link between them began."""
    return [
        each.laddr.port
        for host in two.hosts
        for each in psutil.Process(host.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]


def test_a_short_partition_costs_time_alone_and_a_long_one_a_node(here: Place) -> None:
    with hosts_of_network(here, 2) as hosts:
        two = start(here, hosts)
        before = two.nodes()
        two.begin()
        hosts[1].plug_out()
        time.sleep(0.6)  # the fault itself: less than what a node dies of
        hosts[1].plug_in()
        assert two.verdict() == before
        two.begin()
        hosts[1].plug_out()
        time.sleep(3.0)
        hosts[1].plug_in()
        eventually(lambda: before != two.verdict(), PATIENCE_S)
        assert len(two.nodes()) == 2
        assert all(USED in log for log in logs(here))
        finish(here, two)
