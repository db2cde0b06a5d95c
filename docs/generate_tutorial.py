"""Make the tutorial's pictures by the commands that stand in it: ``python docs/generate_tutorial.py [--store DIR]``."""

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
#: Of the moving picture on the page; the command writes it in full.
MOVING_SIZE = (192, 192)


def commands(page: str) -> list[list[str]]:
    """The words of the page's sdrt commands, in order."""
    return [shlex.split(line) for line in page.splitlines() if line.startswith("    sdrt ")]


def pictures(page: str) -> list[Path]:
    """The picture files that the page shows, relative to it."""
    return [Path(name) for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)]


def source(picture: Path, folder: Path) -> Path:
    """The file that a command wrote into a folder, of which the page's picture is made."""
    return folder / (picture.with_suffix(".png").name if picture.suffix == ".jpg" else picture.name)


def publish(written: Path, picture: Path) -> None:
    """Put what a command wrote where the page has it: as it is, a PNG as JPEG, an animation made smaller."""
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
    """Run every command in a fresh folder and publish the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="as sdrt's; default: the user's cache")
    asked = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in commands(page):
            store = ["--store", str(asked.store.absolute())] if asked.store and words[1] != "inspect" else []
            print(shlex.join(words), flush=True)
            subprocess.run([sys.executable, "-m", *words, *store], cwd=folder, check=True)
        for picture in pictures(page):
            publish(source(picture, folder), PAGE.parent / picture)
            print(PAGE.parent / picture)


if __name__ == "__main__":
    main()
