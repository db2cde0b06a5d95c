"""Changes between two comparisons: values that moved are named, others are not; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdrt.compare.changes import find_changes, read_comparison
from sdrt.compare.schema import Comparison
from sdrt.errors import ArtefactError
from tests.compare.comparisons import comparison, component, output, picture, trajectory


def moved(after: Comparison, before: Comparison | None = None) -> list[tuple[str, str, object, object, bool | None]]:
    found = find_changes(before or comparison(), after).moved
    return [(move.what, move.figure, move.before, move.after, move.worse) for move in found]


def test_equal_comparisons_have_not_moved() -> None:
    assert moved(comparison(created="2026-11-23T06:00:00Z")) == []
    assert find_changes(comparison(), comparison()).created == "2026-11-22T06:00:00Z"


CASE = "unet, early, batch 2, y"
PICTURE = "picture of 'a red circle', seed 7"
TRAJECTORY = "trajectory of 'a red circle', seed 7"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"components": (component("unet", output(1e-4)), component("vae_decoder"))},
         [(CASE, "relative_l2", 1e-5, 1e-4, True), (CASE, "peak", 1e-5, 1e-4, True)]),
        ({"components": (component("unet", output(1e-6)), component("vae_decoder"))},
         [(CASE, "relative_l2", 1e-5, 1e-6, False), (CASE, "peak", 1e-5, 1e-6, False)]),
        ({"components": (component("unet", output(1.4e-5)), component("vae_decoder"))}, []),
        ({"components": (component("unet", output(outcome="failed", reason="over")), component("vae_decoder"))},
         [("unet", "outcome", "passed", "failed", True), (CASE, "outcome", "passed", "failed", True)]),
        ({"trajectories": (trajectory(1e-6, 1e-1, first_over=1, outcome="failed"),)},
         [(TRAJECTORY, "outcome", "passed", "failed", True), (TRAJECTORY, "relative_l2", 4e-6, 1e-1, True),
          (TRAJECTORY, "first_over", None, 2.0, None)]),
        ({"pictures": (picture(psnr_db=40.0, candidate_verdict="wrong: shape"),)},
         [(PICTURE, "psnr_db", 60.0, 40.0, True), (PICTURE, "candidate_verdict", "right", "wrong: shape", True)]),
        ({"pictures": (picture(psnr_db=None, ssim=1.0),)}, [(PICTURE, "psnr_db", 60.0, "equal", False)]),
        ({"pictures": (picture(ssim=0.9),)}, [(PICTURE, "ssim", 0.9999, 0.9, True)]),
        ({"environment": {"onnxruntime": "1.32", "lpips": "not measured"}},
         [("environment", "onnxruntime", "1.31", "1.32", None)]),
        ({"bundle_digest": "ef" * 32}, [("run", "bundle_digest", "cd" * 32, "ef" * 32, None)]),
        ({"outcome": "failed"}, [("run", "outcome", "passed", "failed", True)]),
    ],
)  # fmt: skip
def test_each_move_is_named(changes: dict[str, Any], expected: list[Any]) -> None:
    assert moved(comparison(**changes)) == expected


def test_the_worse_come_first() -> None:
    after = comparison(
        components=(component("unet", output(1e-6)), component("vae_decoder", output(1e-3))), bundle_digest="ef" * 32
    )
    assert [move.worse for move in find_changes(comparison(), after).moved] == [True, True, None, False, False]


def test_what_is_gone_or_new_has_moved() -> None:
    found = moved(comparison(components=(component("unet"), component("text_encoder"))))
    assert found == [
        ("text_encoder", "outcome", None, "passed", None),
        ("text_encoder, early, batch 2, y", "outcome", None, "passed", None),
        ("vae_decoder", "outcome", "passed", None, None),
        ("vae_decoder, early, batch 2, y", "outcome", "passed", None, None),
    ]


def test_a_comparison_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(comparison().model_dump_json())
    assert read_comparison(path) == comparison()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "has schema version 2; this sdrt reads up to 1"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"outcome": "good"}, "outcome: Input should be"),
    ],
)
def test_what_is_no_comparison_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**json.loads(comparison().model_dump_json()), **change}))
    with pytest.raises(ArtefactError) as caught:
        read_comparison(path)
    assert said in caught.value.message


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="is not a JSON object"):
        read_comparison(path)
    with pytest.raises(ArtefactError, match="cannot read"):
        read_comparison(tmp_path / "nothing.json")
