"""Scaling with the pictures in a request, steps and threads; and a queue of prompts compared with one command a prompt.

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
    """Measure the grid and the queue, and write scaling.json, scaling.md and two plots."""
    args = arguments()
    progress = for_terminal()
    source = Source(checkpoint=args.checkpoint)
    choice = choose(source, backend=args.backend, store=args.store, progress=progress)
    engines = prepare(source, choice, store=args.store, progress=progress)
    manifest = engines.manifest
    prompts = [each.prompt for each in default_prompts(manifest.checkpoint.name)]
    grid = [(batch, args.steps[0]) for batch in args.batches] + [(1, steps) for steps in args.steps[1:]]
    job = Job("sdrt", manifest.precision, threads=1, engines=str(engines.path), store=str(args.store))
    seconds = measure(job, grid, prompts[0], args, progress)
    found = {
        "schema_version": 1,
        "command": f"python benchmarks/scaling.py --checkpoint {args.checkpoint} --backend {manifest.backend}",
        "checkpoint": manifest.checkpoint.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "machine": machine(),
        "versions": versions(),
        "rows": [
            {"threads": threads, "batch": batch, "steps": steps, "seconds": sample(values).model_dump()}
            for (threads, batch, steps), values in seconds.items()
        ],
        "queue": queue(args, prompts, manifest.backend, progress),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "scaling.md").write_text(markdown(found))
    first = args.steps[0]
    by_batch = f"Pictures a minute, {first} steps", "pictures in a request", "pictures a minute"
    plot(args.out / "batch.svg", by_batch, found, lambda row: row["steps"] == first, rate_by_batch)
    by_steps = "Seconds of one picture", "steps", "seconds"
    plot(args.out / "steps.svg", by_steps, found, lambda row: row["batch"] == 1, seconds_by_steps)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
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
    job: Job, grid: list[tuple[int, int]], prompt: str, args: argparse.Namespace, progress: Progress
) -> dict[Key, list[float]]:
    """Measure seconds by (threads, batch, steps): each point once a round, and each thread count in turn at a point."""
    seconds: dict[Key, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        live = {
            threads: stack.enter_context(Process(replace(job, threads=threads), folder)) for threads in args.threads
        }
        png = str(Path(folder) / "picture.png")
        for process in live.values():
            process.run(Work((prompt,), (0,), 1, GUIDANCE_SCALE, png))
        with progress.stage("scaling", args.rounds * len(grid)) as advance:
            for _ in range(args.rounds):
                for batch, steps in grid:
                    work = Work((prompt,) * batch, tuple(range(batch)), steps, GUIDANCE_SCALE, png)
                    for threads, process in live.items():
                        seconds.setdefault((threads, batch, steps), []).append(process.run(work).total)
                    advance(1)
    return seconds


def queue(args: argparse.Namespace, prompts: list[str], backend: str, progress: Progress) -> dict[str, Any]:
    """Measure the seconds of the same pictures from one file of prompts, and from one command each."""
    steps = args.steps[0]
    lines = [{"prompt": prompts[index % len(prompts)], "seed": index} for index in range(PROMPTS)]
    common = [
        "--checkpoint",
        args.checkpoint,
        "--backend",
        backend,
        "--store",
        str(args.store),
        "--steps",
        str(steps),
    ]
    merged, alone = [], []
    with tempfile.TemporaryDirectory() as name, progress.stage("queue", args.rounds) as advance:
        folder = Path(name)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for _ in range(args.rounds):
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
    """Run sdrt denoise in a new process and return its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sdrt", "denoise", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def rate_by_batch(row: dict[str, Any]) -> tuple[float, float]:
    """Return a point of the plot of throughput: batch and pictures a minute."""
    return row["batch"], 60 * row["batch"] / row["seconds"]["p50"]


def seconds_by_steps(row: dict[str, Any]) -> tuple[float, float]:
    """Return a point of the plot of steps: steps and seconds."""
    return row["steps"], row["seconds"]["p50"]


def plot(path: Path, labels: tuple[str, str, str], found: dict[str, Any], chosen: Any, point: Any) -> None:
    """Write a chart of the chosen rows with a line for each number of threads."""
    rows = [row for row in found["rows"] if chosen(row)]
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
    """Return the measurements as Markdown."""
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
