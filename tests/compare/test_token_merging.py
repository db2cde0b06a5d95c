"""A subject that merges tokens is compared with a reference that merges as many, and the report says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrt.arrays import relative_l2
from sdrt.checkpoint import open_checkpoint
from sdrt.compare import compare as comparing
from sdrt.compare.compare import environment
from sdrt.compare.reference import Reference
from sdrt.compare.runners import candidate
from sdrt.compare.subject import Subject
from sdrt.export.components import load_component
from tests.models.tiny_bundle import tiny_bundle as write_bundle


def test_the_reference_merges_as_many(tiny_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((1, 4, 64, 64), np.float32),
        "timestep": np.array([500.5], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 77, 32), np.float32),
    }
    plain, merged = (Reference(checkpoint, ratio).run("unet", feeds)["out_sample"] for ratio in (None, 0.5))
    module = load_component(checkpoint, "unet", 0.5).module
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(value) for name, value in feeds.items()}).numpy()
    # The same operators on the same numbers, in as many threads.
    assert relative_l2(merged, expected) < 1e-6
    # Far over rounding: a merging bundle would fail against the plain reference.
    assert relative_l2(merged, plain) > 1e-2


def test_the_comparison_says_it(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "gpu", lambda: {"driver": None, "problem": "there is no driver"})
    checkpoint = open_checkpoint(str(tiny_path))
    plain = write_bundle(tmp_path / "bundle")
    merging = replace(plain, manifest=plain.manifest.model_copy(update={"token_merging": 0.5}))
    record = plain.manifest.checkpoint
    for bundle, said in ((plain, None), (merging, "0.5, also in the reference")):
        subject = Subject(candidate(bundle), None, None, bundle, record, checkpoint, bundle.digest)
        assert environment(subject, 1).get("token_merging") == said
