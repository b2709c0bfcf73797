"""One HTML page of everything that is stored: each claim with its verdict, each figure beside the paper's.

The page is a function of ``expected.toml`` files and stored results: no number in it has another source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from paper_experiments.common import catalogue, drawing, expected, results, verdicts
from paper_experiments.common.expected import Expected, Mode
from paper_experiments.common.results import Result
from paper_experiments.common.run import SCALES
from paper_experiments.common.verdicts import ClaimVerdict

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: 13px }
th, td { border: 1px solid #ddd; padding: .25rem .5rem; text-align: left; vertical-align: top }
img { max-width: 100% } .meta { color: #666; font-size: 13px } td.number { text-align: right }
.reproduced { background: #e3f4e3 } .not-reproduced { background: #fbe2e0 }
.beyond-this-machine { background: #f1eee0 } .not-run { background: #eee }
"""


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>The paper's evaluation, run again</title>
<style>{style}</style></head><body>
<h1>The paper's evaluation, run again</h1>
<p>Moritz et al., <i>Ray: A Distributed Framework for Emerging AI Applications</i>, OSDI 2018, section 5,
at the <b>{scale}</b> scale, and of the paper's scale what is stored.
<i>Live</i>: real processes on the machine named below each figure.
<i>Sim</i>: the same state machines in virtual time, with costs measured on real processes.
Grey and dashed: the paper, digitised.</p>
<p><b>{totals}</b></p>
{overview}
{body}
</body></html>
"""


LARGEST = SCALES[-1]


class Section(NamedTuple):
    """One experiment with what is stored of it."""

    name: str
    expected: Expected
    results: list[Result]
    verdicts: list[ClaimVerdict]
    is_stale: Mapping[tuple[Mode, str], bool]
    """(mode, scale) -> the experiment's code has changed since."""


def sections(scale: str) -> list[Section]:
    """Every experiment, with its results of one scale, and what is stored of the paper's scale.

    Raises:
        ExpectedError, StoredResultError: if a file is wrong.
    """
    return [_section(name, scale) for name in catalogue.names()]


def _section(name: str, scale: str) -> Section:
    folder = catalogue.ROOT / name
    about = expected.load(folder)
    stored = results.load_all(folder)
    usual = [result for result in stored if result.scale == scale]
    large = [result for result in stored if result.scale == LARGEST != scale]
    judged = verdicts.judge_all(about, usual)
    judged += [verdict for result in large for verdict in verdicts.judge_one(about, result)]
    digest = results.code_digest_of(folder)
    found = [*usual, *large]
    is_stale = {(one.mode, one.scale): one.provenance.get("experiment_code") != digest for one in found}
    return Section(name, about, found, judged, is_stale)


def write(folder: Path, scale: str) -> Path:
    """Write the page and its pictures; the page.

    Raises:
        MissingExtraError: without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = sections(scale)
    for section in found:
        for chart in section.expected.charts:
            picture = drawing.draw(chart, section.expected, section.results)
            (folder / picture_name(section.name, chart.name)).write_bytes(picture)
    page = folder / "index.html"
    page.write_text(html(found, scale), encoding="utf-8")
    return page


def picture_name(experiment: str, chart: str) -> str:
    """The file of a chart."""
    return f"{experiment}-{chart}.svg"


def html(found: list[Section], scale: str) -> str:
    """The page as text."""
    counts = Counter(verdict.kind for section in found for verdict in section.verdicts)
    totals = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])
    body = "\n".join(map(_section_html, found))
    return PAGE.format(
        style=STYLE, scale=escape(scale), totals=escape(totals), overview=_overview(found), body=body
    )


_KINDS = (verdicts.REPRODUCED, verdicts.NOT_REPRODUCED, verdicts.BEYOND, verdicts.NOT_RUN)


def _overview(found: list[Section]) -> str:
    rows = []
    for section in found:
        counts = Counter(verdict.kind for verdict in section.verdicts)
        cells = "".join(f'<td class="number">{counts[kind] or ""}</td>' for kind in _KINDS)
        place, title = escape(section.expected.place), escape(section.expected.title)
        rows.append(f'<tr><td><a href="#{section.name}">{title}</a></td><td>{place}</td>{cells}</tr>')
    heads = "".join(f"<th>{kind}</th>" for kind in _KINDS)
    return f"<table><tr><th>result</th><th>place</th>{heads}</tr>\n" + "\n".join(rows) + "</table>"


def _section_html(section: Section) -> str:
    about = section.expected
    pictures = "\n".join(
        f'<p><img src="{picture_name(section.name, chart.name)}" alt="{escape(chart.title)}"></p>'
        for chart in about.charts
    )
    return (
        f'<h2 id="{section.name}">{escape(about.title)}</h2>\n<p>{escape(about.question)}</p>\n'
        f'<p class="meta">{escape(about.place)}. In the paper: {escape(about.setup)}</p>\n'
        f"{_claims_html(section.verdicts)}\n{pictures}\n"
        + "\n".join(
            _result_html(result, section.is_stale[result.mode, result.scale]) for result in section.results
        )
    )


def _claims_html(found: list[ClaimVerdict]) -> str:
    rows = "\n".join(map(_claim_html, found))
    heads = "<th>claim</th><th>wanted</th><th>paper</th><th>here</th><th>verdict</th>"
    return f"<table><tr>{heads}</tr>\n{rows}</table>"


def _claim_html(verdict: ClaimVerdict) -> str:
    claim, value = verdict.claim, verdict.value
    unit = f" {claim.unit}" if claim.unit else ""
    paper = f"{claim.paper:.4g}{unit}" if claim.paper is not None else ""
    here = f"{value:.4g}{unit}" if value is not None else ""
    why = f": {verdict.reason}" if verdict.reason else ""
    return (
        f'<tr class="{verdict.kind.replace(" ", "-")}"><td>{escape(claim.text)} '
        f'<span class="meta">({escape(claim.source)})</span></td><td>{escape(claim.bounds)}</td>'
        f"<td>{escape(paper)}</td><td>{escape(here)}</td>"
        f"<td><b>{verdict.kind}</b> ({verdict.mode}, {verdict.scale}){escape(why)}</td></tr>"
    )


def _result_html(result: Result, is_stale: bool) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    with_what = "; ".join(f"{name} {value}" for name, value in result.parameters.items())
    where = "; ".join(f"{name} {value}" for name, value in result.provenance.items())
    warning = " <b>The experiment's code has changed since.</b>" if is_stale else ""
    return (
        f"<ul>{notes}</ul>\n"
        f'<p class="meta"><b>{result.mode}, {result.scale}</b>, {result.took_s:g} s. '
        f"{escape(with_what)}.<br>{escape(where)}."
        f"{warning}</p>"
    )
