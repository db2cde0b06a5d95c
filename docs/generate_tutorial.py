"""Generate the tutorial's pictures with its own commands: ``python docs/generate_tutorial.py [--store DIR]``."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageSequence

PAGE = Path(__file__).parent / "tutorial.md"
JPEG_QUALITY = 88
#: Size of the animation on the page; the command writes it in full size.
MOVING_SIZE = (192, 192)


def commands(page: str) -> list[list[str]]:
    """Return the words of the page's sdrt commands, in order."""
    return [shlex.split(line) for line in page.splitlines() if line.startswith("    sdrt ")]


def pictures(page: str) -> list[Path]:
    """Return the paths of the pictures on the page, relative to it."""
    return [Path(name) for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)]


def source(picture: Path, folder: Path) -> Path:
    """Return the file that a command wrote to a folder and that the page's picture is made from."""
    return folder / (picture.with_suffix(".png").name if picture.suffix == ".jpg" else picture.name)


def publish(written: Path, picture: Path) -> None:
    """Copy a file that a command wrote to its place on the page; convert PNG to JPEG, and scale animations down."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    if picture.suffix == ".svg":
        shutil.copyfile(written, picture)
        return
    with Image.open(written) as opened:
        if picture.suffix == ".jpg":
            opened.convert("RGB").save(picture, quality=JPEG_QUALITY, optimize=True)
            return
        frames, durations = [], []
        for frame in ImageSequence.Iterator(opened):
            frames.append(frame.convert("RGB").resize(MOVING_SIZE, Image.Resampling.LANCZOS))
            durations.append(frame.info["duration"])
    frames[0].save(picture, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def main() -> None:
    """Run every command in a temporary folder and publish the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--store", type=Path, help="folder of stored bundles and engines (default: in the user's cache)"
    )
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in commands(page):
            store = ["--store", str(arguments.store.absolute())] if arguments.store and words[1] != "inspect" else []
            print(shlex.join(words), flush=True)
            subprocess.run([sys.executable, "-m", *words, *store], cwd=folder, check=True)
        for picture in pictures(page):
            publish(source(picture, folder), PAGE.parent / picture)
            print(PAGE.parent / picture)


if __name__ == "__main__":
    main()
