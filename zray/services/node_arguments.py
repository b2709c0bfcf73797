"""The command line of a node, for ``zray-node`` and ``zray start``."""

from __future__ import annotations

import argparse
import json
import os
import re

from zray.runtime import session_dir
from zray.runtime.endpoints import (
    beside,
    endpoint_of,
    free_ports,
    own_host_towards,
    ports_from,
    require_free,
)
from zray.runtime.node_options import CLUSTER_NAME, NodeOptions


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """What both commands take."""
    add = parser.add_argument
    add("--num-cpus", type=float, metavar="N", help="default: the CPUs this process may use")
    add("--num-gpus", type=float, default=0, metavar="N", help="default: 0")
    add(
        "--resources", type=_resources, default={}, metavar="JSON",
        help='custom resources, amounts by name, such as \'{"disk": 2}\'',
    )  # fmt: skip
    add(
        "--labels", type=_labels, default={}, metavar="NAME=VALUE,...",
        help="labels by which tasks can choose the node, such as zone=a,disk=ssd; also as a JSON object",
    )  # fmt: skip
    add(
        "--object-store-memory", type=_positive, metavar="BYTES",
        help="size of the object store (default: 30%% of the memory)",
    )  # fmt: skip
    add(
        "--gcs-shards", type=_positive, default=1, metavar="N",
        help="shards of the control store of a new cluster (default: 1)",
    )  # fmt: skip
    add(
        "--gcs-replicas", type=_positive, default=1, metavar="R",
        help="processes of each of these shards; with 2 or more any one of them may die (default: 1)",
    )  # fmt: skip
    add(
        "--global-schedulers", type=_positive, metavar="G",
        help="shards of these, from the first on, with a global scheduler; if the process of one dies, nodes "
        "go on with another (default: $ZRAY_GLOBAL_SCHEDULERS, or 2, and at most one for each shard)",
    )  # fmt: skip
    add(
        "--gcs-memory-max", type=_positive, metavar="BYTES",
        help="of task rows that a shard keeps in memory, the others are on disk "
        "(default: $ZRAY_GCS_MEMORY_MAX, or no limit)",
    )  # fmt: skip
    add(
        "--trace", type=os.path.abspath, metavar="FILE",
        help="record what the node decides, for zray sim replay and whatif; its shards write FILE.gcs0 ...",
    )  # fmt: skip


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``zray start``: how nodes of other machines reach this one."""
    add = parser.add_argument
    add(
        "--port", type=_port, metavar="P",
        help="with --head: let nodes join at this tcp port, and the next ones if the control store has "
        "several processes (default: only nodes of this machine can)",
    )  # fmt: skip
    add(
        "--node-ip-address", metavar="HOST",
        help="where other nodes reach this machine (default: 127.0.0.1, or what leads to --address)",
    )  # fmt: skip
    add(
        "--node-port", type=_port, metavar="P",
        help="tcp port for control messages of other nodes, the next one is for bulk (default: any free)",
    )  # fmt: skip
    add(
        "--key-file", type=os.path.abspath, metavar="FILE",
        help="key of the cluster; --head makes it if it is missing (default: $ZRAY_KEY_FILE, or of --head "
        "with --port: cluster.key in the directory of sessions)",
    )  # fmt: skip


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``zray start``: for whoever starts nodes by a program."""
    add = parser.add_argument
    add(
        "--cluster", type=cluster_name, metavar="NAME",
        help="name of the cluster on this machine, for zray stop --cluster",
    )  # fmt: skip
    add("--json", action="store_true", help="say what was started as one line of JSON")
    add(
        "--block", action="store_true",
        help="stay until the node ends, write its output here, and end it with this command",
    )  # fmt: skip


def with_network(given: argparse.Namespace, options: NodeOptions) -> NodeOptions:
    """Add where the node listens for nodes of other machines, if it does; sets ``ZRAY_KEY_FILE`` for it.

    Raises:
        OSError, ValueError: if there is no way to the control store, a port is taken or beyond all ports, or
            the key is of no use.
    """
    key_file = given.key_file or os.environ.get("ZRAY_KEY_FILE")
    if given.head:
        if given.port is None:
            return options
        host = given.node_ip_address or "127.0.0.1"
        options.gcs_listen = f"tcp://{host}:{given.port}"
        for chain in ports_from(options.gcs_listen, options.gcs_shards, options.gcs_replicas):
            for endpoint in chain.split(","):
                join = f"if that is the control store you mean, join it: zray start --address {endpoint}"
                require_free(endpoint, f"{join}; or give another --port")
        key_file = key_file or _default_key_file()
    elif options.gcs and options.gcs[0].startswith("tcp://"):
        host = given.node_ip_address or own_host_towards(options.gcs[0].split(",")[0])
    else:
        return options
    options.listen = f"tcp://{host}:{given.node_port or free_ports(host.strip('[]'))}"
    for endpoint in (options.listen, beside(options.listen)):
        require_free(endpoint, "give another --node-port, or none")
    if key_file:
        _use_key(key_file, may_make=given.head)
    return options


def _default_key_file() -> str:
    return os.path.join(session_dir.base_dir(), "cluster.key")


def _use_key(path: str, *, may_make: bool) -> None:
    from zray.runtime import cluster_key

    (cluster_key.ensure if may_make else cluster_key.load)(path)
    os.environ["ZRAY_KEY_FILE"] = path  # of the node, which inherits it


def add_gcs_argument(parser: argparse._ActionsContainer, flag: str) -> None:
    """Where the control store of a running cluster is."""
    parser.add_argument(
        flag, dest="gcs", action="append", type=_endpoint, metavar="ENDPOINT",
        help="join the cluster of this zray-gcs (HOST:PORT, tcp://HOST:PORT or ipc://PATH); once for each "
        "shard, shard 0 first; replicas of one shard with commas between them",
    )  # fmt: skip


def options_of(
    parser: argparse.ArgumentParser, given: argparse.Namespace, *, log_level: str, detached: bool = False
) -> NodeOptions:
    """The options that were given; what makes no sense ends the program with code 2."""
    options = NodeOptions(
        num_cpus=given.num_cpus,
        num_gpus=given.num_gpus,
        resources=given.resources,
        labels=given.labels,
        object_store_memory=given.object_store_memory,
        gcs_shards=given.gcs_shards,
        gcs_replicas=given.gcs_replicas,
        global_schedulers=given.global_schedulers,
        gcs_memory_max=given.gcs_memory_max,
        gcs=tuple(given.gcs or ()),
        detached=detached,
        log_level=log_level,
        trace=given.trace,
    )
    if (given.global_schedulers or 1) > given.gcs_shards:
        parser.error(f"{given.global_schedulers} global schedulers need as many shards: give --gcs-shards")
    try:
        options.total()
        options.wire_labels()
    except (TypeError, ValueError, OverflowError) as error:
        parser.error(str(error))
    return options


def cluster_name(text: str) -> str:
    """A name that can be part of file names and of names in Slurm and Kubernetes."""
    if not re.fullmatch(CLUSTER_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of 1 to 40 letters a-z, digits and hyphens")
    return text


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object of amounts by name: {error}") from None
    if not isinstance(found, dict) or not all(type(amount) in (int, float) for amount in found.values()):
        raise argparse.ArgumentTypeError(f"not a JSON object of amounts by name: {text}")
    for reserved, flag in (("CPU", "--num-cpus"), ("GPU", "--num-gpus")):
        if reserved in found:
            raise argparse.ArgumentTypeError(f"give {reserved} as {flag}")
    return found


def _labels(text: str) -> dict[str, str]:
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"not a JSON object of labels: {error}") from None
        return dict(found)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise argparse.ArgumentTypeError(f"labels are NAME=VALUE with commas between them, not {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _endpoint(text: str) -> str:
    try:
        return ",".join(endpoint_of(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    port = _positive(text)
    if port >= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not a port below 65535")
    return port


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
