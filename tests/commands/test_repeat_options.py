"""Options that --from sets, and the options that override it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrt.commands.denoise_repeat import with_record
from tests.helpers.denoise_options import options
from tests.helpers.records import picture_record


def taken(record: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Return the settings that repeat the picture of a record."""
    merged = with_record(options(**given), record)
    return {name: getattr(merged, name) for name in ("backend", "loop", "provider", "cuda_graphs")}


GPU = {"backend": "tensorrt", "loop": "fused", "provider": None, "cuda_graphs": True, "precision": "fp16"}


@pytest.mark.parametrize(
    ("record", "given", "expected"),
    [
        ({}, {}, ("onnxruntime", "plain", "cpu", None)),
        ({"provider": "cuda"}, {}, ("onnxruntime", "plain", "cuda", None)),
        ({"provider": "cuda"}, {"provider": "cpu"}, ("onnxruntime", "plain", "cpu", None)),
        ({"provider": "cuda"}, {"backend": "openvino"}, ("openvino", "plain", None, None)),
        (GPU, {}, ("tensorrt", "auto", None, True)),
        ({**GPU, "cuda_graphs": False}, {}, ("tensorrt", "auto", None, False)),
        ({**GPU, "cuda_graphs": False}, {"cuda_graphs": True}, ("tensorrt", "auto", None, True)),
        (GPU, {"loop": "plain"}, ("tensorrt", "plain", None, True)),
        (GPU, {"backend": "onnxruntime"}, ("onnxruntime", "auto", None, None)),
        ({**GPU, "loop": "plain"}, {"engines": Path("engines")}, ("auto", "plain", None, None)),
        ({"loop": None, "provider": None}, {}, ("onnxruntime", "auto", None, None)),
    ],
)
def test_steps_run_as_they_ran(record: dict[str, Any], given: dict[str, Any], expected: tuple[object, ...]) -> None:
    assert tuple(taken(picture_record(**record), **given).values()) == expected


def test_without_from_nothing_is_decided() -> None:
    asked = options(repeat=None)
    assert with_record(asked, None) is asked


def test_the_variant_of_the_weights_is_the_records() -> None:
    record = picture_record()
    record["checkpoint"] = {**record["checkpoint"], "variant": "ema"}
    assert with_record(options(), record).variant == "ema"
    assert with_record(options(checkpoint="demo"), record).variant is None
    assert with_record(options(), picture_record()).variant is None
