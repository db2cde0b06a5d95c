"""Command of `make gpu-day`, or python -m tools.gpu_day: run the checks on an NVIDIA GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdrt.errors import BackendUnavailableError
from sdrt.machine import nvidia
from tools.gpu_day import FULL_SIZE
from tools.gpu_day.day import PAGE, PARTS, part_named, run_day
from tools.gpu_day.findings import BAD

#: Exit codes, the same as sdrt's: a part failed; there is no GPU; Ctrl-C.
FAILED, NO_GPU, INTERRUPTED = 5, 4, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run the named parts, or all if none is named."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_day", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-day"), help="folder for the findings and the page")
    parser.add_argument("--store", type=Path, default=Path("build/store"), help="store of bundles and engines")
    parser.add_argument("--checkpoint", default="demo", help="checkpoint to draw with")
    parser.add_argument("--full-size", type=Path, default=FULL_SIZE, help="path of the full-size checkpoint")
    args = parser.parse_args(words)
    if unknown := [name for name in args.parts if name not in {part.name for part in PARTS}]:
        parser.error(f"no part is called {unknown[0]}")
    try:
        if not nvidia.driver().gpus:
            raise BackendUnavailableError("NVIDIA's driver finds no GPU", hint="run it where one is")
    except BackendUnavailableError as error:
        print(f"gpu-day needs an NVIDIA GPU and its driver: {error.message}; {error.hint}", file=sys.stderr)
        return NO_GPU
    args.out.mkdir(parents=True, exist_ok=True)
    parts = [part_named(name) for name in args.parts] or PARTS
    given = [str(value) for value in (args.out, args.store, args.checkpoint, args.full_size)]
    try:
        reports = run_day(parts, args.out, [sys.executable, "-m", "tools.gpu_day.day", *given])
    except KeyboardInterrupt:
        print(f"stopped; {args.out / PAGE} shows what was found", file=sys.stderr)
        return INTERRUPTED
    print(f"{args.out / PAGE} shows what was found")
    return FAILED if any(report.state in BAD for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
