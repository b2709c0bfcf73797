"""The one connection of this process: ``init``, ``shutdown``, and who holds it.

A driver makes it with ``init``, or implicitly with the first call that needs it. A worker is given one before
it runs any user code.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from zray.api import waiting
from zray.config import Config
from zray.errors import ClusterUnavailableError, LocalProtocolError, NotInitializedError
from zray.runtime import own_client, visible_gpus
from zray.runtime.environment import canonical

if TYPE_CHECKING:  # imported while the node starts
    from zray.runtime.client import Client

NODE_ALIAS = b"node"
"""What every client calls its node on its own socket."""

_lock = threading.RLock()
_context: Context | None = None
_ending = False
"""The interpreter ends: its exit handlers run."""


class Context:
    """What ``init`` returns; usable in ``with``, which shuts down at the end.

    Attributes:
        address: str, where other drivers can join with ``init(address=...)``.
        node_id: str, hex.
        pid: int | None, the node's process if this driver started it.
    """

    def __init__(self, address: str, node_id: str, pid: int | None) -> None:
        self.address = address
        self.node_id = node_id
        self.pid = pid

    @property
    def address_info(self) -> dict[str, Any]:
        """The same as a dict, with Ray's keys."""
        return {
            "address": self.address,
            "gcs_address": self.address,
            "node_id": self.node_id,
            "node_ip_address": "127.0.0.1",
            "webui_url": "",
        }

    @property
    def dashboard_url(self) -> str:
        """Empty: there is no dashboard."""
        return ""

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def disconnect(self) -> None:
        """The same as ``zray.shutdown()``."""
        shutdown()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"Context(address={self.address!r})"


def current() -> Client:
    """The connection of this process; a driver without one starts a local cluster first.

    Raises:
        NotInitializedError: in a process that was forked from one with a connection, and in a thread that is
            left when the program ends.
        LocalProtocolError: inside a call of zray, which only a destructor or a signal handler can be.
    """
    client = own_client.get()
    if client is not None:
        if client.is_inside():
            raise _inside_error()
        return client
    if own_client.was_forked():
        raise NotInitializedError(
            "this process was forked from one that uses zray; call zray.init(address=...) in it first"
        )
    if _ending and threading.current_thread() is not threading.main_thread():
        raise NotInitializedError("the program ends and zray was shut down; no cluster starts for a thread")
    init()
    client = own_client.get()
    assert client is not None
    return client


def current_address() -> str:
    """Where other drivers can join; empty in a worker."""
    current()
    return "" if _context is None else _context.address


def _inside_error() -> LocalProtocolError:
    return LocalProtocolError(
        "zray was called by a destructor (__del__) or a signal handler in the midst of another call of zray; "
        "leave such calls to a method that you call yourself, or to a thread"
    )


def is_connected_to(addresses: Collection[str]) -> bool:
    """Whether this process is a driver of a node at one of these addresses."""
    return own_client.get() is not None and _context is not None and _context.address in addresses


def is_initialized() -> bool:
    """Whether this process has a connection."""
    return own_client.get() is not None


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    labels: Mapping[str, str] | None = None,
    gcs_shards: int | None = None,
    gcs_replicas: int | None = None,
    gcs_memory_max: int | None = None,
    trace: str | os.PathLike[str] | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    log_to_driver: bool | None = True,
    include_dashboard: bool | None = None,
    configure_logging: bool = True,
    logging_level: int | str | None = None,
    **refused: Any,
) -> Context:
    """Connect this process to a cluster, or start one on this machine.

    Args:
        address: ``None`` starts a cluster of one node, unless ``ZRAY_ADDRESS`` is set; ``"local"`` always
            starts one; ``"auto"`` joins the newest cluster of this user on this machine; otherwise the
            address of a node of this machine, as ``init`` or ``zray start`` gave it, or of the control
            store (``"host:port"``) of a cluster that has a node on this machine.
        num_cpus, num_gpus: of the new node; default: the CPUs this process may use, and no GPU.
        resources: custom resources of the new node, amounts by name.
        object_store_memory: bytes of the new node's object store; default: 30 % of the memory.
        labels: of the new node: by them tasks can choose it (``label_selector``).
        gcs_shards: shards of the control store of the new cluster; default 1.
        gcs_replicas: processes of each shard; with 2 or more any one of them may die. Default 1.
        gcs_memory_max: bytes of memory of each for lineage, the oldest is on disk. Default: no limit.
        trace: a file in which the new node records what it decides, for ``zray sim replay`` and ``whatif``;
            its control store writes ``<trace>.gcs0`` and so on, unless it is replicated.
        ignore_reinit_error: return the present context instead of refusing a second ``init``.
        namespace: where the names of this job's actors are; default: one of its own.
        runtime_env: what tasks and actors run in that ask for nothing else: ``working_dir``, ``pip``, ...
        log_to_driver: show here what workers print.
        include_dashboard: there is none: only ``True`` is refused.
        configure_logging, logging_level: the level of zray's own loggers in this process.
        refused: every other option of Ray, refused with the reason.
    Raises:
        RuntimeError: if this process is connected already.
        ClusterUnavailableError: if the cluster does not start or does not answer within its timeout.
        ValueError, TypeError: for options that make no sense.
    """
    _refuse(refused, include_dashboard)
    options = _job_options(namespace, runtime_env, log_to_driver)
    if configure_logging and logging_level is not None:
        _set_logging_level(logging_level)
    with _lock:
        if is_initialized():
            if ignore_reinit_error:
                return _context or _context_of_worker()
            raise RuntimeError("zray.init() was called twice; call zray.shutdown() first")
        address = _checked_address(address)
        started = {
            "num_cpus": num_cpus, "num_gpus": num_gpus, "resources": resources, "labels": labels,
            "object_store_memory": object_store_memory, "gcs_shards": gcs_shards, "trace": trace,
            "gcs_replicas": gcs_replicas, "gcs_memory_max": gcs_memory_max,
        }  # fmt: skip
        if address == "local":
            return _start_local(started, options)
        given = [name for name, value in started.items() if value is not None]
        if given:
            raise ValueError(f"{given[0]} belongs to the node that is joined; leave it out with address=")
        return _join(address, options)


_REFUSED = {
    "local_mode": "run a cluster of one node, which starts in a fraction of a second",
    "dashboard_host": "there is no dashboard",
    "dashboard_port": "there is no dashboard",
    "job_config": "give namespace and runtime_env as arguments",
    "logging_format": "configure the logger 'zray' with the logging module",
    "logging_config": "configure the logger 'zray' with the logging module",
    "enable_resource_isolation": "start the node inside a cgroup of your own",
    "cgroup_path": "start the node inside a cgroup of your own",
    "system_reserved_cpu": "give fewer CPUs as num_cpus",
    "system_reserved_memory": "give a smaller object_store_memory",
    "proxy_server_url": "there is no dashboard",
    "storage": "there are no workflows",
    "allow_multiple": "a process has one connection",
    "redis_address": "give the address of a cluster as address",
    "_temp_dir": "set ZRAY_TMPDIR",
    "_system_config": "set ZRAY_... variables: `zray.config` has their names",
    "_memory": "the memory of a node is what its machine has",
    "_node_ip_address": "`zray start --node-ip-address` starts a node at an address",
    "_node_name": "give the node labels",
    "_metrics_export_port": "`zray metrics` prints what Prometheus reads",
    "_redis_password": "a cluster has a key: `zray start --key-file`",
    "_redis_username": "a cluster has a key: `zray start --key-file`",
    "_tracing_startup_hook": "zray.timeline() shows what ran where",
}


def _context_of_worker() -> Context:
    """Of a worker, which is connected before any code of a user runs, and is no address to join at."""
    from zray.api.context import get_runtime_context

    return Context("", get_runtime_context().get_node_id(), None)


def _refuse(refused: Mapping[str, Any], include_dashboard: bool | None) -> None:
    for name in refused:
        if name not in _REFUSED:
            code = init.__code__  # looked at without inspect, which costs an import
            named = ", ".join(sorted(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]))
            raise TypeError(f"zray.init() has no option {name!r}; there are: {named}")
        raise ValueError(f"zray.init() refuses {name!r}: {_REFUSED[name]}")
    if include_dashboard:
        raise ValueError(
            "zray.init() refuses include_dashboard=True: there is no dashboard; see `zray status`"
        )


def _job_options(
    namespace: str | None, runtime_env: Mapping[str, Any] | None, log_to_driver: bool | None
) -> tuple[str, str, bool]:
    """The fields of ``JobOptions``, checked before anything starts."""
    if namespace is not None and (not isinstance(namespace, str) or not namespace or "\0" in namespace):
        raise ValueError(f"a namespace is a string that is not empty, not {namespace!r}")
    shows_output = log_to_driver is None or bool(log_to_driver)
    return namespace or os.urandom(16).hex(), canonical(runtime_env), shows_output


def _checked_address(address: str | None) -> str:
    if address is None:
        address = os.environ.get("ZRAY_ADDRESS") or "local"
    if not isinstance(address, str):
        raise TypeError(f"address is a string, not {address!r}")
    if address.startswith("ray://"):
        raise ValueError(
            "zray has no clients (ray://): a driver needs a node on its machine; run `zray start --address` "
            "there, then zray.init(address='auto')"
        )
    return address


def _set_logging_level(level: int | str) -> None:
    import logging

    logging.getLogger("zray").setLevel(level.upper() if isinstance(level, str) else level)


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """Disconnect; a cluster that ``init`` started ends with it. Without a connection it does nothing.

    Args:
        wait_for_processes, _exiting_interpreter: taken for Ray's sake; the processes are always waited for.
    """
    global _context
    with _lock:
        client, context = own_client.get(), _context
        if client is None or own_client.in_worker():
            return
        if client.is_inside():
            raise _inside_error()
        from zray.api.abandoned import tell

        tell(client)
        own_client.use(None)
        _context = None
        client.close()
        client.show_output()
        from zray.runtime.printing import finish

        finish()
        if context is not None and context.pid is not None:
            from zray.runtime.processes import end_process

            end_process(context.pid, client.config.shutdown_timeout_ns / 1e9)
    # Without the lock: a callback of a future may use zray again.
    waiting.end_futures(client.config.shutdown_timeout_ns / 1e9)


def _start_local(started: dict[str, Any], job: tuple[str, str, bool]) -> Context:
    options = node_options_of(**started)
    config = Config.from_environment()
    import json

    from zray.runtime.spawning import Spawning, python_command

    document = json.dumps({**options, "parent_pid": os.getpid()})
    spawning = Spawning(python_command("zray.services.node", "--options", document), name="the node")
    try:
        # The node starts meanwhile, on another core: what the first task needs is imported now.
        import zray.api.objects
        import zray.api.remote  # noqa: F401
        from zray.runtime.processes import end_process
    except BaseException:
        spawning.give_up()
        raise
    spawned = spawning.wait(config.init_timeout_ns / 1e9)
    ready = spawned.ready
    try:
        return _connect(ready["address"], ready["node_id"], spawned.pid, spawned.pid, config, job)
    except BaseException:
        end_process(spawned.pid, config.shutdown_timeout_ns / 1e9)
        raise


def node_options_of(
    num_cpus: float | None,
    num_gpus: float | None,
    resources: Mapping[str, float] | None,
    object_store_memory: int | None,
    gcs_shards: int | None = None,
    gcs_replicas: int | None = None,
    trace: str | os.PathLike[str] | None = None,
    labels: Mapping[str, str] | None = None,
    gcs_memory_max: int | None = None,
) -> dict[str, Any]:
    """Checked here, so that a mistake is a Python error and not a node that does not start."""
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is a number, not {value!r}")
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is not negative, and finite: {value}")
    named = visible_gpus.names_in(os.environ.get(visible_gpus.VARIABLE))
    if named and num_gpus is not None and num_gpus > len(named):
        raise ValueError(
            f"num_gpus={num_gpus}, but {visible_gpus.VARIABLE} names {len(named)}: {', '.join(named)}"
        )
    if resources is not None:
        if not isinstance(resources, Mapping):
            raise TypeError(f"resources is a dict of amounts by name, not {resources!r}")
        if "CPU" in resources or "GPU" in resources:
            raise ValueError("give CPUs and GPUs as num_cpus and num_gpus, not inside resources")
        from zray.core.resources import demand_from

        demand_from(resources)
    if labels is not None:
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels is a dict of strings by name, not {labels!r}")
        from zray.core.labels import labels_from

        labels_from(labels)
    whole = {
        "object_store_memory": object_store_memory, "gcs_shards": gcs_shards, "gcs_replicas": gcs_replicas,
        "gcs_memory_max": gcs_memory_max,
    }  # fmt: skip
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a whole number, not {value!r}")
        if value is not None and not 1 <= value <= sys.maxsize:
            raise ValueError(f"{name} is between 1 and {sys.maxsize}, not {value}")
    return {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus or 0,
        "resources": dict(resources or {}),
        "labels": dict(labels or {}),
        "object_store_memory": object_store_memory,
        "gcs_shards": gcs_shards or 1,
        "trace": None if trace is None else os.path.abspath(os.fsdecode(trace)),
        "gcs_replicas": gcs_replicas or 1,
        "gcs_memory_max": gcs_memory_max,
    }


def _join(address: str, job: tuple[str, str, bool]) -> Context:
    from zray.runtime import session_dir

    config = Config.from_environment()
    if address == "auto":
        session = session_dir.latest()
        if session is None:
            what = "no cluster of this user runs on this machine (address='auto')"
            raise ClusterUnavailableError(f"{what}; `zray start --head` begins one", 0.0)
        return _connect(session.info.address, "", None, session.info.processes[0].pid, config, job)
    from zray.runtime.endpoints import endpoint_of, knock, local_part, why

    endpoint = endpoint_of(address)
    started = time.monotonic()
    try:
        pid = knock(endpoint)
    except OSError as error:
        waited_s = time.monotonic() - started
        what = (
            f"nothing listens at {endpoint}: {why(error)}; `zray start` says where a cluster is to be joined"
        )
        raise ClusterUnavailableError(what, waited_s) from None
    for session in session_dir.list_live():
        if session.info.address == endpoint:
            return _connect(endpoint, "", None, session.info.processes[0].pid, config, job)
    if endpoint.startswith("ipc://") and os.path.basename(endpoint) == session_dir.NODE_SOCKET:
        return _connect(endpoint, "", None, pid, config, job)
    from zray.runtime.joining import node_of_control_store

    node = node_of_control_store(endpoint, config)
    if node is not None:
        endpoint, pid = local_part(node.endpoint), node.pid
    return _connect(endpoint, "", None, pid, config, job)


def _connect(
    address: str,
    node_id: str,
    child_pid: int | None,
    node_pid: int,
    config: Config,
    job: tuple[str, str, bool],
) -> Context:
    global _context
    from zray import ids
    from zray.api.environments import published
    from zray.protocol.messages import DRIVER, PROTOCOL_VERSION, Hello
    from zray.protocol.user_messages import JobOptions
    from zray.runtime.client import Client

    root = ids.root_task_id()
    client = Client(ids.random_id(), NODE_ALIAS, root_task=root, config=config)
    hello = Hello(
        PROTOCOL_VERSION, DRIVER, os.getpid(), root, "", tuple(map(str, sys.path)), _working_dir(),
    )  # fmt: skip
    try:
        client.watch_node(_watch_node(node_pid, address))
        welcome = client.connect(address, hello, config.init_timeout_ns / 1e9)
        namespace, environment, wants_output = job
        client.begin_job(JobOptions(namespace, published(client, environment), wants_output))
    except BaseException:
        client.close()
        raise
    own_client.use(client)
    _context = Context(address, node_id or welcome.node_id.hex(), child_pid)
    return _context


def _working_dir() -> str:
    """Where this process is; empty if somebody removed that directory."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _watch_node(pid: int, address: str) -> int:
    from zray.runtime.processes import watch_pid

    try:
        return watch_pid(pid)
    except ProcessLookupError:
        raise ClusterUnavailableError(f"the node at {address} is gone", 0.0) from None


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


def _shutdown_at_exit() -> None:
    global _ending
    _ending = True
    shutdown()


atexit.register(_shutdown_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
