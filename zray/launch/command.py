"""The commands that start clusters elsewhere: up, down, slurm; and wait-for-nodes, which they need.

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
    waiting.add_argument("count", type=int, help="0 waits for the control store alone")
    waiting.add_argument("--address", required=True, metavar="HOST:PORT", help="of the control store")
    waiting.add_argument("--key-file", metavar="FILE", help="key of the cluster (default: $ZRAY_KEY_FILE)")
    waiting.add_argument("--timeout", type=float, default=60.0, metavar="S", help="default: 60")
    waiting.set_defaults(function=_wait_for_nodes)
    batch = commands.add_parser(
        "slurm", help="print a batch script for Slurm", usage="zray slurm [OPTIONS] -- SCRIPT [ARGUMENT ...]"
    )
    _add_slurm_arguments(batch)
    batch.set_defaults(function=_slurm)


def _up(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
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
    _say(f"  join it from Python    zray.init(address={head.control_store!r}) on one of its hosts,")
    _say(f"                         with ZRAY_KEY_FILE={head.key_file}")
    _say(f"  end it                 zray down {given.file}")
    return 0


def _down(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from zray.launch.cluster_file import load
    from zray.launch.up import down

    cluster = load(given.file)
    down(cluster, _say)
    return 0


# --- wait-for-nodes ------------------------------------------------------------------------------


def _wait_for_nodes(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
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
    add("--gpus", type=int, default=0, metavar="G", help="of each node")
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


def _slurm(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from zray.launch.slurm import SlurmJob, batch_script

    fields = {name: getattr(given, name) for name in SlurmJob._fields}
    for name in ("script", "sbatch", "setup"):
        fields[name] = tuple(fields[name])
    print(batch_script(SlurmJob(**fields)), end="")
    return 0


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def _say(text: str) -> None:
    print(text, flush=True)
