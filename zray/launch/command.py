"""The commands that start clusters elsewhere: up, down, slurm, kubernetes; and
wait-for-nodes, which they need.

Like all of ``zray.cli``, each imports what it needs when it runs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add_commands(commands: Any) -> None:
    """Add the subcommands to a parser."""
    starting = commands.add_parser("up", help="start a cluster on the hosts that a file names, over ssh")
    starting.add_argument("file", metavar="CLUSTER.toml", help="see docs/launching.md")
    starting.set_defaults(function=_up)
    ending = commands.add_parser("down", help="end the cluster that zray up started")
    ending.add_argument("file", metavar="CLUSTER.toml")
    ending.set_defaults(function=_down)
    waiting = commands.add_parser("wait-for-nodes", help="wait until a cluster has so many nodes")
    waiting.add_argument("count", type=_whole, help="0 waits for the control store alone")
    waiting.add_argument("--address", required=True, metavar="HOST:PORT", help="of the control store")
    waiting.add_argument("--key-file", metavar="FILE", help="key of the cluster (default: $ZRAY_KEY_FILE)")
    waiting.add_argument("--timeout", type=float, default=60.0, metavar="S", help="default: 60")
    waiting.set_defaults(function=_wait_for_nodes)
    batch = commands.add_parser(
        "slurm", help="print a batch script for Slurm", usage="zray slurm [OPTIONS] -- SCRIPT [ARGUMENT ...]"
    )
    _add_slurm_arguments(batch)
    batch.set_defaults(function=_slurm)
    manifests = commands.add_parser("kubernetes", help="print manifests for Kubernetes")
    _add_kubernetes_arguments(manifests)
    manifests.set_defaults(function=_kubernetes)


def _up(given: argparse.Namespace) -> int:
    from zray.launch.cluster_file import load
    from zray.launch.up import up

    cluster = load(given.file)
    head = up(cluster, _say)
    entry = cluster.hosts[0]
    login = f"{entry.user}@{entry.host}" if entry.user else entry.host
    script = f"{entry.python} -m zray.cli run --address {head.address} SCRIPT"
    nodes = f"{len(cluster.hosts)} node{'s' if cluster.nodes else ''}"
    _say(f"cluster {cluster.name} is up with {nodes}")
    _say(f"  run a script in it     ssh {login} {script}")
    _say(f"  join it from Python    zray.init(address={head.control_store[0]!r}) on one of its hosts,")
    _say(f"                         with ZRAY_KEY_FILE={head.key_file}")
    _say(f"  end it                 zray down {given.file}")
    return 0


def _down(given: argparse.Namespace) -> int:
    from zray.launch.cluster_file import load
    from zray.launch.up import down

    cluster = load(given.file)
    down(cluster, _say)
    return 0


# --- wait-for-nodes ------------------------------------------------------------------------------


def _wait_for_nodes(given: argparse.Namespace) -> int:
    from zray.launch.attendance import use_key, wait_for_nodes
    from zray.runtime.endpoints import endpoint_of

    use_key(given.key_file)
    hosts = wait_for_nodes(endpoint_of(given.address), given.count, given.timeout)
    _say(f"{len(hosts)} nodes: {', '.join(sorted(hosts)) or 'none'}")
    return 0


# --- slurm ---------------------------------------------------------------------------------------


def _add_slurm_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", type=_positive, required=True, metavar="N")
    add("--cpus", type=_positive, required=True, metavar="C", help="of each node")
    add("--gpus", type=_whole, default=0, metavar="G", help="of each node")
    add("--mem", dest="memory", metavar="SIZE", help="of each node, such as 8G")
    add("--time", help="limit, as sbatch takes it")
    add("--partition")
    add("--account")
    add("--job-name", dest="name", default="zray", metavar="NAME")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="another one: --sbatch=--qos=high")
    add("--setup", action="append", default=[], metavar="LINE", help="of shell, run on each node first")
    add("--python", default="python3", metavar="COMMAND", help="with zray installed (default: python3)")
    add("--port", type=_positive, metavar="P", help="of the control store (default: from the job's number)")
    add("--timeout", dest="timeout_s", type=float, default=120.0, metavar="S", help="for nodes to join")
    add("script", nargs="+", metavar="SCRIPT", help="the program, and its arguments")


def _slurm(given: argparse.Namespace) -> int:
    from zray.launch.slurm import SlurmJob, batch_script

    fields = {name: getattr(given, name) for name in SlurmJob._fields}
    for name in ("script", "sbatch", "setup"):
        fields[name] = tuple(fields[name])
    print(batch_script(SlurmJob(**fields)), end="")
    return 0


# --- kubernetes ----------------------------------------------------------------------------------


def _add_kubernetes_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", default="zray", help="of the cluster, and in the names of its objects (default: zray)")
    add("--image", required=True, help="of containers: with zray, and all that tasks import")
    add("--nodes", type=_positive, default=2, metavar="N", help="besides the head (default: 2)")
    add("--daemon-set", action="store_true", help="one node on each machine, and not N")
    add("--cpus", type=_positive, default=1, metavar="C", help="of each node (default: 1)")
    add("--memory", default="2G", metavar="SIZE", help="of each node, its object store too (default: 2G)")
    add("--gpus", type=_whole, default=0, metavar="G", help="of each node (default: 0)")
    add("--head-cpus", type=_whole, default=0, metavar="C", help="that tasks may use there (default: 0)")
    add("--head-memory", default="2G", metavar="SIZE", help="default: 2G")
    add("--shards", type=_positive, default=1, metavar="S", help="of the control store (default: 1)")
    add("--gcs-memory", default="1G", metavar="SIZE", help="of each shard (default: 1G)")
    add("--gcs-storage", default="2G", metavar="SIZE", help="for the log of each shard (default: 2G)")
    add("--storage-class", metavar="NAME", help="of these volumes (default: that of the site)")
    add("--spill", default="10G", metavar="SIZE", help="of disk for each node (default: 10G)")
    add("--namespace", metavar="NAME")
    add("--key-file", metavar="FILE", help="key of the cluster, made if it is missing (default: ./NAME.key)")
    add("--no-secret", action="store_true", help="leave the secret NAME-key out; it needs cluster.key")


def _kubernetes(given: argparse.Namespace) -> int:
    import json
    import os

    from zray.launch.kubernetes import KubernetesCluster, check_names, cluster_id_of, manifests
    from zray.runtime import cluster_key

    check_names(given.name, given.image)
    path = os.path.abspath(given.key_file or f"{given.name}.key")
    public = cluster_key.ensure(path).public
    with open(path, "rb") as file:
        key = None if given.no_secret else file.read()
    names = [name for name in KubernetesCluster._fields if name not in ("key", "cluster_id")]
    fields = {name: getattr(given, name) for name in names}
    cluster = KubernetesCluster(**fields, key=key, cluster_id=cluster_id_of(public))
    print(json.dumps(manifests(cluster), indent=2))
    return 0


# --- what all of them share ----------------------------------------------------------------------


def _whole(text: str, least: int = 0) -> int:
    import argparse

    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _say(text: str) -> None:
    print(text, flush=True)
