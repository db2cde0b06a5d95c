from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.bench.roofline import least_bytes, points
from sdrt.bench.schema import Build, ComponentBuild
from tests.bench.results import contender
from tests.models.tiny_bundle import tiny_bundle

GFLOP = 10**9


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle whose UNet and VAE decoder state 1 and 2 GFLOP."""
    made = tiny_bundle(tmp_path / "bundle")
    parts = dict(made.manifest.components)
    for name, flops in (("unet", GFLOP), ("vae_decoder", 2 * GFLOP)):
        parts[name] = parts[name].model_copy(update={"flops": flops})  # type: ignore[index]
    return Bundle(made.path, made.manifest.model_copy(update={"components": parts}), made.digest)


def limits(*gflops: float) -> dict[int, list[dict[str, Any]]]:
    return {1: [{"products": {"bf16": {"gflops": value, "library": "torch"}}} for value in gflops]}


def test_a_guided_step_is_two_rows_and_shares_are_taken_round_by_round(bundle: Bundle) -> None:
    # A machine that slows down by half in the second round, and the contender with it.
    ours = contender("sdrt openvino bf16", [1.0, 2.0, 1.0])
    unet, decoder = points([ours], bundle, limits(100, 50, 100))
    assert (unet.component, unet.flops) == ("unet", 2 * GFLOP)
    assert unet.gflops == pytest.approx(2 / 0.075)
    assert unet.share is not None
    assert unet.share.values == pytest.approx([2 / 0.075 / 100] * 3)
    assert (decoder.component, decoder.flops) == ("vae_decoder", 2 * GFLOP)


def test_without_a_ceiling_of_its_precision_a_share_is_unknown(bundle: Bundle) -> None:
    ours = contender("sdrt onnxruntime fp32", [1.0, 1.0, 1.0], precision="fp32")
    assert [point.share for point in points([ours], bundle, limits(1, 1, 1))] == [None, None]


def test_a_component_stands_under_the_ceiling_of_its_own_precision(bundle: Bundle) -> None:
    parts = tuple(
        ComponentBuild(component=name, precision=precision, seconds=1, size_bytes=1, peak_memory_bytes=None)
        for name, precision in (("unet", "bf16"), ("vae_decoder", "fp32"))
    )
    ours = contender("sdrt openvino bf16", [1.0], build=Build(components=parts))
    products = {"bf16": {"gflops": 100.0}, "fp32": {"gflops": 50.0}}
    unet, decoder = points([ours], bundle, {1: [{"products": products}]})
    assert (unet.precision, decoder.precision) == ("bf16", "fp32")
    assert decoder.share is not None
    assert decoder.share.p50 == pytest.approx(2 / 0.2 / 50)


def test_components_without_flops_are_left_out(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "bundle")
    assert points([contender("sdrt openvino bf16", [1.0])], made, limits(1)) == ()


def test_least_bytes_are_weights_in_their_precision_and_values_in_fp32(bundle: Bundle) -> None:
    part = bundle.manifest.components["unet"]
    values = 2 * 4 * 8 * 8 + 1 + 7 * 8
    for precision, size in (("fp32", 4), ("bf16", 2), ("int8", 1)):
        expected = part.parameters * size + 3 * values * 4
        assert least_bytes(part, precision, 3) == expected  # type: ignore[arg-type]
