"""The report of a comparison: one HTML file that opens from disk, without network access or scripts."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from sdrt.compare.error_plot import error_plot, swatch
from sdrt.compare.pictures import Pair, contact_sheet, figure_psnr, strip
from sdrt.compare.schema import (
    Comparison,
    ComponentCase,
    ComponentResult,
    Metrics,
    Outcome,
    PictureResult,
    ToleranceRecord,
    TrajectoryResult,
)
from sdrt.compare.summary import failures, headline, mismatch, unverified, worst_output
from sdrt.files import canonical_json, disk_errors, write_atomically
from sdrt.web_page import web_page

STYLE = Path(__file__).with_suffix(".css")
HTML, JSON, SHEET = "report.html", "comparison.json", "contact-sheet.png"
#: Width of the pictures in the report.
SHOWN = 384
#: A cell with a number, perhaps with a second line; text that begins with a digit is no number.
NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?( dB)?(<br>.*)?")
DIRECTIONS = {True: '<span class="failed">worse</span>', False: '<span class="passed">better</span>', None: "other"}


def write_report(folder: Path, comparison: Comparison, pairs: Sequence[Pair]) -> Path:
    """Write report.html, comparison.json and contact-sheet.png into a folder, each atomically.

    Without pictures no contact sheet is written, and that of an earlier report is removed.

    Returns:
        The HTML file.

    Raises:
        ResourceError: The folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not pairs:
            (folder / SHEET).unlink(missing_ok=True)
    if pairs:
        write_atomically(folder / SHEET, _png(contact_sheet(pairs, comparison.pictures)))
    write_atomically(folder / JSON, canonical_json(comparison.model_dump(mode="json")))
    write_atomically(folder / HTML, render(comparison, pairs).encode())
    return folder / HTML


def render(comparison: Comparison, pairs: Sequence[Pair]) -> str:
    """Return the report's HTML; every string of a user or a file is escaped."""
    title = f"{comparison.checkpoint.name}: {comparison.backend} {comparison.precision} against PyTorch fp32"
    sections = [
        _verdict(comparison),
        _components(comparison.components),
        _trajectories(comparison.trajectories),
        _pictures(comparison.pictures, pairs),
        _moved(comparison),
        _tolerances(comparison),
        _environment(comparison),
    ]
    return web_page(title, STYLE, sections)


def _verdict(comparison: Comparison) -> str:
    outcome = comparison.outcome
    parts = [f'<div class="verdict {outcome}"><strong>{outcome.upper()}</strong><p>{escape(headline(comparison))}</p>']
    if comparison.compared_with.mismatch:
        parts.append(f"<p><b>{escape(mismatch(comparison))}</b></p>")
    parts.append("</div>")
    for heading, lines in (("What failed", failures(comparison)), ("Not verified", unverified(comparison))):
        if lines:
            parts.append(f"<h2>{heading}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")
    return "".join(parts)


def _components(components: Sequence[ComponentResult]) -> str:
    rows = []
    for component in components:
        worst = worst_output(component.cases)
        metrics = worst.metrics if worst else None
        limits = worst.tolerance if worst else None
        cases = f"{len(component.cases)} cases"
        rows.append(
            _row(
                f"<b>{component.component}</b><br><small>{escape(component.backend)} {component.precision}</small>",
                f"{_outcome(component.outcome)}<br><small>{cases}</small>",
                _with_limit(metrics, limits, "relative_l2"),
                _with_limit(metrics, limits, "peak"),
                _number(metrics.cosine if metrics else None, ".7f"),
                _decibels(metrics),
                _place(metrics) + (f"<br><small>{escape(component.reason)}</small>" if component.reason else ""),
            )
        )
    heads = ("component", "outcome", "relative L2", "peak", "cosine", "PSNR", "worst element")
    details = "".join(_details(component) for component in components)
    note = (
        "Each row shows the output that used most of its limit. Peak is the largest absolute difference over the "
        "reference's largest absolute value."
    )
    return f'<h2>Components</h2>{_table(heads, rows)}<p class="soft">{note}</p>{details}'


def _details(component: ComponentResult) -> str:
    parts = [_cases(component.component, component.cases)]
    for proxy in component.proxies:
        parts.append(_cases(f"{component.component}, stand-in: {proxy.label}", proxy.cases, proxy.note))
    departure = component.departure
    if departure is not None:
        metrics = departure.metrics
        error = f", relative L2 {metrics.relative_l2:.3g}" if metrics else ""
        parts.append(
            f"<p>{component.component} first departs at <code>{escape(departure.tensor)}</code>, an output of the node "
            f"<code>{escape(departure.node)}</code> ({escape(departure.operator)}) of "
            f"<code>{escape(departure.source_module)}</code>{error}.</p>"
        )
    return "".join(parts)


def _cases(name: str, cases: Sequence[ComponentCase], note: str = "") -> str:
    """Return every case of a component as a collapsed table."""
    if not cases:
        return f'<p class="soft">{escape(name)}: {escape(note)}</p>' if note else ""
    rows = [
        _row(
            escape(case.label),
            escape(output.output),
            _outcome(output.outcome) + (f"<br><small>{escape(output.reason)}</small>" if output.reason else ""),
            _number(output.metrics.relative_l2 if output.metrics else None, ".3g"),
            _number(output.metrics.peak if output.metrics else None, ".3g"),
            _number(output.metrics.max_absolute if output.metrics else None, ".3g"),
            _place(output.metrics),
        )
        for case in cases
        for output in case.outputs
    ]
    heads = ("case", "output", "outcome", "relative L2", "peak", "largest difference", "worst element")
    said = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<details><summary>{escape(name)}: every case</summary>{said}{_table(heads, rows)}</details>"


def _trajectories(trajectories: Sequence[TrajectoryResult]) -> str:
    rows = [
        _row(
            f'<span class="line">{swatch(number)} {number + 1}</span>',
            escape(each.prompt or "(no words)"),
            str(each.seed),
            _outcome(each.outcome) + (f"<br><small>{escape(each.reason)}</small>" if each.reason else ""),
            _number(each.relative_l2[-1] if each.relative_l2 else None, ".3g"),
            _step(each.grows_at),
            _step(each.first_over),
        )
        for number, each in enumerate(trajectories)
    ]
    if not rows:
        return "<h2>Error by step</h2><p>No trajectory was run.</p>"
    heads = ("", "prompt", "seed", "outcome", "after the last step", "rises most at", "first over")
    note = "Relative L2 of the latents against PyTorch's after each step, both from the same noise."
    return f'<h2>Error by step</h2><p class="soft">{note}</p>{error_plot(trajectories)}{_table(heads, rows)}'


def _pictures(results: Sequence[PictureResult], pairs: Sequence[Pair]) -> str:
    if not results:
        return "<h2>Pictures</h2><p>No picture was made.</p>"
    figures = "".join(_figure(result, pair) for result, pair in zip(results, pairs, strict=True))
    return f"<h2>Pictures</h2>{figures}"


def _figure(result: PictureResult, pair: Pair) -> str:
    pictures, factor = strip(pair)
    captions = (
        ("reference, PyTorch fp32", result.reference_verdict),
        ("candidate" if factor else "no picture", result.candidate_verdict),
        (f"difference, times {factor}" if factor else "", None),
    )
    cells = []
    for picture, (caption, verdict) in zip(pictures, captions, strict=True):
        said = f"{caption}: {verdict}" if verdict else caption
        cells.append(f'<div><img src="{_data_uri(picture)}" alt="{escape(said)}">{escape(said)}</div>')
    measured = [] if result.ssim is None else [f"PSNR {figure_psnr(result)}", f"SSIM {result.ssim:.4f}"]
    if result.lpips is not None:
        measured.append(f"LPIPS {result.lpips:.4f}")
    words = escape(result.prompt or "(no words)")
    reason = f"<br><small>{escape(result.reason)}</small>" if result.reason else ""
    return (
        f"<figure><figcaption>{_outcome(result.outcome)} <b>{words}</b>, seed {result.seed}: "
        f'{", ".join(measured) or "no picture"}{reason}</figcaption><div class="strip">{"".join(cells)}</div></figure>'
    )


def _moved(comparison: Comparison) -> str:
    earlier = comparison.against
    if earlier is None:
        return ""
    heading = f"<h2>Since {escape(earlier.created)}</h2>"
    rows = [
        _row(
            DIRECTIONS[move.worse],
            escape(move.what),
            escape(move.figure),
            escape(_value(move.before)),
            escape(_value(move.after)),
        )
        for move in earlier.moved
    ]
    if not rows:
        return f"{heading}<p>Nothing moved.</p>"
    return heading + _table(("", "of", "figure", "before", "now"), rows)


def _tolerances(comparison: Comparison) -> str:
    """Return the table of all tolerances that were applied, each with its origin."""
    applied: list[tuple[str, ToleranceRecord | None]] = []
    for component in comparison.components:
        applied += [(component.component, output.tolerance) for case in component.cases for output in case.outputs]
        for proxy in component.proxies:
            label = f"{component.component}, {proxy.label}"
            applied += [(label, output.tolerance) for case in proxy.cases for output in case.outputs]
    applied += [("latents after each step", each.tolerance) for each in comparison.trajectories]
    applied += [("pictures", each.tolerance) for each in comparison.pictures]
    found = {name: record for name, record in applied if record is not None}
    if not found:
        return ""
    rows = []
    for name, record in found.items():
        limits = {
            key: value for key, value in record.model_dump(exclude={"measured", "reason"}).items() if value is not None
        }
        rows.append(_row(escape(name), escape(_pairs(limits)), escape(_pairs(record.measured)), escape(record.reason)))
    return "<h2>Tolerances</h2>" + _table(("of", "limits", "set from a measured", "reason"), rows)


def _environment(comparison: Comparison) -> str:
    facts = {
        "made from": f"{comparison.checkpoint.name} ({comparison.checkpoint.digest})",
        "reference": f"{comparison.compared_with.name} ({comparison.compared_with.digest})",
        "bundle": comparison.bundle_digest,
        "engines": f"{comparison.engines.digest}, key {comparison.engines.key}" if comparison.engines else "none",
        "steps": str(comparison.steps),
        "guidance scale": f"{comparison.guidance_scale:g}",
        "sdrt": comparison.sdrt,
        **comparison.environment,
        "created": comparison.created,
    }
    rows = [_row(escape(name), f"<code>{escape(value)}</code>") for name, value in facts.items()]
    return "<h2>Environment and digests</h2>" + _table((), rows)


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _row(*cells: str) -> str:
    classes = (' class="number"' if NUMBER.fullmatch(cell) else "" for cell in cells)
    return f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, cells, strict=True))}</tr>"


def _outcome(outcome: Outcome) -> str:
    return f'<span class="{outcome}">{outcome}</span>'


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _with_limit(metrics: Metrics | None, limits: ToleranceRecord | None, name: str) -> str:
    """Return a cell with a metric and, below it, its limit."""
    if metrics is None:
        return ""
    limit = getattr(limits, name) if limits else None
    below = f"<br><small>limit {limit:g}</small>" if limit is not None else ""
    return f"{getattr(metrics, name):.3g}{below}"


def _decibels(metrics: Metrics | None) -> str:
    if metrics is None:
        return ""
    return "equal" if metrics.psnr_db is None else f"{metrics.psnr_db:.1f} dB"


def _place(metrics: Metrics | None) -> str:
    """Return a cell with the index of the worst element and the values there."""
    if metrics is None or metrics.max_absolute == 0:
        return ""
    place = ", ".join(map(str, metrics.worst_index))
    return f"[{place}]<br><small>{metrics.worst_candidate:.5g} for {metrics.worst_reference:.5g}</small>"


def _step(step: int | None) -> str:
    return "" if step is None else f"{step + 1}"


def _value(value: float | str | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else value


def _pairs(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _data_uri(picture: Image.Image) -> str:
    small = picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS) if picture.width > SHOWN else picture
    return "data:image/png;base64," + base64.b64encode(_png(small)).decode()


def _png(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
