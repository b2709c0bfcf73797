"""Pictures of a run: what ran where, how long queues were, how much was done; PNG, SVG, PDF or HTML.

Needs matplotlib, which comes with the extra ``experiments`` and is imported only here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.cluster import Cluster
from zray.errors import ZrayError

SPANS_DRAWN_MAX = 20_000
"""Of the longest tasks; more could not be told apart."""
BINS = 100
SUFFIXES = (".png", ".svg", ".pdf", ".html")


class MissingExtraError(ZrayError, ImportError):
    """A library that is not installed by default is needed."""


def draw_gantt(cluster: Cluster, path: Path) -> None:
    """One row per worker, grouped by node; a colour per function.

    Raises:
        MissingExtraError, ValueError: without matplotlib, or for an unknown suffix.
    """
    _draw(path, lambda figure: _gantt(cluster, figure), rows=_rows(cluster))


def draw_queues(cluster: Cluster, path: Path) -> None:
    """Tasks that each node kept and had not started, over time; raises like :func:`draw_gantt`."""
    _draw(path, lambda figure: _queues(cluster, figure))


def draw_throughput(cluster: Cluster, path: Path) -> None:
    """Tasks that ended per second, over time; raises like :func:`draw_gantt`."""
    _draw(path, lambda figure: _throughput(cluster, figure))


def draw_all(cluster: Cluster, folder: Path, suffix: str = ".png") -> list[Path]:
    """Every picture of a run in a folder, which is made; raises like :func:`draw_gantt`."""
    drawers = {"gantt": draw_gantt, "queues": draw_queues, "throughput": draw_throughput}
    require(suffix)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in drawers.items():
        path = folder / f"{name}{suffix}"
        draw(cluster, path)
        paths.append(path)
    return paths


def require(suffix: str) -> Any:
    """What draws pictures with this suffix; raises like :func:`draw_gantt`."""
    if suffix not in SUFFIXES:
        raise ValueError(f"a picture ends in {', '.join(SUFFIXES)}, not in {suffix!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "pictures need matplotlib; install it with: pip install 'zray[experiments]'"
        ) from None
    return Figure


def _draw(path: Path, draw: Callable[[Any], None], *, rows: int = 12) -> None:
    """Without a display and without the state that ``pyplot`` shares."""
    figure = require(path.suffix)(figsize=(11, max(3.0, min(20.0, 1.5 + rows * 0.25))), layout="constrained")
    draw(figure)
    if path.suffix != ".html":
        figure.savefig(path, dpi=120)
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    picture = base64.b64encode(buffer.getvalue()).decode()
    page = f'<!doctype html><meta charset="utf-8"><title>{path.stem}</title>'
    path.write_text(f'{page}<img alt="{path.stem}" src="data:image/png;base64,{picture}">', encoding="utf-8")


def _rows(cluster: Cluster) -> int:
    return len(dict.fromkeys(span.worker for span in cluster.spans or ()))


def _gantt(cluster: Cluster, figure: Any) -> None:
    axes = figure.subplots()
    spans = sorted(cluster.spans or (), key=lambda span: span.start_ns - span.end_ns)[:SPANS_DRAWN_MAX]
    workers = sorted(dict.fromkeys(span.worker for span in spans))
    row_of = {worker: row for row, worker in enumerate(workers)}
    colours: dict[str, str] = {}
    for span in spans:
        colours.setdefault(span.name, f"C{len(colours) % 10}")
    for name, colour in colours.items():
        mine = [span for span in spans if span.name == name]
        axes.barh(
            [row_of[span.worker] for span in mine], [(span.end_ns - span.start_ns) / 1e9 for span in mine],
            left=[span.start_ns / 1e9 for span in mine], height=0.8, color=colour, label=name,
        )  # fmt: skip
    axes.set_yticks(range(len(workers)), [_label(worker) for worker in workers], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("virtual time, s")
    axes.set_title(f"{len(cluster.spans or ())} tasks on {len(cluster.nodes)} nodes")
    if colours:
        axes.legend(loc="upper right", fontsize="small")


def _label(worker: bytes) -> str:
    return f"node {int(worker[4:12])}, worker {int.from_bytes(worker[12:], 'big')}"


def _queues(cluster: Cluster, figure: Any) -> None:
    axes = figure.subplots()
    for node in cluster.nodes:
        times = [time_ns / 1e9 for time_ns, _ in node.queue_lengths]
        axes.step(
            times, [length for _, length in node.queue_lengths], where="post", label=f"node {node.number}"
        )
    axes.set_xlabel("virtual time, s")
    axes.set_ylabel("tasks ready and not started")
    if len(cluster.nodes) <= 16:
        axes.legend(fontsize="small")


def _throughput(cluster: Cluster, figure: Any) -> None:
    axes = figure.subplots()
    ends = [span.end_ns / 1e9 for span in cluster.spans or ()]
    last_s = max(ends, default=1.0)
    counts = [0] * BINS
    for end_s in ends:
        counts[min(BINS - 1, int(end_s / last_s * BINS))] += 1
    width_s = last_s / BINS
    axes.step(
        [number * width_s for number in range(BINS)], [count / width_s for count in counts], where="post"
    )
    axes.set_xlabel("virtual time, s")
    axes.set_ylabel("tasks per second")
