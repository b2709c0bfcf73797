"""What ``zray up`` runs on each host: ``python -m zray.launch.host``, one order in, one report out.

The invariant: of one cluster at most one node runs on a host. Orders take a lock, and a node is found by the
name of its cluster in its session, which it writes itself: so an order that was cut off half-way leaves
nothing that the next one does not see. A stop may overtake the start that it takes back; so a start whose
asker is gone is not made, or unmade.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from zray.config import Config
from zray.errors import ClusterUnavailableError, ZrayError
from zray.launch.orders import ORDER_BYTES_MAX, HostOrder, HostReport, LaunchError, encode_report
from zray.runtime import cluster_key, session_dir
from zray.runtime.endpoints import local_part, ports_from
from zray.runtime.joining import living_nodes
from zray.runtime.session_dir import Session
from zray.runtime.spawning import python_command

POLL_INTERVAL_S = 0.05


def main() -> int:
    """Obey the order on standard input; the exit code says whether that worked."""
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(ORDER_BYTES_MAX), type=HostOrder)
        os.environ.update(order.environment)
        report = obey(order)
    except (ZrayError, OSError, ValueError) as error:
        report = HostReport(error=str(error))
    with contextlib.suppress(BrokenPipeError):
        print(encode_report(report), end="", flush=True)
        return 1 if report.error else 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
    return 1


def obey(order: HostOrder) -> HostReport:
    """Do what an order says.

    Raises:
        ZrayError, OSError, ValueError: if that is not possible here.
    """
    if order.action == "look":
        return HostReport(was_running=_session_of(order.cluster) is not None)
    with _only_one(order.timeout_s):
        if order.action == "stop":
            return _stop(order)
        was_running = _session_of(order.cluster) is not None
        try:
            return _start(order)
        finally:
            if not was_running and _asker_is_gone():
                _stop(order)


def _asker_is_gone() -> bool:
    """Whether nobody can hear the report any more: the other end of our output is closed."""
    poller = select.poll()
    poller.register(sys.stdout, 0)  # POLLERR and POLLHUP are always told
    return bool(poller.poll(0))


@contextlib.contextmanager
def _only_one(timeout_s: float) -> Iterator[None]:
    """Wait until no other order starts or stops nodes of this user here; for at most ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    lock = os.open(session_dir.ensure_base_dir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = "another zray up or zray down is at work on this host and does not end"
                    raise ClusterUnavailableError(what, timeout_s) from None
            time.sleep(POLL_INTERVAL_S)
        yield
    finally:
        os.close(lock)


def _session_of(cluster: str) -> Session | None:
    return next((found for found in session_dir.list_live() if found.info.cluster == cluster), None)


def _key_file(cluster: str) -> str:
    return os.path.join(session_dir.base_dir(), f"{cluster}.key")


# --- start ---------------------------------------------------------------------------------------


def _start(order: HostOrder) -> HostReport:
    deadline = time.monotonic() + order.timeout_s
    key_file = _key_file(order.cluster)
    session = _session_of(order.cluster)
    was_running = session is not None
    if _asker_is_gone():
        raise LaunchError("whoever asked for the start is gone")
    address = order.settings.address or _host_that_ssh_reached()
    control_store = order.control_store
    if order.head:
        control_store = ports_from(f"tcp://{address}:{order.port}", order.gcs_shards, order.gcs_replicas)
    if session is None:
        if not order.head:
            _write_key(key_file, order.key)
        _run_zray("start", *_arguments(order, address, key_file), timeout_s=order.timeout_s)
        session = _session_of(order.cluster)
    if session is None:
        raise LaunchError("the node ended as soon as it had started")
    config = Config.from_environment()._replace(key_file=key_file)
    node_id = _await_membership(session, control_store[0], config, deadline, order.timeout_s)
    return HostReport(
        was_running=was_running,
        node_id=node_id,
        address=session.info.address,
        control_store=control_store,
        key=_read(key_file) if order.head else "",
        key_file=key_file,
    )


def _host_that_ssh_reached() -> str:
    """Of this host, the address at which the connection of this order arrived."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    return parts[2] if len(parts) == 4 else "127.0.0.1"


def _arguments(order: HostOrder, address: str, key_file: str) -> list[str]:
    """The command line of ``zray start``."""
    settings = order.settings
    found = ["--cluster", order.cluster, "--json", "--key-file", key_file]
    if order.head:
        found += ["--head", "--port", str(order.port), "--node-ip-address", address]
        found += ["--gcs-shards", str(order.gcs_shards), "--gcs-replicas", str(order.gcs_replicas)]
    else:
        found += [word for chain in order.control_store for word in ("--address", chain)]
        found += ["--node-ip-address", settings.address] if settings.address else []
    for flag, value in (
        ("--num-cpus", settings.num_cpus),
        ("--num-gpus", settings.num_gpus),
        ("--object-store-memory", settings.object_store_memory),
        ("--node-port", settings.node_port),
    ):
        found += [flag, str(value)] if value is not None else []
    if settings.labels:
        found += ["--labels", msgspec.json.encode(settings.labels).decode()]
    if settings.resources:
        found += ["--resources", msgspec.json.encode(settings.resources).decode()]
    return found


def _write_key(path: str, key: str) -> None:
    """Put the key of the cluster where only this user can read it."""
    draft = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(key)
        cluster_key.load(draft)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _read(path: str) -> str:
    cluster_key.load(path)  # which refuses a file that others can read
    with open(path) as file:
        return file.read()


def _await_membership(
    session: Session, control_store: str, config: Config, deadline: float, timeout_s: float
) -> str:
    """The id of the node of a session, once the control store counts it among the living.

    Raises:
        LaunchError: if the node dies.
        ClusterUnavailableError: if it is not there in time, with what to do.
    """
    reason = "its control store does not count it among the living"
    while session_dir.is_alive(session.info.processes[0]):
        try:
            for node in living_nodes(control_store, config):
                if local_part(node.endpoint) == session.info.address:
                    return node.node_id.hex()
        except ClusterUnavailableError as error:
            reason = str(error)
        if _asker_is_gone():
            raise LaunchError("whoever asked for the start is gone")
        if time.monotonic() > deadline:
            what = (
                f"a node of cluster {session.info.cluster} runs and is not in the cluster at {control_store}"
            )
            raise ClusterUnavailableError(f"{what} ({reason}); zray down ends it", timeout_s)
        time.sleep(POLL_INTERVAL_S)
    raise LaunchError("the node died before it was in the cluster")


# --- stop ----------------------------------------------------------------------------------------


def _stop(order: HostOrder) -> HostReport:
    was_running = _session_of(order.cluster) is not None
    if was_running:
        _run_zray("stop", "--cluster", order.cluster, timeout_s=order.timeout_s)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_key_file(order.cluster))
    return HostReport(was_running=was_running)


def _run_zray(*arguments: str, timeout_s: float) -> None:
    """Run the command ``zray`` of this interpreter.

    Raises:
        LaunchError: if it fails, with what it said.
        ClusterUnavailableError: if it does not end.
    """
    command = python_command("zray.cli", *arguments)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterUnavailableError(f"zray {arguments[0]} does not end", timeout_s) from None
    if done.returncode:
        said = done.stderr.strip().removeprefix("zray: ")
        raise LaunchError(f"zray {arguments[0]} failed: {said}")


if __name__ == "__main__":
    sys.exit(main())
