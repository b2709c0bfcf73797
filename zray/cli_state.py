"""The commands that look at a running cluster: list, summary, get, memory, why, logs."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

KINDS = ("tasks", "actors", "objects", "workers", "nodes")
SUMMARIES = ("tasks", "actors", "objects")
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
    getting = _command(commands, "get", "show one task or actor", _get)
    getting.add_argument("kind", choices=("tasks", "actors"))
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
    logs = _command(commands, "logs", "show the log files of a cluster, or one of them", _logs, joins=False)
    logs.add_argument("file", nargs="?", help="such as node.log or worker-3.out")


def _command(commands: Any, name: str, text: str, function: Any, *, joins: bool = True) -> Any:
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(function=function)
    if joins:
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


def _list(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    filters = [_filter_of(text) for text in given.filter]
    with _joined(given) as state:
        rows = getattr(state, f"list_{given.kind}")(filters=filters, limit=given.limit)
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


def _summary(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    with _joined(given) as state:
        found = getattr(state, f"summarize_{given.kind}")()
    for name, counts in found.items():
        if isinstance(counts, dict):
            counts = ", ".join(f"{number} {what}" for what, number in counts.items())
        print(f"{name}: {counts}")
    return 0


def _get(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    with _joined(given) as state:
        row = _one(getattr(state, f"list_{given.kind}")(limit=10_000), given.id)
    print("\n".join(_yaml_lines([row])))
    return 0


def _one(rows: list[dict[str, Any]], an_id: str) -> dict[str, Any]:
    """The row whose id begins like that.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [row for row in rows if str(next(iter(row.values()))).startswith(an_id)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} of {len(rows)} have an id that begins with {an_id}")
    return found[0]


def _memory(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    with _joined(given) as state:
        rows = state.list_objects(limit=10_000)
    rows.sort(key=lambda row: -row["size_bytes"])
    print("\n".join(_table_lines(rows)))
    print(f"{len(rows)} objects, {sum(row['size_bytes'] for row in rows)} bytes")
    return 0


def _why(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    with _joined(given) as state:
        tasks, actors = state.list_tasks(limit=10_000), state.list_actors(limit=10_000)
        (node,) = state.list_nodes()
    print("\n".join(reasons(_one(tasks + actors, given.id), tasks, node)))
    return 0


def reasons(row: dict[str, Any], tasks: list[dict[str, Any]], node: dict[str, Any]) -> list[str]:
    """What one task or actor waits for, a sentence each.

    Args:
        row: of the task or actor, as ``list`` shows it.
        tasks: every unfinished task of the node.
        node: its resources.
    """
    lines = [f"{row['name']} is {row['state']}"]
    if row.get("missing"):
        lines += [f"  it takes {object_id}, which nobody has made yet" for object_id in row["missing"]]
    if row["state"] != "ready" or "demand" not in row:
        return lines
    for name, amount in row["demand"].items():
        free, total = node["available"].get(name, 0), node["total"].get(name, 0)
        if total < amount:
            lines.append(f"  it asks for {amount:g} {name}; no node has more than {total:g}")
        elif free < amount:
            holders = [
                task["name"] for task in tasks if task["state"] == "running" and name in task["demand"]
            ]
            lines.append(f"  it asks for {amount:g} {name}; {free:g} of {total:g} are free on {node['host']}")
            lines.append(f"  {name} is held by {', '.join(holders) or 'actors'}")
    return lines if len(lines) > 1 else [*lines, "  it waits for a worker"]


def _timeline(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    import zray

    with _joined(given):
        zray.timeline(given.file)
    print(f"wrote {given.file}; open it with https://ui.perfetto.dev or chrome://tracing")
    return 0


def _metrics(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    with _joined(given) as state:
        print(state.metrics_text(), end="")
    return 0


def _stack(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Where all workers are. py-spy also sees those that cannot answer, and C frames."""
    import shutil

    py_spy = None if given.no_py_spy else shutil.which("py-spy")
    with _joined(given) as state:
        if py_spy is not None:
            return _spy(py_spy, [row["pid"] for row in state.list_workers(limit=10_000) if row["pid"]])
        found = state.list_stacks()
    for process in found["processes"]:
        if process["pid"] != os.getpid():
            print(f"--- {process['role']} {process['pid']}")
            for thread in process["stacks"]:
                print(f"thread {thread['thread']}:\n{thread['stack']}", end="")
    for pid in found["silent"]:
        print(
            f"--- process {pid} does not answer: its code holds the interpreter, or it is stopped; try py-spy"
        )
    return 0


def _spy(py_spy: str, pids: list[int]) -> int:
    import subprocess

    codes = [subprocess.run([py_spy, "dump", "--pid", str(pid)], check=False).returncode for pid in pids]
    return max(codes, default=0)


def _logs(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from zray.runtime import session_dir

    session = session_dir.latest()
    if session is None:
        raise ValueError("no cluster of this user runs on this machine")
    names = sorted(os.listdir(session.logs_dir))
    if given.file is None:
        print("\n".join(names))
        return 0
    if given.file not in names:
        raise ValueError(f"there is no {given.file} in {session.logs_dir}")
    with open(os.path.join(session.logs_dir, given.file), encoding="utf-8", errors="replace") as file:
        for line in file:
            print(line, end="")
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
