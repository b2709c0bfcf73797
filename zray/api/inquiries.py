"""What all processes of a node say of themselves: a timeline, metrics in Prometheus' format, stacks."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

from zray.api.everywhere import processes

Series = dict[tuple[tuple[str, str], ...], list[float]]


def timeline(filename: str | os.PathLike[str] | None = None) -> list[dict[str, Any]] | None:
    """What ran in which process and when, as Chrome trace events, which Perfetto and chrome://tracing open.

    The last 10,000 tasks and calls of each process; of a process that was killed, none.

    Args:
        filename: write them there as JSON; ``None``: return them.
    """
    found = processes("spans")
    events: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}  # of nodes: on each of them a process has the same id as one elsewhere
    for process in [*found["former"], *found["processes"]]:
        number = numbers.setdefault(process["node_id"], len(numbers))
        spans = json.loads(process["body"] or "{}").get("spans", ())
        name = f"worker {process['pid']}" + (f" of node {process['node_id'][:8]}" if number else "")
        events += _events(process["pid"] + number * PIDS_MAX, name, spans)
    if filename is None:
        return events
    with open(filename, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
    return None


PIDS_MAX = 1 << 22
"""Of one machine (proc(5), pid_max)."""


def _events(pid: int, process_name: str, spans: list[Any]) -> list[dict[str, Any]]:
    """Events of one process: one track, or as many as it ran calls at once."""
    if not spans:
        return []
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": process_name}}
    ]
    free_at: list[int] = []  # of each track
    for name, task_id, start_ns, duration_ns in sorted(spans, key=lambda span: int(span[2])):
        track = next((place for place, end in enumerate(free_at) if end <= start_ns), len(free_at))
        free_at[track : track + 1] = [start_ns + duration_ns]
        events.append(
            {
                "name": name, "cat": "task", "ph": "X", "pid": pid, "tid": track, "ts": start_ns / 1e3,
                "dur": duration_ns / 1e3, "args": {"task_id": task_id},
            }
        )  # fmt: skip
    return events


def stacks() -> dict[str, Any]:
    """The stack of every thread of every process, and the ids of the processes that did not answer."""
    found = processes("stacks")
    said = [
        {
            "pid": row["pid"], "role": row["role"], "node_id": row["node_id"],
            **json.loads(row["body"] or '{"stacks": []}'),
        }
        for row in found["processes"]
    ]  # fmt: skip
    return {"processes": said, "silent": [row["pid"] for row in found["silent"]]}


# --- metrics -------------------------------------------------------------------------------------


def collect_metrics() -> list[dict[str, Any]]:
    """Every metric of the cluster, by name: kind, description, bounds, and its series added up."""
    found = processes("metrics")
    families: dict[str, dict[str, Any]] = {}
    merged: dict[str, Series] = defaultdict(dict)
    for process in [*found["former"], *found["processes"]]:
        for each in json.loads(process["body"] or "{}").get("metrics", ()):
            known = families.setdefault(each["name"], each)
            if (known["kind"], known["bounds"]) == (each["kind"], each["bounds"]):
                _merge(merged[each["name"]], each)
    return [
        {
            **{key: each[key] for key in ("name", "kind", "description", "bounds")},
            "series": [
                {"tags": dict(tags), "values": values} for tags, values in sorted(merged[name].items())
            ],
        }
        for name, each in sorted(families.items())
    ]  # fmt: skip


def _merge(series: Series, family: dict[str, Any]) -> None:
    """Counters and histograms add up; of gauges the one that was set last stays."""
    for tags, values in family["series"]:
        key = tuple((name, value) for name, value in tags)
        known = series.get(key)
        if known is None:
            series[key] = values
        elif family["kind"] != "gauge":
            series[key] = [one + other for one, other in zip(known, values, strict=True)]
        elif values[1] > known[1]:
            series[key] = values


def prometheus_text() -> str:
    """Every metric in Prometheus' text format."""
    lines: list[str] = []
    for family in collect_metrics():
        name = family["name"]
        if family["description"]:
            lines.append(f"# HELP {name} {_escaped(family['description'])}")
        lines.append(f"# TYPE {name} {family['kind']}")
        for row in family["series"]:
            if family["kind"] == "histogram":
                lines += _buckets(name, row["tags"], family["bounds"], row["values"])
            else:
                lines.append(f"{name}{_labels(row['tags'])} {row['values'][0]:g}")
    return "".join(f"{line}\n" for line in lines)


def _buckets(name: str, tags: dict[str, str], bounds: list[float], values: list[float]) -> list[str]:
    total, count, *counts = values
    lines, below = [], 0.0
    for bound, inside in zip(bounds, counts, strict=True):
        below += inside
        lines.append(f"{name}_bucket{_labels({**tags, 'le': f'{bound:g}'})} {below:g}")
    lines.append(f"{name}_bucket{_labels({**tags, 'le': '+Inf'})} {count:g}")
    return [*lines, f"{name}_sum{_labels(tags)} {total:g}", f"{name}_count{_labels(tags)} {count:g}"]


def _labels(tags: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{_escaped(value, quote=True)}"' for key, value in tags.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
