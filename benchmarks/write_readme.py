"""Write benchmarks/README.md from the measured results beside it.

Run: python benchmarks/write_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path

from sdrt.bench.changes import read_bench
from sdrt.bench.report import markdown

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HEAD = """# Benchmarks

Written by `python benchmarks/write_readme.py` from `benchmarks/results/`; do not edit this page.

Contenders run in turn, each in a process of its own. Where a machine's speed varies by a factor of two, only ratios are
meaningful
([0050](../docs/decisions/0050-a-benchmark-is-processes-in-turn.md),
[0051](../docs/decisions/0051-the-ceiling-is-what-any-library-reaches.md),
[0053](../docs/decisions/0053-peers-by-their-own-fast-path.md)).

| to measure | run |
|---|---|
| engines and all peers that are installed | `make bench`, or `sdrt bench` with your own options |
| what has become slower | `sdrt bench --against benchmarks/results/demo/bench.json` |
| batches, steps, threads, a queue of prompts | `python benchmarks/scaling.py` |
| the fastest accurate settings on this machine | `sdrt tune`, whose result `--backend auto` uses |
| the loop's own time a step | `python benchmarks/host_overhead.py` |
| int8 by its share of the work | `python benchmarks/int8_share.py BUNDLE` ([0057](../docs/decisions/0057-int8.md)) |
| what the opt-ins cost in fidelity | `python benchmarks/frontier.py` ([the plot](../docs/images/frontier.svg)) |
"""


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for folder in sorted(path.parent for path in RESULTS.glob("*/bench.json")):
        text = (
            markdown(read_bench(folder / "bench.json"))
            .replace("\n## ", "\n### ")
            .replace("# Benchmark", "## Benchmark", 1)
        )
        plot = f"\n![Roofline](results/{folder.name}/roofline.svg)\n" if (folder / "roofline.svg").exists() else ""
        parts.append(text + plot)
    parts += [tuned(path) for path in sorted(RESULTS.glob("*/tune.json"))]
    for page in sorted(RESULTS.glob("*/scaling.md")):
        name = page.parent.name
        plots = f"\n![Pictures a minute](results/{name}/batch.svg)\n\n![Seconds by steps](results/{name}/steps.svg)\n"
        parts.append(f"## Scaling\n\n{page.read_text()}{plots}")
    notes = [page for page in sorted(HERE.glob("*.md")) if page.name != "README.md"]
    if notes:
        lines = [f"- [{page.read_text().splitlines()[0].lstrip('# ')}]({page.name})" for page in notes]
        parts.append("## Notes\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def tuned(path: Path) -> str:
    """Return the trials of `sdrt tune` as Markdown, in their order, with the reasons."""
    record = json.loads(path.read_bytes())
    lines = [
        f"## Fastest settings for {record['checkpoint']}\n",
        f"    sdrt tune --checkpoint {record['checkpoint']}\n",
        f"{record['steps']} steps, {record['pictures']} picture, each measured in turn with the best so far.\n",
        "| settings | s a request, min | kept | reason |",
        "|---|---|---|---|",
    ]
    for trial in record["trials"]:
        batch = "any batch" if trial["batch"] is None else f"batch {trial['batch']}"
        name = f"{trial['backend']} {trial['precision']}, {trial['loop']} loop, {batch}, {trial['threads']} threads"
        seconds = f"{min(trial['seconds']):.3f}" if trial["seconds"] else ""
        lines.append(f"| {name} | {seconds} | {'yes' if trial['kept'] else ''} | {trial['why']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
