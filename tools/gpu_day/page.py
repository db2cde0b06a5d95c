"""The page of a GPU day: the findings of each part so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sdrt.web_page import web_page
from tools.gpu_day.findings import BAD, Report

STYLE = Path(__file__).with_name("page.css")


def day_page(decides: Mapping[str, str], reports: Sequence[Report]) -> str:
    """Return the HTML of the page.

    Args:
        decides: Part -> the questions that it answers, in order.
        reports: Reports of the parts that have run.
    """
    by_part = {report.part: report for report in reports}
    return web_page("GPU day", STYLE, [_overview(decides, by_part), *map(_section, reports)])


def _overview(decides: Mapping[str, str], by_part: Mapping[str, Report]) -> str:
    rows = []
    for name, text in decides.items():
        report = by_part.get(name)
        state = _state(report) if report else '<td class="soft">ahead</td><td></td>'
        rows.append(f'<tr><td><a href="#{escape(name)}">{escape(name)}</a></td>{state}<td>{escape(text)}</td></tr>')
    return f"<table><tr><th>part<th>state<th>seconds<th>what it decides</tr>{''.join(rows)}</table>"


def _state(report: Report) -> str:
    kind = "bad" if report.state in BAD else "good" if report.state == "done" else "soft"
    return f'<td class="{kind}">{report.state}</td><td>{report.seconds}</td>'


def _section(report: Report) -> str:
    reason = f"<p>{escape(report.reason)}</p>" if report.reason else ""
    return (
        f'<h2 id="{escape(report.part)}">{escape(report.part)}: {report.state}</h2>{reason}'
        f'<div class="scroll"><table>{"".join(_rows(report))}</table></div>'
    )


def _rows(report: Report) -> Iterator[str]:
    for check in sorted(report.checks, key=lambda check: check.good):
        kind, word = ("good", "ok") if check.good else ("bad", "wrong")
        yield f'<tr><td>{escape(check.name)}<td class="{kind}">{word}<td>{escape(check.detail)}</tr>'
    for name, value in report.facts.items():
        yield f'<tr><td>{escape(name)}<td colspan="2">{escape(_text(value))}</tr>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
