"""Reports of a benchmark: numbers as JSON, tables as Markdown, the roofline as SVG, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sdrt.bench import chart
from sdrt.bench.schema import Bench, BenchChanges, ContenderResult, Point, Ratio, Sample
from sdrt.files import canonical_json, disk_errors, write_atomically

JSON, MARKDOWN, ROOFLINE = "bench.json", "bench.md", "roofline.svg"
#: Label and shape of the dots of each component on the roofline.
SHORT = {"unet": ("UNet", 0), "vae_decoder": ("VAE", 1), "text_encoder": ("text", 2)}
FIGURES = {
    "total": "whole request, warm",
    "unet_step": "UNet step, warm",
    "cold_first_step": "process start to first step",
    "cold_picture": "process start to picture",
}


def write_report(folder: Path, bench: Bench) -> tuple[Path, ...]:
    """Write all reports into a folder, creating it if necessary.

    Returns:
        Paths of the written files.

    Raises:
        ResourceError: A file cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = [folder / JSON, folder / MARKDOWN]
    write_atomically(written[0], canonical_json(bench.model_dump(mode="json")))
    write_atomically(written[1], markdown(bench).encode())
    if bench.points and bench.ceilings:
        written.append(folder / ROOFLINE)
        write_atomically(written[-1], roofline(bench).encode())
    return tuple(written)


def markdown(bench: Bench) -> str:
    """Return the benchmark as Markdown tables."""
    settings = bench.settings
    parts = [
        f"# Benchmark of {Path(bench.checkpoint).name}",
        f"{bench.created}, sdrt {bench.sdrt}. {settings.steps} steps, guidance {settings.guidance_scale:g}, "
        f"{settings.threads} threads, {settings.rounds} rounds in turn after one that warms up, {settings.cold_rounds} "
        f"cold starts. Seconds are the median, with the least and the 90th percentile in brackets.",
        f"    {bench.command}" if bench.command else "",
        _machine(bench),
        "## Warm",
        _table(warm_rows(bench.contenders)),
        "\n".join(_other_threads(bench)),
        "## Ratios, round by round",
        "How many times as long as sdrt the other took: above 1, sdrt is faster. Median, least and most of the rounds.",
        _table(ratio_rows(bench.ratios)),
        "## Cold: a process of its own",
        _table(cold_rows(bench.contenders)),
        "## Export and build",
        _table(build_rows(bench.contenders)),
        "## Share of the machine's limit",
        limits_text(bench),
        _table(point_rows(bench.points)),
    ]
    absent = [f"- {each.name}: {each.problem} ({each.remedy})" for each in bench.contenders if each.problem]
    if absent:
        parts += ["## Not measured", "\n".join(absent)]
    if bench.against is not None:
        parts += ["## Since the earlier benchmark", *_earlier_lines(bench.against), _table(change_rows(bench.against))]
    return "\n\n".join(part for part in parts if part) + "\n"


def lines(bench: Bench) -> Iterable[str]:
    """Yield the lines that a terminal shows: the main tables, aligned."""
    yield from _aligned(warm_rows(bench.contenders))
    yield from _other_threads(bench)
    tables = {
        "cold, a process of its own": cold_rows(bench.contenders),
        "ratios (above 1, sdrt is faster)": ratio_rows(bench.ratios),
        "share of the machine's limit": point_rows(bench.points),
    }
    for title, rows in tables.items():
        if len(rows) > 1:
            yield from ("", title)
            yield from _aligned(rows)
    yield limits_text(bench)
    for each in bench.contenders:
        if each.problem:
            yield f"{each.name} was not measured: {each.problem} ({each.remedy})"
    if bench.against is not None:
        yield from _earlier_lines(bench.against)
        yield from _aligned(change_rows(bench.against))


def _other_threads(bench: Bench) -> list[str]:
    """Return a line for each contender that runs with another number of threads than the benchmark's."""
    return [
        f"{each.name} has {each.threads} thread{'s' if each.threads > 1 else ''}, as it was tuned."
        for each in bench.contenders
        if each.warm and each.threads != bench.settings.threads
    ]


def warm_rows(contenders: Sequence[ContenderResult]) -> list[list[str]]:
    """Return the table of latency, throughput and memory of warm runs."""
    rows = [
        ["", "batch", "request s", "text s", "UNet step s", "VAE s", "pictures/min", "peak memory", "same picture"],
    ]
    for each in contenders:
        for warm in each.warm:
            device = f", {_mebibytes(warm.device_bytes)} on the GPU" if warm.device_bytes is not None else ""
            memory = _mebibytes(warm.peak_memory_bytes) if warm.peak_memory_bytes is not None else "unknown"
            rows.append(
                [
                    each.name,
                    str(warm.batch),
                    seconds(warm.total),
                    _median(warm.text_encoder),
                    seconds(warm.unet_step),
                    _median(warm.vae_decoder),
                    f"{warm.pictures_a_minute:.2f}",
                    memory + device,
                    _same(each),
                ]
            )
    return rows


def _same(each: ContenderResult) -> str:
    if each.scheduler != "LMS":
        return "other scheduler"
    if each.equal_picture:
        return "equal"
    return "" if each.psnr_db is None else f"{each.psnr_db:.0f} dB"


def ratio_rows(ratios: Sequence[Ratio]) -> list[list[str]]:
    """Return the table of ratios between contenders."""
    rows = [["", "against", "batch", "figure", "times as long", "least to most", "same precision"]]
    for each in ratios:
        span = f"{each.sample.min:.2f} to {each.max:.2f}"
        equal = "yes" if each.equal_precision else "no"
        figure = FIGURES[each.figure]
        rows.append([each.of, each.peer, str(each.batch), figure, f"{each.sample.p50:.2f}", span, equal])
    return rows


def cold_rows(contenders: Sequence[ContenderResult]) -> list[list[str]]:
    """Return the table of cold starts, in seconds from the start of the process."""
    rows = [["", "imported s", "loaded s", "first step s", "picture s", "peak memory"]]
    for each in contenders:
        if each.cold is not None:
            cold = each.cold
            first = seconds(cold.first_step) if cold.first_step is not None else "unknown"
            held = _mebibytes(cold.peak_memory_bytes) if cold.peak_memory_bytes is not None else "unknown"
            rows.append([each.name, seconds(cold.imported), seconds(cold.loaded), first, seconds(cold.picture), held])
    return rows


def build_rows(contenders: Sequence[ContenderResult]) -> list[list[str]]:
    """Return the table of export, build and conversion, in seconds."""
    rows = [["", "export s", "build s", "converted s", "components (s, size, peak memory)"]]
    for each in contenders:
        if each.build is None and each.prepare_s is None:
            continue
        build = each.build
        parts = [
            f"{part.component} {part.seconds:.1f}, {_mebibytes(part.size_bytes)}"
            + (f", {_mebibytes(part.peak_memory_bytes)}" if part.peak_memory_bytes is not None else "")
            for part in (build.components if build else ())
        ]
        numbers = [build.export_s if build else None, build.build_s if build else None, each.prepare_s]
        shown = ["" if number is None else f"{number:.1f}" for number in numbers]
        rows.append([each.name, *shown, "; ".join(parts)])
    return rows


def point_rows(points: Sequence[Point]) -> list[list[str]]:
    """Return the table of components on the roofline."""
    rows = [["", "component", "batch", "GFLOP", "GFLOP/s", "share of the limit", "FLOP a byte at most"]]
    for each in points:
        share = f"{each.share.p50:.0%}" if each.share is not None else "unknown"
        intensity = f"{each.flops / each.least_bytes:.0f}"
        flops, rate = f"{each.flops / 1e9:.1f}", f"{each.gflops:.0f}"
        rows.append([each.contender, each.component, str(each.batch), flops, rate, share, intensity])
    return rows


def limits_text(bench: Bench) -> str:
    """Return a line with the machine's ceilings; "" if none was measured."""
    parts = [
        f"{each.precision} {each.gflops.p50:.0f} GFLOP/s ({each.gflops.min:.0f} to {max(each.gflops.values):.0f}, "
        f"{each.library})"
        for each in bench.ceilings
    ]
    copied = bench.copy_bytes_a_second
    if copied is not None:
        parts.append(f"a copy {copied.p50 / 1e9:.1f} GB/s")
    return "Limit of the machine in the same rounds: " + "; ".join(parts) if parts else ""


def change_rows(changes: BenchChanges) -> list[list[str]]:
    """Return the table of changes since the earlier benchmark."""
    rows = [["", "batch", "figure", "before s", "after s", "factor", "less the machine's", "spread", ""]]
    for each in changes.moves:
        verdict = {"slower": "SLOWER", "faster": "faster", "same": ""}[each.verdict]
        numbers = [f"{value:.3f}" for value in (each.before, each.after)] + [
            f"{value:.2f}" for value in (each.factor, each.adjusted)
        ]
        rows.append([each.contender, str(each.batch), FIGURES[each.figure], *numbers, f"{each.spread:.0%}", verdict])
    return rows


def _earlier_lines(changes: BenchChanges) -> list[str]:
    return [f"Earlier: {changes.created}.", *(f"Remark: {remark}." for remark in changes.remarks)]


def roofline(bench: Bench) -> str:
    """Return the roofline as SVG: FLOP a byte on the x axis, GFLOP/s on the y axis, the ceilings as dashed lines."""
    bandwidth = bench.copy_bytes_a_second
    intensities = [point.flops / point.least_bytes for point in bench.points]
    series = []
    for ceiling in bench.ceilings:
        peak = ceiling.gflops.p50
        knee = peak * 1e9 / bandwidth.p50 if bandwidth is not None else min(intensities)
        first = min(min(intensities) / 2, knee)
        slope = [(first, peak * first / knee)] if bandwidth is not None and first < knee else []
        last = max(*intensities, knee) * 2
        series.append(chart.Series(f"limit, {ceiling.precision}", (*slope, (knee, peak), (last, peak)), "limit"))
    contenders = list(dict.fromkeys(point.contender for point in bench.points))
    for contender, component in dict.fromkeys((point.contender, point.component) for point in bench.points):
        places = tuple(
            (point.flops / point.least_bytes, point.gflops)
            for point in bench.points
            if (point.contender, point.component) == (contender, component)
        )
        name, mark = SHORT[component]
        colour = len(bench.ceilings) + contenders.index(contender)
        series.append(chart.Series(f"{contender}, {name}", places, "dots", colour, mark))
    threads = bench.settings.threads
    title = f"Roofline of {Path(bench.checkpoint).name} on {threads} thread{'s' if threads > 1 else ''}"
    labels = ("FLOP a byte that has to move at least", "GFLOP/s")
    return chart.draw(chart.Chart(title, *labels, tuple(series), log_x=True, log_y=True))


def seconds(values: Sample) -> str:
    """Return the median, the minimum and the 90th percentile of a sample as text."""
    return f"{values.p50:.3f} ({values.min:.3f} to {values.p90:.3f})"


def _median(values: Sample | None) -> str:
    return "" if values is None else f"{values.p50:.3f}"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def _machine(bench: Bench) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in bench.machine.items())
    libraries = ", ".join(f"{name} {value}" for name, value in bench.versions.items())
    return f"Machine: {facts}.\n\nLibraries: {libraries}."


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of rows, the first of which is the head; "" if there are no others."""
    if len(rows) < 2:
        return ""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    parts = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(parts + [f"| {' | '.join(row)} |" for row in body])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
