"""Large bytes over loopback TCP: between two plain sockets, and between two nodes of zray."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
START_S = 30.0
HOST = "127.0.0.1"


def raw_copies_s(size_bytes: int, copies: int) -> list[float]:
    """How long each copy from one process to another takes, into memory that all but the first find warm."""
    import numpy as np

    target = memoryview(np.zeros(size_bytes, dtype=np.uint8))
    taken_s = []
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        sender = multiprocessing.get_context("spawn").Process(target=_send, args=(port, size_bytes, copies))
        sender.start()
        connection, _ = server.accept()
        with connection:
            for _ in range(copies):
                connection.sendall(b"!")
                started = time.perf_counter()
                received = 0
                while received < size_bytes:
                    received += connection.recv_into(target[received : received + CHUNK_BYTES])
                taken_s.append(time.perf_counter() - started)
        sender.join()
    return taken_s


def _send(port: int, size_bytes: int, copies: int) -> None:
    import numpy as np

    source = memoryview(np.ones(size_bytes, dtype=np.uint8))
    with socket.create_connection((HOST, port)) as connection:
        for _ in range(copies):
            connection.recv(1)
            connection.sendall(source)


def pulls_s(size_bytes: int, copies: int, *, encrypted: bool) -> list[float]:
    """How long a driver waits for an array that is on the other node, each time another one."""
    import zray
    from benchmarks import workload

    taken_s = []
    with tempfile.TemporaryDirectory() as folder:
        key_file = str(Path(folder) / "cluster.key") if encrypted else ""
        with two_nodes(3 * size_bytes, key_file) as address:
            zray.init(address=address)
            make = zray.remote(workload.zeros).options(resources={"far": 1})
            for _ in range(copies):
                ref = make.remote(size_bytes)
                zray.wait([ref], fetch_local=False)
                started = time.perf_counter()
                array = zray.get(ref)
                taken_s.append(time.perf_counter() - started)
                assert len(array) == size_bytes
                del array, ref
                time.sleep(0.2)  # it is freed on both nodes
            zray.shutdown()
    return taken_s


@contextmanager
def two_nodes(store_bytes: int, key_file: str) -> Iterator[str]:
    """Two nodes that reach each other over TCP, encrypted if there is a key; the address of the first one.

    Only the second one has the resource ``far``.
    """
    from zray.api import session
    from zray.runtime import cluster_key, node_options
    from zray.runtime.endpoints import free_ports
    from zray.runtime.processes import end_process
    from zray.runtime.spawning import Spawned, spawn

    environment = {**os.environ, "ZRAY_KEY_FILE": key_file}
    if key_file:
        cluster_key.ensure(key_file)
    gcs = f"tcp://{HOST}:{free_ports(HOST)}"
    started: list[Spawned] = []
    try:
        for others in ({"gcs_listen": gcs}, {"gcs": (gcs,)}):
            resources = {"far": 1.0} if started else {}
            options = session.node_options_of(
                num_cpus=1, num_gpus=None, resources=resources, object_store_memory=store_bytes, labels=None
            )
            options |= {"listen": f"tcp://{HOST}:{free_ports(HOST)}", "detached": True, **others}
            options |= {"parent_pid": os.getpid()}
            command = node_options.command(options)
            started.append(spawn(command, START_S, name="the node", environment=environment))
        yield started[0].ready["address"]
    finally:
        for node in reversed(started):
            end_process(node.pid, START_S)
