"""The table of tolerances: the shipped one, a user's, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.compare.components import CAUSAL
from sdrt.compare.tolerances import load
from sdrt.errors import UsageError

SETS = [("onnxruntime", "fp32"), ("openvino", "fp32")]
SETS += [(backend, precision) for backend in ("tensorrt", "tensorrt-rtx") for precision in ("fp16", "fp32")]


@pytest.mark.parametrize(("backend", "precision"), SETS)
def test_every_set_that_can_be_built_has_its_rows(backend: str, precision: str) -> None:
    table = load()
    assert all(table.of(component, backend, precision) for component in CAUSAL)
    assert table.of("", backend, precision, "trajectory")
    assert table.of("unet", backend, precision, "picture")


def test_every_row_says_why_and_leaves_room_over_what_was_measured() -> None:
    for key, row in load().table.items():
        assert row.reason, key
        limits = row.model_dump(exclude={"measured", "reason"}, exclude_none=True)
        assert limits, key
        # Everything that a CPU can run has been measured.
        assert row.measured or "not measured, because no GPU was available" in row.reason, key
        for name, measured in row.measured.items():
            limit = limits[name]
            if name == "psnr_db":
                assert measured - limit > 10, key
            else:
                room = (1 - limit) / (1 - measured) if name == "ssim" else limit / measured
                # As promised at the top of the table.
                assert room > (3 if key[0] == "picture" else 3.5), (key, name)


def test_int8_has_the_rows_that_differ_from_bf16s() -> None:
    table = load()
    assert table.of("unet", "openvino", "int8")
    assert table.of("denoise_step", "openvino", "int8")
    assert table.of("", "openvino", "int8", "trajectory")
    assert table.of("", "openvino", "int8", "picture")


def test_what_is_not_in_the_table_has_no_tolerance() -> None:
    assert load().of("unet", "onnxruntime", "int8") is None
    assert load().of("unet", "abacus", "fp32") is None


def test_a_file_replaces_rows_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[component.unet.openvino.fp32]\npeak = 0.5\nreason = "mine"\n')
    mine = load(path)
    changed = mine.of("unet", "openvino", "fp32")
    assert changed is not None
    assert (changed.peak, changed.relative_l2, changed.reason) == (0.5, None, "mine")
    assert mine.of("unet", "onnxruntime", "fp32") == load().of("unet", "onnxruntime", "fp32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not TOML"),
        ("[tensor.unet.openvino.fp32]", r"\[tensor\] is unknown"),
        ("trajectory = 1", r"\[trajectory\] is unknown"),
        ("[component.unet]\nopenvino = 1", "component.unet.openvino must be a table"),
        ("[trajectory.openvino]\nrelative_l2 = 1", "trajectory.openvino.relative_l2 must be a table"),
        ("[picture.openvino.fp32]\npsnr_db = 40", r"\[picture.openvino.fp32\]: reason: Field required"),
        ('[picture.openvino.fp32]\nreason = ""\npsnr = 40', "psnr: Extra inputs"),
        ('[component.unet.openvino.fp32]\nreason = "x"\npeak = nan', "peak: Input should be a finite number"),
        ('[component.unet.openvino.fp32]\nreason = "x"\npeak = -1', "peak: Input should be greater"),
        ('[component.unett.openvino.bf16]\nreason = "x"\npeak = 1', r"\.bf16\]: there is no component 'unett'"),
        ('[component.unet.openvno.bf16]\nreason = "x"\npeak = 1', "there is no backend 'openvno'"),
        ('[component.unet.openvino.bf61]\nreason = "x"\npeak = 1', "there is no precision 'bf61'"),
        ('[trajectory.openvino.bf61]\nreason = "x"\nrelative_l2 = 1', "there is no precision 'bf61'"),
        ('[picture.openvno.bf16]\nreason = "x"\nssim = 1', "there is no backend 'openvno'"),
        ('[component.unet.openvino.fp32]\nreason = "x"\nssim = 0.9', "ssim is not measured for a component"),
        ('[trajectory.openvino.fp32]\nreason = "x"\npeak = 1', "peak is not measured for a trajectory"),
        ('[picture.openvino.fp32]\nreason = "x"\nrelative_l2 = 1', "relative_l2 is not measured for a picture"),
        ('[picture.openvino.fp32]\nreason = "x"', r"\[picture.openvino.fp32\] limits nothing"),
        (
            '[trajectory.openvino.fp32]\nreason = "x"\nrelative_l2 = 1\nmeasured = { relative = 0.1 }',
            "relative is not measured for a trajectory",
        ),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert caught.value.hint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "nothing.toml")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        load(large)
