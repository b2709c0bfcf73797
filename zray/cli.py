"""The command ``zray``: run a script, start and stop a cluster on this machine, look at one.

Every subcommand imports what it needs when it runs, so ``zray --help`` costs no more than the interpreter.
Exit codes: 0, or that of the script; 1 for what failed; 2 for a command line that makes no sense.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from zray.cli_doctor import add_command as add_doctor_command
from zray.cli_state import add_commands
from zray.launch.command import add_commands as add_launch_commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from zray.runtime.node_options import NodeOptions
    from zray.runtime.session_dir import Session
    from zray.runtime.spawning import Spawned

START_MARGIN_S = 10.0
"""How much longer ``zray start`` waits for a node than the node does for its control store."""
POLL_INTERVAL_S = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _perform(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes it once more
        return 1
    except Exception as error:
        if _is_expected(error):
            print(f"zray: {_text_of(error)}", file=sys.stderr)
            return 1
        raise


def _perform(arguments: list[str]) -> int:
    """Do what a command line says; the exit code."""
    if arguments[:1] == ["sim"]:
        from sim.command import main as simulate

        return simulate(arguments[1:])
    if arguments[:1] == ["paper"]:
        return _paper(arguments[1:])
    arguments, script_arguments = _split_run(arguments)
    parser = _parser(wants_start=arguments[:1] == ["start"])
    given, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse would show the usage of all commands, and not the options of this one
        given.subparser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if given.command == "run":
        return _run(given.script, script_arguments, given.address)
    code: int = given.function(given)
    return code


def _is_expected(error: Exception) -> bool:
    from zray.errors import ZrayError

    return isinstance(error, ZrayError | OSError | ValueError)


def _text_of(error: Exception) -> str:
    """Of a file that cannot be used: its name and the reason, without the number."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parser(*, wants_start: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zray", description="Run Python tasks and actors on every core.")
    parser.add_argument("--version", action="version", version=_version_text())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a Python script as a driver", usage=_RUN_USAGE)
    run.add_argument("--address", help="what zray.init() joins in the script (default: $ZRAY_ADDRESS)")
    run.add_argument("script", metavar="SCRIPT", help="a file, as python takes it")

    start = commands.add_parser("start", help="start a node that outlives this command")
    start.set_defaults(function=_start)
    if wants_start:  # it costs an import, and only this command shows or reads them
        _add_start_arguments(start)

    stop = commands.add_parser("stop", help="end the clusters of this user on this machine")
    stop.add_argument("--address", help="only the one whose node is there")
    stop.add_argument("--cluster", metavar="NAME", help="only nodes that were started with that name")
    stop.set_defaults(function=_stop)

    status = commands.add_parser("status", help="show what a running cluster has and does")
    status.add_argument("--address", help="of which cluster (default: $ZRAY_ADDRESS, or the newest one)")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(function=_status)

    add_commands(commands)
    add_doctor_command(commands)
    add_launch_commands(commands)
    commands.add_parser("sim", help="run zray's state machines in virtual time", add_help=False)
    commands.add_parser("paper", help="run the paper's experiments (in a clone)", add_help=False)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(function=_version)
    for command in commands.choices.values():
        command.set_defaults(subparser=command)
    return parser


# --- run -----------------------------------------------------------------------------------------

_RUN_USAGE = "zray run [-h] [--address ADDRESS] SCRIPT [ARGUMENT ...]"


def _split_run(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our part of the command line, and what belongs to the script, untouched."""
    if not arguments or arguments[0] != "run":
        return arguments, []
    position = 1
    while position < len(arguments) and arguments[position].startswith("-") and arguments[position] != "-":
        position += 2 if arguments[position] == "--address" else 1
    return arguments[: position + 1], arguments[position + 1 :]


def _run(script: str, arguments: list[str], address: str | None) -> int:
    """Become the interpreter that runs the script: so all is as with python, down to signals."""
    if address is not None:
        os.environ["ZRAY_ADDRESS"] = address
    _keep_importable()
    try:
        os.execv(sys.executable, [sys.executable, script, *arguments])
    except OSError as error:
        print(f"zray: cannot run {sys.executable}: {error.strerror}", file=sys.stderr)
        return 1


def _keep_importable() -> None:
    """Let the script import this zray, if it was found only next to the command or in this directory."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.abspath(sys.path[0] or os.curdir) == home:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = home + os.pathsep + before if before else home


# --- start ---------------------------------------------------------------------------------------


def _add_start_arguments(parser: argparse.ArgumentParser) -> None:
    from zray.services.node_arguments import (
        add_gcs_argument,
        add_launch_arguments,
        add_network_arguments,
        add_node_arguments,
    )

    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--head", action="store_true", help="begin a cluster")
    add_gcs_argument(where, "--address")
    add_node_arguments(parser)
    add_network_arguments(parser)
    add_launch_arguments(parser)


def _start(given: argparse.Namespace) -> int:
    import msgspec

    from zray.config import Config
    from zray.runtime.node_options import command
    from zray.runtime.spawning import spawn
    from zray.services.node_arguments import options_of, with_network

    options = options_of(given.subparser, given, log_level="INFO", detached=not given.block)
    options.cluster = given.cluster or ""
    if given.block:
        options.parent_pid = os.getpid()
    options = with_network(given, options)
    if options.listen and options.gcs:
        _look_at_control_store(options.gcs[0])
    # The node itself waits for a control store for so long; then it has something to say.
    timeout_s = Config.from_environment().init_timeout_ns / 1e9 + START_MARGIN_S
    spawned = spawn(command(msgspec.structs.asdict(options)), timeout_s, name="the node")
    if given.json:
        print(msgspec.json.encode({**spawned.ready, "pid": spawned.pid}).decode(), flush=True)
    else:
        _explain_start(spawned, options)
    return _attend(spawned.pid) if given.block else 0


def _explain_start(spawned: Spawned, options: NodeOptions) -> None:
    """Say what was started and what can be done with it."""
    from zray.runtime.endpoints import ports_from

    address, session = spawned.ready["address"], spawned.ready["session"]
    print(f"node {spawned.ready['node_id']} runs at {address} (process {spawned.pid})")
    if options.gcs_listen:
        key_file = os.environ["ZRAY_KEY_FILE"]
        chains = ports_from(options.gcs_listen, options.gcs_shards, options.gcs_replicas)
        where = " ".join(f"--address {chain}" for chain in chains)
        print(f"  join it with a node    zray start {where} --key-file {key_file}")
    print(f"  join it from Python    zray.init(address={address!r}), or address='auto'")
    print(f"  run a script in it     zray run --address {address} SCRIPT")
    print("  look at it             zray status")
    print(f"  read its logs          {os.path.join(session, 'logs')}")
    print(f"  end it                 zray stop --address {address}", flush=True)


def _attend(pid: int) -> int:
    """Stay until the node ends, and end it with the signals that end this process; its exit code.

    As the first process of a container this one also reaps whoever lost its parent.
    """
    import signal

    def end_node(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_node)
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _look_at_control_store(endpoints: str) -> None:
    """Hear, before a node starts, whether who listens there (replicas with commas between) speaks with us.

    Raises:
        ClusterUnavailableError: if it does not, with what may be the reason. If nobody does, the node waits.
    """
    from zray.config import Config
    from zray.runtime.endpoints import listens
    from zray.runtime.joining import living_nodes

    if any(listens(endpoint) for endpoint in endpoints.split(",")):
        living_nodes(endpoints, Config.from_environment())


# --- stop ----------------------------------------------------------------------------------------


def _stop(given: argparse.Namespace) -> int:
    from zray.config import Config
    from zray.runtime import session_dir

    # A node gives its workers, its disk and its shards so long each, one after another.
    timeout_s = 3 * Config.from_environment().shutdown_timeout_ns / 1e9
    sessions = session_dir.list_live()
    if given.address is not None:
        sessions = [session for session in sessions if session.info.address == given.address]
        if not sessions:
            print(f"zray: no cluster of this user has a node at {given.address}", file=sys.stderr)
            return 1
    if given.cluster is not None:
        sessions = [session for session in sessions if session.info.cluster == given.cluster]
    if not sessions:
        which = f"cluster {given.cluster}" if given.cluster else "cluster"
        print(f"no {which} of this user runs on this machine")
    for session in sessions:
        _ask_to_end(session)
    for session in sessions:
        print(_await_end(session, timeout_s), flush=True)
    session_dir.sweep()
    return 0


def _ask_to_end(session: Session) -> None:
    import signal

    from zray.runtime.processes import signal_process

    signal_process(session.info.processes[0], signal.SIGTERM)


def _await_end(session: Session, timeout_s: float) -> str:
    """Wait until every process of the session is gone, and kill what is not in time; a sentence about it."""
    import signal

    from zray.runtime import session_dir
    from zray.runtime.processes import signal_process

    name = f"the node at {session.info.address or session.path} (process {session.info.processes[0].pid})"
    if _is_over(session, timeout_s):
        return f"ended {name}"
    with contextlib.suppress(OSError, ValueError):  # a shard that was started since then is in it
        session = session_dir.load(session.path)
    for process in session.info.processes:
        signal_process(process, signal.SIGKILL)
    _is_over(session, timeout_s)
    session_dir.remove(session.path)
    return f"killed {name}, which did not end within {timeout_s:g} s"


def _is_over(session: Session, timeout_s: float) -> bool:
    """Whether all its processes are gone, after at most ``timeout_s``."""
    import time

    from zray.runtime import session_dir

    deadline = time.monotonic() + timeout_s
    while any(session_dir.is_alive(process) for process in session.info.processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


# --- status --------------------------------------------------------------------------------------


def _status(given: argparse.Namespace) -> int:
    import zray
    from zray.api.cluster import report

    with zray.init(address=given.address or os.environ.get("ZRAY_ADDRESS") or "auto"):
        found = {what: report(what) for what in ("node", "workers", "tasks", "actors")}
        listed = report("nodes")
        found["others"] = listed.get("nodes", [])
    if given.json:
        import json

        print(json.dumps(found, indent=2))
    else:
        others = found.pop("others")
        problem = listed.get("unavailable", "")
        print("\n".join([*_status_lines(**found), *_cluster_lines(found["node"], others, problem)]))
    return 0


def _status_lines(
    node: dict[str, Any],
    workers: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    actors: list[dict[str, Any]],
) -> list[str]:
    store, counts = node["store"], node["tasks"]
    states = _count(row["state"] for row in tasks)
    return [
        f"node {node['node_id']} on {node['host']}, process {node['pid']}, at {node['endpoint']}",
        f"  resources  {_free_text(node['available'], node['total'])}",
        f"  store      {_size(store['used_bytes'])} of {_size(store['capacity_bytes'])} used, "
        f"{_size(store['spilled_bytes'])} on disk, {store['objects']} objects",
        f"  tasks      {counts['unfinished']} unfinished{states}, {counts['finished']} finished, "
        f"{counts['retried']} run again",
        f"  workers    {len(workers)}{_count(row['state'] for row in workers)}",
        f"  actors     {len(actors)}{_count(row['state'] for row in actors)}",
    ]


def _cluster_lines(node: dict[str, Any], others: list[dict[str, Any]], problem: str) -> list[str]:
    """The other nodes, if there are any; or why they are not known."""
    if problem:
        return [f"other nodes are not shown: {problem}"]
    if not others:
        return []
    living = [node, *(other for other in others if other["alive"])]
    dead = len(others) + 1 - len(living)
    free = {name: sum(each["available"].get(name, 0) for each in living) for name in _names(living)}
    total = {name: sum(each["total"].get(name, 0) for each in living) for name in free}
    lines = [f"cluster of {len(living)} nodes, {dead} dead: {_free_text(free, total)}"]
    for other in others:
        what = _free_text(other["available"], other["total"]) if other["alive"] else "dead"
        labels = "".join(f", {name}={value}" for name, value in other["labels"].items())
        lines.append(f"  node {other['node_id']} on {other['host']}, process {other['pid']}: {what}{labels}")
    return lines


def _names(nodes: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for node in nodes for name in node["total"]))


def _free_text(free: dict[str, float], total: dict[str, float]) -> str:
    names = [name for name in total if name != "memory"]
    text = ", ".join(f"{free.get(name, 0):g} of {total[name]:g} {name}" for name in names)
    return f"{text or 'nothing'} free"


def _count(states: Any) -> str:
    """Such as `` (2 running, 1 ready)``; empty for nothing."""
    counts: dict[str, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    return f" ({', '.join(f'{number} {state}' for state, number in counts.items())})" if counts else ""


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} GiB"


# --- paper ---------------------------------------------------------------------------------------


def _paper(arguments: list[str]) -> int:
    """The experiments lie beside the package in a clone, and are not part of what is installed."""
    from importlib import import_module

    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.isdir(os.path.join(home, "paper_experiments")):
        where = "they come with a clone of the project: run python -m paper_experiments there"
        print(f"zray: the paper's experiments are not in the installed package; {where}", file=sys.stderr)
        return 2
    if home not in sys.path:
        sys.path.insert(0, home)
    code: int = import_module("paper_experiments.command").main(arguments)
    return code


# --- version -------------------------------------------------------------------------------------


def _version_text() -> str:
    from zray._version import __version__

    return f"zray {__version__}"


def _version(given: argparse.Namespace) -> int:
    print(_version_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
