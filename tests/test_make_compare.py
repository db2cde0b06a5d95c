"""``make compare`` compares the demo's engines with PyTorch and writes a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.artefacts.store import Store
from sdrt.compare.changes import read_comparison
from tests.makefile import make


@pytest.mark.long
def test_the_demo_is_compared_and_a_report_is_left(store: Store, tmp_path: Path) -> None:
    report = tmp_path / "report"
    # The backend that runs in fp32 on every machine.
    done = make("compare", "ready-to-compare", f"STORE={store.root}", f"REPORT={report}", "BACKEND=onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {report / 'report.html'}" in done.stdout
    assert sorted(path.name for path in report.iterdir()) == ["comparison.json", "contact-sheet.png", "report.html"]
    written = read_comparison(report / "comparison.json")
    assert (written.checkpoint.name, written.backend, written.outcome) == ("demo", "onnxruntime", "passed")
    assert written.components
    assert written.trajectories
    assert written.pictures
