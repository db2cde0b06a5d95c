"""Cost as work grows: pictures in a request, steps, threads; and a queue of prompts against one command a prompt.

Run: python benchmarks/scaling.py --store build/store --out benchmarks/results/scaling
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdrt.bench.chart import Chart, Series, draw
from sdrt.bench.contender import Job, Work
from sdrt.bench.machine import machine, versions
from sdrt.bench.process import Process
from sdrt.bench.statistics import sample
from sdrt.compare.prompts import default_prompts
from sdrt.prepare.choice import choose
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.progress import Progress, for_terminal

GUIDANCE_SCALE = 7.5
PROMPTS = 8

Key = tuple[int, int, int]


def main() -> None:
    """Measure, and write scaling.json, scaling.md and two plots."""
    asked = arguments()
    progress = for_terminal()
    source = Source(checkpoint=asked.checkpoint)
    choice = choose(source, backend=asked.backend, store=asked.store, progress=progress)
    engines = prepare(source, choice, store=asked.store, progress=progress)
    manifest = engines.manifest
    prompts = [each.prompt for each in default_prompts(manifest.checkpoint.name)]
    grid = [(batch, asked.steps[0]) for batch in asked.batches] + [(1, steps) for steps in asked.steps[1:]]
    job = Job("sdrt", manifest.precision, threads=1, engines=str(engines.path), store=str(asked.store))
    seconds = measure(job, grid, prompts[0], asked, progress)
    found = {
        "schema_version": 1,
        "command": f"python benchmarks/scaling.py --checkpoint {asked.checkpoint} --backend {manifest.backend}",
        "checkpoint": manifest.checkpoint.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "machine": machine(),
        "versions": versions(),
        "rows": [
            {"threads": threads, "batch": batch, "steps": steps, "seconds": sample(values).model_dump()}
            for (threads, batch, steps), values in seconds.items()
        ],
        "queue": queue(asked, prompts, manifest.backend, progress),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "scaling.md").write_text(markdown(found))
    first = asked.steps[0]
    by_batch = f"Pictures a minute, {first} steps", "pictures in a request", "pictures a minute"
    plot(asked.out / "batch.svg", by_batch, found, lambda row: row["steps"] == first, rate_by_batch)
    by_steps = "Seconds of one picture", "steps", "seconds"
    plot(asked.out / "steps.svg", by_steps, found, lambda row: row["batch"] == 1, seconds_by_steps)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def measure(
    job: Job, grid: list[tuple[int, int]], prompt: str, asked: argparse.Namespace, progress: Progress
) -> dict[Key, list[float]]:
    """Seconds by (threads, batch, steps): every point once a round, thread counts in turn at each."""
    seconds: dict[Key, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        live = {
            threads: stack.enter_context(Process(replace(job, threads=threads), folder)) for threads in asked.threads
        }
        png = str(Path(folder) / "picture.png")
        for process in live.values():
            process.run(Work((prompt,), (0,), 1, GUIDANCE_SCALE, png))
        with progress.stage("scaling", asked.rounds * len(grid)) as advance:
            for _ in range(asked.rounds):
                for batch, steps in grid:
                    work = Work((prompt,) * batch, tuple(range(batch)), steps, GUIDANCE_SCALE, png)
                    for threads, process in live.items():
                        seconds.setdefault((threads, batch, steps), []).append(process.run(work).total)
                    advance(1)
    return seconds


def queue(asked: argparse.Namespace, prompts: list[str], backend: str, progress: Progress) -> dict[str, Any]:
    """Seconds of the same pictures from a file of prompts, and from a command each."""
    steps = asked.steps[0]
    lines = [{"prompt": prompts[index % len(prompts)], "seed": index} for index in range(PROMPTS)]
    common = [
        "--checkpoint",
        asked.checkpoint,
        "--backend",
        backend,
        "--store",
        str(asked.store),
        "--steps",
        str(steps),
    ]
    merged, alone = [], []
    with tempfile.TemporaryDirectory() as name, progress.stage("queue", asked.rounds) as advance:
        folder = Path(name)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for _ in range(asked.rounds):
            words = ["--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "queue.png")]
            merged.append(command([*common, *words]))
            total = 0.0
            for line in lines:
                words = ["--prompt", str(line["prompt"]), "--seed", str(line["seed"])]
                total += command([*common, *words, "--out", str(folder / "alone.png")])
            alone.append(total)
            advance(1)
    return {
        "prompts": PROMPTS,
        "steps": steps,
        "merged": sample(merged).model_dump(),
        "one_by_one": sample(alone).model_dump(),
    }


def command(words: list[str]) -> float:
    """Seconds of sdrt denoise from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sdrt", "denoise", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def rate_by_batch(row: dict[str, Any]) -> tuple[float, float]:
    """A point of the plot of throughput."""
    return row["batch"], 60 * row["batch"] / row["seconds"]["p50"]


def seconds_by_steps(row: dict[str, Any]) -> tuple[float, float]:
    """A point of the plot of steps."""
    return row["steps"], row["seconds"]["p50"]


def plot(path: Path, labels: tuple[str, str, str], found: dict[str, Any], wanted: Any, point: Any) -> None:
    """One line a number of threads."""
    rows = [row for row in found["rows"] if wanted(row)]
    counts = sorted({row["threads"] for row in rows})
    series = tuple(
        Series(
            f"{threads} thread{'s' if threads > 1 else ''}",
            tuple(sorted(point(row) for row in rows if row["threads"] == threads)),
        )
        for threads in counts
    )
    path.write_text(draw(Chart(*labels, series)))


def markdown(found: dict[str, Any]) -> str:
    """The numbers as a table."""
    facts = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    text = [
        f"{found['checkpoint']} on {found['backend']} {found['precision']}; guidance {GUIDANCE_SCALE}.",
        "",
        f"Machine: {facts}.",
        "",
        f"    {found['command']}",
        "",
        "| threads | pictures | steps | seconds (least to 90%) | seconds a picture | pictures/min |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        p50, low, high = (row["seconds"][name] for name in ("p50", "min", "p90"))
        each, rate = p50 / row["batch"], 60 * row["batch"] / p50
        cells = [row["threads"], row["batch"], row["steps"], f"{p50:.2f} ({low:.2f} to {high:.2f})"]
        text.append("| " + " | ".join(str(cell) for cell in [*cells, f"{each:.2f}", f"{rate:.1f}"]) + " |")
    waiting = found["queue"]
    merged, alone = waiting["merged"]["p50"], waiting["one_by_one"]["p50"]
    text += [
        "",
        f"{waiting['prompts']} prompts at {waiting['steps']} steps: {merged:.1f} s from one file of prompts "
        f"(`sdrt denoise --prompts`, merged into batches), {alone:.1f} s by a command each: {alone / merged:.1f} times "
        "as long.",
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
