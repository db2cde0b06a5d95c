"""The commands of the pages on comparing, executed on a tiny bundle: sdrt's own, and Polygraphy's, which agrees."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from sdrt.compare.faults import FAULTS, plant
from sdrt.compare.tensors import snr_db
from sdrt.compare.tolerances import load

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = Path(sys.executable).parent


def commands(page: str, start: str) -> list[str]:
    """Return a page's commands with this beginning."""
    return [line.strip() for line in (DOCS / page).read_text().splitlines() if line.startswith(f"    {start}")]


def command(start: str) -> str:
    """Return the one command of Polygraphy's page with this beginning."""
    (found,) = commands("how-to-polygraphy.md", start)
    return found


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / words[0], *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_names_the_limit_of_the_table() -> None:
    limits = load().of("unet", "onnxruntime", "fp32")
    assert limits is not None
    assert limits.relative_l2 is not None
    assert command("polygraphy run").endswith(f" --snr-threshold {snr_db(limits.relative_l2):.5g}")


@pytest.fixture
def words(tiny_bundle: Bundle, tiny_path: Path, store: Store, tmp_path: Path) -> list[str]:
    """Put the bundle where the pages have it; return options that shorten each command."""
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    return ["--checkpoint", str(tiny_path), "--store", str(store.root), "--prompts", "prompts.txt", "--steps", "2"]


@pytest.mark.long
def test_the_comparing_page(words: list[str], tmp_path: Path) -> None:
    first, against, bisect = commands("how-to-compare.md", "sdrt compare bundle")
    compared = run(tmp_path, [*shlex.split(first), *words])
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "comparison.json",
        "contact-sheet.png",
        "report.html",
    ]
    (tmp_path / "report").rename(tmp_path / "last-release")
    for line in (against, bisect):
        compared = run(tmp_path, [*shlex.split(line), *words])
        assert compared.returncode == 0, compared.stdout + compared.stderr
        assert ("since 20" in compared.stdout) == (line == against)


@pytest.mark.long
def test_polygraphy_gives_the_same_verdict(words: list[str], tiny_bundle: Bundle, tmp_path: Path) -> None:
    compared = run(tmp_path, [*shlex.split(command("sdrt compare")), *words])
    assert compared.returncode == 0, compared.stdout + compared.stderr
    said = [line for line in compared.stderr.splitlines() if line.startswith("polygraphy run ")]
    assert len(said) == 5
    assert command("polygraphy run") in said
    for line in said:
        judged = run(tmp_path, shlex.split(line))
        assert judged.returncode == 0, judged.stdout + judged.stderr
    plant(tiny_bundle, FAULTS["convolution-scaled"], tmp_path / "faulty")
    faulty = command("polygraphy run").replace("bundle/", "faulty/")
    judged = run(tmp_path, shlex.split(faulty))
    assert judged.returncode != 0
    assert "snr" in judged.stdout.lower()
