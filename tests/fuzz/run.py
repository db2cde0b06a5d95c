"""Fuzz the targets by coverage, with Atheris, each in its own process and for a limited time: `make fuzz`.

Findings are written below the corpus as NAME/found-...; ``python -m tests.fuzz.run NAME --repeat FILE`` repeats one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY_MB = 2048
#: Limit for one input; a slower reader counts as hanging.
INPUT_S = 20
MAX_BYTES = 1 << 16


def main() -> int:
    """Fuzz the named targets, one after the other; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="[default: all]")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"), help="where inputs that reach more are kept")
    parser.add_argument("--repeat", type=Path, help="read this file once, without fuzzing")
    parser.add_argument("--fuzz", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fuzz:
        return _one(options, options.folder)
    if options.repeat:
        with tempfile.TemporaryDirectory(prefix="sdrt-fuzz-") as folder:
            return _one(options, Path(folder))
    from tests.fuzz.targets import TARGETS

    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"there is no target {min(unknown)}; choose from {', '.join(TARGETS)}")
    failed = [name for name in options.targets or TARGETS if not _fuzzed(name, options)]
    print(f"found something in {', '.join(failed)}" if failed else "nothing was found")
    return 1 if failed else 0


def _fuzzed(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one target in its own process; return whether nothing was found."""
    corpus = options.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", __spec__.name, name, "--fuzz"]
    words += ["--seconds", str(options.seconds), "--corpus", str(options.corpus)]
    with tempfile.TemporaryDirectory(prefix="sdrt-fuzz-") as folder:
        ended = subprocess.run([*words, "--folder", folder], stderr=subprocess.PIPE, text=True, check=False)
    lines = ended.stderr.splitlines()
    runs = next((line.split()[1] for line in reversed(lines) if line.startswith("stat::number_of_executed_units")), "?")
    print(f"{name}: {runs} inputs, {len(list(corpus.iterdir()))} kept", flush=True)
    if ended.returncode:
        print("\n".join(lines[-60:]), flush=True)
    return ended.returncode == 0


def _one(options: argparse.Namespace, folder: Path) -> int:
    """Fuzz one target in an empty folder, or repeat one input; Atheris ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["sdrt"]):
        from tests.fuzz.targets import TARGETS
    (name,) = options.targets
    target = TARGETS[name]
    seeds = target.prepare(folder)
    if options.repeat:
        print("taken" if target.run(folder, options.repeat.read_bytes()) else "refused")
        return 0
    corpus = options.corpus / name
    for number, sound in enumerate(seeds):
        (corpus / f"sound-{number}").write_bytes(sound)

    def read(data: bytes) -> None:
        target.run(folder, data)

    flags = {
        "max_total_time": options.seconds,
        "rss_limit_mb": MEMORY_MB,
        "timeout": INPUT_S,
        "max_len": MAX_BYTES,
        "print_final_stats": 1,
        "artifact_prefix": f"{corpus}/found-",
    }
    atheris.Setup([sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)], read)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
