"""The quantised graph: what is rounded and how finely, what stays bit for bit, and refusal of a wrong one."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.export import calibration, quantised_bundle
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.quantise import module_of, products, quantise
from sdrt.export.quantised_bundle import quantise_bundle
from sdrt.export.sensitivity import Sensitivity
from sdrt.graphs.values import SCOPES
from sdrt.progress import silent
from tests.models.tiny_bundle import HIDDEN_SIZE, MAX_TOKENS, feeds, tiny_bundle

Array = npt.NDArray[Any]
WITH_STEP: tuple[ComponentName, ...] = (*COMPONENTS, "denoise_step")
#: Least and largest input of the hand-made UNet's convolution: normalised values.
RANGES = {"normal": (-4.0, 4.0)}
#: Relative L2. The convolution's input is rounded to 1/254 of its range and its weights to 1/254 of each channel's:
#: 1.05e-2 measured. A grid four times as coarse, or one that clips at half the range, gives more than the tolerance.
TOLERANCE = 1.3e-2


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    betas = '{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}'
    return tiny_bundle(tmp_path / "bundle", components=WITH_STEP, scheduler=betas)


@pytest.fixture(autouse=True)
def states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the tokenizer; the hand-made bundle's knows no words."""
    rows = np.random.default_rng(0).standard_normal((len(calibration.PROMPTS) + 2, MAX_TOKENS, HIDDEN_SIZE))
    monkeypatch.setattr(calibration, "_encode", lambda _bundle: rows.astype(np.float32))


def output(graph: Path, batch: int = 3) -> Array:
    values: Array = open_cpu_session(graph).run(None, feeds("unet", batch))[0]
    return values


def weights_of(graph: Path) -> dict[str, Array]:
    return {weight.name: numpy_helper.to_array(weight) for weight in onnx.load(graph).graph.initializer}


def test_the_product_is_rounded_and_little_changes(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    assert quantise(bundle.graph("unet"), target, RANGES) == 1
    error = relative_l2(output(target), output(bundle.graph("unet")))
    # It is not 0, so something was rounded.
    assert 1e-4 < error < TOLERANCE
    model, plain = (onnx.load(path, load_external_data=False) for path in (target, bundle.graph("unet")))
    for side in ("input", "output"):
        assert list(getattr(model.graph, side)) == list(getattr(plain.graph, side))
    assert list(model.opset_import) == list(plain.opset_import)
    assert {entry.op_type for entry in model.graph.node if entry.input[0].startswith("int8.")} == {
        "Conv",
        "DequantizeLinear",
    }


@pytest.mark.parametrize("bounds", [(-16.0, 16.0), (-2.0, 2.0)])
def test_a_wrong_range_is_seen(bundle: Bundle, tmp_path: Path, bounds: tuple[float, float]) -> None:
    quantise(bundle.graph("unet"), tmp_path / "model.onnx", {"normal": bounds})
    assert relative_l2(output(tmp_path / "model.onnx"), output(bundle.graph("unet"))) > TOLERANCE


def test_each_output_channel_has_its_scale(bundle: Bundle, tmp_path: Path) -> None:
    quantise(bundle.graph("unet"), tmp_path / "model.onnx", RANGES)
    stored, plain = weights_of(tmp_path / "model.onnx"), weights_of(bundle.graph("unet"))
    levels, scales = stored["int8.kernel"], stored["int8.kernel.scale"]
    assert levels.dtype == np.int8
    assert scales.shape == (4,)
    assert np.abs(levels.reshape(4, -1).astype(int)).max(axis=1).tolist() == [127] * 4
    difference = np.abs(levels * scales.reshape(-1, 1, 1, 1) - plain["kernel"])
    assert (difference <= scales.reshape(-1, 1, 1, 1) / 2 * (1 + 1e-5)).all()
    # Everything but the products stays bit for bit; their fp32 weights are gone.
    assert "kernel" not in stored
    for name in plain.keys() - {"kernel"}:
        np.testing.assert_array_equal(stored[name], plain[name])


@pytest.mark.parametrize(
    ("bounds", "dtype", "zero"),
    [
        ((-3.0, 4.0), np.int8, 0),
        ((-0.25, 8.0), np.uint8, 8),
        ((0.5, 8.0), np.uint8, 0),
        ((-3.0, -1.0), np.int8, 0),
        ((0.0, 0.0), np.uint8, 0),
    ],
)
def test_the_grid_holds_the_range_and_zero(
    bundle: Bundle, tmp_path: Path, bounds: tuple[float, float], dtype: type, zero: int
) -> None:
    quantise(bundle.graph("unet"), tmp_path / "model.onnx", {"normal": bounds})
    stored = weights_of(tmp_path / "model.onnx")
    scale, point = stored["int8.normal.scale"], stored["int8.normal.zero"]
    assert point.dtype == dtype
    assert int(point) == zero
    limits = np.iinfo(dtype)
    low, high = (float(scale) * (bound - int(point)) for bound in (max(limits.min, -127), limits.max))
    # Half a step may be lost where zero was moved onto the grid.
    assert low <= min(bounds[0], 0) + scale / 2
    assert high >= max(bounds[1], 0) - scale / 2


@pytest.mark.parametrize(
    ("module", "kept", "expected"),
    [
        ("down_blocks.0.resnets.0.conv1", (), True),
        ("conv_in", (), False),
        ("up_blocks.3.resnets.1.conv_shortcut", (), False),
        ("down_blocks.0.resnets.0.time_emb_proj", (), False),
        ("up_blocks.3.resnets.1.conv1", ("up_blocks.3",), False),
        ("up_blocks.3.resnets.1.conv1", ("up_blocks.2",), True),
        ("up_blocks.30.resnets.1.conv1", ("up_blocks.3",), True),
    ],
)
def test_sensitive_parts_are_kept(bundle: Bundle, module: str, kept: tuple[str, ...], expected: bool) -> None:
    graph = onnx.load(bundle.graph("unet"), load_external_data=False).graph
    (node,) = (entry for entry in graph.node if entry.op_type == "Conv")
    scopes = ["", "unet", *(f"unet.{module}",), "convolution"]
    node.metadata_props.add(key=SCOPES, value=repr(scopes))
    assert module_of(node) == module
    assert bool(products(graph, kept)) is expected


def test_a_matrix_keeps_its_output_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 5)).astype(np.float32) * np.array([1, 10, 100, 1000, 10000], np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["first"]),
        helper.make_node("Gemm", ["x", "turned"], ["second"], transB=1),
        helper.make_node("Sub", ["first", "second"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", 1, ("batch", 6))],
        [helper.make_tensor_value_info("y", 1, ("batch", 5))],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(matrix.T.copy(), "turned")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "plain.onnx")
    quantise(tmp_path / "plain.onnx", tmp_path / "model.onnx", {"x": (-3.0, 3.0)})
    stored = weights_of(tmp_path / "model.onnx")
    np.testing.assert_array_equal(stored["int8.matrix"], stored["int8.turned"].T)
    # One input and equal weights, rounded alike, give equal outputs.
    (found,) = open_cpu_session(tmp_path / "model.onnx").run(None, {"x": rng.standard_normal((2, 6)).astype("f")})
    np.testing.assert_allclose(found, 0, atol=1e-2)


def test_a_bundle_is_quantised_whole(bundle: Bundle, tmp_path: Path) -> None:
    made = quantise_bundle(bundle, tmp_path / "int8")
    opened = Bundle.open(tmp_path / "int8", verify=True)
    assert (opened.digest, opened.manifest.precision) == (made.digest, "int8")
    precisions = {name: part.precision for name, part in opened.manifest.components.items()}
    assert precisions == {**dict.fromkeys(COMPONENTS, "fp32"), "unet": "int8", "denoise_step": "int8"}
    assert opened.manifest.checkpoint == bundle.manifest.checkpoint
    for name in ("text_encoder", "vae_encoder", "vae_decoder"):
        assert opened.graph(name).read_bytes() == bundle.graph(name).read_bytes()
    assert relative_l2(output(opened.graph("unet")), output(bundle.graph("unet"))) < TOLERANCE
    # Again, elsewhere, byte for byte.
    assert quantise_bundle(bundle, tmp_path / "another" / "place").digest == made.digest


def test_ranges_are_those_of_whole_pictures(bundle: Bundle) -> None:
    found = calibration.calibrate(bundle, ["normal", "sample"], silent)
    assert len(found.held_out) == calibration.STEPS
    widths = [made.width for made in found.held_out]
    # The steps go from the largest sigma of SD v1 to 0.
    assert sum(widths) == pytest.approx(14.6146, rel=1e-4)
    (low, high), (first, last) = found.ranges["normal"], found.ranges["sample"]
    # Group normalisation gives about 4 standard deviations; the sample begins as unit noise, and this UNet's output is
    # none, so that it moves away.
    assert -6 < low < -2 < 2 < high < 6
    assert first < -2 < 2 < last
    assert found.errors(open_cpu_session(bundle.graph("unet"))) == [0.0] * calibration.STEPS


def test_a_fault_is_what_areas_have_in_common() -> None:
    rng = np.random.default_rng(0)
    output = rng.standard_normal((2, 4, 16, 24)).astype(np.float32)
    made = calibration.Pass({}, output, width=2.0)
    assert made.error(output) == 0
    checks = np.indices((16, 24)).sum(axis=0) % 2 * 2 - 1
    # As large as a shift by 0.1, but 0 in the mean of every area.
    assert made.error(output + np.float32(0.1) * checks.astype(np.float32)) == pytest.approx(0, abs=1e-3)
    # If both halves have it, guidance leaves it unchanged: 2 x 0.1 for each latent.
    assert made.error(output + np.float32(0.1)) == pytest.approx(2 * 0.1 * np.sqrt(4 * 16 * 24), rel=1e-4)
    # In one area of one channel of the unconditional half alone: -6.5 times.
    output = output.copy()
    output[0, 1, 8:16, :8] += np.float32(0.1)
    assert made.error(output) == pytest.approx(2 * 0.1 * 6.5 * 8, rel=1e-4)


def test_where_the_test_fails_modules_are_kept_and_then_it_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    tried: list[float] = []

    def spy(source: Path, target: Path, ranges: Any, kept: tuple[str, ...] = ()) -> int:
        asked.append(kept)
        return quantise(source, target, dict.fromkeys(ranges, (0.0, 8.0)), kept)

    def ranked(source: Path, ranges: Any, steps: list[calibration.Pass], progress: Any) -> list[Sensitivity]:
        tried.extend(made.width for made in steps)
        return [Sensitivity(name, 4.0**-index, 1) for index, name in enumerate("abcdef")]

    monkeypatch.setattr(quantised_bundle, "quantise", spy)
    monkeypatch.setattr(quantised_bundle, "by_sensitivity", ranked)
    with pytest.raises(NumericError, match=r"latents by [0-9.]+, [0-9] modules kept in fp32; 0\.1 is allowed"):
        quantise_bundle(bundle, tmp_path / "int8")
    # First with none kept, then each time with as many or more.
    assert asked[0] == ()
    assert len(asked) == 1 + len(quantised_bundle.TRIES)
    assert all(set(fewer) <= set(more) for fewer, more in pairwise(asked))
    assert len(asked[-1]) > len(asked[1]) > 0
    # Tried at the largest errors: values below 0 are lost in all, which matters most in the widest two.
    assert tried == pytest.approx([3.156, 7.937], rel=1e-3)
    assert not (tmp_path / "int8").exists()


def test_what_passes_at_once_is_not_searched(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised_bundle, "by_sensitivity", lambda *_: pytest.fail("nothing to search for"))
    quantise_bundle(bundle, tmp_path / "int8")


def test_what_cannot_be_quantised_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    once = quantise_bundle(bundle, tmp_path / "once")
    with pytest.raises(UsageError, match="is in int8; int8 is made from fp32"):
        quantise_bundle(once, tmp_path / "twice")
    part = tiny_bundle(tmp_path / "part", components=("unet",))
    with pytest.raises(BundleError, match="holds no text_encoder"):
        quantise_bundle(part, tmp_path / "int8")


def test_it_needs_no_torch() -> None:
    code = "import sdrt.export.quantised_bundle, sys; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
