"""Pictures of results beside the paper's digitised series. Needs matplotlib, imported only here."""

from __future__ import annotations

import io
from typing import Any

from paper_experiments.common.expected import Chart, Expected
from paper_experiments.common.results import Result
from sim.plots import MissingExtraError

SIZE_INCHES = (7.0, 3.9)
PAPER_COLOUR = "0.45"
MARKERS = "osD^vPX*"


def draw(chart: Chart, expected: Expected, results: list[Result]) -> bytes:
    """One chart as SVG: the paper in grey and dashed, simulated runs dotted, live ones solid.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = _figure()
    axes = figure.add_subplot()
    for number, series in enumerate(one for one in expected.series if one.chart == chart.name):
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(series.x, series.y, color=PAPER_COLOUR, linestyle="--", marker=marker, markersize=4,
                  linewidth=1, label=series.name)  # fmt: skip
    scales = dict.fromkeys(result.scale for result in results)
    for result in results:
        _draw_result(
            axes, chart, result, result.mode if len(scales) == 1 else f"{result.mode}, {result.scale}"
        )
    axes.set_title(chart.title, fontsize=10)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, linewidth=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
    return _svg(figure)


def _draw_result(axes: Any, chart: Chart, result: Result, which: str) -> None:
    style = "-" if result.mode == "live" else ":"
    for series in (one for one in result.series if one.chart == chart.name):
        points = sorted(zip(series.x, series.y, series.low, series.high, strict=True))
        x, y, low, high = zip(*points, strict=True)
        label = f"{series.name} ({which})"
        (line,) = axes.plot(
            x, y, linestyle=style, marker="." if len(x) < 60 else "", linewidth=1.3, label=label
        )
        if low != high:
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = "pictures need matplotlib: pip install 'zray[experiments]'"
        raise MissingExtraError(message) from None
    return Figure(figsize=SIZE_INCHES, layout="constrained")


def _svg(figure: Any) -> bytes:
    """The same bytes for the same picture."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "zray", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
