"""The commands that look at a running cluster: list, summary, get, memory, why, logs."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

KINDS = ("tasks", "actors", "objects", "nodes", "workers", "jobs", "placement-groups")
SUMMARIES = ("tasks", "actors", "objects")
COLUMNS = {
    "nodes": ("node_id", "state", "host", "pid", "labels", "available", "total", "endpoint"),
    "placement-groups": ("placement_group_id", "name", "state", "strategy", "bundles", "waits_for"),
}
"""Of tables whose rows have more to say than fits a line."""
CELL_MAX = 48
"""Characters of one cell of a table."""


def add_commands(commands: Any) -> None:
    """Add the subcommands to a parser."""
    listing = _command(commands, "list", "list what a cluster has", _list)
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE", help="or KEY!=VALUE")
    listing.add_argument("--limit", type=int, default=100)
    listing.add_argument("--format", choices=("table", "json", "yaml"), default="table")
    summary = _command(commands, "summary", "count what a cluster has, by name and state", _summary)
    summary.add_argument("kind", choices=SUMMARIES)
    getting = _command(commands, "get", "show one of them", _get)
    getting.add_argument("kind", choices=KINDS)
    getting.add_argument("id", help="its id in hexadecimal, or the beginning of it")
    _command(commands, "memory", "show the objects of the store, the largest first", _memory)
    why = _command(commands, "why", "say what a task or actor waits for", _why)
    why.add_argument("id", help="its id in hexadecimal, or the beginning of it")
    timeline = _command(commands, "timeline", "write what ran where and when, for Perfetto", _timeline)
    timeline.add_argument("file", nargs="?", default="zray-timeline.json")
    _command(commands, "metrics", "show the metrics of all processes, as Prometheus reads them", _metrics)
    stack = _command(commands, "stack", "show where the code of every worker is just now", _stack)
    stack.add_argument(
        "--no-py-spy", action="store_true", help="ask the workers, even if py-spy is installed"
    )
    _add_logs(commands)


def _add_logs(commands: Any) -> None:
    logs = _command(commands, "logs", "show the log files of a cluster, or one of them", _logs)
    logs.add_argument("file", nargs="?", help="as listed, such as worker-3.out; with * it is what to list")
    logs.add_argument("--node-id", metavar="ID", help="of this node, in hexadecimal, or the beginning of it")
    logs.add_argument("--actor-id", metavar="ID", help="instead of FILE: what this actor prints")
    logs.add_argument("--task-id", metavar="ID", help="instead of FILE: what the worker of this task prints")
    logs.add_argument("--pid", type=int, help="instead of FILE: what this worker prints")
    logs.add_argument("--err", action="store_true", help="of a worker: what it prints to standard error")
    logs.add_argument("--tail", type=int, default=-1, metavar="N", help="only the last N lines")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as the file grows")


def _command(commands: Any, name: str, text: str, function: Any) -> Any:
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(function=function)
    parser.add_argument("--address", help="of which cluster (default: $ZRAY_ADDRESS, or the newest one)")
    return parser


@contextmanager
def _joined(given: argparse.Namespace) -> Iterator[Any]:
    """``zray.util.state`` of the cluster that is meant."""
    import zray
    from zray.util import state

    address = given.address or os.environ.get("ZRAY_ADDRESS") or "auto"
    with zray.init(address=address, log_to_driver=False):
        yield state


def _list(given: argparse.Namespace) -> int:
    filters = [_filter_of(text) for text in given.filter]
    with _joined(given) as state:
        rows = getattr(state, f"list_{given.kind.replace('-', '_')}")(filters=filters, limit=given.limit)
    if given.format == "table" and given.kind in COLUMNS:
        rows = [{key: row.get(key) for key in COLUMNS[given.kind]} for row in rows]
    if given.format == "json":
        import json

        print(json.dumps(rows, indent=2))
    elif given.format == "yaml":
        print("\n".join(_yaml_lines(rows)))
    else:
        print("\n".join(_table_lines(rows)))
    return 0


def _filter_of(text: str) -> tuple[str, str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"a filter is KEY=VALUE or KEY!=VALUE, not {text!r}")
    return (key[:-1], "!=", value) if key.endswith("!") else (key, "=", value)


def _summary(given: argparse.Namespace) -> int:
    with _joined(given) as state:
        found = getattr(state, f"summarize_{given.kind}")()
    for name, counts in found.items():
        if isinstance(counts, dict):
            counts = ", ".join(f"{number} {what}" for what, number in counts.items())
        print(f"{name}: {counts}")
    return 0


def _get(given: argparse.Namespace) -> int:
    with _joined(given) as state:
        rows = getattr(state, f"list_{given.kind.replace('-', '_')}")(limit=10_000)
        row = _one(rows, given.id, (given.kind,))
    print("\n".join(_yaml_lines([row])))
    return 0


def _one(rows: list[dict[str, Any]], an_id: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The row whose id begins like that.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [row for row in rows if str(next(iter(row.values()))).startswith(an_id)]
    what = " and ".join(kinds)
    if not found:
        listed = " and ".join(f"`zray list {kind}`" for kind in kinds)
        raise ValueError(f"no id of {len(rows)} {what} begins with {an_id}; {listed} show them")
    if len(found) > 1:
        raise ValueError(f"{len(found)} {what} have an id that begins with {an_id!r}; say more of it")
    return found[0]


def _memory(given: argparse.Namespace) -> int:
    with _joined(given) as state:
        rows = state.list_objects(limit=10_000)
    rows.sort(key=lambda row: -row["size_bytes"])
    print("\n".join(_table_lines(rows)))
    print(f"{len(rows)} objects, {sum(row['size_bytes'] for row in rows)} bytes")
    return 0


def _why(given: argparse.Namespace) -> int:
    with _joined(given) as state:
        tasks, actors = state.list_tasks(limit=10_000), state.list_actors(limit=10_000)
        workers, nodes = (
            state.list_workers(limit=10_000),
            state.list_nodes([("Alive", "=", True)], limit=10_000),
        )
    names = {row["task_id"]: row["name"] for row in tasks}
    names |= {row["actor_id"]: row["class_name"] for row in actors}
    row = _one(tasks + actors, given.id, ("tasks", "actors"))
    print("\n".join(reasons(row, nodes, workers, names)))
    return 0


def reasons(
    row: dict[str, Any], nodes: list[dict[str, Any]], workers: list[dict[str, Any]], names: dict[str, str]
) -> list[str]:
    """What one task or actor waits for: which constraint on which node, who holds that, for how long.

    Args:
        row: of the task or actor, as ``list`` shows it.
        nodes: every node, with its resources.
        workers: every worker, with what it holds.
        names: of tasks and actors by id.
    """
    task_detail = row.get("detail", "")
    lines = [f"{row.get('class_name', row['name'])} is {task_detail or row['state'].lower()}"]
    if row.get("waits_for"):
        lines.append(f"  it waits for {row['waits_for']}")
    if row.get("missing"):
        lines += [f"  it takes {object_id}, which nobody has made yet" for object_id in row["missing"]]
    if task_detail not in ("ready", "forwarded"):
        return lines
    demand = row["required_resources"]
    for name, amount in demand.items():
        most = max((node["total"].get(name, 0) for node in nodes), default=0)
        if most < amount:
            lines.append(f"  it asks for {amount:g} {name}; no node has more than {most:g}")
    for node in nodes:
        if all(node["total"].get(name, 0) >= amount for name, amount in demand.items()):
            lines += _lacking(demand, node, workers, names)
    return lines if len(lines) > 1 else [*lines, "  it waits for a worker"]


def _lacking(
    demand: dict[str, float], node: dict[str, Any], workers: list[dict[str, Any]], names: dict[str, str]
) -> list[str]:
    """What a node that could run a task lacks just now, and who has it."""
    lines = []
    for name, amount in demand.items():
        free, total = node["available"].get(name, 0), node["total"][name]
        if free >= amount:
            continue
        where = f"{node['host']} ({node['node_id'][:8]})"
        lines.append(f"  it asks for {amount:g} {name}; {free:g} of {total:g} are free on {where}")
        holders = [
            worker
            for worker in workers
            if worker["node_id"] == node["node_id"] and worker["demand"].get(name)
        ]
        lines += [f"    {_holder(worker, name, names)}" for worker in holders]
    return lines


def _holder(worker: dict[str, Any], name: str, names: dict[str, str]) -> str:
    what = worker["actor_id"] or next(iter(worker["tasks"]), "")
    known = names.get(what, "a task of a lease" if worker["state"] == "leased" else "a task that just ended")
    return (
        f"{worker['demand'][name]:g} {name} is held by {known} {what[:24]} (process {worker['pid']}) "
        f"for {worker['busy_s']:.1f} s"
    )


def _timeline(given: argparse.Namespace) -> int:
    import zray

    with _joined(given):
        zray.timeline(given.file)
    print(f"wrote {given.file}; open it with https://ui.perfetto.dev or chrome://tracing")
    return 0


def _metrics(given: argparse.Namespace) -> int:
    with _joined(given) as state:
        print(state.metrics_text(), end="")
    return 0


def _stack(given: argparse.Namespace) -> int:
    """Where all workers are. On this machine py-spy, if it is there, also sees those that cannot answer."""
    import shutil

    py_spy = None if given.no_py_spy else shutil.which("py-spy")
    with _joined(given) as state:
        spied: list[dict[str, Any]] = []
        if py_spy is not None:
            here = {row["node_id"] for row in state.list_nodes(limit=10_000) if row["host"] == _host()}
            spied = [row for row in state.list_workers(limit=10_000) if row["node_id"] in here and row["pid"]]
        found = state.list_stacks()
    code = _spy(py_spy, [row["pid"] for row in spied]) if py_spy is not None else 0
    known = {(row["node_id"], row["pid"]) for row in spied}
    for process in found["processes"]:
        if process["pid"] != os.getpid() and (process["node_id"], process["pid"]) not in known:
            print(f"--- {process['role']} {process['pid']} of node {process['node_id'][:8]}")
            for thread in process["stacks"]:
                print(f"thread {thread['thread']}:\n{thread['stack']}", end="")
    for pid in found["silent"]:
        print(
            f"--- process {pid} does not answer: its code holds the interpreter, or it is stopped; try py-spy"
        )
    return code


def _host() -> str:
    """What the nodes of this machine call it."""
    import socket

    return socket.gethostname()


def _spy(py_spy: str, pids: list[int]) -> int:
    import subprocess

    codes = [subprocess.run([py_spy, "dump", "--pid", str(pid)], check=False).returncode for pid in pids]
    return max(codes, default=0)


def _logs(given: argparse.Namespace) -> int:
    """Names of files, or the text of one: of any node, through the nodes."""
    of_worker = {"actor_id": given.actor_id, "task_id": given.task_id, "pid": given.pid}
    with _joined(given) as state:
        if not any(of_worker.values()) and (given.file is None or any(sign in given.file for sign in "*?[")):
            kinds = state.list_logs(given.node_id, given.file)
            for path in sorted(path for paths in kinds.values() for path in paths):
                print(path)
            return 0
        text = state.get_log(
            given.file, node_id=given.node_id, **of_worker, suffix="err" if given.err else "out",
            tail=given.tail, follow=given.follow,
        )  # fmt: skip
        for part in text:
            print(part, end="", flush=given.follow)
    return 0


def _cell(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= CELL_MAX else text[: CELL_MAX - 3] + "..."


def _table_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["none"]
    keys = list(rows[0])
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(keys, *cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in ([key.upper() for key in keys], *cells)
    ]


def _yaml_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Scalars and containers as JSON, which YAML reads."""
    import json

    lines = []
    for row in rows:
        for position, (key, value) in enumerate(row.items()):
            lines.append(f"{'  ' if position else '- '}{key}: {json.dumps(value)}")
    return lines or ["[]"]
