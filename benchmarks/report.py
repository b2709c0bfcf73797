"""From outcomes to tables: text for the terminal, Markdown for the docs, JSON for machines."""

from __future__ import annotations

import datetime
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import parts
from benchmarks.cases import CASES, Case, Metric, title
from benchmarks.runner import Plan, Results
from benchmarks.systems import TITLES
from benchmarks.targets import MET, NOT_MET, TARGETS, Target

SUBJECT = "zray"
YARDSTICK = "ray"
REASON_IN_CELL_MAX = 34


class Cell(NamedTuple):
    """One metric of one system: sorted samples, one per round, or why there are none."""

    samples: list[float]
    reason: str
    failures: int

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None


class Row(NamedTuple):
    """One metric across the systems."""

    case: Case
    metric: Metric
    title: str
    cells: dict[str, Cell]


# --- from outcomes to rows ------------------------------------------------------------------------


def make_cell(results: Results, system: str, case: Case, metric: Metric) -> Cell:
    """Gather the samples of one metric, or the reason why there are none."""
    mine = [o for o in results.outcomes if o.system == system]
    of_case = [o for o in mine if o.case == case.name]
    samples = sorted(o.values[metric.key] for o in of_case if o.values and metric.key in o.values)
    failed = [o.failed for o in of_case if o.failed]
    if samples or failed:
        return Cell(samples, failed[0] if failed else "", len(failed))
    if any(o.unsupported for o in of_case):
        return Cell([], "-", 0)
    not_started = [o.failed for o in mine if o.case == "start" and o.failed]
    return Cell([], f"not started: {not_started[0]}" if not_started else "not run", len(not_started))


def make_rows(plan: Plan, results: Results, systems: list[str], cases: tuple[Case, ...] = CASES) -> list[Row]:
    """One row per metric of those of ``cases`` that were chosen, one cell for each of ``systems``."""
    return [
        Row(
            case, metric, title(metric, plan.scale),
            {system: make_cell(results, system, case, metric) for system in systems},
        )
        for case in cases if systems and case.name in plan.cases for metric in case.metrics
    ]  # fmt: skip


def split(plan: Plan, results: Results) -> tuple[list[Row], list[Row]]:
    """The rows of the systems, and those of the parts of the one."""
    systems = [system for system in plan.systems if system != parts.SYSTEM]
    alone = [system for system in plan.systems if system == parts.SYSTEM]
    return make_rows(plan, results, systems), make_rows(plan, results, alone, parts.PARTS)


def advantage(metric: Metric, ours: float | None, theirs: float | None) -> float | None:
    """How many times better ours is; above 1 is good whatever the metric's direction. None if undefined."""
    if ours is None or theirs is None:
        return None
    better, worse = (ours, theirs) if metric.higher_is_better else (theirs, ours)
    return better / worse if worse > 0 else None


def best_peer(row: Row) -> str | None:
    """The system other than the subject with the best median."""
    medians = {s: c.median for s, c in row.cells.items() if s != SUBJECT and c.median is not None}
    if not medians:
        return None
    choose = max if row.metric.higher_is_better else min
    return choose(medians, key=lambda system: medians[system])


# --- text -----------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, thousands separated; counts as they are."""
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1000):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def cell_text(cell: Cell, unit: str) -> str:
    """The median, with a mark where some rounds failed; otherwise the reason."""
    if cell.median is None:
        reason = cell.reason
        return reason if len(reason) <= REASON_IN_CELL_MAX else reason[: REASON_IN_CELL_MAX - 1] + "…"
    text = f"{number(cell.median)} {unit}".rstrip()
    return f"{text} ({cell.failures} failed)" if cell.failures else text


def ratio_text(row: Row, against: str | None) -> str:
    """The subject's advantage over another system."""
    if against is None or SUBJECT not in row.cells:
        return ""
    ratio = advantage(row.metric, row.cells[SUBJECT].median, row.cells[against].median)
    return "" if ratio is None else f"{number(ratio)}x"


def best_peer_text(row: Row) -> str:
    """The advantage over the best peer, and its name."""
    peer = best_peer(row)
    ratio = ratio_text(row, peer)
    return f"{ratio} {TITLES[peer]}" if ratio and peer else ""


def summary(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of medians and ratios. Ratios need the subject in the run."""
    systems = list(rows[0].cells)
    header = ["median of the rounds", *(TITLES[system] for system in systems)]
    compares = SUBJECT in systems and len(systems) > 1
    yardstick = YARDSTICK if YARDSTICK in systems else None
    if compares:
        header += [f"{SUBJECT} vs {TITLES[yardstick]}"] if yardstick else []
        header += [f"{SUBJECT} vs best peer"]
    lines = []
    for row in rows:
        line = [row.title, *(cell_text(cell, row.metric.unit) for cell in row.cells.values())]
        if compares:
            is_machine = row.case.name == "copy"  # not a property of any system: no ratio
            ratios = [ratio_text(row, yardstick)] if yardstick else []
            line += ["" if is_machine else text for text in [*ratios, best_peer_text(row)]]
        lines.append(line)
    return header, lines


def spread(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: min / median / max of every cell with samples."""
    header = ["min / median / max", *(TITLES[system] for system in rows[0].cells)]
    lines = []
    for row in rows:
        line = [f"{row.title}, {row.metric.unit}".rstrip(", ")]
        for cell in row.cells.values():
            points = [] if cell.median is None else [cell.samples[0], cell.median, cell.samples[-1]]
            line.append(" / ".join(map(number, points)) + (f" (n={len(cell.samples)})" if points else "-"))
        lines.append(line)
    return header, lines


def targets(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: what was aimed at, what was measured, and whether that is enough."""
    found = {(row.case.name, row.metric.key): row for row in rows}
    lines = []
    for target in TARGETS:
        row = found.get((target.case, target.metric))
        value = None if row is None else _measured(target, row, found)
        if row is not None and value is not None:
            verdict = MET if target.is_met(value) else NOT_MET
            lines.append([row.title, target.text, f"{number(value)}{target.unit}", verdict])
    return ["target", "aim", "measured", "met"], lines


def _measured(target: Target, row: Row, rows: dict[tuple[str, str], Row]) -> float | None:
    """A median, or its ratio to what the target names; ``None`` where something was not measured."""
    ours = next(iter(row.cells.values())).median if SUBJECT not in row.cells else row.cells[SUBJECT].median
    if not target.against:
        return ours
    if target.against in row.cells:
        return advantage(row.metric, ours, row.cells[target.against].median)
    case, _, key = target.against.partition(".")  # another row of the same system
    other = rows.get((case, key))
    theirs = None if other is None else other.cells[next(iter(row.cells))].median
    return None if ours is None or theirs is None or not ours else target.scale * theirs / ours


def tables(plan: Plan, results: Results) -> list[tuple[list[str], list[list[str]]]]:
    """Those of the medians, and of the targets, as far as there is something in them."""
    compared, alone = split(plan, results)
    found = [summary(rows) for rows in (compared, alone) if rows]
    aims = targets([*compared, *alone])
    return [*found, aims] if aims[1] else found


def notes(plan: Plan, results: Results) -> list[str]:
    """Every failure with its full reason, and what outlived its driver."""
    found: dict[str, int] = {}
    for outcome in results.outcomes:
        if outcome.failed:
            line = f"{TITLES[outcome.system]}, {outcome.case}: {outcome.failed}"
            found[line] = found.get(line, 0) + 1
    lines = [f"{line} ({times} of {plan.rounds} rounds)" for line, times in found.items()]
    lines += [
        f"{TITLES[system]}: {count} processes outlived their driver and had to be killed"
        for system, count in results.leftovers.items()
        if count
    ]
    return lines


def plain_table(header: list[str], lines: list[list[str]]) -> str:
    """Aligned columns, two spaces between them; the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]

    def aligned(line: list[str]) -> str:
        first, *others = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([aligned(header), "  ".join("-" * width for width in widths), *map(aligned, lines)])


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """The same for Markdown."""
    rows = [header, ["---", *("---:" for _ in header[1:])], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)


# --- where and when -------------------------------------------------------------------------------


def _proc_field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def machine() -> dict[str, str]:
    """What the numbers depend on. No names of hosts or users."""
    memory_kib = int(_proc_field("/proc/meminfo", "MemTotal").split()[0])
    return {
        "processor": _proc_field("/proc/cpuinfo", "model name"),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{memory_kib / (1 << 20):.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def _paragraphs(plan: Plan, results: Results, command: str, when: datetime.datetime) -> list[str]:
    about = "; ".join(f"{key} {value}" for key, value in machine().items())
    lines = [
        f"- When: {when:%Y-%m-%d %H:%M} UTC, {plan.rounds} rounds",
        f"- Machine: {about}",
        f"- Command: `{command}`",
    ]
    for system in plan.systems:
        if system == parts.SYSTEM and SUBJECT in plan.systems:
            continue
        versions = results.versions.get(system, {})
        fewer = plan.rounds_of.get(system)
        rounds = f"; {fewer} rounds" if fewer is not None and fewer < plan.rounds else ""
        text = ", ".join(f"{name} {version}" for name, version in versions.items()) or "did not start"
        lines.append(f"- {TITLES[system]}: {text}{rounds}")
    return lines


def markdown(plan: Plan, results: Results, command: str, when: datetime.datetime) -> str:
    """The whole of ``docs/benchmarks.md``."""
    compared, alone = split(plan, results)
    sections = [
        "# Benchmarks",
        "Written by `python -m benchmarks.compare`; do not edit. "
        "What each row does and how it is measured: [benchmarks/README.md](../benchmarks/README.md).",
        "\n".join(_paragraphs(plan, results, command, when)),
    ]
    if compared:
        sections += [
            "## Medians",
            "Ratios above 1 mean that zray is better, for rates and times alike. "
            "A dash means that the system has no such concept.",
            markdown_table(*summary(compared)),
        ]
    if alone:
        sections += [
            "## Parts of zray, and how its costs grow",
            "Rows that no other system has.",
            markdown_table(*summary(alone)),
        ]
    aims = targets([*compared, *alone])
    if aims[1]:
        sections += [
            "## Targets",
            f"Of this run; a ratio says how many times better zray is. What bounds a row that is {NOT_MET}: "
            "[docs/performance.md](performance.md#rows-and-their-bounds).",
            markdown_table(*aims),
        ]
    found = notes(plan, results) or ["none"]
    sections += ["## Spread", *(markdown_table(*spread(rows)) for rows in (compared, alone) if rows)]
    sections += ["## What went wrong", "\n".join(f"- {line}" for line in found)]
    return "\n\n".join(sections) + "\n"


def as_json(plan: Plan, results: Results, command: str, when: datetime.datetime) -> dict[str, Any]:
    """Everything, one record per round, system and case, and what is needed to read it."""
    return {
        "when": when.isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "versions": results.versions,
        "rounds": plan.rounds,
        "scale": plan.scale._asdict(),
        "metrics": {
            case.name: {
                metric.key: {"title": title(metric, plan.scale), "unit": metric.unit,
                             "higher_is_better": metric.higher_is_better}
                for metric in case.metrics
            }
            for case in parts.ALL_CASES if case.name in plan.cases
        },
        "outcomes": [outcome._asdict() for outcome in results.outcomes],
        "leftover_processes": results.leftovers,
    }  # fmt: skip
